"""Tiles of rows, on any number of threads."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from company import torch_threads

from qubo_rounding.parallel import TILE_ROWS, for_each_row, for_each_tile, row_tiles
from qubo_rounding.watch import watching


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    with torch_threads(request.param):
        yield request.param


@pytest.mark.parametrize("r", [1, TILE_ROWS - 1, TILE_ROWS, TILE_ROWS + 1, 5 * TILE_ROWS])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_tiles_cover_every_row_once_and_stay_within_a_group(r: int, workers: int) -> None:
    seen = torch.zeros(3, r, dtype=torch.int64)
    for group, rows in row_tiles(3, r, workers):
        assert 0 < rows.stop - rows.start <= TILE_ROWS
        seen[group, rows] += 1
    assert bool((seen == 1).all())


@pytest.mark.parametrize(("r", "workers"), [(2, 2), (32, 2), (40, 2), (100, 2), (31, 5), (200, 5)])
def test_every_thread_has_as_many_rows_as_the_others_or_few_less(r: int, workers: int) -> None:
    tiles = [rows for _, rows in row_tiles(1, r, workers)]
    shares = [sum(t.stop - t.start for t in tiles[n::workers]) for n in range(workers)]
    assert min(shares) > 0
    assert max(shares) <= -(-r // len(tiles)) * -(-len(tiles) // workers)
    assert max(shares) <= r / workers + len(tiles)


def test_every_tile_is_worked_on_once_by_no_more_threads_than_torch_has(threads: int) -> None:
    seen = torch.zeros(4, 100, dtype=torch.int64)
    workers = set()

    def kernel(group: int, rows: slice) -> None:
        seen[group, rows] += 1
        workers.add(threading.get_ident())

    for_each_tile(4, 100, kernel)
    assert bool((seen == 1).all())
    assert len(workers) <= threads


def test_few_rows_are_shared_where_they_take_long() -> None:
    with torch_threads(2):
        for operations, heights in ((0, [20]), (10**7, [10, 10])):
            calls: list[slice] = []
            for_each_tile(1, 20, lambda _, rows, calls=calls: calls.append(rows), operations)
            assert [rows.stop - rows.start for rows in calls] == heights


def test_one_row_needs_one_thread(threads: int) -> None:
    calls = []
    for_each_tile(1, 1, lambda group, rows: calls.append((group, rows)))
    assert calls == [(0, slice(0, 1))]


def test_an_error_in_a_tile_surfaces(threads: int) -> None:
    def kernel(group: int, rows: slice) -> None:
        if group == 2:
            raise ArithmeticError("tile of group 2")

    with pytest.raises(ArithmeticError, match="group 2"):
        for_each_tile(4, 3, kernel)


def test_every_row_is_worked_on_once(threads: int) -> None:
    seen = torch.zeros(3, 40, dtype=torch.int64)

    def kernel(group: int, row: int) -> None:
        seen[group, row] += 1

    for_each_row(3, 40, kernel, "rows")
    assert bool((seen == 1).all())


def test_a_time_limit_leaves_rows_to_their_kernel() -> None:
    seen = torch.zeros(1, 20, dtype=torch.int64)

    def kernel(group: int, row: int) -> None:
        seen[group, row] += 1

    with watching(time_limit=1e-9):
        for_each_row(1, 20, kernel, "rows")
    assert bool((seen == 1).all())


def test_an_error_in_a_row_surfaces(threads: int) -> None:
    def kernel(group: int, row: int) -> None:
        if (group, row) == (1, 2):
            raise ArithmeticError("row 2")

    with pytest.raises(ArithmeticError, match="row 2"):
        for_each_row(2, 3, kernel, "rows")


def interrupted(stop: threading.Event | None) -> list[int]:
    """The rows begun when Ctrl-C comes during the first of a hundred, on one thread."""
    begun: list[int] = []

    def kernel(group: int, row: int) -> None:
        if stop is not None and stop.is_set():
            return
        begun.append(row)
        if row == 0:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)

    try:
        with torch_threads(1):
            for_each_row(1, 100, kernel, "rows", stop)
    except KeyboardInterrupt:
        assert stop is None
    else:
        assert stop is not None
        assert stop.is_set()
    return begun


def test_ctrl_c_is_raised_and_cancels_the_rows_to_come() -> None:
    assert len(interrupted(None)) < 50


def test_ctrl_c_sets_the_given_event_instead() -> None:
    assert len(interrupted(threading.Event())) < 50
