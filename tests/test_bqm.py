"""Rows as dimod models and models as problems: the same energies, samples and levels both ways."""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable
from dataclasses import replace
from typing import get_args

import dimod
import numpy as np
import pytest
import reference
import torch
from dimod.testing import assert_bqm_almost_equal, assert_sampleset_energies
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_rounding.problem import ProblemError, RoundingProblem
from qubo_rounding.qubo.bqm import (
    Bit,
    Encoding,
    as_levels,
    as_sampleset,
    bit_steps,
    check_encoding,
    count_variables,
    from_bqm,
    levels_from_sample,
    to_bqm,
    to_quadratic_model,
)
from qubo_rounding.testing import random_problem

ENCODINGS = get_args(Encoding)
EXAMPLES = settings(max_examples=50, deadline=None)


def partly_fixed() -> RoundingProblem:
    problem = random_problem(2, 2, 6, seed=3, linear=True)
    high = problem.high.clone()
    high[:, :, [0, 3]] = problem.low[:, :, [0, 3]]
    return replace(problem, high=high)


def of_many_widths() -> RoundingProblem:
    """Spans 0 to 4, other ones in every row, and a scale for each weight."""
    problem = random_problem(2, 2, 5, seed=4, linear=True)
    spans = torch.arange(5).roll(2).expand(2, 2, 5).clone()
    spans[1, 1] = spans[1, 1].flip(0)
    draw = torch.Generator().manual_seed(1)
    spread = 0.5 + torch.rand(problem.target.shape, generator=draw, dtype=torch.float64)
    return replace(problem, high=problem.low + spans, scale=problem.scale * spread)


PROBLEMS = {"up/down": partly_fixed(), "of many widths": of_many_widths()}


def is_close(energies: object, expected: object, problem: RoundingProblem) -> bool:
    room = 1e-9 * float(problem.unit.max())
    return np.allclose(energies, expected, rtol=1e-9, atol=room)  # pyright: ignore


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_sample_has_the_energy_of_its_levels(name: str, encoding: Encoding) -> None:
    problem = PROBLEMS[name]
    for (group, row), one in reference.rows_of(problem):
        bqm = to_bqm(problem, group, row, encoding)
        assert bqm.vartype is dimod.BINARY
        assert bqm.num_variables == count_variables(problem, encoding)[group, row]
        samples = dimod.ExactSolver().sample(bqm)
        assert len(samples) == 2**bqm.num_variables
        found = set()
        for sample, energy in samples.data(["sample", "energy"]):
            levels = levels_from_sample(problem, sample, group, row).numpy()
            assert is_close(energy, reference.energy(one, levels), problem)
            found.add(tuple(levels.tolist()))
        ranges = [range(low, high + 1) for low, high in zip(one.low, one.high, strict=True)]
        assert found == set(itertools.product(*ranges))


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_integer_sample_has_the_energy_of_its_levels(name: str) -> None:
    problem = PROBLEMS[name]
    for (group, row), one in reference.rows_of(problem):
        model = to_quadratic_model(problem, group, row)
        free = [j for j in range(problem.d) if one.high[j] > one.low[j]]
        assert list(model.variables) == free
        assert all(model.vartype(j) is dimod.INTEGER for j in free)
        assert all(model.lower_bound(j) == 0 for j in free)
        assert all(model.upper_bound(j) == one.high[j] - one.low[j] for j in free)
        for steps in itertools.product(*(range(one.high[j] - one.low[j] + 1) for j in free)):
            sample = dict(zip(free, steps, strict=True))
            levels = levels_from_sample(problem, sample, group, row).numpy()
            assert (levels - one.low).tolist() == [sample.get(j, 0) for j in range(problem.d)]
            assert is_close(model.energy(sample), reference.energy(one, levels), problem)


@EXAMPLES
@given(span=st.integers(1, 300))
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_bits_reach_exactly_the_range(encoding: Encoding, span: int) -> None:
    reached = {0}
    for steps in bit_steps(span, encoding):
        reached |= {level + steps for level in reached}
    assert reached == set(range(span + 1))


