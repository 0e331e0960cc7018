"""Stochastic rounding: up with the probability of the fraction; the best of many draws."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qubo_rounding.foresight import row_bytes
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.solution import Solution
from qubo_rounding.solvers.best_levels import BestLevels
from qubo_rounding.solvers.random_numbers import stream_keys, uniforms
from qubo_rounding.solvers.solver import Solver
from qubo_rounding.watch import watched
from qubo_rounding.whole_numbers import check_whole


@dataclass(frozen=True)
class Stochastic(Solver):
    """The best draw, row by row, of unbiased random rounding: floor(target + u), u in [0, 1).

    With `draws=1` and the seed as the number of the draw it gives the paper's Table 1.

    Args:
        draws: how many, at least 1.

    Source: Nagel et al. 2020, arXiv 2004.10568, Table 1; Gupta et al. 2015, 1502.02551.
    """

    draws: int = 100

    def __post_init__(self) -> None:
        check_whole(1, draws=self.draws)

    def memory(self, problem: RoundingProblem) -> int:
        """It never looks at the Gram matrix, which only scores its levels."""
        return row_bytes(problem.g, problem.r, problem.d)

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        """The levels of the best draw of every row."""
        infinite = torch.full_like(problem.offset, torch.inf)
        best, drawn = BestLevels(problem, problem.low, infinite), 0
        for draw in watched(range(self.draws), "stochastic"):
            best.offer(_draw(problem, seed, draw))
            drawn = draw + 1
        return problem.solution(best.levels, draws=drawn)


def _draw(problem: RoundingProblem, seed: int, draw: int) -> torch.Tensor:
    uniform = torch.from_numpy(uniforms(stream_keys(seed, problem.stream, draw), problem.d))
    rounded = (problem.target + uniform.to(problem.device)).floor()
    return torch.maximum(torch.minimum(rounded, problem.high), problem.low).to(torch.int16)
