"""How far every solver ends from the proven optimum, on calibration and on held-out photographs.

    python -m analysis.solver_ratios             # about 25 minutes on one core; resumes

Needs the evaluation kit. Of every layer of two networks with d <= 112, 4 bits per channel, up/down,
24 rows (or depthwise groups) spread evenly; tree search proves their optima, and every other solver
of the table runs with its defaults. Rows whose optimum is not proven, and rows of energy zero, are
left out. Writes results/solver_ratios.csv, one row a network, layer and solver, and a table.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from analysis.entry import begin
from analysis.judged_networks import NETWORKS
from analysis.kit_problems import KitProblem, kit_problems
from analysis.rows import RESULTS, append_row, read_rows, write_markdown
from qubo_rounding import SOLVERS, RoundingProblem, TreeSearch, make_solver, watching
from qubo_rounding.report import markdown_table

PATH = RESULTS / "solver_ratios.csv"
WIDEST, ROWS, SECONDS_TO_PROVE = 112, 24, 120
KEYS = ("network", "layer", "solver")


def measure() -> None:
    """Run what is not in the CSV yet, layer by layer."""
    torch.set_num_threads(1)
    done = {tuple(row[key] for key in KEYS) for row in read_rows(PATH)}
    for network in NETWORKS:
        for item in kit_problems(network, 4, WIDEST):
            names = [name for name in SOLVERS if (network, item.layer, name) not in done]
            if names:
                _measure_layer(network, item, names)
                print(network, item.layer, flush=True)


def _measure_layer(network: str, item: KitProblem, names: list[str]) -> None:
    part, held_out = _some_rows(item)
    began = time.perf_counter()
    with watching(time_limit=SECONDS_TO_PROVE):
        optimum = TreeSearch(max_nodes=10**12).solve(part)
    seconds_to_prove = time.perf_counter() - began
    kept = optimum.proven & (optimum.energy > 1e-9 * part.unit[..., 0])
    least, least_held_out = optimum.energy[kept], held_out(optimum.levels)[kept]
    for name in names:
        case = {"network": network, "layer": item.layer, "d": part.d, "solver": name}
        case |= {"rows": int(kept.sum()), "of": kept.numel()}
        solver, began = make_solver(name), time.perf_counter()
        if solver.refuses(part):
            continue
        solution = optimum if name == "tree_search" else solver.solve(part)
        seconds = seconds_to_prove if name == "tree_search" else time.perf_counter() - began
        energy, judged = solution.energy[kept], held_out(solution.levels)[kept]
        append_row(
            PATH,
            case
            | {
                "ratio_of_sums": float(energy.sum() / least.sum()),
                "mean_ratio": float((energy / least).mean()),
                "worst_ratio": float((energy / least).max()),
                "exact_share": float((energy <= least * (1 + 1e-9)).double().mean()),
                "held_out_ratio": float(judged.sum() / least_held_out.sum()),
                "seconds": seconds,
            },
        )


def _some_rows(item: KitProblem) -> tuple[RoundingProblem, Callable[[Tensor], Tensor]]:
    """Some rows of a layer as a problem of their own, and what judges their levels."""
    problem = item.problem
    if problem.r == 1:
        groups, rows = slice(0, problem.g, math.ceil(problem.g / ROWS)), slice(None)
    else:
        groups, rows = slice(None), slice(0, problem.r, math.ceil(problem.r / ROWS))

    def held_out(levels: Tensor) -> Tensor:
        whole = problem.nearest()
        whole[groups, rows] = levels
        return item.held_out_energy(whole)[groups, rows]

    return problem.part(groups, rows), held_out


def render() -> None:
    """Write geometric means over layers by kind of layer, and the ratio of sums of every layer."""
    rows, table = read_rows(PATH), []
    kinds: dict[str, Callable[[int], bool]] = {
        "d = 9 and 25": lambda d: d in (9, 25),
        "d = 16 to 40": lambda d: 16 <= d <= 40 and d != 25,
        "d = 64 to 112": lambda d: d >= 64,
    }
    for network in NETWORKS:
        for kind, belongs in kinds.items():
            for solver in SOLVERS:
                own = [
                    row
                    for row in rows
                    if (row["network"], row["solver"]) == (network, solver)
                    and belongs(int(row["d"]))
                ]
                if own:
                    table.append(
                        {"network": network, "layers": f"{kind} ({len(own)})", "solver": solver}
                        | _summary(own)
                    )
    by_layer = "Energy / optimum, ratio of the sums over rows:\n\n" + markdown_table(_layers(rows))
    write_markdown("solver_ratios", table, by_layer)


def _layers(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """One line a layer, one column a solver."""
    layers: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        line = {"network": row["network"], "layer": row["layer"], "d": row["d"]}
        line |= {"rows": f"{row['rows']} of {row['of']}"} | dict.fromkeys(SOLVERS, "-")
        line = layers.setdefault((row["network"], row["layer"]), line)
        line[row["solver"]] = f"{float(row['ratio_of_sums']):.3f}"
    return list(layers.values())


def _summary(rows: list[dict[str, str]]) -> dict[str, Any]:
    def mean(key: str) -> float:
        return math.exp(sum(math.log(float(row[key])) for row in rows) / len(rows))

    counted = sum(int(row["rows"]) for row in rows)
    exact = sum(int(row["rows"]) * float(row["exact_share"]) for row in rows)
    return {
        "energy / optimum": mean("ratio_of_sums"),
        "mean of rows": mean("mean_ratio"),
        "worst row": max(float(row["worst_ratio"]) for row in rows),
        "rows solved exactly": f"{100 * exact / counted:.1f} %",
        "held out / optimum's": mean("held_out_ratio"),
        "ms a row": 1e3 * sum(float(row["seconds"]) for row in rows) / counted,
    }


if __name__ == "__main__":
    begin(__doc__)
    measure()
    render()