@EXAMPLES
@given(spans=st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=6))
def test_variables_are_counted_without_making_them(spans: list[int]) -> None:
    problem = random_problem(1, 1, len(spans), seed=0)
    low = torch.full_like(problem.low, -(2**15))
    wide = replace(problem, low=low, high=low.long() + torch.tensor(spans))
    assert count_variables(wide, "unary").tolist() == [[sum(spans)]]
    bits = sum(len(bit_steps(span)) for span in spans if span)
    assert count_variables(wide, "binary").tolist() == [[bits]]


def test_the_widest_range_has_a_model() -> None:
    problem = random_problem(1, 1, 2, seed=0)
    low, high = torch.full_like(problem.low, -(2**15)), torch.full_like(problem.low, 2**15 - 1)
    wide = replace(problem, low=low, high=high)
    bqm, model = to_bqm(wide), to_quadratic_model(wide)
    assert bqm.num_variables == 32
    assert model.upper_bound(1) == 2**16 - 1
    ones = levels_from_sample(wide, dict.fromkeys(bqm.variables, 1))
    assert torch.equal(ones, high[0, 0])
    energy = float(wide.energy(high))
    assert bqm.energy(dict.fromkeys(bqm.variables, 1)) == pytest.approx(energy, rel=1e-9)
    assert model.energy(dict.fromkeys(model.variables, 2**16 - 1)) == pytest.approx(energy)
    at_the_end = replace(wide, low=high)
    assert to_quadratic_model(at_the_end).num_variables == 0


def test_bits_tell_what_they_stand_for() -> None:
    problem = of_many_widths()
    spans = (problem.high - problem.low)[0, 0].tolist()
    assert spans == [3, 4, 0, 1, 2]
    bits = [Bit(0, 0, 1), Bit(0, 1, 2), Bit(1, 0, 1), Bit(1, 1, 2), Bit(1, 2, 1)]
    assert list(to_bqm(problem).variables) == [*bits, 3, Bit(4, 0, 1), Bit(4, 1, 1)]
    # A sample that went through a file names them by plain tuples or lists.
    sample = dict.fromkeys(map(tuple, bits), 0) | {(4, 0, 1): 0, (4, 1, 1): 0}
    sample |= {tuple(Bit(1, 1, 2)): 1, 3: 1}
    raised = levels_from_sample(problem, sample) - problem.low[0, 0]
    assert raised.tolist() == [0, 2, 0, 1, 0]


def test_all_ones_is_high_and_all_zeros_is_low() -> None:
    for problem, encoding in itertools.product(PROBLEMS.values(), ENCODINGS):
        variables = to_bqm(problem, 1, 1, encoding).variables
        ones = levels_from_sample(problem, dict.fromkeys(variables, 1), 1, 1)
        zeros = levels_from_sample(problem, dict.fromkeys(variables, 0), 1, 1)
        assert ones.dtype == torch.int16
        assert torch.equal(ones, problem.high[1, 1])
        assert torch.equal(zeros, problem.low[1, 1])


def test_a_fixed_row_is_an_empty_model_with_its_energy() -> None:
    problem = random_problem(1, 2, 4, seed=1)
    problem = replace(problem, high=problem.low)
    energy = float(problem.energy(problem.low)[0, 1])
    for model in (to_bqm(problem, 0, 1), to_quadratic_model(problem, 0, 1)):
        assert model.num_variables == 0
        assert model.offset == pytest.approx(energy)
    assert torch.equal(levels_from_sample(problem, {}, 0, 1), problem.low[0, 1])


def test_the_problem_is_left_alone() -> None:
    problem = partly_fixed()
    low = problem.low.clone()
    levels_from_sample(problem, dict.fromkeys(to_bqm(problem).variables, 1))
    assert torch.equal(problem.low, low)


