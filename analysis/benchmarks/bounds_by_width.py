"""Lower bounds by width: seconds a row beside their floor, and how near they come to energies.

    python -m analysis.benchmarks.bounds_by_width    # about 3 minutes on one core

The problems are the files of analysis.problem_files (4 bits per channel, 256 calibration
images, bias refit), the first 32 rows of each, 16 from d = 480 on. Milliseconds are CPU time of one
core. The floor of a bound is what matrix products with as many operations take: for each sweep a
float32 product (16 r x d)(d x d), for the proof two float64 Cholesky factorisations of d^3 / 3
operations. Bounds are told relative to the best energies known, those of annealing. Writes
results/bounds_by_width.csv, one row a layer, and the table beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from analysis.entry import begin
from analysis.problem_files import problem_file
from analysis.rows import RESULTS, write_markdown
from qubo_rounding import Annealing, RoundingProblem
from qubo_rounding.qubo.bounds import eigenvalue_bound, sdp_bound
from qubo_rounding.qubo.mixing import RANK
from qubo_rounding.report import write_table
from qubo_rounding.testing import random_problem

LAYERS = (
    "efficientnet_lite0/018-_blocks.6._expand_conv",
    "efficientnet_lite0/011-_blocks.3._project_conv",
    "efficientnet_lite0/036-_blocks.12._expand_conv",
    "efficientnet_lite0/017-_blocks.5._project_conv",
    "efficientnet_lite0/048-_conv_head",
    "mobilenet_v2/026-features.9.conv.2",
    "efficientnet_lite0/020-_blocks.6._project_conv",
    "efficientnet_lite0/029-_blocks.9._project_conv",
    "mobilenet_v2/047-features.16.conv.2",
    "efficientnet_lite0/041-_blocks.13._project_conv",
    "efficientnet_lite0/049-_fc",
)
SWEEPS = (50, 100, 200, 1000)
DEFAULT = 200


def measure() -> list[dict[str, Any]]:
    """One row a layer: milliseconds of the bound and of its floor, bounds over energies."""
    torch.set_num_threads(1)
    sdp_bound(random_problem())  # compiled off the clock
    rows = []
    for layer in LAYERS:
        network, _, name = layer.partition("/")
        problem = RoundingProblem.load(problem_file(network, name))
        problem = problem.part(rows=slice(0, 32 if problem.d < 480 else 16))
        row = {"network": network, "layer": name, "d": problem.d, "rows": problem.r}
        row |= _seconds(problem) | _bounds(problem)
        print(*row.values(), flush=True)
        rows.append(row)
    return rows


def _seconds(problem: RoundingProblem) -> dict[str, float]:
    """Milliseconds a row."""
    gram, single = problem.gram[0], problem.gram[0].float()
    vectors = torch.ones(RANK * problem.r, problem.d)
    sweep = _fastest(lambda: vectors @ single) / problem.r
    square = _fastest(lambda: gram @ gram)  # 2 d^3 operations
    floor = DEFAULT * sweep + square / 3
    bound = _fastest(lambda: sdp_bound(problem, DEFAULT), 2) / problem.r
    eigenvalue = _fastest(lambda: eigenvalue_bound(problem), 2) / problem.r
    return {
        "ms": bound,
        "floor ms": floor,
        "ms / floor": bound / floor,
        "eigenvalue ms": eigenvalue,
    }


def _fastest(work: Callable[[], object], repetitions: int = 5) -> float:
    times = []
    for _ in range(repetitions):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return 1e3 * min(times)


def _bounds(problem: RoundingProblem) -> dict[str, float]:
    """Sums over rows, relative to the best energies known."""
    energy = float(Annealing().solve(problem).energy.sum())
    bounds = {"eigenvalue bound": eigenvalue_bound(problem)}
    bounds |= {f"{sweeps} sweeps": sdp_bound(problem, sweeps) for sweeps in SWEEPS}
    return {name: float(bound.sum()) / energy for name, bound in bounds.items()}


def render(rows: list[dict[str, Any]]) -> None:
    """Write the tables."""
    write_table(RESULTS / "bounds_by_width.csv", rows)
    closing = f"Milliseconds: CPU time a row, {DEFAULT} sweeps. Bounds: relative to annealing."
    write_markdown("bounds_by_width", rows, closing)


if __name__ == "__main__":
    begin(__doc__)
    render(measure())
