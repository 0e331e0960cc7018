"""Levels of another solver with a certified lower bound beside every row."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from qubo_rounding.problem import RoundingProblem
from qubo_rounding.qubo.bounds import sdp_bound
from qubo_rounding.solution import Solution
from qubo_rounding.solvers.auto import Auto
from qubo_rounding.solvers.solver import Solver
from qubo_rounding.whole_numbers import check_whole


@dataclass(frozen=True)
class Certified(Solver):
    """The levels of a solver, with the better of its own lower bounds and the semidefinite ones.

    Groups whose rows the solver proves all are left as they are; the bounds of the others take
    32 d^2 operations a row and sweep, 0.2 s a row at d = 1,152 with 200 sweeps of one core.

    Args (change often):
        solver: finds the levels.
    Args (with caution):
        sweeps: of `sdp_bound`; fewer give lower bounds in less time, none a wrong one.
    """

    solver: Solver = field(default_factory=Auto)
    sweeps: int = 200

    def __post_init__(self) -> None:
        check_whole(0, sweeps=self.sweeps)

    def refuses(self, problem: RoundingProblem) -> str | None:
        """Whatever the solver refuses."""
        return self.solver.refuses(problem)

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        """The solver's levels and the bounds; `stats` are the solver's."""
        found = self.solver.solve(problem, seed=seed)
        bound = found.known_bound
        for group in range(problem.g):
            if not bool(found.proven[group].all()):
                at = slice(group, group + 1)
                bound[at] = torch.maximum(bound[at], sdp_bound(problem.part(at), self.sweeps))
        return problem.solution(found.levels, bound, **found.stats)