def test_samples_of_something_else_are_refused() -> None:
    problem = partly_fixed()
    spins = dict.fromkeys(to_bqm(problem).variables, -1)
    with pytest.raises(ProblemError, match="not spins"):
        levels_from_sample(problem, spins)
    with pytest.raises(ProblemError, match="leaves"):
        levels_from_sample(problem, {1: 2})
    with pytest.raises(ProblemError, match="leaves"):
        levels_from_sample(problem, {0: 1})  # a fixed weight


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: 0.9999999}, "holds 0.9999999; give whole numbers"),
        ({0: float("nan")}, "holds nan; give whole numbers"),
        ({9: 1}, "tells weight 9; the row has 0 to 3"),
        ({"a": 1}, "tells weight 'a'; the row has 0 to 3"),
        ({0: None}, "does not tell weight 0; give all variables"),
    ],
)
def test_samples_that_no_level_belongs_to_are_refused(change: dict, message: str) -> None:
    problem = random_problem(1, 1, 4, seed=1)
    problem = replace(problem, high=problem.low + 1)
    sample = dict.fromkeys(range(4), 1) | change
    with pytest.raises(ProblemError, match=re.escape(message)):
        levels_from_sample(problem, {k: v for k, v in sample.items() if v is not None})


def test_samples_that_leave_bits_out_are_refused() -> None:
    problem = of_many_widths()
    sample = dict.fromkeys(to_bqm(problem).variables, 0)
    del sample[Bit(1, 1, 2)]
    with pytest.raises(ProblemError, match="does not tell weight 1"):
        levels_from_sample(problem, sample)


def test_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(ValueError, match="'gray'; give 'binary' or 'unary'"):
        check_encoding("gray")


# Models as problems

NAMES = [0, "a", (1, "b"), "z", -3, ("c",), 7]
KINDS = [dimod.Float64BQM, dimod.Float32BQM, dimod.DictBQM]


@st.composite
def models(draw: st.DrawFn, kinds: tuple = tuple(KINDS)) -> dimod.BinaryQuadraticModel:
    """Any binary quadratic model of up to six variables, its biases exact in float32."""
    bias = st.integers(-1000, 1000).map(lambda n: n / 64)
    names: list[Hashable] = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=6))
    pairs = [pair for pair in itertools.combinations(names, 2) if draw(st.booleans())]
    linear = {name: draw(bias) for name in names}
    quadratic = {pair: draw(bias) for pair in pairs}
    kind, vartype = draw(st.sampled_from(kinds)), draw(st.sampled_from(["BINARY", "SPIN"]))
    return kind(linear, quadratic, draw(bias), vartype)


def every_sample(bqm: dimod.BinaryQuadraticModel) -> dimod.SampleSet:
    values = (-1, 1) if bqm.vartype is dimod.SPIN else (0, 1)
    samples = list(itertools.product(values, repeat=bqm.num_variables))
    array = np.array(samples, np.int8).reshape(len(samples), bqm.num_variables)
    return dimod.SampleSet.from_samples_bqm((array, list(bqm.variables)), bqm)


def energies(problem: RoundingProblem, levels: torch.Tensor) -> list[float]:
    return [float(problem.energy(one[None, None])) for one in levels[0]]


@EXAMPLES
@given(models())
def test_a_model_as_a_problem_has_the_same_energies(bqm: dimod.BinaryQuadraticModel) -> None:
    before = bqm.copy()
    problem, samples = from_bqm(bqm), every_sample(bqm)
    assert bqm == before
    assert (problem.g, problem.r, problem.d) == (1, 1, max(bqm.num_variables, 1))
    levels = as_levels(samples, bqm)
    # Biases are up to 16: an energy is a sum of some dozens of them.
    assert np.allclose(energies(problem, levels), samples.record.energy, rtol=1e-9, atol=1e-10)
    assert torch.linalg.eigvalsh(problem.gram).min() > -1e-10
    assert bool((problem.diagonal == problem.diagonal[..., :1]).all())


