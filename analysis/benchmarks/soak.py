"""Two hundred small networks rounded in one process: does memory stay flat?

    python -m analysis.benchmarks.soak     # 5 minutes, 2 cores

Each round rounds a small convolutional network, sequentially, with a run folder, by one of five
methods in turn, and judges it. Writes results/soak.md: resident memory after every 25 rounds.
"""

from __future__ import annotations

import gc
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from analysis.entry import begin
from analysis.rows import write_markdown
from qubo_rounding import (
    AdaRound,
    Auto,
    Certified,
    FirstThatAccepts,
    Gptq,
    KBest,
    Nearest,
    Reconstruction,
    evaluate,
    predict,
    quantise,
    reuse_freed_memory,
)

ROUNDS, EVERY = 200, 25
METHODS: tuple[dict[str, Any], ...] = (
    # Random networks have inputs that hardly vary, whose Gram has no Cholesky factor.
    {"solver": FirstThatAccepts((Gptq(), Nearest()))},
    {"solver": FirstThatAccepts((KBest(), Nearest()))},
    {"solver": AdaRound(iterations=50)},
    {"solver": Certified(Auto("fast"), sweeps=20)},
    {"reconstruction": Reconstruction(iterations=20, positions=4)},
)


def network(seed: int) -> nn.Module:
    """A small network with batch norm, a depthwise layer and a head."""
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.ReLU6()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    ).eval()


def resident() -> float:
    """Resident memory of this process in MiB; Linux."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Round, and write how memory went."""
    reuse_freed_memory()
    rows = []
    for number in range(ROUNDS + 1):
        if number % EVERY == 0:
            gc.collect()
            rows.append({"rounds": number, "resident, MiB": round(resident(), 1)})
            print(rows[-1], flush=True)
        model = network(number)
        batches = list(torch.rand(4, 16, 3, 24, 24))
        with tempfile.TemporaryDirectory() as folder:
            method = METHODS[number % len(METHODS)]
            result = quantise(model, batches, run=Path(folder), seed=number, **method)
        float_logits = predict(model, batches)
        evaluate(predict(result.model, batches), None, float_logits)
    grown = rows[-1]["resident, MiB"] - rows[1]["resident, MiB"]
    closing = f"From round {EVERY} to round {ROUNDS} resident memory grew by {grown:.1f} MiB."
    write_markdown("soak", rows, closing)


if __name__ == "__main__":
    begin(__doc__, kit=False)
    main()
