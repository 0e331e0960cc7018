"""Simulated annealing of all rows of a layer at once, in sweeps over blocks of columns."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field

import numpy as np
import torch

from qubo_rounding.problem import RoundingProblem
from qubo_rounding.solution import Solution
from qubo_rounding.solvers.best_levels import BestLevels
from qubo_rounding.solvers.descent import descend
from qubo_rounding.solvers.gptq import Gptq
from qubo_rounding.solvers.random_numbers import stream_keys
from qubo_rounding.solvers.solver import Solver
from qubo_rounding.solvers.sweeps import HostSweeps, Sweeps
from qubo_rounding.watch import watched
from qubo_rounding.whole_numbers import check_whole

_PROPOSALS_PER_CALL = 2**25  # some tens of milliseconds between two looks at the clock


@dataclass(frozen=True)
class Annealing(Solver):
    """The best of several Metropolis runs, each cooled geometrically and ended by descent.

    Sweeps propose single moves and moves of pairs in turn: a flip of an up/down weight, or a level
    up or down of a wider one; pairs are of columns whose inputs are alike. Temperatures are in
    units of the start's energy per weight, row by row. A row never ends above its start.

    Problems on a GPU are annealed there, by kernels in Triton where it is installed. The same seed
    then gives the same bits on the same device, but not those of the CPU.

    Args (change often):
        sweeps: per read, of a proposal for each weight or each pair; energy falls slowly with more.
        reads: independent runs; the best is kept for each row.
        start: the solver whose levels the first sweep begins with.
    Args (with caution):
        hot: first temperature. Too cold cannot leave the start's valley, too hot forgets it.
        cold: last temperature; descent takes what warmth is left.

    Source: Kirkpatrick, Gelatt, Vecchi 1983; Metropolis et al. 1953. Blocks as in GPTQ's lazy
        batches (arXiv 2210.17323), counter-based random numbers as in Salmon et al. 2011.
    """

    sweeps: int = 1000
    reads: int = 4
    start: Solver = field(default_factory=Gptq)
    hot: float = 1.5
    cold: float = 0.4

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
        sweeps = _sweeps(problem.normalised(), start.levels)
        for read in watched(range(self.reads), "reads"):
            annealed, share = self._anneal(sweeps, stream_keys(seed, problem.stream, read))
            best.offer(descend(problem, annealed)[0])
            shares.append(share)
        return problem.solution(
            best.levels,
            reads=len(shares),
            accepted_share=sum(shares) / len(shares),
            energy_start=float(start.energy.sum()),
        )

    def _anneal(self, sweeps: Sweeps, keys: np.ndarray) -> tuple[torch.Tensor, float]:
        """Levels after all sweeps of one read, and the share of proposals accepted."""
        sweeps.begin(keys)
        temperatures = np.geomspace(self.hot, self.cold, self.sweeps).astype(np.float32)
        weights = sweeps.levels.numel()
        done, at_once = 0, max(1, _PROPOSALS_PER_CALL // weights)
        for first in watched(range(0, self.sweeps, at_once), "annealing"):
            part = temperatures[first : first + at_once]
            sweeps.run(part, first)
            done = first + len(part)
        return sweeps.levels, sweeps.accepted / (done * weights)


def _sweeps(problem: RoundingProblem, start: torch.Tensor) -> Sweeps:
    """Where the problem lies, if Triton has kernels for that; else on the CPU."""
    if problem.device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        from qubo_rounding.solvers.device_sweeps import DeviceSweeps

        return DeviceSweeps(problem, start)
    return HostSweeps(problem, start)
