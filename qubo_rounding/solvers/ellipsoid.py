"""The diagonal shift that makes a row's search ellipsoid smallest, and the tables of that search.

On spins s = -1, +1 the term y_j s_j^2 is constant, so any diagonal y may leave the matrix:
s' A s = s' (A - Y) s + sum(y). Levels no worse than an incumbent of energy U lie in the ellipsoid
{(s - x)' (A - Y) (s - x) <= U - base(y)} around the relaxed minimum x, whose value base(y) is a
lower bound. The shift of the greatest bound is that of the semidefinite relaxation; it makes A - Y
singular and the ellipsoid unbounded. A depth-first search visits about as many nodes as the
ellipsoid has volume, so we minimise

    log volume = n/2 log(U - base(y)) - 1/2 log det(A - Y) + constant,

by Newton's method. Where base is linearised this is a barrier problem with weight
mu = (U - base) / n, so the path that an interior-point method walks, left at the best point.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np

from qubo_rounding.solvers.dense_kernels import factorise, invert, solve_factored

_NEWTON_STEPS = 100
_OPERATIONS = 2**27  # n^3 times steps between two looks at the clock: some tenths of a second
_CENTRED = 0.02  # Newton decrement^2, relative to mu, at which the volume no longer falls visibly
_BARRIER = 0.1  # its barrier weight: the fitted diagonal keeps about a tenth below its optimum
_LEAST = 1e-12  # mu, in a row's units: along a singular direction A - Y keeps about as much of A


@numba.njit(cache=True, nogil=True, fastmath=True)
def _shifted(matrix, shift, out):  # pyright: ignore
    """Out = matrix - diag(shift), for the leading block that `shift` covers."""
    n = len(shift)
    for i in range(n):
        for j in range(n):
            out[i, j] = matrix[i, j]
        out[i, i] -= shift[i]


@numba.njit(cache=True, nogil=True, fastmath=True)
def _evaluate(matrix, slope, shift, charge, work, lower, centre):  # pyright: ignore
    """(feasible, base, log det) of a shift; centre becomes the relaxed minimum."""
    n = len(shift)
    _shifted(matrix, shift, work)
    if not factorise(work, lower):
        return False, 0.0, 0.0
    for i in range(n):
        centre[i] = -slope[i]
    solve_factored(lower, centre)
    base, log_det = 0.0, 0.0
    for i in range(n):
        base += shift[i] * charge[i] + slope[i] * centre[i]
        log_det += 2 * np.log(lower[i, i])
    return True, base, log_det


@numba.njit(cache=True, nogil=True, fastmath=True)
def _newton_direction(inverse, centre, mu, shift, fitted, held, work, lower, direction):  # pyright: ignore
    """Newton's direction for base + mu log det; returns the decrement^2."""
    n = len(shift)
    for i in range(n):
        for j in range(i + 1):
            entry = inverse[i, j]
            couples = fitted[i] and fitted[j]
            work[i, j] = entry * (2 * centre[i] * centre[j] + mu * entry) if couples else 0.0
        direction[i] = 1 - centre[i] * centre[i] - mu * inverse[i, i]
        if held[i]:
            direction[i] += mu / shift[i]
            work[i, i] += mu / shift[i] ** 2
        if not fitted[i]:
            direction[i], work[i, i] = 0.0, 1.0
    gradient = direction.copy()
    if not factorise(work, lower):  # rounding noise: nothing left to gain
        return 0.0
    solve_factored(lower, direction)
    decrement = 0.0
    for i in range(n):
        decrement += gradient[i] * direction[i]
    return decrement


