"""Activations put on their grid, and the slopes of it, in a single pass over memory, on a CPU.

Division, rounding, clipping, and the draw of what stays in float are a dozen elementwise operations
each way. One after the other each of them goes through memory, and takes several times as long as
the network's convolutions; fused, the two passes take a fraction of them. There is nothing here
that activation_quantiser.py does not say in torch's operations, but for the random numbers; the
tests compare both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

from qubo_rounding.parallel import for_each_tile
from qubo_rounding.solvers.random_numbers import random_bits

_PART = 2**13  # values whose slopes are summed up together, on any number of threads
_OPERATIONS = 4 * _PART  # of a part, about; see `for_each_tile`


@dataclass(frozen=True)
class Draw:
    """Which values stay in float: those of a share, drawn anew for each key.

    Args:
        share: probability, 0 to 1.
        key: 0 to 2^63 - 1.
    """

    share: float
    key: int


KEEPS_NONE = Draw(0.0, 0)


def can_fuse(x: Tensor) -> bool:
    """Are there values, of float32 or float64, on a CPU?"""
    on_cpu = x.device.type == "cpu"
    return on_cpu and x.dtype in (torch.float32, torch.float64) and x.numel() > 0


def quantised(x: Tensor, scale: float, zero_point: float, largest: int, draw: Draw) -> Tensor:
    """The values of x on its grid, laid out as x; see `ActivationQuantiser`."""
    x = _dense(x)
    result = torch.empty_like(x)
    values, out = _flat(x), _flat(result)
    numbers = _numbers(values.dtype, scale, zero_point, largest, draw)

    def run(_: int, parts: slice) -> None:
        _quantise(values, out, (parts.start, parts.stop), *numbers)

    for_each_tile(1, _parts(values), run, _OPERATIONS)
    return result


def slopes(
    gradient: Tensor, x: Tensor, scale: float, zero_point: float, largest: int, draw: Draw
) -> tuple[Tensor, float]:
    """The slopes of a loss by x and by the scale, the latter undamped; from those by the result."""
    x = _dense(x)
    result = torch.empty_like(x)
    by_result = gradient if gradient.stride() == x.stride() else torch.empty_like(x).copy_(gradient)
    values, slope, out = _flat(x), _flat(by_result), _flat(result)
    numbers = _numbers(values.dtype, scale, zero_point, largest, draw)
    sums = np.empty(_parts(values))

    def run(_: int, parts: slice) -> None:
        _slopes(slope, values, out, sums, (parts.start, parts.stop), *numbers)

    for_each_tile(1, len(sums), run, _OPERATIONS)
    return result, float(sums.sum())


def _dense(x: Tensor) -> Tensor:
    """The values of x without gaps in memory."""
    x = x.detach()
    return x if _is_dense(x) else x.contiguous()


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))


def _flat(x: Tensor) -> np.ndarray:
    """A dense tensor's values in the order of its memory."""
    return x.as_strided((x.numel(),), (1,)).numpy()


def _parts(values: np.ndarray) -> int:
    return -(-len(values) // _PART)


def _numbers(
    dtype: np.dtype, scale: float, zero_point: float, largest: int, draw: Draw
) -> tuple[np.generic, ...]:
    """What the loops are told of grid and draw: each value is compared with 53 random bits."""
    grid = (dtype.type(number) for number in (scale, zero_point, largest))
    return (*grid, np.uint64(draw.key), np.uint64(draw.share * 2**53))


@numba.njit(inline="always")
def _stays(key, below, i):  # pyright: ignore
    return random_bits(key, np.uint64(i)) >> np.uint64(11) < below


# One part each, in a loop from 0 without branches: others are not vectorised.


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _part_values(x, out, first, scale, zero_point, largest, key, below):  # pyright: ignore
    """Comparisons pass NaN on; `first` counts the values before this part."""
    zero = zero_point - zero_point  # of their type
    for i in range(len(x)):
        level = np.rint(x[i] / scale) + zero_point
        level = zero if level < zero else level
        level = largest if level > largest else level
        on_grid = (level - zero_point) * scale
        out[i] = x[i] if _stays(key, below, first + i) else on_grid


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")
def _part_slopes(slope, x, out, first, scale, zero_point, largest, key, below):  # pyright: ignore
    zero = zero_point - zero_point  # of their type
    total = 0.0
    for i in range(len(x)):
        steps = x[i] / scale
        level = steps + zero_point
        inside = (level >= zero) & (level <= largest)
        stays = _stays(key, below, first + i)
        out[i] = slope[i] if inside | stays else zero
        level = zero if level < zero else level
        level = largest if level > largest else level
        moves = np.rint(level - zero_point) - (steps if inside else zero)
        total += zero if stays else moves * slope[i]
    return total


@numba.njit(cache=True, nogil=True)
def _quantise(x, out, parts, *numbers):  # pyright: ignore
    for part in range(*parts):
        at = slice(part * _PART, (part + 1) * _PART)
        _part_values(x[at], out[at], at.start, *numbers)


@numba.njit(cache=True, nogil=True)
def _slopes(slope, x, out, sums, parts, *numbers):  # pyright: ignore
    for part in range(*parts):
        at = slice(part * _PART, (part + 1) * _PART)
        sums[part] = _part_slopes(slope[at], x[at], out[at], at.start, *numbers)
