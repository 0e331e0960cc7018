"""Shifts that make matrices positive semidefinite: certain, and hardly too large."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qubo_rounding.qubo.definite import certain_shift


def random_symmetric(b: int, n: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    matrix = torch.randn(b, n, n, generator=draw, dtype=torch.float64)
    return (matrix + matrix.mT) / 2


def singular_integers(b: int, n: int, rank: int, seed: int) -> Tensor:
    """B B' of whole numbers: its least eigenvalue is exactly zero."""
    draw = torch.Generator().manual_seed(seed)
    factor = torch.randint(-9, 10, (b, n, rank), generator=draw).double()
    return factor @ factor.mT


@pytest.mark.parametrize("n", [1, 2, 9, 40])
@pytest.mark.parametrize("first", [1e-6, 1.0, 1e4])
def test_shifts_are_hardly_above_the_least(n: int, first: float) -> None:
    matrix = random_symmetric(7, n, seed=n)
    shift = certain_shift(matrix, torch.full((7,), first, dtype=torch.float64))
    least = -torch.linalg.eigvalsh(matrix)[:, 0]
    # What was accepted is at most eight times too large, and 15 % of the excess may stay.
    excess = (8 * least.clamp_min(0)).clamp_min(first) - least
    assert bool((shift >= least - 1e-12).all())
    assert bool((shift <= least + 0.16 * excess + 1e-12).all())


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 30), size=st.integers(-40, 40))
def test_no_shift_is_below_an_exactly_known_eigenvalue(seed: int, n: int, size: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    rank = int(torch.randint(1, n, (), generator=draw))
    matrix = singular_integers(3, n, rank, seed) * 2.0**size
    lowered = torch.randint(0, 5, (3,), generator=draw).double() * 2.0**size
    matrix -= lowered[:, None, None] * torch.eye(n, dtype=torch.float64)
    first = torch.full((3,), 1e-3 * 2.0**size, dtype=torch.float64)
    shift = certain_shift(matrix, first)
    assert bool((shift >= lowered).all())
    assert bool((shift <= lowered * 1.8 + first).all())


def test_a_definite_matrix_may_be_shifted_down() -> None:
    matrix = torch.diag_embed(torch.tensor([[3.0, 2.0, 5.0], [1.0, 1.0, 1.0]]).double())
    shift = certain_shift(matrix, torch.ones(2, dtype=torch.float64))
    assert torch.allclose(shift, -torch.tensor([2.0, 1.0]).double(), rtol=1e-4)


def test_only_lower_triangles_are_read() -> None:
    matrix = random_symmetric(3, 6, seed=5)
    first = torch.full((3,), 0.5, dtype=torch.float64)
    shift = certain_shift(matrix, first)
    assert torch.equal(shift, certain_shift(matrix.tril(), first))
    assert torch.equal(first, torch.full_like(first, 0.5))


def test_matrices_that_are_not_finite_are_refused() -> None:
    matrix = random_symmetric(2, 4, seed=6)
    matrix[1, 2, 1] = torch.nan
    with pytest.raises(ValueError, match="finite numbers only"):
        certain_shift(matrix, torch.ones(2, dtype=torch.float64))
