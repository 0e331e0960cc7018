"""How wide a grid is: rules that widen or narrow the grid MinMax would choose."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# The search looks at grids that cover 2 % of the weights' range up to twice that range: few weights
# may well fit a coarse grid better than a tight one.
NARROWEST, WIDEST = 0.02, 2.0


@dataclass(frozen=True)
class Blocks:
    """One layer's weights, cut into the blocks that get a scale of their own.

    Args:
        steps: float64 (g, b, r, k), weights in units of the MinMax scale, zero point left out.
        scale: float64 (g, b, r, 1), or (1, 1, 1, 1) where the layer shares one: MinMax scale.
        zero_point: float64, same shape as scale.
        smallest: lowest level of the range.
        largest: highest level of the range.
    """

    steps: Tensor
    scale: Tensor
    zero_point: Tensor
    smallest: int
    largest: int

    def residual(self, factor: Tensor, out: Tensor) -> Tensor:
        """Rounding errors (g, b, r, k) in MinMax steps, with the scale multiplied by `factor`."""
        torch.div(self.steps, factor, out=out).round_()
        # clamp_ with tensors for bounds takes four times as long
        torch.maximum(out, self.smallest - self.zero_point, out=out)
        torch.minimum(out, self.largest - self.zero_point, out=out)
        return out.mul_(factor).sub_(self.steps)

    def pooled(self, error: Tensor) -> Tensor:
        """Errors (g, b, r) summed over whatever shares a scale, shaped like `scale`."""
        return error.unsqueeze(-1).sum_to_size(self.scale.shape)


class RangeRule(ABC):
    """How wide a grid is: the factor by which MinMax's scale is multiplied."""

    @abstractmethod
    def factor(self, blocks: Blocks, gram: Tensor | None) -> Tensor:
        """The factor of each scale, shaped like `blocks.scale`, positive.

        Args:
            blocks: the layer's weights in MinMax steps.
            gram: float64 (g, b, k, k), the Gram matrix of each block's columns, where given.
        """


@dataclass(frozen=True)
class MinMax(RangeRule):
    """The narrowest grid that holds every weight: symmetric scale = max|w| / largest level."""

    def factor(self, blocks: Blocks, gram: Tensor | None) -> Tensor:
        """One for every scale; see `RangeRule.factor`."""
        return torch.ones_like(blocks.scale)


@dataclass(frozen=True)
class WeightMSE(RangeRule):
    """The grid on which nearest rounding changes the weights least: argmin_s ||W - W_nearest||^2.

    Args:
        candidates: scales tried, evenly spaced in their logarithm, before a finer look around
            the best; MinMax's own is tried too.

    Source: Nagel et al. 2020, arXiv 2004.10568, section 5.
    """

    candidates: int = 100

    def factor(self, blocks: Blocks, gram: Tensor | None) -> Tensor:
        """The factor with the least squared error; see `RangeRule.factor`."""

        def squared(error: Tensor) -> Tensor:
            return torch.linalg.vector_norm(error, dim=-1).square_()

        return _best_factor(blocks, squared, self.candidates)


@dataclass(frozen=True)
class OutputMSE(RangeRule):
    """The grid on which nearest rounding changes the layer's output least: argmin_s e'Ge.

    With a scale per group of columns, each group sees the diagonal block of the Gram matrix that
    belongs to its own columns; the products between groups are left out.

    Args:
        candidates: scales tried, as in `WeightMSE`.
    """

    candidates: int = 100

    def factor(self, blocks: Blocks, gram: Tensor | None) -> Tensor:
        """The factor with the least energy e'Ge; see `RangeRule.factor`."""
        if gram is None:
            raise ValueError(
                "OutputMSE weighs errors by the layer's Gram matrix and none was given; "
                "pass gram=, (g, d, d), or use WeightMSE()."
            )

        def energy(error: Tensor) -> Tensor:
            return (error @ gram).mul_(error).sum(-1)

        return _best_factor(blocks, energy, self.candidates)


def _best_factor(blocks: Blocks, measure: Callable[[Tensor], Tensor], candidates: int) -> Tensor:
    """The factor with the least measured error; ties keep the earlier one, MinMax's first."""
    if candidates < 2:
        raise ValueError(f"candidates is {candidates}; a search needs at least 2.")
    step = (NARROWEST / WIDEST) ** (1 / (candidates - 1))
    best = torch.ones_like(blocks.scale)
    scratch = torch.empty_like(blocks.steps)  # a fresh one for each candidate costs 10x the time

    def error(factor: Tensor) -> Tensor:
        return blocks.pooled(measure(blocks.residual(factor, scratch)))

    least = error(best)

    def try_out(factor: Tensor) -> None:
        nonlocal best, least
        tried = error(factor)
        better = tried < least
        best, least = torch.where(better, factor, best), torch.where(better, tried, least)

    for index in range(candidates):
        try_out(torch.full_like(best, WIDEST * step**index))
    coarse, fine = best, max(candidates // 8, 1)
    for index in range(1, fine + 1):
        try_out(coarse * step ** (index / (fine + 1)))
        try_out(coarse / step ** (index / (fine + 1)))
    return best
