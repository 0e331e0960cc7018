"""Soft levels: the fused step is torch's, whatever the threads, and goes on from its state."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from company import torch_threads
from torch import Tensor

from qubo_rounding.problem import RoundingProblem
from qubo_rounding.relaxed.choices import choices_of
from qubo_rounding.relaxed.soft_levels import SoftLevels
from qubo_rounding.relaxed.softening import RectifiedSigmoid, Relaxation
from qubo_rounding.solvers import AdaRound
from qubo_rounding.testing import random_problem


@dataclass(frozen=True)
class Unfused(Relaxation):
    """The rectified sigmoid by torch's operations."""

    inner: RectifiedSigmoid = field(default_factory=RectifiedSigmoid)

    def start(self, share: Tensor, room: Tensor) -> Tensor:
        return self.inner.start(share, room)

    def soften(self, v: Tensor, room: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        return self.inner.soften(v, room, progress)

    def regulariser_slope(self, h: Tensor, progress: float) -> Tensor | None:
        return self.inner.regulariser_slope(h, progress)


def soft_levels(problem: RoundingProblem, relaxation: Relaxation) -> SoftLevels:
    choices = choices_of(problem, relaxation)
    base = problem.errors(choices.lowest).float()
    step = (problem.scale * choices.room).float()
    return SoftLevels(relaxation, choices, base, step, lr=0.01, lam=0.1)


def learned(soft: SoftLevels, problem: RoundingProblem, iterations: range) -> Tensor:
    for iteration in iterations:
        errors = soft.values(iteration / 200)
        soft.descend(2 * errors @ problem.gram.float())
    return soft.values(1.0)


@pytest.mark.parametrize("iterations", [50, 200])  # the regulariser sets in at 40
def test_the_fused_step_is_that_of_torch(iterations: int) -> None:
    problem = random_problem(2, 5, 37, seed=1).normalised()
    fused, plain = (soft_levels(problem, r) for r in (RectifiedSigmoid(), Unfused()))
    for iteration in range(0, iterations, 10):
        steps = range(iteration, iteration + 10)
        ours, torchs = (learned(soft, problem, steps) for soft in (fused, plain))
        assert torch.allclose(ours, torchs, atol=1e-4 * float(problem.scale.max()))
    for key, value in plain.state().items():
        assert torch.allclose(fused.state()[key].double(), value.double(), atol=2e-3, rtol=1e-2)


def test_a_subclass_softens_in_its_own_way() -> None:
    @dataclass(frozen=True)
    class Stuck(RectifiedSigmoid):
        def soften(self, v: Tensor, room: Tensor, progress: float) -> tuple[Tensor, Tensor]:
            return torch.full_like(v, 0.25), torch.zeros_like(v)

    problem = random_problem(1, 2, 9, seed=6)
    soft = soft_levels(problem, Stuck())
    before = soft.values(0.0)
    soft.descend(torch.ones_like(before))
    assert torch.equal(soft.values(0.5), before)
    assert not soft.settled()


def test_every_h_at_an_end_stays_there_and_ends_the_work() -> None:
    problem = random_problem(1, 6, 20, seed=3)
    solution = AdaRound(iterations=4000, lr=0.05, lam=10).solve(problem)
    assert solution.stats["iterations"] < 4000
    assert solution.stats["unsettled"] == 0


def test_bits_do_not_depend_on_threads() -> None:
    problem = random_problem(1, 700, 150, seed=4).normalised()  # several parts, and a remainder
    ends = []
    for threads in (1, 2, 3):
        with torch_threads(threads):
            soft = soft_levels(problem, RectifiedSigmoid())
            slopes = torch.Generator().manual_seed(1)
            for iteration in range(20):
                soft.values(0.5 + iteration / 100)
                soft.descend(torch.randn(problem.target.shape, generator=slopes))
            ends.append(soft.state())
    for other in ends[1:]:
        assert all(torch.equal(other[key], value) for key, value in ends[0].items())


@pytest.mark.parametrize("relaxation", [RectifiedSigmoid(), Unfused()], ids=["fused", "torch"])
def test_it_goes_on_from_its_state_to_the_same_bits(relaxation: Relaxation) -> None:
    problem = random_problem(1, 5, 33, seed=2).normalised()
    whole = soft_levels(problem, relaxation)
    expected = learned(whole, problem, range(120))
    first = soft_levels(problem, relaxation)
    learned(first, problem, range(70))
    kept = {key: value.clone() for key, value in first.state().items()}
    second = soft_levels(problem, relaxation)
    second.restore(kept)
    assert torch.equal(learned(second, problem, range(70, 120)), expected)


def test_numbers_at_the_ends_of_float32_stay_numbers() -> None:
    problem = random_problem(1, 2, 64, seed=5)
    soft = soft_levels(problem, RectifiedSigmoid())
    for slope in (1e18, -1e18, 0.0, 1e-38):
        soft.values(0.9)
        soft.descend(torch.full(problem.target.shape, slope))
    assert bool(torch.isfinite(soft.values(1.0)).all())
