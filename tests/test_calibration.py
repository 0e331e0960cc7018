"""The order of layers, and the Grams each gets, against passes taken one by one."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import LAYERS, Residual, batches, residual
from torch import Tensor, nn

from qubo_rounding import calibration
from qubo_rounding.calibration import (
    Trial,
    independent_steps,
    sequential_steps,
    trial_run,
)
from qubo_rounding.calibration_data import Data
from qubo_rounding.layers import find_layers, weight_of
from qubo_rounding.statistics import Gram, collect_grams

MEMORY = {"all suspended": 2.0**30, "all but one anew": 0.0, "some join later": 4.0e4}


@pytest.fixture
def model() -> Residual:
    return residual()


def spoil(model: nn.Module, name: str) -> None:
    """Stands for rounding: the weights change, by much."""
    weight_of(model, find_layers(model).layers[name]).data.mul_(0.9)


def same(one: Gram, other: Gram) -> bool:
    ours, theirs = one.tensors(), other.tensors()
    return one.count == other.count and all(torch.equal(ours[k], theirs[k]) for k in ours)


def steps_of(model: nn.Module, rounded: nn.Module, memory: float = 2.0**30, **data: Any) -> Any:
    layers = find_layers(model).layers
    calibration = data.get("calibration", batches(3))
    trial = trial_run(model, layers, calibration[0])
    held_out = data.get("held_out", batches(2, seed=1))
    return sequential_steps(model, rounded, layers, calibration, held_out, trial, memory)


def test_a_trial_counts_calls_in_the_order_of_execution() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first, self.never = (nn.Linear(3, 3) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(self.first(x)))

    model = Backwards().eval()
    trial = trial_run(model, find_layers(model).layers, torch.zeros(10, 3))
    assert list(trial.calls.items()) == [("first", 2), ("last", 1)]
    assert all(trial.held_bytes[name] >= 10 * 3 * 4 for name in ("first", "last"))


@pytest.mark.parametrize("memory", MEMORY.values(), ids=MEMORY)
def test_sequential_grams_pair_the_float_and_the_half_rounded_network(
    model: Residual, memory: float
) -> None:
    rounded = copy.deepcopy(model)
    seen = []
    for step in steps_of(model, rounded, memory):
        name = step.layer.name
        layers = {name: step.layer}
        ours, ours_held_out = step.grams()
        for gram, data in ((ours, batches(3)), (ours_held_out, batches(2, seed=1))):
            theirs = collect_grams(model, data, layers=layers, quantised=copy.deepcopy(rounded))
            for field, tensor in theirs[name].tensors().items():
                torch.testing.assert_close(gram.tensors()[field], tensor, rtol=1e-6, atol=1e-6)
            assert gram.count == theirs[name].count
        spoil(rounded, name)
        seen.append(name)
    assert seen == LAYERS


def test_suspended_passes_are_so_many_at_most(
    model: Residual, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a thread, of which a process has no end of batches' number."""
    monkeypatch.setattr(calibration, "_MOST_SUSPENDED", 2)
    before = threading.active_count()
    for step in steps_of(model, copy.deepcopy(model), calibration=batches(6)):
        assert threading.active_count() <= before + 4
        step.grams()


def test_memory_changes_no_bit(model: Residual) -> None:
    taken = []
    for memory in (0.0, 4 * 3 * 64 * 4 * 1.5 * 2 * 6, 2.0**30):
        rounded = copy.deepcopy(model)
        grams = []
        for step in steps_of(model, rounded, memory):
            grams += step.grams()
            spoil(rounded, step.layer.name)
        taken.append(grams)
    for other in taken[1:]:
        assert all(same(*pair) for pair in zip(taken[0], other, strict=True))


def test_grams_that_nobody_asks_for_are_not_computed(model: Residual) -> None:
    rounded = copy.deepcopy(model)
    asked = [step.grams() for step in steps_of(model, rounded) if step.layer.name == "head"]
    [(gram, held_out)] = asked
    assert gram.is_paired
    assert held_out is not None


def test_without_held_out_batches_there_is_no_held_out_gram(model: Residual) -> None:
    steps = steps_of(model, copy.deepcopy(model), held_out=[])
    assert [step.grams()[1] for step in steps] == [None] * 5


def test_networks_that_part_ways_are_refused(model: Residual) -> None:
    class Other(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.down(self.stem(x)).mean((2, 3)))

    other = Other().eval()
    with pytest.raises(ValueError, match=r"'depthwise', 'down'.*Use independent calibration"):
        list(steps_of(model, other))


def _short(model: nn.Module) -> None:
    """From now on the network ends early for batches whose mean is negative."""

    def forward(x: Tensor) -> Tensor:
        return Residual.forward(model, x) if float(x.mean()) > 0 else model.stem(x)

    model.forward = forward


@pytest.mark.parametrize("memory", MEMORY.values(), ids=MEMORY)
def test_a_batch_that_ends_early_is_refused(model: Residual, memory: float) -> None:
    _short(model)
    rounded = copy.deepcopy(model)
    _short(rounded)
    ways = [batches(1)[0].abs(), -batches(1)[0].abs()]
    with pytest.raises(ValueError, match=r"the end.*Use independent calibration"):
        [step.grams() for step in steps_of(model, rounded, memory, calibration=ways, held_out=[])]


def test_independent_steps_hand_out_what_was_collected(model: Residual) -> None:
    layers, grams = find_layers(model).layers, collect_grams(model, batches())
    held_out = {"head": grams["head"]}
    steps = list(independent_steps(layers, grams, held_out))
    assert [step.layer.name for step in steps] == LAYERS
    assert all(step.grams()[0] is grams[step.layer.name] for step in steps)
    assert [step.grams()[1] for step in steps] == [None] * 4 + [grams["head"]]


# data


def test_data_may_be_empty(model: Residual) -> None:
    layers = find_layers(model).layers
    assert list(Data(()).batches()) == []
    assert Data(iter([])).grams(model, layers, progress=False) == {}


def test_data_know_the_fingerprint_of_what_was_taken(model: Residual) -> None:
    layers = find_layers(model).layers

    def taken(source: Any, take: Callable[[Data], Any]) -> str:
        data = Data(source)
        take(data)
        return str(data.fingerprint)

    def by_grams(data: Data) -> Any:
        return data.grams(model, layers, progress=False)

    whole = taken(batches(2), lambda data: list(data.batches()))
    assert whole == taken([(b, 0) for b in batches(2)], by_grams)
    assert whole != taken(batches(2), lambda data: next(data.batches()))
    grams = collect_grams(model, batches(2))
    assert taken(grams, by_grams) == taken(dict(reversed(grams.items())), by_grams) != whole


def test_trial_is_what_decides_about_memory(model: Residual) -> None:
    layers = find_layers(model).layers
    trial = trial_run(model, layers, batches()[0])
    wide = 4 * 6 * 64 * 4  # six channels of 8 x 8, the most until they are all past
    expected = dict.fromkeys(["stem", "depthwise", "pointwise", "down"], 1.5 * wide)
    assert trial == Trial(trial.calls, expected | {"head": 1.5 * 4 * 8 * 4})
