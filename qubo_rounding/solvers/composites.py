"""Solvers made of solvers: what would otherwise be flags and fallbacks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qubo_rounding.problem import RoundingProblem
from qubo_rounding.solution import Solution
from qubo_rounding.solvers.solver import Solver


@dataclass(frozen=True, eq=False)
class Given(Solver):
    """The given levels, as a start for others: `Annealing(start=Given(levels))`.

    Args:
        levels: (g, r, d) integers within [low, high] of the problem they are meant for.
    """

    levels: Tensor

    def __repr__(self) -> str:
        return f"Given(levels={tuple(self.levels.shape)})"

    def refuses(self, problem: RoundingProblem) -> str | None:
        """Levels of another problem?"""
        if problem.allows(self.levels):
            return None
        return (
            f"the given levels have shape {tuple(self.levels.shape)} and dtype "
            f"{self.levels.dtype}; it needs integers of shape {tuple(problem.target.shape)} "
            "within its [low, high]."
        )

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        """The given levels; the seed is not used."""
        del seed
        return problem.solution(self.levels)


@dataclass(frozen=True)
class BestOf(Solver):
    """For every row the best of several solvers' levels; refuses what any of them refuses."""

    solvers: tuple[Solver, ...]

    def __post_init__(self) -> None:
        _check_not_empty(self.solvers)

    def refuses(self, problem: RoundingProblem) -> str | None:
        """The first member's refusal."""
        reasons = (solver.refuses(problem) for solver in self.solvers)
        return next((reason for reason in reasons if reason), None)

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        """Row-wise best; `stats["won"]` counts the rows each solver won, earlier ones first."""
        solutions = [solver.solve(problem, seed=seed) for solver in self.solvers]
        winner = torch.stack([s.energy for s in solutions]).argmin(dim=0)
        levels = torch.stack([s.levels for s in solutions])
        best = levels.gather(0, winner[None, :, :, None].expand_as(levels[:1]))[0]
        bounds = [s.known_bound for s in solutions if s.lower_bound is not None]
        bound = torch.stack(bounds).amax(dim=0) if bounds else None
        won = {
            f"{k} {type(solver).__name__}": int((winner == k).sum())
            for k, solver in enumerate(self.solvers)
        }
        return problem.solution(best, lower_bound=bound, won=won)


@dataclass(frozen=True)
class FirstThatAccepts(Solver):
    """The first solver that does not refuse the problem; `stats["solved_by"]` names it."""

    solvers: tuple[Solver, ...]

    def __post_init__(self) -> None:
        _check_not_empty(self.solvers)

    def refuses(self, problem: RoundingProblem) -> str | None:
        """Every member's refusal, where all of them refuse."""
        reasons = [solver.refuses(problem) for solver in self.solvers]
        return None if None in reasons else " ".join(map(str, reasons))

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        """What the first willing solver finds."""
        solver = next(s for s in self.solvers if s.refuses(problem) is None)
        solution = solver.solve(problem, seed=seed)
        stats = {**solution.stats, "solved_by": repr(solver)}
        return problem.solution(solution.levels, solution.lower_bound, **stats)


def _check_not_empty(solvers: tuple[Solver, ...]) -> None:
    if not solvers or not all(isinstance(solver, Solver) for solver in solvers):
        raise ValueError(f"solvers is {solvers!r}; give a tuple of at least one Solver.")
