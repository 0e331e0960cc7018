"""Annealing against AdaRound on every layer of EfficientNet-Lite0: energy and time.

    python -m analysis.benchmarks.annealing_against_adaround     # about 9 minutes on 2 cores

The problems are the files of analysis.problem_files (4 bits per channel, 256 calibration
images, bias refit). AdaRound runs 10,000 iterations at lr 1e-3 and at 1e-2; the better energy
counts, and the time of that one run. Of layers with more rows the first 128 are taken: rows do not
see each other. Writes results/annealing_against_adaround.csv and .md.
"""

from __future__ import annotations

from typing import Any

from analysis.entry import begin
from analysis.problem_files import problem_files
from analysis.rows import RESULTS, write_markdown
from qubo_rounding import AdaRound, Annealing, RoundingProblem
from qubo_rounding.referee import run_solver
from qubo_rounding.report import write_table

RATES = (1e-2, 1e-3)
MAX_ROWS = 128


def measure() -> list[dict[str, Any]]:
    """One row a layer: energies relative to nearest, seconds, unsettled bits."""
    rows = []
    for path in problem_files("efficientnet_lite0"):
        problem = RoundingProblem.load(path).part(rows=slice(0, MAX_ROWS))
        nearest = float(problem.energy(problem.nearest()).sum())
        annealed, seconds = run_solver(problem, Annealing())
        runs = [run_solver(problem, AdaRound(lr=lr)) for lr in RATES]
        relaxed, relaxed_seconds = min(runs, key=lambda run: float(run[0].energy.sum()))
        ours, theirs = (float(s.energy.sum()) / nearest for s in (annealed, relaxed))
        rows.append(
            {
                "layer": path.stem,
                "d": problem.d,
                "annealing": ours,
                "adaround": theirs,
                "annealing / adaround": ours / theirs,
                "annealing seconds": seconds,
                "adaround seconds": relaxed_seconds,
                "unsettled": relaxed.stats["unsettled"],
            }
        )
        render(rows)
        print(rows[-1], flush=True)
    return rows


def render(rows: list[dict[str, Any]]) -> None:
    """Write the table, and how many layers annealing wins."""
    write_table(RESULTS / "annealing_against_adaround.csv", rows)
    lower = sum(row["annealing / adaround"] < 1 for row in rows)
    faster = sum(row["annealing seconds"] < row["adaround seconds"] for row in rows)
    verdict = f"Lower energy on {lower} and less time on {faster} of {len(rows)} layers."
    write_markdown("annealing_against_adaround", rows, verdict)


if __name__ == "__main__":
    begin(__doc__)
    measure()
