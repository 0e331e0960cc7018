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

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from qubo_rounding.parallel import TILE_ROWS
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.qubo.definite import certain_shift
from qubo_rounding.qubo.mixing import RANK, pull_lengths
from qubo_rounding.qubo.spin_rows import SpinRows
from qubo_rounding.qubo.spins import SpinRow, anchor_levels
from qubo_rounding.row_batches import row_batches
from qubo_rounding.watch import watched

_EPSILON = float(np.finfo(np.float64).eps)
_SMALLEST = 1e-140  # keeps the shift of an all-zero matrix away from its eigenvalue
_UNDERFLOW = float(np.finfo(np.float64).tiny)
_AT_ONCE = 2**23  # d^2 times rows between two looks at the clock, some seconds on one core
_TOGETHER = 2**24  # numbers in the vectors of rows that are swept together
_NUMBERS = 2**21  # in a batch of matrices: 16 MiB, which malloc keeps; more comes with page faults
_FIRST, _FLOOR = 0.01, 1e-7  # first lift tried: so much of the bound, and of what float32 resolves
_LEAST = 1e-30  # first lift of a row whose energy is constant; any positive one will do
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
    values, vectors, blur = _eigenbasis(problem.gram)
    distance = 4 * problem.d * _EPSILON * values.abs().amax(dim=1) + _SMALLEST
    top = values[:, 0] - distance  # (g,) shifts up to this leave a definite matrix
    linear = torch.zeros_like(problem.target) if problem.linear is None else problem.linear
    tilt, tilt_size = linear @ vectors, linear.norm(dim=2, keepdim=True)
    best = torch.full_like(problem.offset, -torch.inf)
    for ends, low, high in _shift_ranges(problem, top, values):
        a, b = (problem.errors(levels) for levels in ends)
        middle, product = (a + b) @ vectors, (a * b).sum(dim=2)
        reach = (a.abs() + b.abs()).norm(dim=2)

        def bound(
            shift: Tensor, middle: Tensor = middle, product: Tensor = product, reach: Tensor = reach
        ) -> Tensor:
            """Value at shifts (g, r), lowered by its rounding errors."""
            t = shift.unsqueeze(2)
            doubt = blur * (tilt_size + t.abs() * reach.unsqueeze(2))
            pull = (tilt + t * middle).abs() + doubt
            pulled = ((pull**2 + _UNDERFLOW) / (4 * (values.unsqueeze(1) - t))).sum(dim=2)
            size = problem.offset.abs() + shift.abs() * reach**2 + pulled
            safe = problem.offset - shift * product - pulled - 8 * problem.d * _EPSILON * size
            return torch.where(shift <= top.unsqueeze(1), safe, -torch.inf)

        best = torch.maximum(best, _golden_maximum(bound, low, high))
    return best


