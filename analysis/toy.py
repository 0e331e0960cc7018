"""The two-variable example of the paper (eq 7-8): where nearest is wrong, and by how much.

    python -m analysis.toy     # seconds

Cost dw1^2 + dw2^2 + c dw1 dw2, the paper's with c = 1. Every pair of fractional parts on a grid is
one row of one problem; enumeration proves its optimum. Writes results/toy.{md,png}.
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure

from analysis.entry import begin
from analysis.rows import RESULTS, write_markdown
from qubo_rounding import Enumeration, RoundingProblem

SIDE = 200
COUPLINGS = (-1.6, -1.0, 0.0, 0.5, 1.0, 1.6)


def toy_problem(coupling: float) -> RoundingProblem:
    """SIDE x SIDE rows, one for every pair of fractional parts; up/down."""
    places = (torch.arange(SIDE, dtype=torch.float64) + 0.5) / SIDE
    target = torch.cartesian_prod(places, places)[None]
    low = torch.zeros_like(target, dtype=torch.int16)
    gram = torch.tensor([[[1, coupling / 2], [coupling / 2, 1]]], dtype=torch.float64)
    return RoundingProblem(gram, target, torch.ones(1, SIDE**2, 1).double(), low, low + 1)


def measure() -> tuple[list[dict[str, object]], np.ndarray]:
    """A line for every coupling, and where nearest costs how much more for the paper's."""
    rows, excess_of_paper = [], np.zeros((SIDE, SIDE))
    for coupling in COUPLINGS:
        problem = toy_problem(coupling)
        optimum = Enumeration().solve(problem)
        nearest = problem.energy(problem.nearest())
        wrong = nearest > optimum.energy + 1e-12
        rows.append(
            {
                "coupling c": coupling,
                "nearest is wrong": f"{float(wrong.double().mean()):.1%}",
                "mean cost, nearest": float(nearest.mean()),
                "mean cost, optimum": float(optimum.energy.mean()),
                "nearest / optimum": float(nearest.sum() / optimum.energy.sum()),
            }
        )
        if coupling == 1.0:
            excess_of_paper = (nearest - optimum.energy).view(SIDE, SIDE).numpy()
    return rows, excess_of_paper


def render(rows: list[dict[str, object]], excess: np.ndarray) -> None:
    """Write the table and the picture."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(excess.T, origin="lower", extent=(0, 1, 0, 1), cmap="Blues")
    axes.set(xlabel="fractional part of w1", ylabel="fractional part of w2")
    axes.set_title("What nearest rounding costs more than the optimum, c = 1")
    figure.colorbar(image)
    figure.savefig(RESULTS / "toy.png", dpi=120)
    closing = (
        "With c > 0 errors of one sign add up, so the optimum rounds one weight up where nearest "
        "rounds both down; with c < 0 it is the other way round. Without coupling nearest is "
        "optimal. ![where nearest is wrong](toy.png)"
    )
    write_markdown("toy", rows, closing)


if __name__ == "__main__":
    begin(__doc__, kit=False)
    render(*measure())
