"""What the widest layer of a ResNet takes beside its Gram matrix, step by step.

    python -m analysis.benchmarks.wide_layer_memory      # about 4 minutes on 2 cores

3 x 3 convolution, 512 to 512 channels (d = 4,608, r = 512), on random images. Peaks are the
kernel's own (VmHWM, reset before each step), so it runs on Linux only. A solver is allowed 2 GiB
beyond the problem that it is given. Writes results/wide_layer_memory.md; exits with an error where
one needs more, or any step more than `qubo_rounding.foresight` foresees.
"""

from __future__ import annotations

import gc
import math
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from analysis.entry import begin
from analysis.rows import write_markdown
from qubo_rounding import (
    AdaRound,
    Annealing,
    Auto,
    Descent,
    Gptq,
    KBest,
    LayerSettings,
    Solver,
    collect_grams,
    find_layers,
)
from qubo_rounding.foresight import POSING, gram_bytes
from qubo_rounding.layer_problem import layer_problem
from qubo_rounding.layers import matrix_of

CHANNELS, SIZE, IMAGES = 512, 14, 32
GIB = 2**30
ALLOWED = 2 * GIB
SLACK = GIB // 4  # chunks of patches, batches of rows, what libraries keep
SOLVERS: dict[str, Solver] = {
    "gptq": Gptq(),
    "descent": Descent(),
    "annealing, 10 sweeps": Annealing(sweeps=10, reads=1),
    "annealing, 10 sweeps, 4 reads": Annealing(sweeps=10, reads=4),
    "K-best, 16": KBest(width=16),
    "AdaRound, 10 iterations": AdaRound(iterations=10),
    "auto, fast": Auto("fast"),
}
T = TypeVar("T")


def peak_of(step: Callable[[], T]) -> tuple[T, int]:
    """What a step gives, and the bytes that it held at most, beyond what was there before it."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = _status("VmRSS")
    result = step()
    return result, _status("VmHWM") - before


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def measure(
    channels: int = CHANNELS, solvers: Iterable[str] = SOLVERS, slack: int = SLACK
) -> list[dict[str, object]]:
    """A row for each step.

    Args:
        channels: into the convolution, and out of it.
        solvers: names of those to try.
        slack: bytes that a step may take beyond what is foreseen.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False)).eval()
    other = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False)).eval()
    mixing = torch.randn(channels, channels) / channels**0.5
    noise = torch.randn(IMAGES, channels, SIZE, SIZE)
    images = torch.einsum("cd,ndhw->nchw", mixing, noise).relu()
    batches = [images[:16], images[16:]]
    layer = find_layers(model).layers["0"]
    matrix, weight, settings = 8 * layer.d**2, matrix_of(model, layer), LayerSettings()
    rows: list[dict[str, object]] = []

    def note(step: str, work: Callable[[], T], foreseen: int, allowed: float = math.inf) -> T:
        result, peak = peak_of(work)
        within = peak <= min(allowed, foreseen + slack)
        row = {"step": step, "GiB": peak / GIB, "matrices": peak / matrix}
        rows.append({**row, "foreseen, GiB": foreseen / GIB, "within": within})
        print(rows[-1], flush=True)
        return result

    peak_of(lambda: model(batches[0]))  # libraries take what they need once
    one, both = (gram_bytes([layer], paired=paired) for paired in (False, True))
    posing = POSING * matrix
    gram = note("Gram, float network", lambda: collect_grams(model, batches)["0"], one)
    note("its problem", lambda: layer_problem(layer, weight, gram, settings), posing)
    pair = note(
        "Gram, both networks", lambda: collect_grams(model, batches, quantised=other)["0"], both
    )
    problem, _ = note("its problem", lambda: layer_problem(layer, weight, pair, settings), posing)
    for name in solvers:
        solver = SOLVERS[name]
        foreseen = solver.memory(problem)
        note(name, lambda solver=solver: solver.solve(problem, seed=0), foreseen, ALLOWED)
    return rows


if __name__ == "__main__":
    begin(__doc__, kit=False)
    found = measure()
    closing = f"One Gram matrix of d = 4,608 is {8 * 4608**2 / GIB:.3f} GiB."
    write_markdown("wide_layer_memory", found, closing)
    sys.exit(not all(row["within"] for row in found))
