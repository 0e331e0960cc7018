"""All assignments of a row, one step apart: the kernels of enumeration."""

from __future__ import annotations

import numba
import numpy as np

_STEPS = 256  # updates of an energy before it is summed anew
# Their rounding errors, as a share of all terms: each update's adds to all moves that follow.
_DRIFT = 0.25 * _STEPS**2 * float(np.finfo(np.float64).eps)


@numba.njit(cache=True, nogil=True)
def enumerate_rows(gram, slope, sizes, scale, ends, rounding, best, gain):  # pyright: ignore
    """Put the best assignment of each row in the place of `best`, where it starts from.

    Args:
        gram: (d, d).
        slope: (r, d) half the gradient at `best`.
        sizes: (r, d) what the absolute values of its terms add up to.
        scale: (r, d).
        ends: smallest and largest levels, (r, d) each.
        rounding: errors of an energy, relative to the absolute values of its terms.
        best: (r, d).
        gain: (r,) becomes a lower bound on what any assignment has more energy than `best` had.
    """
    low, high = ends
    rows, d = low.shape
    free = np.empty(d, np.int64)
    for i in range(rows):
        n = 0
        for c in range(d):
            if high[i, c] > low[i, c]:
                free[n] = c
                n += 1
        matrix, tilt, gross = np.empty((n, n)), np.empty(n), np.empty(n)
        bottom, top = np.empty(n), np.empty(n)
        for k in range(n):
            c = free[k]
            tilt[k], gross[k] = scale[i, c] * slope[i, c], scale[i, c] * sizes[i, c]
            bottom[k], top[k] = low[i, c] - best[i, c], high[i, c] - best[i, c]
            for j in range(n):
                matrix[k, j] = scale[i, c] * gram[c, free[j]] * scale[i, free[j]]
        least, gain[i] = _enumerate(matrix, tilt, gross, bottom, top, rounding)
        for k in range(n):
            best[i, free[k]] = np.int16(best[i, free[k]] + least[k])


@numba.njit(cache=True, nogil=True)
def _enumerate(matrix, tilt, gross, bottom, top, rounding):  # pyright: ignore
    """(x, bound): the integers x (n,) in [bottom, top] of least x' A x + 2 b' x, which is 0 at 0.

    Every assignment is compared as it was reached, by updates, and those that updates leave in
    doubt as they are: summed anew. The bound is below all of these, rounding errors included.
    """
    n = len(tilt)
    pull = np.empty(n)
    _, farthest = _weigh(matrix, tilt, gross, np.maximum(-bottom, top), pull)
    doubt = _DRIFT * farthest
    at, direction, focus = bottom.copy(), np.ones(n), np.arange(n + 1)
    least = bottom.copy()
    energy, size = _weigh(matrix, tilt, gross, at, pull)
    lowest, bound = energy, energy - rounding * size
    steps = 0
    while focus[0] < n:
        k = focus[0]
        focus[0] = 0
        energy += 2 * direction[k] * pull[k] + matrix[k, k]
        for j in range(n):
            pull[j] += direction[k] * matrix[k, j]
        at[k] += direction[k]
        if at[k] == bottom[k] or at[k] == top[k]:
            direction[k] = -direction[k]
            focus[k] = focus[k + 1]
            focus[k + 1] = k + 1
        steps += 1
        if energy < lowest + doubt or steps % _STEPS == 0:
            energy, size = _weigh(matrix, tilt, gross, at, pull)
            bound = min(bound, energy - rounding * size)
            if energy < lowest:
                lowest = energy
                least[:] = at
    return least, bound


@numba.njit(cache=True, nogil=True)
def _weigh(matrix, tilt, gross, at, pull):  # pyright: ignore
    """(energy of `at`, what its terms' absolute values add up to); pull becomes A x + b."""
    energy, size = 0.0, 0.0
    for k in range(len(at)):
        pull[k], terms = tilt[k], gross[k]
        for j in range(len(at)):
            pull[k] += matrix[k, j] * at[j]
            terms += abs(matrix[k, j] * at[j])
        energy += at[k] * (pull[k] + tilt[k])
        size += abs(at[k]) * (terms + gross[k])
    return energy, size
