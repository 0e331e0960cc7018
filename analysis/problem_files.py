"""The command `solve`, with every solver, on every file that the command `problems` wrote.

    python -m analysis.problem_files             # about 15 minutes on 2 cores; resumes

Needs the evaluation kit. Every energy is rescored from the files' arrays by a few lines of numpy
that share nothing with the package. Writes results/problem_files.csv, one row a network, file and
solver, and the table results/problem_files.md. Options are light: the question is whether
everything runs and tells the truth, not who wins.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner

from analysis.entry import begin
from analysis.judged_networks import NETWORKS
from analysis.kit_networks import kit_folder
from analysis.rows import RESULTS, append_row, read_rows, write_markdown
from qubo_rounding.cli import app

SOLVERS = [
    "nearest",
    "stochastic:draws=10",
    "gptq",
    "descent",
    "annealing:sweeps=100,reads=1",
    "adaround:iterations=200",
    "enumeration:max_assignments=65536",
    "dwave_annealing:reads=1,sweeps=50",
    "dwave_tabu:milliseconds=10",
    "dwave_descent:reads=5",
    "dimod_exact:max_variables=10",
]
TIME_LIMIT = 1  # seconds a solve; row-by-row samplers leave the rows after it at nearest
PATH = RESULTS / "problem_files.csv"
FOLDER = Path("runs/problem_files")


def measure() -> None:
    """Write the problem files where they are missing, then solve what is not in the CSV yet."""
    done = {(row["network"], row["problem"], row["solver"]) for row in read_rows(PATH)}
    for network in NETWORKS:
        for problem in problem_files(network):
            for solver in SOLVERS:
                if (network, problem.stem, solver) in done:
                    continue
                row = {"network": network, "problem": problem.stem, "solver": solver}
                row |= _solve(problem, solver)
                append_row(PATH, row)
            print(network, problem.stem, flush=True)


def problem_files(network: str) -> list[Path]:
    """One file a layer, in the order of the layers; they are written where they are missing."""
    folder = FOLDER / network
    if not folder.exists():
        images = str(kit_folder() / "images" / "calibration")
        options = ["--images", images, "--limit", "256", "-o", str(folder)]
        _command("problems", NETWORKS[network], *options)
    return sorted(folder.glob("*.npz"))


def problem_file(network: str, layer: str) -> Path:
    """The file of one layer, such as 048-_conv_head; all are written where they are missing."""
    (found,) = (path for path in problem_files(network) if path.stem == layer)
    return found


def _command(*arguments: str) -> str:
    """What a command prints; a refusal's reason where it ends with exit code 2."""
    result = CliRunner().invoke(app, list(arguments))
    if result.exit_code not in (0, 2):
        raise RuntimeError(f"{arguments} ended with {result.exit_code}: {result.output}")
    return result.stdout if result.exit_code == 0 else result.stderr


def _solve(problem: Path, solver: str) -> dict[str, Any]:
    solution = FOLDER / "solution.npz"
    solution.unlink(missing_ok=True)
    options = ["--time-limit", str(TIME_LIMIT), "--json", "-o", str(solution)]
    output = _command("solve", str(problem), "--solver", solver, *options)
    keys = ("energy", "energy_nearest", "rows", "proven_rows", "seconds")
    if "refuses" in output:
        return dict.fromkeys((*keys, "rescored"), "") | {"refused": output.strip()}
    result = json.loads(output.splitlines()[-1])
    rescored = rescore(problem, solution)
    if abs(rescored - result["energy"]) > 1e-9 * abs(rescored):
        raise RuntimeError(f"{solver} on {problem}: {result['energy']} reported, {rescored} found")
    return {key: result[key] for key in keys} | {"rescored": rescored, "refused": ""}


def rescore(problem: Path, solution: Path) -> float:
    """Sum over rows of e' G e + l' e + c, from the two files alone."""
    p, levels = np.load(problem), np.load(solution)["levels"]
    error = p["scale"] * (levels - p["target"])
    energy = np.einsum("gri,gij,grj->gr", error, p["gram"], error, optimize=True)
    if "linear" in p:
        energy = energy + (p["linear"] * error).sum(2)
    return float((energy + p["offset"]).sum())


def render() -> None:
    """Write one line a network and solver: files solved, refused, energy, rows proven."""
    rows, measured = [], read_rows(PATH)
    for network in NETWORKS:
        for solver in SOLVERS:
            own = [r for r in measured if (r["network"], r["solver"]) == (network, solver)]
            solved = [r for r in own if not r["refused"]]
            nearest = sum(float(r["energy_nearest"]) for r in solved)
            rows.append(
                {
                    "network": network,
                    "solver": solver,
                    "solved": len(solved),
                    "refused": len(own) - len(solved),
                    "energy / nearest": sum(float(r["energy"]) for r in solved) / (nearest or 1),
                    "rows proven": sum(int(r["proven_rows"]) for r in solved),
                    "seconds": sum(float(r["seconds"]) for r in solved),
                }
            )
    write_markdown("problem_files", rows)


if __name__ == "__main__":
    begin(__doc__)
    measure()
    render()
