"""What follows a layer is what the network does with its output, whoever makes the call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qubo_rounding.following import Activation, Following, capture, find_following
from qubo_rounding.layers import find_layers, weight_of


class Net(nn.Module):
    """Two layers and what a test makes of their outputs."""

    def __init__(self, use: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.act = nn.PReLU(3)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self, x)


def batch() -> Tensor:
    return torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1))


def following(use: Callable[[Any, Tensor], Tensor]) -> tuple[Net, dict[str, Following]]:
    net = Net(use).eval()
    return net, find_following(net, find_layers(net).layers, batch())


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu": (torch.relu, F.relu),
    "relu_": (lambda y: y.relu_(), F.relu),
    "relu in place": (lambda y: F.relu(y, True), F.relu),
    "module in place": (nn.ReLU(inplace=True), F.relu),
    "relu6": (nn.ReLU6(inplace=True), F.relu6),
    "functional relu6": (lambda y: F.relu6(y), F.relu6),
    "hardtanh": (lambda y: F.hardtanh(y, -0.5, 0.25), lambda y: y.clamp(-0.5, 0.25)),
    "clamp": (lambda y: y.clamp(min=-0.1), lambda y: y.clamp(min=-0.1)),
    "silu": (nn.SiLU(inplace=True), F.silu),
    "gelu": (nn.GELU(approximate="tanh"), lambda y: F.gelu(y, approximate="tanh")),
    "hardswish": (nn.Hardswish(), F.hardswish),
    "leaky": (nn.LeakyReLU(0.3, inplace=True), lambda y: F.leaky_relu(y, 0.3)),
    "elu": (nn.ELU(alpha=2.0), lambda y: F.elu(y, 2.0)),
    "sigmoid": (nn.Sigmoid(), torch.sigmoid),
    "tanh": (torch.tanh, torch.tanh),
    "after dropout": (lambda y: F.relu(F.dropout(y, 0.5, False)), F.relu),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_activation_function_is_found_with_its_settings(name: str) -> None:
    act, expected = ACTIVATIONS[name]
    _, found = following(lambda net, x: net.second(act(net.first(x))))
    y = torch.linspace(-8, 8, 3 * 4).reshape(1, 3, 2, 2)
    before = y.clone()
    assert found["first"].activation is not None
    assert not found["first"].adds
    assert torch.equal(found["first"](y), expected(before))
    assert torch.equal(y, before)  # out of place, whatever the network does
    assert found["second"] == Following()


def test_an_activation_of_each_channel() -> None:
    net, found = following(lambda net, x: net.second(net.act(net.first(x))))
    y = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    assert torch.equal(found["first"](y), net.act(y))


NOTHING = {
    "two users": lambda net, x: (lambda y: net.second(y.relu()) + y)(net.first(x)),
    "returned": lambda net, x: net.second(x) + net.first(x),
    "pooled first": lambda net, x: net.second(F.max_pool2d(net.first(x), 1).relu()),
    "used in a product": lambda net, x: net.second((net.first(x) * 2).relu()),
    "called twice": lambda net, x: net.second(net.first(net.first(x).relu()).relu()),
    "added to itself": lambda net, x: net.second((lambda y: (y + y).relu())(net.first(x))),
    "added to a number": lambda net, x: net.second((net.first(x) + 1).relu()),
}


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_follows_where_more_than_the_activation_sees_the_output(name: str) -> None:
    assert following(NOTHING[name])[1]["first"] == Following()


RESIDUALS = {
    "plus": lambda net, x: net.second(F.relu(net.first(x) + x)),
    "plus from the left": lambda net, x: net.second(F.relu(x + net.first(x))),
    "in place": lambda net, x: net.second((lambda y: y.add_(x).relu_())(net.first(x))),
    "iadd": lambda net, x: net.second((lambda y: y.__iadd__(x).relu())(net.first(x))),
    "two additions": lambda net, x: net.second(((net.first(x) + x) + x.sin()).relu()),
    "what is added comes later": lambda net, x: (net.first(x) + net.second(x)).relu(),
}


@pytest.mark.parametrize("name", RESIDUALS)
def test_an_addition_before_the_activation_is_captured(name: str) -> None:
    net, found = following(RESIDUALS[name])
    after = found["first"]
    assert after.adds
    layer = find_layers(net).layers["first"]
    call, added = capture(net, layer, after, batch())
    assert added is not None
    seen: dict[str, Tensor] = {}

    def watch(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        seen["x"] = inputs[0].detach().clone()

    handle = net.second.register_forward_hook(watch)
    with torch.no_grad():
        out = net(batch())
    handle.remove()
    expected = out if name == "what is added comes later" else seen["x"]
    ours = after(call.output_with(weight_of(net, layer)), added)
    assert torch.allclose(ours.detach(), expected, atol=1e-6)


def test_an_addition_without_activation_is_none() -> None:
    _, found = following(lambda net, x: net.second(net.first(x) + x))
    assert found["first"] == Following()


def test_both_branches_of_a_sum_lead_to_its_activation() -> None:
    _, found = following(lambda net, x: (net.first(x) + net.second(x)).relu())
    assert found["first"].adds
    assert found["second"].adds


def test_a_layer_that_a_batch_does_not_reach_is_named() -> None:
    net = Net(lambda net, x: net.second(x)).eval()
    layer = find_layers(net).layers["first"]
    with pytest.raises(ValueError, match="does not reach layer 'first'"):
        capture(net, layer, Following(), batch())


@pytest.mark.parametrize("count", [1, 6])
def test_settings_of_channels_are_cut_and_those_of_all_are_not(count: int) -> None:
    slopes = torch.linspace(0.1, 0.6, count)
    activation = Activation(F.prelu, (slopes,))
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    for channels in (slice(0, 2), slice(4, 6)):
        assert torch.equal(activation.of(channels)(x[:, channels]), activation(x)[:, channels])


def test_settings_of_each_token_are_no_settings_of_a_linear_layer_s_channels() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.act = nn.Linear(4, 3), nn.PReLU(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.layer(x))

    model = Tokens().eval()
    layers = find_layers(model).layers
    assert find_following(model, layers, torch.randn(2, 3, 4))["layer"].activation is None
    assert find_following(model, layers, torch.randn(2, 4))["layer"].name == "prelu"
