"""Hessians of the task loss against torch's own, and what becomes of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from interrupted_loss import Interrupted
from torch import Tensor, nn

from qubo_rounding.grid import MinMax, OutputMSE, fit_grid
from qubo_rounding.layer_problem import LayerSettings
from qubo_rounding.layers import find_layers, matrix_of, weight_of
from qubo_rounding.problem import ProblemError, RoundingProblem
from qubo_rounding.qubo import hessian, hessian_cost
from qubo_rounding.qubo.hessian import task_cost, task_hessian, task_problem
from qubo_rounding.qubo.layer_decisions import rounded_network, split_layers
from qubo_rounding.watch import watching
from tests import reference_hessian as reference

CLASSES = 3


def convolutions(activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """Grouped, depthwise, transposed and linear layers; 96 weights."""
    torch.manual_seed(0)
    return (
        nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2),
            activation(),
            nn.Conv2d(4, 4, 2, groups=4),
            activation(),
            nn.ConvTranspose2d(4, 4, 2, groups=2),
            activation(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(4, CLASSES),
        )
        .double()
        .eval()
    )


def perceptron(activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), activation(), nn.Linear(5, CLASSES)).double().eval()


def batches(*shape: int, sizes: tuple[int, ...] = (3, 5, 2)) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(n, *shape, generator=draw, dtype=torch.float64),
            torch.randint(CLASSES, (n,), generator=draw),
        )
        for n in sizes
    ]


IMAGES, VECTORS = batches(2, 5, 5), batches(4)


def focal(outputs: Tensor, labels: Tensor) -> Tensor:
    """A loss whose Hessian by the outputs is neither diagonal nor constant."""
    right = outputs.softmax(1)[torch.arange(len(labels)), labels]
    return -((1 - right) ** 2 * right.log()).mean()


EVERY = ["0", "2", "4", "8"]
LAYERS = [["0"], ["2"], ["4"], ["8"], ["8", "0"], EVERY]


@cache
def expected(twin: Callable[..., Tensor], loss: Any) -> Tensor:
    """A curvature by all layers of `convolutions`, by torch; weights as PyTorch keeps them."""
    return twin(convolutions(), EVERY, IMAGES, loss)


def in_matrix_order(names: list[str], matrix: Tensor) -> Tensor:
    """Of a matrix over all layers, those of some; each reordered to (g, r, d) row-major."""
    order, done = {}, 0
    for name, layer in find_layers(convolutions()).layers.items():
        n = layer.g * layer.r * layer.d
        order[name] = done + layer.matrix(torch.arange(n).reshape(layer.shape)).flatten()
        done += n
    at = torch.cat([order[name] for name in names])
    return matrix[at][:, at]


@pytest.mark.parametrize("loss", [F.cross_entropy, focal])
@pytest.mark.parametrize("names", LAYERS, ids="+".join)
def test_the_hessian_is_the_full_one(names: list[str], loss: Any) -> None:
    found = task_hessian(convolutions(), names, IMAGES, loss=loss)
    whole = in_matrix_order(names, expected(reference.task_hessian, loss))
    torch.testing.assert_close(found, whole, atol=1e-14, rtol=0)
    assert torch.equal(found, found.T)


@pytest.mark.parametrize("loss", [F.cross_entropy, focal])
@pytest.mark.parametrize("names", LAYERS, ids="+".join)
def test_gauss_newton_is_the_jacobian_around_the_hessian_of_the_loss(
    names: list[str], loss: Any
) -> None:
    found = task_hessian(convolutions(), names, IMAGES, loss=loss, curvature="gauss_newton")
    whole = in_matrix_order(names, expected(reference.gauss_newton, loss))
    torch.testing.assert_close(found, whole, atol=1e-14, rtol=0)


def test_gauss_newton_of_a_convex_loss_is_positive_semidefinite_where_the_hessian_is_not() -> None:
    model, names = convolutions(), EVERY
    for curvature, definite in (("hessian", False), ("gauss_newton", True)):
        problem = task_problem(model, names, IMAGES, curvature=curvature)
        values = torch.linalg.eigvalsh(problem.gram[0])
        assert (float(values[0]) > -1e-14 * float(values[-1])) == definite


def test_gauss_newton_is_the_hessian_of_one_layer_of_a_piecewise_linear_network() -> None:
    model = convolutions(nn.ReLU6)
    for names in LAYERS[:4]:
        exact, approximate = (
            task_hessian(model, names, IMAGES, curvature=c) for c in ("hessian", "gauss_newton")
        )
        assert float(exact.abs().max()) > 1e-3
        torch.testing.assert_close(exact, approximate, atol=1e-15, rtol=0)


def test_layers_multiply_each_other_and_gauss_newton_leaves_that_out() -> None:
    model = perceptron(nn.ReLU)
    exact, approximate = (
        task_hessian(model, ["0", "2"], VECTORS, curvature=c) for c in ("hessian", "gauss_newton")
    )
    n = model[0].weight.numel()
    for block in (slice(0, n), slice(n, None)):
        torch.testing.assert_close(exact[block, block], approximate[block, block])
    assert float((exact - approximate)[:n, n:].abs().max()) > 1e-2


def test_a_tied_weight_varies_wherever_it_is_used() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).tanh())

    torch.manual_seed(0)
    model, data = Tied().double().eval(), batches(3)
    whole = reference.task_hessian(model, ["first"], data, F.cross_entropy)
    torch.testing.assert_close(task_hessian(model, "first", data), whole)


def test_a_single_module_and_integer_inputs_will_do() -> None:
    torch.manual_seed(0)
    alone = nn.Linear(4, CLASSES).double().eval()
    whole = reference.task_hessian(alone, [""], VECTORS, F.cross_entropy)
    torch.testing.assert_close(task_hessian(alone, "", VECTORS), whole)
    words = nn.Sequential(nn.Embedding(6, 4), alone, nn.Flatten()).double().eval()
    data = [(torch.tensor([[0], [5], [2]]), torch.tensor([0, 1, 2]))]
    whole = reference.task_hessian(words, ["1"], data, F.cross_entropy)
    torch.testing.assert_close(task_hessian(words, "1", data), whole)


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_a_loss_that_does_not_bend_has_no_curvature(curvature: Any) -> None:
    model = perceptron()
    found = task_hessian(model, "2", VECTORS, loss=lambda z, y: z.mean(), curvature=curvature)
    assert not found.any()


@torch.no_grad()
def test_derivatives_do_not_depend_on_the_grad_mode_of_the_caller() -> None:
    found = task_problem(convolutions(), EVERY, IMAGES, gradient=True)
    with torch.enable_grad():
        whole = task_problem(convolutions(), EVERY, IMAGES, gradient=True)
    assert found.linear is not None
    assert whole.linear is not None
    assert torch.equal(found.gram, whole.gram)
    assert torch.equal(found.linear, whole.linear)


def test_inputs_follow_the_dtype_of_the_network() -> None:
    single = [(x.float(), y) for x, y in VECTORS]
    exact = task_hessian(perceptron(), "0", VECTORS)
    assert not torch.equal(task_hessian(perceptron(), "0", single), exact)
    rounded = task_hessian(perceptron().float(), "0", VECTORS)
    assert rounded.dtype == torch.float64
    torch.testing.assert_close(rounded, exact, atol=1e-6, rtol=1e-5)


def test_the_problem_is_half_the_hessian_with_the_gradient_on_request() -> None:
    model, names = convolutions(), ["8", "0"]
    plain = task_problem(model, names, IMAGES)
    full = task_problem(model, names, IMAGES, gradient=True)
    h = in_matrix_order(names, expected(reference.task_hessian, F.cross_entropy))
    g = reference.task_gradient(model, names, IMAGES, F.cross_entropy)
    assert plain.linear is None
    assert full.linear is not None
    assert (plain.g, plain.r, plain.d) == (1, 1, len(g))
    for problem in (plain, full):
        torch.testing.assert_close(problem.gram[0], h / 2)
    torch.testing.assert_close(full.linear[0, 0], g)


def test_the_energy_is_the_change_of_the_loss_up_to_third_order() -> None:
    model = perceptron()
    problem = task_problem(model, ["0", "2"], VECTORS, gradient=True)
    before = reference.mean_loss(model, VECTORS, F.cross_entropy)
    change = torch.randn(problem.d, generator=torch.Generator().manual_seed(2)).double()
    misses = []
    for size in (0.02, 0.01, 0.005):
        moved = problem.target + size * change / problem.scale
        rounded = rounded_network(model, problem, moved)
        after = reference.mean_loss(rounded, VECTORS, F.cross_entropy)
        misses.append(after - before - float(problem.energy(moved)))
    assert misses[0] / misses[1] == pytest.approx(8, rel=0.2)
    assert misses[1] / misses[2] == pytest.approx(8, rel=0.1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["channel", "tensor", 3])
def test_every_layer_keeps_its_own_grid(symmetric: bool, granularity: Any) -> None:
    model, names = convolutions(), ["4", "8", "0"]
    settings = LayerSettings(
        bits=3,
        layer_bits={"0": 5},
        symmetric=symmetric,
        granularity=granularity,
        range_rule=MinMax(),
        bias="keep",
    )
    problem = task_problem(model, names, IMAGES, settings=settings)
    levels = split_layers(problem, problem.nearest())
    rounded = rounded_network(model, problem, problem.nearest())
    assert list(levels) == names
    for name in names:
        layer = find_layers(model).layers[name]
        weight = matrix_of(model, layer)
        bits = 5 if name == "0" else 3
        grid = fit_grid(weight, bits, symmetric=symmetric, granularity=granularity, rule=MinMax())
        assert torch.equal(levels[name], grid.quantize(weight))
        on_grid = layer.weight(grid.dequantize(levels[name]))
        torch.testing.assert_close(weight_of(rounded, layer).detach(), on_grid)
    assert torch.equal(rounded[2].weight, model[2].weight)
    assert [note["bits"] for note in problem.meta["layers"]] == [3, 3, 5]


def test_free_candidates_allow_the_whole_grid() -> None:
    settings = LayerSettings(bits=3, candidates="free", bias="keep")
    problem = task_problem(perceptron(), "0", VECTORS, settings=settings)
    assert (int(problem.low.max()), int(problem.high.min())) == (-4, 3)


def test_a_saved_problem_still_knows_its_layers(tmp_path: Path) -> None:
    model = convolutions()
    problem = task_problem(model, ["8", "0"], IMAGES, loss=focal, curvature="gauss_newton")
    problem.save(tmp_path / "joint.npz")
    loaded = RoundingProblem.load(tmp_path / "joint.npz")
    assert loaded.meta == problem.meta
    assert loaded.meta["loss"] == "focal"
    assert loaded.meta["images"] == 10
    shapes = {name: tuple(part.shape) for name, part in split_layers(loaded, loaded.low).items()}
    assert shapes == {"8": (1, CLASSES, 4), "0": (2, 2, 9)}


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_columns_together_or_apart_differ_by_rounding_only(
    curvature: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, names = convolutions(), ["8", "0"]
    alone = task_hessian(model, names, IMAGES, curvature=curvature, chunk=1)
    for chunk in (7, 32, None):
        found = task_hessian(model, names, IMAGES, curvature=curvature, chunk=chunk)
        torch.testing.assert_close(found, alone, atol=1e-15, rtol=1e-10)
    monkeypatch.setattr(hessian, "BLOCK", 10)
    found = task_hessian(model, names, IMAGES, curvature=curvature, chunk=1)
    assert torch.equal(found, alone)


def test_an_interrupted_hessian_goes_on_where_it_was_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hessian, "BLOCK", 10)
    model, names = perceptron(), ["0", "2"]
    whole = task_hessian(model, names, VECTORS)
    uninterrupted = Interrupted()
    task_hessian(model, names, VECTORS, loss=uninterrupted, folder=tmp_path / "whole")
    assert len(list((tmp_path / "whole").iterdir())) == 4
    with pytest.raises(KeyboardInterrupt):
        task_hessian(model, names, VECTORS, loss=Interrupted(at=10), folder=tmp_path / "parts")
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "parts").iterdir()}
    assert 0 < len(kept) < 4
    resumed = Interrupted()
    found = task_hessian(model, names, VECTORS, loss=resumed, folder=tmp_path / "parts")
    assert torch.equal(found, whole)
    assert uninterrupted.calls - resumed.calls == len(kept) * len(VECTORS)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


def test_one_folder_serves_every_grid(tmp_path: Path) -> None:
    model = perceptron()
    first = task_problem(model, "0", VECTORS, folder=tmp_path)
    finer = task_problem(
        model, "0", VECTORS, folder=tmp_path, settings=LayerSettings(bits=8, bias="keep")
    )
    assert torch.equal(first.gram, finer.gram)
    assert not torch.equal(first.scale, finer.scale)


def other_weights(model: nn.Sequential) -> dict[str, Any]:
    model[2].weight.data[0, 0] += 1e-9
    return {}


CHANGES: dict[str, Callable[[nn.Sequential], dict[str, Any]]] = {
    "network": other_weights,
    "data": lambda model: {"loader": VECTORS[:2]},
    "layers": lambda model: {"layers": "2"},
    "loss": lambda model: {"loss": focal},
    "curvature": lambda model: {"curvature": "gauss_newton"},
    "chunk": lambda model: {"chunk": 3},
}


@pytest.mark.parametrize("what", list(CHANGES))
def test_the_folder_of_another_hessian_is_refused(what: str, tmp_path: Path) -> None:
    model = perceptron()
    given = {"layers": "0", "loader": VECTORS, "folder": tmp_path}
    task_hessian(model, **given)
    changed = given | CHANGES[what](model)
    with pytest.raises(ValueError, match=f"another Hessian.*{what}.*Give a new folder"):
        task_hessian(model, **changed)


def test_the_value_of_the_loss_tells_two_of_one_name_apart(tmp_path: Path) -> None:
    model = perceptron()
    task_hessian(model, "0", VECTORS, loss=nn.CrossEntropyLoss(), folder=tmp_path)
    smoothed = nn.CrossEntropyLoss(label_smoothing=0.1)
    with pytest.raises(ValueError, match=r"another Hessian.*loss"):
        task_hessian(model, "0", VECTORS, loss=smoothed, folder=tmp_path)


def test_folders_of_something_else_and_damaged_files_are_refused(tmp_path: Path) -> None:
    model = perceptron()
    (tmp_path / ".part-000000.77.safetensors").write_text("left by a killed run")
    task_hessian(model, "0", VECTORS, folder=tmp_path)
    block = tmp_path / "part-000000.safetensors"
    block.write_bytes(block.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"damaged.*delete it"):
        task_hessian(model, "0", VECTORS, folder=tmp_path)
    block.unlink()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt.*empty"):
        task_hessian(model, "0", VECTORS, folder=tmp_path)


def test_a_time_limit_ends_it_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hessian, "BLOCK", 10)
    model, names = perceptron(), ["0", "2"]
    refusal = pytest.raises(TimeoutError, match=r"3 steps before the last.*folder")
    with watching(time_limit=1e-9), refusal:
        task_hessian(model, names, VECTORS, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    resumed = task_hessian(model, names, VECTORS, folder=tmp_path)
    assert torch.equal(resumed, task_hessian(model, names, VECTORS))


def test_what_it_takes_is_announced_and_too_much_is_refused(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    model, d = perceptron(), 20
    cost = task_cost(model, "0", VECTORS, chunk=5)
    assert (cost.columns, cost.chunk) == (d, 5)
    assert cost.memory > 24 * d * d
    assert cost.seconds > 0
    with caplog.at_level(logging.INFO):
        task_hessian(model, "0", VECTORS, folder=tmp_path)
        task_hessian(model, "0", VECTORS, folder=tmp_path)
    fresh, resumed = (record.getMessage() for record in caplog.records)
    assert "hessian of 0: 20 columns" in fresh
    assert "0 blocks" in fresh
    assert "1 blocks of 32 are kept" in resumed
    with pytest.raises(ValueError, match=f"needs {cost.memory} bytes.*allows 9000.*smaller") as no:
        task_problem(model, "0", VECTORS, chunk=5, memory=9000)
    assert "6 x" in str(no.value)


def test_more_columns_together_take_more_memory_and_large_activations_fewer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, names = convolutions(), EVERY
    costs = [task_cost(model, names, IMAGES, chunk=chunk) for chunk in (1, 2, 32)]
    assert costs[0].memory < costs[1].memory < costs[2].memory
    assert task_cost(model, names, IMAGES).chunk == 32
    monkeypatch.setattr(hessian_cost, "TOGETHER_BYTES", costs[1].memory - costs[0].memory)
    assert task_cost(model, names, IMAGES).chunk == 1


class Hidden(nn.Module):
    """Has a layer that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, CLASSES), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def nan_in(data: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    return [(torch.full_like(x, float("nan")), y) for x, y in data]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layers": "1"}, r"layers are \['1'\].*at least one of \['0', '2'\]"),
        ({"layers": []}, "at least one"),
        ({"layers": ["0", "0"]}, "each once"),
        ({"model": perceptron().train()}, "training mode"),
        ({"model": Hidden().double().eval(), "layers": "unused"}, "does not reach"),
        ({"loader": []}, "no batch"),
        ({"loader": [VECTORS[0][0]]}, "Batch 0.*inputs, labels"),
        ({"loader": [(VECTORS[0][0], None)]}, "Batch 0 has no labels"),
        ({"loader": nan_in(VECTORS)}, "not finite in columns 0 to 19.*check"),
        ({"loss": lambda z, y: z.sum(1)}, r"loss gives \(3,\).*mean"),
        ({"loss": lambda z, y: 1.0}, "loss gives float"),
        ({"model": nn.LSTM(4, 2).double().eval()}, "at least one of"),
        ({"curvature": "fisher"}, "'hessian' or 'gauss_newton'"),
        ({"chunk": 0}, "chunk is 0; give 1 to 32"),
        ({"chunk": 33}, "chunk is 33"),
        ({"settings": LayerSettings()}, "bias is 'refit'.*keep"),
        ({"settings": LayerSettings(bias="keep", range_rule=OutputMSE())}, "OutputMSE.*WeightMSE"),
        ({"settings": LayerSettings(bias="keep", candidates="all")}, "'up_down' or 'free'"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], message: str) -> None:
    given = {"model": perceptron(), "layers": "0", "loader": VECTORS} | wrong
    with pytest.raises(ValueError, match=message):
        task_problem(**given)


def test_a_network_with_several_outputs_is_refused() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.layer(x), x

    with pytest.raises(ValueError, match="returns a tuple"):
        task_problem(Two().double().eval(), "layer", VECTORS)


def test_values_and_networks_of_another_shape_are_refused() -> None:
    model = perceptron()
    problem = task_problem(model, "0", VECTORS)
    with pytest.raises(ProblemError, match=r"give \(\.\.\., g, r, d\)"):
        split_layers(problem, problem.low[..., 1:])
    with pytest.raises(ProblemError, match=r"give \(\.\.\., g, r, d\)"):
        rounded_network(model, problem, problem.low[..., 1:])
    joint = replace(problem, meta={"layers": [{"name": "0", "shape": [1, 5, 8]}]})
    with pytest.raises(ProblemError, match="tells of 40 weights, but it has 20"):
        split_layers(joint, joint.low)
    bare = RoundingProblem(problem.gram, problem.target, problem.scale, problem.low, problem.high)
    with pytest.raises(ProblemError, match="names no layers"):
        split_layers(bare, bare.low)
    with pytest.raises(ValueError, match="no layer '0'"):
        rounded_network(Hidden(), problem, problem.low)
