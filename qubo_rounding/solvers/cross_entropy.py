"""The cross-entropy method: bits drawn from probabilities that follow the best draws."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qubo_rounding.problem import RoundingProblem, gram_product
from qubo_rounding.row_batches import row_batches
from qubo_rounding.solution import Solution
from qubo_rounding.solvers.best_levels import BestLevels
from qubo_rounding.solvers.idle_weights import fix_idle
from qubo_rounding.solvers.random_numbers import stream_keys, uniforms
from qubo_rounding.solvers.solver import Solver
from qubo_rounding.watch import watched
from qubo_rounding.whole_numbers import check_whole

_NUMBERS_AT_ONCE = 2**22  # errors of all samples of a batch: 16 MiB, random numbers twice that
_SETTLED = 0.01  # a probability this close to 0 or 1 stays there


@dataclass(frozen=True)
class CrossEntropy(Solver):
    """The best sample of Bernoulli bits whose probabilities move towards the best samples' means.

    Every up/down weight is high with probability p, at first ``(target - low) / (high - low)`` as
    in stochastic rounding. Each iteration draws samples of every row, takes the share `elite` with
    the least energy, and moves p by ``p += smoothing * (mean of the elite - p)``. A row is settled
    when all its p are 0 or 1. Only energies are asked for, so the Gram matrix may be indefinite; a
    row never ends above nearest.

    The paper solved its QUBOs this way and gives no numbers; these serve d of some hundreds.

    Args (change often):
        samples: drawn for each row and iteration. Energy falls and time grows with more; wider
            rows want more.
        iterations: at most; about 30 settle a row of d = 50, 200 one of 500.
    Args (with caution):
        smoothing: share of the way to the elite's mean, above 0 and at most 1. Less is better and
            slower: halving it doubles the iterations, and helps about as much as twice the samples.
        elite: share of the samples that p follows; ten samples at least should be left.

    Source: Rubinstein 1999, The cross-entropy method for combinatorial and continuous
        optimization; Nagel et al. 2020, arXiv 2004.10568, section 3.
    """

    samples: int = 200
    iterations: int = 300
    smoothing: float = 0.2
    elite: float = 0.1

    def __post_init__(self) -> None:
        check_whole(1, samples=self.samples, iterations=self.iterations)
        if not (0 < self.smoothing <= 1 and 0 < self.elite <= 1):
            raise ValueError(
                f"smoothing is {self.smoothing} and elite {self.elite}; give shares in (0, 1]."
            )

    def refuses(self, problem: RoundingProblem) -> str | None:
        """Not binary?"""
        if problem.is_binary:
            return None
        return "it draws one bit a weight, which needs two levels each; build it with up/down."

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        """The best sample of every row."""
        levels, live = problem.nearest(), fix_idle(problem)
        batches = row_batches(problem.g, problem.r, self.samples * problem.d, _NUMBERS_AT_ONCE)
        iterations, settled = 0, 0
        for batch in watched(list(batches), "cross-entropy batches"):
            levels[batch], done, rows = self._search(live.part(*batch), seed)
            iterations, settled = max(iterations, done), settled + rows
        unsettled = problem.g * problem.r - settled
        return problem.solution(levels, iterations=iterations, rows_unsettled=unsettled)

    def _search(self, problem: RoundingProblem, seed: int) -> tuple[Tensor, int, int]:
        """Best levels of one batch, the iterations done, and how many rows have settled."""
        room = problem.high - problem.low
        share = (problem.target - problem.low) / room.clamp_min(1)
        # A target out of reach is no reason never to try the other level.
        p = torch.where(room > 0, share.clamp(_SETTLED, 1 - _SETTLED), 0.0).float()
        energies = _Energies(problem)
        nearest = problem.nearest()
        best = BestLevels(problem, nearest, problem.energy(nearest))
        kept = max(1, round(self.elite * self.samples))
        iteration, settled = 0, torch.zeros_like(problem.offset)
        for iteration in watched(range(self.iterations), "cross-entropy"):
            keys = stream_keys(seed, problem.stream, iteration)
            draws = torch.from_numpy(uniforms(keys, self.samples * problem.d)).to(p.device)
            bits = draws.unflatten(2, (self.samples, -1)) < p.unsqueeze(2)
            energy = energies(bits)
            elite = energy.topk(kept, dim=2, largest=False).indices
            bits = bits.take_along_dim(elite.unsqueeze(3), dim=2)
            best.offer(torch.where(bits[:, :, 0], problem.high, problem.low))
            p = p.lerp(bits.float().mean(dim=2), self.smoothing)
            p = torch.where(p < _SETTLED, 0.0, torch.where(p > 1 - _SETTLED, 1.0, p))
            # What has settled draws the same sample for ever, however long other rows go on.
            settled = ((p == 0) | (p == 1)).all(dim=2)
            if bool(settled.all()):
                break
        best.offer(torch.where(p >= 0.5, problem.high, problem.low))
        return best.levels, iteration + 1, int(settled.sum())


class _Energies:
    """Energies of samples in float32, in units of `problem.unit`, without the offset."""

    def __init__(self, problem: RoundingProblem) -> None:
        problem = problem.normalised()
        self.gram = problem.gram.float()
        self.low = problem.errors(problem.low).float().unsqueeze(2)
        self.step = (problem.scale * (problem.high - problem.low)).float().unsqueeze(2)
        linear = problem.linear
        self.linear = None if linear is None else linear.float().unsqueeze(2)

    def __call__(self, bits: Tensor) -> Tensor:
        """(g, r, samples) from bits (g, r, samples, d)."""
        errors = torch.addcmul(self.low, self.step, bits.float())
        slope = gram_product(errors.flatten(1, 2), self.gram).view_as(errors)
        if self.linear is not None:
            slope += self.linear
        return slope.mul_(errors).sum(dim=3)
