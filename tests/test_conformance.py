"""The conformance suite passes for every solver of the table, and catches bad ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count

import pytest
import torch

from qubo_rounding.problem import RoundingProblem
from qubo_rounding.solution import Solution
from qubo_rounding.solvers import SOLVERS, Enumeration, Nearest, Solver, make_solver
from qubo_rounding.testing import check_solver, planted_problem, random_problem

LIGHT = {
    "adaround": "adaround:iterations=200,lr=0.05",
    "annealing": "annealing:sweeps=50",
    "cross_entropy": "cross_entropy:samples=100",
    "dwave_annealing": "dwave_annealing:reads=2,sweeps=50",
    "dwave_tabu": "dwave_tabu:milliseconds=5",
    "dwave_descent": "dwave_descent:reads=20",
    "tabu": "tabu:rounds=10",
}
ENDS_BY_THE_CLOCK = {"dwave_tabu"}
CALLS = count()


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_conforms(name: str) -> None:
    solver = make_solver(LIGHT.get(name, name))
    made = check_solver(solver, repeatable=name not in ENDS_BY_THE_CLOCK)
    assert {check.partition(": ")[2] for check in made} >= {"up/down", "singular", "one column"}
    assert len(made) == len(set(made))


@dataclass(frozen=True)
class Doctored(Solver):
    """Nearest rounding whose result or input `spoil` changes."""

    spoil: Callable[[RoundingProblem, Solution], Solution]

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        return self.spoil(problem, Nearest().solve(problem))


def misreport_energy(problem: RoundingProblem, solution: Solution) -> Solution:
    return replace(solution, energy=solution.energy * 0.9)


def report_no_number(problem: RoundingProblem, solution: Solution) -> Solution:
    return replace(solution, energy=solution.energy * torch.nan)


def leave_the_range(problem: RoundingProblem, solution: Solution) -> Solution:
    levels = solution.levels + 1
    return Solution(levels, problem.energy(levels))


def widen_the_levels(problem: RoundingProblem, solution: Solution) -> Solution:
    return replace(solution, levels=solution.levels.long())


def bound_too_high(problem: RoundingProblem, solution: Solution) -> Solution:
    return replace(solution, lower_bound=Enumeration().solve(problem).energy + 1e-3)


def depend_on_the_row(problem: RoundingProblem, solution: Solution) -> Solution:
    levels = torch.cat([problem.low[:, :1], solution.levels[:, 1:]], dim=1)
    return problem.solution(levels)


def depend_on_the_group(problem: RoundingProblem, solution: Solution) -> Solution:
    return problem.solution(torch.cat([problem.low[:1], solution.levels[1:]]))


def alternate(problem: RoundingProblem, solution: Solution) -> Solution:
    return problem.solution(problem.low if next(CALLS) % 2 else problem.high)


def prefer_low(problem: RoundingProblem, solution: Solution) -> Solution:
    return problem.solution(problem.low)


@pytest.mark.parametrize(
    ("spoil", "finding"),
    [
        (misreport_energy, "misreports energy"),
        (report_no_number, "misreports energy"),
        (leave_the_range, "levels outside"),
        (widen_the_levels, "levels are torch.int64"),
        (bound_too_high, "lower bound above the optimum"),
        (depend_on_the_row, "differs when alone"),
        (depend_on_the_group, "differs when alone"),
        (alternate, "not repeatable"),
        (prefer_low, "diagonal is not nearest"),
    ],
)
def test_a_doctored_solver_is_caught(
    spoil: Callable[[RoundingProblem, Solution], Solution], finding: str
) -> None:
    with pytest.raises(AssertionError, match=finding):
        check_solver(Doctored(spoil))


@pytest.mark.parametrize("name", ["gram", "target", "scale", "low", "offset", "stream", "linear"])
def test_a_solver_that_writes_into_its_input_is_caught(name: str) -> None:
    def scribble(problem: RoundingProblem, solution: Solution) -> Solution:
        tensor = getattr(problem, name)
        if tensor is not None:
            tensor += 1
        return solution

    with pytest.raises(AssertionError, match="changed its input"):
        check_solver(Doctored(scribble))


@dataclass(frozen=True)
class Curt(Solver):
    """Refuses without a sentence, or only for show."""

    reason: str

    def refuses(self, problem: RoundingProblem) -> str | None:
        return self.reason

    def solve(self, problem: RoundingProblem, *, seed: int = 0) -> Solution:
        return self.find(problem, seed)

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        return problem.solution(problem.low)


def test_a_refusal_has_to_be_a_sentence_and_meant() -> None:
    with pytest.raises(AssertionError, match="no sentence"):
        check_solver(Curt("no"))
    with pytest.raises(AssertionError, match="works all the same"):
        check_solver(Curt("this problem is not for me."))


def test_planted_levels_are_the_only_optimum() -> None:
    problem, hidden = planted_problem(2, 3, 8, seed=5)
    optimum = Enumeration().solve(problem)
    assert torch.equal(optimum.levels, hidden)
    assert optimum.energy.abs().max() < 1e-9
    assert not torch.equal(problem.nearest(), hidden)


def test_random_problems_are_what_they_say() -> None:
    problem = random_problem(2, 3, 8, seed=1, rank=4)
    assert torch.linalg.matrix_rank(problem.gram).tolist() == [4, 4]
    assert torch.equal(problem.gram, random_problem(2, 3, 8, seed=1, rank=4).gram)
    assert not torch.equal(problem.gram, random_problem(2, 3, 8, seed=2, rank=4).gram)
    assert not random_problem(1, 1, 4, free=True).is_binary
    assert random_problem(1, 1, 4).linear is None
    assert random_problem(1, 1, 4, linear=True).linear is not None
