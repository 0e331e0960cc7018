"""Rows of a CSV that grows while a script runs, so that it resumes where it was stopped."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

from qubo_rounding.provenance import provenance
from qubo_rounding.report import markdown_table

RESULTS = Path(__file__).parent / "results"


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows measured so far; none where there is no file yet."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add one row under the file's header, which is the row's keys where the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    there = read_rows(path)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(there[0] if there else row))
        if not there:
            writer.writeheader()
        writer.writerow(row)


def write_markdown(name: str, rows: Sequence[Mapping[str, Any]], closing: str = "") -> None:
    """Write results/NAME.md: the command that makes it, the machine, the table, a closing line."""
    machine = f"{provenance()['machine']}, torch {provenance()['torch_version']}"
    module = name if (Path(__file__).parent / f"{name}.py").exists() else f"benchmarks.{name}"
    parts = [f"`python -m analysis.{module}` on {machine}", markdown_table(rows), closing]
    text = "\n\n".join(filter(None, parts))
    (RESULTS / f"{name}.md").write_text(text + "\n")


def read_markdown(name: str) -> list[dict[str, str]]:
    """The rows of the first table in results/NAME.md, as `write_markdown` wrote them."""
    lines = (RESULTS / f"{name}.md").read_text().splitlines()
    table = takewhile(_in_table, dropwhile(lambda line: not _in_table(line), lines))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    header, _, *rows = cells
    return [dict(zip(header, row, strict=True)) for row in rows]


def _in_table(line: str) -> bool:
    return line.startswith("|")
