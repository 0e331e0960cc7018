"""Rows as dimod models: the same energies, and samples back as levels."""

from __future__ import annotations

from dataclasses import replace

import dimod
import pytest
import torch

from qubo_rounding.problem import ProblemError, RoundingProblem
from qubo_rounding.qubo.bqm import levels_from_sample, to_bqm
from qubo_rounding.testing import random_problem


def partly_fixed() -> RoundingProblem:
    problem = random_problem(2, 2, 6, seed=3, linear=True)
    high = problem.high.clone()
    high[:, :, [0, 3]] = problem.low[:, :, [0, 3]]
    return replace(problem, high=high)


@pytest.mark.parametrize(("group", "row"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_every_sample_has_the_energy_of_its_levels(group: int, row: int) -> None:
    problem = partly_fixed()
    bqm = to_bqm(problem, group, row)
    assert bqm.vartype is dimod.BINARY
    free = problem.high[group, row] > problem.low[group, row]
    assert sorted(bqm.variables) == torch.nonzero(free).flatten().tolist()
    samples = dimod.ExactSolver().sample(bqm)
    assert len(samples) == 2 ** len(bqm.variables)
    for sample, energy in samples.data(["sample", "energy"]):
        levels = problem.low.clone()
        levels[group, row] = levels_from_sample(problem, sample, group, row)
        assert problem.allows(levels)
        assert energy == pytest.approx(float(problem.energy(levels)[group, row]))


def test_all_ones_is_high_and_all_zeros_is_low() -> None:
    problem = partly_fixed()
    variables = to_bqm(problem, 1, 1).variables
    ones = levels_from_sample(problem, dict.fromkeys(variables, 1), 1, 1)
    zeros = levels_from_sample(problem, dict.fromkeys(variables, 0), 1, 1)
    assert ones.dtype == torch.int16
    assert torch.equal(ones, problem.high[1, 1])
    assert torch.equal(zeros, problem.low[1, 1])


def test_a_fixed_row_is_an_empty_model_with_its_energy() -> None:
    problem = random_problem(1, 2, 4, seed=1)
    problem = replace(problem, high=problem.low)
    bqm = to_bqm(problem, 0, 1)
    assert bqm.num_variables == 0
    assert bqm.offset == pytest.approx(float(problem.energy(problem.low)[0, 1]))
    assert torch.equal(levels_from_sample(problem, {}, 0, 1), problem.low[0, 1])


def test_the_problem_is_left_alone() -> None:
    problem = partly_fixed()
    low = problem.low.clone()
    levels_from_sample(problem, dict.fromkeys(to_bqm(problem).variables, 1))
    assert torch.equal(problem.low, low)


def test_a_wide_problem_has_no_model() -> None:
    with pytest.raises(ProblemError, match="up/down"):
        to_bqm(random_problem(1, 1, 3, free=True))
