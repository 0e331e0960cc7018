"""What leaves the package computes the same elsewhere, and comes back to the bit."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import batches, residual
from safetensors import safe_open
from test_equalisation import clipped, uneven
from torch import Tensor, nn

import qubo_rounding as qr
from qubo_rounding.export import load_levels, save_levels, write_encodings, write_onnx
from qubo_rounding.export.levels import pack, unpack
from qubo_rounding.layers import find_layers, matrix_of

SETTINGS = {
    "4 bits": qr.LayerSettings(),
    "per tensor": qr.LayerSettings(granularity="tensor"),
    "asymmetric": qr.LayerSettings(symmetric=False, bias="keep"),
    "3 bits, one layer 8": qr.LayerSettings(bits=3, layer_bits={"stem": 8}),
    "activations": qr.LayerSettings(act_bits=8),
    "narrow activations": qr.LayerSettings(act_bits=5),
    "equalised": qr.LayerSettings(granularity="tensor", equalise=True, act_bits=8),
}


@functools.cache
def rounded(name: str) -> tuple[nn.Module, qr.QuantisedNetwork, qr.LayerSettings]:
    settings = SETTINGS[name]
    model = uneven(clipped()) if name == "equalised" else residual()
    return model, qr.quantise(model, batches(), solver=qr.Gptq(), settings=settings), settings


def in_onnxruntime(path: Path, x: Tensor) -> Tensor:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    # Beyond that it computes products of 4-bit weights with inputs rounded to 8 bits.
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


@pytest.mark.parametrize("name", SETTINGS)
def test_onnx_computes_the_same(name: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    _, result, settings = rounded(name)
    path = write_onnx(tmp_path / "net.onnx", result, settings, batches()[0])
    for x in (batches()[1], batches(1, seed=3, size=7)[0]):  # another number of images, too
        with torch.no_grad():
            expected = result.model(x)
        found = in_onnxruntime(path, x)
        error = float((found - expected).norm() / expected.norm())
        # A value halfway between two levels of an activation may go either way.
        assert error < (1e-5 if settings.act_bits is None else 2 * 2.0**-settings.act_bits)
    graph = onnx.load(path).graph
    kinds = {t.name: t.data_type for t in graph.initializer}
    integer = onnx.TensorProto.UINT4 if name == "asymmetric" else onnx.TensorProto.INT4
    assert kinds["pointwise.levels" if "pointwise.levels" in kinds else "project.levels"] == integer
    assert not any(key.endswith(".weight") for key in kinds)
    quantised = sum(node.op_type == "QuantizeLinear" for node in graph.node)
    assert (quantised > 0) == (settings.act_bits is not None)


def test_onnx_of_layers_with_equal_weights(tmp_path: Path) -> None:
    """As after zero initialisation: a trace keeps equal tensors once."""
    pytest.importorskip("onnx")
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    with torch.no_grad():
        for layer in (model[2], model[4]):
            layer.weight.zero_()
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    result = qr.quantise(model.eval(), [x], solver=qr.Nearest())
    before = {name: t.clone() for name, t in result.model.state_dict().items()}
    path = write_onnx(tmp_path / "net.onnx", result, qr.LayerSettings(), x)
    assert all(torch.equal(t, before[name]) for name, t in result.model.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(in_onnxruntime(path, x), result.model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_onnx_of_other_precisions_is_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    pytest.importorskip("onnx")
    model, x = nn.Sequential(nn.Linear(6, 6)).to(dtype).eval(), torch.randn(8, 6).to(dtype)
    result = qr.quantise(model, [x], solver=qr.Nearest())
    with pytest.raises(ValueError, match=r"weights of torch\.float\d\d"):
        write_onnx(tmp_path / "net.onnx", result, qr.LayerSettings(), x)
    assert not list(tmp_path.iterdir())


def test_onnx_of_transposed_convolutions_and_linear_layers(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 3, 2), nn.ReLU(), nn.Linear(17, 5)).eval()
    x, settings = batches()[0], qr.LayerSettings()
    result = qr.quantise(model, [x], solver=qr.Nearest(), settings=settings)
    path = write_onnx(tmp_path / "net.onnx", result, settings, x)
    with torch.no_grad():
        torch.testing.assert_close(in_onnxruntime(path, x), result.model(x), rtol=1e-4, atol=1e-5)
    grouped = nn.Sequential(nn.ConvTranspose2d(3, 6, 3, groups=3)).eval()
    result = qr.quantise(grouped, [x], solver=qr.Nearest(), settings=settings)
    with pytest.raises(ValueError, match="grouped transposed convolution"):
        write_onnx(tmp_path / "net.onnx", result, settings, x)


@pytest.mark.parametrize("name", SETTINGS)
def test_levels_come_back_to_the_bit(name: str, tmp_path: Path) -> None:
    model, result, settings = rounded(name)
    path = tmp_path / "net.safetensors"
    size = save_levels(path, result, settings)
    back = load_levels(path, model, batches()[0])
    expected, found = result.model.state_dict(), back.state_dict()
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
    with torch.no_grad():
        assert torch.equal(back(batches()[1]), result.model(batches()[1]))
    assert size == path.stat().st_size
    with safe_open(path, framework="pt") as file:
        for layer, done in result.layers.items():
            assert file.get_tensor(f"layer.{layer}.levels").numel() == -(
                -done.levels.numel() * (4 if done.record.bits <= 4 else 8) // 8
            )


class Shared(nn.Module):
    """One layer under two names, called twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Linear(8, 8)
        self.two = self.one

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu())


