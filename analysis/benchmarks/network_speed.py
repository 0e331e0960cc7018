"""Seconds for the whole of EfficientNet-Lite0, sequential: AdaRound on Grams, and `auto`.

    python -m analysis.benchmarks.network_speed     # half an hour, 2 cores

256 calibration images, 4 bits per channel, all layers; loading and judging are not counted. The
floor is that of the relaxation's products: 10,000 times r d^2 multiply-adds a group, at the rate of
a square float32 product. Writes results/network_speed.md.
"""

from __future__ import annotations

import time

import torch

from analysis.kit_networks import kit_folder
from analysis.rows import write_markdown
from qubo_rounding import AdaRound, load_model, open_images, quantise, reuse_freed_memory
from qubo_rounding.methods import method_options

IMAGES = 256
ITERATIONS = 10_000
METHODS = {
    "AdaRound, eq 21": {"solver": AdaRound(iterations=ITERATIONS)},
    "auto": method_options("auto"),
}


def products_per_second(side: int = 1024, repeats: int = 20) -> float:
    """Multiply-adds a second of a square float32 product."""
    a = torch.ones(side, side)
    torch.mm(a, a)
    began = time.perf_counter()
    for _ in range(repeats):
        torch.mm(a, a)
    return repeats * side**3 / (time.perf_counter() - began)


def main() -> None:
    """Measure and write the table."""
    reuse_freed_memory()
    model, preprocessing = load_model("efficientnet_lite0")
    images = open_images(kit_folder() / "images" / "calibration", preprocessing, limit=IMAGES)
    rows = []
    for name, method in METHODS.items():
        began = time.perf_counter()
        result = quantise(model, images, progress=True, **method)
        seconds = time.perf_counter() - began
        products = sum(record.g * record.r * record.d**2 for record in result.records)
        floor = ITERATIONS * products / products_per_second() if name != "auto" else None
        rows.append(
            {
                "method": name,
                "minutes": seconds / 60,
                "in the solver": sum(record.seconds for record in result.records) / 60,
                "floor of its products": None if floor is None else floor / 60,
            }
        )
    write_markdown("network_speed", rows)


if __name__ == "__main__":
    main()
