"""Blocks: which there are, what they are made to reproduce, how they are learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import batches
from torch import Tensor, nn

from qubo_rounding import LayerSettings, evaluate, fold_batch_norm, predict, quantise
from qubo_rounding.frozen_grids import FrozenGrid
from qubo_rounding.grid import Grid
from qubo_rounding.layers import bias_of, find_layers, matrix_of, weight_of
from qubo_rounding.relaxed.block_objective import BlockObjective, block_call
from qubo_rounding.relaxed.blocks import Block, find_blocks
from qubo_rounding.relaxed.fisher import fisher_information
from qubo_rounding.relaxed.reconstruction import BlockReconstruction, Distillation
from qubo_rounding.relaxed.sample_store import filled_store
from qubo_rounding.relaxed.softening import RectifiedSigmoid, Relaxation, StraightThrough
from qubo_rounding.solvers import Annealing, Gptq


class Unit(nn.Module):
    """Two convolutions beside a skip where shapes agree."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(inputs, 6, 1), nn.Conv2d(6, outputs, 3, padding=1)
        self.skips = inputs == outputs

    def forward(self, x: Tensor, rate: float = 0.0) -> Tensor:
        y = self.b(F.relu(self.a(F.relu_(x.clone()))))
        return (x + y if self.skips else y) * (1 - rate)


class Blocky(nn.Module):
    """A stem, three units of which two add, a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.units = nn.ModuleList([Unit(4, 4), Unit(4, 5), Unit(5, 5)])
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for unit in self.units:
            x = unit(x, rate=0.25)
        return self.head(x.mean((2, 3)))


def blocky() -> Blocky:
    return Blocky().eval()


def blocks_of(model: nn.Module, names: Any = None) -> list[Block]:
    return find_blocks(model, find_layers(model).layers, batches()[0], names)


def test_residual_modules_and_those_of_their_class_are_blocks() -> None:
    found = blocks_of(blocky())
    assert [(b.name, b.layers) for b in found] == [
        ("stem", ("stem",)),
        *((f"units.{k}", (f"units.{k}.a", f"units.{k}.b")) for k in range(3)),
        ("head", ("head",)),
    ]
    assert found[0].following.name == "relu"
    assert {block.following.name for block in found[1:]} == {"none"}


def test_blocks_can_be_named() -> None:
    found = blocks_of(blocky(), ["units.1"])
    assert [b.name for b in found] == [
        *("stem", "units.0.a", "units.0.b", "units.1", "units.2.a", "units.2.b", "head")
    ]
    assert found[1].following.name == "relu"
    (whole,) = blocks_of(blocky(), [""])
    assert whole.layers == tuple(find_layers(blocky()).layers)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["units.0", "units.0.a"], r"lies in \['units.0', 'units.0.a'\]"),
        (["unit"], "no layer to round in a module 'unit'"),
        (["units"], "'units' cannot be a block: the forward pass does not call it"),
    ],
)
def test_names_that_cannot_be_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        blocks_of(blocky(), names)


def test_a_module_that_takes_tensors_in_a_tuple_is_no_block() -> None:
    """The block's objective would give every sample the tensors of the first."""

    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor, skips: tuple[Tensor]) -> Tensor:
            return self.layer(x) + skips[0]

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unit = Skipping()

        def forward(self, x: Tensor) -> Tensor:
            return self.unit(x.mean((2, 3)).repeat(1, 2)[:, :4], (x.amax((1, 2, 3))[:, None],))

    model = Whole().eval()
    assert [block.name for block in blocks_of(model)] == ["unit.layer"]
    with pytest.raises(ValueError, match="not called with one tensor"):
        blocks_of(model, ["unit"])


@pytest.mark.parametrize("last", [nn.Conv1d(4, 4, 1), nn.Linear(50, 50)])
def test_the_loss_is_a_mean_over_positions_whatever_dimension_they_are(last: nn.Module) -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv1d(4, 4, 1), last)).eval()
    x = torch.randn(6, 4, 50)
    layers = find_layers(model).layers
    (block,) = find_blocks(model, layers, x, ["0"])
    call = block_call(model, block, x)
    store = filled_store(iter([{"input": x, "target": call.output}]), 6, 6, 1e9, "it")
    found = list(layers.values())
    biases = [bias_of(model, layer) for layer in found]
    settings = BlockReconstruction(fisher=False)
    objective = BlockObjective(model, block, found, biases, call, store, settings, 0)
    weights = [1.1 * matrix_of(model, layer) for layer in found]
    shifts = [torch.zeros(layer.g, layer.r) for layer in found]
    channels = 4 if isinstance(last, nn.Conv1d) else 50
    with torch.no_grad():
        for layer, weight in zip(found, weights, strict=True):
            weight_of(model, layer).copy_(layer.weight(weight))
        expected = (model(x) - call.output).square().mean() * channels
    for together in (4, 100):
        objective._together = together
        loss = objective.slopes(weights, shifts, torch.arange(6)).loss
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(objective.loss(weights, shifts, torch.arange(6)), expected)


