"""Every assignment of a row, in Gray-code order: the optimum by exhaustion."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import torch

from qubo_rounding.parallel import for_each_tile
from qubo_rounding.problem import RoundingProblem, Solution
from qubo_rounding.solvers.solver import Solver
from qubo_rounding.whole_numbers import check_whole


@dataclass(frozen=True)
class Enumeration(Solver):
    """The proven optimum of rows with few free weights, by visiting every assignment.

    Consecutive assignments differ in one weight by one level (reflected mixed-radix Gray code), so
    each costs one update of the gradient, d operations, instead of d^2. Any integer ranges.

    Args:
        max_assignments: refuse rows with more; 2^24 take about a second a row.

    Source: Knuth, The Art of Computer Programming 4A, section 7.2.1.1, algorithm H (loopless).
    """

    max_assignments: int = 2**24

    def __post_init__(self) -> None:
        check_whole(1, max_assignments=self.max_assignments)

    def refuses(self, problem: RoundingProblem) -> str | None:
        """Too many assignments in some row?"""
        ranges = problem.high.double() - problem.low.double() + 1
        most = float(ranges.log2().sum(dim=2).max())
        if most <= np.log2(self.max_assignments) + 1e-9:
            return None
        return (
            f"a row has 2^{most:.1f} assignments and enumeration visits at most "
            f"{self.max_assignments}; use tree search or a heuristic, or raise max_assignments."
        )

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        """The optimum of every row; the seed is not used."""
        del seed
        low, high, gram = (t.cpu().numpy() for t in (problem.low, problem.high, problem.gram))
        scale = problem.scale.expand_as(problem.target).cpu().numpy()
        # Half the gradient at the first assignment, all weights at `low`.
        slope = (problem.gradient(problem.low) / 2).cpu().numpy()
        best = low.copy()

        def visit(group: int, rows: slice) -> None:
            at = (group, rows)
            _enumerate_rows(gram[group], slope[at], scale[at], low[at], high[at], best[at])

        for_each_tile(problem.g, problem.r, visit)
        levels = torch.from_numpy(best).to(problem.device)
        # Exhaustion leaves no doubt: the optimum is its own bound.
        return problem.solution(levels, lower_bound=problem.energy(levels))


@numba.njit(cache=True, nogil=True)
def _enumerate_rows(gram, slope, scale, low, high, best):  # pyright: ignore
    """Best assignment of each row; slope (r, d) is half the gradient at low and is overwritten."""
    rows, d = low.shape
    free = np.empty(d, np.int64)
    level = np.empty(d, np.int16)
    direction = np.empty(d, np.int16)
    focus = np.empty(d + 1, np.int64)
    for i in range(rows):
        n = 0
        for c in range(d):
            if high[i, c] > low[i, c]:
                free[n] = c
                n += 1
        level[:] = low[i]
        direction[:] = 1
        for k in range(n + 1):
            focus[k] = k
        energy = 0.0
        least = 0.0
        while focus[0] < n:
            k = focus[0]
            focus[0] = 0
            c = free[k]
            move = scale[i, c] * direction[c]
            energy += move * (2 * slope[i, c] + move * gram[c, c])
            for j in range(d):
                slope[i, j] += move * gram[c, j]
            level[c] += direction[c]
            if level[c] == low[i, c] or level[c] == high[i, c]:
                direction[c] = -direction[c]
                focus[k] = focus[k + 1]
                focus[k + 1] = k + 1
            if energy < least:
                least = energy
                best[i] = level