@EXAMPLES
@given(models())
def test_samples_and_levels_are_inverse(bqm: dimod.BinaryQuadraticModel) -> None:
    samples = every_sample(bqm)
    levels = as_levels(samples, bqm)
    back = as_sampleset(levels, bqm)
    assert back.vartype is bqm.vartype
    assert torch.equal(as_levels(back, bqm), levels)
    assert_sampleset_energies(back, bqm, precision=4)
    if bqm.num_variables:
        assert len(torch.unique(levels[0], dim=0)) == len(samples)
    # The order in which a sample names the variables does not matter.
    turned = list(bqm.variables)[::-1]
    shuffled = [
        {name: sample[name] for name in turned} for sample in samples.samples(sorted_by=None)
    ]
    assert torch.equal(as_levels(shuffled, bqm), levels)


@EXAMPLES
@given(models())
def test_a_model_comes_back(bqm: dimod.BinaryQuadraticModel) -> None:
    back = to_bqm(from_bqm(bqm))
    back.relabel_variables(dict(enumerate(bqm.variables)))
    expected = dimod.as_bqm(bqm, "BINARY", dtype=np.float64)
    assert_bqm_almost_equal(back, expected, ignore_zero_interactions=True)


def test_a_row_comes_back() -> None:
    for name, problem in PROBLEMS.items():
        bqm = to_bqm(problem, 1, 0)
        back = from_bqm(bqm)
        samples = dimod.ExactSolver().sample(bqm)
        found = energies(back, as_levels(samples, bqm))
        assert is_close(found, samples.record.energy, problem), name


@pytest.mark.parametrize("size", [1e-200, 1e-8, 1e8, 1e100])
def test_the_size_of_the_biases_does_not_matter(size: float) -> None:
    matrix = np.triu(np.random.default_rng(3).normal(size=(8, 8)))
    small = dimod.BinaryQuadraticModel(matrix, "BINARY").change_vartype(dimod.SPIN)
    large = small.copy()
    large.scale(size)
    of_small, of_large = from_bqm(small), from_bqm(large)
    levels = as_levels(every_sample(small), small)
    expected = size * np.array(energies(of_small, levels))
    assert np.allclose(energies(of_large, levels), expected, rtol=1e-6, atol=1e-12 * size)
    assert float(of_large.unit) == pytest.approx(size * float(of_small.unit))


def test_a_model_without_couplings_is_decided_by_its_linear_biases() -> None:
    problem = from_bqm(dimod.BinaryQuadraticModel({"a": -2.0, "b": 3.0}, {}, 1.0, "SPIN"))
    assert not problem.gram.any()
    assert problem.linear is not None
    assert problem.linear.tolist() == [[[-4.0, 6.0]]]
    assert problem.offset.tolist() == [[1.0]]


@pytest.mark.parametrize("bias", [np.nan, np.inf])
def test_biases_have_to_be_finite(bias: float) -> None:
    for linear, quadratic in (({0: bias}, {}), ({}, {(0, 1): bias})):
        with pytest.raises(ProblemError, match="NaN or infinity"):
            from_bqm(dimod.BinaryQuadraticModel(linear, quadratic, 0.0, "SPIN"))


def test_samples_of_another_model_are_refused() -> None:
    bqm = dimod.BinaryQuadraticModel({"a": 1.0, "b": 1.0}, {}, 0.0, "SPIN")
    with pytest.raises(ProblemError, match="do not tell 'b'"):
        as_levels({"a": 1}, bqm)
    with pytest.raises(ProblemError, match=r"model is SPIN .* beside -1 and 1"):
        as_levels({"a": 1, "b": 0}, bqm)
    with pytest.raises(ProblemError, match=r"model is BINARY .* beside 0 and 1"):
        as_levels({"a": 1, "b": -1}, bqm.change_vartype(dimod.BINARY, inplace=False))


@pytest.mark.parametrize(("group", "row"), [(2, 0), (-1, 0), (0, 3), (0, -1)])
def test_a_row_that_is_not_there_is_refused(group: int, row: int) -> None:
    problem = random_problem(2, 3, 4)
    for convert in (to_bqm, to_quadratic_model, RoundingProblem.to_qubo):
        with pytest.raises(ProblemError, match="groups are 0 to 1, rows 0 to 2"):
            convert(problem, group, row)
