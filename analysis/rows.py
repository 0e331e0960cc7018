"""Rows of a CSV that grows while a script runs, so that it resumes where it was stopped."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows measured so far; none where there is no file yet."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add one row, after a header where the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)
