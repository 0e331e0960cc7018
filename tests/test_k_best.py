"""Column-by-column searches: their naive twins, GPTQ as one path, and all paths as the optimum."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import reference
import reference_searches
import torch
from company import levels_in_any_company

from qubo_rounding.problem import RoundingProblem
from qubo_rounding.row_batches import row_batches
from qubo_rounding.solvers import Enumeration, Gptq, RefusedError, Solver, k_best
from qubo_rounding.solvers.idle_weights import fix_idle
from qubo_rounding.solvers.k_best import KBest, Klein
from qubo_rounding.solvers.random_numbers import stream_keys
from qubo_rounding.testing import check_solver, random_problem
from qubo_rounding.watch import watching

BOTH = pytest.mark.parametrize(
    "solver", [KBest(width=12), Klein(samples=12)], ids=["best", "klein"]
)


def group_wise(problem: RoundingProblem) -> RoundingProblem:
    draw = torch.Generator().manual_seed(1)
    spread = torch.rand(problem.target.shape, generator=draw, dtype=torch.float64)
    return replace(problem, scale=problem.scale * (0.5 + spread))


def some_fixed(problem: RoundingProblem) -> RoundingProblem:
    high = problem.high.clone()
    high[:, 0, 1:4] = problem.low[:, 0, 1:4]
    return replace(problem, high=high)


PROBLEMS = {
    "up/down": random_problem(2, 3, 14, seed=1),
    "free, linear": random_problem(1, 3, 10, seed=2, bits=3, free=True, linear=True),
    "group-wise, some fixed": group_wise(some_fixed(random_problem(1, 3, 12, seed=3, linear=True))),
    "singular": random_problem(1, 3, 12, seed=4, rank=3),
    "several blocks": random_problem(1, 2, 135, seed=5),
}
every_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


def order_of(row: reference.Row, order: str) -> list[int]:
    return reference.activation_order(row) if order == "activation" else [*range(len(row.target))]


def paths_alone(solver: KBest | Klein, problem: RoundingProblem, seed: int = 0) -> torch.Tensor:
    """The solver's levels where GPTQ's are as bad as can be, so that they never win."""
    worst = torch.full_like(problem.offset, torch.inf)
    with pytest.MonkeyPatch.context() as patch:
        solution = RoundingProblem.solution

        def first_is_worst(self: RoundingProblem, levels: torch.Tensor, **stats: Any) -> Any:
            return replace(solution(self, levels, **stats), energy=worst)

        patch.setattr(RoundingProblem, "solution", first_is_worst)
        return solver.solve(problem, seed=seed).levels


@every_problem
@pytest.mark.parametrize("order", ["activation", "index"])
def test_k_best_is_its_naive_twin(problem: RoundingProblem, order: Any) -> None:
    solver = KBest(width=5, children=3, order=order)
    levels = paths_alone(solver, problem)
    for at, row in reference.rows_of(fix_idle(problem)):
        twin = reference_searches.k_best(row, order_of(row, order), solver.damping, 5, 3)
        assert levels[at].tolist() == twin.tolist()


@every_problem
def test_klein_is_its_naive_twin(problem: RoundingProblem) -> None:
    solver = Klein(samples=3, temperature=0.05, children=3)
    levels = paths_alone(solver, problem, seed=4)
    keys = stream_keys(4, problem.stream)
    for at, row in reference.rows_of(fix_idle(problem)):
        order = order_of(row, "activation")
        temperature, key = 0.05 * float(problem.unit[at]), int(keys[at])
        twin = reference_searches.klein(row, order, solver.damping, 3, 3, temperature, key)
        assert levels[at].tolist() == twin.tolist()


@every_problem
@pytest.mark.parametrize("order", ["activation", "index"])
@pytest.mark.parametrize("damping", [0.01, 0.5])
def test_one_path_is_gptq(problem: RoundingProblem, order: Any, damping: float) -> None:
    expected = Gptq(damping, order).solve(problem).levels
    assert torch.equal(KBest(damping, order, width=1).solve(problem).levels, expected)
    # The search itself agrees, wherever no wish lies within float32 of a tie.
    cold = Klein(damping, order, samples=1, temperature=1e-100)
    assert torch.equal(paths_alone(cold, problem), expected)


def test_keeping_every_path_gives_the_optimum() -> None:
    for free, d in ((False, 8), (True, 3)):
        problem = random_problem(2, 3, d, seed=6, bits=3, free=free, linear=True)
        solution = KBest(damping=0.3, width=512, children=8).solve(problem)
        assert torch.equal(solution.levels, Enumeration().solve(problem).levels)


@BOTH
@every_problem
def test_no_row_ends_above_gptq(problem: RoundingProblem, solver: Solver) -> None:
    solution, start = solver.solve(problem), Gptq().solve(problem)
    assert bool((solution.energy <= start.energy).all())
    assert solution.stats["energy_start"] == float(start.energy.sum())
    assert solution.stats["rows_improved"] == int((solution.energy < start.energy).sum())


def test_wider_is_better_on_the_whole() -> None:
    problem = random_problem(1, 40, 60, seed=7)
    energies = [float(KBest(width=k).solve(problem).energy.sum()) for k in (1, 4, 16, 64)]
    assert energies == sorted(energies, reverse=True)
    assert energies[-1] < 0.9 * energies[0]


@BOTH
def test_the_solvers_conform(solver: Solver) -> None:
    assert "free, 3 bits" in {check.partition(": ")[2] for check in check_solver(solver)}


@BOTH
def test_the_bits_do_not_depend_on_company(solver: Solver, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(2, 4, 70, seed=8, linear=True)
    together = levels_in_any_company(solver, problem, range(problem.r))
    monkeypatch.setattr(k_best, "_NUMBERS_AT_ONCE", 12 * 70 * 2)
    assert torch.equal(solver.solve(problem, seed=3).levels, together)


@BOTH
@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_the_unit_of_weights_and_inputs_does_not_matter(solver: Solver, factor: float) -> None:
    problem = random_problem(1, 4, 30, seed=9)
    plain = solver.solve(problem).levels
    scaled = replace(problem, scale=problem.scale * factor, gram=problem.gram / factor)
    assert torch.equal(solver.solve(scaled).levels, plain)


@BOTH
def test_what_nothing_flows_into_is_rounded_to_nearest(solver: Solver) -> None:
    problem = random_problem(2, 3, 9, seed=10)
    gram = problem.gram.clone()
    gram[1] = 0
    solution = solver.solve(replace(problem, gram=gram))
    assert torch.equal(solution.levels[1], problem.nearest()[1])
    assert bool(solution.energy.isfinite().all())


@BOTH
def test_an_indefinite_gram_is_refused(solver: Solver) -> None:
    problem = random_problem(1, 2, 6, seed=11)
    tilted = replace(problem, gram=problem.gram - 2 * torch.eye(6, dtype=torch.float64))
    with pytest.raises(RefusedError, match=r"with damping 0\.01 is not positive definite; raise"):
        solver.solve(tilted)


@BOTH
def test_rows_beyond_the_time_limit_keep_gptq(
    solver: Solver, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = random_problem(1, 3, 40, seed=12)
    full = solver.solve(problem)
    monkeypatch.setattr(k_best, "_NUMBERS_AT_ONCE", 1)
    with watching(time_limit=1e-9):
        cut = solver.solve(problem)
    assert torch.equal(cut.levels[:, :1], full.levels[:, :1])
    assert torch.equal(cut.levels[:, 1:], Gptq().solve(problem).levels[:, 1:])


def test_another_seed_draws_other_paths() -> None:
    problem = random_problem(1, 20, 60, seed=13)
    first, second = (Klein().solve(problem, seed=seed).levels for seed in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (KBest, {"width": 0}),
        (KBest, {"children": 1}),
        (KBest, {"damping": -1.0}),
        (KBest, {"order": "random"}),
        (Klein, {"samples": 0}),
        (Klein, {"children": 1}),
        (Klein, {"temperature": 0.0}),
        (Klein, {"temperature": float("nan")}),
        (Klein, {"temperature": float("inf")}),
    ],
    ids=str,
)
def test_a_bad_hyperparameter_is_named(make: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        make(**arguments)


@pytest.mark.parametrize("limit", [1, 7, 30, 1000])
@pytest.mark.parametrize(("g", "r"), [(1, 1), (1, 10), (5, 1), (3, 4)])
def test_row_batches_cover_every_row_once_and_keep_the_limit(g: int, r: int, limit: int) -> None:
    seen = torch.zeros(g, r, dtype=torch.int64)
    for groups, rows in row_batches(g, r, numbers=3, limit=limit):
        seen[groups, rows] += 1
        size = seen[groups, rows].numel()
        assert size == 1 or 3 * size <= limit
    assert bool((seen == 1).all())
