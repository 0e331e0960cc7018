"""How wide an activation's grid is: histograms of its values, and rules that read them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qubo_rounding.passes import input_batches
from qubo_rounding.relaxed.activation_course import Course, Walk
from qubo_rounding.relaxed.activation_quantiser import unsigned_grid

NARROWEST = 0.02  # of the values' range, that the search looks at
_BINS = 2048
_COUNTED_AT_ONCE = 2**24  # float32, in which histc counts, holds no larger number exactly


@dataclass(frozen=True)
class Histogram:
    """How often a site's values fall into evenly spaced bins.

    Args:
        low, high: smallest and largest value: the outer edges of the first and the last bin.
        counts: float64 (bins,), on the CPU.
    """

    low: float
    high: float
    counts: Tensor

    @property
    def edges(self) -> Tensor:
        """float64 (bins + 1,), of all bins."""
        share = torch.linspace(0, 1, len(self.counts) + 1, dtype=torch.float64)
        return self.low * (1 - share) + self.high * share

    def squared_error(self, low: Tensor, high: Tensor, bits: int) -> Tensor:
        """Mean squared error of grids from `low` to `high`, float64 shaped as both of them.

        Every value counts as the centre of its bin.
        """
        centres = (self.edges[1:] + self.edges[:-1]) / 2
        scale, zero_point = (x.unsqueeze(-1) for x in unsigned_grid(low, high, bits))
        levels = ((centres / scale).round_() + zero_point).clamp_(0, 2**bits - 1)
        errors = levels.sub_(zero_point).mul_(scale).sub_(centres)
        return errors.square_() @ self.counts / self.counts.sum()


class ActivationRule(ABC):
    """How wide an activation's grid is."""

    @abstractmethod
    def ends(self, histogram: Histogram, bits: int) -> tuple[float, float]:
        """The smallest value that the grid covers, at most 0, and the largest, at least 0.

        Args:
            histogram: of the site's values.
            bits: of the grid.
        """


@dataclass(frozen=True)
class ActivationMinMax(ActivationRule):
    """Covers every value that was seen."""

    def ends(self, histogram: Histogram, bits: int) -> tuple[float, float]:
        """See `ActivationRule.ends`."""
        return min(histogram.low, 0.0), max(histogram.high, 0.0)


@dataclass(frozen=True)
class ActivationPercentile(ActivationRule):
    """Leaves out the few largest and the few smallest values.

    Args:
        percent: of the values that lie below the upper end, and above the lower one.
    """

    percent: float = 99.99

    def __post_init__(self) -> None:
        if not 50 < self.percent <= 100:
            raise ValueError(f"percent is {self.percent}; give more than 50, at most 100.")

    def ends(self, histogram: Histogram, bits: int) -> tuple[float, float]:
        """The edges of the bins in which the percentiles lie; see `ActivationRule.ends`."""
        below = histogram.counts.cumsum(0)
        upper = below[-1] * (self.percent / 100)
        first = int((below <= below[-1] - upper).sum())
        last = int((below < upper).sum())
        edges = histogram.edges
        return min(float(edges[first]), 0.0), max(float(edges[last + 1]), 0.0)


@dataclass(frozen=True)
class ActivationMSE(ActivationRule):
    """The range on whose grid the values change least: argmin over both ends of ||x - x_q||^2.

    Args:
        candidates: for each end, evenly spaced in their logarithm from 2 % of its value to all of
            it; the whole range is among them.
    """

    candidates: int = 100

    def __post_init__(self) -> None:
        if type(self.candidates) is not int or self.candidates < 2:
            raise ValueError(f"candidates is {self.candidates!r}; a search needs at least 2.")

    def ends(self, histogram: Histogram, bits: int) -> tuple[float, float]:
        """The pair with the least squared error; see `ActivationRule.ends`."""
        low, high = ActivationMinMax().ends(histogram, bits)
        exponents = torch.linspace(0, 1, self.candidates, dtype=torch.float64)
        shares = NARROWEST**exponents
        highs = high * shares if high > 0 else shares.new_zeros(1)
        lows = low * shares if low < 0 else shares.new_zeros(1)
        errors = torch.stack(
            [histogram.squared_error(at.expand_as(highs), highs, bits) for at in lows]
        )
        best = int(errors.argmin())  # the first of equals, which is the widest
        return float(lows[best // len(highs)]), float(highs[best % len(highs)])


def collect_histograms(
    model: nn.Module, course: Course, loader: Iterable[Any]
) -> dict[str, Histogram]:
    """The histogram of every site's values, by its name, in two passes over the loader.

    Args:
        model: network in eval mode.
        course: of its forward pass.
        loader: batches, which can be gone through more than once.

    Raises:
        ValueError: an activation is not finite, or the network leaves its course.
    """
    ends: dict[str, tuple[float, float]] = {}
    counts: dict[str, Tensor] = {}

    def widen(site: str, x: Tensor) -> None:
        low, high = (float(end) for end in torch.aminmax(x))
        if not math.isfinite(high - low):  # NaN comes through the extremes
            raise ValueError(
                f"the activations at site {site!r} hold NaN or infinite values; look for what "
                "makes them, in the weights or in the calibration images."
            )
        before = ends.get(site, (low, high))
        ends[site] = (min(before[0], low), max(before[1], high))

    def count(site: str, x: Tensor) -> None:
        low, high = ends[site]
        for part in x.clamp(low, high).flatten().split(_COUNTED_AT_ONCE):
            counts[site] += torch.histc(part, _BINS, low, high).cpu()

    _look(model, course, loader, widen)
    counts.update({site: torch.zeros(_BINS, dtype=torch.float64) for site in ends})
    _look(model, course, loader, count)
    return {site: Histogram(*ends[site], counts[site]) for site in ends}


def _look(
    model: nn.Module, course: Course, loader: Iterable[Any], see: Callable[[str, Tensor], None]
) -> None:
    """Let `see` have the values of every site for every batch."""

    def visit(site: str, x: Tensor) -> Tensor:
        see(site, x)
        return x

    with torch.no_grad():
        for batch in input_batches(loader):
            Walk(course, visit).run(model, batch)
