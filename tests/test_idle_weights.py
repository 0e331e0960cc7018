"""Weights that cannot change the energy, and no others, are fixed at nearest."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qubo_rounding.solvers.idle_weights import fix_idle
from qubo_rounding.testing import random_problem


@pytest.mark.parametrize("free", [False, True], ids=["up/down", "free"])
def test_columns_that_nothing_flows_into_are_fixed(free: bool) -> None:
    problem = random_problem(2, 3, 6, seed=1, free=free)
    gram = problem.gram.clone()
    gram[1, 2], gram[1, :, 2] = 0, 0
    fixed = fix_idle(replace(problem, gram=gram))
    idle = torch.zeros(2, 3, 6, dtype=torch.bool)
    idle[1, :, 2] = True
    for bound, before in ((fixed.low, problem.low), (fixed.high, problem.high)):
        assert torch.equal(bound[idle], problem.nearest()[idle])
        assert torch.equal(bound[~idle], before[~idle])


def test_a_linear_term_or_a_coupling_keeps_a_weight_in_play() -> None:
    problem = random_problem(1, 2, 5, seed=2)
    gram = problem.gram.clone()
    gram[:, 1, 1] = 0  # an indefinite Hessian may have a zero on its diagonal
    gram[:, 3], gram[:, :, 3] = 0, 0
    linear = torch.zeros_like(problem.target)
    linear[0, 0, 3] = 1
    fixed = fix_idle(replace(problem, gram=gram, linear=linear))
    low, high = problem.low.clone(), problem.high.clone()
    low[0, 1, 3] = high[0, 1, 3] = problem.nearest()[0, 1, 3]
    assert torch.equal(fixed.low, low)
    assert torch.equal(fixed.high, high)
