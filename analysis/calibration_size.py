"""How much of a lower energy carries over, by the number of images, and what shrinking brings.

    python -m analysis.calibration_size     # 25 minutes, 2 cores; resumes

Every fifth layer of EfficientNet-Lite0, 4 bits per channel, 32 rows, from Grams of 64, 256 and
1,000 photographs: energies relative to nearest rounding, on the photographs used and on 256 others,
with the off-diagonal moments as they are and shrunk by some shares. Writes
results/calibration_size.{csv,md}.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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
SHRINKS = (0.0, 0.01, 0.03, 0.1)
SOLVERS = {
    "gptq": FirstThatAccepts((Gptq(), Nearest())),
    "adaround": AdaRound(iterations=2000),
    "auto, fast": Auto("fast"),
    "auto, balanced": Auto("balanced"),
}
KEYS = ("images", "layer", "shrink", "solver")


def posed(images: int, shrink: float) -> Iterator[KitProblem]:
    """Every fifth layer."""
    grams = dict(list(kept_grams(NETWORK, "calibration", images).items())[::STRIDE])
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
                    row["d"] = case.problem.d
                    for column, energy in (
                        ("calibration", case.problem.energy),
                        ("held_out", case.held_out_energy),
                    ):
                        row[column] = float(energy(levels).sum() / energy(nearest).sum())
                    append_row(PATH, row)
            print(images, shrink, flush=True)


def render() -> None:
    """Geometric means over layers."""
    rows = read_rows(PATH)
    table = []
    for images in IMAGES:
        for solver in SOLVERS:
            line: dict[str, Any] = {"images": images, "solver": solver}
            for shrink in SHRINKS:
                own = [
                    r
                    for r in rows
                    if (r["images"], r["solver"], r["shrink"]) == (str(images), solver, str(shrink))
                ]
                if not shrink:
                    line["calibration"] = geometric_mean(float(r["calibration"]) for r in own)
                head = f"held out, shrunk {shrink:g}" if shrink else "held out"
                line[head] = geometric_mean(float(r["held_out"]) for r in own)
            table.append(line)
    layers = len({row["layer"] for row in rows})
    closing = (
        f"Energies relative to nearest rounding, geometric means over {layers} layers. "
        "`calibration` is told without shrinking."
    )
    write_markdown("calibration_size", table, closing)


if __name__ == "__main__":
    begin(__doc__)
    reuse_freed_memory()
    measure()
    render()
