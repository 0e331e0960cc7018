"""AdaRound: gradient descent on a relaxation of the levels, from the Gram matrix alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qubo_rounding.problem import RoundingProblem, gram_product
from qubo_rounding.relaxed.choices import Choices, choices_of
from qubo_rounding.relaxed.course import Course
from qubo_rounding.relaxed.soft_levels import SoftLevels
from qubo_rounding.relaxed.softening import RectifiedSigmoid, Relaxation
from qubo_rounding.solution import Solution
from qubo_rounding.solvers.best_levels import BestLevels
from qubo_rounding.solvers.solver import Solver
from qubo_rounding.watch import watched
from qubo_rounding.whole_numbers import check_whole

_LOOKS = 50  # iterations between two looks whether there is anything left to settle


@dataclass(frozen=True)
class AdaRound(Solver):
    """Levels lowest + h(V), with V optimised by Adam on energy + lam * f_reg(h(V)).

    The energy of a row is e' G e, so its gradient is one product with the Gram matrix over all
    rows: the full calibration set in every step, and no activations. A weight goes to one of two
    levels: those of an up/down problem, the two around its target, or with a start the start's
    level and the better of its neighbours. So a start that takes any level gives free levels.

    Args (change often):
        iterations: Adam steps at most, 10,000 in the paper; it ends when every h(V) is 0 or 1.
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
        levels, told = self._optimise(problem, choices)
        if start is not None:
            best = BestLevels(problem, start.levels, start.energy)
            best.offer(levels)
            levels = best.levels
        return problem.solution(levels, **told)

    def _optimise(
        self, problem: RoundingProblem, choices: Choices
    ) -> tuple[Tensor, dict[str, Any]]:
        """Levels (g, r, d) after the last iteration, and what to tell of them; in float32."""
        unit = torch.ones_like(problem.unit)
        if self.normalise:
            unit = problem.positive_unit
            problem = problem.normalised()
        base = problem.errors(choices.lowest).float()
        step = (problem.scale * choices.room).float()
        soft = SoftLevels(self.relaxation, choices, base, step, self.lr, self.lam)
        twice = 2 * problem.gram.float()  # so that its product is the slope
        linear = None if problem.linear is None else problem.linear.float()
        course, done = Course(self.iterations), 0
        before = soft.histogram(0.0)
        for iteration in watched(range(self.iterations), "adaround"):
            progress = iteration / self.iterations
            errors = soft.values(progress)
            slope = gram_product(errors, twice)
            settled = iteration % _LOOKS == 0 and soft.settled()
            if settled or course.due(iteration):
                energies = _soft_energies(problem, errors, slope)
                loss = float((energies * unit[..., 0]).sum())
                course.note(iteration, loss, soft.unsettled(progress))
            if settled:
                break
            if linear is not None:
                slope += linear
            soft.descend(slope)
            done = iteration + 1
        return soft.decided(), {
            "iterations": done,
            "unsettled": soft.unsettled(done / self.iterations),
            "course": course.told(),
            "h_before": before,
            "h_after": soft.histogram(1.0),
        }


def _soft_energies(problem: RoundingProblem, errors: Tensor, slope: Tensor) -> Tensor:
    """(g, r) float64 energies of errors e, of which the slope 2 G e is at hand."""
    energies = (slope * errors).sum(dim=2, dtype=torch.float64) / 2 + problem.offset
    if problem.linear is not None:
        energies += (problem.linear * errors).sum(dim=2)
    return energies
