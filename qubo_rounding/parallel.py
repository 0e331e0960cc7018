"""Row tiles in parallel: compiled single-threaded kernels, one tile a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

TILE_ROWS = 32  # errors and gradients of a tile stay in the second-level cache for d up to 4,608


def row_tiles(g: int, r: int) -> Iterator[tuple[int, slice]]:
    """(group, rows) pairs that cover g groups of r rows; a tile lies within one group."""
    for group in range(g):
        for start in range(0, r, TILE_ROWS):
            yield group, slice(start, min(start + TILE_ROWS, r))


def for_each_tile(g: int, r: int, kernel: Callable[[int, slice], None]) -> None:
    """Call `kernel(group, rows)` for every tile, on torch's number of threads.

    The kernel works in place and has to release the interpreter lock (numba's nogil). Rows do not
    see each other, so the result does not depend on the number of threads.
    """
    tiles = list(row_tiles(g, r))
    threads = min(torch.get_num_threads(), len(tiles))

    def run_share(first: int) -> None:
        for tile in tiles[first::threads]:
            kernel(*tile)

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(run_share, range(threads)):
            pass
