"""Naive twins of the package's algorithms, by loops; nothing here imports the package.

Each works on one row of a rounding problem and stays as close to its definition as it can.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

Array = np.ndarray


class Row(NamedTuple):
    """One row of a rounding problem, as numpy arrays."""

    gram: Array  # (d, d)
    target: Array  # (d,)
    scale: Array  # (d,)
    low: Array  # (d,)
    high: Array  # (d,)
    linear: Array  # (d,)
    offset: float


def rows_of(problem: Any) -> Iterator[tuple[tuple[int, int], Row]]:
    """((group, row), Row) for every row of a problem."""
    g, r, d = problem.target.shape
    for at in itertools.product(range(g), range(r)):
        linear = np.zeros(d) if problem.linear is None else problem.linear[at].numpy()
        scale = np.broadcast_to(problem.scale[at].numpy(), d)
        arrays = (problem.target[at].numpy(), scale, problem.low[at].numpy().astype(int))
        high = problem.high[at].numpy().astype(int)
        yield at, Row(problem.gram[at[0]].numpy(), *arrays, high, linear, float(problem.offset[at]))


def energy(row: Row, levels: Array) -> float:
    """Sum of e' G e + l' e + c, entry by entry."""
    d = len(row.target)
    e = [float(row.scale[j] * (levels[j] - row.target[j])) for j in range(d)]
    total = row.offset
    for j in range(d):
        total += float(row.linear[j]) * e[j]
        for k in range(d):
            total += e[j] * float(row.gram[j, k]) * e[k]
    return total


def flip_gain(row: Row, levels: Array, column: int, step: int) -> float:
    """Energy after moving one weight, minus the energy before."""
    moved = levels.copy()
    moved[column] += step
    return energy(row, moved) - energy(row, levels)


def optimum(row: Row) -> tuple[Array, float]:
    """The best of all levels in [low, high] and its energy."""
    ranges = (range(low, high + 1) for low, high in zip(row.low, row.high, strict=True))
    energies = {levels: energy(row, np.array(levels)) for levels in itertools.product(*ranges)}
    best = min(energies, key=energies.__getitem__)
    return np.array(best), energies[best]


def activation_order(row: Row) -> list[int]:
    """Columns by falling diagonal."""
    return sorted(range(len(row.target)), key=lambda j: -row.gram[j, j])


def damped(gram: Array, damping: float) -> Array:
    """The Gram matrix plus a fraction of its mean diagonal."""
    return gram + damping * gram.diagonal().mean() * np.eye(len(gram))


def _round(row: Row, column: int, wish: float) -> int:
    return int(min(max(np.rint(wish), row.low[column]), row.high[column]))


def gptq(row: Row, order: list[int], damping: float) -> Array:
    """Frantar et al. 2022, algorithm 1 without batches: errors go through the inverse Hessian."""
    weight = row.scale * row.target
    inverse = np.linalg.inv(damped(row.gram, damping))
    levels = np.zeros(len(weight), int)
    for position, i in enumerate(order):
        levels[i] = _round(row, i, weight[i] / row.scale[i])
        error = (weight[i] - row.scale[i] * levels[i]) / inverse[i, i]
        for j in order[position + 1 :]:
            weight[j] -= error * inverse[i, j]
        # Gaussian elimination takes column i out of the inverse.
        inverse = inverse - np.outer(inverse[:, i], inverse[i, :]) / inverse[i, i]
    return levels


def ldlq(row: Row, order: list[int], damping: float) -> Array:
    """Chee et al. 2023: feedback from the unit upper triangular U of H = U D U'."""
    d = len(order)
    hessian = damped(row.gram, damping)[np.ix_(order, order)]
    feedback = np.zeros((d, d))
    for k in range(d - 1, -1, -1):
        column = hessian[:k, k] / hessian[k, k]
        hessian = hessian[:k, :k] - hessian[k, k] * np.outer(column, column)
        feedback[:k, k] = column
    levels = np.zeros(d, int)
    errors = np.zeros(d)
    for k, i in enumerate(order):
        wish = row.target[i] - sum(errors[j] * feedback[j, k] for j in range(k)) / row.scale[i]
        levels[i] = _round(row, i, wish)
        errors[k] = row.scale[i] * (levels[i] - row.target[i])
    return levels


