"""AdaRound's relaxation: the rectified sigmoid, its regulariser and the annealing of beta.

Pure functions of tensors and numbers, with the derivatives that a hand-written optimiser needs
beside the values. Source of all: Nagel et al. 2020, arXiv 2004.10568, section 3.3.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

ZETA, GAMMA = 1.1, -0.1  # stretch of the sigmoid: it reaches 0 and 1 at finite V


def rectified_sigmoid(v: Tensor) -> tuple[Tensor, Tensor]:
    """h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1) and dh/dV, both shaped as V (eq 23)."""
    sigmoid = torch.sigmoid(v)
    slope = torch.addcmul(sigmoid, sigmoid, sigmoid, value=-1).mul_(ZETA - GAMMA)
    stretched = sigmoid.mul_(ZETA - GAMMA).add_(GAMMA)
    # The clip's own backward zeroes the slope where it clips; a mask would take ten times as long.
    return stretched.clamp(0, 1), torch.ops.aten.hardtanh_backward(slope, stretched, 0.0, 1.0)


def inverse_rectified_sigmoid(h: Tensor) -> Tensor:
    """V with h(V) = h, for h in [0, 1]: where the optimisation starts from the fraction."""
    return torch.logit((h - GAMMA) / (ZETA - GAMMA))


def rounding_regulariser(h: Tensor, beta: float) -> Tensor:
    """1 - |2h - 1|^beta for every weight, shaped as h (eq 24); zero where h is 0 or 1."""
    return 1 - (2 * h - 1).abs() ** beta


def rounding_regulariser_slope(h: Tensor, beta: float) -> Tensor:
    """Its derivative by h: -2 beta |2h - 1|^(beta - 1) sign(2h - 1), shaped as h.

    A high beta leaves the middle flat, a low one pushes everything to the ends.
    """
    centred = h.mul(2).sub_(1)
    # exp and log are vectorised where pow is not; log(0) is -inf and comes back as 0.
    power = centred.abs().log_().mul_(beta - 1).exp_()
    return power.copysign_(centred).mul_(-2 * beta)


def annealing_progress(progress: float, warm_start: float) -> float | None:
    """The share of the annealing of beta that is done; None during the warm start.

    Args:
        progress: share of all iterations that is done.
        warm_start: share of the iterations that pass before the regulariser sets in.
    """
    annealed = (progress - warm_start) / (1 - warm_start)
    return None if annealed < 0 else annealed


def beta_at(
    progress: float,
    first: float = 20.0,
    last: float = 2.0,
    schedule: Literal["cosine", "linear"] = "cosine",
) -> float:
    """The exponent after a share of the annealing, from `first` down to `last`.

    Args:
        progress: from `annealing_progress`; outside [0, 1] beta stays at its ends.
        first, last: the ends.
        schedule: along half a cosine or a straight line.

    Source: section 5 names the annealing only; 20 to 2 is the public implementations'.
    """
    progress = min(max(progress, 0.0), 1.0)
    left = (1 + math.cos(math.pi * progress)) / 2 if schedule == "cosine" else 1 - progress
    return last + (first - last) * left
