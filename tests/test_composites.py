"""Solvers made of solvers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from qubo_rounding.problem import RoundingProblem
from qubo_rounding.solution import Solution
from qubo_rounding.solvers import (
    Annealing,
    BestOf,
    Descent,
    Enumeration,
    FirstThatAccepts,
    Given,
    Gptq,
    Nearest,
    RefusedError,
    Solver,
    Stochastic,
)
from qubo_rounding.testing import random_problem

PROBLEM = random_problem(2, 5, 8, seed=1, linear=True)


@dataclass(frozen=True)
class Lazy(Solver):
    """Refuses everything."""

    reason: str = "it is too hot today."

    def refuses(self, problem: RoundingProblem) -> str | None:
        return self.reason

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        raise AssertionError("a refused problem must not be solved")


@dataclass(frozen=True)
class HalfBound(Solver):
    """Bounds the first group only."""

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        bound = torch.full_like(problem.energy(problem.low), torch.nan)
        bound[0] = -1.0
        return problem.solution(problem.low, bound)


def test_given_levels_come_back() -> None:
    solution = Given(PROBLEM.high).solve(PROBLEM)
    assert torch.equal(solution.levels, PROBLEM.high)
    assert repr(Given(PROBLEM.high)) == "Given(levels=(2, 5, 8))"


@pytest.mark.parametrize(
    "levels", [PROBLEM.high + 1, PROBLEM.high[:1], PROBLEM.high.double()], ids=str
)
def test_given_levels_of_another_problem_are_refused(levels: torch.Tensor) -> None:
    with pytest.raises(RefusedError, match=r"integers of shape \(2, 5, 8\)"):
        Given(levels).solve(PROBLEM)


def test_given_levels_are_a_start() -> None:
    solution = Descent(start=Given(PROBLEM.high)).solve(PROBLEM)
    assert bool((solution.energy <= PROBLEM.energy(PROBLEM.high)).all())
    assert solution.stats["energy_start"] == pytest.approx(
        float(PROBLEM.energy(PROBLEM.high).sum())
    )


@pytest.mark.parametrize("outer", [Descent, Annealing])
def test_what_the_start_refuses_is_refused(outer: Callable[..., Solver]) -> None:
    with pytest.raises(RefusedError, match="too hot"):
        outer(start=Lazy()).solve(PROBLEM)


def test_best_of_takes_the_best_of_every_row() -> None:
    members = (Stochastic(draws=1), Stochastic(draws=2), Nearest(), Gptq())
    energies = torch.stack([s.solve(PROBLEM, seed=4).energy for s in members])
    solution = BestOf(members).solve(PROBLEM, seed=4)
    assert torch.equal(solution.energy, energies.amin(dim=0))
    assert sum(solution.stats["won"].values()) == 10
    assert len(solution.stats["won"]) == 4
    assert solution.lower_bound is None


def test_best_of_keeps_the_best_bound() -> None:
    exact = Enumeration().solve(PROBLEM)
    solution = BestOf((HalfBound(), Enumeration(), Nearest())).solve(PROBLEM)
    assert bool(solution.proven.all())
    assert torch.equal(solution.energy, exact.energy)
    half = BestOf((HalfBound(), Nearest())).solve(PROBLEM)
    assert half.lower_bound is not None
    assert half.gap[0].isfinite().all()
    assert half.gap[1].isinf().all()


def test_best_of_has_no_total_bound_where_a_row_has_none() -> None:
    solution = BestOf((HalfBound(), Nearest())).solve(PROBLEM)
    assert solution.total_bound is None


def test_best_of_counts_a_tie_for_the_first() -> None:
    solution = BestOf((Nearest(), Nearest())).solve(PROBLEM)
    assert solution.stats["won"] == {"0 Nearest": 10, "1 Nearest": 0}


def test_best_of_refuses_what_a_member_refuses() -> None:
    assert BestOf((Nearest(), Gptq())).refuses(PROBLEM) is None
    assert BestOf((Nearest(), Lazy("no."), Lazy("never."))).refuses(PROBLEM) == "no."


def test_the_first_willing_solver_is_taken_and_named() -> None:
    chain = FirstThatAccepts((Lazy(), Enumeration(), Nearest()))
    solution = chain.solve(PROBLEM)
    exact = Enumeration().solve(PROBLEM)
    assert solution.stats["solved_by"] == repr(Enumeration())
    assert torch.equal(solution.levels, exact.levels)
    assert bool(solution.proven.all())


def test_a_chain_refuses_what_all_refuse_and_says_all_reasons() -> None:
    chain = FirstThatAccepts((Lazy("no."), Lazy("never.")))
    with pytest.raises(RefusedError, match=r"no\. never\."):
        chain.solve(PROBLEM)


@pytest.mark.parametrize("kind", [BestOf, FirstThatAccepts])
@pytest.mark.parametrize("solvers", [(), ("nearest",), (Nearest(), Nearest)])
def test_members_have_to_be_solvers(kind: Callable[..., Solver], solvers: tuple) -> None:
    with pytest.raises(ValueError, match="at least one Solver"):
        kind(solvers)
