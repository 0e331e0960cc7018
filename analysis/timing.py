"""How long work takes, and the rate of a matrix product that floors are told in."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def seconds(work: Callable[[], object]) -> float:
    """Seconds of one call; on a GPU until it has done everything it was given."""
    _finish()
    began = time.perf_counter()
    work()
    _finish()
    return time.perf_counter() - began


def best_seconds(work: Callable[[], object], repetitions: int = 5) -> float:
    """The fastest of some calls."""
    return min(seconds(work) for _ in range(repetitions))


def products_per_second(side: int = 1024) -> float:
    """Multiply-adds a second of a square float32 product, on torch's number of threads."""
    square = torch.ones(side, side)
    out = torch.empty_like(square)
    return side**3 / best_seconds(lambda: torch.mm(square, square, out=out))


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
