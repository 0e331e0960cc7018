"""Simulated annealing of all rows of a layer at once, in sweeps over blocks of columns."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from qubo_rounding.parallel import for_each_tile
from qubo_rounding.problem import RoundingProblem, Solution
from qubo_rounding.solvers.best_levels import BestLevels
from qubo_rounding.solvers.descent import descend
from qubo_rounding.solvers.gptq import Gptq
from qubo_rounding.solvers.metropolis import from_blocks, in_blocks, metropolis_sweeps
from qubo_rounding.solvers.random_numbers import stream_keys
from qubo_rounding.solvers.solver import Solver
from qubo_rounding.watch import watched
from qubo_rounding.whole_numbers import check_whole

_PROPOSALS_PER_CALL = 2**25  # some tens of milliseconds between two looks at the clock


@dataclass(frozen=True)
class Annealing(Solver):
    """The best of several Metropolis runs, each cooled geometrically and ended by descent.

    Temperatures are in units of ``problem.unit``, the mean of scale^2 * G_jj, row by row: at 1 a
    typical lone weight moves freely. A proposal flips an up/down weight, or moves a wider one by
    one level. A row never ends above its start.

    Args (change often):
        sweeps: proposals per weight and read; energy falls slowly with more.
        reads: independent runs; the best is kept for each row.
        start: the solver whose levels the first sweep begins with.
    Args (with caution):
        hot: first temperature. Too cold cannot leave the start's valley, too hot forgets it.
        cold: last temperature; ill-conditioned layers still move at 0.003, others no longer.

    Source: Kirkpatrick, Gelatt, Vecchi 1983; Metropolis et al. 1953. Blocks as in GPTQ's lazy
        batches (arXiv 2210.17323), counter-based random numbers as in Salmon et al. 2011.
    """

    sweeps: int = 1000
    reads: int = 4
    start: Solver = field(default_factory=Gptq)
    hot: float = 0.1
    cold: float = 0.003

    def __post_init__(self) -> None:
        check_whole(1, sweeps=self.sweeps, reads=self.reads)
        if not 0 < self.cold <= self.hot < np.inf:
            raise ValueError(f"give 0 < cold <= hot; they are {self.cold} and {self.hot}.")

    def refuses(self, problem: RoundingProblem) -> str | None:
        """Whatever the start refuses."""
        return self.start.refuses(problem)

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        """The best local minimum of all reads."""
        start = self.start.solve(problem, seed=seed)
        best, shares = BestLevels(problem, start.levels, start.energy), []
        for read in watched(range(self.reads), "reads"):
            annealed, share = self._anneal(problem, start.levels, seed, read)
            best.offer(descend(problem, annealed)[0])
            shares.append(share)
        return problem.solution(
            best.levels,
            reads=len(shares),
            accepted_share=sum(shares) / len(shares),
            energy_start=float(start.energy.sum()),
        )

    def _anneal(
        self, problem: RoundingProblem, start: torch.Tensor, seed: int, read: int
    ) -> tuple[torch.Tensor, float]:
        """Levels after all sweeps of one read, and the share of proposals accepted."""
        problem = problem.normalised()
        floats = (problem.gram, problem.gradient(start) / 2, problem.scale.expand_as(start))
        gram, slope, scale = (in_blocks(tensor.float().cpu().numpy()) for tensor in floats)
        whole = (problem.low, problem.high, start)
        low, high, levels = (in_blocks(tensor.cpu().numpy()) for tensor in whole)
        keys = stream_keys(seed, problem.stream, read)
        accepted = np.zeros(start.shape[:2], np.int64)
        temperatures = np.geomspace(self.hot, self.cold, self.sweeps).astype(np.float32)

        done, at_once = 0, max(1, _PROPOSALS_PER_CALL // start.numel())
        for first in watched(range(0, self.sweeps, at_once), "annealing"):
            part = temperatures[first : first + at_once]

            def sweep_tile(group: int, rows: slice, part=part, first=first) -> None:
                at = (group, rows)
                metropolis_sweeps(
                    *(gram[group], slope[at], scale[at], low[at], high[at]),
                    *(part, keys[at], first, levels[at], accepted[at]),
                )

            for_each_tile(problem.g, problem.r, sweep_tile)
            done = first + len(part)
        share = float(accepted.sum()) / (done * start.numel())
        found = np.ascontiguousarray(from_blocks(levels, problem.d))
        return torch.from_numpy(found).to(problem.device), share
