"""Rows of a problem on many workers.

Rows do not see each other and draw their random numbers by their own names, so whoever solves them
gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qubo_rounding.problem import RoundingProblem
from qubo_rounding.row_batches import row_batches
from qubo_rounding.solution import Solution
from qubo_rounding.solvers.solver import Solver
from qubo_rounding.tasks import SentProblem, Workers, run_tasks, sending
from qubo_rounding.watch import watched
from qubo_rounding.whole_numbers import check_whole

Part = tuple[Tensor, Tensor | None, dict[str, Any]]  # levels, lower bounds, stats


@dataclass(frozen=True, eq=False)
class Spread(Solver):
    """A solver whose rows are solved by workers, to the same bits as without.

    Its configuration is the solver's own: where rows were solved does not count. The problem goes
    to the workers once each, as a file, not with every task. Tasks of a worker that was killed are
    done again.

    Args:
        solver: any solver; `stats` come as a list, one for each part of the rows.
        executor: one, or a function that makes one, which is called again when one breaks.
        folder: where problem files lie; it has to be seen by all workers. None is this machine's
            folder for temporary files.
        parts: that a problem's rows are cut into, at most. Many even out workers of different
            speed; solvers that treat rows together take less time for a row where parts are few.
    """

    solver: Solver
    executor: Workers
    folder: str | Path | None = None
    parts: int = 16

    def __post_init__(self) -> None:
        check_whole(1, parts=self.parts)

    def __repr__(self) -> str:
        return repr(self.solver)

    def refuses(self, problem: RoundingProblem) -> str | None:
        """Whatever the solver refuses."""
        return self.solver.refuses(problem)

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        """The solver's levels and bounds, put together from all parts.

        Raises:
            BrokenExecutor: workers die again and again, or an executor that was given broke.
        """
        parts = list(row_batches(problem.g, problem.r, 1, -(-problem.g * problem.r // self.parts)))
        with sending(self.folder) as send:
            sent = send(problem)
            tasks = [(sent, self.solver, part, seed) for part in parts]
            ending = run_tasks(self.executor, _solve_part, tasks)
            found = dict(next(ending) for _ in watched(range(len(tasks)), "parts"))
            found |= dict(ending)  # at the time limit workers end by themselves: none is left out
        levels = torch.zeros_like(problem.low)
        bound = torch.full_like(problem.offset, torch.nan)
        for number, part in enumerate(parts):
            levels[part], bound_of_part, _ = found[number]
            if bound_of_part is not None:
                bound[part] = bound_of_part
        bounded = not bool(bound.isnan().all())
        stats = [found[number][2] for number in range(len(parts))]
        return problem.solution(levels, bound if bounded else None, parts=stats)


def _solve_part(sent: SentProblem, solver: Solver, part: tuple[slice, slice], seed: int) -> Part:
    """In a worker: levels, lower bounds and stats of a part of a problem."""
    found = solver.solve(sent.load().part(*part), seed=seed)
    return found.levels, found.lower_bound, dict(found.stats)
