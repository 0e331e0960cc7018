"""How a layer becomes a rounding problem."""

from __future__ import annotations

import pytest
import torch
from networks import batches, residual
from torch import Tensor

from qubo_rounding.grid import fit_grid
from qubo_rounding.layer_problem import LayerSettings, layer_problem, shrunk
from qubo_rounding.layers import Layer
from qubo_rounding.network import problems
from qubo_rounding.range_rules import OutputMSE
from qubo_rounding.statistics import Gram
from qubo_rounding.testing import random_problem

G, R, D, N = 2, 3, 6, 50
LAYER = Layer("body.conv", "conv", (G * R, D, 1, 1), G, has_bias=True)
SHARED = Layer("body.conv", "conv", (G * R, D, 1, 1), G, has_bias=True, aliases=("head",))


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def weight() -> Tensor:
    return draw(G, R, D, seed=0)


@pytest.fixture
def plain() -> Gram:
    x = draw(G, N, D, seed=1) * torch.tensor([1.0, 5.0, 0.1, 1.0, 2.0, 1.0]) + 1
    return Gram(x.mT @ x, x.sum(1), N)


@pytest.fixture
def paired() -> Gram:
    x = draw(G, N, D, seed=1)
    x_q = x * torch.tensor([1.0, 8.0, 0.1, 1.0, 3.0, 0.2])
    return Gram(x.mT @ x, x.sum(1), N, x_q.mT @ x_q, x.mT @ x_q, x_q.sum(1))


@pytest.mark.parametrize(
    ("granularity", "width", "distinct"),
    [("channel", 1, G * R), ("tensor", 1, 1), (4, D, 2 * G * R), (1, D, G * R * D)],
)
def test_scales_are_as_fine_as_asked(
    weight: Tensor, plain: Gram, granularity: str | int, width: int, distinct: int
) -> None:
    settings = LayerSettings(granularity=granularity)
    problem, grid = layer_problem(LAYER, weight, plain, settings)
    assert problem.scale.shape == grid.scale.shape == (G, R, width)
    assert len(problem.scale.unique()) == distinct
    assert torch.allclose(grid.dequantize(problem.target), weight)


def test_the_range_rule_sees_the_inputs_the_rounded_layer_will_get(
    weight: Tensor, plain: Gram, paired: Gram
) -> None:
    settings = LayerSettings(bits=2, range_rule=OutputMSE())
    for gram, own in ((plain, plain.second_moment), (paired, paired.second_moment_q)):
        _, grid = layer_problem(LAYER, weight, gram, settings)
        expected = fit_grid(weight, 2, rule=OutputMSE(), gram=own)
        assert torch.equal(grid.scale, expected.scale)
    other = fit_grid(weight, 2, rule=OutputMSE(), gram=paired.second_moment)
    assert not torch.equal(grid.scale, other.scale)


def test_a_refitted_bias_leaves_the_central_moments(weight: Tensor, plain: Gram) -> None:
    refit, _ = layer_problem(LAYER, weight, plain, LayerSettings(bias="refit"))
    keep, _ = layer_problem(LAYER, weight, plain, LayerSettings(bias="keep"))
    assert torch.equal(refit.gram, plain.covariance)
    assert torch.equal(keep.gram, plain.second_moment)
    assert torch.equal(refit.target, keep.target)


def test_a_shared_weight_keeps_its_biases(weight: Tensor, plain: Gram) -> None:
    settings = LayerSettings(bias="refit")
    assert (settings.bias_of(LAYER), settings.bias_of(SHARED)) == ("refit", "keep")
    problem, _ = layer_problem(SHARED, weight, plain, settings)
    assert torch.equal(problem.gram, plain.second_moment)
    assert problem.meta["bias"] == "keep"


def test_single_layers_have_bits_of_their_own(weight: Tensor, plain: Gram) -> None:
    settings = LayerSettings(bits=3, layer_bits={"body.conv": 8, "other": 2}, candidates="free")
    problem, grid = layer_problem(LAYER, weight, plain, settings)
    assert settings.bits_of(LAYER) == 8
    assert (grid.smallest, grid.largest) == (-128, 127)
    assert bool((problem.low == -128).all())
    assert bool((problem.high == 127).all())
    named = {"layer": "body.conv", "kind": "conv", "bits": 8, "bias": "refit"}
    assert dict(problem.meta) == named


def test_an_asymmetric_grid_moves_the_zero_point(weight: Tensor, plain: Gram) -> None:
    problem, grid = layer_problem(LAYER, weight + 1, plain, LayerSettings(symmetric=False))
    assert bool((grid.zero_point > 0).any())
    assert int(problem.low.min()) >= 0
    assert torch.allclose(grid.dequantize(problem.target), weight + 1)


@pytest.mark.parametrize(
    "wrong",
    [{"bits": 1}, {"bits": 9}, {"layer_bits": {"a": 0}}, {"bits": 4.0}, {"granularity": "row"}],
)
def test_impossible_settings_are_refused_before_any_data_are_seen(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"(bits|granularity) is"):
        LayerSettings(**wrong)


def test_a_shrunk_gram_keeps_its_diagonal_and_loses_a_share_of_the_rest() -> None:
    gram = random_problem(2, 1, 5).gram
    less = shrunk(gram, 0.25)
    diagonal = torch.eye(5, dtype=torch.bool)
    assert torch.equal(less[:, diagonal], gram[:, diagonal])
    torch.testing.assert_close(less[:, ~diagonal], 0.75 * gram[:, ~diagonal])


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_outside_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"give a share in \[0, 1\)"):
        LayerSettings(shrink=share)


def test_settings_shrink_the_problem() -> None:
    model, loader = residual(), batches()
    plain, less = (
        dict(problems(model, loader, LayerSettings(shrink=share))) for share in (0.0, 0.3)
    )
    for name, problem in plain.items():
        assert torch.equal(less[name].gram, shrunk(problem.gram, 0.3))
