"""What a network of 70 billion weights would cost on many workers, and a check of that model here.

    python -m analysis.cost_model     # 1 minute, 2 cores

Two costs are measured on this machine: float32 products (for Grams), and `auto` with effort fast.
The model divides rows among workers, each of which gets the layer's Gram matrix once over a network
of 1 GB/s. It is checked on one layer with 1, 2, 4 and 8 processes: foreseen is the time of one part
in this process times the parts, over the cores. Few rows take longer each, since they share
products. Writes results/cost_model.md.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import torch

from analysis.entry import begin
from analysis.rows import write_markdown
from analysis.timing import products_per_second
from qubo_rounding import Auto, Spread, processes
from qubo_rounding.report import markdown_table
from qubo_rounding.testing import random_problem

# Llama-3-70B's shapes: layers of a kind, outputs (rows), inputs (columns).
LAYERS = (
    ("query, output", 160, 8192, 8192),
    ("key, value", 160, 1024, 8192),
    ("gate, up", 160, 28672, 8192),
    ("down", 80, 8192, 28672),
)
TOKENS = 128 * 2048  # calibration samples
BANDWIDTH = 1e9  # bytes a second into each worker
WORKERS = (1, 16, 128, 1024)
WIDTHS, ROWS = (288, 576, 1152, 2304), 64
CHECK_ROWS, CHECK_WIDTH, CHECK_WORKERS = 256, 768, (1, 2, 4, 8)
SOLVER = Auto("fast")


@dataclass(frozen=True)
class Rates:
    """What was measured.

    Args:
        products: float32 multiply-adds a second, one core.
        solver: seconds of one core for a row of one column squared.
    """

    products: float
    solver: float


def measured() -> Rates:
    """One core's rates; the solver's from the widest rows, where its time is d^2 a row."""
    torch.set_num_threads(1)
    SOLVER.solve(random_problem(1, 1, 300))
    times = {}
    for width in WIDTHS:
        problem = random_problem(1, ROWS, width)
        began = time.perf_counter()
        SOLVER.solve(problem)
        times[width] = (time.perf_counter() - began) / ROWS
        print(f"d = {width}: {times[width]:.3f} s a row", flush=True)
    return Rates(products_per_second(), times[WIDTHS[-1]] / WIDTHS[-1] ** 2)


def hours(rates: Rates, workers: int) -> dict[str, float]:
    """Hours of a network's parts on so many workers of one core."""
    grams = sum(n * TOKENS * d**2 for _, n, _, d in LAYERS) / rates.products / workers
    # No more workers than rows share a layer; layers follow each other.
    solver = sum(n * r * d**2 * rates.solver / min(workers, r) for _, n, r, d in LAYERS)
    sent = sum(n * 4 * d**2 / BANDWIDTH for _, n, _, d in LAYERS) if workers > 1 else 0.0
    return {"Grams": grams / 3600, "solver": solver / 3600, "sending Grams": sent / 3600}


def checked() -> list[dict[str, Any]]:
    """One layer on 1 to 8 processes, as foreseen and as it went; starting processes not counted."""
    cores = os.cpu_count() or 1
    problem = random_problem(1, CHECK_ROWS, CHECK_WIDTH)
    torch.set_num_threads(1)
    alone = SOLVER.solve(problem)
    rows = []
    for workers in CHECK_WORKERS:
        part = problem.part(rows=slice(0, CHECK_ROWS // workers))
        began = time.perf_counter()
        SOLVER.solve(part)
        one = workers * (time.perf_counter() - began)
        with processes(workers) as make:
            spread = Spread(SOLVER, make, parts=workers)
            spread.solve(problem.part(rows=slice(0, workers)))  # starts them, compiles
            began = time.perf_counter()
            found = spread.solve(problem)
            seconds = time.perf_counter() - began
        rows.append(
            {
                "processes": workers,
                "foreseen, s": one / min(workers, cores),
                "measured, s": seconds,
                "the same bits": bool(torch.equal(found.levels, alone.levels)),
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure, foresee, check, write."""
    rates = measured()
    table = []
    for workers in WORKERS:
        parts = hours(rates, workers)
        bottleneck = max(parts, key=lambda name: parts[name])
        total = sum(parts.values())
        table.append({"workers": workers, **parts, "hours": total, "most": bottleneck})
    weights = sum(n * r * d for _, n, r, d in LAYERS)
    largest = max(d for *_, d in LAYERS)
    reading = (
        f"{weights / 1e9:.1f} billion weights, {TOKENS} calibration tokens; the widest Gram takes "
        f"{4 * largest**2 / 2**30:.1f} GiB in float32. Hours of one-core workers at "
        f"{rates.products / 1e9:.0f} billion multiply-adds a second and {rates.solver:.2g} s x d^2 "
        "a row; sending Grams does not get shorter with more workers, and becomes what counts."
    )
    check = f"The check: {CHECK_ROWS} rows of {CHECK_WIDTH} columns on {os.cpu_count()} cores."
    closing = "\n\n".join([reading, check, markdown_table(checked())])
    write_markdown("cost_model", table, closing)


if __name__ == "__main__":
    begin(__doc__, kit=False)
    main()
