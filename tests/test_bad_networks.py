"""Networks and data that cannot be rounded: one message that names the cause, no result."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import batches, residual
from torch import Tensor, nn
from torch.nn import functional

from qubo_rounding.equalisation import equalise
from qubo_rounding.layer_problem import LayerSettings
from qubo_rounding.network import quantise
from qubo_rounding.relaxed.reconstruction import Reconstruction
from qubo_rounding.solvers import Nearest


class Branching(nn.Module):
    """Data decide which layer is called."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) if float(x.sum()) > 0 else self.right(x)


def nothing() -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Flatten()).eval()


def with_nan() -> nn.Module:
    model = residual()
    next(iter(model.parameters())).data.view(-1)[0] = float("nan")
    return model


def in_halves() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3)).half().eval()


def in_complex() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, dtype=torch.complex64)).eval()


@pytest.mark.parametrize("mode", ["sequential", "independent"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nothing, r"no .*layer"),
        (with_nan, r"NaN|infinit|finite"),
        (in_halves, r"dtype|float|Half|half"),
        (in_complex, r"dtype|complex|float|layer"),
    ],
)
def test_a_network_that_cannot_be_rounded_is_explained(
    make: Callable[[], nn.Module], message: str, mode: Any
) -> None:
    with pytest.raises(ValueError, match=message):
        quantise(make(), batches(), solver=Nearest(), calibration=mode)


class Functional(nn.Module):
    """Calls its layers' weights by functions, with biases of its own choice."""

    def __init__(self, bias: str) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=bias != "none"), nn.Linear(4, 4)
        self.other, self.kind = nn.Parameter(torch.ones(4)), bias
        if bias == "shared":
            self.second.bias = self.first.bias

    def forward(self, x: Tensor) -> Tensor:
        bias = {"none": None, "other": self.other}.get(self.kind, self.first.bias)
        return self.second(functional.relu(functional.linear(x, self.first.weight, bias)))


@pytest.mark.parametrize("bias", ["none", "other", "shared"])
def test_a_bias_that_is_not_the_layer_s_own_is_not_refitted(bias: str) -> None:
    model, data = Functional(bias).eval(), [torch.randn(8, 4)]
    with pytest.raises(ValueError, match=r"another bias than their own.*first"):
        quantise(model, data, solver=Nearest())
    kept = quantise(model, data, solver=Nearest(), settings=LayerSettings(bias="keep"))
    assert list(kept.layers) == ["first", "second"]


@pytest.mark.parametrize("bias", ["other", "shared"])
def test_nothing_is_learned_beside_a_foreign_bias(bias: str) -> None:
    settings, method = LayerSettings(bias="keep"), Reconstruction(iterations=1)
    with pytest.raises(ValueError, match="another bias than their own"):
        quantise(
            *(Functional(bias).eval(), [torch.randn(8, 4)]),
            reconstruction=method,
            settings=settings,
        )


@pytest.mark.parametrize("bias", ["other", "shared"])
def test_equalisation_leaves_foreign_biases_alone(bias: str) -> None:
    model = Functional(bias).eval()
    for parameter in model.parameters():
        parameter.data.uniform_(0.1, 1)
    x = torch.rand(8, 4)
    with torch.no_grad():
        torch.testing.assert_close(equalise(model, x).model(x), model(x))


class InPlace(nn.Sequential):
    """Halves what it is given."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.mul_(0.5))


def test_a_network_that_changes_its_input_is_refused_and_the_data_stay() -> None:
    x = torch.randn(8, 4)
    before = x.clone()
    with pytest.raises(ValueError, match="changes its input in place"):
        quantise(InPlace(nn.Linear(4, 4)).eval(), [x], solver=Nearest())
    assert torch.equal(x, before)


def test_learning_is_in_single_precision() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).double().eval()
    with pytest.raises(ValueError, match=r"float64; reconstruction learns in float32"):
        quantise(model, [torch.randn(8, 4).double()], reconstruction=Reconstruction(iterations=1))


@pytest.mark.parametrize("mode", ["sequential", "independent"])
def test_a_branch_that_no_data_take_is_left_alone(mode: Any) -> None:
    same = [torch.ones(2, 4), 2 * torch.ones(2, 4)]
    result = quantise(Branching().eval(), same, solver=Nearest(), calibration=mode)
    assert list(result.layers) == ["left"]
    assert result.skipped == {"right": "the first batch does not reach it"}


def test_data_that_choose_their_own_layers_are_refused_where_passes_go_in_step() -> None:
    both = [torch.ones(2, 4), -torch.ones(2, 4)]
    with pytest.raises(ValueError, match=r"left|right"):
        quantise(Branching().eval(), both, solver=Nearest(), calibration="sequential")


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "no batch"),
        ([{"images": torch.zeros(2, 3, 8, 8)}], "dict"),
        ([torch.full((2, 3, 8, 8), float("nan"))], "NaN"),
        ([torch.zeros(2, 5, 8, 8)], r"channels|size|shape|input"),
        ([torch.zeros(0, 3, 8, 8)], r"empty|no image|batch"),
        (torch.zeros(2, 3, 8, 8), r"loader is a tensor; give a list"),
    ],
)
def test_data_that_are_none_are_explained(loader: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantise(residual(), loader, solver=Nearest())


def test_a_full_disk_leaves_the_run_as_it_was(tmp_path, monkeypatch) -> None:
    whole = quantise(residual(), batches(), solver=Nearest(), run=tmp_path / "whole")
    fsync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            quantise(residual(), batches(), solver=Nearest(), run=run)
    left = [path.name for path in run.rglob("*") if path.is_file()]
    assert not [name for name in left if name.startswith(".") and name != ".lock"]
    resumed = quantise(residual(), batches(), solver=Nearest(), run=run)
    for name, layer in whole.layers.items():
        assert torch.equal(resumed.layers[name].levels, layer.levels)
