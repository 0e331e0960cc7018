"""Sweeps over unit vectors: the compiled kernel, the tensor form, and a naive twin agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference_bounds import sweep_naively
from torch import Tensor

from qubo_rounding.qubo.mixing import (
    _BEYOND,
    _BLOCK,
    RANK,
    pull_lengths,
    sweep_apart,
    sweep_together,
)
from qubo_rounding.qubo.spin_rows import SpinRows
from qubo_rounding.testing import random_problem


def random_arguments(g: int, r: int, d: int, seed: int = 0) -> tuple[Tensor, ...]:
    """gram, half, slope, held, origin, in float32; the second spin is fixed."""
    rows = SpinRows.of(random_problem(g, r, d, seed=seed, linear=True))
    draw = torch.Generator().manual_seed(seed)
    vectors = torch.randn(g, r, RANK, d + 1, generator=draw, dtype=torch.float64)
    vectors /= vectors.norm(dim=2, keepdim=True)
    gram = rows.gram - torch.diag_embed(rows.gram.diagonal(dim1=1, dim2=2))
    rows.half[..., 1] = 0
    held, origin = vectors[..., :-1] * rows.half.unsqueeze(2), vectors[..., -1]
    return tuple(t.float() for t in (gram, rows.half, rows.slope, held, origin))


@pytest.mark.parametrize("sweep", [sweep_apart, sweep_together])
@pytest.mark.parametrize("d", [6, 7])
def test_sweeps_are_those_of_the_naive_twin(sweep, d: int) -> None:
    arguments = random_arguments(2, 3, d)
    before = [t.clone() for t in arguments]
    held, origin = sweep(*arguments, 3)
    assert all(map(torch.equal, before, arguments))
    gram, *rest = (t.double().numpy() for t in arguments)
    for group, row in np.ndindex(2, 3):
        half, slope, start, first = (values[group, row] for values in rest)
        naive_held, naive_origin = sweep_naively(
            gram[group], half, slope, start, first, sweeps=3, beyond=_BEYOND
        )
        assert np.allclose(held[group, row], naive_held, atol=1e-5)
        assert np.allclose(origin[group, row], naive_origin, atol=1e-5)


def test_together_is_apart_across_blocks() -> None:
    arguments = random_arguments(1, 2, 2 * _BLOCK + 3)
    both = (sweep(*arguments, sweeps=2) for sweep in (sweep_apart, sweep_together))
    for apart, together in zip(*both, strict=True):
        assert apart.shape == together.shape
        assert torch.allclose(apart, together, atol=1e-3)


@pytest.mark.parametrize("sweep", [sweep_apart, sweep_together])
def test_a_row_that_nothing_pulls_stays_finite(sweep) -> None:
    gram, half, _, held, origin = random_arguments(1, 2, 5)
    moved, still = sweep(0 * gram, half, torch.zeros_like(half), held, origin, 4)
    assert bool(torch.isfinite(moved).all())
    assert torch.equal(still, origin)


def test_rows_have_the_same_lengths_in_any_company() -> None:
    problem = random_problem(2, 5, 21, seed=3, linear=True)
    together = pull_lengths(SpinRows.of(problem), 20)
    for group, row in np.ndindex(2, 5):
        at = slice(group, group + 1), slice(row, row + 1)
        alone = pull_lengths(SpinRows.of(problem.part(*at)), 20)
        assert torch.allclose(alone, together[at], rtol=1e-12)


def test_lengths_settle() -> None:
    rows = SpinRows.of(random_problem(1, 4, 30, seed=4))
    early, late, later = (pull_lengths(rows, sweeps) for sweeps in (5, 400, 500))
    assert float((late - later).abs().max()) < 1e-4 * float((early - later).abs().max())
