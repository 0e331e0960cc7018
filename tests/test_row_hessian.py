"""Curvature by a layer's outputs: rows with matrices of their own, row weights, Kronecker form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qubo_rounding.layer_problem import LayerSettings, layer_problem
from qubo_rounding.layers import find_layers, matrix_of
from qubo_rounding.qubo import output_curvature, row_hessian
from qubo_rounding.qubo.hessian import task_hessian
from qubo_rounding.qubo.layer_decisions import rounded_network, split_layers
from qubo_rounding.qubo.output_curvature import kronecker_hessian, output_hessians
from qubo_rounding.qubo.row_hessian import row_hessian_problem, row_weights
from qubo_rounding.solvers import Enumeration
from qubo_rounding.statistics import collect_grams
from qubo_rounding.watch import watching
from tests import reference_hessian as reference

CLASSES = 3
KEPT = LayerSettings(bits=3, bias="keep")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labelled(*inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [(x, torch.randint(CLASSES, (len(x),), generator=draw)) for x in inputs]


IMAGES = labelled(normal(2, 2, 5, 5), normal(3, 2, 5, 5, seed=1))
VECTORS = labelled(normal(4, 4), normal(2, 4, seed=1))
SEQUENCES = labelled(normal(2, 3, 4), normal(3, 3, 4, seed=1))


def network(activation: type[nn.Module], *modules: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    for module in modules:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return (
        nn.Sequential(
            nn.Identity(), *modules, activation(), nn.Flatten(), nn.LazyLinear(5), activation()
        )
        .append(nn.Linear(5, CLASSES))
        .double()
        .eval()
    )


CASES = {
    "strided": (nn.Conv2d(2, 3, 3, stride=2, padding=1), IMAGES, 1),
    "grouped": (nn.Conv2d(2, 4, (3, 2), groups=2), IMAGES, 1),
    "depthwise": (nn.Conv2d(2, 2, 3, groups=2, dilation=2), IMAGES, 1),
    "transposed": (nn.ConvTranspose2d(2, 2, 2, stride=2, groups=2), IMAGES, 1),
    "linear": (nn.Linear(4, 3), VECTORS, -1),
    "sequence": (nn.Linear(4, 2), SEQUENCES, -1),
}


def case(name: str, activation: type[nn.Module]) -> tuple[nn.Sequential, list, int]:
    module, data, channels = CASES[name]
    model = network(activation, module)
    model(data[0][0])  # the lazy layer takes its size
    return model.eval(), data, channels


def own_rows(model: nn.Sequential, matrices: Tensor) -> Tensor:
    """(g r, d, d): of each row's matrix over all weights, the part of its own weights."""
    layer = find_layers(model).layers["1"]
    places = layer.matrix(torch.arange(matrices.shape[1]).reshape(layer.shape)).flatten(0, 1)
    return torch.stack([m[at][:, at] for m, at in zip(matrices, places, strict=True)])


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("name", list(CASES))
def test_every_row_has_the_matrix_of_its_own_curvature(name: str, curvature: Any) -> None:
    model, data, channels = case(name, nn.Tanh)
    is_gauss_newton = curvature == "gauss_newton"
    terms = reference.row_terms(model, 1, data, F.cross_entropy, channels, is_gauss_newton)
    matrices = reference.row_matrices(terms)
    expected = own_rows(model, matrices)
    problem = row_hessian_problem(model, "1", data, curvature=curvature)
    assert (problem.g, problem.r) == (len(expected), 1)
    torch.testing.assert_close(problem.gram, expected, atol=1e-15, rtol=1e-9)


@pytest.mark.parametrize("name", list(CASES))
def test_both_curvatures_are_one_where_the_network_behind_is_piecewise_linear(name: str) -> None:
    model, data, _ = case(name, nn.ReLU)
    exact, approximate = (
        row_hessian_problem(model, "1", data, curvature=c).gram for c in ("hessian", "gauss_newton")
    )
    assert float(exact.abs().max()) > 0
    torch.testing.assert_close(exact, approximate, atol=1e-16, rtol=1e-9)


def squared(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs - labels[:, None]).square().sum(1).mean()


