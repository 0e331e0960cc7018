"""The integer grid a layer's weights are rounded to: its step, its zero point and its range.

A grid knows bits and weights, never data; `OutputMSE` is handed a Gram matrix as a plain tensor.
Weights are matrices of shape (g, r, d): groups, rows (output channels per group), columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from qubo_rounding.range_rules import Blocks, MinMax, OutputMSE, RangeRule, WeightMSE

Granularity = Literal["channel", "tensor"] | int

__all__ = ["Granularity", "Grid", "MinMax", "OutputMSE", "RangeRule", "WeightMSE", "fit_grid"]


@dataclass(frozen=True)
class Grid:
    """The values one layer's weights may take: scale * (level - zero_point).

    Args:
        scale: float64 (g, r, 1) or (g, r, d), grid step in weight units, positive.
        zero_point: float64, integers, same shape: the level that stands for weight 0.
        smallest: lowest level of the range.
        largest: highest level of the range.

    Raises:
        ValueError: where a scale is not positive and finite, or the shapes or the range disagree.
    """

    scale: Tensor
    zero_point: Tensor
    smallest: int
    largest: int

    def __post_init__(self) -> None:
        if self.scale.ndim != 3 or self.scale.shape != self.zero_point.shape:
            raise ValueError(
                f"A grid's scale and zero point have shapes {tuple(self.scale.shape)} and "
                f"{tuple(self.zero_point.shape)}; both must be (g, r, 1) or both (g, r, d)."
            )
        if not bool((torch.isfinite(self.scale) & (self.scale > 0)).all()):
            raise ValueError("A grid's scale must be positive and finite everywhere.")
        if self.smallest >= self.largest:
            raise ValueError(
                f"A grid's levels run from {self.smallest} to {self.largest}; "
                "the smallest level must lie below the largest."
            )
        if self.smallest < -(2**15) or self.largest >= 2**15:
            raise ValueError(
                f"A grid's levels run from {self.smallest} to {self.largest}; "
                "levels have 16 bits: give -32768 to 32767."
            )

    def target(self, weight: Tensor) -> Tensor:
        """Where each weight lies on the grid, in levels: weight / scale + zero_point.

        Args:
            weight: (g, r, d), weight units.

        Returns:
            float64 (g, r, d), real-valued and not clipped.
        """
        g, r, width = self.scale.shape
        if weight.ndim != 3 or weight.shape[:2] != (g, r) or width not in (1, weight.shape[2]):
            raise ValueError(
                f"The weight has shape {tuple(weight.shape)}, the grid was made for "
                f"({g}, {r}, {'d' if width == 1 else width})."
            )
        return weight.double() / self.scale + self.zero_point

    def quantize(self, weight: Tensor) -> Tensor:
        """The nearest level of each weight, int16 (g, r, d); a tie goes to the even level."""
        return self._clipped(self.target(weight).round())

    def dequantize(self, levels: Tensor) -> Tensor:
        """The weights that levels stand for, float64: scale * (levels - zero_point)."""
        return self.scale * (levels.double() - self.zero_point)

    def up_down(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The two neighbours of each weight on the grid: clipped floor and clipped ceil.

        They are equal where both clip to the same end, or where the weight is on a level: such a
        weight leaves nothing to decide.

        Args:
            weight: (g, r, d), weight units.

        Returns:
            (low, high), int16 (g, r, d) each.

        Source: Nagel et al. 2020, arXiv 2004.10568, equations (9) and (10).
        """
        target = self.target(weight)
        return self._clipped(target.floor()), self._clipped(target.ceil())

    def free(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The whole range for each weight: (low, high), int16 (g, r, d) each."""
        low = torch.full(weight.shape, self.smallest, dtype=torch.int16, device=weight.device)
        return low, torch.full_like(low, self.largest)

    def _clipped(self, levels: Tensor) -> Tensor:
        return levels.clamp(self.smallest, self.largest).to(torch.int16)


def fit_grid(
    weight: Tensor,
    bits: int = 4,
    *,
    symmetric: bool = True,
    granularity: Granularity = "channel",
    rule: RangeRule | None = None,
    gram: Tensor | None = None,
) -> Grid:
    """The grid of `bits` bits that suits a weight matrix.

    Args:
        weight: (g, r, d), floating point, finite.
        bits: 2 to 8. Symmetric levels run from -2^(bits-1) to 2^(bits-1) - 1 with zero point 0,
            asymmetric ones from 0 to 2^bits - 1.
        symmetric: False moves the zero point so that the range fits skewed weights; weight 0
            always stays exactly on the grid.
        granularity: "channel", one scale per row; "tensor", one for the layer; or a number of
            columns that share a scale within a row (the last group of a row may be shorter).
        rule: how wide the range is; None is `WeightMSE()`, the paper's.
        gram: (g, d, d), mean of x x' over positions; only `OutputMSE` reads it.

    Returns:
        Grid with scale (g, r, 1), or (g, r, d) where groups of columns have their own.

    Raises:
        ValueError: bits, granularity, weight or gram outside what is allowed above.
    """
    _check_request(weight, bits, granularity, gram)
    d = weight.shape[2]
    width = d if isinstance(granularity, str) else min(granularity, d)
    blocks = _cut(weight.double(), width, bits, symmetric, shared=granularity == "tensor")
    block_grams = None if gram is None else _diagonal_blocks(gram.double(), width)
    scale = blocks.scale * (rule or WeightMSE()).factor(blocks, block_grams)
    repeats = 1 if isinstance(granularity, str) else width
    scale, zero_point = (_uncut(x, weight, repeats) for x in (scale, blocks.zero_point))
    return Grid(scale, zero_point, blocks.smallest, blocks.largest)


def _cut(weight: Tensor, width: int, bits: int, symmetric: bool, shared: bool) -> Blocks:
    g, r, d = weight.shape
    count = -(-d // width)
    # Zeros at the end change no block: every grid holds zero exactly.
    padded = F.pad(weight, (0, count * width - d))
    cut = padded.reshape(g, r, count, width).transpose(1, 2)
    smallest, largest = level_range(bits, symmetric)
    over = (0, 1, 2, 3) if shared else (3,)
    top = cut.amax(over, keepdim=True).clamp_min(0) / largest
    bottom = cut.amin(over, keepdim=True).clamp_max(0) / largest
    span = torch.maximum(top, -bottom) if symmetric else top - bottom
    # Any positive step suits a block of zeros; 1 keeps energies clear of underflow.
    scale = torch.where(span >= torch.finfo(torch.float64).tiny, span, 1.0)
    zero_point = torch.zeros_like(scale) if symmetric else (-bottom / scale * largest).round()
    return Blocks(cut / scale, scale, zero_point, smallest, largest)


def level_range(bits: int, symmetric: bool) -> tuple[int, int]:
    """Smallest and largest level of a grid: around zero, or from zero up."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)


def _uncut(value: Tensor, weight: Tensor, repeats: int) -> Tensor:
    g, r, d = weight.shape
    by_row = value.squeeze(-1).transpose(1, 2).expand(g, r, -1)
    return by_row.repeat_interleave(repeats, dim=2)[..., :d].contiguous()


def _diagonal_blocks(gram: Tensor, width: int) -> Tensor:
    g, d, _ = gram.shape
    count = -(-d // width)
    extra = count * width - d
    tiles = F.pad(gram, (0, extra, 0, extra)).reshape(g, count, width, count, width)
    return tiles.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)


def check_fineness(bits: int, granularity: Granularity) -> None:
    """Nothing, for bits and a granularity that a grid can have.

    Raises:
        ValueError: bits are not 2 to 8, or the granularity is none of the three kinds.
    """
    if type(bits) is not int or not 2 <= bits <= 8:
        raise ValueError(f"bits is {bits!r}; a grid has a whole number of bits from 2 to 8.")
    columns = type(granularity) is int and granularity >= 1
    if not columns and granularity not in ("channel", "tensor"):
        raise ValueError(
            f"granularity is {granularity!r}; it must be 'channel', 'tensor' or a positive "
            "number of columns per group."
        )


def _check_request(
    weight: Tensor, bits: int, granularity: Granularity, gram: Tensor | None
) -> None:
    check_fineness(bits, granularity)
    if weight.ndim != 3 or weight.numel() == 0 or not weight.is_floating_point():
        raise ValueError(
            f"The weight is {weight.dtype} of shape {tuple(weight.shape)}; it must be a "
            "floating-point matrix (groups, rows, columns) with at least one entry."
        )
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("The weight holds NaN or infinite entries; a grid needs finite weights.")
    if gram is None:
        return
    g, _, d = weight.shape
    if gram.shape != (g, d, d) or not bool(torch.isfinite(gram).all()):
        raise ValueError(
            f"The gram has shape {tuple(gram.shape)}; for this weight it must be finite and "
            f"({g}, {d}, {d})."
        )
