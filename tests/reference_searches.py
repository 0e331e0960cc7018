"""Naive twins of the searches over levels, by loops and from whole energies.

Nothing here imports the package. Each works on one row, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import reference
from reference import Array, Row


def uniform(key: int, step: int) -> float:
    """A number in [0, 1) from the upper 53 of 64 random bits."""
    return (reference.random_bits(key, step) >> 11) * 2.0**-53


def partial_costs(row: Row, order: list[int], damping: float) -> Callable[[list[int]], float]:
    """What levels for the first columns in `order` cost when all other weights are free reals.

    The damped energy e'He + l'e is a constant plus (e - m)' H (e - m) with 2 H m = -l; minimised
    over the free errors it leaves the Schur complement of H.
    """
    hessian = reference.damped(row.gram, damping)[np.ix_(order, order)]
    minimum = -np.linalg.solve(hessian, row.linear[order]) / 2
    scale, target = row.scale[order], row.target[order]
    schur = {}
    for n in range(1, len(order) + 1):
        cross = hessian[:n, n:]
        schur[n] = hessian[:n, :n] - cross @ np.linalg.solve(hessian[n:, n:], cross.T)

    def cost(levels: list[int]) -> float:
        n = len(levels)
        error = scale[:n] * (np.array(levels) - target[:n]) - minimum[:n]
        return float(error @ schur[n] @ error)

    return cost


def children(row: Row, column: int, path: list[int], cost: Callable, count: int) -> list[int]:
    """The `count` levels that continue a path most cheaply, in rising order."""
    levels = range(row.low[column], row.high[column] + 1)
    return sorted(sorted(levels, key=lambda level: cost([*path, level]))[:count])


def k_best(row: Row, order: list[int], damping: float, width: int, count: int) -> Array:
    """The best path when of all continued ones the `width` cheapest are kept at each column."""
    cost = partial_costs(row, order, damping)
    paths: list[list[int]] = [[]]
    for column in order:
        grown = [
            [*path, level] for path in paths for level in children(row, column, path, cost, count)
        ]
        paths = sorted(grown, key=cost)[:width]
    return best_path(row, paths, order)


def klein(
    row: Row,
    order: list[int],
    damping: float,
    samples: int,
    count: int,
    temperature: float,
    key: int,
) -> Array:
    """The best of `samples` paths; the last column in `order` draws number 0 of its path."""
    cost = partial_costs(row, order, damping)
    d = len(order)
    paths = []
    for sample in range(samples):
        path: list[int] = []
        for place, column in enumerate(order):
            levels = children(row, column, path, cost, count)
            costs = [cost([*path, level]) for level in levels]
            weights = [math.exp(-(c - min(costs)) / temperature) for c in costs]
            draw = uniform(key, sample * d + d - 1 - place) * sum(weights)
            while len(weights) > 1 and draw >= weights[0]:
                draw -= weights.pop(0)
                levels.pop(0)
            path.append(levels[0])
        paths.append(path)
    return best_path(row, paths, order)


def best_path(row: Row, paths: list[list[int]], order: list[int]) -> Array:
    """The levels of least energy, undamped; paths decide the columns in `order`."""
    levels = np.zeros((len(paths), len(order)), int)
    levels[:, order] = paths
    return min(levels, key=lambda path: reference.energy(row, path))


def cross_entropy(
    row: Row, keys: list[int], *, samples: int, elite: float, smoothing: float
) -> Iterator[tuple[list[Array], Array]]:
    """(all samples' levels, probabilities after the update) of one iteration for each key."""
    d = len(row.target)
    room = row.high - row.low
    p = np.clip((row.target - row.low) / np.maximum(room, 1), 0.01, 0.99) * (room > 0)
    for key in keys:
        drawn = []
        for sample in range(samples):
            bits = [uniform(key, sample * d + j) < p[j] for j in range(d)]
            drawn.append(row.low + room * np.array(bits))
        best = sorted(drawn, key=lambda levels: reference.energy(row, levels))
        best = best[: round(elite * samples)]
        mean = np.mean([(levels - row.low) / np.maximum(room, 1) for levels in best], axis=0)
        p = p + smoothing * (mean - p)
        p[p < 0.01], p[p > 0.99] = 0, 1
        yield drawn, p


def tabu_walk(row: Row, levels: Array, key: int, kicks: int, moves: int, tenure: int) -> Array:
    """The best levels of one walk, every gain from two whole energies."""
    levels = levels.copy()
    d = len(levels)
    other = row.low + row.high
    free = [j for j in range(d) if row.low[j] < row.high[j]]
    if not free:
        return levels
    stay = min(tenure, len(free) // 4)
    until = [0] * d
    best, least = levels.copy(), reference.energy(row, levels)
    for move in range(kicks + moves):
        bits = reference.random_bits(key, move)
        here = reference.energy(row, levels)
        gains = {j: reference.flip_gain(row, levels, j, other[j] - 2 * levels[j]) for j in free}
        if move < kicks:
            c = bits % d
            if c not in gains:
                continue
        else:
            allowed = [j for j in free if until[j] <= move or here + gains[j] < least - 1e-9]
            c = min(allowed, key=gains.__getitem__)
        levels[c] = other[c] - levels[c]
        until[c] = move + 1 + stay + (bits >> 32) % (stay + 1)
        if here + gains[c] < least - 1e-9:
            best, least = levels.copy(), here + gains[c]
    return best