def babai(row: Row, order: list[int], damping: float) -> Array:
    """Nearest plane by Gram-Schmidt: lattice vectors b_j with b_j . b_k = s_j G_jk s_k."""
    values, vectors = np.linalg.eigh(damped(row.gram, damping))
    basis = (vectors * np.sqrt(values)).T * row.scale
    point = basis @ row.target
    levels = np.zeros(len(order), int)
    for position, i in enumerate(order):
        normal = basis[:, i].copy()  # of the plane that the vectors still free span
        if free := order[position + 1 :]:
            normal -= basis[:, free] @ np.linalg.lstsq(basis[:, free], normal, rcond=None)[0]
        levels[i] = _round(row, i, point @ normal / (normal @ normal))
        point = point - levels[i] * basis[:, i]
    return levels


def random_bits(key: int, step: int) -> int:
    """SplitMix64's output number `step` from state `key` (Steele, Lea, Flood 2014)."""
    mask = 2**64 - 1
    z = (key + (step + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def metropolis_sweep(
    row: Row,
    levels: Array,
    temperature: float,
    key: int,
    proposals: list[tuple[int, tuple[int, ...]]],
) -> Array:
    """Proposals one after the other, every gain from two whole energies.

    Args:
        proposals: number of the random bits, and the one or two columns that would move; of two
            the second one goes the other way where their inputs go together.
    """
    levels = levels.copy()
    for number, columns in proposals:
        bits = random_bits(key, number)
        moved = levels.copy()
        for place, c in enumerate(columns):
            way = 1 if bits & 1 else -1
            if place == 1 and row.gram[columns[0], c] >= 0:
                way = -way
            flip = row.low[c] + row.high[c] - 2 * levels[c]
            moved[c] += way if row.high[c] - row.low[c] > 1 else flip
        if any(moved[c] == levels[c] or not row.low[c] <= moved[c] <= row.high[c] for c in columns):
            continue
        before, after = (row.scale * (at - row.target) for at in (levels, moved))
        energies = [e @ row.gram @ e + row.linear @ e for e in (before, after)]
        gain = energies[1] - energies[0]
        if gain <= 0 or (bits >> 40) * 2.0**-24 < math.exp(-gain / temperature):
            levels = moved
    return levels


def adaround(
    row: Row,
    *,
    iterations: int,
    lr: float,
    lam: float,
    normalise: bool,
    warm_start: float,
    linear_schedule: bool,
) -> tuple[Array, Array]:
    """Levels and h(V) of an up/down row, by autograd and torch's Adam in float64."""
    gram, target, scale, low, room, linear = (
        torch.tensor(np.array(a, float))
        for a in (row.gram, row.target, row.scale, row.low, row.high - row.low, row.linear)
    )

    def h(v: torch.Tensor) -> torch.Tensor:
        return (1.2 * torch.sigmoid(v) - 0.1).clamp(0, 1)

    fraction = ((target - low) / room.clamp_min(1)).clamp(0, 1)
    v = torch.logit((fraction + 0.1) / 1.2).requires_grad_()
    unit = (scale**2 * gram.diagonal()).mean() if normalise else 1.0
    adam = torch.optim.Adam([v], lr=lr)
    for iteration in range(iterations):
        e = scale * (low + room * h(v) - target)
        loss = (e @ gram @ e + linear @ e) / unit
        progress = (iteration / iterations - warm_start) / (1 - warm_start)
        if progress >= 0:
            fall = 1 - progress if linear_schedule else (1 + math.cos(math.pi * progress)) / 2
            loss = loss + lam * (1 - (2 * h(v) - 1).abs() ** (2 + 18 * fall)).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    settled = h(v).detach()
    return (low + room * (settled >= 0.5)).int().numpy(), settled.numpy()
