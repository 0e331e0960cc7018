"""The depth-first search of one row, resumable after any number of nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numba
import numpy as np

from qubo_rounding.qubo.spins import SpinRow
from qubo_rounding.solvers.ellipsoid import search_tables

_FLAT = 1e-14  # relative: a negative shift has cancelled the price but for rounding errors
_FAR = 1e6  # beyond all spins


class Tree(NamedTuple):
    """A search tree with its place in it; arrays are by position in the search order.

    Position n - 1 is decided first. `centre[u]` is the relaxed minimum of the first u spins given
    those already decided, `cost[u]` its energy: a lower bound for everything below.
    """

    order: np.ndarray  # (n,) int64, the spin at each position
    low: np.ndarray  # (n,) smallest spin
    high: np.ndarray  # (n,) largest spin
    bonus: np.ndarray  # (n,) shift of wide spins: y_j (s^2 - charge) is paid when s is decided
    charge: np.ndarray  # (n,)
    price: np.ndarray  # (n + 1, n), see ellipsoid.search_tables
    pull: np.ndarray  # (n + 1, n)
    floor: np.ndarray  # (n + 1, n)
    centre: np.ndarray  # (n + 1, n)
    cost: np.ndarray  # (n + 1,)
    spins: np.ndarray  # (n,) of the path to the current node
    left: np.ndarray  # (n,) spins from left to right have been tried at this position
    right: np.ndarray  # (n,)
    best: np.ndarray  # (n,) spins of the least leaf found
    place: np.ndarray  # (1,) int64, undecided spins at the current node; n + 1 when done


def grow_tree(
    row: SpinRow, shift: np.ndarray, charge: np.ndarray, fits: int, halted: Callable[[], bool]
) -> Tree:
    """The tree of one row, at its root; arguments as in `ellipsoid.py`."""
    order, centre, price, pull, floor = search_tables(row.matrix, row.slope, shift, fits, halted)
    n = len(order)
    tree = Tree(
        order=order,
        low=row.low[order],
        high=row.high[order],
        bonus=np.where(row.wide, shift, 0.0)[order],
        charge=charge[order],
        price=price,
        pull=pull,
        floor=floor,
        centre=np.zeros((n + 1, n)),
        cost=np.zeros(n + 1),
        spins=np.zeros(n),
        left=np.zeros(n),
        right=np.zeros(n),
        best=np.zeros(n),
        place=np.zeros(1, np.int64),
    )
    tree.centre[n] = centre
    tree.cost[n] = shift @ charge + row.slope[order] @ centre
    restart(tree)
    return tree


def restart(tree: Tree) -> None:
    """Back to the root."""
    tree.place[0] = len(tree.order)
    tree.left[-1], tree.right[-1] = 1.0, -1.0


@numba.njit(cache=True, nogil=True, fastmath=True)
def _nearest_spin(wish, low, high):  # pyright: ignore
    """The odd integer in [low, high] nearest to `wish`."""
    return min(max(2 * np.floor(wish / 2) + 1, low), high)


@numba.njit(cache=True, nogil=True, fastmath=True)
def _cheapest(centre, price, bonus):  # pyright: ignore
    """The real s of least price (s - centre)^2 + bonus s^2; far away where that is a line."""
    curvature = price + bonus
    if curvature <= _FLAT * price:
        return _FAR if centre > 0 else -_FAR
    return centre * price / curvature


@numba.njit(cache=True, nogil=True, fastmath=True)
def _next_spin(tree, i, wish):  # pyright: ignore
    """The untried spin nearest to `wish` at position i; 0, which is no spin, if there is none."""
    if tree.left[i] > tree.right[i]:  # nothing tried yet
        spin = _nearest_spin(wish, tree.low[i], tree.high[i])
        tree.left[i] = tree.right[i] = spin
        return spin
    below, above = tree.left[i] - 2, tree.right[i] + 2
    if below >= tree.low[i] and (above > tree.high[i] or wish - below <= above - wish):
        tree.left[i] = below
        return below
    if above <= tree.high[i]:
        tree.right[i] = above
        return above
    return 0.0


@numba.njit(cache=True, nogil=True, fastmath=True)
def _move_centre(tree, u, move):  # pyright: ignore
    """Decide position u - 1, `move` from its centre; returns a bound on what the rest adds.

    The rest costs at least its floors' sum, and at least the largest price of bringing any one
    spin to a level of its range.
    """
    source, target = tree.centre[u], tree.centre[u - 1]
    pull, price, floor = tree.pull[u], tree.price[u - 1], tree.floor[u - 1]
    low, high = tree.low, tree.high
    largest, total = 0.0, 0.0
    for j in range(u - 1):
        x = source[j] + move * pull[j]
        target[j] = x
        away = x - min(max(2 * np.floor(x / 2) + 1, low[j]), high[j])
        square = away * away
        largest = max(largest, square * price[j])
        total += square * floor[j]
    return max(largest, total)


@numba.njit(cache=True, nogil=True, fastmath=True)
def search(tree, ceiling, budget):  # pyright: ignore
    """Visit nodes below `ceiling` until none is left or the budget is spent.

    Schnorr-Euchner: the levels of a spin in order of their cost, so the first one beyond the
    ceiling ends its position. Every leaf lowers the ceiling.

    Args:
        tree: the row's tree; goes on from its place.
        ceiling: energy that a leaf has to undercut, less the row's offset.
        budget: nodes to visit at most.

    Returns:
        (ceiling after the search, nodes visited).
    """
    n = len(tree.order)
    u, nodes = tree.place[0], 0
    while u <= n and nodes < budget:
        i = u - 1
        centre, price = tree.centre[u, i], tree.price[u, i]
        bonus = tree.bonus[i]
        spin = _next_spin(tree, i, _cheapest(centre, price, bonus))
        move = spin - centre
        cost = tree.cost[u] + price * move * move
        if bonus != 0.0:
            cost += bonus * (spin * spin - tree.charge[i])
        if spin == 0.0 or cost >= ceiling:
            u += 1
            continue
        nodes += 1
        tree.spins[i] = spin
        if i == 0:
            ceiling = cost
            tree.best[:] = tree.spins
            continue
        if cost + _move_centre(tree, u, move) < ceiling:
            tree.cost[i] = cost
            u = i
            tree.left[u - 1], tree.right[u - 1] = 1.0, -1.0
    tree.place[0] = u
    return ceiling, nodes
