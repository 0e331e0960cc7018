"""All layers of ResNet-18's shapes on one device: 500 annealing sweeps, 10,000 AdaRound iterations.

    python -m analysis.benchmarks.resnet18_shapes                    # on a GPU, a few minutes
    python -m analysis.benchmarks.resnet18_shapes --device cpu       # about an hour on 2 cores

Random weights and inputs serve for time. The floor is that of as many float32 matrix products
(r x d)(d x d). Writes results/resnet18_shapes.md, which names the device.
"""

from __future__ import annotations

from typing import Any

import torch

from analysis.entry import described
from analysis.rows import write_markdown
from analysis.timing import best_seconds, seconds
from qubo_rounding import AdaRound, Annealing, Nearest, RoundingProblem, Solver

# (r, d) of the layers, and how many there are of each.
SHAPES = {
    (64, 147): 1,
    (64, 576): 4,
    (128, 576): 1,
    (128, 64): 1,
    (128, 1152): 3,
    (256, 1152): 1,
    (256, 128): 1,
    (256, 2304): 3,
    (512, 2304): 1,
    (512, 256): 1,
    (512, 4608): 3,
    (1000, 512): 1,
}
SOLVERS: dict[str, tuple[Solver, int]] = {
    "500 sweeps": (Annealing(sweeps=500, reads=1, start=Nearest()), 500),
    "10,000 iterations": (AdaRound(iterations=10_000), 10_000),
}


def random_layer(r: int, d: int, device: str) -> RoundingProblem:
    """An up/down problem whose inputs are positive and correlated, as after a ReLU."""
    torch.manual_seed(d)
    shared = torch.randn(2 * d, 1, device=device)
    inputs = (torch.randn(2 * d, d, device=device) + shared).relu()
    target = 3 * torch.randn(1, r, d, device=device)
    low = target.floor().to(torch.int16)
    scale = torch.full((1, r, 1), 0.01, device=device)
    return RoundingProblem((inputs.T @ inputs / (2 * d))[None], target, scale, low, low + 1)


def measure(device: str) -> list[dict[str, Any]]:
    """A row for each shape and solver, and one for each solver over all layers."""
    rows: list[dict[str, Any]] = []
    for (r, d), layers in SHAPES.items():
        problem = random_layer(r, d, device)
        left, right = torch.ones(r, d, device=device), torch.ones(d, d, device=device)
        product = best_seconds(lambda left=left, right=right: left @ right)
        for name, (solver, steps) in SOLVERS.items():
            solver.solve(problem.part(rows=slice(0, 8)))  # compiles
            took = seconds(lambda solver=solver, problem=problem: solver.solve(problem))
            row = {"solver": name, "r": r, "d": d, "layers": layers, "seconds a layer": took}
            rows.append(row | {"floor": steps * product})
            print(rows[-1], flush=True)
    for name in SOLVERS:
        own = [row for row in rows if row["solver"] == name]
        whole = {
            key: sum(row["layers"] * row[key] for row in own)
            for key in ("seconds a layer", "floor")
        }
        rows.append({"solver": name, "r": "all", "d": "all", "layers": 21} | whole)
    return rows


if __name__ == "__main__":
    parser = described(__doc__)
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    if device != "cpu" and not torch.cuda.is_available():
        raise SystemExit(f"There is no GPU for --device {device}; give --device cpu.")
    named = torch.cuda.get_device_name() if device != "cpu" else "the CPU"
    write_markdown("resnet18_shapes", measure(device), f"On {named}.")
