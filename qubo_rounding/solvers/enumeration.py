"""Every assignment of a row, in Gray-code order: the optimum by exhaustion."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Event

import numba
import numpy as np
import torch
from torch import Tensor

from qubo_rounding.parallel import for_each_row
from qubo_rounding.problem import RoundingProblem, Solution
from qubo_rounding.solvers.solver import Solver
from qubo_rounding.watch import alarm
from qubo_rounding.whole_numbers import check_whole

_ANCHORED = 2**9  # steps between two times that energy and gradient are computed from the levels


@dataclass(frozen=True)
class Enumeration(Solver):
    """The proven optimum of rows with few free weights, by visiting every assignment.

    Consecutive assignments differ in one weight by one level (reflected mixed-radix Gray code), so
    each costs one update of the gradient, d operations, instead of d^2. Any integer ranges. What
    updates may have lost to rounding is taken off the bound; a limit or Ctrl-C leaves the rows that
    have not begun at nearest and without a bound.

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
        tilt = torch.zeros_like(problem.target) if problem.linear is None else problem.linear / 2
        of_rows = (problem.target, problem.scale.expand_as(problem.target), tilt)
        target, scale, tilt = (tensor.cpu().numpy() for tensor in of_rows)
        low, high, gram = (t.cpu().numpy() for t in (problem.low, problem.high, problem.gram))
        best, done = problem.nearest().cpu().numpy(), np.zeros(low.shape[:2], np.bool_)
        stop, late = Event(), alarm()

        def visit(group: int, row: int) -> None:
            if late() or stop.is_set():
                return
            at = (group, row)
            rows = (target[at], scale[at], tilt[at], low[at], high[at])
            _enumerate_row(gram[group], *rows, best[at])
            done[at] = True

        for_each_row(problem.g, problem.r, visit, "enumeration", stop)
        levels = torch.from_numpy(best).to(problem.device)
        bound = problem.energy(levels) - _rounding(problem)
        seen = torch.from_numpy(done).to(problem.device)
        return problem.solution(
            levels,
            lower_bound=torch.where(seen, bound, torch.nan),
            rows_left=int((~seen).sum()),
            interrupted=stop.is_set(),
        )


def _rounding(problem: RoundingProblem) -> Tensor:
    """(g, r) what energies may have lost to rounding: so many terms, each below the sum's size."""
    ends = (problem.errors(problem.low), problem.errors(problem.high))
    reach = torch.maximum(*(end.abs() for end in ends))
    size = ((reach @ problem.gram.abs()) * reach).sum(dim=2) + problem.offset.abs()
    if problem.linear is not None:
        size += (problem.linear.abs() * reach).sum(dim=2)
    return (_ANCHORED + 2 * problem.d) * torch.finfo(torch.float64).eps * size


@numba.njit(cache=True, nogil=True)
def _enumerate_row(gram, target, scale, tilt, low, high, best):  # pyright: ignore
    """Write the best assignment of a row (d,) into `best`; tilt is half its linear term."""
    d = len(low)
    free, focus = np.empty(d, np.int64), np.empty(d + 1, np.int64)
    level, direction = low.copy(), np.ones(d, np.int16)
    error, slope = np.empty(d), np.empty(d)  # slope is half the gradient
    n = 0
    for c in range(d):
        if high[c] > low[c]:
            free[n] = c
            n += 1
    for k in range(n + 1):
        focus[k] = k
    least, energy, steps = np.inf, 0.0, 0
    while True:
        if steps % _ANCHORED == 0:  # updates carry their rounding errors along
            for j in range(d):
                error[j] = scale[j] * (level[j] - target[j])
            energy = 0.0
            for i in range(d):
                slope[i] = tilt[i]
                for j in range(d):
                    slope[i] += gram[i, j] * error[j]
                energy += error[i] * (slope[i] + tilt[i])
        steps += 1
        if energy < least:
            least = energy
            best[:] = level
        if focus[0] >= n:
            return
        k = focus[0]
        focus[0] = 0
        c = free[k]
        move = scale[c] * direction[c]
        energy += move * (2 * slope[c] + move * gram[c, c])
        for j in range(d):
            slope[j] += move * gram[c, j]
        level[c] += direction[c]
        if level[c] == low[c] or level[c] == high[c]:
            direction[c] = -direction[c]
            focus[k] = focus[k + 1]
            focus[k + 1] = k + 1
