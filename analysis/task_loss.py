"""The question of the paper's Table 2: is eq 13 a worse objective than eq 20, or solved worse?

    python -m analysis.task_loss                 # about 40 minutes on 1 core; resumes

Only the first layer of a network is rounded, to 4 bits, symmetric, biases kept; all the rest stays
float. Every objective is solved in several ways, so that what a solver misses and what an objective
misses come apart: optima are proven, or energies bounded from below, as far as that can be done.
The curvature is Gauss-Newton's, which within one layer of these piecewise linear networks is the
Hessian. Needs the evaluation kit (see README.md in this folder); the Hessians grow in
runs/task_loss. Writes results/task_loss.csv, one row a rounding, and results/task_loss.md.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analysis.entry import begin
from analysis.first_layers import FIRST_LAYERS, FirstLayer
from analysis.rows import append_row, read_rows
from analysis.task_loss_tables import PATH, render
from qubo_rounding import (
    AdaRound,
    Annealing,
    CrossEntropy,
    FirstThatAccepts,
    Gptq,
    LayerSettings,
    Nearest,
    RoundingProblem,
    Solution,
    Solver,
    Tabu,
    TreeSearch,
    collect_grams,
    evaluate,
    find_layers,
    layer_problem,
    predict,
    rounded_network,
    row_hessian_problem,
    sdp_bound,
    task_problem,
    watching,
)
from qubo_rounding.layers import matrix_of

FOLDER = Path("runs/task_loss")
KEYS = ("network", "granularity", "objective", "solver", "seed")
GRANULARITIES = ("tensor", "channel")
OBJECTIVES = ("eq 12", "eq 13", "eq 18", "eq 20")
SEEDS = (0, 1, 2)
START = FirstThatAccepts((Gptq(), Nearest()))  # GPTQ has no factor of some singular Gram matrices
# These Gram matrices are ill-conditioned: colder and longer than elsewhere.
ANNEALING = Annealing(start=START, sweeps=20_000, reads=8, hot=0.5, cold=5e-3)
TABU = Tabu(start=ANNEALING, rounds=300, kick=0.02)
PROOF = TreeSearch(start=TABU, max_nodes=10**10)
PROOF_SECONDS = 180.0  # at most


@dataclass(frozen=True)
class Method:
    """A solver for an objective, and how often its random numbers are drawn."""

    objective: str
    name: str
    solver: Solver
    seeds: Sequence[int] = (0,)


METHODS = (
    Method("eq 20", "nearest", Nearest()),
    Method("eq 20", "tree search", PROOF),
    Method("eq 20", "cross-entropy", CrossEntropy(), SEEDS),
    Method("eq 20", "relaxation", AdaRound()),
    Method("eq 18", "tree search", PROOF),
    Method("eq 13", "tree search", PROOF),
    Method("eq 13", "annealing", ANNEALING, SEEDS),
    Method("eq 13", "tabu", TABU, SEEDS),
    Method("eq 13", "cross-entropy", CrossEntropy(), SEEDS),
    Method("eq 13", "relaxation", AdaRound()),
    Method("eq 12", "annealing", ANNEALING, SEEDS),
)


def methods(network: str) -> list[Method]:
    """What is done on a network: all, but no proof of eq 13 for wide layers.

    Nor eq 18 for the largest network: its diagonals would take as long again as the Hessian.
    """
    narrow = network.startswith("digits")
    with_rows = network != "efficientnet_lite0"
    return [
        method
        for method in METHODS
        if (narrow or (method.objective, method.name) != ("eq 13", "tree search"))
        and (with_rows or method.objective != "eq 18")
    ]


def measure() -> None:
    """Round and judge what is not in the CSV yet."""
    for network, granularity in itertools.product(FIRST_LAYERS, GRANULARITIES):
        done = {tuple(row[key] for key in KEYS) for row in read_rows(PATH)}
        missing = [
            (method, key)
            for method in methods(network)
            for seed in method.seeds
            if (key := (network, granularity, method.objective, method.name, str(seed))) not in done
        ]
        if not missing:
            continue
        case = FIRST_LAYERS[network]()
        posed = pose(case, network, granularity)
        judge = Judge(case, posed)
        for method, key in missing:
            problem = posed[method.objective]
            solution, seconds = solved(method.solver, problem, int(key[-1]))
            row = dict(zip(KEYS, key, strict=True)) | judge(solution.levels)
            row |= {"bound": lower_bound(problem, method.objective, network), "seconds": seconds}
            append_row(PATH, row)
            print(row, flush=True)


def pose(case: FirstLayer, network: str, granularity: Any) -> dict[str, RoundingProblem]:
    """The layer's problem for every objective, all on one grid."""
    settings = LayerSettings(granularity=granularity, bias="keep")
    given = (case.model, case.layer, case.calibration)
    full = task_problem(
        *given,
        curvature="gauss_newton",
        gradient=True,
        settings=settings,
        folder=FOLDER / network,
    )
    layer = find_layers(case.model).layers[case.layer]
    weight = matrix_of(case.model, layer)
    gram = collect_grams(case.model, case.calibration, layers={case.layer: layer})[case.layer]
    posed = {"eq 12": full, "eq 13": replace(full, linear=None)}
    if any(method.objective == "eq 18" for method in methods(network)):
        posed["eq 18"] = row_hessian_problem(*given, curvature="gauss_newton", settings=settings)
    posed["eq 20"], _ = layer_problem(layer, weight, gram, settings)
    return posed


