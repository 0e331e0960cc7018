"""Ratios that may be missing, and the mean that ratios have."""

from __future__ import annotations

import math
from collections.abc import Iterable


def quotient(above: float | None, below: float | None) -> float | None:
    """Above / below; None where one is missing or `below` is 0."""
    return above / below if above is not None and below else None


def geometric_mean(ratios: Iterable[float | None]) -> float | None:
    """Exp of the mean logarithm; None without ratios, or where one is None or not positive."""
    numbers = list(ratios)
    logs = [math.log(ratio) for ratio in numbers if ratio is not None and ratio > 0]
    return math.exp(sum(logs) / len(logs)) if logs and len(logs) == len(numbers) else None
