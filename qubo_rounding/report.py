"""What was measured as tables, and as pictures on disk."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from torch import Tensor

from qubo_rounding.atomic import atomic_path
from qubo_rounding.evaluation import Evaluation
from qubo_rounding.figures import STYLE, accuracy_figure, energy_figure, gram_flips_figure
from qubo_rounding.means import geometric_mean, quotient
from qubo_rounding.network_tables import network_rows
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.records import NetworkRecord, Record

_RATIO = "energy / nearest"
_ALWAYS = ("geometric mean", "sum of energies", "seconds")  # lines of every table of records


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

    Several seeds are averaged. The lines below are the geometric mean of these ratios, the same on
    held-out images, the ratio of the summed energies, the sum of energies over the best lower
    bounds, the rows solved to a proven optimum of all that are known, and the seconds; "-" for a
    solver that refused a problem, since its sums would be of others. Lines that no solver has a
    number for are left out.

    Raises:
        ValueError: no records, or two of the same problem, solver and seed.
    """
    runs: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        of_problem = runs.setdefault(record.solver, {}).setdefault(_case_name(record), [])
        if any(other.seed == record.seed for other in of_problem):
            raise ValueError(
                f"two records are of {record.solver!r} on {record.problem!r} with seed "
                f"{record.seed}; give those of one comparison."
            )
        of_problem.append(record)
    names = list(dict.fromkeys(map(_case_name, records)))
    rows = [
        {
            _RATIO: name,
            **{s: _mean(r.ratio for r in run[name]) for s, run in runs.items() if name in run},
        }
        for name in names
    ]
    summaries = {solver: _summary(run, len(names)) for solver, run in runs.items()}
    for line in next(iter(summaries.values()), {}):
        values = {solver: of[line] for solver, of in summaries.items()}
        if line in _ALWAYS or any(value is not None for value in values.values()):
            rows.append({_RATIO: line, **values})
    return "\n".join([markdown_table(rows), *_refusals(runs, len(names))])


def networks_table(records: Sequence[NetworkRecord]) -> str:
    """One line a network and method, as Markdown: the float network, then means over the seeds.

    Columns that no line has a number for are left out.

    Raises:
        ValueError: no records.
    """
    rows = network_rows(records)
    names = dict.fromkeys(name for row in rows for name in row)
    told = [name for name in names if any(row.get(name) is not None for row in rows)]
    return markdown_table(rows, told)


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


def _case_name(record: Record) -> str:
    return f"{record.problem} ({record.calibration})" if record.calibration else record.problem


def _mean(values: Iterable[float | None]) -> float | None:
    """None where there are no values or one is None."""
    numbers = list(values)
    known = [number for number in numbers if number is not None]
    return sum(known) / len(known) if known and len(known) == len(numbers) else None


def _summary(run: Mapping[str, Sequence[Record]], problems: int) -> dict[str, object]:
    """What stands in the last lines of a solver's column."""
    every = [record for records in run.values() for record in records]
    if len(run) < problems or any(record.energy is None for record in every):
        every = []
    energy = sum(record.energy or 0 for record in every)
    bounded = bool(every) and all(record.best_bound is not None for record in every)
    known = sum(record.known_rows for record in every)
    ratios = [_mean(record.ratio for record in records) for records in run.values()]
    held_out = [_mean(record.held_out_ratio for record in records) for records in run.values()]
    return {
        "geometric mean": geometric_mean(ratios) if every else None,
        "held out": geometric_mean(held_out) if every else None,
        "sum of energies": quotient(energy, sum(record.energy_nearest for record in every)),
        "over the bounds": quotient(energy, sum(record.best_bound or 0 for record in every))
        if bounded
        else None,
        "rows exact": f"{sum(record.exact_rows for record in every)} of {known}" if known else None,
        "seconds": sum(record.seconds or 0 for record in every) if every else None,
    }


def _refusals(runs: Mapping[str, Mapping[str, Sequence[Record]]], problems: int) -> list[str]:
    lines = []
    for solver, run in runs.items():
        if refused := [records[0] for records in run.values() if records[0].refused]:
            first = refused[0]
            lines.append(
                f"\n{solver} refused {len(refused)} of {problems} problems, first "
                f"{first.problem}: {first.refused}"
            )
    return lines
