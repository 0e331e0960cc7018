"""Time limits and progress bars of loops, and solvers that run under a limit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from qubo_rounding.solvers import AdaRound, Annealing, Descent, Nearest, Solver, Stochastic
from qubo_rounding.testing import random_problem
from qubo_rounding.watch import alarm, watched, watching

INSTANT = 1e-6


def test_without_a_limit_every_item_comes() -> None:
    assert list(watched(range(5), "loop")) == [0, 1, 2, 3, 4]


def test_a_limit_ends_the_loop_after_its_first_step() -> None:
    with watching(time_limit=INSTANT):
        assert list(watched(range(1000), "loop")) == [0]
    assert len(list(watched(range(1000), "loop"))) == 1000


def test_the_alarm_rings_on_other_threads_too() -> None:
    with watching(time_limit=INSTANT):
        late = alarm()
    with watching(time_limit=1000):
        early = alarm()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(late).result()
        assert not pool.submit(early).result()
        assert not pool.submit(alarm()).result()


def test_a_generous_limit_changes_nothing() -> None:
    with watching(time_limit=1000):
        assert list(watched(range(5), "loop")) == [0, 1, 2, 3, 4]


def test_the_inner_block_cannot_outlast_the_outer_one() -> None:
    with watching(time_limit=INSTANT), watching(time_limit=1000):
        assert list(watched(range(1000), "loop")) == [0]
    with watching(time_limit=INSTANT), watching(progress=False):
        assert list(watched(range(1000), "loop")) == [0]


def test_the_limit_goes_even_when_the_block_fails() -> None:
    with pytest.raises(KeyError), watching(time_limit=INSTANT):
        raise KeyError
    assert len(list(watched(range(10), "loop"))) == 10


def test_a_bar_is_shown_only_when_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    list(watched(range(3), "silent loop"))
    assert capsys.readouterr().err == ""
    with watching(progress=True):
        list(watched(range(3), "named loop"))
    assert "named loop" in capsys.readouterr().err


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_a_limit_has_to_be_positive(limit: float) -> None:
    with pytest.raises(ValueError, match="positive number of seconds"), watching(time_limit=limit):
        raise AssertionError("the block must not start")


@pytest.mark.parametrize(
    ("solver", "stat", "steps"),
    [
        (Annealing(sweeps=10_000_000, reads=1000), "reads", 1),
        (AdaRound(iterations=10_000_000), "iterations", 1),
        (Stochastic(draws=10_000_000), "draws", 1),
        (Descent(start=Nearest()), "sweeps", 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Solver) else None,
)
def test_a_solver_under_a_limit_still_gives_a_solution(
    solver: Solver, stat: str, steps: int
) -> None:
    problem = random_problem(2, 5, 20, seed=1, linear=True)
    with watching(time_limit=INSTANT):
        solution = solver.solve(problem)
    assert problem.allows(solution.levels)
    assert solution.stats[stat] == steps
    assert solution.energy.equal(problem.energy(solution.levels))
