"""How long annealing takes by rows, columns, sweeps and threads, beside the machine's roofline.

    python -m analysis.benchmarks.scaling      # a minute on 2 cores, nothing else running

The roofline of a sweep is what its accepted moves cost at least: each adds a row of the Gram
matrix to a row of slopes, 2 d flops, at the rate of a large float32 matrix product; or these rows
of the matrix, the slopes and the levels once through memory, at the rate of a copy of as many
bytes, so that what fits a cache is held to the cache's rate; whichever is longer. Seconds a sweep
are differences of a long and a short run, so that starts and descents drop out; the best of
several, alternating. Writes results/scaling.{csv,md,svg}.
"""

from __future__ import annotations

from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.entry import begin
from analysis.rows import RESULTS, append_row, read_rows, write_markdown
from analysis.timing import best_seconds, products_per_second, seconds
from qubo_rounding import Annealing, Nearest, RoundingProblem
from qubo_rounding.figures import MARKERS, PALETTE, STYLE
from qubo_rounding.testing import random_problem

PATH = RESULTS / "scaling.csv"
ROWS, COLUMNS, SWEEPS = 128, 576, 200
VARIED: dict[str, tuple[int, ...]] = {
    "columns": (72, 144, 288, 576, 1152, 2304),
    "rows": (8, 32, 128, 512),
    "sweeps": (100, 200, 400, 800),
}
THREADS = (1, 2)
REPETITIONS = 3


def measure() -> None:
    """Append a row for every size and number of threads to a new CSV."""
    PATH.unlink(missing_ok=True)
    flops = {}
    for threads in THREADS:
        torch.set_num_threads(threads)
        flops[threads] = 2 * products_per_second(2048)
    for varied, values in VARIED.items():
        for value in values:
            size = {"rows": ROWS, "columns": COLUMNS, "sweeps": SWEEPS, varied: value}
            problem = random_problem(1, size["rows"], size["columns"], seed=0)
            for threads in THREADS:
                torch.set_num_threads(threads)
                took, share = sweep_seconds(problem, size["sweeps"])
                r, d = size["rows"], size["columns"]
                moves = r * d * share
                moving = 4 * d * min(d, moves) + 14 * r * d  # slopes twice, scales, levels
                floor = max(2 * d * moves / flops[threads], copy_seconds(moving))
                row = {"varied": varied, **size, "threads": threads, "seconds a sweep": took}
                row |= {
                    "floor": floor,
                    "accepted": share,
                    "product": 2 * r * d * d / flops[threads],
                }
                append_row(PATH, row)
                print(row, flush=True)


def copy_seconds(moving: float) -> float:
    """Seconds in which so many bytes are read or written by a copy of half as many."""
    source = torch.ones(int(moving / 8))
    copy = torch.empty_like(source)
    return best_seconds(lambda: [copy.copy_(source) for _ in range(50)]) / 50


def sweep_seconds(problem: RoundingProblem, sweeps: int) -> tuple[float, float]:
    """Seconds of one sweep, and the share of the proposals that it accepts."""
    long = Annealing(sweeps=sweeps, reads=1, start=Nearest())
    short = Annealing(sweeps=sweeps // 4, reads=1, start=Nearest())
    pairs = [
        (seconds(lambda: long.solve(problem)), seconds(lambda: short.solve(problem)))
        for _ in range(REPETITIONS)
    ]
    best_long, best_short = (min(times) for times in zip(*pairs, strict=True))
    share = long.solve(problem).stats["accepted_share"]
    return (best_long - best_short) / (sweeps - sweeps // 4), share


@matplotlib.rc_context(STYLE)
def picture(rows: list[dict[str, str]]) -> Figure:
    """Milliseconds a sweep by columns, by rows and by sweeps, with the roofline below."""
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    figure.suptitle("One annealing sweep over all rows of a layer", x=0.01, ha="left")
    for axes, varied in zip(figure.subplots(1, len(VARIED), sharey=True), VARIED, strict=True):
        part = [row for row in rows if row["varied"] == varied]
        for number, threads in enumerate(THREADS):
            own = [row for row in part if row["threads"] == str(threads)]
            _draw(axes, own, varied, threads, number)
        others = {"rows": ROWS, "columns": COLUMNS, "sweeps": SWEEPS}
        del others[varied]
        fixed = ", ".join(f"{value} {name}" for name, value in others.items())
        axes.set(xscale="log", yscale="log", xlabel=varied, title=fixed)
        axes.set_xticks(VARIED[varied], [str(value) for value in VARIED[varied]], minor=False)
        axes.set_xticks([], minor=True)
        axes.grid(True, which="major")
    figure.axes[0].set_ylabel("milliseconds a sweep")
    figure.axes[0].legend()
    return figure


def _draw(axes: Axes, rows: list[dict[str, str]], varied: str, threads: int, number: int) -> None:
    name = f"{threads} thread" + "s" * (threads > 1)
    at = [int(row[varied]) for row in rows]
    for column, line, label in (
        ("seconds a sweep", "-", name),
        ("floor", ":", f"roofline, {name}"),
    ):
        milliseconds = [1000 * float(row[column]) for row in rows]
        marker = MARKERS[number] if column != "floor" else None
        axes.plot(at, milliseconds, line, marker=marker, color=PALETTE[3 + number], label=label)


def render() -> None:
    """Write the table and the picture."""
    rows = read_rows(PATH)
    table: list[dict[str, Any]] = [
        {
            **{key: row[key] for key in ("rows", "columns", "sweeps", "threads")},
            "ms a sweep": 1000 * float(row["seconds a sweep"]),
            "roofline, ms": 1000 * float(row["floor"]),
            "over it": float(row["seconds a sweep"]) / float(row["floor"]),
            "of a full product": float(row["seconds a sweep"]) / float(row["product"]),
            "accepted": float(row["accepted"]),
        }
        for row in rows
    ]
    picture(rows).savefig(RESULTS / "scaling.svg", metadata={"Date": None})
    write_markdown("scaling", table, "![milliseconds a sweep](scaling.svg)")


if __name__ == "__main__":
    begin(__doc__, kit=False)
    measure()
    render()
