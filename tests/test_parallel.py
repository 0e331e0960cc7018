"""Tiles of rows, on any number of threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from qubo_rounding.parallel import TILE_ROWS, for_each_tile, row_tiles


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("r", [1, TILE_ROWS - 1, TILE_ROWS, TILE_ROWS + 1, 5 * TILE_ROWS])
def test_tiles_cover_every_row_once_and_stay_within_a_group(r: int) -> None:
    seen = torch.zeros(3, r, dtype=torch.int64)
    for group, rows in row_tiles(3, r):
        assert 0 < rows.stop - rows.start <= TILE_ROWS
        seen[group, rows] += 1
    assert bool((seen == 1).all())


def test_every_tile_is_worked_on_once_by_no_more_threads_than_torch_has(threads: int) -> None:
    seen = torch.zeros(4, 100, dtype=torch.int64)
    workers = set()

    def kernel(group: int, rows: slice) -> None:
        seen[group, rows] += 1
        workers.add(threading.get_ident())

    for_each_tile(4, 100, kernel)
    assert bool((seen == 1).all())
    assert len(workers) <= threads


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
