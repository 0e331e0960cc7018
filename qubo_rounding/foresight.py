"""Bytes that rounding takes at its peak, so that what has no room is refused before it begins.

The counts below are upper ends of what analysis/benchmarks/wide_layer_memory.py measures.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch

from qubo_rounding.batch_contrasts import contrast_bytes
from qubo_rounding.layers import Layer
from qubo_rounding.room import check_room

_NUMBER = 8  # bytes of a float64
_SUMS, _SUMS_PAIRED = 1, 3  # (d, d) matrices of a Gram
_FINISHING = 2  # times as many, while sums become a Gram
POSING = 7  # matrices, while a Gram becomes a problem
_SOLVING = 3  # matrices of a solver beside the problem's own: a factor and copies
_ROWS = 10  # (r, d) matrices of a solver


def gram_bytes(layers: Collection[Layer], *, paired: bool = False) -> int:
    """What collecting the Gram matrices of all these layers at once takes.

    Args:
        layers: the layers.
        paired: whether inputs of a quantised network are collected beside the float one's.
    """
    sizes = [_matrix(layer.g, layer.d) for layer in layers]
    sums = _SUMS_PAIRED if paired else _SUMS
    contrasts = sum(contrast_bytes(layer.g, layer.d) for layer in layers)
    return sums * (sum(sizes) + _FINISHING * max(sizes, default=0)) + contrasts


def row_bytes(g: int, r: int, d: int) -> int:
    """What a solver takes for the rows of a problem, beside the problem."""
    return _ROWS * _NUMBER * g * r * d


def solving_bytes(g: int, r: int, d: int) -> int:
    """What a solver that looks at the Gram matrix takes, beside the problem."""
    return _SOLVING * _matrix(g, d) + row_bytes(g, r, d)


def network_bytes(
    layers: Collection[Layer], calibration: Literal["sequential", "independent"], sets: int
) -> int:
    """What rounding a network takes, beside its data and suspended passes.

    Args:
        layers: to be rounded.
        calibration: "sequential" holds the Gram matrices of one layer, "independent" of all.
        sets: how many sets of them are collected: of calibration data, of held-out data.
    """
    matrices = [_matrix(layer.g, layer.d) for layer in layers]
    rounding = [
        max(POSING * matrix, matrix + solving_bytes(layer.g, layer.r, layer.d))
        for layer, matrix in zip(layers, matrices, strict=True)
    ]
    contrasts = [contrast_bytes(layer.g, layer.d) for layer in layers]
    if calibration == "independent":
        return sets * (_SUMS * sum(matrices) + sum(contrasts)) + max(rounding)
    held = [sets * (_SUMS_PAIRED * m + c) for m, c in zip(matrices, contrasts, strict=True)]
    return max(map(sum, zip(held, rounding, strict=True)))


def check_grams(layers: Collection[Layer], *, paired: bool, device: torch.device | str) -> int:
    """`gram_bytes`, where there is room for them.

    Raises:
        ValueError: there is not.
    """
    work = f"a Gram matrix of each of {len(layers)} layers"
    remedy = f"collect those of fewer layers at a time; {_widest(layers)}"
    needed = gram_bytes(layers, paired=paired)
    check_room(needed, work, remedy, device)
    return needed


def check_network(
    layers: Collection[Layer],
    calibration: Literal["sequential", "independent"],
    sets: int,
    device: torch.device | str,
) -> int:
    """`network_bytes`, where there is room for them.

    Raises:
        ValueError: there is not.
    """
    work = f"rounding {len(layers)} layers by {calibration} calibration"
    remedy = f"leave wide layers out with skip; {_widest(layers)}"
    if calibration == "independent":
        remedy = f"choose sequential calibration, which holds one layer at a time, or {remedy}"
    needed = network_bytes(layers, calibration, sets)
    check_room(needed, work, remedy, device)
    return needed


def _matrix(g: int, d: int) -> int:
    return _NUMBER * g * d * d


def _widest(layers: Collection[Layer]) -> str:
    layer = max(layers, key=lambda layer: _matrix(layer.g, layer.d))
    return f"the widest is {layer.name!r} with {layer.g} x {layer.d:,} columns"
