"""K-best by width and order, beside the other searches: energy and time on layers of many widths.

    python -m analysis.benchmarks.k_best_widths      # about 2 minutes on 2 cores

The problems are the files of analysis.problem_files (4 bits per channel, 256 calibration
images, bias refit), the first 16 rows of each, 6 of the widest layer. dwave-samplers' tabu search
gets as long as ours took. Writes results/k_best_widths.csv, one row a layer and solver, and the
table results/k_best_widths.md, whose columns are energies relative to nearest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from analysis.entry import begin
from analysis.problem_files import problem_file
from analysis.rows import RESULTS, write_markdown
from qubo_rounding import Annealing, Descent, Gptq, RoundingProblem, Solver
from qubo_rounding.provenance import provenance
from qubo_rounding.referee import run_solver
from qubo_rounding.report import write_table
from qubo_rounding.solvers import dwave_tabu
from qubo_rounding.solvers.cross_entropy import CrossEntropy
from qubo_rounding.solvers.k_best import KBest, Klein
from qubo_rounding.solvers.tabu import Tabu

LAYERS = {
    "000-_conv_stem": 27,
    "018-_blocks.6._expand_conv": 80,
    "005-_blocks.1._project_conv": 96,
    "011-_blocks.3._project_conv": 144,
    "014-_blocks.4._project_conv": 240,
    "017-_blocks.5._project_conv": 240,
    "048-_conv_head": 320,
    "020-_blocks.6._project_conv": 480,
    "041-_blocks.13._project_conv": 1152,
}
MAX_ROWS, MAX_WEIGHTS = 16, 7680


def solvers() -> Iterator[tuple[str, Solver]]:
    """The solvers by the names that the table gives them."""
    yield "gptq", Gptq()
    yield "gptq, index order", Gptq(order="index")
    for width in (8, 64, 256):
        best = KBest(width=width)
        yield f"K = {width}", best
        yield f"K = {width}, then descent", Descent(start=best)
        yield f"K = {width}, index order", replace(best, order="index")
    for samples in (64, 256):
        yield f"Klein, {samples} samples", Klein(samples=samples)
    yield "descent", Descent()
    yield "annealing", Annealing()
    yield "cross-entropy", CrossEntropy()
    yield "tabu", Tabu()


def measure() -> list[dict[str, Any]]:
    """One row a layer and solver: energy relative to nearest, seconds."""
    rows = []
    for layer, d in LAYERS.items():
        problem = RoundingProblem.load(problem_file("efficientnet_lite0", layer))
        problem = problem.part(rows=slice(0, min(MAX_ROWS, MAX_WEIGHTS // d)))
        last = 0.0
        for name, solver in solvers():
            rows.append(_row(problem, layer, name, solver))
            last = rows[-1]["seconds"]
        milliseconds = max(1, round(1000 * last / problem.r))
        name = "dwave_tabu, as long as tabu"
        rows.append(_row(problem, layer, name, dwave_tabu(milliseconds=milliseconds)))
        print(layer, flush=True)
    return rows


def _row(problem: RoundingProblem, layer: str, name: str, solver: Solver) -> dict[str, Any]:
    nearest = float(problem.energy(problem.nearest()).sum())
    solution, seconds = run_solver(problem, solver)
    ratio = float(solution.energy.sum()) / nearest
    return {"layer": layer, "solver": name, "energy / nearest": ratio, "seconds": seconds}


def render(rows: list[dict[str, Any]]) -> None:
    """Write one line a solver: its energies, their geometric mean, all its seconds."""
    write_table(RESULTS / "k_best_widths.csv", rows)
    lines = []
    for name in dict.fromkeys(row["solver"] for row in rows):
        own = {row["layer"]: row for row in rows if row["solver"] == name}
        ratios = {layer: own[layer]["energy / nearest"] for layer in LAYERS}
        line = {f"{layer[:3]}, d = {d}": ratios[layer] for layer, d in LAYERS.items()}
        mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
        seconds = sum(row["seconds"] for row in own.values())
        lines.append({"solver": name} | line | {"mean": mean, "seconds": seconds})
    threads = provenance()["threads"]
    closing = f"Mean: geometric. Seconds: of all layers together, threads: {threads}."
    write_markdown("k_best_widths", lines, closing)


if __name__ == "__main__":
    begin(__doc__)
    render(measure())
