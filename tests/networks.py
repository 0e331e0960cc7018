"""Tiny networks and batches that several test files round."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Convolutions with batch norm, depthwise and strided, a residual, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(6)
        self.pointwise = nn.Conv2d(6, 6, 1)
        self.down = nn.Conv2d(6, 8, 3, stride=2, groups=2, bias=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(x)).relu()
        x = x + self.pointwise(self.depthwise_norm(self.depthwise(x)).relu())
        return self.head(self.down(x).relu().mean((2, 3)))


LAYERS = ["stem", "depthwise", "pointwise", "down", "head"]


def residual() -> Residual:
    """In eval mode, with batch norms that have something to fold."""
    torch.manual_seed(0)
    model = Residual()
    for norm in (model.stem_norm, model.depthwise_norm):
        for tensor in (norm.weight.data, norm.running_var):
            tensor.uniform_(0.5, 2.0)
        for tensor in (norm.bias.data, norm.running_mean):
            tensor.normal_(std=0.3)
    return model.eval()


def batches(count: int = 2, seed: int = 0, size: int = 4) -> list[Tensor]:
    """Batches of (size, 3, 8, 8) images."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 3, 8, 8, generator=draw) for _ in range(count)]
