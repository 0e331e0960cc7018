"""Cholesky factor and inverse of small dense matrices, compiled and free of the interpreter lock.

For matrices of a few hundred columns inside numba kernels that run on several threads; the same
bits everywhere, which a threaded BLAS does not promise.
"""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True, nogil=True, fastmath=True)
def factorise(matrix: np.ndarray, lower: np.ndarray) -> bool:
    """Write the Cholesky factor of `matrix` into `lower`; False if it is not positive definite.

    Both are (n, n); of `matrix` only the lower triangle is read, of `lower` only that is written.
    """
    n = len(matrix)
    for i in range(n):
        own = lower[i]
        for j in range(i + 1):
            other = lower[j]
            rest = matrix[i, j]
            for k in range(j):
                rest -= own[k] * other[k]
            if j < i:
                own[j] = rest / other[j]
            elif rest > 0:
                own[i] = np.sqrt(rest)
            else:
                return False
    return True


@numba.njit(cache=True, nogil=True, fastmath=True)
def invert(lower: np.ndarray, scratch: np.ndarray, inverse: np.ndarray) -> None:
    """Write the inverse of L L' into `inverse`, given L; all (n, n), `scratch` is overwritten."""
    n = len(lower)
    scratch[:] = 0.0
    inverse[:] = 0.0
    for i in range(n):  # rows of L^-1 by forward substitution
        row = scratch[i]
        row[i] = 1.0
        for k in range(i):
            factor, done = lower[i, k], scratch[k]
            for j in range(k + 1):
                row[j] -= factor * done[j]
        pivot = 1.0 / lower[i, i]
        for j in range(i + 1):
            row[j] *= pivot
        for a in range(i + 1):  # L^-T L^-1 grows by one outer product
            factor, out = row[a], inverse[a]
            for j in range(a + 1):
                out[j] += factor * row[j]
    for a in range(n):
        for j in range(a):
            inverse[j, a] = inverse[a, j]


@numba.njit(cache=True, nogil=True, fastmath=True)
def solve_factored(lower: np.ndarray, vector: np.ndarray) -> None:
    """Replace `vector` (n,) by (L L')^-1 times it."""
    n = len(lower)
    for i in range(n):
        rest = vector[i]
        for k in range(i):
            rest -= lower[i, k] * vector[k]
        vector[i] = rest / lower[i, i]
    for i in range(n - 1, -1, -1):
        vector[i] /= lower[i, i]
        for k in range(i):
            vector[k] -= lower[i, k] * vector[i]
