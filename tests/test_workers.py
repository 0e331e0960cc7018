"""Workers of any number give the bits of one process, whoever of them dies."""

from __future__ import annotations

import os
import signal
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from networks import batches, residual

from qubo_rounding.network import quantise
from qubo_rounding.problem import RoundingProblem, Solution
from qubo_rounding.solvers import Annealing, Certified, Enumeration, Nearest, RefusedError, Solver
from qubo_rounding.testing import random_problem
from qubo_rounding.watch import seconds_left, watching
from qubo_rounding.workers import Spread, cluster, processes


@dataclass(frozen=True)
class Dying(Solver):
    """Kills its process so many times, counted in a folder, and anneals after that."""

    folder: Path
    times: int

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        for time in range(self.times):
            try:
                (self.folder / str(time)).touch(exist_ok=False)
            except FileExistsError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)
        return Annealing(sweeps=5).solve(problem, seed=seed)


@pytest.fixture(scope="module")
def problem() -> RoundingProblem:
    return random_problem(3, 7, 12, seed=2)


@pytest.fixture(scope="module")
def two_processes():
    with processes(2) as make:
        yield make


@pytest.mark.parametrize("workers", [1, 3])
def test_the_bits_do_not_depend_on_workers(problem, workers):
    solver = Certified(Annealing(sweeps=20))
    alone = solver.solve(problem, seed=3)
    with ThreadPoolExecutor(workers) as executor:
        spread = Spread(solver, executor).solve(problem, seed=3)
    assert torch.equal(spread.levels, alone.levels)
    assert torch.equal(spread.lower_bound, alone.lower_bound)


def test_processes_give_the_bits_of_one(problem, two_processes):
    alone = Annealing(sweeps=20).solve(problem, seed=3)
    spread = Spread(Annealing(sweeps=20), two_processes).solve(problem, seed=3)
    assert torch.equal(spread.levels, alone.levels)
    assert spread.lower_bound is None
    assert len(spread.stats["parts"]) > 1


def test_a_killed_worker_loses_nothing(problem, tmp_path):
    with processes(1) as make:
        spread = Spread(Dying(tmp_path, 1), make).solve(problem, seed=1)
    assert torch.equal(spread.levels, Annealing(sweeps=5).solve(problem, seed=1).levels)
    assert len(list(tmp_path.iterdir())) == 1


def test_an_executor_that_breaks_is_not_replaced_silently(problem, tmp_path):
    with ProcessPoolExecutor(1) as executor, pytest.raises(BrokenExecutor):
        Spread(Dying(tmp_path, 1), executor).solve(problem)


def test_whole_networks_are_rounded_to_the_same_bits_and_resume(two_processes, tmp_path):
    alone = quantise(residual(), batches(), solver=Annealing(sweeps=5), run=tmp_path / "run")
    spread = Spread(Annealing(sweeps=5), two_processes)
    result = quantise(residual(), batches(), solver=spread)
    for name, layer in alone.layers.items():
        assert torch.equal(layer.levels, result.layers[name].levels)
        assert result.layers[name].record.solver == layer.record.solver
    again = quantise(residual(), batches(), solver=spread, run=tmp_path / "run")
    assert again.records == alone.records


def test_refusals_and_errors_come_through(problem, two_processes):
    with pytest.raises(RefusedError, match="assignments"):
        Spread(Enumeration(max_assignments=2), two_processes).solve(problem)
    with pytest.raises(ValueError, match="workers is 0"), processes(0):
        pass


def test_the_time_limit_reaches_the_workers(two_processes):
    wide = random_problem(1, 8, 60, seed=1)
    endless = Spread(Annealing(sweeps=10**6, reads=1), two_processes)
    with watching(time_limit=0.2):
        found = endless.solve(wide)
        assert seconds_left() < 0.2
    assert bool((found.energy <= wide.energy(Nearest().solve(wide).levels) * 10).all())
    assert seconds_left() == float("inf")


def test_problem_files_go_away(problem, tmp_path):
    with ThreadPoolExecutor(1) as executor:
        Spread(Nearest(), executor, folder=tmp_path).solve(problem)
    assert list(tmp_path.iterdir()) == []


def test_a_dask_cluster_gives_the_bits_of_one_process(problem):
    distributed = pytest.importorskip("distributed")
    alone = Annealing(sweeps=20).solve(problem, seed=3)
    options = {"processes": False, "n_workers": 2, "threads_per_worker": 1}
    with (
        distributed.LocalCluster(**options, dashboard_address=None) as local,
        cluster(local.scheduler_address) as executor,
    ):
        spread = Spread(Annealing(sweeps=20), executor).solve(problem, seed=3)
    assert torch.equal(spread.levels, alone.levels)


def test_a_cluster_that_is_not_there_is_named():
    pytest.importorskip("distributed")
    nobody = cluster("tcp://127.0.0.1:9", seconds=0.5)
    with pytest.raises(ValueError, match=r"no cluster answers at tcp://127\.0\.0\.1:9"), nobody:
        pass
