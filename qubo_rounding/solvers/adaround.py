"""AdaRound: gradient descent on a relaxation of the levels, from the Gram matrix alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qubo_rounding.problem import RoundingProblem, Solution, gram_product
from qubo_rounding.relaxed.relaxation import (
    annealing_progress,
    beta_at,
    inverse_rectified_sigmoid,
    rectified_sigmoid,
    rounding_regulariser_slope,
)
from qubo_rounding.solvers.solver import Solver
from qubo_rounding.watch import watched

_ADAM_MEAN, _ADAM_SQUARE, _ADAM_EPSILON = 0.9, 0.999, 1e-8  # Adam's defaults, as in the paper
_NEGLIGIBLE = 1e-30  # beside any gradient, and far above the denormals of float32
_SETTLED = 1e-3  # a bit is settled when h(V) is this close to 0 or 1


@dataclass(frozen=True)
class AdaRound(Solver):
    """Levels low + h(V) with V optimised by Adam on energy + lam * sum(1 - |2h - 1|^beta).

    The energy of a row is e' G e, so its gradient is one product with the Gram matrix over all
    rows: the full calibration set in every step, and no activations. A weight goes to one of the
    two levels around its target, or of an up/down problem to either of its levels.

    Args (change often):
        iterations: Adam steps; 10,000 in the paper.
        lr: Adam's step size; 1e-3 in the paper, 1e-2 settles better in fewer iterations.
    Args (with caution):
        lam: weight of the regulariser. With `normalise` it is relative to the row's own energy
            scale, `problem.unit`, and one value serves all layers. Without, it is the published
            raw weight (0.01; 0.1 for MobileNetV2), which leaves bits unsettled where energies
            are large; `stats["unsettled"]` tells the share that had to be cut at one half.
        normalise: see `lam`.
        warm_start: share of the iterations without regulariser.
    Args (never):
        beta_first, beta_last: ends of the annealing of beta.
        schedule: "cosine" or "linear" annealing.

    Source: Nagel et al. 2020, arXiv 2004.10568, eq 21-24.
    """

    iterations: int = 10_000
    lr: float = 1e-2
    lam: float = 1.0
    normalise: bool = True
    warm_start: float = 0.2
    beta_first: float = 20.0
    beta_last: float = 2.0
    schedule: Literal["cosine", "linear"] = "cosine"

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations is {self.iterations}; give at least 1.")
        if not (0 < self.lr < math.inf and 0 <= self.lam < math.inf):
            raise ValueError(f"lr is {self.lr} and lam {self.lam}; give lr > 0 and lam >= 0.")
        if not 0 <= self.warm_start < 1:
            raise ValueError(f"warm_start is {self.warm_start}; give a share in [0, 1).")
        if not 1 < self.beta_last <= self.beta_first < math.inf:
            raise ValueError(
                f"give 1 < beta_last <= beta_first; they are {self.beta_last}, {self.beta_first}."
            )
        if self.schedule not in ("cosine", "linear"):
            raise ValueError(f"schedule is {self.schedule!r}; give 'cosine' or 'linear'.")

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        """The relaxation's levels, h(V) cut at one half; deterministic, the seed is not used."""
        del seed
        base, room = _two_levels(problem)
        h, done = self._optimise(problem, base, room)
        free = room > 0
        settled = (torch.minimum(h, 1 - h) < _SETTLED) | ~free
        levels = base + torch.where(free & (h >= 0.5), room, 0).to(torch.int16)
        return problem.solution(
            levels, iterations=done, unsettled=1 - float(settled.double().mean())
        )

    def _optimise(self, problem: RoundingProblem, base: Tensor, room: Tensor) -> tuple[Tensor, int]:
        """h(V) (g, r, d) after the last iteration, and how many there were; float32 throughout."""
        if self.normalise:
            problem = problem.normalised()
        step = (problem.scale * room).float()
        start = problem.errors(base).float()
        gram = problem.gram.float()
        linear = None if problem.linear is None else (problem.linear * step).float()
        fraction = ((problem.target - base) / room.clamp_min(1)).clamp(0, 1).float()
        v = inverse_rectified_sigmoid(fraction)
        force = 2 * step
        mean, square = torch.zeros_like(v), torch.zeros_like(v)
        done = 0
        for iteration in watched(range(self.iterations), "adaround"):
            h, slope = rectified_sigmoid(v)
            gradient = gram_product(torch.addcmul(start, step, h), gram).mul_(force)
            if linear is not None:
                gradient += linear
            progress = annealing_progress(iteration, self.iterations, self.warm_start)
            if progress is not None:
                beta = beta_at(progress, self.beta_first, self.beta_last, self.schedule)
                gradient.add_(rounding_regulariser_slope(h, beta), alpha=self.lam)
            gradient.mul_(slope)
            _adam_step(v, gradient, mean, square, self.lr, iteration)
            done = iteration + 1
        return rectified_sigmoid(v)[0], done


def _two_levels(problem: RoundingProblem) -> tuple[Tensor, Tensor]:
    """(lower level, distance to the upper one), both (g, r, d) int16: the choice of each weight."""
    if problem.is_binary:
        return problem.low, problem.high - problem.low
    bounds = (problem.low, problem.high)
    below, above = (
        torch.maximum(torch.minimum(t, bounds[1]), bounds[0]).to(torch.int16)
        for t in (problem.target.floor(), problem.target.ceil())
    )
    return below, above - below


def _adam_step(
    v: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, lr: float, iteration: int
) -> None:
    """One step of Adam in place (Kingma, Ba 2015, arXiv 1412.6980, algorithm 1)."""
    # Settled weights have gradient 0 and their mean would decay into denormals, which are slow.
    mean.lerp_(gradient.add_(_NEGLIGIBLE), 1 - _ADAM_MEAN)
    square.mul_(_ADAM_SQUARE).addcmul_(gradient, gradient, value=1 - _ADAM_SQUARE)
    mean_correction = 1 - _ADAM_MEAN ** (iteration + 1)
    square_correction = 1 - _ADAM_SQUARE ** (iteration + 1)
    # sqrt(square / correction) + epsilon, its common factor moved into the step: one pass less
    root = math.sqrt(square_correction)
    denominator = square.sqrt().add_(_ADAM_EPSILON * root)
    v.addcdiv_(mean, denominator, value=-lr * root / mean_correction)
