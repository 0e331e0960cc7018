"""Metropolis sweeps over the columns of many rows, a block of columns at a time, compiled.

Most proposals are refused. So all of a block's are weighed at once, in loops that compilers turn
into vector instructions: the move each column would make, the largest gain at which it may, the
gain it has. Only where one is wanted, it is made, and the columns after it are weighed again. The
decisions are those of one proposal after the other.
"""

from __future__ import annotations

from typing import Protocol

import numba
import numpy as np
import torch
from torch import Tensor

from qubo_rounding.parallel import for_each_tile
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.solvers.random_numbers import random_bits
from qubo_rounding.vector_math import log32

_WIDEST, _LANES = 64, 8  # columns of the Gram matrix that stay in cache; of a vector instruction
_F, _I = np.float32, np.int32


def in_blocks(array: np.ndarray) -> np.ndarray:
    """An array (..., d) as contiguous (..., blocks, width), zeros behind the last column."""
    d = array.shape[-1]
    blocks = -(-d // _WIDEST)
    width = -(-d // (blocks * _LANES)) * _LANES
    wide = np.zeros((*array.shape[:-1], blocks * width), array.dtype)
    wide[..., :d] = array
    return wide.reshape(*array.shape[:-1], blocks, width)


def from_blocks(array: np.ndarray, d: int) -> np.ndarray:
    """The first d columns of an array in blocks, (..., d)."""
    return array.reshape(*array.shape[:-2], -1)[..., :d]


class Sweeps(Protocol):
    """Rows on their way through annealing.

    Args:
        problem: normalised.
        start: int16 (g, r, d), levels to begin with.
        keys: uint64 (g, r), of every row's random numbers.
    """

    def __init__(self, problem: RoundingProblem, start: Tensor, keys: np.ndarray) -> None: ...

    @property
    def levels(self) -> Tensor:
        """int16 (g, r, d) levels as they are now, where the problem lies."""
        ...

    @property
    def accepted(self) -> int:
        """Moves made so far."""
        ...

    def run(self, temperatures: np.ndarray, first: int) -> None:
        """One proposal for each column in turn, and that for each temperature.

        Args:
            temperatures: float32 (n,).
            first: number of the first of these sweeps.
        """
        ...


class HostSweeps(Sweeps):
    """On the CPU, wherever the problem lies; see `Sweeps`."""

    def __init__(self, problem: RoundingProblem, start: Tensor, keys: np.ndarray) -> None:
        floats = (problem.gram, problem.gradient(start) / 2, problem.scale.expand_as(start))
        self._gram, *floats = (in_blocks(tensor.float().cpu().numpy()) for tensor in floats)
        whole = (in_blocks(t.cpu().numpy()) for t in (problem.low, problem.high, start))
        self._rows = [*floats, *whole]  # slope, scale, low, high, levels
        self._keys, self._made = keys, np.zeros(start.shape[:2], np.int64)
        self._device, self._d = problem.device, problem.d

    @property
    def levels(self) -> Tensor:
        """See `Sweeps.levels`."""
        found = from_blocks(self._rows[-1], self._d)
        return torch.from_numpy(np.ascontiguousarray(found)).to(self._device)

    @property
    def accepted(self) -> int:
        """See `Sweeps.accepted`."""
        return int(self._made.sum())

    def run(self, temperatures: np.ndarray, first: int) -> None:
        """See `Sweeps.run`."""

        def run_tile(group: int, rows: slice) -> None:
            at = (group, rows)
            slope, scale, low, high, levels = (array[at] for array in self._rows)
            metropolis_sweeps(
                *(self._gram[group], slope, scale, low, high),
                *(temperatures, self._keys[at], first, levels, self._made[at]),
            )

        g, r = self._made.shape
        for_each_tile(g, r, run_tile, operations=10 * len(temperatures) * self._d)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def metropolis_sweeps(  # pyright: ignore
    gram, slope, scale, low, high, temperatures, keys, first, levels, accepted
):
    """One proposal for each column in turn, and that for each temperature.

    Inside a block of columns a row's moves update the slopes of that block at once; the rest of the
    row follows when the block is done, several moves in one pass over memory. That is the product
    (r x d)(d x d) of a full gradient, but only for the weights that moved.

    Args:
        gram: float32 (d, blocks, width).
        slope: float32 (r, blocks, width), half the energy gradient; stays up to date.
        scale: float32 (r, blocks, width), zero behind the last column.
        low, high: int16 (r, blocks, width).
        temperatures: float32 (n,), one for each sweep.
        keys: uint64 (r,), of every row's random numbers.
        first: number of the first of these sweeps.
        levels: int16 (r, blocks, width); changed.
        accepted: int64 (r,), counts the moves made.
    """
    rows, blocks, width = levels.shape
    d = len(gram)
    diagonal, move = np.zeros(width, np.float32), np.zeros(width, np.float32)
    curve, limit = np.zeros(width, np.float32), np.zeros(width, np.float32)
    way, wanted = np.zeros(width, np.int32), np.zeros(width, np.int32)
    moved, size = np.zeros(width, np.int64), np.zeros(width, np.float32)
    for s in range(len(temperatures)):
        for b in range(blocks):
            for k in range(min(width, d - b * width)):
                diagonal[k] = gram[b * width + k, b, k]
            for i in range(rows):
                step = np.uint64((first + s) * d + b * width)
                _draw(keys[i], step, temperatures[s], limit, way)
                _propose(scale, low, high, levels, i, b, way, diagonal, move, curve)
                n, at = 0, 0
                while _weigh(slope, i, b, at, move, curve, limit, wanted) > 0:
                    while wanted[at] == 0:
                        at += 1
                    column = b * width + at
                    levels[i, b, at] += np.int16(np.rint(move[at] / scale[i, b, at]))
                    for k in range(width):
                        slope[i, b, k] += move[at] * gram[column, b, k]
                    moved[n], size[n] = column, move[at]
                    n += 1
                    at += 1
                accepted[i] += n
                _tell_other_blocks(gram, slope, i, b, moved, size, n)


@numba.njit(inline="always")
def _draw(key, step, temperature, limit, way):  # pyright: ignore
    """For each column of a block the largest gain it accepts, and one of two ways."""
    for k in range(len(limit)):
        bits = random_bits(key, step + np.uint64(k))
        # Both in one number: two stores of 32 bits keep this loop of 64 from being vectorised.
        backwards = _I(_I(bits & np.uint64(1)) - _I(1))  # 0, or every bit set
        limit[k] = _F(_I(_I(bits >> np.uint64(40)) ^ backwards))
    for k in range(len(limit)):
        is_backwards = limit[k] < _F(0)
        drawn = -limit[k] - _F(1) if is_backwards else limit[k]
        limit[k] = -temperature * log32(drawn * _F(2.0**-24) + _F(2.0**-25))
        way[k] = _I(-1) if is_backwards else _I(1)


@numba.njit(inline="always")
def _propose(scale, low, high, levels, i, b, way, diagonal, move, curve):  # pyright: ignore
    """The change of weight each column would make, zero where it has none; and what that curves."""
    for k in range(len(move)):
        lowest, highest, level = _I(low[i, b, k]), _I(high[i, b, k]), _I(levels[i, b, k])
        flip = _I(lowest + highest - _I(2) * level)
        step = way[k] if _I(highest - lowest) > _I(1) else flip
        new = _I(level + step)
        move[k] = scale[i, b, k] * _F(step) if (new >= lowest) & (new <= highest) else _F(0)
        curve[k] = move[k] * move[k] * diagonal[k]


@numba.njit(inline="always")
def _weigh(slope, i, b, at, move, curve, limit, wanted):  # pyright: ignore
    """Mark the columns from `at` on whose move is accepted as slopes are now; returns how many.

    A column that nothing flows into gains nothing, and stays where it is.
    """
    count = _I(0)
    for k in range(len(move)):
        gain = _F(2) * move[k] * slope[i, b, k] + curve[k]
        wanted[k] = _I((gain < limit[k]) & (gain != _F(0)) & (k >= at))
        count = _I(count + wanted[k])
    return count


@numba.njit(inline="always")
def _tell_other_blocks(gram, slope, i, b, moved, size, n):  # pyright: ignore
    """slope[i] += sum of size[m] * gram[moved[m]] in all blocks but b, four moves at a time."""
    blocks, width = slope.shape[1:]
    m = 0
    while m + 4 <= n:
        r, s, t, u = moved[m], moved[m + 1], moved[m + 2], moved[m + 3]
        for q in range(blocks):
            if q != b:
                for k in range(width):
                    slope[i, q, k] += (size[m] * gram[r, q, k] + size[m + 1] * gram[s, q, k]) + (
                        size[m + 2] * gram[t, q, k] + size[m + 3] * gram[u, q, k]
                    )
        m += 4
    while m < n:
        r = moved[m]
        for q in range(blocks):
            if q != b:
                for k in range(width):
                    slope[i, q, k] += size[m] * gram[r, q, k]
        m += 1
