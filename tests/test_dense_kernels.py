"""The compiled dense kernels against numpy's."""

from __future__ import annotations

import numpy as np
import pytest

from qubo_rounding.solvers.dense_kernels import factorise, invert, solve_factored


def definite(n: int, seed: int) -> np.ndarray:
    root = np.random.default_rng(seed).standard_normal((n, n + 2))
    return root @ root.T


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_factor_inverse_and_solution_are_numpy_s(n: int) -> None:
    matrix = definite(n, seed=n)
    lower, scratch, inverse = np.empty((3, n, n))
    assert factorise(matrix, lower)
    assert np.tril(lower) == pytest.approx(np.linalg.cholesky(matrix))
    invert(lower, scratch, inverse)
    assert inverse == pytest.approx(np.linalg.inv(matrix), rel=1e-6)
    wanted = np.random.default_rng(0).standard_normal(n)
    vector = matrix @ wanted
    solve_factored(lower, vector)
    assert vector == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("smallest", [-1e-3, 0.0])
def test_what_is_not_positive_definite_has_no_factor(smallest: float) -> None:
    values = np.array([3.0, 2.0, 1.0, smallest])
    vectors = np.linalg.qr(definite(4, seed=1))[0]
    matrix = vectors @ np.diag(values) @ vectors.T - 1e-12 * np.eye(4)
    assert not factorise(matrix, np.empty((4, 4)))


def test_only_the_lower_triangle_is_read() -> None:
    matrix = definite(5, seed=3)
    full, half = np.empty((2, 5, 5))
    assert factorise(matrix, full)
    assert factorise(np.tril(matrix), half)
    assert np.array_equal(np.tril(full), np.tril(half))
