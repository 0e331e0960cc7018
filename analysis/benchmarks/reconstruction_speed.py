"""One reconstruction iteration of every layer of EfficientNet-Lite0, and the floor of its products.

    python -m analysis.benchmarks.reconstruction_speed     # 3 minutes

Batches of 32 samples, ReLU6 in the loss where it follows; all positions and 16 drawn ones,
alternating layer by layer. The floor is the time of the products' float32 operations, forward and
by the weights, at the rate that a square product reaches in the same run. Writes
results/reconstruction_speed.{csv,md}.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from analysis.entry import begin
from analysis.rows import RESULTS, append_row, write_markdown
from analysis.timing import products_per_second
from qubo_rounding import find_layers, fit_grid, fold_batch_norm, load_model, reuse_freed_memory
from qubo_rounding.calibration import LayerPair
from qubo_rounding.following import find_following
from qubo_rounding.layers import bias_of, matrix_of
from qubo_rounding.local_loss import local_problem
from qubo_rounding.passes import LayerCall, Pass
from qubo_rounding.relaxed.layer_objective import Compared, MapObjective, PatchObjective
from qubo_rounding.relaxed.reconstruction import Reconstruction, SoftLayer, learn
from qubo_rounding.statistics import gram_of

PATH = RESULTS / "reconstruction_speed.csv"
IMAGES, ITERATIONS = 32, 4


def measure() -> list[dict[str, float | str]]:
    """One row a layer, written to the CSV anew."""
    reuse_freed_memory()
    PATH.unlink(missing_ok=True)
    pretrained, preprocessing = load_model("efficientnet_lite0")
    size = preprocessing.size
    batch = torch.rand(IMAGES, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model, _ = fold_batch_norm(pretrained, batch[:1])
    layers = find_layers(model).layers
    following = find_following(model, layers, batch[:1])
    rate = 2 * products_per_second()
    rows = []
    with torch.no_grad(), Pass(model, layers, batch) as one:
        for call in one:
            layer = call.layer
            weight, bias = matrix_of(model, layer), bias_of(model, layer)
            assert bias is not None
            places = call.output_with(call.arguments["weight"]).numel() // (layer.g * layer.r)
            compared = Compared(
                layer,
                following[layer.name],
                bias.reshape(layer.g, layer.r),
                torch.ones(layer.g, layer.r),
            )
            pair = LayerPair(call, call, None, None, IMAGES)
            objectives = {
                "all": MapObjective(compared, iter([pair]), IMAGES, 2e9),
                "16": PatchObjective(compared, iter([pair]), IMAGES, 2e9, 16, seed=0),
            }
            seconds = {name: _seconds(o, weight, call) for name, o in objectives.items()}
            floor = 4 * places * layer.g * layer.r * layer.d / rate
            row = dict(layer=layer.name, d=layer.d, rows=layer.g * layer.r, floor_ms=1e3 * floor)
            row |= {f"ms_{name}_positions": 1e3 * value for name, value in seconds.items()}
            append_row(PATH, row)
            rows.append(row)
    return rows


def _seconds(objective: MapObjective | PatchObjective, weight: Tensor, call: LayerCall) -> float:
    """The fastest of some iterations, Adam and the regulariser included."""
    gram = gram_of(call)
    grid = fit_grid(weight)
    problem = local_problem(weight, grid, gram)
    settings = Reconstruction(iterations=1)
    shift = torch.zeros(weight.shape[:2])
    best = float("inf")
    for _ in range(ITERATIONS):
        soft = SoftLayer(problem, grid, settings, None, shift)
        began = time.perf_counter()
        learn(objective, [soft], settings, seed=0)
        best = min(best, time.perf_counter() - began)
    return best


def render(rows: list[dict[str, float | str]]) -> None:
    """Write the layers and their sum."""
    numbers = [key for key in rows[0] if key.endswith("ms") or key.startswith("ms")]
    total = {"layer": "all layers"} | {k: sum(float(r[k]) for r in rows) for k in numbers}
    write_markdown("reconstruction_speed", [*rows, total])


if __name__ == "__main__":
    begin(__doc__, kit=False)
    render(measure())