def solved(solver: Solver, problem: RoundingProblem, seed: int = 0) -> tuple[Solution, float]:
    """A solution, and the seconds it took; a proof is looked up when it has been made."""
    if solver is PROOF:
        return proof(problem)
    began = time.perf_counter()
    solution = solver.solve(problem, seed=seed)
    return solution, time.perf_counter() - began


@cache
def proof(problem: RoundingProblem) -> tuple[Solution, float]:
    """The optimum, or the incumbent with its bound; and the seconds it took."""
    began = time.perf_counter()
    with watching(time_limit=PROOF_SECONDS):
        solution = PROOF.solve(problem)
    return solution, time.perf_counter() - began


@cache
def lower_bound(problem: RoundingProblem, objective: str, network: str) -> float | None:
    """What no levels can undercut: a proof's where one is made, else the semidefinite bound."""
    if any((m.objective, m.name) == (objective, "tree search") for m in methods(network)):
        return proof(problem)[0].total_bound
    # Without a linear term a positive semidefinite matrix gives no energy below 0.
    least = 0.0 if problem.linear is None else -math.inf
    return max(least, float(sdp_bound(problem).sum()))


class Judge:
    """What levels are worth: their energies, and the answers of the network that has them."""

    def __init__(self, case: FirstLayer, posed: dict[str, RoundingProblem]) -> None:
        self._case, self._posed = case, posed
        self._labels = [torch.cat([y for _, y in p]) for p in (case.calibration, case.held_out)]
        self._float, self._float_losses = self._answers(case.model)
        optimum, _ = proof(posed["eq 20"])
        answers, (_, losses) = self._answers(self._rounded(optimum.levels))
        self._reference = {"loss": losses, "kl": self._divergences(answers)}
        self._seen: dict[bytes, dict[str, Any]] = {}

    def __call__(self, levels: Tensor) -> dict[str, Any]:
        """Columns of a row; the same levels are judged once."""
        key = levels.numpy().tobytes()
        if key not in self._seen:
            self._seen[key] = self._energies(levels) | self._worth(levels)
        return self._seen[key]

    def _energies(self, levels: Tensor) -> dict[str, Any]:
        energies: dict[str, Any] = dict.fromkeys(OBJECTIVES, "")
        for objective, problem in self._posed.items():
            energies[objective] = float(problem.energy(levels.view_as(problem.low)).sum())
        return energies

    def _worth(self, levels: Tensor) -> dict[str, Any]:
        answers, losses = self._answers(self._rounded(levels))
        judged = evaluate(answers, self._labels[1], self._float)
        worth = {
            "float_top1": evaluate(self._float, self._labels[1]).top1,
            "top1": judged.top1,
            "agreement": judged.agreement,
            "calibration_loss": float((losses[0] - self._float_losses[0]).mean()),
            "loss": float((losses[1] - self._float_losses[1]).mean()),
            "kl": judged.kl,
        }
        found = {"loss": losses[1], "kl": self._divergences(answers)}
        for name, values in found.items():
            over = values - self._reference[name]
            worth[f"{name}_over_eq_20"] = float(over.mean())
            worth[f"{name}_standard_error"] = float(over.std() / len(over) ** 0.5)
        return worth

    def _rounded(self, levels: Tensor) -> nn.Module:
        full = self._posed["eq 12"]
        return rounded_network(self._case.model, full, levels.view_as(full.low))

    def _answers(self, model: nn.Module) -> tuple[Tensor, list[Tensor]]:
        """Held-out logits; each image's loss, of calibration and held-out ones."""
        logits = [predict(model, part) for part in (self._case.calibration, self._case.held_out)]
        pairs = zip(logits, self._labels, strict=True)
        return logits[1], [F.cross_entropy(z.double(), y, reduction="none") for z, y in pairs]

    def _divergences(self, answers: Tensor) -> Tensor:
        """Each held-out image's KL from the float network's answer."""
        wanted, given = (z.double().log_softmax(1) for z in (self._float, answers))
        return F.kl_div(given, wanted, reduction="none", log_target=True).sum(1)


if __name__ == "__main__":
    begin(__doc__)
    measure()
    render()
