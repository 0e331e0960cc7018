"""Energy against time on single rows: our solvers, dwave-samplers, openjij, simulated bifurcation.

    python -m venv peers && peers/bin/pip install torch==2.13.0 openjij simulated-bifurcation
    python -m analysis.benchmarks.other_samplers --python peers/bin/python     # 20 minutes, 1 core

The first rows of wide layers of EfficientNet-Lite0, 4 bits per channel. Every solver climbs a
ladder of efforts, each twice the one before, until a run takes longer than half the largest budget;
its best energy within a budget counts, relative to nearest rounding. One thread; building models is
not counted. openjij and simulated-bifurcation run in the environment given, by
other_samplers_run.py. Writes results/other_samplers.{csv,md,png}.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dwave.samplers
import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from analysis.entry import described, need_kit
from analysis.kit_problems import kit_problems
from analysis.rows import RESULTS, append_row, read_rows, write_markdown
from qubo_rounding import Annealing, Auto, Gptq, KBest, RoundingProblem, Solver, Tabu, to_bqm
from qubo_rounding.figures import MARKERS, PALETTE, STYLE
from qubo_rounding.means import geometric_mean
from qubo_rounding.referee import run_solver

PATH = RESULTS / "other_samplers.csv"
LAYERS = ("_blocks.2._project_conv", "_conv_head", "_blocks.12._project_conv")
ROWS, BUDGETS = 3, (0.1, 1.0, 10.0)  # rows of each layer; seconds a row
OURS: dict[str, Callable[[int], Solver]] = {
    "annealing": lambda effort: Annealing(sweeps=10 * effort, reads=1),
    "tabu": lambda effort: Tabu(rounds=effort, kick=0.02),
    "annealing, then tabu": lambda effort: Tabu(
        start=Annealing(sweeps=20 * effort, reads=1), rounds=effort, kick=0.02
    ),
    "k_best": lambda effort: KBest(width=effort),
}
FIXED: dict[str, Solver] = {
    "gptq": Gptq(),
    "auto, fast": Auto("fast"),
    "auto, balanced": Auto("balanced"),
    "auto, best": Auto("best"),
}


def rows() -> Iterator[tuple[str, int, RoundingProblem]]:
    """Layer, number and problem of every row."""
    for posed in kit_problems("efficientnet_lite0", 4, widest=1152, narrowest=144):
        if posed.layer in LAYERS:
            for number in range(ROWS):
                yield posed.layer, number, posed.problem.row(0, number)


def climbed(run: Callable[[int], tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """(energy, seconds) of efforts 1, 2, 4, ... until one takes longer than the largest budget."""
    effort = 1
    while True:
        energy, seconds = run(effort)
        yield energy, seconds
        if seconds > max(BUDGETS) / 2:
            return
        effort *= 2


def with_ours(problem: RoundingProblem) -> Iterator[tuple[str, float, float]]:
    """Solver, energy and seconds of our solvers and dwave-samplers'."""

    def run(solver: Solver) -> tuple[float, float]:
        solution, seconds = run_solver(problem, solver)
        return float(solution.energy), seconds

    for name, solver in FIXED.items():
        yield name, *run(solver)
    for name, of_effort in OURS.items():
        for energy, seconds in climbed(lambda effort, make=of_effort: run(make(effort))):
            yield name, energy, seconds
    bqm = to_bqm(problem)
    annealer, walker = dwave.samplers.SimulatedAnnealingSampler(), dwave.samplers.TabuSampler()

    def anneal(effort: int) -> tuple[float, float]:
        began = time.perf_counter()
        found = annealer.sample(bqm, num_reads=1, num_sweeps=100 * effort, seed=effort)
        return float(found.record.energy.min()), time.perf_counter() - began

    def walk(effort: int) -> tuple[float, float]:
        began = time.perf_counter()
        found = walker.sample(bqm, num_reads=1, timeout=20 * effort, seed=effort)
        return float(found.record.energy.min()), time.perf_counter() - began

    for name, of_theirs in (("dwave annealing", anneal), ("dwave tabu", walk)):
        for energy, seconds in climbed(of_theirs):
            yield name, energy, seconds


