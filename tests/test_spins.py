"""Rows over odd integers: energies, levels and what is left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from qubo_rounding.problem import RoundingProblem
from qubo_rounding.qubo.spins import spin_row
from qubo_rounding.solvers import Stochastic
from qubo_rounding.testing import random_problem


def partly_fixed() -> RoundingProblem:
    """Free levels, a linear term and one fixed column."""
    problem = random_problem(2, 3, 6, seed=4, bits=3, free=True, linear=True)
    low = problem.low.clone()
    low[:, :, 1] = problem.high[:, :, 1]
    return replace(problem, low=low)


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_energies_are_the_problem_s(free: bool, scale: float) -> None:
    problem = random_problem(2, 3, 6, seed=1, bits=3, free=free, linear=True)
    assert problem.linear is not None
    problem = replace(
        problem, gram=problem.gram * scale, linear=problem.linear * scale, offset=problem.offset
    )
    for seed in range(5):
        solution = Stochastic(draws=1).solve(problem, seed=seed)
        for group in range(2):
            for i in range(3):
                row = spin_row(problem, group, i)
                levels = solution.levels[group, i].numpy()
                assert np.array_equal(row.levels(row.spins(levels)), levels)
                energy = row.energy(row.spins(levels))
                assert energy == pytest.approx(float(solution.energy[group, i]), rel=1e-12)


@pytest.mark.parametrize("free", [False, True])
def test_the_size_is_the_sum_of_absolute_terms(free: bool) -> None:
    problem = partly_fixed() if free else random_problem(2, 3, 6, seed=1, linear=True)
    row, reach = spin_row(problem, 1, 2), np.full(6, 0.0)
    middle = problem.low[1, 2].double().numpy()
    middle[row.columns] = row.anchor + 0.5
    scale = problem.scale.expand_as(problem.target)[1, 2].numpy()
    error = np.abs(scale * (middle - problem.target[1, 2].numpy()))
    reach[row.columns] = row.ends * scale[row.columns] / 2
    assert problem.linear is not None
    gross = np.abs(problem.gram[1].numpy()) @ (error + reach) + np.abs(problem.linear[1, 2].numpy())
    expected = (error + reach) @ gross + abs(float(problem.offset[1, 2]))
    assert row.unit * row.size(row.ends) == pytest.approx(expected)


def test_up_down_weights_are_minus_and_plus_one() -> None:
    problem = random_problem(1, 2, 5, seed=2)
    row = spin_row(problem, 0, 1)
    assert row.n == int((problem.high > problem.low)[0, 1].sum()) > 1
    assert set(row.low) == {-1.0}
    assert set(row.high) == {1.0}
    assert not row.wide.any()
    assert torch.equal(torch.from_numpy(row.levels(row.low)), problem.low[0, 1])
    assert torch.equal(torch.from_numpy(row.levels(row.high)), problem.high[0, 1])


def test_wide_weights_have_the_levels_around_the_target_at_minus_and_plus_one() -> None:
    problem = random_problem(1, 3, 5, seed=2, bits=3, free=True)
    row = spin_row(problem, 0, 2)
    assert row.wide.all()
    around = problem.target[0, 2].numpy()
    assert np.array_equal(row.levels(-np.ones(5)), np.clip(np.floor(around), -4, 2))
    assert np.array_equal(row.levels(row.low), problem.low[0, 2].numpy())
    assert np.array_equal(row.levels(row.high), problem.high[0, 2].numpy())


def test_fixed_weights_are_left_out() -> None:
    problem = partly_fixed()
    row = spin_row(problem, 1, 0)
    assert row.columns.tolist() == [0, 2, 3, 4, 5]
    levels = row.levels(np.ones(5))
    assert levels[1] == problem.high[1, 0, 1]
    expected = float(problem.energy(torch.from_numpy(levels).expand(2, 3, 6))[1, 0])
    assert row.energy(np.ones(5)) == pytest.approx(expected, rel=1e-12)


def test_a_row_without_freedom_has_no_spins() -> None:
    problem = random_problem(1, 2, 4, seed=1)
    problem = replace(problem, high=problem.low)
    row = spin_row(problem, 0, 1)
    assert row.n == 0
    assert row.energy(np.empty(0)) == pytest.approx(float(problem.energy(problem.low)[0, 1]))
