"""Peak memory of whole runs under two budgets, which must give the same bits.

    python -m analysis.benchmarks.memory_budgets         # about 12 minutes on 2 cores

AdaRound on EfficientNet-Lite0's every position of 512 images with few iterations, so that inputs
and targets far outgrow the smaller budget. The peak is allowed to be the budget, the resident size
of a process that has loaded the network and the images, and 1 GiB. Writes
results/memory_budgets.md; exits with an error where the peak is higher or a bit differs.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from analysis.benchmarks.killed_runs import digest
from analysis.entry import begin
from analysis.kit_networks import kit_folder
from analysis.rows import write_markdown

IMAGES = 512
BUDGETS = (0.5, 4.0)  # GiB
GIB = 2**30
LOADED = """
import sys, torch
from qubo_rounding import load_model, open_images
network, preprocessing = load_model("efficientnet_lite0")
batches = list(open_images(sys.argv[1], preprocessing, limit=int(sys.argv[2])))
network(batches[0][0])
"""


def peak_of(command: list[str]) -> float:
    """GiB that a command held at most.

    Raises:
        SystemExit: it failed.
    """
    process = os.posix_spawn(sys.executable, command, os.environ)
    _, status, usage = os.wait4(process, 0)
    if status != 0:
        raise SystemExit(f"{' '.join(command)} failed.")
    return usage.ru_maxrss * 1024 / GIB


def measure() -> list[dict[str, object]]:
    """A row for each budget."""
    images = str(kit_folder() / "images" / "calibration")
    loaded = peak_of([sys.executable, "-c", LOADED, images, str(IMAGES)])
    rows, digests = [], []
    with tempfile.TemporaryDirectory() as folder:
        for budget in BUDGETS:
            run = Path(folder) / str(budget)
            command = [sys.executable, "-m", "qubo_rounding", "quantize", "efficientnet_lite0"]
            command += ["--images", images, "--limit", str(IMAGES), "--memory", str(budget)]
            command += ["--method", "adaround:iterations=20,lr=1e-2", "-o", str(run)]
            peak, allowed = peak_of(command), budget + loaded + 1
            digests.append(digest(run))
            rows.append(
                {"budget": budget, "network and images": loaded, "allowed": allowed, "peak": peak}
                | {"within": peak <= allowed, "same bits": digests[-1] == digests[0]}
            )
            print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    begin(__doc__)
    found = measure()
    write_markdown("memory_budgets", found, "All sizes in GiB.")
    sys.exit(not all(row["within"] and row["same bits"] for row in found))
