"""Certified bounds stand beside any solver's levels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qubo_rounding.known_optima import KnownOptima
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.qubo.bounds import sdp_bound
from qubo_rounding.solution import Solution
from qubo_rounding.solvers import (
    Annealing,
    Certified,
    Enumeration,
    Nearest,
    RefusedError,
    Solver,
    make_solver,
)
from qubo_rounding.testing import random_problem
from qubo_rounding.watch import watching


class Partly(Solver):
    """Nearest rounding that proves the first group, has half a bound for the second."""

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        found = Nearest().solve(problem)
        bound = found.energy.clone()
        bound[1] = float("nan")
        bound[1, 0] = -1.0
        return replace(found, lower_bound=bound, stats={"told": 1})


class BoundlessNearest(Solver):
    """Nearest rounding with no bound, said as -inf."""

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        found = Nearest().solve(problem)
        return replace(found, lower_bound=torch.full_like(found.energy, -torch.inf))


def test_bounds_are_below_the_optimum_and_close():
    problem = random_problem(2, 3, 9, seed=4)
    found = Certified(Annealing(sweeps=50)).solve(problem)
    optimum = Enumeration().solve(problem).energy
    assert torch.equal(found.levels, Annealing(sweeps=50).solve(problem).levels)
    assert bool((found.lower_bound <= optimum).all())
    assert bool((found.lower_bound > 0.5 * optimum).all())
    assert found.total_bound is not None


def test_own_bounds_stay_where_they_are_better():
    problem = random_problem(2, 3, 9, seed=4)
    found = Certified(Partly()).solve(problem)
    assert torch.equal(found.lower_bound[0], problem.energy(problem.nearest())[0])
    assert torch.equal(found.lower_bound[1], sdp_bound(problem.part(slice(1, 2)))[0])
    assert found.stats == {"told": 1}


def test_rows_that_no_one_has_a_bound_for_keep_none():
    """A limit leaves rows out on both sides; -inf plus anything is not a finite total."""
    problem = random_problem(1, 50, 30, seed=4)
    boundless = BoundlessNearest()
    with watching(time_limit=1e-9):
        found = Certified(boundless).solve(problem)
    assert bool(torch.isneginf(found.lower_bound[0, -1]))
    assert found.total_bound is None
    known = KnownOptima.of(problem, [("none", boundless.solve(problem))])
    assert known.relation(found, None)["best_bound"] is None


def test_more_sweeps_give_no_worse_bounds():
    problem = random_problem(1, 4, 40, seed=5)
    few, many = (Certified(Nearest(), sweeps=n).solve(problem).total_bound for n in (2, 200))
    assert few < many


def test_what_the_solver_refuses_is_refused():
    with pytest.raises(RefusedError, match="assignments"):
        Certified(Enumeration(max_assignments=2)).solve(random_problem())
    with pytest.raises(ValueError, match="sweeps is -1"):
        Certified(sweeps=-1)


def test_it_is_described_by_a_text():
    made = make_solver("certified:sweeps=3,solver=annealing:sweeps=5")
    assert made == Certified(Annealing(sweeps=5), sweeps=3)
