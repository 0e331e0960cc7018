"""Grams against what layers really do, and their sums, files and refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from company import torch_threads
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from qubo_rounding import accumulation, tiling
from qubo_rounding.imagenet import demo_photographs
from qubo_rounding.layers import Layer, find_layers, weight_of
from qubo_rounding.models import Preprocessing
from qubo_rounding.passes import LayerCall, Pass
from qubo_rounding.patches import Patches, patches_of
from qubo_rounding.statistics import (
    Gram,
    collect_grams,
    gram_of,
    gram_of_calls,
    load_grams,
    save_grams,
)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def calls_of(model: nn.Module, batch: Tensor) -> list[LayerCall]:
    with Pass(model, find_layers(model).layers, batch) as one:
        return list(one)


def energy(gram: Gram, layer: Layer, change: Tensor) -> float:
    """Mean over positions of the squared output change, summed over output channels."""
    e = layer.matrix(change).double()
    return float(torch.einsum("gri,gij,grj->", e, gram.second_moment, e))


def measured(call: LayerCall, weight: Tensor, change: Tensor, count: int) -> float:
    """The same from the outputs themselves."""
    outputs = call.output_with(weight + change).double() - call.output_with(weight).double()
    return float(outputs.square().sum() / count)


@torch.no_grad()
def check_energy(model: nn.Module, batch: Tensor, relative: float) -> int:
    """Every call of the model: the Gram's energy is the measured one. Returns how many calls."""
    calls = 0
    with Pass(model, find_layers(model).layers, batch) as one:
        for call in one:
            weight = weight_of(model, call.layer)
            change = (
                0.1 * weight.abs().max() * normal(*weight.shape, seed=calls, dtype=weight.dtype)
            )
            gram = gram_of(call)
            expected = measured(call, weight, change, gram.count)
            assert energy(gram, call.layer, change) == pytest.approx(expected, rel=relative), call
            calls += 1
    return calls


def test_energy_is_the_measured_output_change_on_every_layer_of_efficientnet(
    efficientnet: tuple[nn.Module, Preprocessing],
) -> None:
    model, preprocessing = efficientnet
    photographs = next(demo_photographs(preprocessing)[0].batches(2))[0]
    assert check_energy(model, photographs, relative=1e-4) == 50


CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}

small = st.integers(1, 3)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    rank = draw(small)

    def each(values: st.SearchStrategy[int]) -> tuple[int, ...]:
        return tuple(draw(values) for _ in range(rank))

    groups, kernel, dilation = draw(small), each(small), each(st.integers(1, 2))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    same = draw(st.booleans())
    module = CONVOLUTIONS[rank](
        groups * draw(small),
        groups * draw(small),
        kernel,
        stride=1 if same else each(small),
        padding="same" if same else each(st.integers(0, 2)),
        dilation=dilation,
        groups=groups,
        padding_mode=mode,
        bias=draw(st.booleans()),
        dtype=torch.float64,
    )
    sizes = [gap * (taps - 1) + draw(small) + 2 for gap, taps in zip(dilation, kernel, strict=True)]
    samples = [] if draw(st.booleans()) and mode == "zeros" else [draw(small)]
    return module, normal(*samples, module.in_channels, *sizes)


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    rank = draw(small)

    def each(values: st.SearchStrategy[int]) -> tuple[int, ...]:
        return tuple(draw(values) for _ in range(rank))

    groups, stride = draw(small), each(small)
    module = TRANSPOSED[rank](
        groups * draw(small),
        groups * draw(small),
        each(small),
        stride=stride,
        padding=each(st.integers(0, 1)),
        output_padding=tuple(draw(st.integers(0, step - 1)) for step in stride),
        dilation=each(st.integers(1, 2)),
        groups=groups,
        dtype=torch.float64,
    )
    return module, normal(draw(small), module.in_channels, *(draw(small) + 2 for _ in range(rank)))


same_padding_warning = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@same_padding_warning
@given(convolutions())
@settings(deadline=None, max_examples=80)
def test_energy_on_any_convolution(example: tuple[nn.Module, Tensor]) -> None:
    module, batch = example
    assert check_energy(module.eval(), batch, relative=1e-9) == 1


