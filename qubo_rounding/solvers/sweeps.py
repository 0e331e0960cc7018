"""Rows on their way through annealing: what sweeps are told, and the CPU's way of doing them."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from qubo_rounding.parallel import for_each_tile
from qubo_rounding.problem import RoundingProblem, gram_product
from qubo_rounding.solvers.metropolis import metropolis_sweeps
from qubo_rounding.solvers.partners import Pairing

_COLDEST = 1e-4  # of `problem.unit`; float32 gains are not told apart much further
_WIDEST, _LANES = 64, 8  # columns of the Gram matrix that stay in cache; of a vector instruction


def block_width(d: int) -> int:
    """Columns of a block, of d in all."""
    blocks = -(-d // _WIDEST)
    return -(-d // (blocks * _LANES)) * _LANES


def in_blocks(array: np.ndarray) -> np.ndarray:
    """An array (..., d) as contiguous (..., blocks, width), zeros behind the last column."""
    d, width = array.shape[-1], block_width(array.shape[-1])
    blocks = -(-d // width)
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
    """

    def __init__(self, problem: RoundingProblem, start: Tensor) -> None: ...

    def begin(self, keys: np.ndarray) -> None:
        """Go to the start, from wherever the rows are.

        Args:
            keys: uint64 (g, r), of every row's random numbers from now on.
        """
        ...

    @property
    def levels(self) -> Tensor:
        """int16 (g, r, d) levels as they are now, where the problem lies."""
        ...

    @property
    def accepted(self) -> int:
        """Moves made since the start."""
        ...

    def run(self, temperatures: np.ndarray, first: int) -> None:
        """One proposal for each column or each pair in turn, and that for each temperature.

        Args:
            temperatures: float32 (n,), in units of `warmth`.
            first: number of the first of these sweeps; those of odd numbers propose pairs.
        """
        ...


def warmth(problem: RoundingProblem, start: Tensor) -> Tensor:
    """(g, r) float32 what temperatures of a row are told in: its energy per weight at the start.

    Of the quadratic part alone, in units of `problem.unit`, and no more than a twelfth: that much
    nearest rounding costs. Good starts of steep problems have far less, and want it colder.
    """
    errors = problem.errors(start)
    energy = (gram_product(errors, problem.gram) * errors).mean(dim=2).abs()
    return (energy / problem.positive_unit[..., 0]).clamp(_COLDEST, 1 / 12).float()


class HostSweeps(Sweeps):
    """On the CPU, wherever the problem lies; see `Sweeps`."""

    def __init__(self, problem: RoundingProblem, start: Tensor) -> None:
        self._pairing = Pairing.of(problem.gram, block_width(problem.d))
        floats = (problem.gradient(start) / 2, problem.scale.expand_as(start))
        rows = [tensor.float().cpu().numpy() for tensor in floats]
        rows += [tensor.cpu().numpy() for tensor in (problem.low, problem.high, start)]
        # slope, scale, low, high, levels
        self._start = [in_blocks(self._pairing.apply(array)) for array in rows]
        gram = self._pairing.apply_to_both(problem.gram.float().cpu().numpy())
        self._gram, self._pairs = in_blocks(gram), self._pairing.pairs
        self._warmth = warmth(problem, start).cpu().numpy()
        self._device, self._d = problem.device, problem.d

    def begin(self, keys: np.ndarray) -> None:
        """See `Sweeps.begin`."""
        slope, *constant, levels = self._start
        self._rows = [slope.copy(), *constant, levels.copy()]
        self._keys, self._made = keys, np.zeros_like(keys, np.int64)

    @property
    def levels(self) -> Tensor:
        """See `Sweeps.levels`."""
        found = self._pairing.undo(from_blocks(self._rows[-1], self._d))
        return torch.from_numpy(found).to(self._device)

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
                *(self._gram[group], self._pairs[group], slope, scale, low, high),
                *(temperatures, self._warmth[at], self._keys[at], first, levels, self._made[at]),
            )

        g, r = self._made.shape
        for_each_tile(g, r, run_tile, operations=10 * len(temperatures) * self._d)
