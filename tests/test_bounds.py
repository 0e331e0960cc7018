"""Lower bounds: below every optimum, and how they compare."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from company import torch_threads
from hard_rows import (
    HARD_ROWS,
    assert_below_in_exact_arithmetic,
    huge_errors_that_cancel,
    indefinite,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import qubo_rounding as qr
from qubo_rounding.layers import matrix_of
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.qubo import bounds, mixing
from qubo_rounding.qubo.bounds import eigenvalue_bound, sdp_bound, sdp_bound_of
from qubo_rounding.qubo.spins import spin_row
from qubo_rounding.solvers import Enumeration
from qubo_rounding.testing import random_problem
from qubo_rounding.watch import watching


def assert_below_optimum(problem: RoundingProblem) -> None:
    optimum = Enumeration().solve(problem).energy
    for bound in (eigenvalue_bound(problem), sdp_bound(problem), sdp_bound(problem, sweeps=3)):
        assert bound.shape == optimum.shape
        assert bool(torch.isfinite(bound).all())
        assert bool((bound <= optimum).all()), float((bound - optimum).max())


@pytest.mark.parametrize("name", HARD_ROWS)
def test_bounds_of_hundreds_of_rows_lie_below_the_optimum(name: str) -> None:
    assert_below_optimum(HARD_ROWS[name])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    d=st.integers(1, 8),
    scale=st.floats(-12, 12),
    sweeps=st.integers(0, 30),
    linear=st.booleans(),
)
def test_any_number_of_sweeps_gives_a_valid_bound(
    seed: int, d: int, scale: float, sweeps: int, linear: bool
) -> None:
    problem = random_problem(1, 2, d, seed=seed, linear=linear, rank=max(1, d - 2))
    problem = replace(problem, scale=problem.scale * 10**scale)
    optimum = Enumeration().solve(problem).energy
    assert bool((sdp_bound(problem, sweeps) <= optimum).all())
    assert bool((eigenvalue_bound(problem) <= optimum).all())


def test_bounds_on_real_rows(kit: Path, efficientnet: tuple) -> None:
    model, preprocessing = efficientnet
    images = list(qr.open_images(kit / "images" / "calibration", preprocessing, limit=4))
    folded, _ = qr.fold_batch_norm(model, images[0][0])
    layers = {name: x for name, x in qr.find_layers(folded).layers.items() if x.d <= 16}
    rows = 0
    for name, gram in qr.collect_grams(folded, images, layers=layers).items():
        weight = matrix_of(folded, layers[name])
        problem, _ = qr.layer_problem(layers[name], weight, gram, qr.LayerSettings())
        part = problem.part(slice(0, 100), slice(0, 100))
        rows += part.g * part.r
        assert_below_optimum(part)
    assert rows > 500


def test_the_sdp_bound_is_at_least_the_eigenvalue_bound() -> None:
    problem = random_problem(2, 10, 12, seed=3)
    sdp, eigenvalue = sdp_bound(problem, sweeps=1000), eigenvalue_bound(problem)
    assert bool((sdp >= eigenvalue - 1e-6 * eigenvalue.abs()).all())
    assert float((sdp - eigenvalue).min()) > 0  # and really better on such rows


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_sdp_bound_is_at_least_the_eigenvalue_bound_of_wide_weights(bits: int) -> None:
    problem = random_problem(2, 5, 12, seed=3, bits=bits, free=True)
    bound = sdp_bound(problem)
    assert bool((bound >= eigenvalue_bound(problem)).all())
    assert bool((bound > 0).all())


def test_the_sdp_bound_reaches_the_relaxation_s_optimum() -> None:
    """Weak duality from the other side: the vectors' own objective is at least the bound."""
    row = spin_row(random_problem(1, 1, 10, seed=5), 0, 0)
    n = row.n
    matrix = np.block([[row.matrix, row.slope[:, None]], [row.slope[None], np.zeros((1, 1))]])
    draw = np.random.default_rng(1)
    vectors = draw.standard_normal((n + 1, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for _ in range(3000):
        for i in range(n + 1):
            pull = matrix[i] @ vectors - matrix[i, i] * vectors[i]
            vectors[i] = -pull / np.linalg.norm(pull)
    reached = float((matrix * (vectors @ vectors.T)).sum() + row.offset) * row.unit
    assert sdp_bound_of(row, sweeps=3000) == pytest.approx(reached, rel=1e-6)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("above", [0, 1e-15, 0.3])
def test_a_gram_matrix_of_zeros_has_bounds_that_do_not_underflow(fixed: bool, above: float) -> None:
    problem = random_problem(1, 50, 3, seed=10)
    problem = replace(problem, gram=0 * problem.gram, target=problem.low.double() + above)
    problem = replace(problem, high=problem.low) if fixed else problem
    for bound in (eigenvalue_bound(problem), sdp_bound(problem)):
        assert bool((bound <= 0).all())
        assert bool((bound > -1e-25).all())


def test_a_diagonal_gram_s_bound_is_its_optimum() -> None:
    problem = random_problem(1, 5, 8, seed=9)
    problem = replace(problem, gram=torch.diag_embed(problem.gram.diagonal(dim1=1, dim2=2)))
    optimum = problem.energy(problem.nearest())
    assert torch.allclose(sdp_bound(problem), optimum, rtol=1e-6)


def test_more_sweeps_do_not_loosen_the_bound_much() -> None:
    problem = random_problem(1, 6, 40, seed=1)
    few, many = sdp_bound(problem, sweeps=20), sdp_bound(problem, sweeps=400)
    assert bool((many >= few - 1e-3 * few.abs()).all())
    assert float(many.sum()) > float(few.sum())


def test_rows_give_the_same_bounds_alone() -> None:
    problem = random_problem(2, 3, 9, seed=2)
    for bound in (sdp_bound, eigenvalue_bound):
        together = bound(problem)
        for group, row in product(range(2), range(3)):
            one = problem.part(slice(group, group + 1), slice(row, row + 1))
            assert float(bound(one)) == pytest.approx(float(together[group, row]), rel=1e-9)


def test_an_indefinite_matrix_has_bounds() -> None:
    assert_below_optimum(indefinite(seed=3))
    assert_below_optimum(indefinite(seed=3, free=True))


@pytest.mark.parametrize("name", HARD_ROWS)
def test_bounds_of_rows_swept_together_lie_below_the_optimum(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an accelerator runs, here on the CPU."""
    problem = HARD_ROWS[name].part(slice(0, 60), slice(0, 20))
    apart = sdp_bound(problem, sweeps=30)
    monkeypatch.setattr(mixing, "sweep_apart", mixing.sweep_together)
    together = sdp_bound(problem, sweeps=30)
    assert bool((together <= Enumeration().solve(problem).energy).all())
    # The same steps in float32, summed in another order.
    room = 1e-3 * (apart.abs() + problem.d * problem.unit[..., 0])
    assert bool(((together - apart).abs() <= room).all())


def test_threads_change_no_more_than_the_last_digits_of_bounds() -> None:
    problem = random_problem(2, 9, 40, seed=4)
    for bound in (sdp_bound, eigenvalue_bound):
        with torch_threads(1):
            expected = bound(problem)
        for threads in (2, 5):
            with torch_threads(threads):
                assert torch.allclose(bound(problem), expected, rtol=1e-10)


def test_small_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(3, 11, 13, seed=4, linear=True)
    whole = sdp_bound(problem)
    monkeypatch.setattr(bounds, "_AT_ONCE", 4 * 13**2)
    monkeypatch.setattr(bounds, "_NUMBERS", 3 * 14**2)
    assert torch.allclose(sdp_bound(problem), whole, rtol=1e-9)


def test_a_row_s_own_bound_is_its_bound_in_the_layer() -> None:
    problem = random_problem(2, 4, 20, seed=6, linear=True)
    bound = sdp_bound(problem, sweeps=1000)
    for group, row in product(range(2), range(4)):
        own = sdp_bound_of(spin_row(problem, group, row), sweeps=1000)
        assert own == pytest.approx(float(bound[group, row]), rel=1e-4)


def test_a_fixed_row_s_bound_is_its_energy() -> None:
    problem = random_problem(2, 3, 6, seed=8, linear=True)
    problem = replace(problem, high=problem.low)
    assert torch.allclose(sdp_bound(problem), problem.energy(problem.low), rtol=1e-7)


def best_bound(problem: RoundingProblem) -> torch.Tensor:
    return torch.maximum(sdp_bound(problem), eigenvalue_bound(problem))


@pytest.mark.parametrize("seed", range(6))
def test_bounds_hold_where_the_gram_matrix_is_hardly_symmetric(seed: int) -> None:
    """A diagonal matrix has tight bounds, and the two triangles of this one differ."""
    draw = torch.Generator().manual_seed(seed)
    entries = torch.rand(1, 3, generator=draw, dtype=torch.float64) + 0.5
    upper = torch.randn(1, 3, 3, generator=draw, dtype=torch.float64).triu(1).clamp(-1, 1)
    gram = torch.diag_embed(entries) + 4e-10 * upper
    problem = replace(random_problem(1, 20, 3, seed=seed), gram=gram)
    assert_below_in_exact_arithmetic(best_bound(problem), problem, gram)


@pytest.mark.parametrize("seed", range(6))
def test_bounds_hold_where_huge_errors_cancel(seed: int) -> None:
    problem = huge_errors_that_cancel(seed)
    assert_below_in_exact_arithmetic(best_bound(problem), problem)
    own = [sdp_bound_of(spin_row(problem, 0, row)) for row in range(problem.r)]
    assert_below_in_exact_arithmetic(torch.tensor([own], dtype=torch.float64), problem)


def test_a_time_limit_leaves_rows_without_a_bound() -> None:
    problem = random_problem(1, 50, 30, seed=1)
    with watching(time_limit=1e-9):
        bound = sdp_bound(problem)
    assert bool(torch.isfinite(bound[0, 0]))
    assert bool(torch.isneginf(bound[0, -1]))


def test_a_negative_number_of_sweeps_is_refused() -> None:
    with pytest.raises(ValueError, match="give 0 or more"):
        sdp_bound(random_problem(), sweeps=-1)
