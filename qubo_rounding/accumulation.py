"""Sums over the input patches of layer calls: float32 products, float64 sums, bounded memory.

Channels that vary little about a large mean are taken less a reference near it, which is put back
in float64: products of the inputs themselves would be rounded by more than their covariance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from qubo_rounding.batch_contrasts import BatchContrasts
from qubo_rounding.layers import Layer
from qubo_rounding.passes import LayerCall
from qubo_rounding.patches import Patches, patches_of, signal_of
from qubo_rounding.tiling import Tiling, best_tiling

# A chunk of patches is at most 32 MiB of float32, and at most 2^14 terms go into a float32 sum.
# Both are constants, so that results do not depend on the machine or its number of threads.
CHUNK_ELEMENTS = 2**23
CHUNK_WINDOWS = 2**14
# Only the blocks of a symmetric product on and above the diagonal are computed.
BLOCK_COLUMNS = 256
# Of the first call; so few values of a channel are added up in one order by any number of threads.
_REFERENCE_SAMPLES, _REFERENCE_POSITIONS = 16, 256
_FAR = 8.0  # standard deviations from zero: a float32 product then has 4e-6 of the variance left


class InputSums:
    """Growing sums of x x' and x over the patches x of a layer's calls.

    With the same calls of a quantised network beside them, also of x_q x_q', x x_q' and x_q.

    Args:
        layer: the layer.
        paired: whether calls of a quantised network come too.
        device: where the sums are kept.
    """

    def __init__(self, layer: Layer, *, paired: bool, device: torch.device) -> None:
        self._layer = layer
        squares = ("second_change", "second_q", "change_q") if paired else ("second",)
        vectors = ("total_change", "total_q") if paired else ("total",)
        shape = (layer.g, layer.d)
        self._sums = {
            name: torch.zeros(
                (*shape, layer.d) if name in squares else shape, dtype=torch.float64, device=device
            )
            for name in (*squares, *vectors)
        }
        self._own = "_q" if paired else ""  # suffix of the inputs that the rounded layer gets
        self._contrasts = BatchContrasts(*shape, device)
        self._reference: Tensor | None = None  # float32 or float64 (g channels,)
        self.count = 0

    def add(self, call: LayerCall, call_q: LayerCall | None = None, *, batch: int) -> None:
        """Add the patches of one call.

        Args:
            call, call_q: in the float network; in the quantised one.
            batch: number of the batch that they are of.

        Raises:
            ValueError: the two calls differ in layer or input shape.
        """
        patches = patches_of(call)
        if self._reference is None:
            self._reference = _reference(call)
        tiling = best_tiling(self._centred(patches))
        if call_q is None:
            for x in _chunks(tiling):
                self._add_own(tiling, x, "")
        else:
            _check_alike(call, call_q)
            tiling_q = best_tiling(self._centred(patches_of(call_q)))
            for x, x_q in zip(_chunks(tiling), _chunks(tiling_q), strict=True):
                # Energies hang on what changed, however little: its sums are taken by themselves.
                change = x_q - x
                self._add_own(tiling, change, "_change")
                self._add_own(tiling_q, x_q, "_q")
                self._sums["change_q"] += tiling.fold(change @ x_q.mT, sides=2)
        self.count += patches.count
        second, total = (self._sums[name + self._own] for name in ("second", "total"))
        self._contrasts.follow(second, total, self.count, BLOCK_COLUMNS, batch)

    def is_finite(self) -> bool:
        """Whether all inputs so far were finite: one that was not spoils its own square."""
        return all(
            bool(sums.diagonal(dim1=-2, dim2=-1).isfinite().all())
            for name, sums in self._sums.items()
            if name.startswith("second")
        )

    def finish(self) -> dict[str, Tensor]:
        """The sums by the field names of Gram, symmetric ones exactly so; they are used up."""
        sums, self._sums = self._sums, {}
        paired = "change_q" in sums
        reference = self._column_references()
        contrasts = self._contrasts.finish(reference)
        if bool(reference.any()):
            if paired:  # a change has no reference: only its product with x_q lacks one side's
                sums["change_q"] += outer(sums["total_change"], reference)
            self._put_back(reference, sums["second" + self._own], sums["total" + self._own])
        if not paired:
            second = _mirrored(sums["second"])
            return {"second": second, "total": sums["total"], "contrasts": contrasts}
        second_q, second_change = (_mirrored(sums[n]) for n in ("second_q", "second_change"))
        change_q, total_q = sums["change_q"], sums["total_q"]
        return {
            "second": second_q - (change_q + change_q.mT) + second_change,
            "total": total_q - sums["total_change"],
            "second_q": second_q,
            "cross": second_q - change_q,
            "total_q": total_q,
            "contrasts": contrasts,
        }

    def _centred(self, patches: Patches) -> Patches:
        """The patches of the signal less the reference, padding included."""
        assert self._reference is not None
        signal = _at_least_float(patches.signal)
        if bool(self._reference.any()):
            signal = signal - self._reference.reshape(-1, *[1] * len(patches.kernel))
        return replace(patches, signal=signal)

    def _column_references(self) -> Tensor:
        """float64 (g, d): every column's reference is that of its channel."""
        assert self._reference is not None
        channels = self._reference.double().reshape(self._layer.g, -1)
        return channels.repeat_interleave(self._layer.d // channels.shape[1], dim=1)

    def _put_back(self, reference: Tensor, second: Tensor, total: Tensor) -> None:
        """Turn sums of y y' and y into those of (y + r) (y + r)' and y + r, in place."""
        pull = total + reference * (self.count / 2)
        second += outer(reference, pull)
        second += outer(pull, reference)
        total += reference * self.count

    def _add_own(self, tiling: Tiling, x: Tensor, suffix: str) -> None:
        second = self._sums["second" + suffix]
        if x.shape[1] <= BLOCK_COLUMNS:
            second += tiling.fold(x @ x.mT, sides=2)
        else:
            for start in range(0, x.shape[1], BLOCK_COLUMNS):
                rows = slice(start, start + BLOCK_COLUMNS)
                second[:, rows, start:] += x[:, rows] @ x[:, start:].mT
        self._sums["total" + suffix] += tiling.fold(x.sum(-1), sides=1)


def _chunks(tiling: Tiling) -> Iterator[Tensor]:
    """Chunks (g, columns, windows)."""
    windows = tiling.windows
    count = min(CHUNK_WINDOWS, CHUNK_ELEMENTS // (windows.groups * windows.columns))
    yield from windows.chunks(max(1, count))


def _reference(call: LayerCall) -> Tensor:
    """(channels,) about the mean of every channel that lies far from zero; 0 for the others."""
    values = signal_of(call)[:_REFERENCE_SAMPLES].flatten(2)
    values = _at_least_float(values[..., :: math.ceil(values.shape[2] / _REFERENCE_POSITIONS)])
    mean = values.mean((0, 2))
    spread = (values - mean[:, None]).square().mean((0, 2)).sqrt()
    return torch.where(mean.abs() > _FAR * spread, mean, 0.0)


def _at_least_float(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def outer(left: Tensor, right: Tensor) -> Tensor:
    """(g, a, b) products of (g, a) and (g, b)."""
    return left.unsqueeze(-1) * right.unsqueeze(-2)


def _check_alike(call: LayerCall, call_q: LayerCall) -> None:
    if call.layer != call_q.layer or call.input.shape != call_q.input.shape:
        raise ValueError(
            f"The float network calls {call.layer.name!r} on an input of shape "
            f"{tuple(call.input.shape)}, the quantised one {call_q.layer.name!r} on "
            f"{tuple(call_q.input.shape)}. Pair only networks of one architecture."
        )


def _mirrored(upper: Tensor) -> Tensor:
    return upper.triu_() + upper.triu(1).mT  # in place: wide layers leave no room for one more