def test_fisher_information_of_what_does_not_reach_the_answers_is_none() -> None:
    class Branch(Blocky):
        def forward(self, x: Tensor) -> Tensor:
            self.units[1](F.relu(self.stem(x)))
            return self.head(self.units[2](x.new_ones(len(x), 5, 2, 2)).mean((2, 3)))

    model = Branch().eval()
    blocks = blocks_of(model, ["units.1", "units.2"])
    rows = fisher_information(model, blocks, batches(), 1e9, 0).take(slice(0, 2))
    assert not rows["units.1"].any()
    assert bool(rows["units.2"].any())


def test_a_module_called_twice_is_no_block() -> None:
    model = blocky()
    model.units, model.head = nn.ModuleList([model.units[0]] * 2), nn.Linear(4, 4)
    with pytest.raises(ValueError, match="calls it more than once"):
        blocks_of(model, ["units.0"])
    assert "units.0" not in [block.name for block in blocks_of(model)]


def test_a_call_is_that_of_the_pass() -> None:
    model, batch = blocky(), batches()[0]
    block = blocks_of(model)[2]
    call = block_call(model, block, batch)
    assert call.settings == {"rate": 0.25}
    with torch.no_grad():
        before = model.units[0](F.relu(model.stem(batch)), rate=0.25)
        assert torch.equal(call.input, before)
        assert torch.equal(call.output, model.units[1](before, rate=0.25))
    first = block_call(model, blocks_of(model)[0], batch)
    assert torch.equal(first.input, batch)
    assert bool((first.output >= 0).all())


def test_fisher_information_is_the_square_of_likelihood_slopes() -> None:
    model, data = blocky(), batches(2, size=3)
    blocks = blocks_of(model)
    store = fisher_information(model, blocks, data, budget=1e9, seed=5)
    draw = torch.Generator().manual_seed(5)
    at = 0
    for batch in data:
        with torch.no_grad():
            labels = torch.multinomial(
                model(batch).double().softmax(1), 1, generator=draw
            ).flatten()
        for sample, label in zip(batch, labels, strict=True):
            x = F.relu(model.stem(sample[None]))
            x = model.units[0](x, rate=0.25)
            y = model.units[1](x, rate=0.25)
            y.retain_grad()
            logits = model.head(model.units[2](y, rate=0.25).mean((2, 3)))
            F.cross_entropy(logits, label[None]).backward()
            assert y.grad is not None
            row = store.take(slice(at, at + 1))["units.1"]
            assert torch.allclose(row, y.grad.square(), rtol=1e-3, atol=1e-9)
            at += 1


def test_fisher_information_needs_logits() -> None:
    class Dense(Blocky):
        def forward(self, x: Tensor) -> Tensor:
            return self.units[0](F.relu(self.stem(x)))

    model = Dense().eval()
    with pytest.raises(ValueError, match="give fisher=False"):
        fisher_information(model, blocks_of(model)[:1], batches(), budget=1e9, seed=0)


QUICK = BlockReconstruction(iterations=150, lr=2e-2, lam=0.5, normalise=True, batch=8)


def divergence(model: nn.Module, data: list[Tensor], **options: Any) -> tuple[float, Any]:
    result = quantise(
        model,
        data,
        settings=LayerSettings(bits=3, act_bits=options.pop("act_bits", None)),
        **options,
    )
    kl = evaluate(predict(result.model, data), None, predict(model, data)).kl
    assert kl is not None
    return kl, result


@pytest.mark.parametrize(
    "method",
    [
        QUICK,
        BlockReconstruction(**{**vars(QUICK), "fisher": False, "start": Gptq()}),
        BlockReconstruction(**{**vars(QUICK), "blocks": ("",), "divergence": "kl"}),
    ],
    ids=["blocks", "near a start", "whole network"],
)
def test_blocks_do_not_leave_the_network_worse(method: BlockReconstruction) -> None:
    data = batches(4, size=8)
    before, start = divergence(blocky(), data, solver=method.start or Annealing())
    after, result = divergence(blocky(), data, reconstruction=method)
    assert list(result.layers) == list(start.layers)
    if method.divergence == "kl":  # it keeps the levels it had where it finds none better
        assert after <= before * (1 + 1e-4)
    assert all(record.solver == repr(method) for record in result.records)
    for name, layer in result.layers.items():
        weight = result.model.get_submodule(name).weight
        assert torch.equal(weight, find_layers(blocky()).layers[name].weight(layer.weight).float())


