"""A task loss that Ctrl-C ends in the middle of the work."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


class Interrupted:
    """Cross entropy that is interrupted at its n-th call, and counts them."""

    def __init__(self, at: float = float("inf")) -> None:
        self.calls, self.at = 0, at

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        if self.calls >= self.at:
            raise KeyboardInterrupt
        return F.cross_entropy(outputs, labels)
