"""Minutes for whole networks: AdaRound on Grams and `auto`.

    python -m analysis.benchmarks.network_speed     # half an hour, 2 cores

EfficientNet-Lite0 sequentially on 256 calibration images, Grams and forward passes included, and
MobileNetV2 with its Grams given; 4 bits per channel, all layers. Loading and judging are not
counted. The floor is that of the relaxation's products: 10,000 times r d^2 multiply-adds a group,
at the rate of a square float32 product. Writes results/network_speed.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Literal

from analysis.entry import begin
from analysis.judged_networks import NETWORKS
from analysis.kit_networks import kit_folder
from analysis.rows import write_markdown
from analysis.timing import products_per_second
from qubo_rounding import (
    AdaRound,
    Auto,
    QuantisedNetwork,
    collect_grams,
    fold_batch_norm,
    load_model,
    open_images,
    quantise,
    reuse_freed_memory,
)

IMAGES = 256
ITERATIONS = 10_000


def sequential() -> Iterator[dict[str, Any]]:
    """EfficientNet-Lite0, every layer on the network rounded so far."""
    model, preprocessing = load_model("efficientnet_lite0")
    images = open_images(kit_folder() / "images" / "calibration", preprocessing, limit=IMAGES)
    methods = {"AdaRound, eq 21": AdaRound(iterations=ITERATIONS), "auto, fast": Auto("fast")}
    for name, solver in methods.items():
        began = time.perf_counter()
        result = quantise(model, images, solver=solver, progress=True)
        seconds = time.perf_counter() - began
        products = sum(record.g * record.r * record.d**2 for record in result.records)
        floor = ITERATIONS * products / products_per_second() if "AdaRound" in name else None
        yield _line("EfficientNet-Lite0, sequential", name, seconds, result, floor)


def given() -> Iterator[dict[str, Any]]:
    """MobileNetV2, whose Grams are there."""
    model, preprocessing = load_model(NETWORKS["mobilenet_v2"])
    images = list(open_images(kit_folder() / "images" / "calibration", preprocessing, limit=IMAGES))
    folded, _ = fold_batch_norm(model, images[0][0][:1])
    grams = collect_grams(folded, images, progress=True)
    efforts: tuple[Literal["fast", "balanced"], ...] = ("fast", "balanced")
    for effort in efforts:
        how: dict[str, Any] = {"calibration": "independent", "grams": grams, "progress": True}
        began = time.perf_counter()
        result = quantise(model, images, solver=Auto(effort), **how)
        seconds = time.perf_counter() - began
        yield _line("MobileNetV2, Grams given", f"auto, {effort}", seconds, result, None)


def _line(
    what: str, method: str, seconds: float, result: QuantisedNetwork, floor: float | None
) -> dict[str, Any]:
    return {
        "network": what,
        "method": method,
        "minutes": seconds / 60,
        "in the solver": sum(record.seconds for record in result.records) / 60,
        "floor of its products": None if floor is None else floor / 60,
    }


def main() -> None:
    """Measure and write the table."""
    reuse_freed_memory()
    write_markdown("network_speed", [*given(), *sequential()])


if __name__ == "__main__":
    begin(__doc__)
    main()
