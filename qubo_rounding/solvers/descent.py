"""Coordinate descent: each weight to its best level given all others, until none moves."""

from __future__ import annotations

from dataclasses import dataclass, field

import numba
import numpy as np
import torch

from qubo_rounding.parallel import for_each_tile
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.solution import Solution
from qubo_rounding.solvers.gptq import Gptq
from qubo_rounding.solvers.solver import Solver
from qubo_rounding.watch import watched
from qubo_rounding.whole_numbers import check_whole


@dataclass(frozen=True)
class Descent(Solver):
    """The start improved until no change of a single weight lowers the energy.

    For up/down problems this is steepest-free 1-flip descent; for wider ranges a weight jumps to
    the level that minimises its parabola. The energy never rises above the start's.

    Args:
        start: the solver whose levels are improved.
        max_sweeps: passes over all columns; a few dozen suffice to converge.

    Source: Behdin et al. 2023 (QuantEase), arXiv 2309.01885; Zhang et al. 2024 (COMQ), 2403.07134.
    """

    start: Solver = field(default_factory=Gptq)
    max_sweeps: int = 1000

    def __post_init__(self) -> None:
        check_whole(1, max_sweeps=self.max_sweeps)

    def refuses(self, problem: RoundingProblem) -> str | None:
        """Whatever the start refuses."""
        return self.start.refuses(problem)

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        """A local minimum at or below the start."""
        start = self.start.solve(problem, seed=seed)
        levels, sweeps = descend(problem, start.levels, self.max_sweeps)
        return problem.solution(levels, sweeps=sweeps, energy_start=float(start.energy.sum()))


def descend(
    problem: RoundingProblem, levels: torch.Tensor, max_sweeps: int = 1000
) -> tuple[torch.Tensor, int]:
    """Levels (g, r, d) at a 1-flip local minimum below the given ones, and the sweeps it took."""
    gram = problem.gram.cpu().numpy()
    slope = (problem.gradient(levels) / 2).cpu().numpy()
    scale = problem.scale.expand_as(problem.target).cpu().numpy()
    low, high = problem.low.cpu().numpy(), problem.high.cpu().numpy()
    # Below this gain a move is rounding noise, and two columns could pass it back and forth.
    noise = (1e-13 * problem.unit.clamp_min(torch.finfo(torch.float64).tiny)).cpu().numpy()
    found = levels.cpu().numpy().copy()
    moves = np.ones(found.shape[:2], np.int64)

    def sweep_tile(group: int, rows: slice) -> None:
        at = (group, rows)
        _descent_sweep(
            gram[group], slope[at], scale[at], low[at], high[at], noise[at], found[at], moves[at]
        )

    sweeps = 0
    for sweep in watched(range(max_sweeps), "descent"):
        for_each_tile(problem.g, problem.r, sweep_tile)
        sweeps = sweep + 1
        if not moves.any():
            break
    return torch.from_numpy(found).to(problem.device), sweeps


@numba.njit(cache=True, nogil=True)
def _best_step(slope, curvature, scale, level, low, high):  # pyright: ignore
    """The level in [low, high] with the least energy on this weight's parabola."""
    weight = curvature * scale
    if weight > 0:  # it may underflow
        return min(max(np.rint(level - slope / weight), low), high)
    # Concave or flat: one of the two ends.
    down, up = scale * (low - level), scale * (high - level)
    gain_down = down * (2 * slope + down * curvature)
    gain_up = up * (2 * slope + up * curvature)
    return float(low) if gain_down < gain_up else float(high)


@numba.njit(cache=True, nogil=True)
def _descent_sweep(gram, slope, scale, low, high, noise, levels, moves):  # pyright: ignore
    """One pass over the columns of every row that moved in the last pass; arrays are (r, d)."""
    rows, d = levels.shape
    for i in range(rows):
        if moves[i] == 0:
            continue
        moves[i] = 0
        for c in range(d):
            if low[i, c] == high[i, c]:
                continue
            level = _best_step(
                slope[i, c], gram[c, c], scale[i, c], levels[i, c], low[i, c], high[i, c]
            )
            move = scale[i, c] * (level - levels[i, c])
            if move * (2 * slope[i, c] + move * gram[c, c]) >= -noise[i, 0]:
                continue
            levels[i, c] = np.int16(level)
            moves[i] += 1
            for j in range(d):
                slope[i, j] += move * gram[c, j]