def _eigenbasis(gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values (g, d) and vectors V with G - Q diag(values) Q' certainly positive semidefinite.

    Q is the orthogonal matrix nearest to V, and ``blur`` (g, 1, 1) bounds the error of V' q
    for Q' q, relative to the length of q. With R = G V - V diag(values) and w = |V' V - I|, both
    computed, the eigenvalues of G - Q diag(values) Q' are below (|R| + 2 w |values|) / (1 - w).
    """
    d = gram.shape[1]
    values, vectors = torch.linalg.eigh(gram)
    identity = torch.eye(d, dtype=gram.dtype, device=gram.device)
    skew = (vectors.mT @ vectors - identity).norm(dim=(1, 2)) + d**2 * _EPSILON
    residual = (gram @ vectors - vectors * values.unsqueeze(1)).norm(dim=(1, 2))
    residual = residual + (2 * d**1.5 + 8) * _EPSILON * gram.norm(dim=(1, 2))
    lost = 2 * (residual + 2 * skew * values.abs().amax(dim=1))
    return values - lost.unsqueeze(1), vectors, skew[:, None, None] + 2 * d * _EPSILON


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
        a = anchor_levels(problem.target, problem.low, problem.high).to(torch.int16)
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


def sdp_bound(problem: RoundingProblem, sweeps: int = 200) -> Tensor:
    """(g, r) lower bounds from the best diagonal shift.

    The dual of the semidefinite relaxation by low-rank coordinate ascent: unit vectors stand for
    the spins, each in turn is set against the sum that the others pull it with, and the lengths of
    these sums are the dual variables. Whatever accuracy they have reached, a uniform shift that
    certainly leaves a positive semidefinite matrix makes the bound valid. Where weights have more
    than two levels, inequalities loosen it by the square of their range, and the eigenvalue bound,
    which knows only one sign of shift at a time, is often the better: the greater one is returned.

    Args:
        problem: any rounding problem, on any device; the Gram matrix may be indefinite.
        sweeps: passes over all vectors, each 32 d^2 operations a row. After 200 the bound is
            within 0.4 % of the relaxation's optimum on most layers up to d = 1,280.

    Returns:
        Bounds; for rows that a time limit left out -inf, or the eigenvalue bound where weights
        have more than two levels.

    Raises:
        ValueError: sweeps is negative.

    Source: Wang, Chang, Kolter 2017, arXiv 1706.00476 (the mixing method); Jansson, Chaykin, Keil
        2007, SIAM J. Numer. Anal. 46, 180, for bounds from inexact dual solutions.
    """
    if sweeps < 0:
        raise ValueError(f"sweeps is {sweeps}; give 0 or more.")
    bounds = torch.full_like(problem.offset, -torch.inf)
    batches = list(row_batches(problem.g, problem.r, 1, _rows_at_once(problem)))
    for at in watched(batches, "bounds"):
        bounds[at] = _bounds(SpinRows.of(problem.part(*at)), sweeps)
    return bounds if problem.is_binary else torch.maximum(bounds, eigenvalue_bound(problem))


def sdp_bound_of(row: SpinRow, sweeps: int = 200) -> float:
    """The bound of `sdp_bound` for one row, output^2 per position."""
    if row.n == 0:
        return row.energy(np.empty(0))
    return float(_bounds(SpinRows.of_row(row), sweeps))


def _rows_at_once(problem: RoundingProblem) -> int:
    """Rows between two looks at the clock: few on a CPU, elsewhere all whose vectors fit."""
    if problem.device.type != "cpu":
        return max(1, _TOGETHER // (RANK * problem.d))
    return max(torch.get_num_threads(), min(TILE_ROWS, _AT_ONCE // problem.d**2))


def _bounds(rows: SpinRows, sweeps: int) -> Tensor:
    """(g, r) bounds of rows in spin form."""
    lengths = pull_lengths(rows, sweeps)
    bounds = torch.empty_like(rows.offset)
    g, r, n = lengths.shape
    for at in row_batches(g, r, n * n, _NUMBERS):
        bounds[at] = _certified(rows.part(*at), lengths[at])
    return bounds


def _certified(rows: SpinRows, lengths: Tensor) -> Tensor:
    """(g, r) bounds from what the dual variables are to leave of the diagonal, (g, r, d + 1)."""
    half, (g, r, n) = rows.half, lengths.shape
    own = pad(half**2 * rows.gram.diagonal(dim1=1, dim2=2).unsqueeze(1), (0, 1))
    largest = pad(rows.largest, (0, 1), value=1.0)
    free = pad(half > 0, (0, 1), value=True)
    # A negative dual variable counts largest times over.
    left = torch.where(largest > 1, torch.minimum(lengths, own), lengths)
    # Fixed weights stand apart and must not be those that decide.
    left = torch.where(free, left, left.amax(dim=2, keepdim=True))
    matrix = half.new_zeros(g, r, n, n)
    matrix[..., :-1, :-1] = half.unsqueeze(3) * rows.gram.unsqueeze(1) * half.unsqueeze(2)
    matrix[..., -1, :-1] = half * rows.slope  # the upper triangle is not read
    matrix.diagonal(dim1=2, dim2=3).copy_(left)

    def counted(lift: Tensor) -> Tensor:
        """Dual variables, as they count, when the diagonal is lifted by so much (g, r)."""
        dual = torch.where(free, own - left - lift.unsqueeze(2), 0.0)
        return dual * torch.where(dual < 0, largest, 1.0)

    bare = counted(torch.zeros_like(rows.offset))
    first = _FIRST * (bare.sum(dim=2) + rows.offset).abs() + _FLOOR * bare.abs().sum(dim=2)
    first = (first / n).clamp_min(_LEAST)
    terms = counted(certain_shift(matrix.flatten(0, 1), first.flatten()).view(g, r))
    size = ((bare.abs() + terms.abs()) * largest).sum(dim=2) + rows.offset.abs()
    rounding = rows.rounding + 4 * n * _EPSILON * size
    return rows.unit * (terms.sum(dim=2) + rows.offset - rounding)
