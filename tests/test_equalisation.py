"""Equalised networks answer as before, and their weights fit one scale better."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from networks import batches, residual
from torch import Tensor, nn

import qubo_rounding as qr
from qubo_rounding.channel_links import find_links
from qubo_rounding.equalisation import ChannelClip, equalise
from qubo_rounding.layers import find_layers, matrix_of
from qubo_rounding.relaxed.activations import calibrate_activations


class Clipped(nn.Module):
    """Expand, depthwise, project; every ReLU6 is one module called twice, as EfficientNet's is."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 8, 1, bias=False)
        self.norm_0 = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm_1 = nn.BatchNorm2d(8)
        self.project = nn.Conv2d(8, 4, 1)
        self.clip = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.clip(self.norm_0(self.expand(x)))
        return self.project(self.clip(self.norm_1(self.depthwise(x))))


def uneven(model: nn.Module) -> nn.Module:
    """With output channels of very different sizes, some of them clipped, one without weights."""
    draw = torch.Generator().manual_seed(1)
    model.eval()
    for layer in find_layers(model).layers.values():
        weight = model.get_submodule(layer.name).weight.data
        factors = torch.logspace(-1.5, 1.5, len(weight))[
            torch.randperm(len(weight), generator=draw)
        ]
        weight *= factors.view(-1, *[1] * (weight.ndim - 1))
    return model


def folded(model: nn.Module) -> nn.Module:
    return qr.fold_batch_norm(model, batches()[0])[0]


def pooled_then_linear() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.LeakyReLU(0.1),
        nn.ZeroPad2d(1),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(6 * 16, 7),
        nn.Dropout(),
        nn.ReLU(),
        nn.Linear(7, 5),
    )


def clipped() -> nn.Module:
    torch.manual_seed(4)
    return Clipped()


@pytest.mark.parametrize("make", [residual, pooled_then_linear, clipped])
def test_answers_stay_and_ranges_meet(make: Callable[[], nn.Module]) -> None:
    model = folded(uneven(make()))
    found = equalise(model, batches()[0])
    assert found.factors
    for batch in batches(3, seed=5):
        expected = model(batch).detach()
        torch.testing.assert_close(
            found.model(batch),
            expected,
            rtol=1e-4,
            atol=1e-5 * float(expected.abs().max()),
        )
    for link in find_links(model, batches()[0]):
        rows = matrix_of(found.model, link.first).abs().amax(2).flatten()
        columns = matrix_of(found.model, link.second).abs().amax(1).view(len(rows), -1).amax(1)
        ratio = rows / columns
        assert float(ratio.max() / ratio.min()) < 1.01


def test_the_pairs_are_those_that_only_scale() -> None:
    pairs = lambda model: [  # noqa: E731
        (link.first.name, link.second.name)
        for link in find_links(folded(model.eval()), batches()[0])
    ]
    assert pairs(residual()) == [("depthwise", "pointwise"), ("down", "head")]
    assert pairs(pooled_then_linear()) == [("0", "5"), ("5", "8")]
    assert pairs(clipped()) == [("expand", "depthwise"), ("depthwise", "project")]
    # A sigmoid, an addition of a constant, a clip without a place for its channels' limits.
    for between in (nn.Sigmoid(), nn.SiLU(), nn.Hardtanh(-1, 1), nn.PReLU(6), nn.ReLU6()):
        assert pairs(nn.Sequential(nn.Conv2d(3, 6, 1), between, nn.Conv2d(6, 2, 1))) == []
    shared = nn.Conv2d(3, 3, 1)
    assert pairs(nn.Sequential(shared, nn.ReLU(), shared)) == []


class Forgets(nn.Module):
    """Between its layers tensors come and go, and later ones may take an earlier one's id."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu().relu().relu())
        later = [x + number for number in range(3000)]
        return sum(tensor * 2 for tensor in later)  # pyright: ignore[reportReturnType]


def test_a_pair_is_found_whatever_ids_later_tensors_get() -> None:
    links = find_links(Forgets().eval(), batches()[0])
    assert [(link.first.name, link.second.name) for link in links] == [("first", "second")]


def test_a_clip_takes_the_place_of_the_batch_norm() -> None:
    model = folded(uneven(clipped()))
    found = equalise(model, batches()[0])
    clip = found.model.get_submodule("norm_0")
    assert isinstance(clip, ChannelClip)
    assert clip.limit.shape == (8, 1, 1)
    assert float(clip.limit.max()) == pytest.approx(6.0, rel=1e-6)
    assert bool((found.factors["expand", "depthwise"] >= 1 - 1e-12).all())
    assert isinstance(model.get_submodule("norm_0"), nn.Identity)


@pytest.mark.parametrize("finish", [None, qr.ActivationFinish(positions=8, rounds=1)])
def test_one_scale_a_layer_rounds_better_behind_equalisation(
    finish: qr.ActivationFinish | None,
) -> None:
    model, data = uneven(clipped()), batches(3)
    errors = []
    for on in (False, True):
        settings = qr.LayerSettings(granularity="tensor", equalise=on)
        solver = qr.Nearest() if finish is None else qr.Annealing(sweeps=50, reads=1)
        result = qr.quantise(model, data, solver=solver, settings=settings, finish=finish)
        with torch.no_grad():
            errors.append(float((result.model(data[0]) - model(data[0])).square().mean()))
    assert errors[1] < 0.7 * errors[0]


def test_equalised_networks_have_the_same_activation_sites() -> None:
    model, data = folded(uneven(clipped())), batches()
    before = calibrate_activations(model, data).sites
    after = calibrate_activations(equalise(model, data[0]).model, data).sites
    assert after == before


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="training mode"):
        equalise(clipped().train(), batches()[0])
