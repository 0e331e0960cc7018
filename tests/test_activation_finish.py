"""The quadratic model behind an activation function, and what a solver makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qubo_rounding.activation_finish import ActivationFinish
from qubo_rounding.activation_loss import RowData, row_problems
from qubo_rounding.following import Activation, Following
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.solvers import Descent, Enumeration, Nearest
from qubo_rounding.testing import random_problem

RELU = Following(Activation(F.relu), "relu")
D, R, N = 7, 4, 400


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def setting(following: Following = RELU) -> tuple[RowData, RoundingProblem, Tensor]:
    """One group's windows, its problem (whose Gram is that of the windows), its weights."""
    x = drawn(N, D, seed=0)
    weights = 0.5 * drawn(R, D, seed=1).double()
    scale = torch.full((1, R, 1), 0.2, dtype=torch.float64)
    target = weights[None] / scale
    problem = RoundingProblem(
        gram=(x.double().T @ x.double())[None] / N,
        target=target,
        scale=scale,
        low=target.floor().to(torch.int16),
        high=target.ceil().to(torch.int16),
    )
    outputs = x @ weights.float().T - 0.5
    data = RowData(x + 0.1 * drawn(N, D, seed=2), outputs, -0.4 * torch.ones(N, R), following)
    return data, problem, weights


def model_energy(
    data: RowData, problem: RoundingProblem, weights: Tensor, levels: Tensor, refit: bool
) -> tuple[Tensor, Tensor]:
    """Energies of the levels under the model that is made at them, and their best shifts."""
    energies, shifts = [], []
    shift = torch.zeros(R, dtype=torch.float64)
    for rows, posed, constant, slope in row_problems(data, problem, weights, shift, levels, refit):
        own = levels[rows, None]
        energies.append(posed.energy(own)[:, 0])
        shifts.append(constant + (slope * posed.errors(own)[:, 0]).sum(dim=1))
    return torch.cat(energies), torch.cat(shifts)


@pytest.mark.parametrize("activation", [F.relu, F.silu, F.relu6, F.gelu], ids=lambda f: f.__name__)
def test_the_model_is_exact_at_the_levels_it_is_made_at(activation: object) -> None:
    data, problem, weights = setting(Following(Activation(activation), "it"))
    levels = problem.nearest()[0]
    energies, shifts = model_energy(data, problem, weights, levels, refit=False)
    rounded = weights + problem.errors(levels[None])[0]
    losses = data.losses(rounded, torch.zeros(R))
    assert torch.equal(shifts, torch.zeros(R, dtype=torch.float64))
    assert torch.allclose(energies, losses, rtol=1e-3)


def test_the_model_is_weighted_least_squares() -> None:
    data, problem, weights = setting()
    at = problem.nearest()[0]
    levels = problem.high[0]
    shift = torch.zeros(R, dtype=torch.float64)
    rounded = weights + problem.errors(at[None])[0]
    m = data.importance(rounded, shift).double()
    (_, posed, constant, slope), *rest = row_problems(data, problem, weights, shift, at, refit=True)
    assert not rest
    errors = problem.errors(levels[None])[0]
    given = data.inputs.double() @ (weights + errors).T + data.others
    difference = given - data.outputs.double()
    best = -(m * difference).sum(dim=0) / m.sum(dim=0)
    expected = (m * (difference + best).square()).mean(dim=0)
    assert torch.allclose(posed.energy(levels[:, None])[:, 0], expected, rtol=1e-4)
    found = constant + (slope * posed.errors(levels[:, None])[:, 0]).sum(dim=1)
    assert torch.allclose(found, best, rtol=1e-4, atol=1e-6)


def test_flat_positions_do_not_count() -> None:
    data, _, weights = setting()
    m = data.importance(weights, torch.zeros(R))
    given = data.inputs @ weights.float().T + data.others
    dead = (given < -0.01) & (data.outputs < -0.01)
    alive = (given > 0.01) & (data.outputs > 0.01)
    assert bool((m[dead] == 0).all())
    assert torch.allclose(m[alive], torch.ones(()), atol=1e-2)
    assert bool(dead.any())
    assert bool(alive.any())


class Windows:
    """What the finish reads of an objective."""

    def __init__(self, data: RowData, groups: int) -> None:
        self._data, self._groups = data, groups

    def windows(self) -> list[tuple[Tensor, Tensor, float]]:
        return [(self._data.inputs, self._data.outputs, 0.0)] * self._groups


@pytest.mark.parametrize("refit", [False, True], ids=["kept", "refitted"])
@pytest.mark.parametrize("solver", [Enumeration(), Descent()], ids=["enumeration", "descent"])
def test_no_row_loses_and_the_whole_gains(solver: object, refit: bool) -> None:
    data, one, weights = setting()
    problem = replace(
        one,
        gram=one.gram.repeat(2, 1, 1),
        stream=None,
        offset=None,
        **{name: getattr(one, name).repeat(2, 1, 1) for name in ("target", "scale", "low", "high")},
    )
    bias = torch.full((2, R), -0.4)
    finish = ActivationFinish(solver=solver, rounds=3)  # pyright: ignore
    start = Nearest().solve(problem)
    begun = torch.zeros(2, R, dtype=torch.float64)
    solution, shift = finish.improve(
        Windows(data, groups=2),  # pyright: ignore
        *(RELU, problem, torch.stack([weights] * 2), bias, start, begun, refit),
        seed=0,
    )

    def losses(levels: Tensor, shift: Tensor) -> Tensor:
        return data.losses(weights + one.errors(levels)[0], shift)

    for group in range(2):
        before = losses(start.levels[group : group + 1], begun[group])
        after = losses(solution.levels[group : group + 1], shift[group])
        assert bool((after <= before).all())
        assert after.sum() < 0.9 * before.sum()
    assert solution.stats["loss"] < solution.stats["loss_before_finish"]
    assert bool((shift != 0).any()) == refit
    assert torch.equal(start.levels, Nearest().solve(problem).levels)  # untouched


def test_rows_share_nothing() -> None:
    data, problem, weights = setting()
    levels, shift = problem.nearest()[0], torch.zeros(R, dtype=torch.float64)
    (_, whole, _, _), *_ = row_problems(data, problem, weights, shift, levels, True)
    assert (whole.g, whole.r, whole.d) == (R, 1, D)
    assert not torch.allclose(whole.gram[0], whole.gram[1])
    assert bool((torch.linalg.eigvalsh(whole.gram) > -1e-9).all())


@pytest.mark.parametrize("options", [{"positions": 0}, {"rounds": 1.5}])
def test_settings_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="give a whole number from 1"):
        ActivationFinish(**options)


def test_random_problems_keep_their_energies() -> None:
    problem = random_problem(1, R, D, seed=1)
    (inputs, outputs) = drawn(50, D, seed=3), drawn(50, R, seed=4)
    data = RowData(inputs, outputs, torch.zeros(50, R), RELU)
    start = Nearest().solve(problem)
    weight = (problem.scale * problem.target)[0]
    solution, _ = ActivationFinish(solver=Descent(), rounds=1).improve(
        Windows(data, groups=1),  # pyright: ignore
        *(RELU, problem, weight[None], torch.zeros(1, R), start),
        *(torch.zeros(1, R, dtype=torch.float64), True),
        seed=0,
    )
    assert torch.allclose(solution.energy, problem.energy(solution.levels))
