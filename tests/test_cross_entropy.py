"""The cross-entropy method: its naive twin, what it keeps, when it ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import reference
import reference_searches
import torch
from company import levels_in_any_company

from qubo_rounding.problem import RoundingProblem
from qubo_rounding.solvers import Enumeration, RefusedError, cross_entropy
from qubo_rounding.solvers.cross_entropy import CrossEntropy
from qubo_rounding.solvers.random_numbers import stream_keys
from qubo_rounding.testing import check_solver, random_problem
from qubo_rounding.watch import watching


def indefinite(problem: RoundingProblem) -> RoundingProblem:
    shift = problem.diagonal.mean() * torch.eye(problem.d, dtype=torch.float64)
    return replace(problem, gram=problem.gram - shift)


def some_fixed(problem: RoundingProblem) -> RoundingProblem:
    high = problem.high.clone()
    high[..., 1:4] = problem.low[..., 1:4]
    return replace(problem, high=high)


def out_of_reach(problem: RoundingProblem) -> RoundingProblem:
    return replace(problem, target=problem.target + 1.3)


PROBLEMS = {
    "up/down": random_problem(2, 2, 12, seed=1),
    "linear": random_problem(1, 3, 12, seed=2, linear=True),
    "some fixed": some_fixed(random_problem(1, 3, 12, seed=3)),
    "singular": random_problem(1, 3, 12, seed=4, rank=3),
    "indefinite": indefinite(random_problem(1, 3, 12, seed=5)),
    "out of reach": out_of_reach(random_problem(1, 3, 12, seed=6, linear=True)),
}
every_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


@every_problem
def test_the_result_is_the_best_of_the_naive_twins_samples(problem: RoundingProblem) -> None:
    solver = CrossEntropy(samples=30, iterations=6, smoothing=0.5, elite=0.2)
    solution = solver.solve(problem, seed=9)
    keys = np.stack([stream_keys(9, problem.stream, k) for k in range(6)], axis=-1)
    for at, row in reference.rows_of(problem):
        own = [int(key) for key in keys[at]]
        steps = reference_searches.cross_entropy(row, own, samples=30, elite=0.2, smoothing=0.5)
        seen = [problem.nearest()[at].numpy()]
        for samples, p in steps:
            mode = np.where(p >= 0.5, row.high, row.low)
            seen += samples
        least = min(reference.energy(row, levels) for levels in [*seen, mode])
        assert float(solution.energy[at]) == pytest.approx(least, rel=1e-9)


@every_problem
def test_enough_samples_find_the_optimum(problem: RoundingProblem) -> None:
    solution = CrossEntropy(samples=500, smoothing=0.1).solve(problem)
    optimum = Enumeration().solve(problem).energy
    assert torch.allclose(solution.energy, optimum, rtol=1e-9)
    assert solution.stats["rows_unsettled"] == 0


@every_problem
def test_no_row_ends_above_nearest(problem: RoundingProblem) -> None:
    solution = CrossEntropy(samples=2, iterations=1).solve(problem)
    assert bool((solution.energy <= problem.energy(problem.nearest())).all())


def test_more_samples_and_slower_smoothing_help_on_the_whole() -> None:
    problem = random_problem(1, 20, 60, seed=7)
    few, slow, many = (
        float(solver.solve(problem).energy.sum())
        for solver in (
            CrossEntropy(samples=50, smoothing=0.9),
            CrossEntropy(samples=50, smoothing=0.2),
            CrossEntropy(samples=400, smoothing=0.9),
        )
    )
    assert slow < few
    assert many < few


def test_the_solver_conforms() -> None:
    made = check_solver(CrossEntropy(samples=100))
    assert "refusal: free, 3 bits" in made
    assert "same bits: up/down" in made


def test_the_bits_do_not_depend_on_company(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(2, 5, 70, seed=8, linear=True)
    solver = CrossEntropy(samples=30, iterations=20)
    together = levels_in_any_company(solver, problem, range(problem.r))
    monkeypatch.setattr(cross_entropy, "_NUMBERS_AT_ONCE", 30 * 70 * 2)
    assert torch.equal(solver.solve(problem, seed=3).levels, together)


def test_weights_that_do_not_matter_stay_at_nearest_and_keep_no_row_open() -> None:
    problem = random_problem(1, 4, 10, seed=10)
    gram = problem.gram.clone()
    gram[:, 3:], gram[:, :, 3:] = 0, 0
    solution = CrossEntropy(smoothing=0.05).solve(replace(problem, gram=gram))
    assert torch.equal(solution.levels[..., 3:], problem.nearest()[..., 3:])
    assert solution.stats["rows_unsettled"] == 0
    assert solution.stats["iterations"] < 200


def test_the_last_iteration_is_told() -> None:
    problem = random_problem(1, 4, 50, seed=11)
    short = CrossEntropy(iterations=3).solve(problem)
    assert short.stats == {"iterations": 3, "rows_unsettled": 4}
    assert 3 < CrossEntropy().solve(problem).stats["iterations"] < 300


def test_rows_beyond_the_time_limit_stay_at_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(1, 3, 40, seed=12)
    monkeypatch.setattr(cross_entropy, "_NUMBERS_AT_ONCE", 1)
    with watching(time_limit=1e-9):
        solution = CrossEntropy().solve(problem)
    assert solution.stats == {"iterations": 1, "rows_unsettled": 3}
    assert torch.equal(solution.levels[:, 1:], problem.nearest()[:, 1:])


def test_one_wide_row_with_an_indefinite_gram_improves() -> None:
    problem = indefinite(random_problem(1, 1, 300, seed=13))
    solution = CrossEntropy(samples=100, iterations=40).solve(problem)
    assert float(solution.energy) < float(problem.energy(problem.nearest()))


def test_wider_ranges_are_refused() -> None:
    with pytest.raises(RefusedError, match="build it with up/down"):
        CrossEntropy().solve(random_problem(1, 1, 4, free=True))


@pytest.mark.parametrize(
    "arguments",
    [
        {"samples": 0},
        {"iterations": 0},
        {"smoothing": 0.0},
        {"smoothing": 1.1},
        {"smoothing": float("nan")},
        {"elite": 0.0},
        {"elite": 2.0},
    ],
    ids=str,
)
def test_a_bad_hyperparameter_is_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        CrossEntropy(**arguments)