def test_where_outputs_do_not_couple_the_rows_are_the_whole_hessian() -> None:
    model, data, _ = case("linear", nn.Tanh)
    problem = row_hessian_problem(model, "6", data, loss=squared)
    expected = task_hessian(model, "6", data, loss=squared) / 2
    torch.testing.assert_close(torch.block_diag(*problem.gram), expected)


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("name", ["strided", "sequence"])
def test_sizes_of_chunks_do_not_matter(
    name: str, curvature: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data, _ = case(name, nn.Tanh)
    together = row_hessian_problem(model, "1", data, curvature=curvature).gram
    monkeypatch.setattr(output_curvature, "TOGETHER", 1)
    monkeypatch.setattr(row_hessian, "CHUNK_ELEMENTS", 40)
    apart = row_hessian_problem(model, "1", data, curvature=curvature).gram
    torch.testing.assert_close(apart, together, atol=1e-16, rtol=1e-9)


class Twice(nn.Module):
    """Calls one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.layer(x).tanh()).tanh())


def test_calls_of_one_layer_add_up() -> None:
    model = Twice().double().eval()
    apart = nn.Sequential(model.layer, nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), model.head)
    apart[2].load_state_dict(model.layer.state_dict())
    apart.double().eval()
    expected = sum(row_hessian_problem(apart, name, VECTORS).gram for name in ("0", "2"))
    found = row_hessian_problem(model, "layer", VECTORS).gram
    torch.testing.assert_close(found, expected)


@torch.no_grad()
@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_rows_do_not_depend_on_the_grad_mode_of_the_caller(curvature: Any) -> None:
    model, data, _ = case("strided", nn.Tanh)
    found = row_weights(model, "1", data, curvature=curvature)
    with torch.enable_grad():
        assert torch.equal(found, row_weights(model, "1", data, curvature=curvature))
    assert float(found.abs().max()) > 0


def test_levels_of_rows_go_back_to_the_layer() -> None:
    model, data, _ = case("grouped", nn.Tanh)
    problem = row_hessian_problem(model, "1", data, settings=KEPT)
    layer = find_layers(model).layers["1"]
    solution = Enumeration().solve(problem)
    levels = split_layers(problem, solution.levels)["1"]
    assert levels.shape == (layer.g, layer.r, layer.d)
    weight = matrix_of(model, layer)
    plain = layer_problem(layer, weight, collect_grams(model, data)["1"], KEPT)[0]
    assert plain.allows(levels)
    rounded = rounded_network(model, problem, solution.levels)
    expected = weight + plain.errors(levels)
    torch.testing.assert_close(layer.matrix(rounded[1].weight.detach()), expected)


@pytest.mark.parametrize("name", list(CASES))
def test_row_weights_are_half_the_mean_curvature(name: str) -> None:
    model, data, channels = case(name, nn.Tanh)
    terms = reference.row_terms(model, 1, data, F.cross_entropy, channels)
    expected = sum(h.sum(1) for h, _ in terms) / len(terms) / 2
    weights = row_weights(model, "1", data)
    layer = find_layers(model).layers["1"]
    assert weights.shape == (layer.g, layer.r)
    torch.testing.assert_close(weights.flatten(), expected)


def output_error(outputs: Tensor, wanted: Tensor) -> Tensor:
    return (outputs - wanted).square().flatten(1).sum(1).mean()


@pytest.mark.parametrize("name", ["strided", "grouped", "transposed"])
def test_where_the_curvature_is_constant_the_local_loss_is_the_task_loss(name: str) -> None:
    model = case(name, nn.Tanh)[0][:2].eval()
    data = [(x, model(x).detach()) for x, _ in IMAGES]  # no first order: the loss is at its minimum
    layer = find_layers(model).layers["1"]
    weight = matrix_of(model, layer)
    local, _ = layer_problem(layer, weight, collect_grams(model, data)["1"], KEPT)
    rows = row_hessian_problem(model, "1", data, loss=output_error, settings=KEPT)
    by_row = rows.energy(rows.nearest())
    weighted = row_weights(model, "1", data, loss=output_error) * local.energy(local.nearest())
    torch.testing.assert_close(weighted.flatten(), by_row.flatten())
    rounded = rounded_network(model, rows, rows.nearest())
    change = reference.mean_loss(rounded, data, output_error)
    assert change == pytest.approx(float(by_row.sum()))


@pytest.mark.parametrize("name", ["linear", "strided", "sequence"])
def test_the_kronecker_form_is_the_hessian(name: str) -> None:
    model, data, _ = case(name, nn.Tanh)
    hessians, inputs = output_hessians(model, "1", data)
    expected = task_hessian(model, "1", data)
    found = kronecker_hessian(hessians, inputs)
    torch.testing.assert_close(found, expected, atol=1e-15, rtol=1e-9)
    if name == "linear":
        torch.testing.assert_close(kronecker_hessian(hessians[:, 0, :, 0], inputs[:, 0]), found)
    by_hand = sum(
        torch.kron(h[p, :, q], torch.outer(x[p], x[q]))
        for h, x in zip(hessians, inputs, strict=True)
        for p in range(len(x))
        for q in range(len(x))
    )
    torch.testing.assert_close(found, by_hand / len(inputs))


def test_the_kronecker_form_of_a_transposed_convolution_is_in_matrix_order() -> None:
    model = network(nn.Tanh, nn.ConvTranspose2d(2, 2, 2, stride=2))
    model(IMAGES[0][0])
    found = kronecker_hessian(*output_hessians(model, "1", IMAGES))
    torch.testing.assert_close(found, task_hessian(model, "1", IMAGES), atol=1e-15, rtol=1e-9)


def test_the_kronecker_form_of_the_local_loss_repeats_the_gram() -> None:
    model, data, _ = case("strided", nn.Tanh)
    moment = collect_grams(model, data)["1"].second_moment[0]
    hessians, inputs = output_hessians(model, "1", data)
    n, p, r = hessians.shape[:3]
    error = 2 * torch.eye(p * r, dtype=torch.float64).reshape(1, p, r, p, r)
    expected = torch.block_diag(*[2 * p * moment] * r)
    torch.testing.assert_close(kronecker_hessian(error.repeat(n, 1, 1, 1, 1), inputs), expected)


@pytest.mark.parametrize(
    ("hessians", "inputs"),
    [((2, 3, 3), (3, 4)), ((2, 3, 4), (2, 5)), ((2, 3, 3), (2, 1, 5)), ((0, 3, 3), (0, 5))],
)
def test_kronecker_factors_that_do_not_fit_are_refused(hessians: tuple, inputs: tuple) -> None:
    with pytest.raises(ValueError, match=r"do not fit; give \(n, r, r\)"):
        kronecker_hessian(torch.zeros(hessians), torch.zeros(inputs))


@pytest.mark.parametrize("name", ["grouped", "depthwise"])
def test_several_groups_have_no_single_kronecker_form(name: str) -> None:
    model, data, _ = case(name, nn.Tanh)
    with pytest.raises(ValueError, match="groups and is called 1 times"):
        output_hessians(model, "1", data)
    with pytest.raises(ValueError, match="called 2 times"):
        output_hessians(Twice().double().eval(), "layer", VECTORS)


def test_what_cannot_be_is_refused() -> None:
    model, data, _ = case("linear", nn.Tanh)
    with pytest.raises(ValueError, match=r"need 1152 bytes.*allows 1000\. .*row_weights"):
        row_hessian_problem(model, "1", data, memory=1000)
    with pytest.raises(ValueError, match="'hessian' or 'gauss_newton'"):
        row_weights(model, "1", data, curvature="fisher")  # pyright: ignore
    with pytest.raises(ValueError, match="keep"):
        row_hessian_problem(model, "1", data, settings=LayerSettings())
    for curvature in ("hessian", "gauss_newton"):
        with pytest.raises(ValueError, match="outputs are not finite; check"):
            row_weights(model, "1", [(x / 0, y) for x, y in data], curvature=curvature)
    with watching(time_limit=1e-9), pytest.raises(TimeoutError, match="1 steps before the last"):
        row_weights(model, "1", data)
    mixing = nn.Sequential(nn.Flatten(0, 1), nn.Linear(4, CLASSES), nn.Unflatten(0, (-1, 3)))
    mixing.append(nn.Flatten()).double().eval()
    with pytest.raises(ValueError, match=r"gives \(6, 3\) for 2 samples"):
        row_weights(mixing, "1", SEQUENCES)
