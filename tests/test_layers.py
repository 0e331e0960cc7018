"""Which layers are found, why others are not, and weights as matrices."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from qubo_rounding.layers import Layer, find_layers, weight_of


def only_layer(module: nn.Module) -> Layer:
    return find_layers(module).layers[""]


@pytest.mark.parametrize(
    ("module", "kind", "g", "r", "d"),
    [
        (nn.Linear(5, 7), "linear", 1, 7, 5),
        (nn.Conv1d(4, 6, 3), "conv", 1, 6, 12),
        (nn.Conv2d(4, 6, (3, 2), groups=2), "conv", 2, 3, 12),
        (nn.Conv2d(8, 8, 5, groups=8), "conv", 8, 1, 25),
        (nn.Conv3d(2, 4, 2), "conv", 1, 4, 16),
        (nn.ConvTranspose1d(4, 6, 3, groups=2), "conv_transpose", 2, 3, 6),
        (nn.ConvTranspose2d(4, 6, (3, 2)), "conv_transpose", 1, 6, 24),
        (nn.ConvTranspose3d(2, 4, 2, groups=2), "conv_transpose", 2, 2, 8),
    ],
)
def test_kinds_and_sizes(module: nn.Module, kind: str, g: int, r: int, d: int) -> None:
    layer = only_layer(module)
    assert (layer.kind, layer.g, layer.r, layer.d) == (kind, g, r, d)
    assert layer.matrix(weight_of(module, layer)).shape == (g, r, d)


@given(
    transposed=st.booleans(),
    groups=st.integers(1, 3),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    kernel=st.lists(st.integers(1, 3), min_size=1, max_size=3),
)
@settings(deadline=None, max_examples=40)
def test_weight_and_matrix_are_inverse(
    transposed: bool, groups: int, inputs: int, outputs: int, kernel: list[int]
) -> None:
    sizes = (inputs, outputs) if transposed else (outputs, inputs)
    shape = (groups * sizes[0], sizes[1], *kernel)
    layer = Layer("x", "conv_transpose" if transposed else "conv", shape, groups, False)
    weight = torch.arange(float(math.prod(shape))).reshape(shape)
    matrix = layer.matrix(weight)
    assert matrix.shape == (layer.g, layer.r, layer.d) == (groups, outputs, matrix.shape[-1])
    assert torch.equal(layer.weight(matrix), weight)
    assert torch.equal(matrix, matrix_by_loops(weight, transposed, groups))


def matrix_by_loops(weight: Tensor, transposed: bool, groups: int) -> Tensor:
    """Row (group, output), column (input of the group, kernel position), one by one."""
    outputs = weight.shape[1] if transposed else weight.shape[0] // groups
    inputs = weight.shape[0] // groups if transposed else weight.shape[1]
    rows = []
    for group in range(groups):
        for o in range(outputs):
            cells = [
                weight[group * inputs + i, o] if transposed else weight[group * outputs + o, i]
                for i in range(inputs)
            ]
            rows.append(torch.cat([cell.flatten() for cell in cells]))
    return torch.stack(rows).reshape(groups, outputs, -1)


def test_a_wrong_shape_is_named() -> None:
    layer = only_layer(nn.Linear(5, 7))
    with pytest.raises(ValueError, match=r"needs shape \(7, 5\), got \(5, 7\)"):
        layer.matrix(torch.zeros(5, 7))
    with pytest.raises(ValueError, match=r"needs shape \(1, 7, 5\)"):
        layer.weight(torch.zeros(7, 5))


class Zoo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU()
        self.attention = nn.MultiheadAttention(4, 2)
        self.table = nn.Embedding(5, 4)
        self.lazy = nn.LazyLinear(3)
        self.complex = nn.Linear(2, 2, dtype=torch.complex64)
        self.parametrized = parametrizations.weight_norm(nn.Linear(2, 2))
        self.empty = nn.Linear(2, 2)
        self.empty.weight = nn.Parameter(torch.zeros(0, 2))
        self.temperature = nn.Parameter(torch.ones(1))


def test_everything_else_is_skipped_with_a_reason() -> None:
    inventory = find_layers(Zoo())
    assert list(inventory.layers) == ["conv", "attention.out_proj"]
    assert not inventory.layers["conv"].has_bias
    reasons = inventory.skipped
    assert "(temperature) stay as they are" in reasons[""]
    assert "BatchNorm2d is neither" in reasons["norm"]
    assert "in_proj_weight" in reasons["attention"]
    assert "Embedding" in reasons["table"]
    assert "not initialised" in reasons["lazy"]
    assert "complex64" in reasons["complex"]
    assert "computed from other parameters" in reasons["parametrized"]
    assert "empty" in reasons["empty"]
    assert "act" not in reasons


def test_a_subclass_is_found_and_a_module_of_another_name_is_not() -> None:
    class Padded(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))

    assert only_layer(Padded(1, 2, 2)).kind == "conv"
    assert find_layers(nn.PReLU()).layers == {}


def test_shared_weights_are_one_layer() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    inventory = find_layers(nn.Sequential(first, nn.ReLU(), second, first))
    assert list(inventory.layers) == ["0"]
    assert inventory.layers["0"].aliases == ("2", "3")
    assert inventory.skipped == {}


def test_a_weight_shared_with_another_use_is_skipped() -> None:
    table, head = nn.Embedding(6, 3), nn.Linear(3, 6)
    head.weight = table.weight
    inventory = find_layers(nn.Sequential(table, head))
    assert inventory.layers == {}
    assert "shared with '0' (Embedding)" in inventory.skipped["1"]


def test_tied_encoder_and_decoder_are_not_one_matrix() -> None:
    down, up = nn.Conv2d(4, 2, 3), nn.ConvTranspose2d(4, 2, 3)
    up.weight = down.weight
    inventory = find_layers(nn.Sequential(down, up))
    assert inventory.layers == {}
    assert set(inventory.skipped) == {"0", "1"}


def test_weight_of_gives_the_parameter_or_says_what_is_missing() -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    layer = find_layers(model).layers["0"]
    assert weight_of(model, layer) is model[0].weight
    for other in (nn.Sequential(nn.Linear(3, 2)), nn.Sequential(), nn.Sequential(nn.ReLU())):
        with pytest.raises(ValueError, match="has no layer '0'"):
            weight_of(other, layer)
