"""Rows and row tiles in parallel: compiled single-threaded kernels, one row or tile a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

import torch

from qubo_rounding.watch import watched

_WORTH_A_THREAD = 2**23  # operations: some milliseconds
TILE_ROWS = 32  # errors and gradients of a tile stay in the second-level cache for d up to 4,608


def row_tiles(g: int, r: int, threads: int = 1) -> Iterator[tuple[int, slice]]:
    """(group, rows) pairs that cover g groups of r rows; a tile lies within one group.

    There are enough of them, and of like height, for so many threads, if there are enough rows.
    """
    shares = -(-threads // g)  # of a group's rows
    tiles = shares * -(-r // (shares * TILE_ROWS))
    height = -(-r // tiles)
    for group in range(g):
        for start in range(0, r, height):
            yield group, slice(start, min(start + height, r))


def for_each_tile(
    g: int, r: int, kernel: Callable[[int, slice], None], operations: int = 0
) -> None:
    """Call `kernel(group, rows)` for every tile, on torch's number of threads.

    The kernel works in place and has to release the interpreter lock (numba's nogil). Rows do not
    see each other, so the result does not depend on the number of threads.

    Args:
        g, r: groups and rows.
        kernel: see above.
        operations: of a row, about. Where there are many, few rows are shared by all threads, too;
            to begin a thread takes longer than a short call.
    """
    threads = torch.get_num_threads()
    tiles = list(row_tiles(g, r, threads if g * r * operations > _WORTH_A_THREAD else 1))
    others = min(threads, len(tiles)) - 1
    left = iter(tiles)

    def run() -> None:
        for tile in left:
            kernel(*tile)

    if others == 0:
        run()
        return
    # Whoever is ready takes the next tile: for some milliseconds after a call of torch its own
    # threads keep their cores busy, waiting for the next.
    with ThreadPoolExecutor(others) as pool:
        tasks = [pool.submit(run) for _ in range(others)]
        run()
    for task in tasks:
        task.result()


def for_each_row(
    g: int, r: int, kernel: Callable[[int, int], None], label: str, stop: Event | None = None
) -> None:
    """Call `kernel(group, row)` for every row, on torch's number of threads, behind one bar.

    For kernels of very different length: a thread takes the next row when it has finished one. Time
    limits are the kernel's affair: all rows are called, unless Ctrl-C comes.

    Args:
        g, r: groups and rows.
        kernel: works in place and releases the interpreter lock.
        label: of the progress bar.
        stop: where given, Ctrl-C sets it instead of being raised, and kernels that look at it end.
    """
    tasks: list[Future[None]] = []
    with ThreadPoolExecutor(min(torch.get_num_threads(), g * r)) as pool:
        try:
            tasks.extend(pool.submit(kernel, i // r, i % r) for i in range(g * r))
            for task in watched(tasks, label):
                task.result()
        except KeyboardInterrupt:
            if stop is None:
                pool.shutdown(cancel_futures=True)
                raise
            stop.set()
    for task in tasks:
        task.result()
