"""The local loss of a layer as a rounding problem, from its weight, its grid and its Gram.

With e the change of a row's weights w, x the input of the float network and x_q the one the rounded
network gives, the squared error of the output is, up to the bias,

    E[((w + e)' x_q - w' x)^2] = e' G_q e + 2 e' (G_q - C') w + w' (G - C - C' + G_q) w

with G = E[x x'], G_q = E[x_q x_q'], C = E[x x_q']; where x_q is not collected it is x, and only
e' G e remains. A float bias that may be refitted absorbs the mean error: then all moments are
central ones. Source: Nagel et al. 2020, arXiv 2004.10568, eq 20, and eq 25 without f_a.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from qubo_rounding.grid import Grid
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.statistics import Gram

BiasMode = Literal["refit", "keep"]
Candidates = Literal["up_down", "free"]


def local_problem(
    weight: Tensor,
    grid: Grid,
    gram: Gram,
    *,
    bias: BiasMode = "refit",
    candidates: Candidates = "up_down",
    meta: Mapping[str, Any] | None = None,
) -> RoundingProblem:
    """The rounding problem whose energy is the layer's mean squared output error per position.

    Args:
        weight: (g, r, d) float weights.
        grid: their grid, with scale (g, r, 1) or (g, r, d).
        gram: moments of the inputs; a paired one makes the problem correct for quantised inputs.
        bias: "refit" takes the central moments, for a bias that `bias_shift` corrects afterwards.
        candidates: "up_down" allows the two neighbours on the grid, "free" its whole range.
        meta: notes for the problem.

    Raises:
        ValueError: bias or candidates is another word, or shapes do not fit.
    """
    if candidates not in ("up_down", "free"):
        raise ValueError(f"candidates is {candidates!r}; give 'up_down' or 'free'.")
    low, high = grid.up_down(weight) if candidates == "up_down" else grid.free(weight)
    central = _is_central(bias)
    linear, offset = None, weight.new_zeros(weight.shape[:2], dtype=torch.float64)
    moments = gram.covariance if central else gram.second_moment
    if gram.is_paired:
        cross = gram.cross_covariance if central else gram.cross_moment
        moments_q = gram.covariance_q if central else gram.second_moment_q
        w = weight.double()
        linear = 2 * w @ (moments_q - cross)
        offset = ((w @ (moments - cross - cross.mT + moments_q)) * w).sum(dim=2)
        moments = moments_q
    return RoundingProblem(
        gram=moments,
        target=grid.target(weight),
        scale=grid.scale,
        low=low,
        high=high,
        linear=linear,
        offset=offset,
        meta=meta or {},
    )


def bias_shift(weight: Tensor, rounded: Tensor, gram: Gram, bias: BiasMode = "refit") -> Tensor:
    """(g, r) what to add to the bias so that the mean output error vanishes; zeros for "keep".

    Args:
        weight, rounded: (g, r, d) weights before and after.
        gram: the moments the rounding was made with.

    Source: the minimum over the bias of the energy above; bias correction of eq 26 is its special
        case with x_q = x.
    """
    if not _is_central(bias):
        return torch.zeros(weight.shape[:2], dtype=torch.float64, device=weight.device)
    mean_q = gram.mean_q if gram.is_paired else gram.mean
    before = weight.double() @ gram.mean.unsqueeze(2)
    after = rounded.double() @ mean_q.unsqueeze(2)
    return (before - after).squeeze(2)


def output_error(weight: Tensor, rounded: Tensor, shift: Tensor, gram: Gram) -> Tensor:
    """(g, r) mean squared output error of given weights and bias shift, on the Gram's own data.

    On the data that the rounding was made with this is the problem's energy; on held-out data it
    tells how far that energy carries.

    Args:
        weight, rounded: (g, r, d) weights before and after.
        shift: (g, r) from `bias_shift`, made with the calibration data.
        gram: moments of the data to judge by; paired or not like the calibration Gram.
    """
    w, v = weight.double(), rounded.double()
    paired = gram.is_paired
    second_q = gram.second_moment_q if paired else gram.second_moment
    cross = gram.cross_moment if paired else gram.second_moment
    mean_q = gram.mean_q if paired else gram.mean
    quadratic = (
        ((v @ second_q) * v).sum(dim=2)
        - 2 * ((w @ cross) * v).sum(dim=2)
        + ((w @ gram.second_moment) * w).sum(dim=2)
    )
    mean_error = (v @ mean_q.unsqueeze(2) - w @ gram.mean.unsqueeze(2)).squeeze(2)
    return quadratic + 2 * shift * mean_error + shift**2


def _is_central(bias: BiasMode) -> bool:
    if bias not in ("refit", "keep"):
        raise ValueError(f"bias is {bias!r}; give 'refit' or 'keep'.")
    return bias == "refit"
