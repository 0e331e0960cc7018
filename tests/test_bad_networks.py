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

from qubo_rounding.network import quantise
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
    ],
)
def test_data_that_are_none_are_explained(loader: list[Any], message: str) -> None:
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
