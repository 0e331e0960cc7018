"""Positive semidefinite for certain: what has to be added to a diagonal, proven in floating point.

If a Cholesky factorisation of a floating-point matrix M of size n runs to its end, no eigenvalue of
M lies below -gamma / (1 - gamma) * trace(M) with gamma = (n + 1) u / (1 - (n + 1) u), u half an
epsilon, in whatever order its sums are taken. It costs a tenth of all eigenvalues.

Source: Rump 2006, BIT 46, 433 (verification of positive definiteness), after Demmel 1989, LAPACK
    Working Note 14.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_EPSILON = float(np.finfo(np.float64).eps)
_UNDERFLOW = 1e-290  # far more than underflow can do
_GROWTH = 8.0  # of a shift that was too small
_STEPS = 8  # of inverse iteration, which then errs by 0.01 % (most often) to 10 %


def certain_shift(matrix: Tensor, first: Tensor) -> Tensor:
    """(b,) shifts t, hardly above the least, that make M + t I positive semidefinite for certain.

    The first shift that a factorisation accepts gives an estimate of the least eigenvalue; another
    factorisation verifies the shift that this leads to, with more caution where it does not pass.

    Args:
        matrix: (b, n, n) float64 M, symmetric; only the lower triangles are read.
        first: (b,) positive shifts to begin with, which grow until they are large enough. The
            result exceeds the least shift by a few percent of what the accepted one does.

    Returns:
        Shifts; negative where M is positive definite as it is.

    Raises:
        ValueError: the matrices are not finite.
    """
    shift, pending = first.clone(), torch.ones_like(first, dtype=torch.bool)
    factor, accepted = _factorise(matrix, pending, shift)
    while bool((failed := ~accepted).any()):
        shift[failed] *= _GROWTH
        if not bool(shift.isfinite().all()):
            raise ValueError("the matrices hold NaN or infinity; give finite numbers only.")
        factor[failed], accepted[failed] = _factorise(matrix, failed, shift)
    least, doubt = _least_eigenvalue(factor)
    best = shift
    for kept_back in (2 * doubt + 1e-5 * least, 0.01 * least, 0.15 * least):
        closer = shift - least + kept_back + 2 * _rounding(matrix, shift)
        accepted = pending.clone()
        accepted[pending] = _factorise(matrix, pending, closer)[1]
        best = torch.where(accepted, torch.minimum(best, closer), best)
        pending = pending & ~accepted
        if not bool(pending.any()):
            break
    return best + _rounding(matrix, best)


def _factorise(matrix: Tensor, chosen: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Lower Cholesky factors of the chosen M + t I, and whether they exist."""
    shifted = matrix[chosen]
    shifted.diagonal(dim1=1, dim2=2).add_(shift[chosen].unsqueeze(1))
    factor, info = torch.linalg.cholesky_ex(shifted)
    return factor, info == 0


def _rounding(matrix: Tensor, shift: Tensor) -> Tensor:
    """(b,) how far below zero an eigenvalue of M + t I may lie where a factorisation exists.

    Twice the theorem's, which knows of no reciprocals that blocked substitutions may work with.
    """
    n = matrix.shape[1]
    gamma = (n + 1) * _EPSILON / 2
    trace = matrix.diagonal(dim1=1, dim2=2).sum(dim=1) + n * shift
    return 2 * gamma / (1 - 2 * gamma) * trace.abs() + _UNDERFLOW


def _least_eigenvalue(factor: Tensor) -> tuple[Tensor, Tensor]:
    """(b,) estimates of the least eigenvalue of L L', from above, and their uncertainty."""
    start = np.random.default_rng(0).standard_normal((factor.shape[1], 1))
    vectors = [torch.from_numpy(start).to(factor).expand(len(factor), -1, -1)]
    for _ in range(_STEPS):
        image = _solve(factor, vectors[-1])
        vectors.append(image / image.norm(dim=1, keepdim=True))
    basis = torch.linalg.qr(torch.cat(vectors, dim=2)).Q
    image = _solve(factor, basis)
    values, coordinates = torch.linalg.eigh(basis.mT @ image)
    value, along = values[:, -1], coordinates[:, :, -1:]
    residual = (image @ along - value[:, None, None] * (basis @ along)).norm(dim=(1, 2))
    return 1 / value, residual / value**2


def _solve(factor: Tensor, right: Tensor) -> Tensor:
    """(L L')^-1 times (b, n, k); unlike torch.cholesky_solve it copies no factor."""
    half_way = torch.linalg.solve_triangular(factor, right, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half_way, upper=True)
