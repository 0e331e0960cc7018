"""Adam by hand, in place: its state can be kept in a file and its cost is that of its memory."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

_MEAN, _SQUARE, _EPSILON = 0.9, 0.999, 1e-8  # Adam's defaults, as in the paper
_NEGLIGIBLE = 1e-30  # beside any gradient, and far above the denormals of float32


class Adam:
    """A tensor that follows its gradients.

    Args:
        value: float32, any shape; changed in place.
        lr: step size.

    Source: Kingma, Ba 2015, arXiv 1412.6980, algorithm 1.
    """

    def __init__(self, value: Tensor, lr: float) -> None:
        self.value = value
        self._lr = lr
        self._mean, self._square = torch.zeros_like(value), torch.zeros_like(value)
        self._steps = 0

    def step(self, gradient: Tensor, rate: float = 1.0) -> None:
        """One step down, `rate` times as long as usual; the gradient is used up."""
        self._steps += 1
        # Settled weights have gradient 0 and their mean would decay into denormals, which are slow.
        self._mean.lerp_(gradient.add_(_NEGLIGIBLE), 1 - _MEAN)
        self._square.mul_(_SQUARE).addcmul_(gradient, gradient, value=1 - _SQUARE)
        # sqrt(square / correction) + epsilon, its common factor moved into the step: one pass less
        root = math.sqrt(1 - _SQUARE**self._steps)
        denominator = self._square.sqrt().add_(_EPSILON * root)
        length = rate * self._lr * root / (1 - _MEAN**self._steps)
        self.value.addcdiv_(self._mean, denominator, value=-length)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next steps depend on."""
        steps = torch.tensor(self._steps)
        return {"value": self.value, "mean": self._mean, "square": self._square, "steps": steps}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state`."""
        self._steps = int(state["steps"])
        for name, tensor in self.state().items():
            if name != "steps":
                tensor.copy_(state[name])
