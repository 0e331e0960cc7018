"""Figures 2 and 3 of the paper: the regulariser, and where weights end that start between levels.

    python -m analysis.relaxation_pictures     # a minute

Figure 3 shows h(V) before and after for the relaxation. Here its end is beside the proven optimum's
of the same layers: a weight a fraction f above its lower level starts at h(V) = f, and ends up or
down. Layers of EfficientNet-Lite0 whose rows tree search proves, 4 bits per channel. Writes
results/relaxation_pictures.{md,png}.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from analysis.entry import begin
from analysis.kit_problems import kit_problems
from analysis.rows import RESULTS, write_markdown
from qubo_rounding import AdaRound, RoundingProblem, Solution, TreeSearch
from qubo_rounding.figures import PALETTE
from qubo_rounding.relaxed.relaxation import rounding_regulariser

BETAS = (20, 8, 4, 2)
NARROWEST, WIDEST, ROWS = 64, 80, 40
BINS = 10


def ups(problem: RoundingProblem, levels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Every weight's fraction above its lower level, and whether it is rounded up."""
    fraction, up = problem.target - problem.low, (levels - problem.low).bool()
    return fraction.flatten().numpy(), up.flatten().numpy()


def measure() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Fractions and ends by solver, the weights of all layers together."""
    solvers = {"AdaRound": AdaRound(), "optimum": TreeSearch()}
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in solvers}
    for posed in kit_problems("efficientnet_lite0", 4, WIDEST, NARROWEST):
        problem = posed.rows(ROWS).problem
        for name, solver in solvers.items():
            solution: Solution = solver.solve(problem)
            if name == "optimum" and not bool(solution.proven.all()):
                raise SystemExit(f"not every row of {posed.layer} is proven; narrow the layers.")
            found[name].append(ups(problem, solution.levels))
    return {
        name: (np.concatenate([f for f, _ in pairs]), np.concatenate([up for _, up in pairs]))
        for name, pairs in found.items()
    }


def draw(axes: tuple[Axes, Axes], ends: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """The regulariser for several beta, and the share rounded up by fraction."""
    left, right = axes
    h = torch.linspace(0, 1, 401, dtype=torch.float64)
    for number, beta in enumerate(BETAS):
        left.plot(h, rounding_regulariser(h, beta), color=PALETTE[number], label=f"beta = {beta}")
    left.set(xlabel="h(V)", ylabel="1 - |2 h - 1|^beta", title="Figure 2: the regulariser (eq 24)")
    left.legend()
    edges = np.linspace(0, 1, 2 * BINS + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    right.plot([0, 0.5, 0.5, 1], [0, 0, 100, 100], color="grey", linestyle="--", label="nearest")
    for number, (name, (fraction, up)) in enumerate(ends.items()):
        right.plot(middles, 100 * _shares(fraction, up, edges), color=PALETTE[number], label=name)
    right.set(xlabel="h(V) at the start: fraction above the lower level")
    right.set(ylabel="rounded up, percent", title="Figure 3: where weights end")
    right.legend()


def render(ends: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Write the table and the picture."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    draw(tuple(figure.subplots(1, 2)), ends)
    figure.savefig(RESULTS / "relaxation_pictures.png", dpi=120)
    edges = np.linspace(0, 1, BINS + 1)
    shares = {name: _shares(fraction, up, edges) for name, (fraction, up) in ends.items()}
    rows = [
        {
            "fraction": f"{low:.1f} to {high:.1f}",
            **{f"up, {name}, %": 100 * float(share[place]) for name, share in shares.items()},
        }
        for place, (low, high) in enumerate(pairwise(edges))
    ]
    against = {
        name: float(((fraction > 0.5) != up).mean()) for name, (fraction, up) in ends.items()
    }
    same = float((ends["AdaRound"][1] == ends["optimum"][1]).mean())
    closing = (
        f"{len(ends['optimum'][0]):,} weights. Against nearest go {against['AdaRound']:.1%} of "
        f"them in AdaRound and {against['optimum']:.1%} in the proven optimum; {same:.1%} end "
        "alike in both. ![the regulariser, and where weights end](relaxation_pictures.png)"
    )
    write_markdown("relaxation_pictures", rows, closing)


def _shares(fraction: np.ndarray, up: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The share of the weights between two edges each that are rounded up."""
    place = np.clip(np.digitize(fraction, edges) - 1, 0, len(edges) - 2)
    count = np.bincount(place, minlength=len(edges) - 1)
    return np.bincount(place, weights=up, minlength=len(edges) - 1) / np.maximum(count, 1)


if __name__ == "__main__":
    begin(__doc__)
    render(measure())
