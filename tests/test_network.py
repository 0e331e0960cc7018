"""Rounding whole networks: tiny ones, every layer's output measured beside what is recorded."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from company import torch_threads
from networks import LAYERS, batches, residual
from torch import Tensor, nn

from qubo_rounding.batch_norm import fold_batch_norm
from qubo_rounding.layer_problem import LayerSettings
from qubo_rounding.network import QuantisedNetwork, problems, quantise
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.solution import Solution
from qubo_rounding.solvers import (
    Annealing,
    Descent,
    Enumeration,
    FirstThatAccepts,
    Nearest,
    RefusedError,
    Solver,
    Stochastic,
)
from qubo_rounding.statistics import collect_grams

Bias = Literal["refit", "keep"]
MODES = ("independent", "sequential")
KEEP = LayerSettings(bias="keep")
SOLVER = Descent(start=Nearest())


@pytest.fixture(autouse=True)
def no_pass_is_left() -> Iterator[None]:
    yield
    assert "forward pass" not in [thread.name for thread in threading.enumerate()]


def rounded(model: nn.Module | None = None, **options: Any) -> QuantisedNetwork:
    given = {"solver": SOLVER, "settings": LayerSettings(bits=3)} | options
    return quantise(model or residual(), given.pop("loader", batches()), **given)


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def traffic(model: nn.Module, data: list[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and output of every layer on all the data, in float64."""
    model, seen = copy.deepcopy(model).double(), {name: ([], []) for name in LAYERS}

    def record(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            seen[name][0].append(args[0])
            seen[name][1].append(output)

        return hook

    for name in LAYERS:
        model.get_submodule(name).register_forward_hook(record(name))
    with torch.no_grad():
        for batch in data:
            model(batch.double())
    return {name: (torch.cat(x), torch.cat(y)) for name, (x, y) in seen.items()}


def output_errors(
    model: nn.Module, result: QuantisedNetwork, mode: str, data: list[Tensor]
) -> dict[str, Tensor]:
    """(channels, n) change of every layer's output: on float inputs, or in place."""
    folded, _ = fold_batch_norm(model, data[0])
    before, after = traffic(folded, data), traffic(result.model, data)
    errors = {}
    for name in LAYERS:
        x, y = before[name]
        layer = copy.deepcopy(result.model.get_submodule(name)).double()
        with torch.no_grad():
            y_rounded = layer(x) if mode == "independent" else after[name][1]
        errors[name] = (y_rounded - y).transpose(0, 1).flatten(1)
    return errors


def measured(errors: dict[str, Tensor]) -> list[float]:
    return [float(error.square().mean(1).sum()) for error in errors.values()]


# what comes out


@pytest.mark.parametrize("mode", MODES)
def test_the_input_model_is_untouched_bit_for_bit(mode: Any) -> None:
    model = residual()
    before = copy.deepcopy(model)
    result = rounded(model, calibration=mode)
    assert same_bits(model, before)
    assert model.stem.bias is None
    assert not same_bits(result.model, fold_batch_norm(model, batches()[0])[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bias", ["refit", "keep"])
@pytest.mark.parametrize("bits", [3, 8])
def test_recorded_energies_are_the_measured_output_errors(mode: Any, bias: Bias, bits: int) -> None:
    model, data, held_out = residual(), batches(3), batches(2, seed=1)
    settings = LayerSettings(bits=bits, bias=bias)
    result = rounded(model, loader=data, settings=settings, calibration=mode, held_out=held_out)
    here = output_errors(model, result, mode, data)
    there = output_errors(model, result, mode, held_out)
    assert [r.name for r in result.records] == list(result.layers) == LAYERS
    assert [r.energy for r in result.records] == pytest.approx(measured(here), rel=1e-4)
    assert [r.held_out for r in result.records] == pytest.approx(measured(there), rel=1e-4)
    if bias == "refit":
        for error in here.values():
            assert float(error.mean(1).abs().max()) < 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_nearest_s_energies_are_those_of_a_network_rounded_by_nearest(mode: Any) -> None:
    one = dict(layers=["stem"], calibration=mode, held_out=batches(seed=1))
    [ours], [nearest] = rounded(**one).records, rounded(solver=Nearest(), **one).records
    assert (ours.energy_nearest, ours.held_out_nearest) == (nearest.energy, nearest.held_out)
    assert (nearest.energy, nearest.flips) == (nearest.energy_nearest, 0)
    assert ours.energy < ours.energy_nearest
    assert ours.flips > 0


@pytest.mark.parametrize("mode", MODES)
def test_every_rounded_weight_lies_on_its_grid_beside_the_float_one(mode: Any) -> None:
    model = residual()
    result = rounded(model, calibration=mode)
    folded, _ = fold_batch_norm(model, batches()[0])
    for name, layer in result.layers.items():
        weight = result.model.get_submodule(name).weight.detach().reshape(layer.weight.shape)
        assert torch.equal(weight, layer.weight.float())
        assert -4 <= int(layer.levels.min()) <= int(layer.levels.max()) <= 3
        target = folded.get_submodule(name).weight.detach().reshape(weight.shape) / layer.scale
        inside = (target > -4) & (target < 3)
        assert bool(((layer.levels - target).abs()[inside] < 1).all())
        assert layer.record.energy <= layer.record.energy_nearest


def test_sequential_nearest_is_plain_nearest_rounding() -> None:
    plain, walked = (rounded(solver=Nearest(), settings=KEEP, calibration=mode) for mode in MODES)
    assert same_bits(plain.model, walked.model)
    folded, _ = fold_batch_norm(residual(), batches()[0])
    for name, layer in walked.layers.items():
        target = folded.get_submodule(name).weight.detach().reshape(layer.levels.shape)
        nearest = (target.double() / layer.scale).round().clamp(-8, 7)
        assert torch.equal(nearest, layer.levels.double())


@pytest.mark.parametrize("mode", MODES)
def test_kept_biases_stay_bit_for_bit_and_none_appears(mode: Any) -> None:
    result = rounded(settings=KEEP, calibration=mode)
    folded, _ = fold_batch_norm(residual(), batches()[0])
    assert result.model.down.bias is None
    for name in ("stem", "depthwise", "pointwise", "head"):
        ours, theirs = (m.get_submodule(name).bias for m in (result.model, folded))
        assert torch.equal(ours, theirs)


def test_a_layer_without_bias_gets_one_for_refitting() -> None:
    result = rounded()
    assert torch.equal(result.model.down.bias, result.layers["down"].bias_shift.flatten().float())
    assert bool(result.model.down.bias.any())


# which layers


def test_bits_of_single_layers() -> None:
    result = rounded(settings=LayerSettings(bits=2, layer_bits={"head": 8}))
    assert {r.name: r.bits for r in result.records} == dict.fromkeys(LAYERS, 2) | {"head": 8}
    assert int(result.layers["head"].levels.max()) > 1


def test_layers_left_out_stay_as_they_are() -> None:
    folded, _ = fold_batch_norm(residual(), batches()[0])
    chosen, skipping = rounded(layers=["stem", "head"], skip=["stem"]), rounded(skip=["head"])
    assert list(chosen.layers) == ["head"]
    assert list(skipping.layers) == LAYERS[:-1]
    assert torch.equal(chosen.model.stem.weight, folded.stem.weight)
    assert torch.equal(skipping.model.head.weight, folded.head.weight)
    assert skipping.skipped == {"head": "left out by the caller"}


def test_a_layer_is_rounded_alike_whichever_others_are() -> None:
    options = dict(solver=Stochastic(draws=3), calibration="independent")
    alone, together = rounded(layers=["down"], **options), rounded(**options)
    assert torch.equal(alone.layers["down"].levels, together.layers["down"].levels)


@pytest.mark.parametrize(
    "options",
    [
        {"layers": ["stem", "tail"]},
        {"skip": ["tail"]},
        {"settings": LayerSettings(layer_bits={"tail": 8})},
    ],
)
def test_an_unknown_name_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"no layers \['tail'\].*it has \['stem'"):
        rounded(**options)


@pytest.mark.parametrize("options", [{"layers": []}, {"skip": LAYERS}])
def test_nothing_to_round_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="no layer left"):
        rounded(**options)


class Detached(nn.Module):
    """One layer that the data never reach."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


@pytest.mark.parametrize("mode", MODES)
def test_a_layer_never_reached_is_skipped(mode: Any) -> None:
    data = [torch.randn(8, 3, generator=torch.Generator().manual_seed(0))]
    result = rounded(Detached().eval(), loader=data, calibration=mode)
    assert list(result.layers) == ["used"]
    assert result.skipped == {"unused": "the first batch does not reach it"}
    with pytest.raises(ValueError, match="reaches none of the layers"):
        rounded(Detached().eval(), loader=data, calibration=mode, layers=["unused"])


@pytest.mark.parametrize("mode", MODES)
def test_a_single_layer_is_a_network(mode: Any) -> None:
    data = [torch.randn(8, 3, generator=torch.Generator().manual_seed(0))]
    result = rounded(nn.Linear(3, 2, bias=False).eval(), loader=data, calibration=mode)
    assert list(result.layers) == [""]
    assert bool(result.model.bias.any())


class Shared(nn.Module):
    """One weight under two names, and one module called twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.twice = (nn.Linear(4, 4) for _ in range(3))
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(self.second(self.twice(self.first(x)).relu()).relu())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bias", ["refit", "keep"])
def test_shared_weights_are_one_layer(mode: Any, bias: Bias) -> None:
    data = [torch.randn(16, 4, generator=torch.Generator().manual_seed(k)) for k in range(2)]
    model, settings = Shared().eval(), LayerSettings(bias=bias)
    result = rounded(model, loader=data, calibration=mode, settings=settings, held_out=data)
    ours = result.model
    assert list(result.layers) == ["first", "twice"]
    assert ours.first.weight is ours.second.weight
    for name, layer in result.layers.items():
        assert torch.equal(ours.get_submodule(name).weight, layer.weight[0].float())
        assert layer.record.held_out == pytest.approx(layer.record.energy, rel=1e-6)
    assert torch.equal(ours.first.bias, model.first.bias)
    assert torch.equal(ours.second.bias, model.second.bias)
    assert torch.equal(ours.twice.bias, model.twice.bias) == (bias == "keep")


# how it is calibrated


@dataclass
class CountedBatches:
    """A loader that knows how many batches were taken."""

    data: list[Tensor]
    taken: int = 0

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.data:
            self.taken += 1
            yield batch


def test_grams_collected_before_give_the_same_bits() -> None:
    model, data, judges = residual(), CountedBatches(batches(3)), batches(seed=1)
    folded, _ = fold_batch_norm(model, data.data[0])
    grams, held_grams = collect_grams(folded, data.data), collect_grams(folded, judges)
    collecting = rounded(model, loader=data.data, calibration="independent", held_out=judges)
    given = rounded(model, loader=data, calibration="independent", grams=grams, held_out=held_grams)
    assert same_bits(collecting.model, given.model)
    assert [r.energy for r in given.records] == [r.energy for r in collecting.records]
    assert [r.held_out for r in given.records] == [r.held_out for r in collecting.records]
    assert data.taken == 1


@pytest.mark.parametrize("where", ["grams", "held_out"])
def test_grams_of_another_network_are_refused(where: str) -> None:
    grams = collect_grams(residual(), batches())
    for wrong in ({k: v for k, v in grams.items() if k != "down"}, grams | {"down": grams["stem"]}):
        with pytest.raises(ValueError, match=r"none of shape \(2, 27, 27\) for layer 'down'"):
            rounded(calibration="independent", **{where: wrong})


def test_sequential_calibration_takes_no_grams() -> None:
    grams = collect_grams(residual(), batches())
    for options in ({"grams": grams}, {"held_out": grams}):
        with pytest.raises(ValueError, match="choose calibration='independent'"):
            rounded(**options)
    with pytest.raises(ValueError, match="'sequential' or 'independent'"):
        rounded(calibration="parallel")


def test_batches_may_carry_labels_and_come_only_once() -> None:
    labelled = ((batch, torch.zeros(len(batch))) for batch in batches())
    judges = iter([[batch] for batch in batches(seed=1)])
    ours = rounded(loader=labelled, held_out=judges)
    theirs = rounded(held_out=batches(seed=1))
    assert same_bits(ours.model, theirs.model)
    assert [r.held_out for r in ours.records] == [r.held_out for r in theirs.records]


def test_sequential_bits_depend_neither_on_memory_nor_on_threads() -> None:
    runs = []
    data, judges = batches(3, size=32), batches(1, seed=1, size=32)
    # On fewer than 17 images torch itself convolves otherwise with one thread than with two.
    for memory, threads in itertools.product((0, 2**30), (1, 2)):
        with torch_threads(threads):
            runs.append(rounded(loader=data, memory=memory, held_out=judges))
    records = [[(r.energy, r.held_out) for r in run.records] for run in runs]
    assert all(same_bits(runs[0].model, other.model) for other in runs[1:])
    assert all(record == records[0] for record in records[1:])


def test_a_seed_decides_about_random_solvers() -> None:
    one, again, other = (
        rounded(solver=Stochastic(draws=1), seed=seed, layers=["stem"]) for seed in (1, 1, 2)
    )
    assert same_bits(one.model, again.model)
    assert not same_bits(one.model, other.model)


class Chooses(nn.Module):
    """Dark and light images take different ways."""

    def __init__(self) -> None:
        super().__init__()
        self.dark, self.light, self.head = (nn.Linear(2, 2) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.light(x) if bool(x.sum() > 0) else self.dark(x))


@pytest.mark.parametrize("memory", [0, 2**30])
def test_control_flow_that_depends_on_the_data_needs_independent_calibration(
    memory: float,
) -> None:
    ways = [torch.ones(4, 2), -torch.ones(4, 2)]
    with pytest.raises(ValueError, match="control flow depends on the data"):
        rounded(Chooses().eval(), loader=ways, memory=memory)
    result = rounded(Chooses().eval(), loader=ways, calibration="independent")
    assert list(result.layers) == ["light", "head"]
    assert list(result.skipped) == ["dark"]


@pytest.mark.parametrize("mode", MODES)
def test_training_mode_is_refused(mode: Any) -> None:
    with pytest.raises(ValueError, match=r"Call model.eval\(\) first"):
        rounded(residual().train(), calibration=mode)
    with pytest.raises(ValueError, match=r"Call model.eval\(\) first"):
        next(problems(residual().train(), batches()))


# who solves it


@pytest.mark.parametrize("mode", MODES)
def test_a_refusal_names_the_layer(mode: Any) -> None:
    with pytest.raises(RefusedError, match="layer 'stem': Enumeration refuses"):
        rounded(solver=Enumeration(), calibration=mode)


def test_the_record_names_who_solved_the_layer() -> None:
    result = rounded(solver=FirstThatAccepts((Enumeration(), Nearest())))
    small = {"depthwise", "pointwise", "head"}
    assert {r.name for r in result.records if r.solver == repr(Enumeration())} == small
    assert {r.solver for r in result.records if r.name not in small} == {repr(Nearest())}
    for record in result.records:
        if record.name in small:
            assert record.lower_bound == pytest.approx(record.energy, rel=1e-9)
            assert record.proven_rows == record.g * record.r
        else:
            assert record.lower_bound is None


@dataclass(frozen=True)
class BoundsFirstRow(Solver):
    """Knows a bound for one row only."""

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        bound = torch.full((problem.g, problem.r), torch.nan, dtype=torch.float64)
        bound[0, 0] = 0.0
        return problem.solution(problem.nearest(), bound)


def test_a_layer_has_a_bound_only_where_all_its_rows_have_one() -> None:
    assert [r.lower_bound for r in rounded(solver=BoundsFirstRow()).records] == [None] * 5


def test_problems_are_those_that_independent_rounding_solves() -> None:
    posed = dict(problems(residual(), batches(), LayerSettings(bits=3)))
    result = rounded(calibration="independent")
    assert list(posed) == LAYERS
    for name, layer in result.layers.items():
        assert float(posed[name].energy(layer.levels).sum()) == layer.record.energy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": None}, "give an nn.Module"),
        ({"loader": None}, "give batches"),
        ({"loader": [torch.zeros(0, 3, 8, 8)]}, "no samples"),
        ({"loader": [torch.zeros(2, 5, 8, 8)]}, r"does not take a batch of shape \(2, 5, 8, 8\)"),
        ({"loader": [torch.zeros(2, 3, 8, 8, dtype=torch.uint8)]}, "torch.uint8"),
        ({"solver": "annealing"}, "make_solver"),
        ({"solver": Annealing}, "give an object such as"),
        ({"layers": "head"}, "give a list of names"),
        ({"skip": "head"}, "give a list of names"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"memory": -1.0}, "memory is -1"),
        ({"memory": float("nan")}, "memory is nan"),
    ],
)
def test_bad_arguments_are_told_in_one_sentence(arguments: dict, message: str) -> None:
    given = {"model": residual(), "loader": batches(), "solver": Nearest()} | arguments
    with pytest.raises(ValueError, match=message):
        quantise(given.pop("model"), given.pop("loader"), **given)


class Batches:
    """A data set by number alone, as torch's may be."""

    def __getitem__(self, number: int) -> Tensor:
        return batches()[number]


def test_batches_may_come_by_number() -> None:
    by_number = quantise(residual(), Batches(), solver=Nearest())  # pyright: ignore
    in_list = quantise(residual(), batches(), solver=Nearest())
    assert same_bits(by_number.model, in_list.model)
