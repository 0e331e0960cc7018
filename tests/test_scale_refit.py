"""Scales refitted in closed form: against searches and least squares on the inputs themselves."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qubo_rounding.grid import Grid
from qubo_rounding.layer_problem import LayerSettings, layer_problem
from qubo_rounding.layers import Layer
from qubo_rounding.local_loss import bias_shift, output_error
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.scale_refit import refit_scale, round_with_scales
from qubo_rounding.solution import Solution
from qubo_rounding.solvers import (
    AdaRound,
    Annealing,
    BestOf,
    CrossEntropy,
    Descent,
    FirstThatAccepts,
    Gptq,
    KBest,
    Nearest,
    RefusedError,
    Solver,
    Stochastic,
    Tabu,
    TreeSearch,
)
from qubo_rounding.statistics import Gram

G, R, D, N = 2, 3, 7, 60
LAYER = Layer("conv", "conv", (G * R, D, 1, 1), G, has_bias=True)
SHARINGS = ("channel", "tensor", 3, 1)
SOLVERS = [
    Nearest(),
    Stochastic(draws=20),
    Gptq(),
    KBest(),
    Descent(),
    Annealing(sweeps=20, reads=1),
    Tabu(rounds=3),
    CrossEntropy(iterations=3),
    AdaRound(iterations=20),
    TreeSearch(),
    BestOf((Gptq(), Descent())),
    FirstThatAccepts((Tabu(rounds=3), Annealing(sweeps=20, reads=1))),
]


@dataclass(frozen=True)
class Posed:
    """A layer's problem and the inputs, weights and grid that it was made from."""

    x: Tensor
    x_q: Tensor
    gram: Gram
    weight: Tensor
    settings: LayerSettings
    problem: RoundingProblem
    grid: Grid

    def refitted(self, levels: Tensor) -> Grid:
        granularity = self.settings.granularity
        return refit_scale(self.problem, self.grid, self.weight, levels, granularity)

    def rounded(self, solver: Solver, rounds: int = 3):
        return round_with_scales(
            self.problem, self.grid, self.weight, solver, self.settings, rounds, seed=5
        )

    def energy(self, grid: Grid, levels: Tensor) -> Tensor:
        """(g, r) the output error of these levels, measured by the Gram, not by a problem."""
        rounded = grid.dequantize(levels)
        shift = bias_shift(self.weight, rounded, self.gram, self.settings.bias)
        return output_error(self.weight, rounded, shift, self.gram)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def posed(*, paired: bool = False, seed: int = 0, weight: Tensor | None = None, **wanted) -> Posed:
    x = (draw(G, N, D, seed=seed) + draw(G, N, 1, seed=seed + 1)).relu()
    x_q = x + 0.2 * draw(G, N, D, seed=seed + 2).relu() if paired else x
    pair = (x_q.mT @ x_q, x.mT @ x_q, x_q.sum(1)) if paired else ()
    gram = Gram(x.mT @ x, x.sum(1), N, *pair)
    weight = draw(G, R, D, seed=seed + 3) if weight is None else weight
    chosen = LayerSettings(**{"bits": 3, **wanted})
    problem, grid = layer_problem(LAYER, weight, gram, chosen)
    return Posed(x, x_q, gram, weight, chosen, problem, grid)


def total(p: Posed, energy: Tensor) -> Tensor:
    """The energies that must not rise: of rows, or of the layer where rows share a scale."""
    return energy.sum() if p.settings.granularity == "tensor" else energy


