"""What a solver is: hyperparameters that turn a rounding problem into levels."""

from __future__ import annotations

from abc import ABC, abstractmethod

from qubo_rounding.foresight import solving_bytes
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.room import lacking_room
from qubo_rounding.solution import Solution


class RefusedError(ValueError):
    """A solver was given a problem that it cannot treat; the message says why."""


class Solver(ABC):
    """Base of all solvers: a frozen dataclass of hyperparameters with defaults.

    A subclass implements `find`, and `refuses` where there are problems it cannot treat. It sees
    tensors only and works where they lie; energies are scored by the problem, in float64.
    """

    def refuses(self, problem: RoundingProblem) -> str | None:
        """Why this solver cannot treat this problem, in one sentence; None if it can."""
        del problem
        return None

    def memory(self, problem: RoundingProblem) -> int:
        """Bytes that `find` takes beside the problem, about; cheap solvers tell less."""
        return solving_bytes(problem.g, problem.r, problem.d)

    def solve(self, problem: RoundingProblem, *, seed: int = 0) -> Solution:
        """Levels for every weight, with their energy.

        Args:
            problem: the layer's rounding problem; left untouched.
            seed: same problem and seed give the same levels, on any number of threads.

        Raises:
            RefusedError: see `refuses`; or there is too little memory for it.
        """
        if reason := self.refuses(problem) or self._lacks_room(problem):
            raise RefusedError(f"{type(self).__name__} refuses this problem: {reason}")
        return self.find(problem, seed)

    def _lacks_room(self, problem: RoundingProblem) -> str | None:
        work = f"solving {problem.g} x {problem.r} rows of {problem.d} columns"
        remedy = "solve fewer of them at a time, with problem.part()"
        return lacking_room(self.memory(problem), work, remedy, problem.device)

    @abstractmethod
    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        """The algorithm; called by `solve` for a problem that is not refused."""
