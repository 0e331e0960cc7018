"""Metropolis sweeps over the columns of many rows, a block of columns at a time, compiled.

Every other sweep proposes single moves, and those between them pairs of columns that are alike:
one up and one down, or what their two levels leave.

Most proposals are refused. So all of a block's are weighed at once, in loops that compilers turn
into vector instructions: the move each column would make, the largest gain at which it may, the
gain it has. The first one that is wanted is made, and the columns after it are weighed again. The
decisions are those of one proposal after the other.
"""

from __future__ import annotations

import numba
import numpy as np

from qubo_rounding.solvers.random_numbers import random_bits
from qubo_rounding.vector_math import log32

_F, _I = np.float32, np.int32
_NONE = np.int32(2**31 - 1)  # behind every column


@numba.njit(cache=True, nogil=True, error_model="numpy")
def metropolis_sweeps(  # pyright: ignore
    gram, pairs, slope, scale, low, high, temperatures, warmth, keys, first, levels, accepted
):
    """One proposal for each column in turn, and that for each temperature.

    Inside a block of columns a row's moves update the slopes of that block at once; the rest of the
    row follows when the block is done, several moves in one pass over memory. That is the product
    (r x d)(d x d) of a full gradient, but only for the weights that moved.

    Args:
        gram: float32 (d, blocks, width).
        pairs: uint32 (m, blocks, 2, n), places in a block; a sweep of pairs takes one of the m.
        slope: float32 (r, blocks, width), half the energy gradient; stays up to date.
        scale: float32 (r, blocks, width), zero behind the last column.
        low, high: int16 (r, blocks, width).
        temperatures: float32 (n,), one for each sweep.
        warmth: float32 (r,), what they are multiplied by in each row.
        keys: uint64 (r,), of every row's random numbers.
        first: number of the first of these sweeps.
        levels: int16 (r, blocks, width); changed.
        accepted: int64 (r,), counts the moves made.
    """
    blocks, width = levels.shape[1:]
    d = len(gram)
    rows = (slope, scale, low, high, levels, warmth, keys, accepted)
    room = (_twelve(width), np.zeros(width, np.int32), np.zeros(width, np.int64))
    for s in range(len(temperatures)):
        number = first + s
        for b in range(blocks):
            step = np.uint64(number * d + b * width)
            if number % 2 == 0:
                _single_moves(gram, rows, room, b, step, temperatures[s])
            else:
                matching = pairs[number // 2 % len(pairs), b]
                _pair_moves(gram, rows, room, b, step, temperatures[s], matching)


@numba.njit(inline="always")
def _twelve(width):  # pyright: ignore
    """Arrays of their own: rows of one would have to be proven apart in every loop."""
    # fmt: off
    return (
        np.zeros(width, _F), np.zeros(width, _F), np.zeros(width, _F), np.zeros(width, _F),
        np.zeros(width, _F), np.zeros(width, _F), np.zeros(width, _F), np.zeros(width, _F),
        np.zeros(width, _F), np.zeros(width, _F), np.zeros(width, _F), np.zeros(width, _F),
    )
    # fmt: on


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _single_moves(gram, rows, room, b, step, temperature):  # pyright: ignore
    """One sweep of a block's columns, each in turn, for every row."""
    slope, scale, low, high, levels, warmth, keys, accepted = rows
    floats, way, moved = room
    width = levels.shape[2]
    up, down, size, limit = floats[0], floats[1], floats[2], floats[3]
    change, curve, diagonal = floats[4], floats[5], floats[6]
    for k in range(min(width, len(gram) - b * width)):
        diagonal[k] = gram[b * width + k, b, k]
    for i in range(len(levels)):
        _draw(keys[i], step, temperature * warmth[i], limit, way)
        _reach(scale, low, high, levels, i, b, up, down)
        for k in range(len(change)):
            change[k] = up[k] if way[k] > _I(0) else down[k]
            curve[k] = change[k] * change[k] * diagonal[k]
        n, at = 0, _I(0)
        while True:
            # A column that nothing flows into gains nothing, and stays where it is.
            first = _NONE
            for k in range(len(change)):
                gain = _F(2) * change[k] * slope[i, b, k] + curve[k]
                is_wanted = (gain < limit[k]) & (gain != _F(0)) & (_I(k) >= at)
                first = min(first, _I(k) if is_wanted else _NONE)
            if first == _NONE:
                break
            at = first
            moved[n], size[n] = b * width + at, change[at]
            for k in range(width):
                slope[i, b, k] += size[n] * gram[moved[n], b, k]
            n += 1
            at = _I(at + _I(1))
        accepted[i] += n
        _tell(gram, slope, scale, levels, i, b, moved, size, n)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _pair_moves(gram, rows, room, b, step, temperature, pairs):  # pyright: ignore
    """One sweep of a block's pairs, each in turn, for every row.

    None has a column of another, so that all are weighed with the levels they have at first. Both
    columns of a pair move or neither. What is gathered from columns is so in loops by themselves.
    """
    slope, scale, low, high, levels, warmth, keys, accepted = rows
    floats, way, moved = room
    width, count = levels.shape[2], 0
    while count < pairs.shape[1] and pairs[0, count] != pairs[1, count]:
        count += 1
    left, right = pairs[0, :count], pairs[1, :count]
    up, down, size, limit = floats[0], floats[1], floats[2], floats[3][:count]
    near, far = floats[4][:count], floats[5][:count]
    near_own, far_own, across = floats[6][:count], floats[7][:count], floats[8][:count]
    near_slope, far_slope, curve = floats[9][:count], floats[10][:count], floats[11][:count]
    way = way[:count]
    for m in range(count):
        j, k = b * width + left[m], b * width + right[m]
        near_own[m], far_own[m] = gram[j, b, left[m]], gram[k, b, right[m]]
        across[m] = gram[j, b, right[m]]
    for i in range(len(levels)):
        _draw(keys[i], step, temperature * warmth[i], limit, way)
        _reach(scale, low, high, levels, i, b, up, down)
        for m in range(len(near)):
            near[m] = up[left[m]] if way[m] > 0 else down[left[m]]
            far[m] = up[right[m]] if (way[m] > 0) == (across[m] < 0) else down[right[m]]
        for m in range(len(near)):
            moves = (near[m] != _F(0)) & (far[m] != _F(0))
            near[m] = near[m] if moves else _F(0)
            far[m] = far[m] if moves else _F(0)
            own = near[m] * near[m] * near_own[m] + far[m] * far[m] * far_own[m]
            curve[m] = own + _F(2) * near[m] * far[m] * across[m]
        n, at = 0, _I(0)
        while True:
            for m in range(len(near)):
                near_slope[m], far_slope[m] = slope[i, b, left[m]], slope[i, b, right[m]]
            first = _NONE
            for m in range(len(near)):
                gain = _F(2) * (near[m] * near_slope[m] + far[m] * far_slope[m]) + curve[m]
                is_wanted = (gain < limit[m]) & (gain != _F(0)) & (_I(m) >= at)
                first = min(first, _I(m) if is_wanted else _NONE)
            if first == _NONE:
                break
            at = first
            moved[n], size[n] = b * width + left[at], near[at]
            moved[n + 1], size[n + 1] = b * width + right[at], far[at]
            for k in range(width):
                change = size[n] * gram[moved[n], b, k] + size[n + 1] * gram[moved[n + 1], b, k]
                slope[i, b, k] += change
            n += 2
            at = _I(at + _I(1))
        accepted[i] += n // 2
        _tell(gram, slope, scale, levels, i, b, moved, size, n)


@numba.njit(inline="always")
def _draw(key, step, temperature, limit, way):  # pyright: ignore
    """For each column of a block the largest gain it accepts, and one of two ways."""
    for k in range(len(limit)):
        bits = random_bits(key, step + np.uint64(k))
        # Both in one number: two stores of 32 bits keep this loop of 64 from being vectorised.
        backwards = _I(_I(bits & np.uint64(1)) - _I(1))  # 0, or every bit set
        limit[k] = _F(_I(_I(bits >> np.uint64(40)) ^ backwards))
    for k in range(len(limit)):
        is_backwards = limit[k] < _F(0)
        drawn = -limit[k] - _F(1) if is_backwards else limit[k]
        limit[k] = -temperature * log32(drawn * _F(2.0**-24) + _F(2.0**-25))
        way[k] = _I(-1) if is_backwards else _I(1)


@numba.njit(inline="always")
def _reach(scale, low, high, levels, i, b, up, down):  # pyright: ignore
    """The change of weight that a step up and one down would make, zero where there is none.

    A weight of two levels has one step only, which counts as both.
    """
    for k in range(len(up)):
        lowest, highest, level = _I(low[i, b, k]), _I(high[i, b, k]), _I(levels[i, b, k])
        is_wide = _I(highest - lowest) > _I(1)
        flip = _I(lowest + highest - _I(2) * level)
        rise, fall = _I(level < highest), _I(-_I(level > lowest))
        up[k] = scale[i, b, k] * _F(rise if is_wide else flip)
        down[k] = scale[i, b, k] * _F(fall if is_wide else flip)


@numba.njit(inline="always")
def _tell(gram, slope, scale, levels, i, b, moved, size, n):  # pyright: ignore
    """Levels after n moves within block b, and slopes of all other blocks, four moves at a time."""
    blocks, width = slope.shape[1:]
    for m in range(n):
        k = moved[m] - b * width
        levels[i, b, k] += np.int16(np.rint(size[m] / scale[i, b, k]))
    m = 0
    while m + 4 <= n:
        r, s, t, u = moved[m], moved[m + 1], moved[m + 2], moved[m + 3]
        for q in range(blocks):
            if q != b:
                for k in range(width):
                    slope[i, q, k] += (size[m] * gram[r, q, k] + size[m + 1] * gram[s, q, k]) + (
                        size[m + 2] * gram[t, q, k] + size[m + 3] * gram[u, q, k]
                    )
        m += 4
    while m < n:
        r = moved[m]
        for q in range(blocks):
            if q != b:
                for k in range(width):
                    slope[i, q, k] += size[m] * gram[r, q, k]
        m += 1