def test_blocks_are_judged_on_held_out_data_and_told_once() -> None:
    told: list[Any] = []
    result = quantise(
        blocky(),
        batches(),
        held_out=batches(),
        reconstruction=replace(QUICK, iterations=10),
        settings=LayerSettings(bits=3, bias="keep"),
        on_layer=told.append,
    )
    assert told == result.records
    for record in result.records:
        assert record.held_out == pytest.approx(record.energy, rel=1e-6)
        assert record.held_out_nearest == pytest.approx(record.energy_nearest, rel=1e-6)


def test_activation_steps_are_learned_and_stay_where_they_are_better() -> None:
    data = batches(4, size=8)
    method = BlockReconstruction(**{**vars(QUICK), "step_lr": 1e-2})
    _, before = divergence(blocky(), data, act_bits=4)
    _, after = divergence(blocky(), data, act_bits=4, reconstruction=method)
    steps = [
        {k: v for k, v in r.model.state_dict().items() if k.endswith("scale")}
        for r in (before, after)
    ]
    assert steps[0].keys() == steps[1].keys() != set()
    assert any(not torch.equal(steps[0][key], steps[1][key]) for key in steps[0])
    assert not any(p.requires_grad for n, p in after.model.named_parameters() if "scale" in n)


@pytest.mark.parametrize("relaxation", [RectifiedSigmoid(), StraightThrough()], ids=repr)
def test_blocks_begin_where_refitted_scales_left_the_levels(relaxation: Relaxation) -> None:
    settings = LayerSettings(bits=2, scale_refits=3)
    options = {**vars(QUICK), "iterations": 3, "start": Gptq(), "relaxation": relaxation}
    data = batches(4, size=8)
    start = quantise(blocky(), data, solver=Gptq(), settings=settings)
    moved = 0
    for name, layer in start.layers.items():
        grid = Grid(layer.scale, layer.zero_point, *settings.range_of(2))
        low, high = grid.up_down(matrix_of(blocky(), find_layers(blocky()).layers[name]))
        moved += int(((layer.levels < low) | (layer.levels > high)).sum())
    assert moved > 0  # what used to end in an error
    method = BlockReconstruction(**options)
    result = quantise(blocky(), data, reconstruction=method, settings=settings)
    assert all(record.solver == repr(method) for record in result.records)
    for name, layer in result.layers.items():
        assert torch.equal(layer.scale, start.layers[name].scale)


@pytest.mark.parametrize("granularity", ["channel", "tensor", 3])
def test_scales_are_learned_row_by_row_or_layer_by_layer(granularity: Any) -> None:
    data, settings = batches(4, size=8), LayerSettings(bits=2, granularity=granularity)
    method = Distillation(iterations=40, batch=8, lr=1e-9, step_lr=0.0)
    found = {
        lr: quantise(
            *(blocky(), data),
            reconstruction=replace(method, scale_lr=lr),
            settings=replace(settings, bias="keep"),
        )
        for lr in (0.0, 2e-3)
    }
    kl = {
        lr: evaluate(predict(result.model, data), None, predict(blocky(), data)).kl
        for lr, result in found.items()
    }
    assert kl[2e-3] < 0.95 * kl[0.0]
    for name, before in found[0.0].layers.items():
        after = found[2e-3].layers[name]
        assert torch.equal(before.levels, after.levels)
        factor = after.scale / before.scale
        one_each_row = factor.amax(2) - factor.amin(2)
        assert float(one_each_row.abs().max()) < 1e-12
        assert bool((factor != 1).any())
        assert (float(factor.max() - factor.min()) < 1e-12) == (granularity == "tensor")
        weight = found[2e-3].model.get_submodule(name).weight
        assert torch.equal(weight, find_layers(blocky()).layers[name].weight(after.weight).float())


def test_scales_that_were_given_are_not_learned() -> None:
    grid = FrozenGrid((0.1,), (-8,), 4)
    settings = LayerSettings(grids={"stem": grid})
    with pytest.raises(ValueError, match=r"grids are taken as they are.*scale_lr=0"):
        quantise(blocky(), batches(), reconstruction=Distillation(), settings=settings)


def test_a_run_folder_gives_the_same_bits_again(tmp_path: Path) -> None:
    data = batches(2, size=8)
    method = replace(QUICK, scale_lr=1e-3)
    options = dict(reconstruction=method, settings=LayerSettings(bits=3, act_bits=6))
    whole = quantise(blocky(), data, **options)  # pyright: ignore
    first = quantise(blocky(), data, run=tmp_path, **options)  # pyright: ignore
    (tmp_path / "blocks" / "units.2.safetensors").unlink()
    again = quantise(blocky(), data, run=tmp_path, **options)  # pyright: ignore
    assert not list(tmp_path.rglob("*.checkpoint"))
    for other in (first, again):
        for name, tensor in whole.model.state_dict().items():
            assert torch.equal(tensor, other.model.state_dict()[name]), name


def test_folding_keeps_blocks() -> None:
    folded, _ = fold_batch_norm(blocky(), batches()[0])
    assert [b.name for b in blocks_of(folded)] == [b.name for b in blocks_of(blocky())]
