"""Rows that share a Gram matrix over odd integers: the tensor form of `spins.py`, for bounds."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from qubo_rounding.problem import RoundingProblem, gram_product
from qubo_rounding.qubo.spins import SpinRow, anchor_levels

_EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class SpinRows:
    """Rows as ``energy = unit * (s' H G H s + 2 b' H s + c)`` over odd integers s, H = diag(h).

    Spins are those of `SpinRow`: -1 and +1 at the two levels around the target. A weight that is
    fixed, or that nothing flows into, stays in its place with h = 0: it is part of b and c.

    Args:
        gram: (g, d, d) G, exactly symmetric.
        half: (g, r, d) h, half the grid steps; 0 where a weight is fixed.
        slope: (g, r, d) b.
        offset: (g, r) c.
        unit: (g, r) what a mean row of H G H and b adds up to, output^2 per position; positive.
        largest: (g, r, d) the greatest s^2 of a spin; 1 where it has two levels.
        rounding: (g, r) how far float64 may have moved the energy of any spins, in units.
    """

    gram: Tensor
    half: Tensor
    slope: Tensor
    offset: Tensor
    unit: Tensor
    largest: Tensor
    rounding: Tensor

    def part(self, groups: slice, rows: slice) -> SpinRows:
        """Some groups and rows alone."""
        cut = {f.name: getattr(self, f.name)[groups] for f in fields(self)}
        return SpinRows(**{k: v if k == "gram" else v[:, rows] for k, v in cut.items()})

    @classmethod
    def of(cls, problem: RoundingProblem) -> SpinRows:
        """All rows of a problem.

        With m the errors at the spins' origin, e = m + h s, so b = G m + l / 2 and
        c = m' G m + l' m + offset. Every entry of the three is a sum of at most 2 d products of
        given numbers, whose absolute values add up to no more than ``size`` below over all of
        them; the standard bound for such sums is (2 d + 12) times half an epsilon of that. Eight
        times as much also pays for the energies that a bound is compared with.
        """
        gram = problem.gram
        tilt = torch.zeros_like(problem.target) if problem.linear is None else problem.linear / 2
        free = problem.high > problem.low
        free &= gram.any(dim=1).unsqueeze(1) | (tilt != 0)
        low, high = problem.low.double(), problem.high.double()
        anchor = anchor_levels(problem.target, low, high)
        half = torch.where(free, problem.scale / 2, 0.0)
        error = problem.scale * (anchor + 0.5 * free - problem.target)
        slope = gram_product(error, gram) + tilt
        largest = torch.maximum(2 * (anchor - low) + 1, 2 * (high - anchor) - 1) ** 2
        reach = error.abs() + half * largest.sqrt()
        size = (reach * (gram_product(reach, gram.abs()) + 2 * tilt.abs())).sum(dim=2)
        size = size + problem.offset.abs()
        unit = (half * (gram_product(half, gram.abs()) + slope.abs())).mean(dim=2)
        unit = torch.where(unit > 0, unit, 1.0)
        # Whatever the scales of weights and inputs, all numbers are near 1, for float32.
        shared = gram.abs().amax(dim=(1, 2), keepdim=True)
        shared = torch.where(shared > 0, shared, 1.0)
        grow = (shared / unit.unsqueeze(2)).sqrt()
        return cls(
            gram=gram / shared,
            half=half * grow,
            slope=slope / (unit.unsqueeze(2) * grow),
            offset=((error * (slope + tilt)).sum(dim=2) + problem.offset) / unit,
            unit=unit,
            largest=largest,
            rounding=(8 * problem.d + 64) * _EPSILON * size / unit,
        )

    @classmethod
    def of_row(cls, row: SpinRow) -> SpinRows:
        """One row, as g = r = 1 over its spins."""
        d = len(row.rest)
        values = dict(slope=row.slope, offset=row.offset, unit=row.unit, largest=row.ends**2)
        size = row.size(row.ends)
        values |= dict(half=np.ones(row.n), rounding=(8 * d + 64) * _EPSILON * size)
        tensors = {name: torch.from_numpy(np.array([[v]])) for name, v in values.items()}
        return cls(gram=torch.from_numpy((row.matrix + row.matrix.T) / 2)[None], **tensors)
