"""Which rows of real ImageNet layers can be proven optimal, and how long it takes.

    python -m analysis.proven_optima 4           # about 20 minutes on one core; resumes
    python -m analysis.proven_optima 3           # the same at 3 bits

Needs the evaluation kit. Up/down problems per channel at 4 and 3 bits, the bias refitted. All rows
of all layers with d <= 80 and of all depthwise layers, under the solver's own limit; of the wider
layers up to d = 144 some rows spread evenly, 30 seconds each up to d = 112 and 60 beyond. Seconds
are CPU seconds of one thread and hold everything: the first incumbent, the shift, the tables, the
search. Writes results/proven_optima_BITSbit.csv, one row a network and layer, and one table of all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from analysis.entry import described, need_kit
from analysis.judged_networks import NETWORKS
from analysis.kit_problems import KitProblem, kit_problems
from analysis.rows import RESULTS, append_row, read_rows, write_markdown
from qubo_rounding import Nearest, RoundingProblem, Solution, TreeSearch, watching
from qubo_rounding.testing import random_problem

BITS = (4, 3)
ALL_ROWS, WIDEST = 80, 144
LIMITS = {80: None, 112: 30.0, 144: 60.0}  # seconds a row, by largest d
SAMPLED = {112: 24, 144: 8}  # rows a layer
SOLVER = TreeSearch()
WITHOUT_LIMIT = TreeSearch(max_nodes=10**12)


def _path(bits: int) -> Path:
    return RESULTS / f"proven_optima_{bits}bit.csv"


def measure(bits: int) -> None:
    """Solve what is not in the CSV yet, and append it layer by layer."""
    torch.set_num_threads(1)
    SOLVER.solve(random_problem(1, 1, 40))  # compiled off the clock
    done = {(row["network"], row["layer"]) for row in read_rows(_path(bits))}
    for network in NETWORKS:
        for item in kit_problems(network, bits, WIDEST):
            if (network, item.layer) not in done:
                case = {"network": network, "bits": bits, "layer": item.layer}
                append_row(_path(bits), case | _solve_layer(item))
                print(*case.values(), flush=True)


def _solve_layer(item: KitProblem) -> dict[str, Any]:
    problem = item.problem
    key = next(d for d in LIMITS if problem.d <= d)
    parts = [problem] if key == ALL_ROWS else list(_spread_rows(problem, SAMPLED[key]))
    solutions, seconds = [], []
    for part in parts:
        began = time.process_time()
        solutions.append(_solve(part, LIMITS[key]))
        seconds.append(time.process_time() - began)
    rows = sum(s.energy.numel() for s in solutions)
    proven = torch.cat([s.proven.flatten() for s in solutions])
    gap = torch.cat([(s.gap / s.energy).flatten() for s in solutions])
    energy = sum(float(s.energy.sum()) for s in solutions)
    nearest = sum(float(Nearest().solve(part).energy.sum()) for part in parts)
    start = sum(s.stats["energy_start"] for s in solutions)
    return {
        "d": problem.d,
        "depthwise": problem.r == 1 and problem.g > 1,
        "rows": problem.g * problem.r,
        "solved": rows,
        "proven": int(proven.sum()),
        "limit_s": LIMITS[key],
        "seconds": sum(seconds),
        "slowest_s": max(seconds) if len(seconds) > 1 else None,
        "nodes": sum(s.stats["nodes"] for s in solutions),
        "mean_gap_left": float(gap[~proven].mean()) if bool((~proven).any()) else 0.0,
        "nearest": nearest / energy,
        "start": start / energy,
    }


def _solve(problem: RoundingProblem, limit: float | None) -> Solution:
    if limit is None:
        return SOLVER.solve(problem)
    with watching(time_limit=limit):
        return WITHOUT_LIMIT.solve(problem)


def _spread_rows(problem: RoundingProblem, count: int) -> Iterator[RoundingProblem]:
    """Single rows spread evenly over the layer, all of them where there are no more."""
    for row in sorted({k * problem.r // count for k in range(count)}):
        yield problem.part(rows=slice(row, row + 1))


def render() -> None:
    """Write one line a layer, and totals by width above them."""
    rows = [row for bits in BITS for row in read_rows(_path(bits))]
    shown = [
        {
            "network": row["network"],
            "bits": row["bits"],
            "layer": row["layer"],
            "d": row["d"],
            "rows solved": f"{row['solved']} of {row['rows']}",
            "proven": row["proven"],
            "ms a row": 1e3 * float(row["seconds"]) / int(row["solved"]),
            "gap left": float(row["mean_gap_left"]),
            "nearest / optimum": float(row["nearest"]),
            "start / optimum": float(row["start"]),
        }
        for row in rows
        if row["depthwise"] == "False"
    ]
    write_markdown("proven_optima", _totals(rows) + shown)


def _totals(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    kinds = {
        "all depthwise": lambda row: row["depthwise"] == "True",
        "all others, d <= 80": lambda row: row["depthwise"] == "False" and int(row["d"]) <= 80,
        "d in (80, 100]": lambda row: 80 < int(row["d"]) <= 100,
        "d = 112": lambda row: int(row["d"]) == 112,
        "d = 144": lambda row: int(row["d"]) == 144,
    }
    totals = []
    for bits in BITS:
        for network in NETWORKS:
            for kind, belongs in kinds.items():
                own = [r for r in rows if (r["network"], r["bits"]) == (network, str(bits))]
                own = [r for r in own if belongs(r)]
                if not own:
                    continue
                solved = sum(int(r["solved"]) for r in own)
                proven = sum(int(r["proven"]) for r in own)
                left = sum(
                    (int(r["solved"]) - int(r["proven"])) * float(r["mean_gap_left"]) for r in own
                )
                seconds = sum(float(r["seconds"]) for r in own)
                totals.append(
                    {
                        "network": network,
                        "bits": bits,
                        "layer": f"**{kind}** ({seconds:.0f} s)",
                        "d": "",
                        "rows solved": f"{solved} of {sum(int(r['rows']) for r in own)}",
                        "proven": proven,
                        "ms a row": 1e3 * seconds / solved,
                        "gap left": left / max(solved - proven, 1),
                        "nearest / optimum": "",
                        "start / optimum": "",
                    }
                )
    return totals


if __name__ == "__main__":
    parser = described(__doc__)
    parser.add_argument("bits", nargs="*", type=int, default=BITS)
    options = parser.parse_args()
    need_kit(parser)
    for bits in options.bits:
        measure(bits)
    render()
