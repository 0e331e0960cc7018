"""Rows over odd integers that share a Gram matrix: the problem's own energies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hard_rows import HARD_ROWS, indefinite
from torch import Tensor

from qubo_rounding.problem import RoundingProblem
from qubo_rounding.qubo.spin_rows import SpinRows
from qubo_rounding.qubo.spins import spin_row
from qubo_rounding.testing import random_problem

PROBLEMS = HARD_ROWS | {"indefinite": indefinite(1), "indefinite, free": indefinite(2, free=True)}


def random_levels(problem: RoundingProblem) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    room = (problem.high - problem.low + 1).double()
    return problem.low + (room * torch.rand(room.shape, generator=draw)).floor().to(torch.int16)


def energies(rows: SpinRows, spins: Tensor) -> Tensor:
    moved = rows.half * spins
    return rows.unit * ((moved * (moved @ rows.gram + 2 * rows.slope)).sum(2) + rows.offset)


@pytest.mark.parametrize("name", PROBLEMS)
def test_energies_are_the_problem_s(name: str) -> None:
    problem = PROBLEMS[name]
    rows, levels = SpinRows.of(problem), random_levels(problem)
    anchor = torch.minimum(problem.target.floor(), problem.high.double() - 1)
    spins = 2 * (levels - torch.maximum(anchor, problem.low)) - 1
    difference = (energies(rows, spins) - problem.energy(levels)).abs()
    assert bool((difference <= rows.unit * rows.rounding).all())
    assert bool((spins**2 <= rows.largest).all())
    magnitude = problem.d * problem.unit[..., 0] + problem.offset.abs()
    assert bool((rows.unit * rows.rounding <= 1e-8 * magnitude).all())
    size = (rows.half.unsqueeze(3) * rows.gram.unsqueeze(1) * rows.half.unsqueeze(2)).abs()
    size = (size.sum(3) + rows.half * rows.slope.abs()).mean(2)
    assert bool(torch.isclose(size, torch.ones_like(size)).logical_or(size == 0).all())


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_row_alone_is_the_same_row(name: str) -> None:
    problem = PROBLEMS[name].part(slice(0, 1), slice(0, 5))
    rows, levels = SpinRows.of(problem), random_levels(problem)
    for row in range(problem.r):
        one = spin_row(problem, 0, row)
        if one.n == 0:
            continue
        alone = SpinRows.of_row(one)
        spins = torch.from_numpy(one.spins(levels[0, row].numpy()))[None, None]
        energy = problem.energy(levels)[0, row]
        assert float(energies(alone, spins)) == pytest.approx(float(energy), rel=1e-9)
        assert (
            alone.largest[0, 0].tolist()
            == rows.largest[0, row][torch.from_numpy(one.columns)].tolist()
        )


def test_the_gram_matrix_is_made_symmetric() -> None:
    problem = random_problem(2, 3, 5, seed=1, linear=True)
    draw = torch.Generator().manual_seed(1)
    noise = torch.randn(problem.gram.shape, generator=draw, dtype=torch.float64)
    problem = replace(problem, gram=problem.gram * (1 + 1e-10 * noise))
    rows, levels = SpinRows.of(problem), random_levels(problem)
    assert torch.equal(rows.gram, rows.gram.mT)
    spins = 2 * (levels - torch.minimum(problem.target.floor(), problem.high - 1.0)) - 1
    energy = problem.energy(levels)
    assert torch.allclose(energies(rows, spins), energy, rtol=1e-13)


def test_parts_are_cut_from_every_field() -> None:
    rows = SpinRows.of(random_problem(3, 4, 5, seed=2))
    part = rows.part(slice(1, 3), slice(2, 3))
    assert torch.equal(part.gram, rows.gram[1:3])
    assert torch.equal(part.slope, rows.slope[1:3, 2:3])
    assert np.prod(part.unit.shape) == 2
