"""Energies, gains and QUBOs of rounding problems, and what is refused at construction."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qubo_rounding.problem import ProblemError, RoundingProblem, gram_product
from qubo_rounding.solution import Solution
from qubo_rounding.testing import random_problem

TENSORS = ("gram", "target", "scale", "low", "high", "linear", "offset", "stream")
FLOATS = ("gram", "target", "scale", "linear", "offset")


def draw_from(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def group_wise(problem: RoundingProblem) -> RoundingProblem:
    """The problem with a scale of its own for every weight."""
    spread = torch.rand(problem.target.shape, generator=draw_from(8), dtype=torch.float64)
    return replace(problem, scale=problem.scale * (0.5 + spread))


def random_levels(problem: RoundingProblem, seed: int = 0) -> Tensor:
    share = torch.rand(problem.target.shape, generator=draw_from(seed), dtype=torch.float64)
    return (problem.low + (share * (problem.high - problem.low + 1)).floor()).to(torch.int16)


def some_fixed(problem: RoundingProblem) -> RoundingProblem:
    high = problem.high.clone()
    high[..., ::3] = problem.low[..., ::3]
    return replace(problem, high=high)


PROBLEMS = {
    "plain": random_problem(2, 3, 6, seed=1),
    "linear": random_problem(2, 3, 6, seed=2, linear=True),
    "group-wise": group_wise(random_problem(1, 4, 6, seed=3, linear=True)),
    "depthwise": random_problem(5, 1, 4, seed=4),
    "one weight": random_problem(1, 1, 1, seed=5, linear=True),
    "some fixed": some_fixed(random_problem(2, 2, 7, seed=6, linear=True)),
    "free": group_wise(random_problem(1, 3, 5, seed=7, free=True, linear=True)),
    "singular": random_problem(1, 2, 6, seed=8, rank=2),
}
every_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
every_binary = pytest.mark.parametrize("name", [n for n, p in PROBLEMS.items() if p.is_binary])


@every_problem
def test_energy_is_the_sum_over_all_entries(problem: RoundingProblem) -> None:
    levels = random_levels(problem)
    energy = problem.energy(levels)
    assert energy.dtype == torch.float64
    for at, row in reference.rows_of(problem):
        naive = reference.energy(row, levels[at].numpy().astype(int))
        assert float(energy[at]) == pytest.approx(naive, rel=1e-12)


@every_problem
def test_gradient_is_the_derivative_by_the_errors(problem: RoundingProblem) -> None:
    levels = random_levels(problem)
    errors = problem.errors(levels).requires_grad_()
    linear = torch.zeros_like(errors) if problem.linear is None else problem.linear
    (((errors @ problem.gram) * errors).sum() + (linear * errors).sum()).backward()
    assert errors.grad is not None
    assert torch.allclose(problem.gradient(levels), errors.grad, rtol=1e-12)


@every_problem
def test_flip_gain_is_a_difference_of_energies(problem: RoundingProblem) -> None:
    levels = random_levels(problem)
    step = torch.where(levels < problem.high, 1, -1) * (problem.high > problem.low)
    gains = problem.flip_gain(levels, None if problem.is_binary else step)
    for at, row in reference.rows_of(problem):
        start = levels[at].numpy().astype(int)
        naive = [reference.flip_gain(row, start, j, int(step[at][j])) for j in range(problem.d)]
        assert gains[at].numpy() == pytest.approx(np.array(naive), rel=1e-9, abs=1e-9)


def test_flip_gain_of_a_wide_problem_needs_a_step() -> None:
    problem = PROBLEMS["free"]
    with pytest.raises(ProblemError, match="give the step"):
        problem.flip_gain(problem.nearest())


def test_flip_gain_at_the_ends_of_16_bits() -> None:
    problem = random_problem(1, 1, 2, seed=1)
    high = torch.full_like(problem.high, 32767)
    problem = replace(problem, target=high - 0.5, low=high - 1, high=high)
    gain = problem.flip_gain(problem.low)
    both = (problem.energy(high) - problem.energy(problem.low)).item()
    assert both == pytest.approx(0, abs=1e-12)  # -1/2 in both columns against +1/2 in both
    assert gain.shape == (1, 1, 2)
    assert float(gain.abs().max()) < 10 * float(problem.unit)


@every_binary
def test_qubo_energies_are_the_rows_energies(name: str) -> None:
    problem = PROBLEMS[name]
    for (group, row), _ in reference.rows_of(problem):
        quadratic, offset, columns = problem.to_qubo(group, row)
        assert torch.equal(quadratic, quadratic.mT)
        assert (
            columns.tolist()
            == torch.nonzero(problem.high[group, row] > problem.low[group, row]).flatten().tolist()
        )
        for bits in itertools.product((0.0, 1.0), repeat=len(columns)):
            x = torch.tensor(bits, dtype=torch.float64)
            levels = problem.low.clone()
            levels[group, row, columns] += x.to(torch.int16)
            energy = float(problem.energy(levels)[group, row])
            assert float(x @ quadratic @ x) + offset == pytest.approx(energy, rel=1e-9, abs=1e-10)


def test_a_wide_problem_is_no_qubo() -> None:
    with pytest.raises(ProblemError, match="up/down"):
        PROBLEMS["free"].to_qubo()


@every_problem
def test_a_part_has_the_bits_of_the_whole(problem: RoundingProblem) -> None:
    levels = random_levels(problem)
    energy, gradient = problem.energy(levels), problem.gradient(levels)
    for group, row in itertools.product(range(problem.g), range(problem.r)):
        at = (slice(group, group + 1), slice(row, row + 1))
        part = problem.part(*at)
        assert torch.equal(part.energy(levels[at]), energy[at])
        assert torch.equal(part.gradient(levels[at]), gradient[at])
        assert torch.equal(part.stream, problem.stream[at])
        assert torch.equal(part.unit, problem.unit[at])


def test_a_product_has_the_same_bits_whatever_rows_stand_beside() -> None:
    errors = torch.randn(2, 21, 130, generator=draw_from(0))
    gram = torch.randn(2, 130, 130, generator=draw_from(1))
    whole = gram_product(errors, gram)
    assert torch.allclose(whole, errors @ gram, atol=1e-4)
    for rows in (slice(0, 1), slice(5, 8), slice(20, 21), slice(3, 19)):
        assert torch.equal(gram_product(errors[:, rows].contiguous(), gram), whole[:, rows])


@every_problem
def test_moving_to_a_device_keeps_everything(problem: RoundingProblem) -> None:
    moved = problem.to("cpu")
    for name in TENSORS:
        before, after = getattr(problem, name), getattr(moved, name)
        assert (before is after is None) or torch.equal(before, after)


def test_all_tensors_have_to_lie_on_one_device() -> None:
    problem = PROBLEMS["plain"]
    with pytest.raises(ProblemError, match="one device"):
        replace(problem, offset=torch.zeros(2, 3, dtype=torch.float64, device="meta"))


@every_problem
def test_nearest_is_the_closest_level_allowed(problem: RoundingProblem) -> None:
    nearest = problem.nearest()
    assert nearest.dtype == torch.int16
    for at, row in reference.rows_of(problem):
        for j, level in enumerate(nearest[at].tolist()):
            distance = {q: abs(q - row.target[j]) for q in range(row.low[j], row.high[j] + 1)}
            assert level == min(distance, key=distance.__getitem__)


@every_problem
def test_unit_is_the_mean_cost_of_a_lone_move(problem: RoundingProblem) -> None:
    for at, row in reference.rows_of(problem):
        naive = np.mean([row.scale[j] ** 2 * row.gram[j, j] for j in range(problem.d)])
        assert float(problem.unit[at]) == pytest.approx(naive)


def test_shape_words_and_defaults() -> None:
    problem = random_problem(2, 3, 4)
    assert (problem.g, problem.r, problem.d) == (2, 3, 4)
    assert problem.is_binary
    assert not PROBLEMS["free"].is_binary
    assert torch.equal(problem.offset, torch.zeros(2, 3, dtype=torch.float64))
    assert torch.equal(problem.stream, torch.arange(6).reshape(2, 3))


def test_any_precision_is_converted() -> None:
    problem = random_problem(1, 2, 3)
    low = problem.low.to(torch.int64)
    single = replace(problem, scale=problem.scale.float(), low=low, high=problem.high.int())
    assert single.scale.dtype == torch.float64
    assert single.low.dtype == single.high.dtype == torch.int16
    assert torch.equal(single.low, problem.low)


def constant(value: float, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.full(shape, value, dtype=dtype)


LOPSIDED = constant(1.0, 1, 4, 4).triu()
INT, INT64 = torch.int16, torch.int64
BAD_FIELDS = [
    ({"target": None}, "target is a NoneType"),
    ({"gram": None}, "gram is a NoneType"),
    ({"scale": 0.5}, "scale is a float; give a torch.Tensor"),
    ({"low": np.zeros((1, 2, 4), int)}, "low is a ndarray"),
    ({"target": constant(0, 1, 2, 4, dtype=INT)}, "target has dtype torch.int16.*floating point"),
    ({"gram": constant(0, 1, 4, 4, dtype=torch.complex64)}, "gram has dtype torch.complex64"),
    ({"low": constant(0, 1, 2, 4)}, "low has dtype torch.float64; give a signed integer"),
    ({"low": constant(0, 1, 2, 4, dtype=torch.bool)}, "low has dtype torch.bool"),
    ({"high": constant(9, 1, 2, 4, dtype=torch.uint16)}, "high has dtype torch.uint16"),
    ({"high": constant(40_000, 1, 2, 4, dtype=INT64)}, "high holds levels beyond 16 bits"),
    ({"low": constant(-(2**63), 1, 2, 4, dtype=INT64)}, "low holds levels beyond 16 bits"),
    ({"stream": constant(0, 1, 2)}, "stream has dtype"),
    ({"target": constant(0, 4)}, r"target has shape \(4,\)"),
    ({"target": constant(0, 1, 0, 4)}, r"target has shape \(1, 0, 4\)"),
    ({"gram": constant(1, 4, 4)}, r"gram has shape \(4, 4\).*give \(1, 4, 4\)"),
    ({"scale": constant(1, 1, 2)}, r"give \(1, 2, 1\) or \(1, 2, 4\)"),
    ({"low": constant(0, 1, 2, 1, dtype=INT)}, "low has shape"),
    ({"high": constant(0, 1, 1, 4, dtype=INT)}, "high has shape"),
    ({"linear": constant(0, 2, 4)}, "linear has shape"),
    ({"offset": constant(0, 2)}, "offset has shape"),
    ({"stream": constant(0, 2, dtype=INT64)}, "stream has shape"),
    ({"scale": constant(0, 1, 2, 1)}, "scale holds zero or negative steps"),
    ({"scale": constant(-1, 1, 2, 4)}, "scale holds zero or negative steps"),
    ({"low": constant(100, 1, 2, 4, dtype=INT)}, "low exceeds high"),
    ({"gram": LOPSIDED}, r"gram is not symmetric \(largest difference 1\); give \(G \+ G'\)/2"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_FIELDS, ids=[m for _, m in BAD_FIELDS])
def test_a_bad_field_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        replace(random_problem(1, 2, 4), **fields)


@settings(max_examples=50, deadline=None)
@given(
    name=st.sampled_from(FLOATS),
    value=st.sampled_from([float("nan"), float("inf"), -float("inf")]),
    where=st.integers(0, 10**6),
)
def test_not_finite_is_refused_wherever_it_stands(name: str, value: float, where: int) -> None:
    problem = PROBLEMS["linear"]
    tensor = getattr(problem, name).clone()
    tensor.view(-1)[where % tensor.numel()] = value
    with pytest.raises(ProblemError, match=f"{name} holds NaN or infinity"):
        replace(problem, **{name: tensor})


@settings(max_examples=50, deadline=None)
@given(name=st.sampled_from(TENSORS), shape=st.lists(st.integers(0, 5), max_size=4))
def test_every_other_shape_is_refused(name: str, shape: list[int]) -> None:
    problem = random_problem(2, 3, 4, linear=True)
    tensor = getattr(problem, name)
    right = [tuple(tensor.shape)] + ([(2, 3, 4)] if name == "scale" else [])
    if tuple(shape) in right:
        return
    with pytest.raises(ProblemError, match="has shape"):
        replace(problem, **{name: torch.ones(shape, dtype=tensor.dtype)})


def test_rounding_noise_is_no_asymmetry() -> None:
    problem = random_problem(1, 1, 3)
    gram = problem.gram.clone()
    gram[0, 0, 1] *= 1 + 1e-12
    symmetric = replace(problem, gram=gram).gram
    assert torch.equal(symmetric, symmetric.mT)
    assert torch.equal(symmetric + symmetric, gram + gram.mT)


def test_a_solution_is_scored_by_the_problem() -> None:
    problem = PROBLEMS["linear"]
    solution = problem.solution(problem.low.long(), note="x")
    assert solution.levels.dtype == torch.int16
    assert torch.equal(solution.energy, problem.energy(problem.low))
    assert solution.stats == {"note": "x"}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: p.high + 1,
        lambda p: p.low - 1,
        lambda p: p.low.double(),
        lambda p: p.low[:, :1],
        lambda p: p.low[0],
    ],
)
def test_levels_that_are_not_allowed_make_no_solution(spoil: Any) -> None:
    problem = PROBLEMS["linear"]
    with pytest.raises(ProblemError, match="within \\[low, high\\]"):
        problem.solution(spoil(problem))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": np.full((2, 3, 4), 0.5)}, "levels have to be 16-bit integers"),
        ({"levels": np.full((2, 3, 4), 40_000)}, "levels have to be 16-bit integers"),
        ({"levels": np.zeros((2, 3), np.int16)}, "levels have to be 16-bit integers"),
        ({"energy": np.zeros(7)}, "energy has shape (7,); with levels (2, 3, 4) give (2, 3)"),
        ({"lower_bound": np.zeros((3, 2))}, "lower_bound has shape (3, 2)"),
    ],
)
def test_files_that_hold_no_solution_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    whole = {"levels": np.zeros((2, 3, 4), np.int16), "energy": np.zeros((2, 3))}
    path = tmp_path / "s.npz"
    np.savez(path, **(whole | {"lower_bound": np.zeros((2, 3))}))
    assert Solution.load(path).levels.dtype == torch.int16
    np.savez(path, **(whole | change))
    with pytest.raises(ProblemError, match=re.escape(message)):
        Solution.load(path)


def test_gap_and_proven() -> None:
    energy = torch.tensor([[2.0, 2.0, 2.0, 0.0, 2.0]], dtype=torch.float64)
    levels = torch.zeros(1, 5, 1, dtype=torch.int16)
    bound = torch.tensor([[2.0, 1.5, torch.nan, 0.0, -torch.inf]], dtype=torch.float64)
    solution = Solution(levels, energy, bound)
    assert solution.gap.tolist() == [[0.0, 0.5, torch.inf, 0.0, torch.inf]]
    assert solution.proven.tolist() == [[True, False, False, True, False]]
    unbounded = Solution(levels, energy)
    assert not bool(unbounded.proven.any())
    assert bool(unbounded.gap.isinf().all())


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
def test_normalised_keeps_the_order_of_energies_and_has_unit_one(size: float) -> None:
    problem = random_problem(2, 3, 6, seed=1, linear=True)
    sized = replace(problem, scale=problem.scale * size, linear=problem.linear / size)
    scaled = sized.normalised()
    for levels in (sized.low, sized.high, sized.nearest()):
        expected = sized.energy(levels) / sized.unit[..., 0]
        assert torch.allclose(scaled.energy(levels), expected, rtol=1e-9)
    assert torch.allclose(scaled.unit, torch.ones_like(scaled.unit))
    assert float(scaled.gram.abs().max()) < 1e3


@pytest.mark.parametrize("size", [1e-20, 1e-120, 1e-210])
def test_a_linear_term_that_dwarfs_the_gram_matrix_is_normalised(size: float) -> None:
    """Its energies stay within what a problem may have."""
    problem = random_problem(2, 3, 6, seed=1, linear=True)
    steep = replace(problem, gram=problem.gram * size)
    scaled = steep.normalised()
    energies = [scaled.energy(levels) for levels in (steep.low, steep.nearest(), steep.high)]
    assert bool(torch.isfinite(torch.stack(energies)).all())
    order = [steep.energy(levels) for levels in (steep.low, steep.nearest(), steep.high)]
    assert torch.equal(torch.stack(energies).argsort(0), torch.stack(order).argsort(0))


def test_a_row_that_nothing_flows_into_is_normalised_to_itself() -> None:
    problem = random_problem(1, 2, 4, seed=2)
    dead = replace(problem, gram=torch.zeros_like(problem.gram)).normalised()
    assert not dead.energy(dead.low).any()
    assert bool(torch.isfinite(dead.scale).all())


@pytest.mark.parametrize("field", ["gram", "scale", "target", "linear", "offset"])
def test_numbers_whose_energies_leave_float64_are_refused(field: str) -> None:
    problem = random_problem(1, 2, 4, linear=True)
    value = getattr(problem, field).clone()
    value[..., -1] = 1e308 if field != "gram" else 0.0
    if field == "gram":
        value[:, -1, -1] = 1e308
    with pytest.raises(ProblemError, match=r"energies may reach .*keep them below 1e\+200"):
        replace(problem, **{field: value})
