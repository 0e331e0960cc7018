"""The default solver chooses by the table and keeps what its choice promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qubo_rounding import Annealing, Auto, BestOf, Enumeration, Gptq, Tabu, TreeSearch
from qubo_rounding.referee import run_solver
from qubo_rounding.solvers.solver import Solver
from qubo_rounding.testing import random_problem

EFFORTS = ("fast", "balanced", "best")


@pytest.mark.parametrize(
    ("effort", "d", "kind"),
    [
        *((effort, 12, Enumeration) for effort in EFFORTS),
        ("fast", 13, Tabu),
        ("balanced", 13, TreeSearch),
        ("balanced", 33, Tabu),
        ("best", 33, TreeSearch),
        ("best", 81, BestOf),
        ("fast", 256, Tabu),
        ("best", 256, Tabu),
    ],
)
def test_the_choice_is_the_table_s(effort: str, d: int, kind: type[Solver]) -> None:
    problem = random_problem(1, 2, d)
    chosen = Auto(effort).choice(problem)  # pyright: ignore[reportArgumentType]
    assert type(chosen) is kind


def test_the_clock_starts_when_the_kernels_of_the_choice_are_compiled(monkeypatch) -> None:
    found: list[int] = []
    search = Tabu.find
    monkeypatch.setattr(
        Tabu, "find", lambda self, p, seed: found.append(p.d) or search(self, p, seed)
    )
    run_solver(random_problem(1, 2, 20), Auto("fast"))
    assert found == [4, 20]


def test_wide_ranges_are_annealed_and_few_assignments_enumerated() -> None:
    assert type(Auto().choice(random_problem(1, 2, 20, free=True))) is Annealing
    assert type(Auto().choice(random_problem(1, 2, 3, free=True))) is Enumeration


@pytest.mark.parametrize("effort", EFFORTS)
def test_no_row_is_worse_than_gptq_s(effort: str) -> None:
    problem = random_problem(2, 3, 40)
    solution = Auto(effort).solve(problem)  # pyright: ignore[reportArgumentType]
    assert bool((solution.energy <= Gptq().solve(problem).energy).all())
    assert str(solution.stats["solved_by"]).startswith(("Tabu(", "TreeSearch("))
    assert bool(solution.proven.all()) == (effort == "best")


@pytest.mark.parametrize("effort", EFFORTS)
def test_wide_rows_are_no_worse_than_gptq_s(effort: str) -> None:
    problem = random_problem(1, 1, 256)
    solution = Auto(effort).solve(problem)  # pyright: ignore[reportArgumentType]
    assert bool((solution.energy <= Gptq().solve(problem).energy).all())
    assert ("Annealing(" in str(solution.stats["solved_by"])) == (effort != "fast")


@pytest.mark.parametrize("effort", EFFORTS)
def test_indefinite_problems_start_at_nearest(effort: str) -> None:
    for d in (40, 256):
        posed = random_problem(1, 1, d)
        indefinite = replace(
            posed, gram=posed.gram - posed.gram.diagonal(dim1=1, dim2=2).mean() * torch.eye(d)
        )
        solution = Auto(effort).solve(indefinite)  # pyright: ignore[reportArgumentType]
        assert bool((solution.energy <= indefinite.energy(indefinite.nearest())).all())


def test_unknown_efforts_are_refused() -> None:
    with pytest.raises(ValueError, match="fast, balanced, best"):
        Auto("eager")  # pyright: ignore[reportArgumentType]