@given(transposed_convolutions())
@settings(deadline=None, max_examples=80)
def test_energy_on_any_transposed_convolution(example: tuple[nn.Module, Tensor]) -> None:
    module, batch = example
    assert check_energy(module.eval(), batch, relative=1e-9) == 1


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)])
def test_energy_on_a_linear_layer_with_any_leading_dimensions(shape: tuple[int, ...]) -> None:
    assert check_energy(nn.Linear(5, 4).double().eval(), normal(*shape), relative=1e-9) == 1


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(3, 4, (3, 2), stride=2, padding=1, dilation=(1, 2), bias=False),
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Conv2d(4, 2, 2, groups=2),
    ],
)
def test_gram_is_half_the_hessian_of_the_local_loss(module: nn.Conv2d) -> None:
    module = module.double().eval()
    batch = normal(2, module.in_channels, 5, 5)
    (call,) = calls_of(module, batch)
    gram = gram_of(call)
    target = call.output_with(module.weight).detach()

    def local_loss(weight: Tensor) -> Tensor:
        return (call.output_with(weight) - target).square().sum() / gram.count

    hessian = torch.autograd.functional.hessian(local_loss, module.weight.detach())
    g, r, d = call.layer.g, call.layer.r, call.layer.d
    expected = torch.zeros(g, r, d, g, r, d, dtype=torch.float64)
    for group in range(g):
        for row in range(r):
            expected[group, row, :, group, row, :] = gram.second_moment[group]
    torch.testing.assert_close(hessian.reshape(expected.shape) / 2, expected)


def test_columns_are_in_the_order_of_the_matrix() -> None:
    module = nn.Conv2d(4, 6, 3, groups=2, bias=False).double().eval()
    (call,) = calls_of(module, normal(3, 4, 5, 5))
    patches = next(patches_of(call).chunks(1000))
    outputs = call.layer.matrix(module.weight.detach()) @ patches
    expected = call.output_with(module.weight).detach().transpose(0, 1).reshape(2, 3, -1)
    torch.testing.assert_close(outputs, expected)


def test_mean_and_covariance() -> None:
    module, batch = nn.Linear(4, 2).eval(), normal(50, 4, dtype=torch.float32) + 3
    (call,) = calls_of(module, batch)
    gram = gram_of(call)
    assert gram.count == 50
    torch.testing.assert_close(gram.mean[0].float(), batch.mean(0))
    torch.testing.assert_close(gram.covariance[0].float(), batch.T.cov(correction=0))


