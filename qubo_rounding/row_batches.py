"""Batches of rows whose intermediate results fit into memory together."""

from __future__ import annotations

from collections.abc import Iterator


def row_batches(g: int, r: int, numbers: int, limit: int) -> Iterator[tuple[slice, slice]]:
    """(groups, rows) slices that cover g groups of r rows: whole groups, or rows of one group.

    Args:
        g, r: groups, and rows in each.
        numbers: how many numbers one row needs at a time.
        limit: numbers a batch may hold; a single row is never split and may exceed it.
    """
    rows = max(1, limit // numbers)
    groups = max(1, rows // r)
    for group in range(0, g, groups):
        for row in range(0, r, rows):
            yield slice(group, group + groups), slice(row, row + rows)
