"""Quantised activations by loops over single numbers; nothing here imports the package."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def on_grid(x: Tensor, scale: float, zero_point: int, bits: int) -> Tensor:
    """Each number on its own: its nearest level within 0 to 2^bits - 1, and back."""
    out = [
        scale * (min(max(round(value / scale) + zero_point, 0), 2**bits - 1) - zero_point)
        for value in x.double().flatten().tolist()
    ]
    return torch.tensor(out, dtype=torch.float64).reshape(x.shape)


def grid_between(low: float, high: float, bits: int) -> tuple[float, int]:
    """Scale and zero point of the grid from low, at most 0, to high, at least 0."""
    if high == low:
        return 1.0, 0
    scale = (high - low) / (2**bits - 1)
    return scale, round(-low / scale)


def counts(values: Sequence[float], low: float, high: float, bins: int) -> list[int]:
    """How many values fall into each of the bins between low and high."""
    found = [0] * bins
    for value in values:
        found[min(int((value - low) / (high - low) * bins), bins - 1)] += 1
    return found


def frozen_rounding(x: Tensor, scale: float, at: float, zero_point: int, bits: int) -> Tensor:
    """The smooth function of scale that the quantiser's slope belongs to.

    What rounding adds to x / scale at the scale `at` is taken as a constant.
    """
    out = []
    for value in x.tolist():
        level = value / at + zero_point
        if level < 0:
            out.append(-scale * zero_point)
        elif level > 2**bits - 1:
            out.append(scale * (2**bits - 1 - zero_point))
        else:
            out.append(scale * (value / scale + round(value / at) - value / at))
    return torch.tensor(out, dtype=torch.float64)
