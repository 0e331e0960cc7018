"""`auto` at every effort against AdaRound tuned layer by layer, on rows of 144 columns and more.

    python -m analysis.benchmarks.auto_against_adaround             # 5 hours, 2 cores; resumes
    python -m analysis.benchmarks.auto_against_adaround --again     # 40 minutes

AdaRound runs 10,000 iterations on the Gram matrix at each of two learning rates and four weights of
its regulariser; the run of least energy stands for it, with its own seconds, not those of all
eight. No more than 32 rows a layer; energies relative to nearest rounding, also on as many
photographs that nobody was calibrated on. Every fourth layer comes first, so that an early end
still shows all depths. After a change of solvers `--again` measures all layers anew, AdaRound by
the settings that were its best before. Writes results/auto_against_adaround.{csv,md}.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from analysis.entry import described, need_kit
from analysis.kit_problems import FOLDER, PROBLEM_NETWORKS, KitProblem, kit_problems
from analysis.rows import RESULTS, append_row, read_rows, write_markdown
from qubo_rounding import AdaRound, Annealing, Auto, Gptq, Solver, reuse_freed_memory
from qubo_rounding.referee import run_solver

PATH, ANEW = RESULTS / "auto_against_adaround.csv", FOLDER / "auto_against_adaround.csv"
NARROWEST, WIDEST, ROWS, STRIDE = 144, 4608, 32, 4
CLASSIFIERS = ("_fc", "classifier.1")  # more columns than images: their Grams are singular
GRID = list(itertools.product((1e-2, 1e-3), (0.01, 0.1, 1.0, 10.0)))
OURS: dict[str, Solver] = {
    "gptq": Gptq(),
    "annealing": Annealing(),
    "fast": Auto("fast"),
    "balanced": Auto("balanced"),
    "best": Auto("best"),
}


def problems(
    networks: list[str], bits: list[int], phases: int
) -> Iterator[tuple[str, int, KitProblem]]:
    """Every fourth layer of everything first, then the next ones, as often as asked."""
    for phase, its_bits, network in itertools.product(range(phases), bits, networks):
        of_network = kit_problems(network, its_bits, WIDEST, NARROWEST)
        for problem in itertools.islice(of_network, phase, None, STRIDE):
            yield network, its_bits, problem.rows(ROWS)


def measure(networks: list[str], bits: list[int], phases: int, again: bool) -> None:
    """Run what is not in the CSV yet, or all of it into a new one that takes its place."""
    path = ANEW if again else PATH
    best = {_key(row): (float(row["lr"]), float(row["lam"])) for row in read_rows(PATH)}
    done = {_key(row) for row in read_rows(path)}
    for network, its_bits, problem in problems(networks, bits, phases):
        key = (network, str(its_bits), problem.layer)
        if key in done:
            continue
        row: dict[str, Any] = dict(network=network, bits=its_bits, layer=problem.layer)
        row |= dict(d=problem.problem.d, rows=problem.problem.g * problem.problem.r)
        grid = [best[key]] if key in best else GRID
        tuned = [(*_run(problem, AdaRound(lr=lr, lam=lam)), lr, lam) for lr, lam in grid]
        energy, held_out, seconds, lr, lam = min(tuned)
        row |= {"adaround": energy, "adaround held out": held_out, "adaround seconds": seconds}
        row |= {"lr": lr, "lam": lam}
        for name, solver in OURS.items():
            energy, held_out, seconds = _run(problem, solver)
            row |= {name: energy, f"{name} held out": held_out, f"{name} seconds": seconds}
        append_row(path, row)
        print(row, flush=True)
        render()
    if again:
        ANEW.replace(PATH)


def _key(row: Mapping[str, str]) -> tuple[str, str, str]:
    return row["network"], row["bits"], row["layer"]


def _run(problem: KitProblem, solver: Solver) -> tuple[float, float, float]:
    """Energy and held-out energy relative to nearest, and seconds."""
    posed = problem.problem
    solution, seconds = run_solver(posed, solver)
    nearest = posed.nearest()
    energy = float(solution.energy.sum() / posed.energy(nearest).sum())
    held_out = problem.held_out_energy(solution.levels).sum()
    return energy, float(held_out / problem.held_out_energy(nearest).sum()), seconds


def render() -> None:
    """One line a layer, relative to AdaRound; the geometric means below."""
    rows = read_rows(PATH)
    table: list[dict[str, Any]] = []
    for row in rows:
        value = {key: float(row[key]) for key in row if key not in ("network", "layer")}
        line: dict[str, Any] = {"network": row["network"], "bits": row["bits"]}
        line |= {"layer": row["layer"], "d": int(row["d"]), "adaround": value["adaround"]}
        line |= {name: value[name] / value["adaround"] for name in OURS}
        line |= {
            f"{name}, time": value[f"{name} seconds"] / value["adaround seconds"]
            for name in ("fast", "balanced", "best")
        }
        line |= {
            f"{name}, held out": value[f"{name} held out"] / value["adaround held out"]
            for name in ("fast", "balanced", "best")
        }
        table.append(line)
    others = [line for line in table if line["layer"] not in CLASSIFIERS]
    below = [
        _summary("geometric mean", table, statistics.geometric_mean),
        _summary("geometric mean without classifiers", others, statistics.geometric_mean),
        _summary("median", table, statistics.median),
        _summary("largest", table, max),
        _summary("largest without classifiers", others, max),
    ]
    closing = (
        "AdaRound relative to nearest rounding; everything else, energies, seconds and held-out "
        "energies, relative to tuned AdaRound's. Classifiers have 1,280 columns and 256 images: "
        "what is gained on these is lost on others; `calibration_size` tells what helps."
    )
    write_markdown("auto_against_adaround", [*table, *below], closing)


def _summary(
    name: str, lines: list[dict[str, Any]], of: Callable[[list[float]], float]
) -> dict[str, Any]:
    words = {"network": name, "bits": "", "layer": f"{len(lines)} layers", "d": ""}
    return {
        key: words[key] if key in words else of([line[key] for line in lines]) for key in lines[0]
    }


if __name__ == "__main__":
    parser = described(__doc__)
    parser.add_argument("--networks", nargs="+", default=list(PROBLEM_NETWORKS))
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 3])
    parser.add_argument("--phases", type=int, default=STRIDE, help="1 takes every fourth layer")
    parser.add_argument("--again", action="store_true", help="measure anew what is there")
    options = parser.parse_args()
    need_kit(parser)
    reuse_freed_memory()
    measure(options.networks, options.bits, options.phases, options.again)
    render()
