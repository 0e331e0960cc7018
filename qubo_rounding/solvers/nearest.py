"""Round to nearest: what everybody does, and the yardstick of everything else."""

from __future__ import annotations

from dataclasses import dataclass

from qubo_rounding.foresight import row_bytes
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.solution import Solution
from qubo_rounding.solvers.solver import Solver


@dataclass(frozen=True)
class Nearest(Solver):
    """The nearest level for every weight by itself; optimal where the Gram matrix is diagonal.

    Source: Nagel et al. 2020, arXiv 2004.10568, eq 1.
    """

    def memory(self, problem: RoundingProblem) -> int:
        """It never looks at the Gram matrix, which only scores its levels."""
        return row_bytes(problem.g, problem.r, problem.d)

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        """Levels nearest to the target; the seed is not used."""
        del seed
        return problem.solution(problem.nearest())
