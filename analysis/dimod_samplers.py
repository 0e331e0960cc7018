"""dimod's samplers, composites and ours on the same rows of EfficientNet-Lite0: energy and time.

    python -m analysis.dimod_samplers            # about 2 minutes on 2 cores; resumes

From seven layers (4 bits per channel, see analysis.problem_files) the row with the greatest nearest
energy becomes one binary quadratic model; all samplers get the same object, and one thread. The
best sample is taken back to levels and rescored by the problem. Writes results/dimod_samplers.csv,
one line a row and sampler, and the table results/dimod_samplers.md.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import dimod
import torch
from dwave.samplers import (
    RandomSampler,
    SimulatedAnnealingSampler,
    SteepestDescentComposite,
    SteepestDescentSampler,
    TabuSampler,
    TreeDecompositionSolver,
)

from analysis.entry import begin
from analysis.problem_files import problem_file
from analysis.rows import RESULTS, append_row, read_rows, write_markdown
from qubo_rounding import Annealing, Descent, Enumeration, Gptq, RoundingProblem
from qubo_rounding.qubo.bqm import levels_from_sample, to_bqm
from qubo_rounding.qubo.samplers import SolverSampler
from qubo_rounding.solvers.tabu import Tabu
from qubo_rounding.solvers.tree_search import TreeSearch

PATH = RESULTS / "dimod_samplers.csv"
LAYERS = (
    "001-_blocks.0._depthwise_conv",
    "003-_blocks.1._expand_conv",
    "000-_conv_stem",
    "012-_blocks.4._expand_conv",
    "018-_blocks.6._expand_conv",
    "008-_blocks.2._project_conv",
    "048-_conv_head",
)
SAME = 1e-9  # relative difference of energies that two roads computed


@dataclass(frozen=True)
class Contestant:
    """A sampler with its parameters; `exact`: a sample it returns is optimal."""

    sampler: dimod.Sampler
    parameters: dict[str, Any] = field(default_factory=dict)
    exact: bool = False
    max_variables: int = 10**6


CONTESTANTS = {
    "RandomSampler, 10,000 reads": Contestant(RandomSampler(), dict(num_reads=10_000, seed=0)),
    "SteepestDescentSampler, 1,000 reads": Contestant(
        SteepestDescentSampler(), dict(num_reads=1000, seed=0)
    ),
    "SimulatedAnnealingSampler, 10 reads of 1,000 sweeps": Contestant(
        SimulatedAnnealingSampler(), dict(num_reads=10, num_sweeps=1000, seed=0)
    ),
    "TabuSampler, 1 second": Contestant(TabuSampler(), dict(timeout=1000, seed=0)),
    "TreeDecompositionSolver": Contestant(TreeDecompositionSolver(), exact=True),
    # It holds all 2^n samples in memory.
    "ExactSolver": Contestant(dimod.ExactSolver(), exact=True, max_variables=20),
    "our Descent": Contestant(SolverSampler(Descent()), dict(seed=0)),
    "our Gptq in SteepestDescentComposite": Contestant(
        SteepestDescentComposite(SolverSampler(Gptq())), dict(seed=0)
    ),
    "our Annealing, 10 reads of 1,000 sweeps, in TruncateComposite": Contestant(
        dimod.TruncateComposite(SolverSampler(Annealing(reads=1)), 1), dict(num_reads=10, seed=0)
    ),
    "our Tabu": Contestant(SolverSampler(Tabu()), dict(seed=0)),
    "our Enumeration": Contestant(SolverSampler(Enumeration()), dict(seed=0)),
    "our TreeSearch, at most 30 seconds": Contestant(
        SolverSampler(TreeSearch()), dict(seed=0, time_limit=30)
    ),
}


def measure() -> None:
    """Sample what is not in the CSV yet."""
    torch.set_num_threads(1)  # as many as dwave-samplers use
    done = {(row["layer"], row["sampler"]) for row in read_rows(PATH)}
    for layer in LAYERS:
        row = _worst_row(RoundingProblem.load(problem_file("efficientnet_lite0", layer)))
        bqm = to_bqm(row)
        nearest = float(row.energy(row.nearest()))
        for name, contestant in CONTESTANTS.items():
            if (layer, name) in done:
                continue
            measured = {"layer": layer, "d": row.d, "variables": bqm.num_variables}
            measured |= {"sampler": name, "energy_nearest": nearest}
            append_row(PATH, measured | _run(contestant, row, bqm))
            print(layer, name, flush=True)


def _worst_row(problem: RoundingProblem) -> RoundingProblem:
    """The one row where nearest rounding has the greatest energy."""
    return problem.row(*divmod(int(problem.energy(problem.nearest()).argmax()), problem.r))


def _run(
    contestant: Contestant, row: RoundingProblem, bqm: dimod.BinaryQuadraticModel
) -> dict[str, Any]:
    """Energy of the best sample, seconds, whether it is proven; or why there is none."""
    refusal = dict(energy="", seconds="", proven="")
    if bqm.num_variables > contestant.max_variables:
        return refusal | {"refused": f"more than {contestant.max_variables} variables"}
    sample, parameters = contestant.sampler.sample, contestant.parameters
    try:
        sample(dimod.BinaryQuadraticModel({0: 1.0}, {(0, 1): 1.0}, 0.0, "BINARY"), **parameters)
        began = time.perf_counter()  # kernels have been compiled by now
        sampleset = sample(bqm, **parameters)
        seconds = time.perf_counter() - began
    except ValueError as error:
        return refusal | {"refused": str(error).splitlines()[0].partition(". ")[0]}
    best, claimed, *_ = sampleset.first
    energy = float(row.energy(levels_from_sample(row, best)[None, None]))
    if abs(claimed - energy) > SAME * abs(energy):
        raise RuntimeError(f"{contestant}: {claimed} reported, {energy} found")
    proven = contestant.exact or sampleset.info.get("proven", False)
    return dict(energy=energy, seconds=seconds, proven=int(proven), refused="")


def render() -> None:
    """Write one line a sampler, one column a row; then who refused what first, and why."""
    measured = read_rows(PATH)
    found = [r for r in measured if not r["refused"]]
    best = {
        layer: min(float(r["energy"]) for r in found if r["layer"] == layer) for layer in LAYERS
    }
    lines = {name: {"sampler": name} for name in CONTESTANTS}
    reasons = {}
    for r in measured:
        lines[r["sampler"]][f"{r['layer']}, n = {r['variables']}"] = _cell(r, best[r["layer"]])
        if r["refused"]:
            reasons.setdefault(r["sampler"], f"n = {r['variables']}: {r['refused']}")
    legend = (
        "n variables. Energy of the best sample relative to nearest, and seconds; **bold**: the "
        "best of the column; *: proven to be the optimum.\n"
    )
    refusals = (f"- {name} refuses from {reason}" for name, reason in reasons.items())
    write_markdown("dimod_samplers", list(lines.values()), "\n".join([legend, *refusals]))


def _cell(row: dict[str, str], best: float) -> str:
    if row["refused"]:
        return "-"
    energy = float(row["energy"])
    text = f"{energy / float(row['energy_nearest']):.4f}"
    if energy - best <= SAME * abs(best):
        text = f"**{text}**"
    return f"{text}{' *' if row['proven'] == '1' else ''}, {float(row['seconds']):.3g} s"


if __name__ == "__main__":
    begin(__doc__)
    measure()
    render()