def least_squares(p: Posed, levels: Tensor, blocks: list[slice]) -> np.ndarray:
    """(g, r, b) scales that fit the float outputs best, from the inputs, row by row."""
    steps = (levels.double() - p.grid.zero_point).numpy()
    scales = np.empty((G, R, len(blocks)))
    for g in range(G):
        x, x_q = p.x[g].numpy(), p.x_q[g].numpy()
        if p.settings.bias == "refit":
            x, x_q = x - x.mean(0), x_q - x_q.mean(0)
        for r in range(R):
            columns = [x_q[:, at] @ steps[g, r, at] for at in blocks]
            scales[g, r] = np.linalg.lstsq(
                np.stack(columns, 1), x @ p.weight[g, r].numpy(), rcond=None
            )[0]
    return scales


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("bias", ["refit", "keep"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_one_scale_a_row_is_the_least_squares_fit_to_the_outputs(paired, bias, symmetric):
    p = posed(paired=paired, bias=bias, symmetric=symmetric)
    levels = p.problem.nearest()
    grid = p.refitted(levels)
    assert np.allclose(grid.scale, least_squares(p, levels, [slice(0, D)]), rtol=1e-9)
    assert torch.equal(grid.zero_point, p.grid.zero_point)
    assert (grid.smallest, grid.largest) == (p.grid.smallest, p.grid.largest)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("bias", ["refit", "keep"])
def test_scales_of_column_groups_are_the_least_squares_fit_to_the_outputs(paired, bias):
    p = posed(paired=paired, bias=bias, granularity=3, bits=4)
    levels = p.problem.nearest()
    grid = p.refitted(levels)
    fit = least_squares(p, levels, [slice(0, 3), slice(3, 6), slice(6, 7)])
    assert (fit > 0).all()  # else the comparison would not hold
    assert np.allclose(grid.scale, fit.repeat(3, axis=2)[..., :D], rtol=1e-8)


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("bias", ["refit", "keep"])
def test_no_scale_of_a_fine_search_is_better(granularity, paired, bias):
    p = posed(granularity=granularity, paired=paired, bias=bias)
    levels = p.problem.nearest()
    found = total(p, p.energy(p.refitted(levels), levels))
    tried = [
        total(p, p.energy(replace(p.grid, scale=p.grid.scale * factor), levels))
        for factor in np.linspace(0.5, 1.5, 501)
    ]
    best = torch.stack(tried).amin(0)
    assert bool((found <= best * (1 + 1e-12)).all())
    assert torch.allclose(found, best, rtol=1e-3)
    assert bool((found < total(p, p.energy(p.grid, levels))).all())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    paired=st.booleans(),
    sharing=st.sampled_from([*SHARINGS, 100]),
    bias=st.sampled_from(["refit", "keep"]),
    symmetric=st.booleans(),
)
def test_whatever_the_levels_no_energy_rises_and_scales_stay_positive(
    seed, paired, sharing, bias, symmetric
):
    p = posed(seed=seed, paired=paired, granularity=sharing, bias=bias, symmetric=symmetric)
    ends = (p.grid.smallest, p.grid.largest + 1)
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(*ends, (G, R, D), generator=generator, dtype=torch.int16)
    grid = p.refitted(levels)
    assert bool((grid.scale > 0).all())
    assert grid.scale.shape == p.grid.scale.shape
    assert len(grid.scale.unique()) <= len(p.grid.scale.unique())
    before, after = (total(p, p.energy(g, levels)) for g in (p.grid, grid))
    assert bool((after <= before * (1 + 1e-12)).all())


def test_blocks_that_would_turn_negative_keep_their_scale_and_the_others_are_at_their_best():
    p = posed(granularity=3, bits=4)
    levels = p.problem.nearest()
    levels[0, 0, :3] *= -1
    grid = p.refitted(levels)
    assert bool((grid.scale[0, 0, :3] == p.grid.scale[0, 0, :3]).all())
    assert bool((grid.scale[0, 0, 3:] != p.grid.scale[0, 0, 3:]).all())
    found = p.energy(grid, levels)[0, 0]
    for at in (slice(3, 6), slice(6, 7)):
        for factor in (0.99, 1.01):
            nudged = grid.scale.clone()
            nudged[0, 0, at] *= factor
            assert p.energy(replace(grid, scale=nudged), levels)[0, 0] > found


@pytest.mark.parametrize("sharing", ["channel", "tensor", 3])
def test_rows_with_all_levels_at_zero_keep_their_scales(sharing):
    p = posed(granularity=sharing)
    levels = p.problem.nearest()
    levels[0] = 0
    grid = p.refitted(levels)
    if sharing != "tensor":
        assert torch.equal(grid.scale[0], p.grid.scale[0])
    assert bool((grid.scale[1] != p.grid.scale[1]).any())
    assert torch.equal(p.refitted(torch.zeros_like(levels)).scale, p.grid.scale)


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("size", [0.0, 1e-320])
def test_inputs_of_next_to_nothing_keep_the_scales(sharing, size):
    p = posed(granularity=sharing)
    silent = replace(p, problem=replace(p.problem, gram=p.problem.gram * size))
    assert bool((silent.refitted(p.problem.nearest()).scale > 0).all())
    if size == 0:
        assert torch.equal(silent.refitted(p.problem.nearest()).scale, p.grid.scale)


def test_weights_on_the_grid_keep_it():
    p = posed()
    levels = p.problem.nearest()
    exact = replace(p.problem, target=levels.double())
    exact = replace(p, problem=exact, weight=p.grid.dequantize(levels))
    assert torch.equal(exact.refitted(levels).scale, p.grid.scale)


def test_blocks_that_cannot_be_told_apart_share_the_change():
    p = posed(granularity=1)
    same = torch.ones_like(p.problem.gram)
    p = replace(p, problem=replace(p.problem, gram=same), weight=p.weight.abs())
    grid = p.refitted(torch.ones(G, R, D, dtype=torch.int16))
    assert torch.allclose(grid.scale.sum(2), p.weight.sum(2))
    ratio = grid.scale / p.grid.scale - 1
    assert torch.allclose(ratio / p.grid.scale, (ratio / p.grid.scale).mean(2, keepdim=True))


def test_an_indefinite_matrix_raises_no_energy():
    p = posed()
    p = replace(p, problem=replace(p.problem, gram=-p.problem.gram))
    levels = p.problem.nearest()
    assert torch.equal(p.refitted(levels).scale, p.grid.scale)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("sharing", ["channel", "tensor", 3])
def test_rounding_in_turns_never_raises_the_energy_whatever_the_solver(solver, sharing):
    p = posed(granularity=sharing, paired=True)
    first = solver.solve(p.problem, seed=5)
    problem, grid, solution = p.rounded(solver)
    assert bool((total(p, solution.energy) <= total(p, first.energy)).all())
    assert float(solution.energy.sum()) < float(first.energy.sum())
    assert solution.stats["energy_before_refits"] == float(first.energy.sum())
    assert 1 <= solution.stats["scale_refits"] <= 3
    assert problem.allows(solution.levels)
    assert problem.is_binary
    assert grid.smallest <= int(solution.levels.min())
    assert int(solution.levels.max()) <= grid.largest
    assert torch.allclose(solution.energy, p.energy(grid, solution.levels), rtol=1e-9)
    assert bool((solution.gap >= -1e-12 * solution.energy).all())


@pytest.mark.parametrize("solver", [Gptq(), Descent(), Annealing(sweeps=20), TreeSearch()])
def test_free_levels_stay_free_and_fit_the_final_problem(solver):
    p = posed(candidates="free")
    problem, grid, solution = p.rounded(solver)
    assert torch.equal(problem.low, p.problem.low)
    assert torch.equal(problem.high, p.problem.high)
    assert torch.equal(problem.target, grid.target(p.weight))
    assert torch.allclose(solution.energy, p.energy(grid, solution.levels), rtol=1e-9)
    assert float(solution.energy.sum()) < solution.stats["energy_before_refits"]


def test_no_round_is_the_solver_alone():
    p = posed()
    alone = Annealing(sweeps=20).solve(p.problem, seed=5)
    problem, grid, solution = p.rounded(Annealing(sweeps=20), rounds=0)
    assert problem is p.problem
    assert grid is p.grid
    assert torch.equal(solution.levels, alone.levels)
    assert solution.stats == alone.stats


def test_more_rounds_than_needed_change_nothing_more():
    p = posed()
    _, grid, solution = p.rounded(Descent(), rounds=100)
    made = solution.stats["scale_refits"]
    assert made < 100
    _, again, same = p.rounded(Descent(), rounds=made)
    assert torch.equal(again.scale, grid.scale)
    assert torch.equal(same.levels, solution.levels)


def test_same_seed_same_bits():
    p = posed()
    one, other = (p.rounded(Annealing(sweeps=20, reads=1)) for _ in range(2))
    assert torch.equal(one[1].scale, other[1].scale)
    assert torch.equal(one[2].levels, other[2].levels)


def test_solvers_with_a_start_go_on_from_the_levels_found():
    p = posed()
    first = Descent(Nearest()).solve(p.problem)
    problem, _, solution = p.rounded(Descent(Nearest()), rounds=1)
    at_hand = float(problem.energy(first.levels).sum())
    assert solution.stats["energy_start"] == at_hand
    _, _, inside = p.rounded(FirstThatAccepts((Descent(Nearest()),)), rounds=1)
    assert inside.stats["energy_start"] == at_hand


@dataclass(frozen=True)
class Upwards(Solver):
    """Every weight up, and a list of all problems seen."""

    seen: list[RoundingProblem] = field(default_factory=list)

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        self.seen.append(problem)
        return problem.solution(problem.high)


def test_a_level_that_is_no_neighbour_any_more_may_stay_or_go_towards_them():
    # A step of 1, which the many weights that go from 1.1 up to 2 bring down to about a half:
    # then 5 is ten steps, beyond the end of the range.
    weight = torch.full((G, R, D), 1.1, dtype=torch.float64)
    weight[..., 0] = 5.0
    p = posed(bits=4)
    grid = replace(p.grid, scale=torch.ones_like(p.grid.scale))
    gram = torch.eye(D, dtype=torch.float64).expand(G, D, D) * 1.0
    gram[:, 0, 0] = 1e-3
    low, high = grid.up_down(weight)
    problem = RoundingProblem(gram, grid.target(weight), grid.scale, low, high)
    solver = Upwards()
    round_with_scales(problem, grid, weight, solver, p.settings, 1)
    moved = solver.seen[-1]
    assert bool((moved.target[..., 0] > 9).all())
    assert bool((moved.low[..., 0] == 5).all())
    assert bool((moved.high[..., 0] == 6).all())
    assert moved.is_binary
    assert moved.allows(solver.seen[0].high)


@dataclass(frozen=True)
class Once(Solver):
    """A solver that has enough after its first problem."""

    seen: list[RoundingProblem] = field(default_factory=list)

    def refuses(self, problem: RoundingProblem) -> str | None:
        return "one is enough." if self.seen else None

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        self.seen.append(problem)
        return problem.solution(problem.nearest())


def test_a_refusal_on_a_new_grid_is_not_hidden():
    with pytest.raises(RefusedError, match="one is enough"):
        posed().rounded(Once())


def test_wrong_requests_are_refused():
    p = posed()
    with pytest.raises(ValueError, match="rounds is -1"):
        p.rounded(Descent(), rounds=-1)
    other = replace(p, grid=replace(p.grid, scale=p.grid.scale * 2))
    with pytest.raises(ValueError, match="another grid"):
        other.rounded(Descent())
