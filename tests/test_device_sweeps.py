"""The Triton kernel decides like the compiled sweeps; in Triton's interpreter without a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from qubo_rounding import Annealing
from qubo_rounding.testing import random_problem

# In a process of its own: Triton asks for its interpreter when it is imported.
CODE = """
import numpy as np
from qubo_rounding.solvers.device_sweeps import DeviceSweeps
from qubo_rounding.solvers.random_numbers import stream_keys
from qubo_rounding.solvers.sweeps import HostSweeps
from qubo_rounding.testing import random_problem

# Widths that both cut into the same blocks: pairs are of one block.
for shape, free in (((1, 5, 128), False), ((2, 3, 9), True)):
    problem = random_problem(*shape, seed=1, free=free, linear=True).normalised()
    start, keys = problem.nearest(), stream_keys(3, problem.stream)
    runs = [kind(problem, start) for kind in (HostSweeps, DeviceSweeps)]
    for run in runs:
        run.begin(keys)
        run.run(np.geomspace(1, 0.05, 4).astype(np.float32), 0)
        run.run(np.full(2, 0.05, np.float32), 4)
    host, device = (run.levels for run in runs)
    assert device.dtype == host.dtype and device.equal(host), (device != host).sum()
    assert not device.equal(start)
    assert runs[0].accepted == runs[1].accepted > 0
print("alike")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernel_takes_the_decisions_of_the_compiled_sweeps() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "alike\n", done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_annealing_on_a_gpu_is_as_good_as_on_the_cpu_and_gives_the_same_bits_again() -> None:
    problem = random_problem(2, 40, 300, seed=2)
    host, *device = (
        Annealing(sweeps=200, reads=1).solve(problem.to(where), seed=1)
        for where in ("cpu", "cuda", "cuda")
    )
    assert torch.equal(device[0].levels, device[1].levels)
    assert float(device[0].energy.sum()) == pytest.approx(float(host.energy.sum()), rel=0.02)