def with_theirs(problem: RoundingProblem, python: Path) -> Iterator[tuple[str, float, float]]:
    """The same of the packages in another environment."""
    quadratic, offset, _ = problem.to_qubo()
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "qubo.npz"
        np.savez(given, quadratic=quadratic.numpy(), offset=offset)
        script = Path(__file__).with_name("other_samplers_run.py")
        call = [str(python), str(script), str(given), str(max(BUDGETS))]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        done = subprocess.run(
            call, check=True, capture_output=True, text=True, env={**os.environ, **threads}
        )
    for line in done.stdout.splitlines():
        name, energy, seconds = json.loads(line)
        yield name, energy, seconds


def measure(python: Path | None) -> None:
    """Run what is not in the CSV yet."""
    torch.set_num_threads(1)
    there = {(row["layer"], row["row"], row["whose"]) for row in read_rows(PATH)}
    for layer, number, problem in rows():
        nearest = float(problem.energy(problem.nearest()))
        sources = {"ours": lambda p: with_ours(p)}
        if python is not None:
            sources["theirs"] = lambda p: with_theirs(p, python)
        for whose, source in sources.items():
            if (layer, str(number), whose) in there:
                continue
            found = list(source(problem))
            for solver, energy, seconds in found:
                row: dict[str, Any] = {"layer": layer, "row": number, "d": problem.d}
                row |= {"whose": whose, "solver": solver}
                append_row(PATH, row | {"ratio": energy / nearest, "seconds": seconds})
            print(layer, number, whose, flush=True)


def render() -> None:
    """The best ratio within each budget, geometric means over rows; and the picture."""
    found = read_rows(PATH)
    cases = sorted({(row["layer"], row["row"]) for row in found})
    table, curves = [], {}
    for solver in dict.fromkeys(row["solver"] for row in found):
        own = [row for row in found if row["solver"] == solver]
        line: dict[str, Any] = {"solver": solver}
        for budget in BUDGETS:
            line[f"within {budget:g} s"] = _within(own, cases, budget)
        table.append(line)
        times = np.geomspace(1e-3, max(BUDGETS), 60)
        curves[solver] = [(at, ratio) for at in times if (ratio := _within(own, cases, at))]
    table.sort(key=lambda line: line[f"within {BUDGETS[-1]:g} s"] or math.inf)
    with matplotlib.rc_context(STYLE):
        _picture(curves).savefig(RESULTS / "other_samplers.png", dpi=120)
    closing = (
        f"Energy relative to nearest rounding, geometric means over {len(cases)} rows; - where a "
        "row had no answer in that time. ![energy against time](other_samplers.png)"
    )
    write_markdown("other_samplers", table, closing)


def _within(
    rows: list[dict[str, str]], cases: list[tuple[str, str]], budget: float
) -> float | None:
    best = [
        min(
            (
                float(row["ratio"])
                for row in rows
                if (row["layer"], row["row"]) == case and float(row["seconds"]) <= budget
            ),
            default=None,
        )
        for case in cases
    ]
    return geometric_mean(best)


def _picture(curves: dict[str, list[tuple[float, float]]]) -> Figure:
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot()
    for number, (solver, curve) in enumerate(curves.items()):
        if curve:
            look: dict[str, Any] = {"color": PALETTE[number % len(PALETTE)]}
            look |= {"marker": MARKERS[number % len(MARKERS)], "markevery": 6}
            axes.plot(*zip(*curve, strict=True), label=solver, **look)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks([0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 1.0])
    axes.set(xlabel="seconds a row, one core", ylabel="energy / energy of nearest")
    axes.grid()
    figure.legend(loc="outside right upper")
    return figure


if __name__ == "__main__":
    parser = described(__doc__)
    parser.add_argument("--python", type=Path, help="of the environment with the others")
    options = parser.parse_args()
    need_kit(parser)
    measure(options.python)
    render()
