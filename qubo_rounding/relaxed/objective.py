"""What reconstruction minimises: a loss on minibatches of samples, and its slopes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from qubo_rounding.relaxed.adam import Adam


@dataclass(frozen=True)
class Slopes:
    """A loss and its derivatives.

    Args:
        loss: scalar.
        weights: (g, r, d) by the weights, one for each layer.
        shifts: (g, r) by what is added to the biases, one for each layer.
        extra: by the objective's own learned values.
    """

    loss: Tensor
    weights: Sequence[Tensor]
    shifts: Sequence[Tensor]
    extra: Sequence[Tensor] = ()


class Objective(Protocol):
    """A loss of the weights of one or more layers, over samples that can be taken singly."""

    @property
    def extra(self) -> Sequence[Adam]:
        """What it learns beside the weights, such as steps of activation quantisers."""
        ...

    @property
    def count(self) -> int:
        """Samples there are."""
        ...

    def loss(self, weights: Sequence[Tensor], shifts: Sequence[Tensor], samples: Tensor) -> Tensor:
        """The mean loss over some samples alone; arguments as those of `slopes`."""
        ...

    def slopes(
        self,
        weights: Sequence[Tensor],
        shifts: Sequence[Tensor],
        samples: Tensor,
        iteration: int | None = None,
    ) -> Slopes:
        """The mean loss over some samples, and its derivatives.

        Args:
            weights: float32 (g, r, d), one for each layer.
            shifts: float32 (g, r), one for each layer.
            samples: int64 (n,).
            iteration: number of the step, which random choices follow; None makes none of them.
        """
        ...
