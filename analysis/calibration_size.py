"""How much of a lower energy carries over, by the number of images, and what shrinking brings.

    python -m analysis.calibration_size     # 25 minutes, 2 cores; resumes

Every fifth layer of EfficientNet-Lite0 and the last one, 4 bits per channel, 32 rows, from Grams of
64, 256 and 1,000 photographs: energies relative to nearest rounding, on the photographs used and on
256 others, with the off-diagonal moments as they are, shrunk by some shares and by "auto". Writes
results/calibration_size.{csv,md}, with a line a layer for one solver.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Literal

from analysis.entry import begin
from analysis.kit_problems import KitProblem, folded_network, kept_grams, posed_layers
from analysis.rows import RESULTS, append_row, read_rows, write_markdown
from qubo_rounding import (
    AdaRound,
    Auto,
    FirstThatAccepts,
    Gptq,
    LayerSettings,
    Nearest,
    reuse_freed_memory,
)
from qubo_rounding.means import geometric_mean

PATH = RESULTS / "calibration_size.csv"
NETWORK, ROWS, STRIDE = "efficientnet_lite0", 32, 5
IMAGES = (64, 256, 1000)
SHRINKS = (0.0, 0.01, 0.03, 0.1, "auto")
SHOWN = "auto, balanced"  # layer by layer
SOLVERS = {
    "gptq": FirstThatAccepts((Gptq(), Nearest())),
    "adaround": AdaRound(iterations=2000),
    "auto, fast": Auto("fast"),
    "auto, balanced": Auto("balanced"),
}
KEYS = ("images", "layer", "shrink", "solver")


def posed(images: int, shrink: float | Literal["auto"]) -> Iterator[KitProblem]:
    """Every fifth layer and the last one."""
    every = list(kept_grams(NETWORK, "calibration", images).items())
    grams = dict([*every[::STRIDE], every[-1]])
    settings = LayerSettings(shrink=shrink)
    held_out = kept_grams(NETWORK, "validation")
    for case in posed_layers(folded_network(NETWORK), grams, held_out, settings):
        yield case.rows(ROWS)


def measure() -> None:
    """Solve what is not in the CSV yet."""
    done = {tuple(row[key] for key in KEYS) for row in read_rows(PATH)}
    for images in IMAGES:
        for shrink in SHRINKS:
            for case in posed(images, shrink):
                nearest = case.problem.nearest()
                for name, solver in SOLVERS.items():
                    key = (str(images), case.layer, str(shrink), name)
                    if key in done:
                        continue
                    levels = solver.solve(case.problem).levels
                    row: dict[str, Any] = dict(zip(KEYS, key, strict=True))
                    row |= {"d": case.problem.d, "share": case.problem.meta.get("shrink", 0.0)}
                    for column, energy in (
                        ("calibration", case.problem.energy),
                        ("held_out", case.held_out_energy),
                    ):
                        row[column] = float(energy(levels).sum() / energy(nearest).sum())
                    append_row(PATH, row)
            print(images, shrink, flush=True)


def render() -> None:
    """Geometric means over layers, and every layer of one solver."""
    rows = read_rows(PATH)
    layers = {row["layer"]: int(row["d"]) for row in rows}
    table = []
    for images in IMAGES:
        for solver in SOLVERS:
            own = [r for r in rows if (r["images"], r["solver"]) == (str(images), solver)]
            about = {"images": images, "solver": solver, "layer": f"all {len(layers)}", "d": ""}
            table.append({**about, **_line(own), "share by auto": ""})
    for images, layer in itertools.product(IMAGES, layers):
        key = (str(images), SHOWN, layer)
        own = [r for r in rows if (r["images"], r["solver"], r["layer"]) == key]
        share = next(r["share"] for r in own if r["shrink"] == "auto")
        about = {"images": images, "solver": SHOWN, "layer": layer, "d": layers[layer]}
        table.append({**about, **_line(own), "share by auto": float(share)})
    closing = (
        f"Energies relative to nearest rounding, geometric means over {len(layers)} layers, then "
        "single layers. `calibration` is told without shrinking."
    )
    write_markdown("calibration_size", table, closing)


def _line(rows: list[dict[str, str]]) -> dict[str, float]:
    """Means of some rows: the energy on the calibration images, and for every share held out."""
    line = {}
    for shrink in SHRINKS:
        own = [r for r in rows if r["shrink"] == str(shrink)]
        if not shrink:
            line["calibration"] = geometric_mean(float(r["calibration"]) for r in own)
        head = f"held out, shrunk {shrink}" if shrink else "held out"
        line[head] = geometric_mean(float(r["held_out"]) for r in own)
    return line


if __name__ == "__main__":
    begin(__doc__)
    reuse_freed_memory()
    measure()
    render()
