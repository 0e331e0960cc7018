"""How a level is made continuous, so that gradient descent can choose it.

A weight lies between the lowest of its levels and the highest, `room` levels above; a relaxation
turns a real variable V into the share h in [0, 1] of that way, hard or soft, with its derivative.
The ablations of the paper (Tables 3 and 5) differ in nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qubo_rounding.relaxed.relaxation import (
    annealing_progress,
    beta_at,
    inverse_rectified_sigmoid,
    rectified_sigmoid,
    rounding_regulariser_slope,
)

_SETTLED = 1e-3  # a level is settled when h is this close to it
_INSIDE = 1e-2  # plain sigmoids reach 0 and 1 at infinity only: they start this far inside


class Relaxation(ABC):
    """What stands for the levels while they are learned; subclasses are frozen dataclasses.

    `progress` is the share of all iterations that is done, in [0, 1]; `room` int32 (g, r, d).
    """

    takes_ranges: bool = False  # whether rooms wider than one level are used, or two levels only

    @abstractmethod
    def start(self, share: Tensor, room: Tensor) -> Tensor:
        """V for which h is the given share of the room, as far as it can be."""

    @abstractmethod
    def soften(self, v: Tensor, room: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """h(V) in [0, 1] and dh/dV."""

    def regulariser_slope(self, h: Tensor, progress: float) -> Tensor | None:
        """Derivative of the regulariser by h, without its weight; None where there is none."""
        del h, progress
        return None

    def rate(self, progress: float) -> float:
        """By what the step size is multiplied."""
        del progress
        return 1.0

    def decide(self, v: Tensor, room: Tensor) -> Tensor:
        """int32 levels above the lowest, when all iterations are done."""
        h = self.soften(v, room, 1.0)[0]
        return (h * room + 0.5).floor().to(torch.int32)

    def unsettled(self, v: Tensor, room: Tensor, progress: float) -> float:
        """Share of the weights whose h is not near any level yet."""
        levels = self.soften(v, room, progress)[0] * room
        return float(((levels - levels.round()).abs() > _SETTLED).double().mean())


@dataclass(frozen=True)
class _Annealed(Relaxation):
    """The regulariser 1 - |2h - 1|^beta behind a warm start, beta annealed.

    Args:
        warm_start: share of the iterations without regulariser.
        beta_first, beta_last: ends of the annealing of beta.
        schedule: "cosine" or "linear" annealing.

    Source: Nagel et al. 2020, arXiv 2004.10568, eq 24; the numbers are public implementations'.
    """

    warm_start: float = 0.2
    beta_first: float = 20.0
    beta_last: float = 2.0
    schedule: Literal["cosine", "linear"] = "cosine"

    def __post_init__(self) -> None:
        if not 0 <= self.warm_start < 1:
            raise ValueError(f"warm_start is {self.warm_start}; give a share in [0, 1).")
        if not 1 < self.beta_last <= self.beta_first < float("inf"):
            raise ValueError(
                f"give 1 < beta_last <= beta_first; they are {self.beta_last}, {self.beta_first}."
            )
        if self.schedule not in ("cosine", "linear"):
            raise ValueError(f"schedule is {self.schedule!r}; give 'cosine' or 'linear'.")

    def regulariser_slope(self, h: Tensor, progress: float) -> Tensor | None:
        """See `Relaxation.regulariser_slope`; None during the warm start."""
        beta = self.beta(progress)
        return None if beta is None else rounding_regulariser_slope(h, beta)

    def beta(self, progress: float) -> float | None:
        """The regulariser's exponent; None during the warm start."""
        annealed = annealing_progress(progress, self.warm_start)
        if annealed is None:
            return None
        return beta_at(annealed, self.beta_first, self.beta_last, self.schedule)


