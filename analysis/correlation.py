"""Rank correlations with confidence intervals, as the paper's Figure 1 does not give them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

RESAMPLES = 2000


@dataclass(frozen=True)
class Correlation:
    """Spearman's coefficient and the ends of its 95 % interval by the bootstrap."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


def rank_correlation(x: Sequence[float], y: Sequence[float], seed: int = 0) -> Correlation:
    """Of pairs (x, y), n >= 3; the bootstrap resamples pairs."""
    pairs = np.stack([np.asarray(x, float), np.asarray(y, float)])
    draw = np.random.default_rng(seed)
    number = pairs.shape[1]
    resampled = [_spearman(pairs[:, draw.integers(number, size=number)]) for _ in range(RESAMPLES)]
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return Correlation(_spearman(pairs), float(low), float(high))


def _spearman(pairs: np.ndarray) -> float:
    ranks = np.stack([rankdata(values) for values in pairs])
    if (ranks.std(axis=1) == 0).any():
        return float("nan")  # a resample of one pair alone
    return float(np.corrcoef(ranks)[0, 1])