def test_shared_layers_come_back_too(tmp_path: Path) -> None:
    model, settings, x = Shared().eval(), qr.LayerSettings(), batches()[0]
    result = qr.quantise(model, [x], solver=qr.Nearest(), settings=settings)
    save_levels(tmp_path / "net.safetensors", result, settings)
    back = load_levels(tmp_path / "net.safetensors", model, x)
    assert not torch.equal(back.get_parameter("one.weight"), model.one.weight)
    with torch.no_grad():
        assert torch.equal(back(x), result.model(x))


def test_a_file_that_lacks_something_of_the_network_is_refused(tmp_path: Path) -> None:
    model, result, settings = rounded("4 bits")
    save_levels(tmp_path / "net.safetensors", result, settings)
    other = copy.deepcopy(model)
    other.get_submodule("head").register_buffer("more", torch.zeros(1))
    with pytest.raises(ValueError, match=r"the file has no 'head\.more'"):
        load_levels(tmp_path / "net.safetensors", other, batches()[0])


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("count", [1, 3, 4, 10])
def test_packing_is_undone(bits: int, count: int) -> None:
    numbers = torch.randint(0, 2**bits, (1, 1, count), generator=torch.Generator().manual_seed(0))
    packed = pack(numbers, bits)
    assert torch.equal(unpack(packed, bits, [1, 1, count]), numbers.short())
    assert packed.numel() == -(-count * (2 if bits == 2 else 4 if bits <= 4 else 8) // 8)
    with pytest.raises(ValueError, match="bytes cannot be"):
        unpack(packed, bits, [1, 1, count + 8])


def test_foreign_files_and_networks_are_refused(tmp_path: Path) -> None:
    model, result, settings = rounded("4 bits")
    path = tmp_path / "net.safetensors"
    save_levels(path, result, settings)
    with pytest.raises(ValueError, match=r"no layer|has no"):
        load_levels(path, clipped().eval(), batches()[0])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="is damaged"):
        load_levels(path, model, batches()[0])


@pytest.mark.parametrize("name", ["4 bits", "per tensor", "asymmetric", "activations"])
def test_encodings_tell_the_grid_of_every_weight(name: str, tmp_path: Path) -> None:
    _, result, settings = rounded(name)
    path = write_encodings(tmp_path / "net.json", result, settings)
    content: dict[str, Any] = json.loads(path.read_text())
    layers = find_layers(result.model).layers
    assert len(content["param_encodings"]) == len(layers)
    assert bool(content["activation_encodings"]) == (settings.act_bits is not None)
    for layer, its in layers.items():
        encodings = content["param_encodings"][f"{layer}.weight"]
        assert len(encodings) == (1 if name == "per tensor" else its.g * its.r)
        rows = matrix_of(result.model, its).flatten(0, 1).double().numpy()
        for row, encoding in zip(rows, encodings * len(rows), strict=False):
            level = row / encoding["scale"] - encoding["offset"]
            assert np.abs(level - level.round()).max() < 1e-4
            assert -1e-4 < level.min() <= level.max() < 15 + 1e-4
            assert encoding["min"] == pytest.approx(encoding["scale"] * encoding["offset"])
    groupwise = qr.LayerSettings(granularity=2)
    result = qr.quantise(
        residual(), batches(), solver=qr.Nearest(), settings=groupwise, layers=["head"]
    )
    with pytest.raises(ValueError, match=r"\d scales a row"):
        write_encodings(path, result, groupwise)
