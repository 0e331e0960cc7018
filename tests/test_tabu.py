"""Tabu search: its naive twin, what it keeps, and that it counts moves instead of seconds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import reference
import reference_searches
import torch
from company import levels_in_any_company

from qubo_rounding.problem import RoundingProblem
from qubo_rounding.solvers import Descent, Enumeration, Given, Gptq, RefusedError
from qubo_rounding.solvers.idle_weights import fix_idle
from qubo_rounding.solvers.random_numbers import stream_keys
from qubo_rounding.solvers.tabu import Tabu
from qubo_rounding.testing import check_solver, planted_problem, random_problem
from qubo_rounding.watch import watching


def indefinite(problem: RoundingProblem) -> RoundingProblem:
    shift = problem.diagonal.mean() * torch.eye(problem.d, dtype=torch.float64)
    return replace(problem, gram=problem.gram - shift)


def fixed(problem: RoundingProblem, columns: slice) -> RoundingProblem:
    high = problem.high.clone()
    high[..., columns] = problem.low[..., columns]
    return replace(problem, high=high)


PROBLEMS = {
    "up/down": random_problem(2, 2, 12, seed=1),
    "linear": random_problem(1, 3, 12, seed=2, linear=True),
    "some fixed": fixed(random_problem(1, 3, 12, seed=3, linear=True), slice(2, 6)),
    "one free": fixed(random_problem(1, 3, 6, seed=3, linear=True), slice(1, None)),
    "all fixed": fixed(random_problem(1, 3, 6, seed=3), slice(None)),
    "singular": random_problem(1, 3, 12, seed=4, rank=3),
    "indefinite": indefinite(random_problem(1, 3, 12, seed=5)),
}
every_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


@every_problem
@pytest.mark.parametrize("tenure", [0, 2, 10])
def test_a_round_is_the_naive_twins_walk(problem: RoundingProblem, tenure: int) -> None:
    solver = Tabu(rounds=3, start=Given(problem.low), moves=2, tenure=tenure, kick=0.3)
    levels = solver.solve(problem, seed=6).levels
    for at, row in reference.rows_of(fix_idle(problem)):
        best = problem.low[at].numpy()
        for number in (1, 2, 3):
            key = int(stream_keys(6, problem.stream, number)[at])
            kicks = 0 if number == 1 else max(2, round(0.3 * problem.d))
            best = reference_searches.tabu_walk(row, best, key, kicks, 2 * problem.d, tenure)
        assert levels[at].tolist() == best.tolist()


@every_problem
def test_the_optimum_of_a_small_problem_is_found(problem: RoundingProblem) -> None:
    solution = Tabu(start=Given(problem.high)).solve(problem)
    assert torch.allclose(solution.energy, Enumeration().solve(problem).energy, rtol=1e-9)
    assert solution.stats["rounds"] == 100


def test_a_planted_optimum_is_found() -> None:
    problem, hidden = planted_problem(2, 4, 30, seed=1)
    assert torch.equal(Tabu(rounds=20).solve(problem).levels, hidden)


@every_problem
def test_no_row_ends_above_its_start(problem: RoundingProblem) -> None:
    start = problem.energy(problem.nearest())
    solution = Tabu(rounds=2, moves=1, kick=1.0, start=Given(problem.nearest())).solve(problem)
    assert bool((solution.energy <= start).all())
    assert solution.stats["energy_start"] == float(start.sum())


def test_tabu_leaves_the_local_minimum_that_holds_descent() -> None:
    problem = random_problem(1, 20, 60, seed=7)
    descent, tabu = Descent().solve(problem).energy, Tabu(rounds=1).solve(problem).energy
    assert bool((tabu <= descent + 1e-5 * problem.unit[..., 0]).all())
    assert tabu.sum() < 0.98 * descent.sum()


def test_more_rounds_never_hurt() -> None:
    problem = random_problem(1, 10, 80, seed=8)
    few, many = (Tabu(rounds=n, moves=1).solve(problem).energy for n in (1, 20))
    assert bool((many <= few).all())
    assert many.sum() < few.sum()


def test_the_solver_conforms() -> None:
    made = check_solver(Tabu(rounds=10))
    assert "refusal: free, 3 bits" in made
    assert "same bits: up/down" in made


def test_the_bits_do_not_depend_on_company() -> None:
    problem = random_problem(2, 40, 70, seed=9, linear=True)
    solver = Tabu(rounds=4, moves=2)
    together = levels_in_any_company(solver, problem, (0, 7, 35))
    assert not torch.equal(solver.solve(problem, seed=4).levels, together)


@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_the_unit_of_weights_and_inputs_does_not_matter(factor: float) -> None:
    problem = random_problem(1, 4, 30, seed=10)
    scaled = replace(problem, scale=problem.scale * factor, gram=problem.gram / factor)
    solver = Tabu(rounds=5, start=Given(problem.nearest()))
    assert torch.equal(solver.solve(scaled).levels, solver.solve(problem).levels)


def test_what_nothing_flows_into_stays_where_it_is() -> None:
    problem = random_problem(1, 3, 9, seed=11)
    dead = replace(problem, gram=torch.zeros_like(problem.gram))
    solution = Tabu(rounds=3, start=Given(problem.nearest())).solve(dead)
    assert torch.equal(solution.levels, problem.nearest())


def test_the_time_limit_ends_the_rounds() -> None:
    problem = random_problem(1, 3, 20, seed=12)
    with watching(time_limit=1e-9):
        assert Tabu().solve(problem).stats["rounds"] == 1


def test_refusals_name_the_reason() -> None:
    with pytest.raises(RefusedError, match="build the problem with up/down"):
        Tabu().solve(random_problem(1, 1, 4, free=True))
    tilted = indefinite(random_problem(1, 2, 6, seed=13))
    assert Tabu().refuses(tilted) == Gptq().refuses(tilted)
    assert Tabu(start=Given(tilted.low)).refuses(tilted) is None


@pytest.mark.parametrize(
    "arguments",
    [
        {"rounds": 0},
        {"moves": 0},
        {"tenure": -1},
        {"kick": -0.1},
        {"kick": 1.1},
        {"kick": float("nan")},
    ],
    ids=str,
)
def test_a_bad_hyperparameter_is_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Tabu(**arguments)
