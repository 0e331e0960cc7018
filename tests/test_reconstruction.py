"""Reconstruction of single layers: the loss and its slopes, the curve of eq 25, resumption."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qubo_rounding.calibration import LayerPair
from qubo_rounding.following import Activation, Following
from qubo_rounding.grid import fit_grid
from qubo_rounding.layer_problem import LayerSettings, layer_problem
from qubo_rounding.layers import Layer, find_layers, matrix_of
from qubo_rounding.local_loss import bias_shift, local_problem
from qubo_rounding.network import quantise
from qubo_rounding.passes import Pass
from qubo_rounding.relaxed.checkpoint import Checkpoint
from qubo_rounding.relaxed.layer_objective import Compared, MapObjective, PatchObjective
from qubo_rounding.relaxed.layer_reconstruction import LayerData, reconstruct_layer
from qubo_rounding.relaxed.reconstruction import (
    BlockReconstruction,
    Reconstruction,
    SoftLayer,
    learn,
    minibatch,
)
from qubo_rounding.statistics import collect_grams
from tests import reference_reconstruction as reference
from tests.company import torch_threads

RELU = Following(Activation(F.relu), "relu")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "strided": (nn.Conv2d(3, 4, 3, stride=2, padding=1), (3, 6, 6)),
    "pointwise": (nn.Conv2d(5, 4, 1, bias=False), (5, 3, 3)),
    "grouped": (nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 4, 4)),
    "depthwise": (nn.Conv2d(4, 4, 3, padding="same", groups=4, dilation=2), (4, 5, 5)),
    "depthwise, strided": (nn.Conv2d(4, 4, 5, stride=2, padding=2, groups=4), (4, 7, 7)),
    "depthwise, uneven": (
        nn.Conv2d(4, 4, (3, 2), (1, 2), (2, 0), (2, 1), groups=4, bias=False),
        (4, 5, 6),
    ),
    "one channel": (nn.Conv2d(1, 3, 3, padding=1), (1, 5, 5)),
    "transposed": (nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1), (4, 3, 3)),
    "one dimension": (nn.Conv1d(3, 5, 3), (3, 7)),
    "linear": (nn.Linear(5, 4), (5,)),
    "tokens": (nn.Linear(5, 4), (6, 5)),
}


class Case:
    """A layer, its calls on two batches in the float network and with other inputs beside."""

    def __init__(self, name: str, following: Following = RELU, images: int = 6) -> None:
        torch.manual_seed(0)
        template, shape = LAYERS[name]
        self.module = copy.deepcopy(template).eval()
        for parameter in self.module.parameters():
            parameter.data = torch.randn_like(parameter)
        self.layer: Layer = find_layers(self.module).layers[""]
        self.following = following
        x, x_q = drawn(images, *shape), drawn(images, *shape, seed=1)
        self.x, self.x_q = x, x + 0.1 * x_q
        out = self.module(x)
        self.skips = [0.3 * drawn(*out.shape, seed=s) for s in (2, 3)]
        self.images = images
        self.weight = self.layer.matrix(self.module.weight.detach())
        bias = self.module.bias
        shape = (self.layer.g, self.layer.r)
        self.bias = torch.zeros(shape) if bias is None else bias.detach().reshape(shape)
        self.row_weights = 0.5 + drawn(*shape, seed=4).abs()

    def pairs(self, following: Following | None = None) -> Iterator[LayerPair]:
        adds = (following or self.following).adds
        half = self.images // 2
        for part in (slice(0, half), slice(half, self.images)):
            calls = []
            for inputs in (self.x[part], self.x_q[part]):
                with Pass(self.module, {"": self.layer}, inputs) as one:
                    calls.append(one.advance())
            skips = [skip[part] for skip in self.skips] if adds else [None, None]
            yield LayerPair(*calls, *skips, images=len(self.x[part]))

    @property
    def compared(self) -> Compared:
        return Compared(self.layer, self.following, self.bias, self.row_weights)

    def objective(self, kind: str, positions: int = 10_000, budget: float = 1e9) -> Any:
        if kind == "maps":
            return MapObjective(self.compared, self.pairs(), self.images, budget)
        return PatchObjective(self.compared, self.pairs(), self.images, budget, positions, seed=3)

    def loss(self, weight: Tensor, shift: Tensor, samples: list[int]) -> Tensor:
        """By the module itself, in float64."""
        module = copy.deepcopy(self.module).double()
        skips = [skip.double()[samples] for skip in self.skips]
        with torch.no_grad():
            wanted = module(self.x.double()[samples])
        values = {"weight": self.layer.weight(weight.double())}
        channels = (self.bias + shift).double().flatten()
        given = torch.func.functional_call(module, values, self.x_q.double()[samples]) - by_channel(
            self, module.bias
        )
        given = given + by_channel(self, channels)
        if self.following.adds:
            wanted, given = wanted + skips[0], given + skips[1]
        error = (self.following(wanted) - self.following(given)).square()
        weights = by_channel(self, self.row_weights.double().flatten())
        return (error * weights).sum() / (error.numel() / self.row_weights.numel())


def by_channel(case: Case, values: Tensor | None) -> Tensor:
    if values is None:
        return torch.zeros(())
    return (
        values if case.layer.kind == "linear" else values.reshape(-1, *[1] * len(case.layer.kernel))
    )


@pytest.mark.parametrize("kind", ["maps", "patches"])
@pytest.mark.parametrize("adds", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("name", LAYERS)
def test_losses_and_slopes_are_autograds(name: str, adds: bool, kind: str) -> None:
    case = Case(name, replace(RELU, adds=adds))
    objective = case.objective(kind)
    assert objective.count == case.images
    weight = case.weight + 0.2 * drawn(*case.weight.shape, seed=5)
    shift = 0.1 * drawn(case.layer.g, case.layer.r, seed=6)
    leaves = weight.clone().requires_grad_(), shift.clone().requires_grad_()
    expected = case.loss(*leaves, [5, 0, 2])
    slopes = torch.autograd.grad(expected, leaves)
    samples = torch.tensor([5, 0, 2])
    ours, alone = (f([weight], [shift], samples) for f in (objective.slopes, objective.loss))
    assert float(ours.loss) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(alone) == pytest.approx(float(expected.detach()), rel=1e-5)
    for found, wanted in zip((*ours.weights, *ours.shifts), slopes, strict=True):
        assert torch.allclose(found, wanted.float(), rtol=1e-4, atol=1e-5)


def test_drawn_positions_are_some_of_all() -> None:
    case = Case("strided", Following())
    some, every = case.objective("patches", positions=16), case.objective("patches")
    rows, whole = (o._store.take(slice(0, 6)) for o in (some, every))
    assert rows["target"].shape == (6, 7, 4)  # 27 of 64 columns take 7 of 16 positions
    for sample in range(6):
        places = [
            int((whole["input"][sample] == window).all(dim=1).nonzero()[0])
            for window in rows["input"][sample]
        ]
        assert places == sorted(set(places))
        assert torch.equal(rows["target"][sample], whole["target"][sample, places])


@pytest.mark.parametrize("kind", ["maps", "patches"])
def test_where_samples_lie_changes_no_bit(kind: str) -> None:
    case = Case("grouped", replace(RELU, adds=True))
    weight, shift = case.weight + 0.1, case.bias
    found = [
        case.objective(kind, budget=budget).slopes([weight], [shift], torch.tensor([1, 4]))
        for budget in (0.0, 1e9)
    ]
    assert torch.equal(found[0].weights[0], found[1].weights[0])
    assert torch.equal(found[0].loss, found[1].loss)


# the paper's loss against an independent implementation


def test_the_curve_of_eq_25_is_that_of_naive_loops() -> None:
    case = Case("strided", Following(Activation(F.relu6), "relu6"))
    case.row_weights = torch.ones_like(case.row_weights)
    grid = fit_grid(case.weight, 4, granularity="tensor")
    gram = collect_grams(case.module, [case.x])[""]
    problem = local_problem(case.weight, grid, gram, bias="keep")
    settings = Reconstruction(iterations=40, lr=0.02, lam=0.05, batch=2)
    objective, curve = case.objective("maps"), []
    soft = SoftLayer(problem, grid, settings, None, None)

    class Recording:
        count, extra, loss = objective.count, (), objective.loss

        def slopes(self, *args: Any) -> Any:
            slopes = objective.slopes(*args)
            curve.append(float(slopes.loss))
            return slopes

    learn(Recording(), [soft], settings, seed=7)
    minibatches = [minibatch(6, 2, i, 7).tolist() for i in range(40)]
    floor = case.layer.weight(problem.low.double())
    conv = reference.plain_conv(2, 1, 1)
    weight, bias = case.module.weight.detach().double(), case.module.bias.detach().double()

    def loss_of(soft_weight: Tensor, samples: Any) -> Tensor:
        x, x_q = case.x.double()[samples], case.x_q.double()[samples]
        return reference.reconstruction_loss(
            conv, reference.relu6, weight, soft_weight, bias, x, x_q
        )

    fraction = (case.layer.weight(problem.target) - floor).clamp(0, 1)
    room = case.layer.weight(problem.high - problem.low)
    expected, h = reference.adaround_curve(
        loss_of,
        floor,
        float(grid.scale[0, 0, 0]),
        torch.where(room > 0, fraction, 0.0),
        minibatches,
        lr=0.02,
        lam=0.05,
    )
    assert curve == pytest.approx(expected, rel=2e-3)
    levels = case.layer.weight(soft.learned().levels)
    assert torch.equal(levels[room > 0].double(), (floor + (h >= 0.5))[room > 0])


# minibatches


def test_minibatches_take_every_sample_before_any_comes_again() -> None:
    for epoch in range(2):
        taken = [int(s) for i in range(5) for s in minibatch(11, 2, epoch * 5 + i, seed=1)]
        assert len(set(taken)) == 10
    orders = [[minibatch(11, 2, i, seed).tolist() for i in range(9)] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert minibatch(3, 32, 5, seed=0).tolist() == [0, 1, 2]


# a layer from its data to its levels


def reconstructed(
    case: Case, settings: Reconstruction, *, refit: bool = True, **options: Any
) -> Any:
    grid, gram = fit_grid(case.weight, 3), collect_grams(case.module, [case.x])[""]
    problem = local_problem(case.weight, grid, gram)

    def shift_for(levels: Tensor) -> Tensor:
        return bias_shift(case.weight, grid.dequantize(levels), gram)

    data = LayerData(
        *(case.layer, case.following, case.pairs, case.images, case.bias),
        shift_for if refit else None,
    )
    return reconstruct_layer(data, problem, grid, settings, **{"seed": 1, "budget": 1e9} | options)


QUICK = Reconstruction(iterations=300, lr=2e-2, lam=1.0, normalise=True, batch=3)


@pytest.mark.parametrize("name", ["strided", "depthwise", "tokens"])
@pytest.mark.parametrize("positions", [None, 8], ids=["all", "some"])
def test_reconstruction_beats_nearest_on_its_own_loss(name: str, positions: int | None) -> None:
    solution, shift = reconstructed(Case(name), replace(QUICK, positions=positions))
    assert solution.stats["loss"] < solution.stats["loss_nearest"]
    assert solution.stats["unsettled"] < 0.3
    assert solution.stats["iterations"] == 300
    assert bool(shift.isfinite().all())
    assert bool((shift != 0).any())


@pytest.mark.parametrize("iterations", [1, 30])
def test_levels_that_have_not_settled_are_no_worse_than_nearest(iterations: int) -> None:
    """Inputs far from zero: the shift learned for soft weights is wrong for the levels decided."""
    case = Case("tokens")
    case.x += 10
    settings = replace(QUICK, iterations=iterations, lr=1e-2)
    solution, _ = reconstructed(case, settings)
    assert solution.stats["unsettled"] > 0.3
    assert solution.stats["loss"] <= solution.stats["loss_nearest"]


def test_inputs_without_variance_leave_the_bias_to_carry_all() -> None:
    layer = nn.Linear(16, 8).eval()
    x = torch.full((64, 16), 50.0)
    result = quantise(layer, [x], reconstruction=replace(QUICK, iterations=20, batch=32))
    with torch.no_grad():
        assert float((result.model(x) - layer(x)).abs().max()) < 1e-4


def test_a_symmetric_reconstruction_judges_nearest_with_the_shift_of_float_inputs() -> None:
    model = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 6)).eval()
    x = torch.randn(256, 12, generator=torch.Generator().manual_seed(0)) + 1
    settings = replace(QUICK, iterations=1, asymmetric=False, normalise=False)
    result = quantise(model, [x], reconstruction=settings, settings=LayerSettings(bits=2))
    layer, gram = find_layers(model).layers["2"], collect_grams(model, [x])["2"]
    problem, _ = layer_problem(layer, matrix_of(model, layer), gram, LayerSettings(bits=2))
    nearest = float(problem.energy(problem.nearest()).sum())
    assert result.records[1].stats["loss_nearest"] == pytest.approx(nearest, rel=1e-4)


def test_a_kept_bias_gets_no_shift() -> None:
    _, shift = reconstructed(Case("strided"), QUICK, refit=False)
    assert torch.equal(shift, torch.zeros_like(shift))


def test_symmetric_reconstruction_sees_float_inputs_only() -> None:
    case, other = Case("strided"), Case("strided")
    other.x_q = other.x_q + 5
    symmetric = replace(QUICK, asymmetric=False, iterations=20)
    ours, theirs = reconstructed(case, symmetric), reconstructed(other, symmetric)
    assert torch.equal(ours[0].levels, theirs[0].levels)
    assert ours[0].stats == theirs[0].stats


@pytest.mark.parametrize("positions", [None, 8], ids=["all", "some"])
@pytest.mark.parametrize("stop", [1, 37, 99, 100])
def test_a_run_that_is_cut_off_ends_in_the_same_bits(
    tmp_path: Path, positions: int | None, stop: int
) -> None:
    settings = replace(QUICK, iterations=100, positions=positions)
    whole, shift = reconstructed(Case("strided"), settings)

    class CutOffError(Exception):
        pass

    class Cutting(Checkpoint):
        def keep(self, parts: Any, iterations: int) -> None:
            super().keep(parts, iterations)
            if iterations == stop:
                raise CutOffError

    path = tmp_path / "layers" / "it.checkpoint"
    with pytest.raises(CutOffError):
        reconstructed(Case("strided"), settings, checkpoint=Cutting(path, seconds=0))
    again, shift_again = reconstructed(Case("strided"), settings, checkpoint=Checkpoint(path))
    assert torch.equal(whole.levels, again.levels)
    assert torch.equal(shift, shift_again)
    assert {**whole.stats} == {**again.stats}


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "it.checkpoint"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"it\.checkpoint is damaged"):
        reconstructed(Case("strided"), QUICK, checkpoint=Checkpoint(path))


def test_patches_give_the_same_bits_on_any_number_of_threads() -> None:
    runs = []
    # On fewer than 17 images torch itself convolves otherwise with one thread than with two.
    case = Case("pointwise", images=40)
    for threads in (1, 2):
        with torch_threads(threads):
            runs.append(reconstructed(case, replace(QUICK, positions=64)))
    assert torch.equal(runs[0][0].levels, runs[1][0].levels)
    assert torch.equal(runs[0][1], runs[1][1])


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Reconstruction, {"iterations": 0}, "iterations is 0"),
        (Reconstruction, {"batch": 1.5}, "batch is 1.5"),
        (Reconstruction, {"positions": 0}, "positions is 0"),
        (Reconstruction, {"lr": 0.0}, "give lr > 0"),
        (Reconstruction, {"lam": float("nan")}, "lam nan"),
        (BlockReconstruction, {"drop": 1.5}, "drop is 1.5"),
        (BlockReconstruction, {"step_lr": -1.0}, "step_lr is -1.0"),
        (BlockReconstruction, {"divergence": "l1"}, "'squared' or 'kl'"),
        (BlockReconstruction, {"divergence": "kl"}, "give it blocks"),
    ],
)
def test_settings_out_of_range_are_refused(kind: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_a_loss_that_runs_away_is_told() -> None:
    case = Case("strided")
    case.bias = case.bias.clone().fill_(float("inf"))
    with pytest.raises(ValueError, match="choose a smaller lr"):
        reconstructed(case, replace(QUICK, iterations=3))
