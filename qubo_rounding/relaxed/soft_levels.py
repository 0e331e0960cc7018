"""Soft levels: the values of a relaxation between their levels, and how they learn."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from qubo_rounding.relaxed.adam import Adam
from qubo_rounding.relaxed.choices import Choices
from qubo_rounding.relaxed.course import histogram
from qubo_rounding.relaxed.fused_step import FusedStep
from qubo_rounding.relaxed.softening import RectifiedSigmoid, Relaxation


class SoftLevels:
    """Values base + step * h(V) whose V follows gradients by Adam.

    The rectified sigmoid learns by a fused step on a CPU, other relaxations and devices by torch's
    operations.

    Args:
        relaxation: h, its start and its regulariser.
        choices: the levels between which to choose.
        base: float32 (g, r, d), the values at the lowest levels.
        step: float32 (g, r, d), what the values gain when h goes from 0 to 1.
        lr: Adam's step size.
        lam: weight of the regulariser.
    """

    def __init__(
        self,
        relaxation: Relaxation,
        choices: Choices,
        base: Tensor,
        step: Tensor,
        lr: float,
        lam: float,
    ) -> None:
        self._relaxation, self._choices, self._lam = relaxation, choices, lam
        self._base, self._step = base, step.contiguous()
        start = relaxation.start(choices.share, choices.room).contiguous()
        self._v, self._progress = Adam(start, lr), 0.0
        self._h, self._slope = self._softened(0.0)
        self._fused = None
        # No subclass: it may soften, or pull, in another way than the fused step does.
        if type(relaxation) is RectifiedSigmoid and base.device.type == "cpu":
            self._fused = FusedStep(relaxation, lam, self._step, self._v, self._h)

    def values(self, progress: float) -> Tensor:
        """float32 (g, r, d) at this moment; progress is the share of the iterations done."""
        self._progress = progress
        if self._fused is None:
            self._h, self._slope = self._softened(progress)
        return torch.addcmul(self._base, self._step, self._h)

    def descend(self, by_values: Tensor) -> None:
        """One step down the slope of the loss by the values, and the regulariser's.

        Args:
            by_values: float32 (g, r, d), at the values last given; may be used up.
        """
        if self._fused is not None:
            self._fused(by_values.contiguous(), self._progress)
            return
        gradient = by_values.mul_(self._step)
        regulariser = self._relaxation.regulariser_slope(self._h, self._progress)
        if regulariser is not None:
            gradient.add_(regulariser, alpha=self._lam)
        self._v.step(gradient.mul_(self._slope), self._relaxation.rate(self._progress))

    def settled(self) -> bool:
        """Has every h reached 0 or 1, from where the rectified sigmoid does not come back?"""
        if type(self._relaxation) is not RectifiedSigmoid:
            return False
        return bool(((self._h == 0) | (self._h == 1)).all())

    def unsettled(self, progress: float) -> float:
        """Share of the weights that are not near a level."""
        return self._relaxation.unsettled(self._v.value, self._choices.room, progress)

    def histogram(self, progress: float) -> list[float]:
        """The shares of the undecided weights by h(V)."""
        return histogram(self._softened(progress)[0], self._choices.room)

    def decided(self) -> Tensor:
        """int16 (g, r, d) levels, when all iterations are done."""
        above = self._relaxation.decide(self._v.value, self._choices.room)
        return (self._choices.lowest + above).to(torch.int16)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next steps depend on."""
        return {**self._v.state(), "h": self._h}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state`."""
        self._v.restore(state)
        self._h.copy_(state["h"])

    def _softened(self, progress: float) -> tuple[Tensor, Tensor]:
        return self._relaxation.soften(self._v.value, self._choices.room, progress)
