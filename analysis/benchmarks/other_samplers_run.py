"""In the others' environment: their samplers on one QUBO, a JSON line for every run.

python other_samplers_run.py QUBO.npz SECONDS     # started by other_samplers.py
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np


def climb(
    name: str, run: Callable[[int], np.ndarray], quadratic: np.ndarray, offset: float, most: float
) -> None:
    """Efforts 1, 2, 4, ... until one takes longer than half of the time; energies scored here."""
    effort = 1
    while True:
        began = time.perf_counter()
        x = run(effort)
        seconds = time.perf_counter() - began
        print(json.dumps([name, float(x @ quadratic @ x) + offset, seconds]), flush=True)
        if seconds > most / 2:
            return
        effort *= 2


def openjij_run(quadratic: np.ndarray) -> Callable[[int], np.ndarray]:
    """Simulated annealing, one read."""
    import openjij  # pyright: ignore[reportMissingImports]

    n = len(quadratic)
    both = {(i, j): 2 * quadratic[i, j] for i in range(n) for j in range(i + 1, n)}
    both |= {(i, i): quadratic[i, i] for i in range(n)}
    model = openjij.BinaryQuadraticModel.from_qubo(both)
    sampler = openjij.SASampler()

    def run(effort: int) -> np.ndarray:
        found = sampler.sample(model, num_reads=1, num_sweeps=100 * effort, seed=effort)
        sample = found.first.sample
        return np.array([sample[i] for i in range(n)], float)

    return run


def bifurcation_run(quadratic: np.ndarray) -> Callable[[int], np.ndarray]:
    """Ballistic simulated bifurcation, 128 agents."""
    import simulated_bifurcation as bifurcation  # pyright: ignore[reportMissingImports]
    import torch

    matrix = torch.from_numpy(quadratic).float()

    def run(effort: int) -> np.ndarray:
        torch.manual_seed(effort)
        best, _ = bifurcation.minimize(
            matrix,
            domain="binary",
            agents=128,
            max_steps=100 * effort,
            best_only=True,
            early_stopping=False,
            verbose=False,
        )
        return best.double().numpy()

    return run


if __name__ == "__main__":
    with np.load(sys.argv[1]) as given:
        square, constant = given["quadratic"], float(given["offset"])
    makers = {"openjij annealing": openjij_run, "simulated bifurcation": bifurcation_run}
    for name, make in makers.items():
        climb(name, make(square), square, constant, float(sys.argv[2]))
