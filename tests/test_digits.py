"""The small networks for theory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from company import torch_threads
from torch import nn

from qubo_rounding.digits import DigitsNetwork, digits_data, train_cnn, train_micro, train_mlp
from qubo_rounding.evaluation import evaluate, predict
from qubo_rounding.layers import find_layers
from qubo_rounding.qubo.hessian import task_hessian, task_problem
from qubo_rounding.qubo.true_loss import every_energy, every_loss

needs_digits = pytest.mark.skipif(
    find_spec("sklearn") is None, reason="scikit-learn not installed; the theory extra brings it"
)


def weights_in(network: DigitsNetwork) -> int:
    layers = find_layers(network.model).layers.values()
    return sum(layer.g * layer.r * layer.d for layer in layers)


def accuracy(network: DigitsNetwork) -> float:
    images, labels = network.data.test
    top1 = evaluate(predict(network.model, [images]), labels).top1
    assert top1 is not None
    return top1


@needs_digits
@pytest.mark.parametrize(
    ("train", "weights", "least"),
    [(train_mlp, 208, 0.85), (train_micro, 18, 0.9), (train_cnn, 476, 0.85)],
)
def test_networks_of_known_size_have_learnt_their_digits(
    train: Callable[..., DigitsNetwork], weights: int, least: float
) -> None:
    network = train()
    assert weights_in(network) == weights
    assert accuracy(network) > least
    assert not network.model.training


@needs_digits
def test_the_same_seed_gives_the_same_bits_on_any_number_of_threads() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = train_micro(seed=1)
    with torch_threads(2):
        second = train_micro(seed=1)
        assert torch.get_num_threads() == 2
    other = train_micro(seed=2)
    for a, b, c in zip(*(n.model.parameters() for n in (first, second, other)), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), state)


@needs_digits
def test_data_are_split_without_overlap_and_always_alike() -> None:
    data, again = digits_data(), digits_data()
    parts = [data.train, data.calibration, data.test]
    assert [len(labels) for _, labels in parts] == [1198, 299, 300]
    assert torch.equal(data.test[0], again.test[0])
    images = torch.cat([images for images, _ in parts])
    assert len(images.flatten(1).unique(dim=0)) == len(images) == 1797
    assert images.dtype == torch.float64


@needs_digits
def test_digits_are_pooled_and_chosen() -> None:
    whole, some = digits_data(), digits_data((3, 2), (7, 0))
    images, labels = some.train
    assert images.shape[1:] == (1, 3, 2)
    assert set(labels.tolist()) == {0, 1}
    sevens = sum(int((part[1] == 7).sum()) for part in (whole.train, whole.calibration, whole.test))
    assert sevens == sum(int((p[1] == 0).sum()) for p in (some.train, some.calibration, some.test))


@needs_digits
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": (0, 4)}, "from 1 to 8"),
        ({"size": (4, 9)}, "from 1 to 8"),
        ({"digits": (3,)}, "at least two"),
        ({"digits": (3, 3)}, "each once"),
        ({"digits": (3, 10)}, "of 0 to 9"),
    ],
)
def test_impossible_data_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        digits_data(**wrong)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r'pip install "qubo-rounding\[theory\]"'):
        digits_data()


@needs_digits
def test_the_model_of_second_order_tells_good_candidates_from_bad_ones() -> None:
    network = train_micro()
    layers = list(find_layers(network.model).layers)
    problem = task_problem(network.model, layers[:1], [network.data.calibration], gradient=True)
    losses = every_loss(network.model, problem, [network.data.calibration])
    energies = every_energy(problem)
    assert len(losses) == len(energies) > 2**8
    assert float(torch.corrcoef(torch.stack([losses, energies]))[0, 1]) > 0.9


@needs_digits
def test_a_smooth_network_ends_near_a_minimum_and_bends_upwards_there() -> None:
    network = train_mlp(2, size=(3, 2), digits=(0, 4, 7), activation=nn.Tanh)
    images, labels = network.data.train
    parameters = list(network.model.parameters())
    decay = sum(parameter.square().sum() for parameter in parameters)
    total = F.cross_entropy(network.model(images), labels) + 1e-3 * decay
    slopes = torch.autograd.grad(total, parameters)
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-3
    hessian = task_hessian(network.model, ["hidden", "output"], [network.data.train])
    decayed = hessian + 2e-3 * torch.eye(len(hessian), dtype=torch.float64)
    assert float(torch.linalg.eigvalsh(decayed)[0]) > -1e-3
