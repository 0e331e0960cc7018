"""The grid of one activation: levels from 0 to 2^bits - 1, and values put on it with slopes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from qubo_rounding.grid import check_fineness
from qubo_rounding.relaxed import fused_quantiser
from qubo_rounding.relaxed.fused_quantiser import KEEPS_NONE, Draw


def unsigned_grid(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point of levels 0 to 2^bits - 1 that cover low to high, with low <= 0 <= high.

    scale = (high - low) / (2^bits - 1), zero point = round(-low / scale): value 0 is on the grid.
    """
    largest = 2**bits - 1
    scale = high / largest - low / largest
    # Any positive step suits nothing but zeros. Steps are kept as float32.
    scale = torch.where(scale >= torch.finfo(torch.float32).tiny, scale, 1.0)
    return scale, (-low / scale).round().clamp(0, largest)


class ActivationQuantiser(nn.Module):
    """Puts one activation on its grid: scale * (clip(round(x / scale) + z, 0, 2^bits - 1) - z).

    The slope by x is that of the clipping alone. The slope by the scale is round(x / scale) -
    x / scale within the range and the end's level beyond, times 1 / sqrt(n (2^bits - 1)), with n
    the number of values of one sample.

    On a CPU a fused pass computes values and slopes each, on other devices torch's operations.

    Args:
        scale: step of the grid, positive; a parameter, which learns once `requires_grad` is set.
        zero_point: z, the level that stands for value 0.
        bits: 2 to 8.

    Source: Esser et al. 2020, arXiv 1902.08153, equations (1) to (3) and section 2.2.
    """

    scale: nn.Parameter
    zero_point: Tensor

    def __init__(self, scale: float, zero_point: int, bits: int) -> None:
        super().__init__()
        check_fineness(bits, "tensor")
        float32 = torch.finfo(torch.float32)  # in which scales are kept
        if not (float32.tiny <= scale <= float32.max and 0 <= zero_point < 2**bits):
            raise ValueError(
                f"scale is {scale} and zero_point {zero_point}; with {bits} bits give a scale from "
                f"{float32.tiny:.1e} to {float32.max:.1e} and a zero point from 0 to {2**bits - 1}."
            )
        self.bits = bits
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float32), requires_grad=False)
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.float32))

    @classmethod
    def covering(cls, low: float, high: float, bits: int) -> ActivationQuantiser:
        """The quantiser whose grid runs from `low` to `high`.

        Raises:
            ValueError: 0 is not between them, or they are not finite.
        """
        check_fineness(bits, "tensor")
        if not -math.inf < low <= 0 <= high < math.inf:
            raise ValueError(f"a grid from {low} to {high} does not hold 0; give ends around it.")
        ends = (torch.tensor(end, dtype=torch.float64) for end in (low, high))
        scale, zero_point = unsigned_grid(*ends, bits=bits)
        return cls(float(scale), int(zero_point), bits)

    def quantise(self, x: Tensor, draw: Draw = KEEPS_NONE) -> Tensor:
        """The values of x on the grid, shaped as x and of its dtype, but for those drawn."""
        if torch.onnx.is_in_onnx_export():
            return self._in_operators_of_onnx(x)
        return _Quantise.apply(x, self.scale, self.zero_point, 2**self.bits - 1, draw)

    def forward(self, x: Tensor) -> Tensor:
        """See `quantise`."""
        return self.quantise(x)

    def _in_operators_of_onnx(self, x: Tensor) -> Tensor:
        """The same by what an exporter knows: 8 bits, before them a clip to what fewer reach."""
        scale, zero_point = float(self.scale), int(self.zero_point)
        if self.bits < 8:
            largest = 2**self.bits - 1
            x = x.clamp(-zero_point * scale, (largest - zero_point) * scale)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 255)

    def get_extra_state(self) -> Tensor:
        """The bits, which belong to the state: scale and zero point mean nothing without them."""
        return torch.tensor(self.bits)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over the bits of a state."""
        self.bits = int(state)

    def extra_repr(self) -> str:
        """What the grid is."""
        return f"bits={self.bits}, scale={float(self.scale):.4g}, zero_point={self.zero_point:.0f}"


class _Quantise(torch.autograd.Function):
    """The values on the grid, with the slopes of Esser et al.; those drawn stay as they are."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, largest: int, draw: Draw
    ) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.largest, ctx.draw = largest, draw
        if fused_quantiser.can_fuse(x):
            grid = float(scale.detach()), float(zero_point), largest
            return fused_quantiser.quantised(x, *grid, draw)
        # Numbers as bounds: clamp_ with tensors takes four times as long.
        levels = (x / scale).round_().add_(zero_point).clamp_(0, largest)
        on_grid = levels.sub_(zero_point).mul_(scale)
        return torch.where(_drawn(x, draw), x, on_grid) if draw.share else on_grid

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, scale, zero_point = ctx.saved_tensors
        by_scale, learns = None, ctx.needs_input_grad[1]
        if fused_quantiser.can_fuse(x):
            grid = float(scale.detach()), float(zero_point), ctx.largest
            by_x, total = fused_quantiser.slopes(gradient, x, *grid, ctx.draw)
            by_scale = scale.new_tensor(total) if learns else None
        else:
            steps = x / scale
            level = steps + zero_point
            inside = (level >= 0) & (level <= ctx.largest)
            stays = _drawn(x, ctx.draw) if ctx.draw.share else torch.zeros_like(inside)
            by_x = gradient * (inside | stays)
            if learns:
                rounded = level.clamp_(0, ctx.largest).sub_(zero_point).round_()
                moves = rounded.sub_(steps.masked_fill_(~inside, 0)).masked_fill_(stays, 0)
                by_scale = moves.mul_(gradient).sum().to(scale.dtype)
        if by_scale is not None:
            by_scale *= (x.shape[1:].numel() * ctx.largest) ** -0.5
        return by_x, by_scale, None, None, None


def _drawn(x: Tensor, draw: Draw) -> Tensor:
    """Which values stay in float; the same at every call."""
    generator = torch.Generator(x.device).manual_seed(draw.key)
    return torch.rand(x.shape, generator=generator, device=x.device) < draw.share
