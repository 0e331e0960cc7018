"""Every assignment of a row, in Gray-code order: the optimum by exhaustion."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Event

import numpy as np
import torch

from qubo_rounding.parallel import for_each_row
from qubo_rounding.problem import RoundingProblem, gram_product
from qubo_rounding.solution import Solution
from qubo_rounding.solvers.gray_code import enumerate_rows
from qubo_rounding.solvers.solver import Solver
from qubo_rounding.watch import alarm
from qubo_rounding.whole_numbers import check_whole

_AT_ONCE = 2**18  # assignments between two looks at the clock, where a row has fewer
_EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Enumeration(Solver):
    """The proven optimum of rows with few free weights, by visiting every assignment.

    Consecutive assignments differ in one weight by one level (reflected mixed-radix Gray code), so
    each costs one update of the gradient, d operations, instead of d^2. Any integer ranges.
    Energies are summed anew often enough to know what rounding adds; the lower bound is below it.
    Rows that a time limit or Ctrl-C leaves out stay at nearest, without a bound, and are counted
    in `stats["rows_left"]`.

    Args:
        max_assignments: refuse rows with more; 2^24 take about a second a row.

    Source: Knuth, The Art of Computer Programming 4A, section 7.2.1.1, algorithm H (loopless).
    """

    max_assignments: int = 2**24

    def __post_init__(self) -> None:
        check_whole(1, max_assignments=self.max_assignments)

    def refuses(self, problem: RoundingProblem) -> str | None:
        """Too many assignments in some row?"""
        most = _most_bits(problem)
        if most <= np.log2(self.max_assignments) + 1e-9:
            return None
        return (
            f"a row has 2^{most:.1f} assignments and enumeration visits at most "
            f"{self.max_assignments}; use tree search or a heuristic, or raise max_assignments."
        )

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        """The optimum of every row; the seed is not used."""
        del seed
        start, gram = problem.nearest(), problem.gram.abs()
        errors = problem.errors(start).abs()
        tilt = torch.zeros_like(errors) if problem.linear is None else problem.linear.abs()
        gross = gram_product(errors, gram)
        rounding = (2 * problem.d + 16) * _EPSILON  # of a size: two sums' of 2 d products
        size = (errors * (gross + tilt)).sum(dim=2) + problem.offset.abs()
        slope = problem.gradient(start) / 2
        per_row = (slope, gross + tilt / 2, problem.scale.expand_as(slope))
        slopes, sizes, scale = (tensor.cpu().numpy() for tensor in per_row)
        low, high = problem.low.cpu().numpy(), problem.high.cpu().numpy()
        matrix, best = problem.gram.cpu().numpy(), start.cpu().numpy().copy()
        gain = np.full(best.shape[:2], np.nan)
        height = max(1, int(_AT_ONCE / 2 ** _most_bits(problem)))
        stop, late = Event(), alarm()

        def visit(group: int, tile: int) -> None:
            if (late() and (group, tile) != (0, 0)) or stop.is_set():
                return
            at = (group, slice(tile * height, (tile + 1) * height))
            ends = (low[at], high[at])
            enumerate_rows(
                matrix[group], slopes[at], sizes[at], scale[at], ends, rounding, best[at], gain[at]
            )

        for_each_row(problem.g, -(-problem.r // height), visit, "enumeration", stop)
        below = torch.from_numpy(gain).to(problem.device)
        return problem.solution(
            torch.from_numpy(best).to(problem.device),
            lower_bound=problem.energy(start) + below - rounding * size,
            rows_left=int(np.isnan(gain).sum()),
        )


def _most_bits(problem: RoundingProblem) -> float:
    """Log2 of the most assignments that a row has."""
    ranges = problem.high.double() - problem.low.double() + 1
    return float(ranges.log2().sum(dim=2).max())