@dataclass(frozen=True)
class RectifiedSigmoid(_Annealed):
    """The paper's: a sigmoid stretched beyond 0 and 1 and clipped there, with the regulariser.

    Source: Nagel et al. 2020, arXiv 2004.10568, eq 23-24.
    """

    def start(self, share: Tensor, room: Tensor) -> Tensor:
        """See `Relaxation.start`."""
        return inverse_rectified_sigmoid(share)

    def soften(self, v: Tensor, room: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """See `Relaxation.soften`."""
        return rectified_sigmoid(v)


@dataclass(frozen=True)
class PlainSigmoid(_Annealed):
    """A sigmoid, whose slope vanishes towards 0 and 1, with the regulariser.

    Source: Nagel et al. 2020, arXiv 2004.10568, Table 3.
    """

    def start(self, share: Tensor, room: Tensor) -> Tensor:
        """See `Relaxation.start`."""
        return torch.logit(share, eps=_INSIDE)

    def soften(self, v: Tensor, room: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """See `Relaxation.soften`."""
        h = torch.sigmoid(v)
        return h, h * (1 - h)


@dataclass(frozen=True)
class TemperatureSigmoid(Relaxation):
    """sigmoid(V / T), made steep by an annealed temperature, without regulariser.

    Args:
        hot, cold: temperatures of the first and the last iteration; geometric between them.

    Source: Hopfield, Tank 1985; Nagel et al. 2020, arXiv 2004.10568, Table 3 (temperatures are not
        given there).
    """

    hot: float = 1.0
    cold: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 < self.cold <= self.hot < float("inf"):
            raise ValueError(f"give 0 < cold <= hot; they are {self.cold} and {self.hot}.")

    def start(self, share: Tensor, room: Tensor) -> Tensor:
        """See `Relaxation.start`."""
        return self.hot * torch.logit(share, eps=_INSIDE)

    def soften(self, v: Tensor, room: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """See `Relaxation.soften`."""
        temperature = self.hot * (self.cold / self.hot) ** progress
        h = torch.sigmoid(v / temperature)
        return h, h * (1 - h) / temperature


@dataclass(frozen=True)
class StraightThrough(Relaxation):
    """The weight itself, rounded on the way forward and left alone on the way back.

    Any level of a wide range can be reached; V counts levels from the lowest. The step size falls
    to zero along a line: gradients of a rounded weight never vanish, and at a constant one weights
    jump about their thresholds to the end.

    Source: Bengio et al. 2013, arXiv 1308.3432; Nagel et al. 2020, arXiv 2004.10568, Table 5.
    """

    takes_ranges = True

    def start(self, share: Tensor, room: Tensor) -> Tensor:
        """See `Relaxation.start`."""
        return share * room

    def soften(self, v: Tensor, room: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """See `Relaxation.soften`."""
        ways = room.clamp_min(1).to(v.dtype)
        return v.clamp_min(0).minimum(ways).round_().div_(ways), 1 / ways

    def rate(self, progress: float) -> float:
        """See `Relaxation.rate`."""
        return 1 - progress


@dataclass(frozen=True)
class KeptLevels(Relaxation):
    """No relaxation: the levels stay those of the start, biases and scales are learned around them.

    Few values for few images: they carry over to others where millions of levels do not. The step
    size falls to zero along a line.
    """

    def start(self, share: Tensor, room: Tensor) -> Tensor:
        """See `Relaxation.start`."""
        return share.round()

    def soften(self, v: Tensor, room: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """See `Relaxation.soften`."""
        return v.clone(), torch.zeros_like(v)

    def rate(self, progress: float) -> float:
        """See `Relaxation.rate`."""
        return 1 - progress


RELAXATIONS: dict[str, type[Relaxation]] = {
    "rectified_sigmoid": RectifiedSigmoid,
    "plain_sigmoid": PlainSigmoid,
    "temperature_sigmoid": TemperatureSigmoid,
    "straight_through": StraightThrough,
    "kept_levels": KeptLevels,
}
