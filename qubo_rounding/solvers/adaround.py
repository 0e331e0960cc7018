"""AdaRound: gradient descent on a relaxation of the levels, from the Gram matrix alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qubo_rounding.problem import RoundingProblem, Solution, gram_product
from qubo_rounding.relaxed.adam import Adam
from qubo_rounding.relaxed.choices import Choices, choices_of
from qubo_rounding.relaxed.course import Course, histogram
from qubo_rounding.relaxed.softening import RectifiedSigmoid, Relaxation
from qubo_rounding.solvers.best_levels import BestLevels
from qubo_rounding.solvers.solver import Solver
from qubo_rounding.watch import watched
from qubo_rounding.whole_numbers import check_whole


@dataclass(frozen=True)
class AdaRound(Solver):
    """Levels lowest + h(V), with V optimised by Adam on energy + lam * f_reg(h(V)).

    The energy of a row is e' G e, so its gradient is one product with the Gram matrix over all
    rows: the full calibration set in every step, and no activations. A weight goes to one of two
    levels: those of an up/down problem, the two around its target, or with a start the start's
    level and the better of its neighbours. So a start that takes any level gives free levels.

    Args (change often):
        iterations: Adam steps; 10,000 in the paper.
        lr: Adam's step size; 1e-3 in the paper, 1e-2 settles better in fewer iterations.
        start: a solver to begin near; no row ends above it. None begins where the weights are.
    Args (with caution):
        lam: weight of the regulariser. With `normalise` it is relative to the row's own energy
            scale, `problem.unit`, and one value serves all layers. Without, it is the published
            raw weight (0.01; 0.1 for MobileNetV2), which leaves bits unsettled where energies
            are large; `stats["unsettled"]` tells the share that had to be cut at one half.
        normalise: see `lam`.
    Args (never):
        relaxation: how levels are made continuous, with its regulariser; the paper's as a rule.

    Source: Nagel et al. 2020, arXiv 2004.10568, eq 21-24.
    """

    iterations: int = 10_000
    lr: float = 1e-2
    lam: float = 1.0
    normalise: bool = True
    start: Solver | None = None
    relaxation: Relaxation = field(default_factory=RectifiedSigmoid)

    def __post_init__(self) -> None:
        check_whole(1, iterations=self.iterations)
        if not (0 < self.lr < math.inf and 0 <= self.lam < math.inf):
            raise ValueError(f"lr is {self.lr} and lam {self.lam}; give lr > 0 and lam >= 0.")

    def refuses(self, problem: RoundingProblem) -> str | None:
        """Whatever the start refuses."""
        return None if self.start is None else self.start.refuses(problem)

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        """The relaxation's levels; deterministic, the seed is the start's."""
        start = None if self.start is None else self.start.solve(problem, seed=seed)
        choices = choices_of(problem, self.relaxation, start)
        v, done, told = self._optimise(problem, choices)
        levels = choices.lowest + self.relaxation.decide(v, choices.room)
        unsettled = self.relaxation.unsettled(v, choices.room, done / self.iterations)
        if start is not None:
            best = BestLevels(problem, start.levels, start.energy)
            best.offer(levels)
            levels = best.levels
        return problem.solution(levels, iterations=done, unsettled=unsettled, **told)

    def _optimise(
        self, problem: RoundingProblem, choices: Choices
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """V (g, r, d) after the last iteration, how many there were, what to tell; in float32."""
        unit = torch.ones_like(problem.unit)
        if self.normalise:
            unit = problem.positive_unit
            problem = problem.normalised()
        step = (problem.scale * choices.room).float()
        start = problem.errors(choices.lowest).float()
        gram = problem.gram.float()
        linear = None if problem.linear is None else (problem.linear * step).float()
        force = 2 * step
        adam = Adam(self.relaxation.start(choices.share, choices.room), self.lr)
        course, done = Course(self.iterations), 0
        h = self.relaxation.soften(adam.value, choices.room, 0.0)[0]
        before = histogram(h, choices.room)
        for iteration in watched(range(self.iterations), "adaround"):
            progress = iteration / self.iterations
            h, slope = self.relaxation.soften(adam.value, choices.room, progress)
            errors = torch.addcmul(start, step, h)
            gradient = gram_product(errors, gram)
            if course.due(iteration):
                energies = _soft_energies(problem, errors, gradient)
                loss = float((energies * unit[..., 0]).sum())
                unsettled = self.relaxation.unsettled(adam.value, choices.room, progress)
                course.note(iteration, loss, unsettled)
            gradient.mul_(force)
            if linear is not None:
                gradient += linear
            regulariser = self.relaxation.regulariser_slope(h, progress)
            if regulariser is not None:
                gradient.add_(regulariser, alpha=self.lam)
            adam.step(gradient.mul_(slope), self.relaxation.rate(progress))
            done = iteration + 1
        h = self.relaxation.soften(adam.value, choices.room, 1.0)[0]
        after = histogram(h, choices.room)
        return adam.value, done, {"course": course.told(), "h_before": before, "h_after": after}


def _soft_energies(problem: RoundingProblem, errors: Tensor, product: Tensor) -> Tensor:
    """(g, r) float64 energies of errors e, of which the product G e is at hand."""
    energies = (product * errors).sum(dim=2, dtype=torch.float64) + problem.offset
    if problem.linear is not None:
        energies += (problem.linear * errors).sum(dim=2)
    return energies