FAR = {
    "linear": (nn.Linear(8, 2), (512, 8)),
    "padded": (nn.Conv2d(3, 2, 3, padding=1), (16, 3, 8, 8)),
    "depthwise": (nn.Conv2d(4, 4, 5, padding=2, groups=4), (16, 4, 8, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (16, 4, 8, 8)),
    "transposed": (nn.ConvTranspose2d(3, 2, 3, stride=2), (16, 3, 5, 5)),
}


@pytest.mark.parametrize("name", FAR)
@pytest.mark.parametrize("paired", [False, True])
def test_inputs_far_from_zero_keep_their_covariance(name: str, paired: bool) -> None:
    """Float32 products of values about 3,000 are rounded by more than their variance of 1."""
    module, shape = FAR[name]
    batches = [normal(*shape, seed=seed, dtype=torch.float32) + 3000 for seed in range(2)]
    changed = [batch + 0.1 * normal(*shape, seed=9, dtype=torch.float32) for batch in batches]
    calls, calls_q = ([calls_of(module.eval(), x)[0] for x in xs] for xs in (batches, changed))
    gram = gram_of_calls(zip(calls, calls_q if paired else (None, None), strict=True))

    def exact(xs: list[Tensor]) -> Tensor:
        double = copy.deepcopy(module).double()
        return gram_of(calls_of(double, torch.cat(xs).double())[0]).covariance

    def check(found: Tensor, wanted: Tensor, relative: float) -> None:
        # Padding varies by 3,000 itself; columns that see none of it must not suffer.
        deviation = wanted.diagonal(dim1=1, dim2=2).sqrt()
        error = (found - wanted) / (deviation.unsqueeze(1) * deviation.unsqueeze(2))
        assert float(error.abs().max()) < relative

    # Zeros between the inputs of a transposed convolution leave it no reference near all of them.
    close = 1e-4 if name == "transposed" else 1e-5
    check(gram.covariance, exact(batches), close)
    if paired:
        check(gram.covariance_q, exact(changed), close)
        moved = gram.covariance - gram.cross_covariance - gram.cross_covariance.mT
        change = exact([x_q - x for x, x_q in zip(batches, changed, strict=True)])
        check((moved + gram.covariance_q)[:, None, 4, 4, None], change[:, None, 4, 4, None], 1e-2)


def test_constant_inputs_have_no_covariance() -> None:
    module = nn.Linear(3, 2).eval()
    (once,) = calls_of(module, normal(1, 3, dtype=torch.float32))
    (often,) = calls_of(module, normal(1, 3, dtype=torch.float32).expand(50, 3) + 1000)
    for call in (once, often):
        for gram in (gram_of(call), gram_of(call, call)):
            assert not gram.covariance.any()
        assert not gram.covariance_q.any()
        assert not gram.cross_covariance.any()


@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.integers(1, 2),
    channels=st.integers(1, 2),
    positions=st.tuples(st.sampled_from([1, 2, 4, 6]), st.sampled_from([1, 3, 4])),
    tile=st.tuples(st.sampled_from([1, 2]), st.sampled_from([1, 3, 4])),
)
@settings(deadline=None, max_examples=60)
def test_tiles_change_nothing(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    channels: int,
    positions: tuple[int, int],
    tile: tuple[int, int],
) -> None:
    sizes = [
        s * (n * t - 1) + d * (k - 1) + 1
        for k, s, d, n, t in zip(kernel, stride, dilation, positions, tile, strict=True)
    ]
    signal = normal(2, groups * channels, *sizes)
    patches = Patches(signal, groups, kernel, stride, dilation)
    tiled = tiling.Tiling(patches, tile)
    plain, large = next(patches.chunks(10**6)), next(tiled.windows.chunks(10**6))
    torch.testing.assert_close(tiled.fold(large @ large.mT, sides=2), plain @ plain.mT)
    torch.testing.assert_close(tiled.fold(large.sum(-1), sides=1), plain.sum(-1))


def test_chunks_cover_every_patch_once() -> None:
    patches = Patches(normal(3, 4, 6, 7), 2, (2, 3), (2, 1), (1, 2))
    whole = next(patches.chunks(10**6))
    assert whole.shape == (2, patches.columns, patches.count) == (2, 12, 3 * 3 * 3)
    for count in (1, 4, 9, 10, 18):
        chunks = list(patches.chunks(count))
        assert all(chunk.shape[-1] <= max(count, 3) for chunk in chunks)
        assert torch.equal(torch.cat(chunks, -1), whole)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (5, 8, 12, 12)),
        (nn.Conv2d(40, 4, 3), (3, 40, 9, 9)),
        (nn.Linear(300, 3), (64, 300)),
    ],
)
def test_small_chunks_and_blocks_change_nothing_but_the_last_digits(
    module: nn.Module, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    (call,) = calls_of(module.eval(), normal(*shape, dtype=torch.float32))
    usual = gram_of(call)
    monkeypatch.setattr(accumulation, "CHUNK_WINDOWS", 7)
    monkeypatch.setattr(accumulation, "BLOCK_COLUMNS", 64)
    small = gram_of(call)
    torch.testing.assert_close(small.second, usual.second, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(small.total, usual.total, rtol=1e-5, atol=1e-3)


def test_symmetric_exactly_and_the_same_bits_on_one_and_two_threads() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 40, 3, padding=1),
        nn.Conv2d(40, 40, 5, padding=2, groups=40),
        nn.Conv2d(40, 300, 1),
        nn.Conv2d(300, 5, 3),
    ).eval()
    calls = calls_of(model, normal(4, 3, 28, 28, dtype=torch.float32))
    grams = []
    for count in (1, 2):
        with torch_threads(count):
            grams.append([gram_of(call, call) for call in calls])
    for one, two in zip(*grams, strict=True):
        assert torch.equal(one.second, one.second.mT)
        assert torch.equal(one.second, one.second_q)
        torch.testing.assert_close(one.cross, one.second)
        assert all(torch.equal(a, two.tensors()[name]) for name, a in one.tensors().items())


