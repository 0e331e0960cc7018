"""Certified lower bounds on the energy of a row, whatever its levels.

A weight's error takes one of two values a_j, b_j, so (e_j - a_j)(e_j - b_j) = 0: any multiple of it
may be taken from the energy. With multipliers y_j the matrix becomes G - Y, and where that is
positive semidefinite the minimum over *real* e bounds the energy from below. A uniform y gives the
eigenvalue bound, the best y the bound of the semidefinite relaxation of max-cut type. A weight with
more levels satisfies inequalities: the product is never negative for two neighbouring levels, which
suits y_j > 0, and never positive for the two ends of its range, which suits y_j < 0.

Bounds are float64 and hold for the computed numbers, not only in exact arithmetic: every one is
lowered by what rounding could have added.

Source: Nagel et al. 2020, arXiv 2004.10568, eq 13 and 20, for the problems; Poljak, Rendl,
    Wolkowicz 1995, J. Global Optim. 7, 51, for bounds by diagonal shifts.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from torch import Tensor

from qubo_rounding.parallel import for_each_row
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.qubo.spins import SpinRow, spin_row
from qubo_rounding.watch import alarm

_EPSILON = float(np.finfo(np.float64).eps)
_SMALLEST = 1e-290  # keeps the shift of an all-zero matrix away from its eigenvalue
_SEARCH_STEPS = 60  # golden-section steps: 0.618^60 of the first interval is below rounding


def eigenvalue_bound(problem: RoundingProblem) -> Tensor:
    """(g, r) lower bounds from the best uniform diagonal shift; all rows share one decomposition.

    The maximum over t below G's smallest eigenvalue of
    ``min over real e of e' (G - t I) e + (l + t (a + b))' e + c - t a'b``;
    in the eigenbasis of G one value costs d operations a row.

    Args:
        problem: any rounding problem; the Gram matrix may be indefinite.

    Source: Hammer, Rubin 1970 (convexification by the smallest eigenvalue).
    """
    values, vectors = torch.linalg.eigh(problem.gram)
    noise = (problem.d * _EPSILON * values.abs().amax(dim=1)).clamp_min(_SMALLEST)
    top = values[:, 0] - 4 * noise  # (g,) shifts below this leave a definite matrix
    linear = torch.zeros_like(problem.target) if problem.linear is None else problem.linear
    tilt = linear @ vectors
    best = torch.full_like(problem.offset, -torch.inf)
    for ends, low, high in _shift_ranges(problem, top, values):
        a, b = (problem.errors(levels) for levels in ends)
        middle, product = (a + b) @ vectors, (a * b).sum(dim=2)

        def bound(shift: Tensor, middle: Tensor = middle, product: Tensor = product) -> Tensor:
            """Value at shifts (g, r), lowered by its rounding errors."""
            t = shift.unsqueeze(2)
            pulled = (tilt + t * middle) ** 2 / (4 * (values.unsqueeze(1) - t))
            total = problem.offset - shift * product - pulled.sum(dim=2)
            size = problem.offset.abs() + (shift * product).abs() + pulled.sum(dim=2)
            safe = total - 8 * problem.d * _EPSILON * size
            return torch.where(shift <= top.unsqueeze(1), safe, -torch.inf)

        best = torch.maximum(best, _golden_maximum(bound, low, high))
    return best


def _shift_ranges(
    problem: RoundingProblem, top: Tensor, values: Tensor
) -> list[tuple[tuple[Tensor, Tensor], Tensor, Tensor]]:
    """(levels a and b of the product, least shift, greatest shift) for either sign of the shift."""
    span = values.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    rows = torch.zeros_like(problem.offset)
    below = rows + top.clamp_max(0).unsqueeze(1)
    # A strong linear term wants more than the spectrum does.
    if problem.linear is not None:
        span = span + (problem.linear.abs() / problem.scale).amax(dim=2)
    ranges = [((problem.low, problem.high), below - 4 * span, below)]
    if bool((top > 0).any()):
        a = torch.minimum(torch.maximum(problem.target.floor(), problem.low), problem.high - 1)
        a = torch.maximum(a, problem.low).to(torch.int16)
        b = torch.minimum(a + 1, problem.high)
        ranges.append(((a, b), rows, rows + top.clamp_min(0).unsqueeze(1)))
    return ranges


def _golden_maximum(function, low: Tensor, high: Tensor) -> Tensor:  # pyright: ignore
    """The greatest value seen while closing in on the maximum of a concave function."""
    ratio = (math.sqrt(5) - 1) / 2
    best = torch.maximum(function(low), function(high))
    inner, outer = high - ratio * (high - low), low + ratio * (high - low)
    at_inner, at_outer = function(inner), function(outer)
    for _ in range(_SEARCH_STEPS):
        best = torch.maximum(best, torch.maximum(at_inner, at_outer))
        left = at_inner > at_outer
        low, high = torch.where(left, low, inner), torch.where(left, outer, high)
        inner, outer = high - ratio * (high - low), low + ratio * (high - low)
        at_inner, at_outer = function(inner), function(outer)
    return best


def sdp_bound(problem: RoundingProblem, sweeps: int = 100) -> Tensor:
    """(g, r) lower bounds from the best diagonal shift, row by row.

    The dual of the semidefinite relaxation by low-rank coordinate ascent: unit vectors v_0 (for the
    linear terms) and v_1 ... v_n stand for the spins, each in turn is set against the sum that the
    others pull it with, and the lengths of these sums are the dual variables. Whatever accuracy
    they have reached, the smallest eigenvalue of what they leave makes the bound valid.

    Args:
        problem: any rounding problem; the Gram matrix may be indefinite.
        sweeps: passes over all vectors, each n^2 sqrt(2 n) multiplications a row. At 100 the bound
            is within a percent of the relaxation's optimum on layers up to d = 320.

    Returns:
        Bounds; -inf for rows that a time limit left out.

    Raises:
        ValueError: sweeps is negative.

    Source: Wang, Chang, Kolter 2017, arXiv 1706.00476 (the mixing method); Jansson, Chaykin, Keil
        2007, SIAM J. Numer. Anal. 46, 180, for bounds from inexact dual solutions.
    """
    if sweeps < 0:
        raise ValueError(f"sweeps is {sweeps}; give 0 or more.")
    bounds = torch.full_like(problem.offset, -torch.inf)
    late = alarm()

    def bound_row(group: int, row: int) -> None:
        if not late() or (group, row) == (0, 0):
            bounds[group, row] = sdp_bound_of(spin_row(problem, group, row), sweeps)

    for_each_row(problem.g, problem.r, bound_row, "bounds")
    return bounds


def sdp_bound_of(row: SpinRow, sweeps: int = 100) -> float:
    """The bound of `sdp_bound` for one row, output^2 per position."""
    n = row.n
    if n == 0:
        return row.energy(np.empty(0))
    matrix = np.empty((n + 1, n + 1))
    matrix[:n, :n], matrix[n, :n], matrix[:n, n], matrix[n, n] = row.matrix, row.slope, row.slope, 0
    vectors = np.random.default_rng(0).standard_normal((n + 1, math.isqrt(2 * n) + 2))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    _ascend(matrix, vectors, sweeps)
    pulled = matrix @ vectors - np.diagonal(matrix)[:, None] * vectors
    shift = np.diagonal(matrix) - np.linalg.norm(pulled, axis=1)
    wide = np.append(row.wide, False)
    shift[wide] = np.maximum(shift[wide], 0)
    left = matrix - np.diag(shift)
    # LAPACK's eigenvalues are those of a matrix this far from the given one.
    noise = 4 * (n + 1) * _EPSILON * float(np.linalg.norm(left))
    shift -= max(0.0, noise - float(np.linalg.eigvalsh(left)[0]))
    largest = np.maximum(np.append(row.low, 1) ** 2, np.append(row.high, 1) ** 2)
    counted = shift * np.where(shift < 0, largest, 1.0)
    rounding = 4 * (n + 1) * _EPSILON * (np.abs(counted).sum() + abs(row.offset))
    return row.unit * float(counted.sum() + row.offset - rounding)


@numba.njit(cache=True, nogil=True, fastmath=True)
def _ascend(matrix, vectors, sweeps):  # pyright: ignore
    """Coordinate ascent: each unit vector (rows of (n, k)) against the pull of all others."""
    n, k = vectors.shape
    pull = np.empty(k)
    for _ in range(sweeps):
        for i in range(n):
            pull[:] = 0.0
            for j in range(n):
                weight, other = matrix[i, j], vectors[j]
                for m in range(k):
                    pull[m] += weight * other[m]
            length = 0.0
            for m in range(k):
                pull[m] -= matrix[i, i] * vectors[i, m]
                length += pull[m] * pull[m]
            if length > 0.0:
                length = -1 / np.sqrt(length)
                for m in range(k):
                    vectors[i, m] = length * pull[m]
