"""Naive twins of reconstruction: loops over samples, positions and weights, float64, no package."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ZETA, GAMMA = 1.1, -0.1


def reconstruction_loss(
    conv: Callable[[Tensor, Tensor, Tensor], Tensor],
    activation: Callable[[Tensor], Tensor],
    weight: Tensor,
    soft: Tensor,
    bias: Tensor,
    x: Tensor,
    x_q: Tensor,
) -> Tensor:
    """Eq 25 without regulariser: mean over samples and positions, sum over channels."""
    total, places = torch.zeros((), dtype=torch.float64), 0
    for sample, sample_q in zip(x, x_q, strict=True):
        wanted = activation(conv(sample[None], weight, bias))[0]
        given = activation(conv(sample_q[None], soft, bias))[0]
        for position in np.ndindex(*wanted.shape[1:]):
            for channel in range(len(wanted)):
                total = total + (wanted[(channel, *position)] - given[(channel, *position)]) ** 2
            places += 1
    return total / places


def adaround_curve(
    loss_of: Callable[[Tensor, Sequence[int]], Tensor],
    floor: Tensor,
    scale: float,
    fraction: Tensor,
    minibatches: Sequence[Sequence[int]],
    *,
    lr: float,
    lam: float,
    warm_start: float = 0.2,
    beta: tuple[float, float] = (20.0, 2.0),
) -> tuple[list[float], Tensor]:
    """Reconstruction losses of every iteration, and h(V) at the end; torch's own Adam.

    Args:
        loss_of: the loss of soft weights on the samples of these numbers.
        floor: lower levels, as numbers.
        scale: of the grid.
        fraction: where each weight lies above its lower level.
        minibatches: the samples of every iteration.
    """
    v = torch.logit((fraction - GAMMA) / (ZETA - GAMMA)).requires_grad_()
    adam = torch.optim.Adam([v], lr=lr)
    curve = []
    for iteration, samples in enumerate(minibatches):
        h = (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
        loss = loss_of(scale * (floor + h), samples)
        curve.append(float(loss.detach()))
        progress = (iteration / len(minibatches) - warm_start) / (1 - warm_start)
        if progress >= 0:
            exponent = beta[1] + (beta[0] - beta[1]) * (1 + math.cos(math.pi * progress)) / 2
            loss = loss + lam * (1 - (2 * h - 1).abs() ** exponent).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        return curve, (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def relu6(y: Tensor) -> Tensor:
    """By its definition."""
    return torch.minimum(torch.maximum(y, torch.zeros_like(y)), torch.full_like(y, 6.0))


def plain_conv(
    stride: int, padding: int, groups: int
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A convolution with these settings."""
    return lambda x, w, b: F.conv2d(x, w, b, stride, padding, 1, groups)