def fit_shift(
    matrix: np.ndarray,
    slope: np.ndarray,
    ceiling: float,
    weight: float,
    shift: np.ndarray,
    charge: np.ndarray,
    fitted: np.ndarray,
    held: np.ndarray,
    halted: Callable[[], bool],
) -> float:
    """Improve a feasible shift in place until the ellipsoid's volume no longer falls.

    Args:
        matrix, slope: (n, n) A and (n,) b.
        ceiling: energy U of the incumbent, less the row's offset.
        weight: 0 takes mu = (U - base) / n, the volume's; a positive one takes mu = weight *
            base / n, for the diagonal that only has to be large.
        shift: (n,) feasible: A - Y is positive definite.
        charge: (n,) what shift_j counts for in the bound: 1, or high^2 for a wide negative one.
        fitted: (n,) bool, which entries may move.
        held: (n,) bool, which of those entries stay positive; only a positive shift bounds levels
            beyond the middle two.
        halted: asked now and then; True ends with what is reached, which is feasible as well.

    Returns:
        base(y), the lower bound of the shift, less the row's offset.
    """
    steps = max(1, _OPERATIONS // len(shift) ** 3)
    taken, going, base = 0, True, -np.inf
    while going and taken < _NEWTON_STEPS:
        going, base = _newton_steps(
            matrix, slope, ceiling, weight, shift, charge, fitted, held, steps
        )
        taken += steps
        going = going and not halted()
    return base


@numba.njit(cache=True, nogil=True, fastmath=True)
def _newton_steps(matrix, slope, ceiling, weight, shift, charge, fitted, held, steps):  # pyright: ignore
    """(whether the shift got better to the last of so many steps, base)."""
    n = len(shift)
    work, lower, inverse = np.empty((n, n)), np.empty((n, n)), np.empty((n, n))
    centre, direction, trial, moved = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    _, base, log_det = _evaluate(matrix, slope, shift, charge, work, lower, centre)
    least = 0.0 if weight > 0 else _LEAST
    for _ in range(steps):
        mu = weight * base / n if weight > 0 else (ceiling - base) / n
        if mu <= least:  # the bound has reached the incumbent, and A - Y would be singular
            return False, base
        invert(lower, work, inverse)
        decrement = _newton_direction(
            inverse, centre, mu, shift, fitted, held, work, lower, direction
        )
        if decrement <= _CENTRED * mu:
            return False, base
        value = base + mu * log_det + mu * _log_sum(shift, held)
        step, improved = 1.0, False
        while step > 1e-6:
            positive = True
            for i in range(n):
                trial[i] = shift[i] + step * direction[i]
                positive = positive and (trial[i] > 0 or not held[i])
            if positive:
                feasible, base_, log_det_ = _evaluate(
                    matrix, slope, trial, charge, work, lower, moved
                )
                if feasible:
                    reached = base_ + mu * log_det_ + mu * _log_sum(trial, held)
                    if reached >= value + 0.1 * step * decrement:
                        improved = True
                        break
            step *= 0.5
        if not improved:
            return False, base
        base, log_det = base_, log_det_
        shift[:] = trial
        centre[:] = moved
    return True, base


@numba.njit(cache=True, nogil=True, fastmath=True)
def _log_sum(shift, held):  # pyright: ignore
    total = 0.0
    for i in range(len(shift)):
        if held[i]:
            total += np.log(shift[i])
    return total


@numba.njit(cache=True, nogil=True, fastmath=True)
def first_shift(matrix, slope, wide):  # pyright: ignore
    """A feasible shift to start from, and which of its entries may be fitted.

    Negative and uniform, as large as it takes; but a little positive for wide weights. Where the
    matrix is not definite enough for that, wide weights keep a small negative shift: the smaller,
    the tighter the bounds, but along a singular direction that a slope pulls at, the relaxed
    minimum lies slope / shift away, and its energy's rounding errors grow alike.
    """
    n = len(slope)
    work, lower, shift = np.empty((n, n)), np.empty((n, n)), np.empty(n)
    curved, pulled = 0.0, 0.0
    for i in range(n):
        curved += abs(matrix[i, i]) / n
        pulled += abs(slope[i]) / n
    mean = curved + 0.01 * pulled
    for size in (1e-3, 1e-6):
        for i in range(n):
            shift[i] = size * mean if wide[i] else -1e-2 * mean
        _shifted(matrix, shift, work)
        if factorise(work, lower):
            return shift, np.ones(n, np.bool_)
    size, small = 1e-2 * mean + 1e-300, 1e-4 * (curved + pulled) + 1e-300
    while True:
        for i in range(n):
            shift[i] = -small if wide[i] else -size
        _shifted(matrix, shift, work)
        if factorise(work, lower):
            return shift, ~wide
        size, small = 4 * size, 4 * small  # a matrix may be singular among the wide weights alone


def search_tables(
    matrix: np.ndarray,
    slope: np.ndarray,
    shift: np.ndarray,
    fits: int,
    halted: Callable[[], bool],
) -> tuple[np.ndarray, ...]:
    """What a depth-first search on the shifted matrix needs, its columns put in order.

    At `fits` depths the floors below are fitted anew, which costs time and saves nodes; once
    `halted` they no longer are.

    Position n - 1 is decided first: always the spin whose deviation costs most when all others
    still adapt, 1 / (M^-1)_jj. With u spins undecided, positions 0 to u - 1:

    Returns:
        order: (n,) int64, the spin at each position.
        centre: (n,) the relaxed minimum, by position.
        price: (n + 1, n); price[u, j] is the least cost of moving spin j by 1, all others of
            the first u adapting.
        pull: (n + 1, n); where the others go when spin u - 1 moves by 1.
        floor: (n + 1, n), positive; (s - x)' M (s - x) >= sum_j floor[u, j] (s_j - x_j)^2.
    """
    order, centre, price, pull = _order_tables(matrix, slope, shift)
    return order, centre, price, pull, _floors(matrix, shift, order, fits, halted)


@numba.njit(cache=True, nogil=True, fastmath=True)
def _order_tables(matrix, slope, shift):  # pyright: ignore
    """The order, the centre, prices and pulls of `search_tables`."""
    n = len(slope)
    work, lower, inverse = np.empty((n, n)), np.empty((n, n)), np.empty((n, n))
    centre = np.empty(n)
    charge = np.ones(n)
    _evaluate(matrix, slope, shift, charge, work, lower, centre)
    invert(lower, work, inverse)
    order = np.arange(n)
    price, pull = np.zeros((n + 1, n)), np.zeros((n + 1, n))
    for u in range(n, 0, -1):
        _bring_last(u, order, centre, inverse, price, pull)
        last = u - 1
        for j in range(u):
            price[u, j] = 1 / inverse[j, j]
        pivot = 1 / inverse[last, last]
        for j in range(last):
            pull[u, j] = inverse[j, last] * pivot
        for i in range(last):  # the inverse of what remains when `last` is decided
            factor = pull[u, i]
            for j in range(last):
                inverse[i, j] -= factor * inverse[last, j]
    return order, centre, price, pull


@numba.njit(cache=True, nogil=True, fastmath=True)
def _bring_last(u, order, centre, inverse, price, pull):  # pyright: ignore
    """Swap the spin of least variance among the first u to position u - 1, everywhere."""
    best, last = 0, u - 1
    for j in range(1, u):
        if inverse[j, j] < inverse[best, best]:
            best = j
    if best == last:
        return
    order[best], order[last] = order[last], order[best]
    centre[best], centre[last] = centre[last], centre[best]
    for j in range(u):
        inverse[best, j], inverse[last, j] = inverse[last, j], inverse[best, j]
    for j in range(u):
        inverse[j, best], inverse[j, last] = inverse[j, last], inverse[j, best]
    for v in range(u + 1, len(price)):
        price[v, best], price[v, last] = price[v, last], price[v, best]
        pull[v, best], pull[v, last] = pull[v, last], pull[v, best]


def _floors(
    matrix: np.ndarray,
    shift: np.ndarray,
    order: np.ndarray,
    fits: int,
    halted: Callable[[], bool],
) -> np.ndarray:
    """(n + 1, n) the largest diagonals that fit below the leading blocks of the shifted matrix."""
    n = len(order)
    ordered, diagonal = _smallest_floor(matrix, shift, order)
    floor = np.zeros((n + 1, n))
    flat, ones, every = np.zeros(n), np.ones(n), np.ones(n, np.bool_)
    stride = max(1, n // fits)
    for u in range(n, 0, -1):
        if (n - u) % stride == 0 and not halted():
            block = np.ascontiguousarray(ordered[:u, :u])
            own = (diagonal[:u], ones[:u], every[:u], every[:u])
            # Held positive: a negative one would need the farthest level, not the nearest.
            fit_shift(block, flat[:u], 0.0, _BARRIER, *own, halted)
        floor[u, :u] = diagonal[:u] * (1 - 1e-9)
    return floor


@numba.njit(cache=True, nogil=True, fastmath=True)
def _smallest_floor(matrix, shift, order):  # pyright: ignore
    """The shifted matrix in order, and a uniform diagonal that fits below it."""
    n = len(order)
    ordered = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            ordered[i, j] = matrix[order[i], order[j]]
        ordered[i, i] -= shift[order[i]]
    lower, work, inverse = np.empty((n, n)), np.empty((n, n)), np.empty((n, n))
    factorise(ordered, lower)
    invert(lower, work, inverse)
    norm = 0.0  # of the inverse: at least its largest eigenvalue
    for i in range(n):
        for j in range(n):
            norm += inverse[i, j] ** 2
    return ordered, np.full(n, 0.5 / np.sqrt(norm))
