"""Grids: nearest levels, neighbours, range rules, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qubo_rounding.grid import Grid, MinMax, OutputMSE, RangeRule, WeightMSE, fit_grid

EXAMPLES = settings(max_examples=40, deadline=None)
LEVELS = {(4, True): (-8, 7), (4, False): (0, 15), (2, True): (-2, 1), (8, False): (0, 255)}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gram_of(g: int, d: int, seed: int = 0) -> Tensor:
    inputs = normal(g, 3 * d, d, seed=seed).double() @ normal(g, d, d, seed=seed + 1).double()
    return inputs.mT @ inputs / (3 * d)


def weight_error(grid: Grid, weight: Tensor) -> Tensor:
    return (grid.dequantize(grid.quantize(weight)) - weight).square().sum(-1)


def output_error(grid: Grid, weight: Tensor, gram: Tensor) -> Tensor:
    change = grid.dequantize(grid.quantize(weight)) - weight
    return ((change @ gram) * change).sum(-1)


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """Matrices with rows of zeros and of constants, from tiny to huge."""
    g, r, d = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 12))
    matrix = normal(g, r, d, seed=draw(st.integers(0, 999))).double()
    matrix[draw(st.integers(0, g - 1)), 0] = draw(st.sampled_from([0.0, 1.0, -3.5, 1e-310]))
    matrix = matrix * draw(st.sampled_from([1.0, 1e-30, 1e30, 1e-200, 1e300]))
    return matrix.to(draw(st.sampled_from([torch.float32, torch.float64]))).nan_to_num()


grids = st.fixed_dictionaries(
    {
        "bits": st.integers(2, 8),
        "symmetric": st.booleans(),
        "granularity": st.sampled_from(["channel", "tensor", 1, 5, 100]),
        "rule": st.sampled_from([MinMax(), WeightMSE(candidates=8)]),
    }
)


@EXAMPLES
@given(weight=weights(), options=grids)
def test_every_level_is_the_nearest_the_range_allows(weight: Tensor, options: dict) -> None:
    grid = fit_grid(weight, **options)
    target, levels = grid.target(weight), grid.quantize(weight)
    inside = (target >= grid.smallest) & (target <= grid.largest)
    # in units of a step, so that no square and no difference leaves the range of floats
    steps = grid.dequantize(levels) / grid.scale - weight.double() / grid.scale
    assert levels.dtype == torch.int16
    assert bool((steps.abs()[inside] <= 0.5 + 1e-9).all())
    assert bool((levels[target < grid.smallest] == grid.smallest).all())
    assert bool((levels[target > grid.largest] == grid.largest).all())


@EXAMPLES
@given(weight=weights(), options=grids)
def test_up_and_down_bracket_the_target(weight: Tensor, options: dict) -> None:
    grid = fit_grid(weight, **options)
    low, high = grid.up_down(weight)
    clipped = grid.target(weight).clamp(grid.smallest, grid.largest)
    levels = grid.quantize(weight)
    assert bool((low <= clipped).all())
    assert bool((clipped <= high).all())
    assert bool((high - low <= 1).all())
    assert bool((low <= levels).all())
    assert bool((levels <= high).all())
    assert low.dtype == high.dtype == torch.int16


@EXAMPLES
@given(weight=weights(), options=grids)
def test_a_quantized_weight_keeps_its_levels(weight: Tensor, options: dict) -> None:
    grid = fit_grid(weight, **options)
    levels = grid.quantize(weight)
    assert torch.equal(grid.quantize(grid.dequantize(levels)), levels)


@EXAMPLES
@given(weight=weights(), options=grids)
def test_zero_stays_exactly_zero(weight: Tensor, options: dict) -> None:
    grid = fit_grid(weight, **options)
    zero = torch.zeros_like(weight)
    assert bool((grid.dequantize(grid.quantize(zero)) == 0).all())
    assert bool((grid.zero_point >= grid.smallest).all())
    assert bool((grid.zero_point <= grid.largest).all())
    assert torch.equal(grid.zero_point, grid.zero_point.round())


@EXAMPLES
@given(weight=weights(), options=grids)
def test_same_weight_same_grid(weight: Tensor, options: dict) -> None:
    before = weight.clone()
    first, second = fit_grid(weight, **options), fit_grid(weight, **options)
    assert torch.equal(first.scale, second.scale)
    assert torch.equal(first.zero_point, second.zero_point)
    assert torch.equal(weight, before)


@pytest.mark.parametrize(("bits", "symmetric"), list(LEVELS))
def test_the_range_is_that_of_the_bits(bits: int, symmetric: bool) -> None:
    weight = normal(2, 3, 7)
    grid = fit_grid(weight, bits, symmetric=symmetric)
    low, high = grid.free(weight)
    assert (grid.smallest, grid.largest) == LEVELS[bits, symmetric]
    assert low.dtype == high.dtype == torch.int16
    assert low.shape == high.shape == weight.shape
    assert bool((low == grid.smallest).all())
    assert bool((high == grid.largest).all())


def test_min_max_puts_the_largest_weight_on_the_largest_level() -> None:
    weight = normal(2, 3, 20)
    grid = fit_grid(weight, 4, rule=MinMax())
    torch.testing.assert_close(grid.scale, weight.double().abs().amax(-1, keepdim=True) / 7)
    assert bool((grid.zero_point == 0).all())


def test_an_asymmetric_grid_spans_the_weights_and_zero() -> None:
    weight = normal(1, 3, 20).abs() + 1
    grid = fit_grid(weight, 4, symmetric=False, rule=MinMax())
    torch.testing.assert_close(grid.scale, weight.double().amax(-1, keepdim=True) / 15)
    assert bool((grid.zero_point == 0).all())
    skewed = fit_grid(weight - 1.5, 4, symmetric=False, rule=MinMax())
    symmetric = fit_grid(weight - 1.5, 4, rule=MinMax())
    assert bool((skewed.zero_point > 0).all())
    assert weight_error(skewed, weight - 1.5).sum() < weight_error(symmetric, weight - 1.5).sum()


def test_up_and_down_leave_nothing_to_decide_on_a_level_or_outside() -> None:
    grid = Grid(torch.ones(1, 1, 1).double(), torch.zeros(1, 1, 1).double(), -8, 7)
    low, high = grid.up_down(torch.tensor([[[3.0, 9.5, -20.0, 0.25, 6.5]]]))
    assert low.tolist() == [[[3, 7, -8, 0, 6]]]
    assert high.tolist() == [[[3, 7, -8, 1, 7]]]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["channel", "tensor", 4])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weight_mse_is_never_worse_than_min_max(
    bits: int, granularity: str | int, symmetric: bool
) -> None:
    weight = normal(3, 8, 9) ** 3
    options = {"symmetric": symmetric, "granularity": granularity}
    searched = fit_grid(weight, bits, **options, rule=WeightMSE())  # pyright: ignore
    widest = fit_grid(weight, bits, **options, rule=MinMax())  # pyright: ignore
    less = weight_error(searched, weight) <= weight_error(widest, weight) * (1 + 1e-12)
    if granularity == "channel":
        assert bool(less.all())
    assert weight_error(searched, weight).sum() <= weight_error(widest, weight).sum() * (1 + 1e-12)


def brute_force(weight: Tensor, bits: int) -> Tensor:
    top = 2 ** (bits - 1) - 1
    scale = weight.double().abs().amax(-1, keepdim=True) / top
    errors = [
        weight_error(Grid(scale * f, torch.zeros_like(scale), -top - 1, top), weight)
        for f in torch.linspace(0.01, 3, 2000).tolist()
    ]
    return torch.stack(errors).amin(0)


@pytest.mark.parametrize(("d", "bits", "excess"), [(9, 2, 0.01), (9, 4, 0.15), (64, 4, 0.01)])
def test_weight_mse_finds_what_brute_force_finds(d: int, bits: int, excess: float) -> None:
    weight = normal(2, 10, d)
    ratio = weight_error(fit_grid(weight, bits), weight) / brute_force(weight, bits)
    assert ratio.max() < 1 + excess
    assert ratio.mean() < 1 + excess / 10


@pytest.mark.parametrize("granularity", ["channel", "tensor", 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_output_mse_with_the_identity_is_weight_mse(
    granularity: str | int, symmetric: bool
) -> None:
    weight = normal(2, 5, 10)
    options = {"symmetric": symmetric, "granularity": granularity}
    identity = torch.eye(10).expand(2, 10, 10)
    by_output = fit_grid(weight, **options, rule=OutputMSE(), gram=identity)  # pyright: ignore
    by_weight = fit_grid(weight, **options, rule=WeightMSE())  # pyright: ignore
    torch.testing.assert_close(by_output.scale, by_weight.scale, rtol=1e-9, atol=0)


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_output_mse_changes_the_output_least(granularity: str) -> None:
    weight, gram = normal(2, 6, 12), gram_of(2, 12)
    errors = {
        rule: output_error(
            fit_grid(weight, 4, granularity=granularity, rule=rule, gram=gram),  # pyright: ignore
            weight,
            gram,
        )
        for rule in (OutputMSE(), WeightMSE(), MinMax())
    }
    assert errors[OutputMSE()].sum() < errors[WeightMSE()].sum()
    assert errors[OutputMSE()].sum() < errors[MinMax()].sum()


def test_output_mse_by_columns_reads_the_diagonal_blocks_of_the_gram() -> None:
    weight, gram = normal(2, 3, 10), gram_of(2, 10)
    grid = fit_grid(weight, granularity=4, rule=OutputMSE(), gram=gram)
    for start in (0, 4, 8):
        piece = slice(start, start + 4)
        alone = fit_grid(weight[..., piece], rule=OutputMSE(), gram=gram[:, piece, piece])
        expected = alone.scale.expand_as(grid.scale[..., piece])
        torch.testing.assert_close(grid.scale[..., piece], expected, rtol=1e-12, atol=0)


def test_groups_of_columns_are_channels_of_slices() -> None:
    weight = normal(2, 3, 11)
    for rule in (MinMax(), WeightMSE()):
        grid = fit_grid(weight, symmetric=False, granularity=4, rule=rule)
        assert grid.scale.shape == weight.shape
        for start in (0, 4, 8):
            piece = slice(start, start + 4)
            alone = fit_grid(weight[..., piece], symmetric=False, rule=rule)
            assert torch.equal(
                grid.scale[..., piece], alone.scale.expand(2, 3, len(weight[0, 0, piece]))
            )
            assert torch.equal(
                grid.quantize(weight)[..., piece], alone.quantize(weight[..., piece])
            )


def test_per_tensor_shares_one_scale_and_per_channel_does_not() -> None:
    weight = normal(3, 4, 10)
    assert fit_grid(weight, granularity="tensor").scale.unique().numel() == 1
    assert fit_grid(weight, granularity="channel").scale.unique().numel() == 12
    assert fit_grid(weight, granularity="tensor").scale.shape == (3, 4, 1)


def test_rows_are_independent() -> None:
    weight = normal(2, 6, 9)
    together = fit_grid(weight)
    apart = [fit_grid(weight[:, row : row + 1]).scale for row in range(6)]
    assert torch.equal(together.scale, torch.cat(apart, dim=1))


def test_the_scale_follows_the_weight() -> None:
    weight = normal(1, 4, 30)
    for rule in (MinMax(), WeightMSE()):
        small, large = fit_grid(weight, rule=rule), fit_grid(1024 * weight, rule=rule)
        torch.testing.assert_close(large.scale, 1024 * small.scale, rtol=1e-12, atol=0)


@pytest.mark.parametrize("rule", [MinMax(), WeightMSE(), OutputMSE()], ids=repr)
@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_and_constant_channels_are_reproduced(rule: RangeRule, symmetric: bool) -> None:
    weight = torch.tensor([0.0, 0.3, -0.3, 1e-20]).reshape(1, 4, 1).repeat(1, 1, 6)
    grid = fit_grid(weight, symmetric=symmetric, rule=rule, gram=gram_of(1, 6))
    restored = grid.dequantize(grid.quantize(weight))
    assert bool((grid.scale > 0).all())
    torch.testing.assert_close(restored, weight.double(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("bits", [1, 9, 0, -4, 4.0, True, "4"])
def test_other_bits_are_refused(bits: object) -> None:
    with pytest.raises(ValueError, match="whole number of bits from 2 to 8"):
        fit_grid(normal(1, 2, 3), bits)  # pyright: ignore


@pytest.mark.parametrize("granularity", ["row", 0, -3, 2.5, None, True])
def test_other_granularities_are_refused(granularity: object) -> None:
    with pytest.raises(ValueError, match="'channel', 'tensor' or a positive number"):
        fit_grid(normal(1, 2, 3), granularity=granularity)  # pyright: ignore


@pytest.mark.parametrize(
    "weight",
    [normal(2, 3), normal(1, 2, 3, 4), torch.zeros(1, 0, 3), torch.zeros(1, 2, 3).int()],
    ids=["2d", "4d", "empty", "integer"],
)
def test_other_weights_are_refused(weight: Tensor) -> None:
    with pytest.raises(ValueError, match="floating-point matrix"):
        fit_grid(weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    weight = normal(1, 2, 3)
    weight[0, 1, 2] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        fit_grid(weight)


def test_output_mse_asks_for_its_gram() -> None:
    with pytest.raises(ValueError, match="pass gram="):
        fit_grid(normal(1, 2, 3), rule=OutputMSE())


@pytest.mark.parametrize("gram", [torch.eye(3), torch.full((1, 3, 3), float("nan"))])
def test_a_gram_that_does_not_fit_is_refused(gram: Tensor) -> None:
    with pytest.raises(ValueError, match="finite and"):
        fit_grid(normal(1, 2, 3), rule=OutputMSE(), gram=gram)


@pytest.mark.parametrize("rule", [WeightMSE, OutputMSE])
def test_a_search_without_candidates_is_refused(rule: type[WeightMSE] | type[OutputMSE]) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        fit_grid(normal(1, 2, 3), rule=rule(candidates=1), gram=torch.eye(3)[None])


def test_a_grid_that_makes_no_sense_is_refused() -> None:
    one, zero = torch.ones(1, 2, 1).double(), torch.zeros(1, 2, 1).double()
    with pytest.raises(ValueError, match="positive and finite"):
        Grid(zero, zero, -8, 7)
    with pytest.raises(ValueError, match="shapes"):
        Grid(one, torch.zeros(1, 2, 3).double(), -8, 7)
    with pytest.raises(ValueError, match="below the largest"):
        Grid(one, zero, 7, -8)
    with pytest.raises(ValueError, match="the grid was made for"):
        Grid(one, zero, -8, 7).quantize(normal(1, 3, 5))


@pytest.mark.parametrize(("smallest", "largest"), [(0, 65535), (-32769, 0)])
def test_levels_beyond_16_bits_are_refused(smallest: int, largest: int) -> None:
    step = torch.ones(1, 1, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="give -32768 to 32767"):
        Grid(step, torch.zeros_like(step), smallest, largest)
    assert int(Grid(step, 0 * step, -32768, 32767).quantize(step * 1e9)) == 32767
