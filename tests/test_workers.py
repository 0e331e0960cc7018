"""Workers of any number give the bits of one process, whoever of them dies."""

from __future__ import annotations

import os
import signal
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from time import sleep

import pytest
import torch
from networks import batches, residual

from qubo_rounding.compare import compare
from qubo_rounding.cross_checks import CrossCheckError
from qubo_rounding.layer_problem import LayerSettings
from qubo_rounding.network import quantise
from qubo_rounding.network_comparison import compare_networks
from qubo_rounding.network_study import NetworkCase, NetworkMethod
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.solution import Solution
from qubo_rounding.solvers import Annealing, Certified, Enumeration, Nearest, RefusedError, Solver
from qubo_rounding.spread import Spread
from qubo_rounding.testing import random_problem
from qubo_rounding.watch import seconds_left, watching
from qubo_rounding.workers import cluster, processes


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


@dataclass(frozen=True)
class TooHigh(Solver):
    """Nearest rounding with a lower bound above its energy."""

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        levels = problem.nearest()
        return problem.solution(levels, 2 * problem.energy(levels))


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


@pytest.mark.parametrize("refits", [0, 1])
def test_independent_layers_are_rounded_to_the_same_bits_and_resume(
    refits, two_processes, tmp_path
):
    settings = LayerSettings(scale_refits=refits)
    how = {"calibration": "independent", "settings": settings, "held_out": batches(seed=5)}
    how["solver"] = Annealing(sweeps=5)
    alone = quantise(residual(), batches(), **how)
    told = []
    there = quantise(
        *(residual(), batches()),
        **how,
        executor=two_processes,
        run=tmp_path / "run",
        on_layer=lambda record: told.append(record.name),
    )
    assert sorted(told) == sorted(alone.layers)
    assert list(there.layers) == list(alone.layers)
    for name, layer in alone.layers.items():
        for part in ("levels", "scale", "bias_shift"):
            assert torch.equal(getattr(layer, part), getattr(there.layers[name], part))
        again = replace(there.layers[name].record, seconds=layer.record.seconds)
        assert again == layer.record
    for one, other in zip(alone.model.parameters(), there.model.parameters(), strict=True):
        assert torch.equal(one, other)
    (tmp_path / "run" / "layers" / "stem.safetensors").unlink()
    resumed = quantise(
        *(residual(), batches()), **how, executor=two_processes, run=tmp_path / "run"
    )
    assert [r.seconds for r in resumed.records[1:]] == [r.seconds for r in there.records[1:]]
    assert torch.equal(resumed.layers["stem"].levels, alone.layers["stem"].levels)


def test_layers_that_need_each_other_are_not_given_to_workers(two_processes):
    with pytest.raises(ValueError, match=r"Spread\(solver, executor\)"):
        quantise(residual(), batches(), executor=two_processes)
    spread = Spread(Nearest(), two_processes)
    with pytest.raises(ValueError, match="a plain solver"):
        quantise(
            *(residual(), batches()),
            solver=spread,
            calibration="independent",
            executor=two_processes,
        )


def test_cells_of_a_study_are_measured_by_workers_and_resume(two_processes, tmp_path):
    problems = {str(d): random_problem(2, 2, d, seed=d) for d in (4, 6, 9)}
    solvers = {
        "few": Annealing(sweeps=2),
        "proof": Certified(Annealing(sweeps=20)),
        "all": Enumeration(max_assignments=2**7),
    }
    alone = compare(problems, solvers, seeds=[0, 1])
    there = compare(
        problems, solvers, seeds=[0, 1], executor=two_processes, study=tmp_path / "study"
    )
    assert {record.threads for record in there if not record.refused} == {1}
    assert [r.problem for r in there if r.refused] == ["9", "9"]
    for record, other in zip(alone, there, strict=True):
        own = {"seconds": None, "time": "", "threads": 0}
        assert replace(record, **own) == replace(other, **own)
    again = compare(
        problems, solvers, seeds=[0, 1], executor=two_processes, study=tmp_path / "study"
    )
    assert again == there


def test_networks_of_a_study_are_rounded_to_the_same_bits(two_processes):
    case = NetworkCase("net", residual(), {"": batches()}, batches(seed=3))
    methods = {
        "apart": NetworkMethod(Annealing(sweeps=5), calibration="independent"),
        "in turn": NetworkMethod(Annealing(sweeps=5)),
    }
    alone = compare_networks([case], methods)
    there = compare_networks([case], methods, executor=two_processes)
    for record, other in zip(alone, there, strict=True):
        own = {"seconds": 0.0, "solver_seconds": 0.0, "time": ""}
        assert replace(record, **own) == replace(other, **own)


def test_more_cells_than_are_handed_over_at_a_time(problem):
    with ThreadPoolExecutor(2) as executor:
        records = compare(
            {"one": problem}, {"near": Nearest()}, seeds=range(150), executor=executor
        )
    assert [record.seed for record in records] == list(range(150))


def test_a_worker_killed_at_a_cell_loses_nothing(problem, tmp_path):
    solvers = {"dying": Dying(tmp_path, 2), "calm": Annealing(sweeps=5)}
    with processes(2) as make:
        dying, calm = compare({"one": problem}, solvers, seeds=[1], executor=make)
    assert dying.energy == calm.energy
    assert len(list(tmp_path.iterdir())) == 2


def test_a_contradiction_in_a_worker_names_the_problem(two_processes, problem):
    with pytest.raises(CrossCheckError, match="problem 'one'"):
        compare({"one": problem}, {"wrong": TooHigh()}, executor=two_processes)


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


def test_ctrl_c_ends_workers_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    with processes(1) as make:
        worker = make().submit(os.getpid).result()
        sleeping = make().submit(sleep, 60)
        os.kill(worker, signal.SIGINT)
        assert isinstance(sleeping.exception(timeout=30), BrokenExecutor)
    assert capfd.readouterr().err == ""
