"""Annealing, AdaRound, Grams and activation quantisers against their floors, in one run.

    python -m analysis.benchmarks.speed          # about 2 minutes on 2 cores, nothing else running

Floors: 100 annealing sweeps or 1,000 AdaRound iterations against as many float32 matrix products
(192 x 1152)(1152 x 1152), 0.51 GFLOP each; Gram collection against the plain forward pass of the
same images; an activation put on its grid, half of it dropped, and the slopes back, against passes
over memory that read three tensors of its size and write two. Ours and the floor take turns; best
of the repetitions on both sides. Writes results/speed.csv and results/speed.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from analysis.entry import begin
from analysis.rows import RESULTS, write_markdown
from analysis.timing import seconds
from qubo_rounding import AdaRound, Annealing, Nearest, collect_grams, load_model
from qubo_rounding.imagenet import demo_photographs
from qubo_rounding.provenance import provenance
from qubo_rounding.relaxed.activation_quantiser import ActivationQuantiser
from qubo_rounding.relaxed.fused_quantiser import Draw
from qubo_rounding.report import markdown_table, write_table
from qubo_rounding.testing import random_problem

REPETITIONS = 5


def measure() -> list[dict[str, Any]]:
    """Seconds of ours and of the floor, and what is allowed."""
    problem = random_problem(1, 192, 1152, seed=0)
    errors = problem.errors(problem.nearest())[0].float()
    gram = problem.gram[0].float()
    out = torch.empty_like(errors)

    def products(count: int) -> Callable[[], object]:
        return lambda: [torch.mm(errors, gram, out=out) for _ in range(count)]

    annealing = Annealing(sweeps=100, reads=1, start=Nearest())
    adaround = AdaRound(iterations=1000)
    rows = [
        _row("100 annealing sweeps", 2.0, lambda: annealing.solve(problem), products(100)),
        _row("1,000 AdaRound iterations", 1.5, lambda: adaround.solve(problem), products(1000)),
    ]
    model, preprocessing = load_model("efficientnet_lite0")
    calibration, _ = demo_photographs(preprocessing)
    batches = [images for images, _ in calibration.batches(32)][:3]

    def forward() -> None:
        with torch.no_grad():
            for images in batches:
                model(images)

    rows.append(
        _row("Grams of EfficientNet-Lite0", 4.0, lambda: collect_grams(model, batches), forward)
    )
    return [*rows, _activation_row()]


def _activation_row() -> dict[str, Any]:
    activation = torch.rand(6, 96, 112, 112, generator=torch.Generator().manual_seed(0))
    activation = activation.contiguous(memory_format=torch.channels_last).requires_grad_()
    quantiser = ActivationQuantiser.covering(0, 1, 8)
    quantiser.scale.requires_grad_()
    received, other = (torch.ones_like(activation).detach() for _ in range(2))

    def quantise() -> None:
        values = quantiser.quantise(activation, Draw(0.5, 0))
        torch.autograd.grad(values, (activation, quantiser.scale), received)

    def move() -> None:
        for _ in range(2):
            other.copy_(received)
        received.sum()

    return _row("activation quantiser, both ways", 3.0, quantise, move)


def _row(
    what: str, allowed: float, ours: Callable[[], object], floor: Callable[[], object]
) -> dict[str, Any]:
    ours()  # compiles and warms up
    pairs = [(seconds(ours), seconds(floor)) for _ in range(REPETITIONS)]
    best, best_floor = (min(times) for times in zip(*pairs, strict=True))
    where = {key: provenance()[key] for key in ("machine", "threads", "torch_version")}
    ratio = best / best_floor
    return dict(what=what, seconds=best, floor=best_floor, ratio=ratio, allowed=allowed) | where


def render(rows: list[dict[str, Any]]) -> None:
    """Write the table."""
    write_table(RESULTS / "speed.csv", rows)
    write_markdown("speed", rows)
    print(markdown_table(rows))


if __name__ == "__main__":
    begin(__doc__, kit=False)
    render(measure())
