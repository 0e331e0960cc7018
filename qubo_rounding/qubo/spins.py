"""One row of a rounding problem over odd integers: the form of bounds and exact search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qubo_rounding.problem import RoundingProblem


@dataclass(frozen=True, eq=False)
class SpinRow:
    """A row as ``energy = unit * (s' A s + 2 b' s + c)`` over odd integers s_j in [low_j, high_j].

    The two levels of an up/down weight are s = -1 and +1, where s^2 = 1 is constant: that is what
    every diagonal shift rests on. Wider weights have -1 and +1 at the two levels around the target
    and go on with -3, 3, ... Fixed weights are left out.

    Args:
        matrix: (n, n) A, symmetric, in units of `unit`.
        slope: (n,) b, in units of `unit`.
        offset: c, in units of `unit`.
        unit: energy scale, the mean absolute row sum of A and b; positive.
        rest_size: what the absolute values of all terms of c add up to, in units of `unit`.
        slope_size: (n,) the same of b.
        low, high: (n,) smallest and largest spin, odd integers as float64.
        columns: (n,) the column each spin stands for.
        anchor: (n,) the level at s = -1.
        rest: (d,) int16 levels of the fixed weights; the others hold their low level.
    """

    matrix: np.ndarray
    slope: np.ndarray
    offset: float
    unit: float
    rest_size: float
    slope_size: np.ndarray
    low: np.ndarray
    high: np.ndarray
    columns: np.ndarray
    anchor: np.ndarray
    rest: np.ndarray

    @property
    def n(self) -> int:
        """Number of spins."""
        return len(self.columns)

    @property
    def wide(self) -> np.ndarray:
        """(n,) bool: has this weight more than two levels?"""
        return self.high - self.low > 2

    @property
    def ends(self) -> np.ndarray:
        """(n,) the greatest |s|."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def size(self, reach: np.ndarray) -> float:
        """What the absolute values of all terms of an energy add up to, where |s| <= reach (n,).

        In units of `unit`, fixed weights and offset among them: rounding errors are small beside.
        """
        return float(reach @ (np.abs(self.matrix) @ reach + 2 * self.slope_size)) + self.rest_size

    def spins(self, levels: np.ndarray) -> np.ndarray:
        """(n,) float64 spins of levels (d,)."""
        return 2.0 * (levels[self.columns] - self.anchor) - 1

    def levels(self, spins: np.ndarray) -> np.ndarray:
        """(d,) int16 levels of spins (n,); the inverse of `spins`."""
        levels = self.rest.copy()
        levels[self.columns] = np.rint((spins + 1) / 2) + self.anchor
        return levels

    def energy(self, spins: np.ndarray) -> float:
        """The row's energy, offset included, output^2 per position."""
        return self.unit * (float(spins @ (self.matrix @ spins + 2 * self.slope)) + self.offset)


def anchor_levels(target: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The lower of the two levels around each target, as far as the range has them; float64.

    Args:
        target, low, high: of any one shape, as in a problem. Fixed weights have one level only.
    """
    return torch.minimum(target.floor(), high.double() - 1).maximum(low.double())


def spin_row(problem: RoundingProblem, group: int, row: int) -> SpinRow:
    """One row of a problem in spin form.

    With m the errors at the spins' origin and h half the grid steps, e = m + h * s, so
    A = h h' * G, b = h * (G m + l / 2) and c = m' G m + l' m + offset.

    Args:
        problem: any rounding problem.
        group, row: which row.
    """
    gram = problem.gram[group].cpu().numpy()
    own = [t[group, row].cpu() for t in (problem.target, problem.low, problem.high)]
    target, low, high = (t.numpy() for t in own)
    scale = problem.scale.expand_as(problem.target)[group, row].cpu().numpy()
    tilt = np.zeros(problem.d)
    if problem.linear is not None:
        tilt = problem.linear[group, row].cpu().numpy() / 2
    offset = float(problem.offset[group, row])
    columns = np.flatnonzero(high > low)
    anchor = anchor_levels(*own).numpy()[columns]  # here s = -1
    lowest, highest = (2.0 * (end[columns] - anchor) - 1 for end in (low, high))
    middle = low.astype(float)
    middle[columns] = anchor + 0.5
    error = scale * (middle - target)
    half = scale[columns] / 2
    passed = gram @ error
    matrix = half[:, None] * gram[np.ix_(columns, columns)] * half
    slope = half * (passed + tilt)[columns]
    unit = float((np.abs(matrix).sum(axis=1) + np.abs(slope)).mean()) if len(columns) else 1.0
    unit = unit if unit > 0 else 1.0
    gross, pulled = np.abs(gram) @ np.abs(error), np.abs(tilt)
    return SpinRow(
        matrix=matrix / unit,
        slope=slope / unit,
        offset=(float(error @ (passed + 2 * tilt)) + offset) / unit,
        unit=unit,
        rest_size=(float(np.abs(error) @ (gross + 2 * pulled)) + abs(offset)) / unit,
        slope_size=half * (gross + pulled)[columns] / unit,
        low=lowest,
        high=highest,
        columns=columns,
        anchor=anchor,
        rest=low,
    )
