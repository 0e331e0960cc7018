"""What a network is calibrated on, batches or Grams, and the steps through its layers they give."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from qubo_rounding.calibration import (
    Grams,
    Step,
    independent_steps,
    sequential_steps,
    suspended_bytes,
)
from qubo_rounding.fingerprint import Fingerprint
from qubo_rounding.foresight import check_network
from qubo_rounding.layers import Layer
from qubo_rounding.passes import input_batches
from qubo_rounding.plan import Plan
from qubo_rounding.room import check_room
from qubo_rounding.statistics import Gram, collect_grams


class Data:
    """What a network is calibrated on, or judged by: batches, or Grams collected before.

    Args:
        source: batches, possibly none; or Grams by layer.
        size: bytes of all batches together, 0 where that is not known before they are loaded.
    """

    def __init__(self, source: Iterable[Any] | Mapping[str, Gram], size: int = 0) -> None:
        self._source, self._size = source, size
        self.fingerprint = Fingerprint()  # of what has been taken so far

    @property
    def is_collected(self) -> bool:
        """Whether Gram matrices are collected from it: it is neither empty nor Grams already."""
        is_empty = isinstance(self._source, Sized) and len(self._source) == 0
        return not (is_empty or isinstance(self._source, Mapping))

    def batches(self) -> Iterator[Tensor]:
        """The model's inputs, batch by batch."""
        items = iter(self._source)
        for first in items:  # without a first one there is nothing for input_batches to refuse
            yield from self.fingerprint.passing(input_batches(chain([first], items)))

    def held(self, reserve: float = 0) -> list[Tensor]:
        """All batches at once.

        Args:
            reserve: bytes that must be left beside them.

        Raises:
            ValueError: there is no room for them; told at once where their size is known.
        """
        remedy = "give fewer images, or choose independent calibration, which streams them"
        check_room(self._size + reserve, "holding all images, with the work on them,", remedy)
        batches: list[Tensor] = []
        for batch in self.batches():
            work = f"holding more than {len(batches)} batches, with the work on them,"
            check_room(batch.nbytes + reserve, work, remedy, batch.device)
            batches.append(batch)
        return batches

    def grams(self, model: nn.Module, layers: Mapping[str, Layer], progress: bool) -> Grams:
        """The Gram of every layer, in the order of the layers; empty without any data.

        Raises:
            ValueError: the Grams given lack a layer, or one is of another shape.
        """
        if isinstance(self._source, Mapping):
            return self._given(self._source, layers)
        batches = self.batches()
        first = next(batches, None)
        if first is None:
            return {}
        grams = collect_grams(model, chain([first], batches), layers=layers, progress=progress)
        return {name: grams[name] for name in layers}

    def _given(self, grams: Grams, layers: Mapping[str, Layer]) -> Grams:
        for name, layer in layers.items():
            gram = grams.get(name)
            if gram is None or gram.total.shape != (layer.g, layer.d):
                raise ValueError(
                    f"the Grams given hold none of shape {(layer.g, layer.d, layer.d)} for layer "
                    f"{name!r}; collect them from this network."
                )
            for tensor in gram.tensors().values():
                self.fingerprint.add(tensor)
        return {name: grams[name] for name in layers}


@dataclass(frozen=True)
class Supply:
    """What the layers of a network are rounded on.

    Args:
        steps: the layers in turn; to be closed, for it may hold suspended passes.
        needed: bytes that rounding takes at most, about.
        batches, judging: calibration and held-out batches; none where Grams were collected before.
        known: the Grams collected before, else the number of batches that Grams will be made from.
    """

    steps: Generator[Step, None, None]
    needed: float
    batches: Sequence[Tensor]
    judging: Sequence[Tensor]
    known: Grams | int


def independent_supply(plan: Plan, data: Data, judges: Data, progress: bool) -> Supply:
    """Every Gram from the float network, collected now.

    Raises:
        ValueError: there is no room, or the Grams given do not fit the network.
    """
    layers = plan.layers
    needed = check_network(layers.values(), "independent", _sets(data, judges), _device(plan))
    grams, judging = (one.grams(plan.folded, layers, progress) for one in (data, judges))
    return Supply(independent_steps(layers, grams, judging), needed, (), (), grams)


def sequential_supply(
    plan: Plan, rounded: nn.Module, data: Data, judges: Data, memory: float
) -> Supply:
    """Each layer's Gram as its turn comes, on what the rounded network gives it.

    Args:
        plan: of the float network.
        rounded: a copy of that, which the caller rounds step by step.
        data, judges: batches, all held from now on.
        memory: bytes that suspended passes may hold, about.

    Raises:
        ValueError: there is no room.
    """
    layers, device = plan.layers, _device(plan)
    needed = check_network(layers.values(), "sequential", _sets(data, judges), device)
    batches, judging = (one.held(reserve=needed) for one in (data, judges))
    needed += suspended_bytes(plan.trial, len(batches) + len(judging), memory)
    check_room(needed, "rounding behind suspended passes", "give less memory", device)
    steps = sequential_steps(
        plan.folded, rounded, layers, batches, judging, trial=plan.trial, memory=memory
    )
    return Supply(steps, needed, batches, judging, len(batches))


def _sets(data: Data, judges: Data) -> int:
    return data.is_collected + judges.is_collected


def _device(plan: Plan) -> torch.device:
    return next(plan.folded.parameters()).device
