"""Quantised activations: where they are, what they do, how their ranges are chosen."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from company import torch_threads
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import LAYERS, batches, residual
from reference_activations import counts, frozen_rounding, grid_between, on_grid
from torch import Tensor, nn
from torch.nn import functional as F

from qubo_rounding.batch_norm import fold_batch_norm
from qubo_rounding.layers import find_layers
from qubo_rounding.passes import Pass
from qubo_rounding.relaxed import activation_quantiser, fused_quantiser
from qubo_rounding.relaxed.activation_quantiser import ActivationQuantiser
from qubo_rounding.relaxed.activation_ranges import Histogram, collect_histograms
from qubo_rounding.relaxed.activation_sites import find_sites
from qubo_rounding.relaxed.activations import (
    ActivationMinMax,
    ActivationMSE,
    ActivationPercentile,
    ActivationQuantisers,
    ActivationRule,
    attach,
    calibrate_activations,
)
from qubo_rounding.relaxed.fused_quantiser import Draw

EXAMPLES = settings(max_examples=40, deadline=None)
RULES = [ActivationMinMax(), ActivationMSE(candidates=20), ActivationPercentile(99.9)]
RESIDUAL_SITES = ("input", "relu_1", "relu_2", "add", "relu_3", "mean")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def folded(model: nn.Module | None = None) -> nn.Module:
    model = residual() if model is None else model
    return fold_batch_norm(model, batches()[0])[0]


def quantised(bits: int = 8, model: nn.Module | None = None) -> nn.Module:
    model = folded(model)
    attach(model, calibrate_activations(model, batches(), bits))
    return model


def sites_of(model: nn.Module, *shape: int) -> list[str]:
    return list(find_sites(model.eval(), normal(*shape)).sites.values())


@torch.no_grad()
def change(model: nn.Module, other: nn.Module) -> float:
    expected = torch.cat([model(batch) for batch in batches()])
    got = torch.cat([other(batch) for batch in batches()])
    return float((got - expected).norm() / expected.norm())


class Bottleneck(nn.Module):
    """MobileNetV2's: expansion, depthwise, projection without activation, a residual addition."""

    def __init__(self, inner: int = 8, adds: bool = True) -> None:
        super().__init__()
        self.adds = adds
        self.conv = nn.Sequential(
            nn.Conv2d(3, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(inplace=True),
            nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(inplace=True),
            nn.Conv2d(inner, 3, 1, bias=False),
            nn.BatchNorm2d(3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


class Basic(nn.Module):
    """ResNet's basic block, with one ReLU module for both uses, and a shortcut."""

    def __init__(self, shortcut: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(3)
        self.down = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) if shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.down is None else self.down(x)
        return self.relu(out)


class Squeeze(nn.Module):
    """A squeeze-and-excite block."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.reduce, self.expand = (
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(3, 2, 1),
            nn.Conv2d(2, 3, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(F.silu(self.reduce(self.pool(x)))).sigmoid()
        return x * gate


class Mlp(nn.Module):
    """A transformer's, with layer norm before and the residual addition behind."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(6), nn.Linear(6, 12), nn.Linear(12, 6)
        self.act, self.drop = nn.GELU(), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.fc2(self.drop(self.act(self.fc1(self.norm(x))))))


class Head(nn.Module):
    """Pools and classifies."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(2) @ torch.ones(3, 2)


class Formula(nn.Module):
    """Any function of a few layers."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def _written(out: Tensor, values: Tensor) -> Tensor:
    out[:, :3] = values
    return out


# Sites.


def test_the_sites_of_a_residual_network_folded_or_not() -> None:
    for model in (residual(), folded()):
        assert tuple(sites_of(model, 1, 3, 8, 8)) == RESIDUAL_SITES


def test_a_linear_bottleneck_is_stored_after_the_addition_or_as_it_is() -> None:
    network = nn.Sequential(Bottleneck(adds=False), Bottleneck(), Head())
    assert sites_of(network, 1, 3, 4, 4) == [
        "input",
        "0.conv.2.hardtanh",
        "0.conv.5.hardtanh",
        "0.conv.7.batch_norm",
        "1.conv.2.hardtanh",
        "1.conv.5.hardtanh",
        "1.add",
        "2.mean",
    ]
    assert "0.conv.6.conv2d" in sites_of(folded(network.eval()), 1, 3, 4, 4)


def test_a_basic_block_is_stored_after_each_use_of_its_one_relu() -> None:
    network = nn.Sequential(Basic(shortcut=False), Head())
    assert sites_of(network, 1, 3, 4, 4) == ["input", "0.relu.relu_1", "0.relu.relu_2", "1.mean"]


def test_of_two_layers_added_up_the_first_is_stored() -> None:
    network = folded(nn.Sequential(Basic(), Head()).eval())
    assert sites_of(network, 1, 3, 4, 4) == [
        "input",
        "0.relu.relu_1",
        "0.conv2.conv2d",
        "0.relu.relu_2",
        "1.mean",
    ]


def test_a_gate_and_its_product_are_stored() -> None:
    assert sites_of(nn.Sequential(Squeeze(), Head()), 1, 3, 4, 4) == [
        "input",
        "0.pool.adaptive_avg_pool2d",
        "0.silu",
        "0.sigmoid",
        "0.mul",
        "1.mean",
    ]


def test_a_transformer_s_mlp() -> None:
    assert sites_of(nn.Sequential(Mlp(), Mlp(), nn.Linear(6, 2)), 2, 5, 6) == [
        "input",
        "0.norm.layer_norm",
        "0.act.gelu",
        "0.add",
        "1.norm.layer_norm",
        "1.act.gelu",
        "1.add",
    ]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda m, x: m.b(F.max_pool2d(F.pad(m.a(x).relu(), (1, 1)), 2)), ["relu"]),
        (lambda m, x: m.b(F.dropout(m.a(x), 0.5, False).reshape(1, 3, 2, 8).relu()), ["relu"]),
        (lambda m, x: m.b(F.max_pool2d(m.a(x), 2).relu()), ["relu"]),
        (lambda m, x: m.b(m.a(x) * 0.5), ["a.conv2d"]),
        (lambda m, x: m.b(m.a(x).relu().masked_fill(x.new_zeros(1) > 0, -9.0)), ["relu"]),
        (lambda m, x: m.b(torch.zeros_like(x).sub(1) * m.a(x).relu()), ["relu", "mul"]),
        (lambda m, x: m.b(_written(torch.zeros_like(x), m.a(x).relu())), ["relu"]),
        (lambda m, x: m.b(torch.mul(x, other=m.a(x).relu())), ["relu", "mul"]),
        (lambda m, x: m.b(F.relu(F.group_norm(m.a(x), 3))), ["a.conv2d", "relu"]),
        (lambda m, x: m.b(torch.cat([m.a(x).relu(), x], 1)[:, 1:4]), ["relu", "cat"]),
        (lambda m, x: m.b(torch.add(m.a(x), x)), ["add"]),
        (lambda m, x: m.b(m.a(x).add_(x)), ["add"]),
        (lambda m, x: m.b(m.a(x) + 3).relu(), ["add"]),
        (lambda m, x: m.b((x + 3).relu() / 6), ["relu"]),
        (lambda m, x: m.b(F.relu(m.norm(x))), ["relu"]),
        (lambda m, x: m.b(F.avg_pool2d(m.a(x).relu(), 2)), ["relu", "avg_pool2d"]),
        (lambda m, x: m.b((y := m.a(x)) * y.sigmoid()), ["a.conv2d", "sigmoid", "mul"]),
        (lambda m, x: m.b(m.a(x).chunk(3, 1)[0].relu().expand(1, 3, 4, 4)), ["relu"]),
        (lambda m, x: m.b(torch.matmul(x, x.mT) - 1), ["matmul", "sub"]),
        (lambda m, x: [m.b(m.a(x).relu()), {"features": m.a(x)}], ["relu"]),
        (lambda m, x: F.hardsigmoid(F.conv2d(x, m.a.weight - m.a.weight.mean())), []),
        (lambda m, x: m.b(x.max(1, keepdim=True)[0].expand(1, 3, 4, 4)), ["max"]),
    ],
)
def test_the_sites_of_small_formulas(
    function: Callable[[Any, Tensor], Any], expected: list[str]
) -> None:
    assert sites_of(Formula(function), 1, 3, 4, 4) == ["input", *expected]


