"""What was measured as tables, and as pictures on disk."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from torch import Tensor

from qubo_rounding.atomic import atomic_path
from qubo_rounding.compare import Record
from qubo_rounding.evaluation import Evaluation
from qubo_rounding.figures import STYLE, accuracy_figure, energy_figure, gram_flips_figure
from qubo_rounding.problem import RoundingProblem

_RATIO = "energy / nearest"


def markdown_table(
    rows: Sequence[Mapping[str, object]], columns: Sequence[str] | None = None
) -> str:
    """A table in Markdown, its columns aligned; floats to 4 significant digits, None as "-".

    Args:
        rows: by column name; what a row lacks is "-".
        columns: which to show, in this order; None shows all, as they first appear.

    Raises:
        ValueError: there are no columns.
    """
    shown = [
        _aligned(column, [row.get(column) for row in rows]) for column in columns or _columns(rows)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*shown, strict=True))


def write_table(path: str | Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write rows as CSV, floats in full; returns the path.

    Raises:
        ValueError: there are no columns.
    """
    columns = _columns(rows)
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return Path(path)


def records_table(records: Sequence[Record]) -> str:
    """Energies relative to nearest, one line a problem and one column a solver, as Markdown.

    The last lines are the geometric mean of these ratios, the ratio of the summed energies and the
    seconds in all; "-" for a solver that refused a problem, since its sums would be of others.

    Raises:
        ValueError: no records, or two of the same problem and solver.
    """
    runs: dict[str, dict[str, Record]] = {}
    for record in records:
        run = runs.setdefault(record.solver, {})
        if run.setdefault(record.problem, record) is not record:
            raise ValueError(
                f"two records are of {record.solver!r} on {record.problem!r}; give those of one "
                "comparison with one seed."
            )
    problems = list(dict.fromkeys(record.problem for record in records))
    rows = [
        {_RATIO: problem, **{s: run[problem].ratio for s, run in runs.items() if problem in run}}
        for problem in problems
    ]
    summaries = {
        solver: _summary(list(run.values()), len(problems)) for solver, run in runs.items()
    }
    for name in ("geometric mean", "sum of energies", "seconds"):
        rows.append({_RATIO: name, **{solver: of[name] for solver, of in summaries.items()}})
    return "\n".join([markdown_table(rows), *_refusals(runs, len(problems))])


def plot_energy_per_layer(ratios: Mapping[str, Mapping[str, float]], path: str | Path) -> Path:
    """Save `energy_figure`; the suffix decides the format (.png, .svg, .pdf)."""
    return _save(energy_figure(ratios), path)


def plot_accuracy(
    evaluations: Mapping[str, Evaluation], path: str | Path, float_top1: float | None = None
) -> Path:
    """Save `accuracy_figure`; the suffix decides the format (.png, .svg, .pdf)."""
    return _save(accuracy_figure(evaluations, float_top1), path)


def plot_gram_flips(
    problem: RoundingProblem, levels: Tensor, path: str | Path, group: int = 0, rows: int = 16
) -> Path:
    """Save `gram_flips_figure`; the suffix decides the format (.png, .svg, .pdf)."""
    return _save(gram_flips_figure(problem, levels, group, rows), path)


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    metadata = {"Date": None} if path.suffix == ".svg" else None  # same picture, same bits
    with atomic_path(path) as temporary, matplotlib.rc_context(STYLE):
        figure.savefig(temporary, dpi=150, metadata=metadata)
    return path


def _columns(rows: Sequence[Mapping[str, object]]) -> list[str]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        raise ValueError("a table needs columns; give at least one row with a value.")
    return columns


def _aligned(head: str, values: Sequence[object]) -> list[str]:
    """One column, head, rule and cells of one width: numbers to the right, words to the left."""
    cells = [_cell(head), *map(_cell, values)]
    width = max(3, *map(len, cells))
    if all(isinstance(value, int | float | None) for value in values):
        head, *body = [cell.rjust(width) for cell in cells]
        return [head, "-" * (width - 1) + ":", *body]
    head, *body = [cell.ljust(width) for cell in cells]
    return [head, "-" * width, *body]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        if 1e3 <= abs(value) < 1e9:
            return f"{value:.0f}"
        return f"{value:#.4g}".rstrip(".") if abs(value) >= 1e-4 else f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def _summary(run: Sequence[Record], problems: int) -> dict[str, float | None]:
    solved = [record for record in run if record.energy is not None]
    if len(solved) < problems:
        return dict.fromkeys(("geometric mean", "sum of energies", "seconds"))
    logs = [math.log(record.ratio) for record in solved if record.ratio and record.ratio > 0]
    nearest = sum(record.energy_nearest for record in solved)
    return {
        "geometric mean": math.exp(sum(logs) / problems) if len(logs) == problems else None,
        "sum of energies": sum(record.energy or 0 for record in solved) / nearest
        if nearest
        else None,
        "seconds": sum(record.seconds or 0 for record in solved),
    }


def _refusals(runs: Mapping[str, Mapping[str, Record]], problems: int) -> list[str]:
    lines = []
    for solver, run in runs.items():
        if refused := [record for record in run.values() if record.refused]:
            first = refused[0]
            lines.append(
                f"\n{solver} refused {len(refused)} of {problems} problems, first "
                f"{first.problem}: {first.refused}"
            )
    return lines
