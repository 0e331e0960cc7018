"""The inputs of one layer call, cut into what each output position sees."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from qubo_rounding.passes import LayerCall


@dataclass(frozen=True)
class Patches:
    """Windows over a signal, one per sample and output position.

    Any linear or convolution call reads as a plain convolution of this signal, without padding.

    Args:
        signal: (samples, g * channels, *size), padding included.
        groups: g.
        kernel: taps of a window per spatial dimension.
        stride: steps between windows.
        dilation: steps between taps.
    """

    signal: Tensor
    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def positions(self) -> tuple[int, ...]:
        """Output positions per spatial dimension."""
        return tuple(
            (size - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, dilation in zip(
                self.signal.shape[2:], self.kernel, self.stride, self.dilation, strict=True
            )
        )

    @property
    def count(self) -> int:
        """Windows: samples x positions."""
        return self.signal.shape[0] * math.prod(self.positions)

    @property
    def columns(self) -> int:
        """d: channels of one group x taps."""
        return self.signal.shape[1] // self.groups * math.prod(self.kernel)

    def windows(self) -> Tensor:
        """All windows as a view: (g, channels, *kernel, samples, *positions)."""
        signal = self.signal.unflatten(1, (self.groups, -1))
        step = signal.stride()
        taps = [s * dilation for s, dilation in zip(step[3:], self.dilation, strict=True)]
        moves = [s * stride for s, stride in zip(step[3:], self.stride, strict=True)]
        samples, groups, channels = signal.shape[:3]
        return signal.as_strided(
            (groups, channels, *self.kernel, samples, *self.positions),
            (step[1], step[2], *taps, step[0], *moves),
        )

    def chunks(self, count: int) -> Iterator[Tensor]:
        """Copies of at most about `count` windows each: (g, d, n).

        A chunk is a run of whole samples, or of rows (first spatial dimension) of one sample.
        """
        windows = self.windows()
        samples, rows, *others = windows.shape[2 + len(self.kernel) :]
        samples_each = max(1, count // max(1, rows * math.prod(others)))
        rows_each = rows if samples_each > 1 else max(1, count // max(1, math.prod(others)))
        sample_axis = 2 + len(self.kernel)
        for first, row in itertools.product(
            range(0, samples, samples_each), range(0, rows, rows_each)
        ):
            chunk = windows.narrow(sample_axis, first, min(samples_each, samples - first))
            chunk = chunk.narrow(sample_axis + 1, row, min(rows_each, rows - row))
            yield chunk.reshape(self.groups, self.columns, -1)


def patches_of(call: LayerCall) -> Patches:
    """The patches of a layer call; columns in the order of `Layer.matrix`.

    The order of samples and positions is the same for all calls of a layer with inputs of one
    shape, but it is not that of the output (a transposed convolution is read back to front).
    """
    signal, rank = signal_of(call), len(call.layer.kernel)
    if call.layer.kind == "linear":
        return Patches(signal, 1, (1,), (1,), (1,))
    stride = _per_dimension(call.arguments["stride"], rank)
    dilation = _per_dimension(call.arguments["dilation"], rank)
    if call.layer.kind == "conv_transpose":
        signal = _transposed_signal(call, signal, stride, dilation)
        stride = (1,) * rank
    else:
        signal = _pad(signal, _conv_padding(call, dilation))
    return Patches(signal, call.layer.groups, call.layer.kernel, stride, dilation)


def signal_of(call: LayerCall) -> Tensor:
    """(samples, channels, *size) the input of a layer call; each input of a linear layer alone."""
    if call.layer.kind == "linear":
        return call.input.reshape(-1, call.layer.d, 1)
    is_batch = call.input.dim() == len(call.layer.kernel) + 2
    return call.input if is_batch else call.input.unsqueeze(0)


def by_window(call: LayerCall, values: Tensor) -> Tensor:
    """Values shaped like a call's output, as (g, r, n) with windows in the order of its patches."""
    layer = call.layer
    if layer.kind == "linear":
        return values.reshape(1, -1, layer.r).mT
    if layer.kind == "conv_transpose":  # patches read it back to front
        values = values.flip(list(range(2, values.ndim)))
    return values.unflatten(1, (layer.g, layer.r)).movedim(0, 2).flatten(2)


def _per_dimension(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * rank if len(values) == 1 else values


def _pad(signal: Tensor, padding: Sequence[tuple[int, int]]) -> Tensor:
    """functional.pad counts dimensions from the last; negative amounts crop."""
    amounts = [amount for before_after in reversed(padding) for amount in before_after]
    return functional.pad(signal, amounts) if any(amounts) else signal


def _conv_padding(call: LayerCall, dilation: Sequence[int]) -> list[tuple[int, int]]:
    padding, kernel = call.arguments["padding"], call.layer.kernel
    if padding == "same":
        totals = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    if padding == "valid":
        padding = 0
    return [(amount, amount) for amount in _per_dimension(padding, len(kernel))]


def _transposed_signal(
    call: LayerCall, signal: Tensor, stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """The signal whose plain convolution with the weight is the transposed convolution.

    Zeros go between the samples and around them; reading back to front turns the kernel round.
    """
    rank = len(call.layer.kernel)
    padding = _per_dimension(call.arguments["padding"], rank)
    extra = _per_dimension(call.arguments["output_padding"], rank)
    sizes = [(size - 1) * step + 1 for size, step in zip(signal.shape[2:], stride, strict=True)]
    spread = signal.new_zeros(*signal.shape[:2], *sizes)
    spread[(..., *(slice(None, None, step) for step in stride))] = signal
    reach = [step * (size - 1) for step, size in zip(dilation, call.layer.kernel, strict=True)]
    around = [
        (full - cut, full - cut + more)
        for full, cut, more in zip(reach, padding, extra, strict=True)
    ]
    return _pad(spread, around).flip(list(range(2, 2 + rank)))
