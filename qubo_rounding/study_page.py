"""One page about a study: what every solver reached, in what time, and how far from the optimum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from qubo_rounding.figures import MARKERS, PALETTE, STYLE, accuracy_figure, tell_logarithm
from qubo_rounding.html_parts import picture, table, write_html
from qubo_rounding.means import geometric_mean
from qubo_rounding.network_study import NETWORK_RECORDS
from qubo_rounding.network_tables import network_evaluations, network_rows
from qubo_rounding.provenance import Provenance
from qubo_rounding.record_files import read_records
from qubo_rounding.records import NetworkRecord, Record
from qubo_rounding.study import RECORDS

_QUICKEST = 1e-4  # seconds; what is quicker is drawn here
_ORIGIN = ("package_version", "torch_version", "python_version", "commit", "machine", "threads")


def is_study(folder: str | Path) -> bool:
    """Whether a folder is what `compare` or `compare_networks` keeps."""
    return any((Path(folder) / name).is_file() for name in (RECORDS, NETWORK_RECORDS))


def write_study_page(study: str | Path, path: str | Path | None = None) -> Path:
    """Write the page of a study's folder, as the comparisons keep it; returns its path.

    Args:
        study: the folder, with records of problems, of whole networks, or both.
        path: of the page; None is report.html in the folder.

    Raises:
        ValueError: there are no records, or they are not readable.
    """
    study = Path(study)
    records = read_records(study / RECORDS) if (study / RECORDS).is_file() else []
    networks = []
    if (study / NETWORK_RECORDS).is_file():
        networks = read_records(study / NETWORK_RECORDS, NetworkRecord)
    solved = [record for record in records if record.energy is not None]
    if not solved and not networks:
        raise ValueError(f"{study} has no solved problem and no rounded network to show.")
    parts = _network_parts(networks) + (_problem_parts(records, solved) if records else [])
    parts.append("<h2>Where it was measured</h2>")
    origins = dict.fromkeys(
        tuple(getattr(record, name) for name in _ORIGIN) for record in [*records, *networks]
    )
    parts.append(table([dict(zip(_ORIGIN, origin, strict=True)) for origin in origins]))
    counts = [_count(networks, "network"), _count(networks, "method")] if networks else []
    counts += [_count(records, "problem"), _count(records, "solver")] if records else []
    title = f"{study.name}: {', '.join(counts)}"
    return write_html(study / "report.html" if path is None else Path(path), title, parts)


def _problem_parts(records: Sequence[Record], solved: Sequence[Record]) -> list[str]:
    parts = ["<h2>Solvers</h2>", table(solver_rows(records))]
    if any(record.ratio and record.seconds for record in solved):
        parts.append(picture("Energy and time", time_figure(records)))
    if any(record.over_bound is not None for record in solved):
        parts.append(picture("Energy over the best bound, by width", bound_figure(solved)))
    parts += ["<h2>Every record</h2>", table([_row(record) for record in solved])]
    refused = [
        {"problem": r.problem, "solver": r.solver, "why": r.refused} for r in records if r.refused
    ]
    return [*parts, "<h2>Refused</h2>", table(refused) if refused else "<p>Nothing.</p>"]


def _network_parts(records: Sequence[NetworkRecord]) -> list[str]:
    if not records:
        return []
    parts = ["<h2>Whole networks</h2>", table(network_rows(records))]
    for network, (evaluations, float_top1) in network_evaluations(records).items():
        parts.append(picture(f"Accuracy: {network}", accuracy_figure(evaluations, float_top1)))
    return parts


@matplotlib.rc_context(STYLE)
def time_figure(records: Sequence[Record]) -> Figure:
    """Energy relative to nearest against seconds: a pale point a record, the means drawn strongly.

    Means are drawn of solvers that solved every problem: those of others would be of fewer.

    Args:
        records: of all problems; those without ratio or time are left out.

    Raises:
        ValueError: none is left.
    """
    shown = [r for r in records if r.ratio is not None and r.ratio > 0 and r.seconds is not None]
    if not shown:
        raise ValueError("no record has a ratio and a time to draw.")
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    whole = _solved_everything(records)
    for number, (solver, of_solver) in enumerate(_by_solver(shown).items()):
        look: dict[str, Any] = {
            "color": PALETTE[number % len(PALETTE)],
            "marker": MARKERS[number % len(MARKERS)],
        }
        seconds = [max(record.seconds or 0, _QUICKEST) for record in of_solver]
        ratios = [record.ratio or 1 for record in of_solver]
        points = axes.scatter(seconds, ratios, s=16, alpha=0.5, linewidths=0, **look)
        if solver in whole:
            means = [geometric_mean(seconds) or 1], [geometric_mean(ratios) or 1]
            points = axes.scatter(*means, s=110, edgecolors="white", zorder=3, **look)
        points.set_label(solver)
    axes.set_xscale("log")
    axes.set_yscale("log")
    tell_logarithm(axes.yaxis)
    axes.set(xlabel="seconds a problem", ylabel="energy / energy of nearest")
    axes.set_title("down and to the left is better; large: geometric means over all problems")
    axes.grid()
    figure.legend(loc="outside lower left", ncols=3)
    return figure


@matplotlib.rc_context(STYLE)
def bound_figure(records: Sequence[Record]) -> Figure:
    """Energy over the best lower bound, less one and in percent, against the width of rows.

    Args:
        records: of solved problems; those without a bound are left out.

    Raises:
        ValueError: none is left.
    """
    shown = [r for r in records if r.over_bound is not None]
    if not shown:
        raise ValueError("no record has a bound to draw.")
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    for number, (solver, of_solver) in enumerate(_by_solver(shown).items()):
        axes.scatter(
            [record.d for record in of_solver],
            [max(0.0, 100 * ((record.over_bound or 1) - 1)) for record in of_solver],
            color=PALETTE[number % len(PALETTE)],
            marker=MARKERS[number % len(MARKERS)],
            alpha=0.7,
            label=solver,
        )
    axes.set_xscale("log")
    tell_logarithm(axes.xaxis)
    axes.set_yscale("symlog", linthresh=0.1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:g}"))
    axes.set_ylim(-0.02, 2 * max(0.1, axes.dataLim.ymax))  # the highest mark whole
    axes.set(xlabel="weights in a row", ylabel="percent above the best bound")
    axes.set_title("0 is the proven optimum where all rows are proven")
    axes.grid()
    figure.legend(loc="outside lower left", ncols=3)
    return figure


def _by_solver(records: Sequence[Record]) -> Mapping[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.solver, []).append(record)
    return found


def _solved_everything(records: Sequence[Record]) -> set[str]:
    """The solvers that solved every problem and refused none: their means are of the same."""
    problems = {(record.problem, record.calibration) for record in records}
    return {
        solver
        for solver, every in _by_solver(records).items()
        if all(record.energy is not None for record in every)
        and {(record.problem, record.calibration) for record in every} == problems
    }


def solver_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One row a solver: its means, None where it did not solve every problem, and its counts."""
    rows = []
    whole = _solved_everything(records)
    for solver, every in _by_solver(records).items():
        solved = [record for record in every if record.energy is not None]
        compared = solved if solver in whole else []
        ratios = [record.ratio for record in compared]
        held = [record.held_out_ratio for record in compared]
        over = [record.over_bound for record in compared]
        known = sum(record.known_rows for record in solved)
        rows.append(
            {
                "solver": solver,
                "runs": len(every),
                "refused": len(every) - len(solved),
                "energy / nearest": geometric_mean(ratios),
                "held out / nearest": geometric_mean(held),
                "energy / best bound": geometric_mean(over),
                "rows exact": sum(record.exact_rows for record in solved) if known else None,
                "rows known": known or None,
                "seconds": sum(record.seconds or 0 for record in compared) if compared else None,
            }
        )
    return rows


def _row(record: Record) -> dict[str, Any]:
    return {
        "problem": record.problem,
        "calibration": record.calibration or None,
        "rows": record.g * record.r,
        "columns": record.d,
        "solver": record.solver,
        "seed": record.seed,
        "energy": record.energy,
        "energy / nearest": record.ratio,
        "held out / nearest": record.held_out_ratio,
        "energy / best bound": record.over_bound,
        "rows exact": record.exact_rows if record.known_rows else None,
        "rows known": record.known_rows or None,
        "proved by": record.proven_by or None,
        "bits of optimum": record.bits_of_optimum,
        "bits of AdaRound": record.bits_of_relaxation,
        "seconds": record.seconds,
    }


def _count(records: Sequence[Provenance], what: str) -> str:
    number = len({getattr(record, what) for record in records})
    return f"{number} {what}{'' if number == 1 else 's'}"
