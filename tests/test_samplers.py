"""Solvers as dimod samplers: dimod's own conformance tests, optima, edge cases, what they tell."""

from __future__ import annotations

import json
import unittest
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dimod
import numpy as np
import pytest
import torch
from dimod.exceptions import SamplerUnknownArgWarning
from dimod.testing import assert_sampler_api, assert_sampleset_energies, load_sampler_bqm_tests
from dwave.samplers import SteepestDescentComposite

from qubo_rounding.problem import RoundingProblem
from qubo_rounding.qubo.bqm import from_bqm, to_bqm
from qubo_rounding.qubo.samplers import SolverSampler
from qubo_rounding.solution import Solution
from qubo_rounding.solvers import (
    SOLVERS,
    Annealing,
    Descent,
    DimodSampler,
    Enumeration,
    Gptq,
    Nearest,
    RefusedError,
    Solver,
    make_solver,
)
from qubo_rounding.testing import random_problem

LIGHT = {
    "adaround": "adaround:iterations=100,lr=0.05",
    "annealing": "annealing:sweeps=20,reads=1",
    "dwave_annealing": "dwave_annealing:reads=2,sweeps=50",
    "dwave_tabu": "dwave_tabu:milliseconds=5",
    "dwave_descent": "dwave_descent:reads=5",
}
EXACT = [name for name in ("enumeration", "dimod_exact", "tree_search") if name in SOLVERS]


def sampler(name: str) -> SolverSampler:
    return SolverSampler(make_solver(LIGHT.get(name, name)))


def model(vartype: str = "SPIN", n: int = 8, seed: int = 0) -> dimod.BinaryQuadraticModel:
    """Dense, with named variables, one of them without any bias."""
    matrix = np.random.default_rng(seed).normal(size=(n, n))
    bqm = dimod.BinaryQuadraticModel(matrix.diagonal(), np.triu(matrix, 1), 1.5, vartype)
    bqm.relabel_variables({k: f"x{k}" for k in range(n)})
    bqm.add_variable("idle")
    return bqm


def light(name: str) -> Callable[[], SolverSampler]:
    """A factory with a name, as dimod's tests want it."""

    def make() -> SolverSampler:
        return sampler(name)

    make.__name__ = name
    return make


def with_every_solver(case: type[unittest.TestCase]) -> type[unittest.TestCase]:
    for name in SOLVERS:
        case = load_sampler_bqm_tests(light(name))(case)
    return case


@with_every_solver
class TestDimodsOwn(unittest.TestCase):
    """dimod's conformance tests: empty models, one to three variables, all classes of models."""


@pytest.mark.parametrize("vartype", ["SPIN", "BINARY"])
@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_is_a_sampler(name: str, vartype: str) -> None:
    bqm = model(vartype)
    assert_sampler_api(sampler(name))
    sampleset = sampler(name).sample(bqm, num_reads=3, seed=1)
    assert_sampleset_energies(sampleset, bqm)
    assert sampleset.vartype is bqm.vartype
    assert set(sampleset.variables) == set(bqm.variables)
    assert len(sampleset) == 3


@pytest.mark.parametrize("vartype", ["SPIN", "BINARY"])
@pytest.mark.parametrize("name", EXACT)
def test_exact_solvers_prove_the_ground_state(name: str, vartype: str) -> None:
    for seed in range(4):
        bqm = model(vartype, seed=seed)
        ground = dimod.ExactSolver().sample(bqm).first.energy
        sampleset = sampler(name).sample(bqm)
        assert sampleset.first.energy == pytest.approx(ground, rel=1e-9)
        assert sampleset.info["lower_bound"] == pytest.approx(ground, rel=1e-9)
        assert sampleset.info["proven"] is True


def test_reads_are_rows_with_streams_of_their_own() -> None:
    bqm = model(n=60)
    rough = SolverSampler(Annealing(sweeps=2, reads=1))
    many = rough.sample(bqm, num_reads=20, seed=3)
    assert len(many) == 20
    assert len(many.aggregate()) > 1
    again = rough.sample(bqm, num_reads=20, seed=3)
    assert np.array_equal(many.record.sample, again.record.sample)
    fewer = rough.sample(bqm, num_reads=5, seed=3)
    assert np.array_equal(many.record.sample[:5], fewer.record.sample)
    other = rough.sample(bqm, num_reads=20, seed=4)
    assert not np.array_equal(many.record.sample, other.record.sample)


def test_a_seed_that_was_drawn_is_told() -> None:
    bqm = model(n=60)
    rough = SolverSampler(Annealing(sweeps=2, reads=1))
    drawn = rough.sample(bqm, num_reads=5)
    again = rough.sample(bqm, num_reads=5, seed=drawn.info["seed"])
    assert np.array_equal(drawn.record.sample, again.record.sample)


def test_the_default_is_annealing() -> None:
    bqm = model()
    ground = dimod.ExactSolver().sample(bqm).first.energy
    assert SolverSampler().sample(bqm, seed=0).first.energy == pytest.approx(ground)
    assert SolverSampler().properties == {"solver": repr(Annealing())}


