"""Adam by hand, in place: its state can be kept in a file and its cost is that of its memory."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

KEPT_MEAN, KEPT_SQUARE, _EPSILON = 0.9, 0.999, 1e-8  # Adam's defaults, as in the paper
# Added to all gradients: those of settled weights are 0, and their mean would decay into denormals,
# which are slow. Beside any other gradient it is nothing.
NEGLIGIBLE = 1e-30


class Adam:
    """A tensor that follows its gradients.

    Args:
        value: float32, any shape; changed in place, as are its moments `mean` and `square`.
        lr: step size.

    Source: Kingma, Ba 2015, arXiv 1412.6980, algorithm 1.
    """

    def __init__(self, value: Tensor, lr: float) -> None:
        self.value = value
        self._lr = lr
        self.mean, self.square = torch.zeros_like(value), torch.zeros_like(value)
        self._steps = 0

    def step(self, gradient: Tensor, rate: float = 1.0) -> None:
        """One step down, `rate` times as long as usual; the gradient is used up."""
        length, epsilon = self.advance(rate)
        self.mean.lerp_(gradient.add_(NEGLIGIBLE), 1 - KEPT_MEAN)
        self.square.mul_(KEPT_SQUARE).addcmul_(gradient, gradient, value=1 - KEPT_SQUARE)
        self.value.addcdiv_(self.mean, self.square.sqrt().add_(epsilon), value=-length)

    def advance(self, rate: float = 1.0) -> tuple[float, float]:
        """Count one step; the value is to move by -length * mean / (sqrt(square) + epsilon).

        The common factor of sqrt(square / correction) + epsilon has been moved into the length.
        """
        self._steps += 1
        root = math.sqrt(1 - KEPT_SQUARE**self._steps)
        return rate * self._lr * root / (1 - KEPT_MEAN**self._steps), _EPSILON * root

    def state(self) -> dict[str, Tensor]:
        """Everything that the next steps depend on."""
        steps = torch.tensor(self._steps)
        return {"value": self.value, "mean": self.mean, "square": self.square, "steps": steps}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state`."""
        self._steps = int(state["steps"])
        for name, tensor in self.state().items():
            if name != "steps":
                tensor.copy_(state[name])
