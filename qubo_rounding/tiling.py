"""Several neighbouring patches in one larger window: less to copy, larger matrix products.

Neighbouring patches overlap: a 2 x 2 tile of 5 x 5 patches covers 6 x 6 values, not 100. The
products of all pairs of values in the larger window contain those of each of its patches.
Depthwise layers with large kernels take half the time; wide layers are best left alone.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, replace

from torch import Tensor

from qubo_rounding.patches import Patches

# Larger tiles save no more copies, and their products take longer to fold than to compute.
MAX_POSITIONS = 16
MAX_COLUMNS = 128
# Copying one value into a chunk takes about as long as this many multiplications.
COPY_COST = 20


@dataclass(frozen=True)
class Tiling:
    """Patches taken `tile` at a time.

    Args:
        patches: the patches whose sums are wanted.
        tile: neighbouring positions per spatial dimension; each divides `patches.positions`.
    """

    patches: Patches
    tile: tuple[int, ...]

    @property
    def windows(self) -> Patches:
        """The larger windows, one per tile."""
        if math.prod(self.tile) == 1:
            return self.patches
        own = self.patches
        return replace(
            own,
            kernel=_window(self.tile, own.kernel, own.stride, own.dilation),
            stride=tuple(step * tile for step, tile in zip(own.stride, self.tile, strict=True)),
            dilation=(1,) * len(own.kernel),
        )

    def fold(self, sums: Tensor, *, sides: int) -> Tensor:
        """Sums over the windows turned into sums over the patches in them.

        Args:
            sums: (g, columns of `windows`), or (g, the same, the same).
            sides: 1 or 2: how many column dimensions there are.

        Returns:
            (g, d) or (g, d, d).
        """
        if math.prod(self.tile) == 1:
            return sums
        own, rank = self.patches, len(self.tile)
        channels = own.columns // math.prod(own.kernel)
        for side in range(sides):
            sums = sums.unflatten(1 + side * (1 + rank), (channels, *self.windows.kernel))
        channel_axes = range(1, 1 + sides * (1 + rank), 1 + rank)
        moves, taps = [0] * rank, []  # strides from patch to patch, and within a patch
        for axis in channel_axes:
            steps = sums.stride()[axis + 1 : axis + 1 + rank]
            moves = [m + s * move for m, s, move in zip(moves, steps, own.stride, strict=True)]
            taps += [sums.stride(axis), *(s * d for s, d in zip(steps, own.dilation, strict=True))]
        sizes = (own.groups, *self.tile, *(channels, *own.kernel) * sides)
        patches = sums.as_strided(sizes, (sums.stride(0), *moves, *taps))
        columns = (own.columns,) * sides
        return patches.sum(tuple(range(1, 1 + rank))).reshape(own.groups, *columns)


def best_tiling(patches: Patches) -> Tiling:
    """The tiling that is cheapest for these patches; it depends on shapes alone."""
    channels = patches.columns // math.prod(patches.kernel)
    geometry = (patches.kernel, patches.stride, patches.dilation)
    return Tiling(patches, _best_tile(channels, patches.positions, *geometry))


@functools.lru_cache(maxsize=1024)
def _best_tile(
    channels: int,
    positions: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[int, ...]:
    best, lowest = (1,) * len(kernel), _cost(channels * math.prod(kernel), 1)
    sides = [[side for side in range(1, MAX_POSITIONS + 1) if n % side == 0] for n in positions]
    for tile in itertools.product(*sides):
        columns = channels * math.prod(_window(tile, kernel, stride, dilation))
        cost = _cost(columns, math.prod(tile))
        if math.prod(tile) <= MAX_POSITIONS and columns <= MAX_COLUMNS and cost < lowest:
            best, lowest = tile, cost
    return best


def _cost(columns: int, positions: int) -> float:
    """Relative cost per patch of copying windows of so many columns and multiplying them."""
    return columns * (columns + COPY_COST) / positions


def _window(
    tile: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[int, ...]:
    """Size of the window that covers the patches of a tile."""
    return tuple(
        step * (side - 1) + gap * (taps - 1) + 1
        for side, taps, step, gap in zip(tile, kernel, stride, dilation, strict=True)
    )