def test_info_tells_times_bounds_and_the_solver() -> None:
    annealed = sampler("annealing").sample(model(), seed=2)
    info = annealed.info
    assert set(info["timing"]) == {"preprocessing_ns", "sampling_ns", "postprocessing_ns"}
    assert all(type(time) is int and time >= 0 for time in info["timing"].values())
    assert (info["lower_bound"], info["proven"]) == (None, False)
    assert info["solver"] == repr(make_solver(LIGHT["annealing"]))
    assert info["stats"]["reads"] == 1
    assert json.loads(json.dumps(info)) == info
    assert dimod.SampleSet.from_serializable(annealed.to_serializable()) == annealed


@dataclass(frozen=True)
class Bounding(Solver):
    """All low, with these lower bounds below the energies."""

    gaps: tuple[float, ...]

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        energy = problem.energy(problem.low)
        return problem.solution(problem.low, energy - torch.tensor([self.gaps]))


@pytest.mark.parametrize(
    ("gaps", "gap", "proven"),
    [
        ((3.0, 2.0), 2.0, False),
        ((torch.nan, 2.0), 2.0, False),
        ((torch.inf, torch.nan), None, False),
        ((torch.nan, 0.0), 0.0, True),
    ],
)
def test_the_best_bound_of_all_reads_counts(
    gaps: tuple[float, ...], gap: float | None, proven: bool
) -> None:
    sampleset = SolverSampler(Bounding(gaps)).sample(model(), num_reads=2)
    expected = None if gap is None else pytest.approx(sampleset.first.energy - gap)
    assert sampleset.info["lower_bound"] == expected
    assert sampleset.info["proven"] is proven


@pytest.mark.parametrize("vartype", ["SPIN", "BINARY"])
@pytest.mark.parametrize("name", EXACT)
def test_models_with_little_to_decide(name: str, vartype: str) -> None:
    zero = -1 if vartype == "SPIN" else 0
    empty = dimod.BinaryQuadraticModel({}, {}, 2.5, vartype)
    sampleset = sampler(name).sample(empty, num_reads=2)
    assert sampleset.record.energy.tolist() == [2.5, 2.5]
    assert sampleset.info["lower_bound"] == pytest.approx(2.5)
    for bias, wanted in ((1.0, min), (-1.0, max)):
        lone = dimod.BinaryQuadraticModel({"a": bias}, {}, 0.0, vartype)
        assert sampler(name).sample(lone).first.sample == {"a": wanted(zero, 1)}
    idle = dimod.BinaryQuadraticModel({"a": 0.0, "b": 0.0}, {}, 1.0, vartype)
    assert sampler(name).sample(idle).first.energy == 1.0


def test_gptq_accepts_models_without_a_diagonal() -> None:
    bqm = model("SPIN", n=30)
    assert Gptq().refuses(from_bqm(bqm)) is None
    start = SolverSampler(Nearest()).sample(bqm).first.energy
    assert SolverSampler(Descent(start=Gptq())).sample(bqm).first.energy < start


def test_a_row_gives_the_optimum_of_its_problem() -> None:
    problem = random_problem(1, 2, 9, seed=4, linear=True)
    optimum = Enumeration().solve(problem)
    for row in range(2):
        found = sampler("enumeration").sample(to_bqm(problem, 0, row)).first.energy
        assert found == pytest.approx(float(optimum.energy[0, row]), rel=1e-9)


def test_there_and_back_again() -> None:
    problem = random_problem(2, 2, 4, seed=4, bits=2, free=True)
    around = DimodSampler(sampler("enumeration"), {"seed": 0}, exact=True).solve(problem)
    assert torch.equal(around.levels, Enumeration().solve(problem).levels)


def test_composites_take_it_as_a_child() -> None:
    bqm = model(n=40)
    child = sampler("annealing")
    truncated = dimod.TruncateComposite(child, 2).sample(bqm, num_reads=6, seed=1)
    assert len(truncated) == 2
    polished = SteepestDescentComposite(SolverSampler(Nearest())).sample(bqm, seed=1)
    assert polished.first.energy < SolverSampler(Nearest()).sample(bqm).first.energy
    tracked = dimod.TrackingComposite(child)
    tracked.sample(bqm, num_reads=2)
    assert len(tracked.output) == 2


def test_a_time_limit_ends_it_early() -> None:
    endless = SolverSampler(Annealing(sweeps=5, reads=10**9))
    sampleset = endless.sample(model(n=20), time_limit=0.05)
    assert sampleset.info["stats"]["reads"] < 10**9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_reads": 0}, "num_reads is 0; give at least 1"),
        ({"time_limit": 0.0}, "time limit is 0.0 s"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SolverSampler(Nearest()).sample(model(), **arguments)


def test_a_refusal_is_an_error() -> None:
    with pytest.raises(RefusedError, match="enumeration visits at most 16"):
        SolverSampler(Enumeration(max_assignments=16)).sample(model())


def test_unknown_arguments_are_ignored_with_a_warning() -> None:
    with pytest.warns(SamplerUnknownArgWarning, match="num_sweeps"):
        sampleset = SolverSampler(Nearest()).sample(model(), num_sweeps=3)
    assert len(sampleset) == 1