def test_attention_in_one_function_is_one_site() -> None:
    attention = nn.MultiheadAttention(6, 2, batch_first=True)
    network = Formula(lambda _, x: F.relu(attention(x, x, x)[0]).sum())
    network.add_module("attention", attention)
    assert sites_of(network, 2, 5, 6) == ["input", "attention.multi_head_attention_forward", "relu"]


def test_an_input_of_integers_is_no_site() -> None:
    network = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)).eval()
    words = [torch.arange(6).reshape(2, 3)]
    quantisers = calibrate_activations(network, words)
    assert quantisers.sites == ("0.embedding",)
    with torch.no_grad():
        before = network(words[0])
        attach(network, quantisers)
        changed = float((network(words[0]) - before).norm() / before.norm())
    assert 0 < changed < 0.02


def test_an_overwritten_argument_that_is_used_again_is_refused() -> None:
    def wasted(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        y.relu_()
        return m.b(y)

    def named(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        F.relu(input=y, inplace=True)
        return m.b(y)

    for function in (wasted, named):
        with pytest.raises(ValueError, match="'relu' works in place"):
            sites_of(Formula(function), 1, 3, 4, 4)


def test_finding_sites_leaves_no_hook_behind() -> None:
    model = folded()
    find_sites(model, batches()[0])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# One quantiser.


@EXAMPLES
@given(
    bits=st.integers(2, 8),
    ends=st.tuples(st.floats(-9, 0), st.floats(0, 9)),
    size=st.sampled_from([0.0, 1e-3, 1.0, 30.0]),
)
def test_it_quantises_as_the_loop_does(bits: int, ends: tuple[float, float], size: float) -> None:
    quantiser = ActivationQuantiser.covering(*ends, bits)
    scale, zero_point = float(quantiser.scale), int(quantiser.zero_point)
    x = size * normal(3, 7).double()
    torch.testing.assert_close(quantiser(x), on_grid(x, scale, zero_point, bits))
    assert quantiser(torch.zeros(2)).tolist() == [0, 0]
    if ends[1] - ends[0] > 1e-30:  # below, the twin's steps underflow
        wanted, at = grid_between(*ends, bits)
        assert (scale, zero_point) == (pytest.approx(wanted, rel=1e-6), at)


def test_it_keeps_the_dtype_and_passes_nan_on() -> None:
    quantiser = ActivationQuantiser(0.5, 3, 4)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        out = quantiser(torch.tensor([0.6, torch.nan], dtype=dtype))
        assert out.dtype == dtype
        assert float(out[0]) == 0.5
        assert bool(out[1].isnan())


@pytest.mark.parametrize("arguments", [(0.0, 0, 8), (1.0, 16, 4), (1.0, -1, 4), (1.0, 0, 9)])
def test_a_quantiser_needs_a_grid(arguments: tuple[float, int, int]) -> None:
    with pytest.raises(ValueError, match=r"scale|bits"):
        ActivationQuantiser(*arguments)


@pytest.mark.parametrize("ends", [(0.5, 1.0), (-1.0, -0.5), (0.0, float("nan"))])
def test_a_grid_without_zero_is_refused(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="does not hold 0"):
        ActivationQuantiser.covering(*ends, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_fused_pass_does_what_torch_s_operations_do(
    layout: torch.memory_format, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantiser, draw = ActivationQuantiser(0.25, 5, 4), Draw(0.4, 11)
    quantiser.scale.requires_grad_()
    x = 2 * normal(3, 5, 61, 67).to(dtype).contiguous(memory_format=layout)  # more than one part
    x[0, 0, 0, :3] = torch.tensor([torch.inf, -torch.inf, 0.0])
    x.requires_grad_()

    def passes() -> list[Tensor]:
        found = quantiser.quantise(x, draw)
        slopes = torch.autograd.grad(
            found, (x, quantiser.scale), normal(*x.shape, seed=1).to(dtype)
        )
        return [found.detach(), *slopes]

    fused = passes()
    stays = fused[0] == x
    monkeypatch.setattr(fused_quantiser, "can_fuse", lambda _: False)
    monkeypatch.setattr(activation_quantiser, "_drawn", lambda *_: stays)
    unfused = passes()
    assert fused[0].is_contiguous(memory_format=layout)
    assert float(stays.double().mean()) == pytest.approx(0.4, abs=0.01)
    assert torch.equal(fused[0], unfused[0])
    assert torch.equal(fused[1], unfused[1])
    assert float(fused[2]) == pytest.approx(float(unfused[2]), rel=1e-4)


def test_what_stays_in_float_without_the_fused_pass_has_its_slope() -> None:
    x = torch.full((4, 500), 3.0, dtype=torch.bfloat16, requires_grad=True)  # beyond the grid
    found = ActivationQuantiser(0.25, 5, 3).quantise(x, Draw(0.3, 7))
    (slope,) = torch.autograd.grad(found.sum(), x)
    stays = found == x
    assert float(stays.double().mean()) == pytest.approx(0.3, abs=0.05)
    assert torch.equal(slope, stays.to(torch.bfloat16))


def test_the_fused_pass_does_not_depend_on_threads() -> None:
    x, gradient = normal(40, 4000), normal(40, 4000, seed=1)
    found = []
    for threads in (1, 2, 5):
        with torch_threads(threads):
            rounded = fused_quantiser.quantised(x, 0.1, 3, 15, Draw(0.5, 2))
            by_x, by_scale = fused_quantiser.slopes(gradient, x, 0.1, 3, 15, Draw(0.5, 2))
            found.append(torch.cat([rounded.flatten(), by_x.flatten(), torch.tensor([by_scale])]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_no_values_are_quantised_to_none() -> None:
    assert ActivationQuantiser(0.25, 5, 4)(torch.empty(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("zero_point", [0, 5, 15])
def test_its_slopes_are_those_of_frozen_rounding(zero_point: int) -> None:
    quantiser = ActivationQuantiser(0.25, zero_point, 4)
    quantiser.scale.requires_grad_()
    x, weights = 2 * normal(2, 40).double(), normal(2, 40, seed=1).double()
    x.requires_grad_()
    (quantiser(x) * weights).sum().backward()
    scale, step = 0.25, 1e-4

    def surrogate(at: float) -> Tensor:
        values = frozen_rounding(x.detach().flatten(), at, scale, zero_point, 4)
        return (values * weights.flatten()).sum()

    slope = float((surrogate(scale + step) - surrogate(scale - step)) / (2 * step))
    assert quantiser.scale.grad is not None
    assert float(quantiser.scale.grad) == pytest.approx(slope / (40 * 15) ** 0.5, rel=1e-5)
    level = x.detach() / scale + zero_point
    assert x.grad is not None
    assert torch.equal(x.grad, weights * ((level >= 0) & (level <= 15)))


# Ranges.


@st.composite
def histograms(draw: st.DrawFn) -> Histogram:
    low, width = draw(st.floats(-5, 5)), draw(st.floats(0, 9))
    seen = draw(st.lists(st.integers(0, 50), min_size=4, max_size=64).filter(any))
    return Histogram(low, low + width, torch.tensor(seen, dtype=torch.float64))


@EXAMPLES
@given(histogram=histograms(), rule=st.sampled_from(RULES), bits=st.integers(2, 8))
def test_every_rule_covers_zero_and_never_more_than_all(
    histogram: Histogram, rule: ActivationRule, bits: int
) -> None:
    low, high = rule.ends(histogram, bits)
    widest = ActivationMinMax().ends(histogram, bits)
    assert widest == (min(histogram.low, 0), max(histogram.high, 0))
    assert widest[0] - 1e-9 <= low <= 0 <= high <= widest[1] + 1e-9


@EXAMPLES
@given(histogram=histograms(), bits=st.integers(2, 8))
def test_the_mse_rule_is_never_worse_than_the_whole_range(histogram: Histogram, bits: int) -> None:
    def error(rule: ActivationRule) -> float:
        ends = (torch.tensor(end, dtype=torch.float64) for end in rule.ends(histogram, bits))
        return float(histogram.squared_error(*ends, bits))

    assert error(ActivationMSE(candidates=20)) <= error(ActivationMinMax())


def test_a_histogram_s_error_is_that_of_its_centres() -> None:
    histogram = Histogram(-1.0, 3.0, torch.tensor([3.0, 0.0, 5.0, 1.0], dtype=torch.float64))
    centres = torch.tensor([-0.5, 0.5, 1.5, 2.5], dtype=torch.float64)
    scale, zero_point = grid_between(-0.5, 2.0, 3)
    errors = (on_grid(centres, scale, zero_point, 3) - centres) ** 2
    got = histogram.squared_error(*torch.tensor([-0.5, 2.0], dtype=torch.float64), 3)
    assert float(got) == pytest.approx(float((errors * histogram.counts).sum() / 9))


@pytest.mark.parametrize("percent", [60.0, 95.0, 99.9, 100.0])
def test_percentiles_are_those_of_the_sorted_values(percent: float) -> None:
    values = normal(4001).double().sort().values
    low, high, bins = float(values[0]), float(values[-1]), 2048
    seen = torch.tensor(counts(values.tolist(), low, high, bins), dtype=torch.float64)
    ends = ActivationPercentile(percent).ends(Histogram(low, high, seen), 8)
    width = (high - low) / bins
    last = round(percent / 100 * 4000)
    assert ends[1] == pytest.approx(float(values[last]), abs=2 * width)
    assert ends[0] == pytest.approx(float(values[4000 - last]), abs=2 * width)


@pytest.mark.parametrize("make", [lambda: ActivationPercentile(50.0), lambda: ActivationMSE(1)])
def test_rules_out_of_range_are_refused(make: Callable[[], ActivationRule]) -> None:
    with pytest.raises(ValueError, match=r"give more than 50|at least 2"):
        make()


def test_histograms_count_all_values_of_all_batches() -> None:
    model, loader = folded(), batches(3)
    seen: list[float] = []
    with torch.no_grad():
        for batch in loader:
            seen += model.stem(batch).relu().flatten().tolist()
    course = find_sites(model, loader[0])
    histogram = collect_histograms(model, course, loader)["relu_1"]
    assert (histogram.low, histogram.high) == (min(seen), max(seen))
    expected = torch.tensor(counts(seen, min(seen), max(seen), 2048), dtype=torch.float64)
    assert float(histogram.counts.sum()) == len(seen)
    # a value on an edge may fall to either side
    assert float((histogram.counts.cumsum(0) - expected.cumsum(0)).abs().max()) <= 2


# Whole networks.


def test_a_quantised_network_computes_what_loops_do() -> None:
    model, batch = folded(), batches()[0]
    quantisers = calibrate_activations(model, batches(), 6, rule=ActivationMinMax())
    largest: dict[str, tuple[float, float]] = {}

    def keep(site: str, x: Tensor) -> Tensor:
        if not hasattr(model, "activation_quantisers"):
            before = largest.get(site, (0.0, 0.0))
            largest[site] = (min(before[0], float(x.min())), max(before[1], float(x.max())))
            return x
        return on_grid(x, *grid_between(*largest[site], 6), 6).float()

    def by_hand(x: Tensor) -> Tensor:
        x = keep("relu_1", model.stem(keep("input", x)).relu())
        x = keep("add", x + model.pointwise(keep("relu_2", model.depthwise(x).relu())))
        return model.head(keep("mean", keep("relu_3", model.down(x).relu()).mean((2, 3))))

    with torch.no_grad():
        for one in batches():
            by_hand(one)
        attach(model, quantisers)
        torch.testing.assert_close(model(batch), by_hand(batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_eight_bits_change_little_and_four_more(rule: ActivationRule) -> None:
    changes = []
    for bits in (8, 4):
        model = folded()
        attach(model, calibrate_activations(model, batches(), bits, rule=rule))
        changes.append(change(folded(), model))
    assert 0 < changes[0] < 0.02
    assert 4 * changes[0] < changes[1] < 0.5


@pytest.mark.parametrize("make", [Bottleneck, Basic, Squeeze])
def test_blocks_of_all_kinds_change_little(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = folded(nn.Sequential(make(), make(), Head()).eval())
    assert 0 < change(network, quantised(8, network)) < 0.03


def test_attaching_renames_nothing_and_happens_once() -> None:
    model = folded()
    before = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    modules = [name for name, _ in model.named_modules()]
    quantisers = calibrate_activations(model, batches())
    attach(model, quantisers)
    after = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    assert before.items() <= after.items()
    assert all(name.startswith("activation_quantisers.") for name in after.keys() - before.keys())
    assert [name for name, _ in model.named_modules()][: len(modules)] == modules
    assert not any(module.training for module in model.modules())
    assert list(find_layers(model).layers) == LAYERS
    assert not any(p.requires_grad for p in quantisers.parameters())
    for again in (lambda: attach(model, quantisers), lambda: calibrate_activations(model, [])):
        with pytest.raises(ValueError, match="quantisers already"):
            again()


def test_a_sequential_network_stays_one() -> None:
    network = folded(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2)))
    assert 0 < change(network, quantised(8, network)) < 0.02


def test_a_copy_is_quantised_by_its_own_grids() -> None:
    model = quantised()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(batches()[0])
        assert torch.equal(twin(batches()[0]), expected)
        twin.activation_quantisers["add"].scale.mul_(20)
        assert torch.equal(model(batches()[0]), expected)
        assert not torch.equal(twin(batches()[0]), expected)
        twin.head.bias.add_(1)  # the copy runs its own layers, too
        assert torch.equal(model(batches()[0]), expected)


def test_a_state_carries_grids_and_bits_over() -> None:
    model, other = quantised(8), quantised(5)
    other.load_state_dict(model.state_dict())
    assert other.activation_quantisers["mean"].bits == 8
    assert all(isinstance(tensor, Tensor) for tensor in model.state_dict().values())
    with torch.no_grad():
        assert torch.equal(other(batches()[0]), model(batches()[0]))


def test_suspended_passes_of_one_network_do_not_disturb_each_other() -> None:
    model, loader = quantised(), batches(4)
    layers = find_layers(model).layers
    passes = [Pass(model, layers, batch) for batch in loader]
    for name in LAYERS:
        calls = [one.advance() for one in passes]
        assert [call.layer.name for call in calls if call] == [name] * 4
        if name == "down":  # the layer meets values on the grid of the site before it
            grid = model.activation_quantisers["add"]
            assert calls[0] is not None
            assert torch.equal(grid(calls[0].input), calls[0].input)
            with torch.no_grad():
                model(loader[0])  # and a plain call in between
    assert [one.advance() for one in passes] == [None] * 4
    with torch.no_grad():
        for one, batch in zip(passes, loader, strict=True):
            assert torch.equal(one.output, model(batch))


class _Stop(BaseException):
    pass


@pytest.mark.parametrize("error", [ArithmeticError, _Stop])
def test_an_error_within_leaves_nothing_switched_on(error: type[BaseException]) -> None:
    model = quantised()
    expected = model(batches()[0])

    def raises(*_: Any) -> None:
        raise error

    handle = model.down.register_forward_pre_hook(raises)
    with pytest.raises(error):
        model(batches()[0])
    handle.remove()
    assert float(torch.add(torch.ones(()), 1)) == 2  # a mode left on would stray here
    assert torch.equal(model(batches()[0]), expected)


# One module alone.


class Blocks(nn.Module):
    """Two blocks and a head; the first block is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Basic(shortcut=False), Bottleneck()])
        self.head = Head()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks[1](self.blocks[0](self.blocks[0](x))))


@pytest.mark.parametrize(("name", "call"), [("blocks.0", 0), ("blocks.0", 1), ("blocks.1", 0)])
def test_a_module_alone_does_what_it_does_in_the_whole(name: str, call: int) -> None:
    torch.manual_seed(0)
    model = quantised(4, Blocks().eval())
    block, seen = model.get_submodule(name), []
    handle = block.register_forward_hook(lambda _, args, out: seen.append((*args, out)))
    model(batches()[0])
    handle.remove()
    given_, expected = seen[call]
    quantisers = model.activation_quantisers
    with quantisers.active_in(name, call):
        got = block(given_)
    assert torch.equal(got, expected)
    assert not torch.equal(block(given_), expected)  # quantised within the context alone


def test_a_module_s_context_takes_its_one_call_only() -> None:
    model = quantised(4, Blocks().eval())
    quantisers, block = model.activation_quantisers, model.blocks[1]
    x = batches()[0]
    context = quantisers.active_in("blocks.1")
    with pytest.raises(ValueError, match=r"comes to sub where .* the end next"), context:
        block(x) - x
    context = quantisers.active_in("blocks.1")
    with pytest.raises(ValueError, match=r"'blocks\.1' ends where .* hardtanh next"), context:
        block.conv[:4](x)
    with pytest.raises(
        ValueError, match=r"has 1 calls of a module 'blocks\.1'; there is no call 1"
    ):
        quantisers.active_in("blocks.1", call=1)
    with pytest.raises(ValueError, match="has 0 calls of a module 'block'"):
        quantisers.active_in("block")


# Learning and dropping.


def test_learned_scales_get_gradients_when_asked_for() -> None:
    model = quantised(4)
    quantisers = model.activation_quantisers
    model(batches()[0]).square().sum().backward()
    assert all(p.grad is None for p in quantisers.parameters())
    quantisers.learn()
    model(batches()[0]).square().sum().backward()
    assert all(p.grad is not None and float(p.grad) != 0 for p in quantisers.parameters())
    quantisers.learn(False)
    assert not any(p.requires_grad for p in quantisers.parameters())


@torch.no_grad()
def test_dropping_all_is_float_and_dropping_none_is_quantised() -> None:
    model, batch = quantised(4), batches()[0]
    plain, expected = folded()(batch), model(batch)
    quantisers = model.activation_quantisers
    with quantisers.dropping(1.0, 0):
        assert torch.equal(model(batch), plain)
        with quantisers.dropping(0.0, 0):
            assert torch.equal(model(batch), expected)
        assert torch.equal(model(batch), plain)
    assert torch.equal(model(batch), expected)


@torch.no_grad()
def test_dropping_is_drawn_anew_in_every_pass_and_repeats() -> None:
    model, batch = quantised(4), batches()[0]
    quantisers = model.activation_quantisers
    runs = []
    for generator in (3, torch.Generator().manual_seed(3), 4):
        with quantisers.dropping(0.5, generator):
            runs.append([model(batch) for _ in range(2)])
    assert not torch.equal(runs[0][0], runs[0][1])
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not torch.equal(runs[0][0], runs[2][0])


@torch.no_grad()
def test_the_share_dropped_is_as_asked_for() -> None:
    network = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(192, 2)).eval()
    quantisers = calibrate_activations(network, batches(8, size=16), 2)
    attach(network, quantisers)
    kept: list[Tensor] = []
    network[0].register_forward_hook(lambda _, args, out: kept.append(out))
    images = torch.cat(batches(8, size=16))
    with quantisers.dropping(0.3, 0):
        network(images)
    share = float((kept[0] == images).double().mean())
    assert share == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_must_be_a_probability(share: float) -> None:
    quantisers = quantised().activation_quantisers
    with pytest.raises(ValueError, match="probability"), quantisers.dropping(share, 0):
        pass


# Requests.


def test_single_sites_may_have_other_bits() -> None:
    quantisers = calibrate_activations(folded(), batches(), 8, site_bits={"add": 4})
    assert [quantisers[name].bits for name in RESIDUAL_SITES] == [8, 8, 8, 4, 8, 8]
    assert "bits=4" in repr(quantisers)


def test_the_same_calibration_gives_the_same_grids() -> None:
    first, second = (calibrate_activations(folded(), batches()).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_site_of_zeros_is_harmless() -> None:
    model = folded()
    model.depthwise.bias.data.fill_(-99.0)
    with torch.no_grad():
        assert change(model, quantised(8, copy.deepcopy(model))) < 0.02
    assert float(quantised(8, model).activation_quantisers["relu_2"](torch.zeros(()))) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_refused_by_site(value: float) -> None:
    model = folded()
    model.pointwise.bias.data[1] = value
    with pytest.raises(ValueError, match="site 'add' hold NaN or infinite"):
        calibrate_activations(model, batches())


def test_what_cannot_be_calibrated_is_refused() -> None:
    model = folded()
    with pytest.raises(ValueError, match="only once"):
        calibrate_activations(model, iter(batches()))
    with pytest.raises(ValueError, match="no batch"):
        calibrate_activations(model, [])
    with pytest.raises(ValueError, match=r"no sites \['relu'\]; it has \['input'"):
        calibrate_activations(model, batches(), site_bits={"relu": 4})
    for request in ({"bits": 9}, {"site_bits": {"add": 1}}):
        with pytest.raises(ValueError, match="from 2 to 8"):
            calibrate_activations(model, batches(), **request)
    with pytest.raises(ValueError, match="training mode"):
        calibrate_activations(model.train(), batches())


def test_a_network_whose_course_depends_on_data_is_refused() -> None:
    def chooses(m: Any, x: Tensor) -> Tensor:
        return m.b(m.a(x).relu() if bool(x.sum() > 0) else m.a(x).sigmoid())

    model = Formula(chooses).eval()
    with pytest.raises(ValueError, match=r"network comes to sigmoid where .* relu next"):
        calibrate_activations(model, [torch.ones(1, 3, 4, 4), -torch.ones(1, 3, 4, 4)])


def test_there_is_one_quantiser_for_each_site() -> None:
    course = find_sites(folded(), batches()[0])
    with pytest.raises(ValueError, match="1 quantisers for 6 sites"):
        ActivationQuantisers(course, [ActivationQuantiser(1.0, 0, 8)])


def test_the_input_is_given_by_position() -> None:
    with pytest.raises(ValueError, match="first argument"):
        quantised()(x=batches()[0])
