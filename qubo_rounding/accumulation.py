"""Sums over the input patches of layer calls: float32 products, float64 sums, bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from qubo_rounding.layers import Layer
from qubo_rounding.passes import LayerCall
from qubo_rounding.patches import patches_of
from qubo_rounding.tiling import Tiling, best_tiling

# A chunk of patches is at most 32 MiB of float32, and at most 2^14 terms go into a float32 sum.
# Both are constants, so that results do not depend on the machine or its number of threads.
CHUNK_ELEMENTS = 2**23
CHUNK_WINDOWS = 2**14
# Only the blocks of a symmetric product on and above the diagonal are computed.
BLOCK_COLUMNS = 256


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
        self.count = 0

    def add(self, call: LayerCall, call_q: LayerCall | None = None) -> None:
        """Add the patches of one call.

        Raises:
            ValueError: the two calls differ in layer or input shape.
        """
        tiling = best_tiling(patches_of(call))
        if call_q is None:
            for x in _chunks(tiling):
                self._add_own(tiling, x, "")
        else:
            tiling_q = best_tiling(patches_of(call_q))
            _check_alike(call, call_q)
            for x, x_q in zip(_chunks(tiling), _chunks(tiling_q), strict=True):
                # Energies hang on what changed, however little: its sums are taken by themselves.
                change = x_q - x
                self._add_own(tiling, change, "_change")
                self._add_own(tiling_q, x_q, "_q")
                self._sums["change_q"] += tiling.fold(change @ x_q.mT, sides=2)
        self.count += tiling.patches.count

    def is_finite(self) -> bool:
        """Whether all inputs so far were finite: one that was not spoils its own square."""
        return all(
            bool(sums.diagonal(dim1=-2, dim2=-1).isfinite().all())
            for name, sums in self._sums.items()
            if name.startswith("second")
        )

    def tensors(self) -> dict[str, Tensor]:
        """The sums by the field names of Gram, symmetric ones exactly so."""
        sums = {
            name: _mirrored(sums) if name.startswith("second") else sums.clone()
            for name, sums in self._sums.items()
        }
        if "change_q" not in sums:
            return sums
        second_q, total_q, change_q = (sums[name] for name in ("second_q", "total_q", "change_q"))
        return {
            "second": second_q - (change_q + change_q.mT) + sums["second_change"],
            "total": total_q - sums["total_change"],
            "second_q": second_q,
            "cross": second_q - change_q,
            "total_q": total_q,
        }

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
    """Chunks (g, columns, windows), in a dtype whose products are at least float32."""
    windows = tiling.windows
    count = min(CHUNK_WINDOWS, CHUNK_ELEMENTS // (windows.groups * windows.columns))
    for chunk in windows.chunks(max(1, count)):
        yield chunk.to(torch.promote_types(chunk.dtype, torch.float32))


def _check_alike(call: LayerCall, call_q: LayerCall) -> None:
    if call.layer != call_q.layer or call.input.shape != call_q.input.shape:
        raise ValueError(
            f"The float network calls {call.layer.name!r} on an input of shape "
            f"{tuple(call.input.shape)}, the quantised one {call_q.layer.name!r} on "
            f"{tuple(call_q.input.shape)}. Pair only networks of one architecture."
        )


def _mirrored(upper: Tensor) -> Tensor:
    return upper.triu_() + upper.triu(1).mT  # in place: wide layers leave no room for one more
