"""What is told about an optimisation afterwards: its loss on the way, and what h(V) looked like."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

POINTS = 33  # of a course, spread evenly over the iterations
BINS = 20  # of the histograms of h in [0, 1]


class Course:
    """Loss and share of unsettled weights at some iterations; a checkpoint keeps what is known.

    Args:
        iterations: how many there will be.
    """

    def __init__(self, iterations: int) -> None:
        self._every = math.ceil(iterations / POINTS)
        self._known = 0
        self._table = torch.zeros(POINTS + 1, 3, dtype=torch.float64)  # one more for an early end
        self.loss = torch.zeros((), dtype=torch.float64)  # of the last iteration

    def due(self, iteration: int) -> bool:
        """Is this iteration one of the points?"""
        return iteration % self._every == 0

    def note(self, iteration: int, loss: float, unsettled: float) -> None:
        """Keep one point."""
        self._table[self._known] = torch.tensor([iteration, loss, unsettled], dtype=torch.float64)
        self._known += 1

    def told(self) -> dict[str, list[float]]:
        """The points as lists: iteration, loss, unsettled."""
        iteration, loss, unsettled = self._table[: self._known].T.tolist()
        return {"iteration": iteration, "loss": loss, "unsettled": unsettled}

    def state(self) -> dict[str, Tensor]:
        """Everything that is known."""
        return {"table": self._table, "known": torch.tensor(self._known), "loss": self.loss}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state`."""
        self._table.copy_(state["table"])
        self._known = int(state["known"])
        self.loss = state["loss"]


def histogram(h: Tensor, room: Tensor) -> list[float]:
    """The shares of the undecided weights whose h lies in each of `BINS` equal parts of [0, 1].

    Args:
        h, room: of the same shape; weights without room are decided.
    """
    undecided = h[room > 0].double().cpu()
    counts = torch.histc(undecided, BINS, 0, 1)
    return (counts / max(1, len(undecided))).tolist()