class Reused(nn.Module):
    """Calls `again` twice, never `spare`, and `head` before what is defined earlier."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(3, 3)
        self.again = nn.Linear(3, 3)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.again(self.head(x)))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Reused().eval()


def batches(count: int = 3) -> list[Tensor]:
    return [normal(4, 3, seed=seed, dtype=torch.float32) for seed in range(count)]


def test_collect_adds_all_calls_and_batches_in_order_of_execution(model: nn.Module) -> None:
    grams = collect_grams(model, batches())
    assert list(grams) == ["head", "again"]
    assert [gram.count for gram in grams.values()] == [12, 24]
    x = torch.cat(batches()).double()
    torch.testing.assert_close(grams["head"].second[0], x.T @ x, rtol=1e-5, atol=1e-5)
    merged = collect_grams(model, batches()[:1])["again"]
    for batch in batches()[1:]:
        merged = merged + collect_grams(model, [(batch, "label")])["again"]
    for name in ("second", "total"):
        torch.testing.assert_close(getattr(merged, name), getattr(grams["again"], name))
    assert merged.count == 24


def test_paired_grams_see_both_networks(model: nn.Module) -> None:
    rounded = copy.deepcopy(model)
    rounded.head.weight.data.mul_(4).round_().div_(4)
    grams = collect_grams(model, batches(), quantised=rounded)
    x = torch.cat(batches())
    with torch.no_grad():
        inputs, inputs_q = ([m.head(x), m.again(m.head(x))] for m in (model, rounded))
    x, x_q = torch.cat(inputs).double(), torch.cat(inputs_q).double()
    gram = grams["again"]
    assert gram.is_paired
    torch.testing.assert_close(gram.second[0], x.T @ x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gram.second_moment_q[0], x_q.T @ x_q / 24, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gram.cross_moment[0], x.T @ x_q / 24, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gram.mean_q[0], x_q.mean(0), rtol=1e-5, atol=1e-5)
    both = torch.cat([x.T, x_q.T]).cov(correction=0)
    torch.testing.assert_close(gram.covariance_q[0], both[3:, 3:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gram.cross_covariance[0], both[:3, 3:], rtol=1e-5, atol=1e-5)
    assert torch.equal(grams["head"].second, grams["head"].second_q)


def test_paired_depthwise_grams_agree_with_the_plain_ones() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4)).eval()
    batch, batch_q = normal(2, 4, 8, 8, dtype=torch.float32), normal(2, 4, 8, 8, seed=1).float()
    (call,), (call_q,) = calls_of(model, batch), calls_of(model, batch_q)
    paired = gram_of(call, call_q)
    assert tiling.best_tiling(patches_of(call)).tile != (1, 1)
    x, x_q = (next(patches_of(one).chunks(1000)).double() for one in (call, call_q))
    torch.testing.assert_close(paired.cross, x @ x_q.mT, rtol=1e-4, atol=1e-4)
    assert torch.equal(paired.second_q, gram_of(call_q).second)
    torch.testing.assert_close(paired.second, gram_of(call).second, rtol=1e-4, atol=1e-4)


def test_layers_that_are_never_reached(model: nn.Module) -> None:
    layers = find_layers(model).layers
    with pytest.raises(ValueError, match="No batch reaches 'spare'"):
        collect_grams(model, batches(), layers=layers)
    assert list(collect_grams(model, batches(), layers={"head": layers["head"]})) == ["head"]
    model.forward = torch.sin
    with pytest.raises(ValueError, match="No batch reaches 'spare', 'again', 'head'"):
        collect_grams(model, batches())
    with pytest.raises(ValueError, match="no linear or convolution layer"):
        collect_grams(nn.Sequential(nn.ReLU()).eval(), batches())


def test_what_a_loader_may_not_give(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="no batch"):
        collect_grams(model, [])
    with pytest.raises(ValueError, match="is a dict"):
        collect_grams(model, [{"x": batches()[0]}])


@given(value=st.sampled_from([float("nan"), float("inf"), -float("inf")]), at=st.integers(0, 2))
@settings(deadline=None, max_examples=10)
def test_an_input_that_is_not_finite_is_named_by_layer_and_batch(value: float, at: int) -> None:
    given_batches = batches()
    given_batches[at][1, 2] = value
    with pytest.raises(ValueError, match=f"layer 'head' in batch {at} is NaN, infinite"):
        collect_grams(Reused().eval(), given_batches)


def test_networks_of_two_architectures_cannot_be_paired(model: nn.Module) -> None:
    class Shorter(Reused):
        def forward(self, x: Tensor) -> Tensor:
            return self.again(self.head(x))

    with pytest.raises(ValueError, match="reaches 'again' where the quantised one reaches its end"):
        collect_grams(model, batches(), quantised=Shorter().eval())
    module, batch = nn.Linear(3, 3).eval(), batches()[0]
    (call,), (other,) = calls_of(module, batch), calls_of(module, batch[:2])
    with pytest.raises(ValueError, match="one architecture"):
        gram_of(call, other)


def test_files_give_back_every_bit_in_order(model: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "grams.safetensors"
    for quantised in (None, model):
        grams = collect_grams(model, batches(), quantised=quantised)
        save_grams(file, grams)
        loaded = load_grams(file)
        assert list(loaded) == list(grams)
        for name, gram in grams.items():
            assert loaded[name].count == gram.count
            assert loaded[name].tensors().keys() == gram.tensors().keys()
            assert all(torch.equal(t, gram.tensors()[k]) for k, t in loaded[name].tensors().items())
    assert list(tmp_path.iterdir()) == [file]


def test_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "grams.safetensors"
    file.write_bytes(b"not safetensors at all")
    with pytest.raises(ValueError, match=r"grams\.safetensors is damaged"):
        load_grams(file)
    with pytest.raises(FileNotFoundError):
        load_grams(tmp_path / "absent.safetensors")


def square(d: int = 2) -> Tensor:
    return torch.zeros(1, d, d, dtype=torch.float64)


def vector(d: int = 2) -> Tensor:
    return torch.zeros(1, d, dtype=torch.float64)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gram(square(), vector(3), 1), r"second is .* shape \(1, 2, 2\)"),
        (lambda: Gram(square().float(), vector(), 1), "float32"),
        (lambda: Gram(square()[0], vector()[0], 1), r"needs float64 sums of shape \(g, d, d\)"),
        (lambda: Gram(square(), vector(), 0), "count is 0"),
        (lambda: Gram(square(), vector(), 1, second_q=square()), "all of second_q"),
        (lambda: Gram(square(), vector(), 1).cross_moment, "no cross"),
        (lambda: Gram(square(), vector(), 1) + Gram(square(3), vector(3), 1), "different layers"),
    ],
)
def test_grams_that_do_not_fit_together(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_half_precision_inputs_are_multiplied_in_float32() -> None:
    batch = (1000 * normal(64, 3)).half()
    (call,) = calls_of(nn.Linear(3, 2).half().eval(), batch)
    exact = batch.double().T @ batch.double()
    torch.testing.assert_close(gram_of(call).second[0], exact, rtol=1e-5, atol=1.0)


@same_padding_warning
def test_string_paddings_are_those_of_the_function() -> None:
    module = nn.Conv2d(1, 1, (2, 3), padding="same", bias=False).double().eval()
    (call,) = calls_of(module, normal(1, 1, 4, 4))
    left, right = functional.pad(call.input, (1, 1, 0, 1)), patches_of(call).signal
    assert torch.equal(left, right)
