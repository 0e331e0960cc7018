"""Naive twins of the bounds: loops, and exact fractions, that import nothing from the package."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np


def exact_optimum(
    gram: np.ndarray, target: np.ndarray, scale: np.ndarray, low: np.ndarray, high: np.ndarray
) -> Fraction:
    """The least e' G e of one row in exact arithmetic; gram (d, d), all others (d,)."""
    d = len(target)
    exact = [[Fraction(float(x)) for x in row] for row in gram]
    choices = []
    for j in range(d):
        step, at = Fraction(float(scale[j])), Fraction(float(target[j]))
        choices.append([step * (level - at) for level in range(int(low[j]), int(high[j]) + 1)])
    return min(
        sum((exact[i][j] * e[i] * e[j] for i in range(d) for j in range(d)), start=Fraction(0))
        for e in product(*choices)
    )


def sweep_naively(
    gram: np.ndarray,
    half: np.ndarray,
    slope: np.ndarray,
    held: np.ndarray,
    origin: np.ndarray,
    sweeps: int,
    beyond: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Mixing-method sweeps of one row: held (rank, d), origin (rank,); gram's diagonal is zero."""
    held, origin = held.copy(), origin.copy()
    for _ in range(sweeps):
        for i in range(len(half)):
            pull = slope[i] * origin
            for j in range(len(half)):
                pull = pull + gram[i, j] * held[:, j]
            place = -half[i] * pull / np.linalg.norm(pull)
            held[:, i] = place + beyond * (place - held[:, i])
        total = held @ slope
        origin = -total / np.linalg.norm(total)
    return held, origin
