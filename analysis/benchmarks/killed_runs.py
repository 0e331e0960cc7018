"""Runs killed at random moments and started again end in the bits of a run left alone.

    python -m analysis.benchmarks.killed_runs            # about 8 minutes on 2 cores

`qubo-rounding quantize` on the kit's CIFAR-10 ResNet-20 by AdaRound with checkpoints, by blocks,
and by a solver with scale refits. Each command runs once undisturbed, then again and again in one
folder, killed with SIGKILL after a random share of the undisturbed time, until one attempt ends.
Writes results/killed_runs.md; exits with an error where a bit differs.
"""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from analysis.entry import begin
from analysis.kit_networks import kit_folder
from analysis.rows import write_markdown

KILLS = 20
IMAGES = 64
NETWORK = f"{Path(__file__).parents[1] / 'kit_networks.py'}:cifar10_resnet20"
METHODS = {
    "AdaRound": ["--method", "adaround:iterations=300,lr=1e-2,positions=16,start=gptq"],
    "blocks": ["--method", "block:iterations=60,lr=1e-2,start=gptq", "--act-bits", "8"],
    "annealing, scale refits": ["--solver", "annealing:sweeps=2000", "--scale-refits", "2"],
}


def quantize(method: list[str], images: Path, run: Path) -> list[str]:
    """The command."""
    command = [sys.executable, "-m", "qubo_rounding", "quantize", NETWORK]
    return [*command, "--images", str(images), *method, "-o", str(run)]


def write_photographs(folder: Path) -> None:
    """Some of CIFAR-10's pictures as files."""
    pictures = np.load(kit_folder() / "images" / "cifar10.npz")
    for number, picture in enumerate(pictures["calibration_x"][:IMAGES]):
        Image.fromarray(picture).save(folder / f"{number:03d}.png")


def attempt(command: list[str], seconds: float | None) -> bool:
    """Whether the command ended; killed where it takes longer than so many seconds."""
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, messages = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return False
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{messages[-2000:]}")
    return True


def digest(run: Path) -> str:
    """SHA-256 of the weights that a run ended with."""
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


def measure(seed: int = 0) -> list[dict[str, object]]:
    """A row for each method."""
    generator, rows = random.Random(seed), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = folder / "images"
        images.mkdir()
        write_photographs(images)
        for number, (label, method) in enumerate(METHODS.items()):
            alone, killed = folder / f"alone{number}", folder / f"killed{number}"
            began = time.perf_counter()
            attempt(quantize(method, images, alone), None)
            undisturbed = time.perf_counter() - began
            wanted = KILLS // len(METHODS) + (number < KILLS % len(METHODS))
            kills = ends = differ = 0
            while kills < wanted:
                # A folder that has ended starts afresh, so that every moment has its turn.
                run = killed / str(ends)
                patience = generator.uniform(0.2, 1) * undisturbed
                if attempt(quantize(method, images, run), patience):
                    differ += digest(run) != digest(alone)
                    ends += 1
                else:
                    kills += 1
            attempt(quantize(method, images, killed / str(ends)), None)
            differ += digest(killed / str(ends)) != digest(alone)
            row = {"method": label, "seconds undisturbed": undisturbed, "kills": kills}
            rows.append(row | {"runs ended": ends + 1, "runs with other bits": differ})
            print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    begin(__doc__)
    found = measure()
    write_markdown("killed_runs", found)
    sys.exit(any(row["runs with other bits"] for row in found))
