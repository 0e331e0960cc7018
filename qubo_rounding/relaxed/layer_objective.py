"""The reconstruction error of one layer on stored samples, and its slopes.

    loss = sum over rows k of  c_k * mean over samples and positions of (f_a(z) - f_a(z~))_k^2

with z the float layer's output, z~ that of the softly rounded one on the inputs that the rounded
network gives it, f_a what follows the layer. The positions are all of a sample's (`MapObjective`),
or some that are drawn once (`PatchObjective`): then the layer is a product of matrices whatever the
size of the picture, and an iteration costs the same in every part of the network.

Source: Nagel et al. 2020, arXiv 2004.10568, eq 21 and 25.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from qubo_rounding.calibration import LayerPair
from qubo_rounding.following import Following
from qubo_rounding.layers import Layer
from qubo_rounding.passes import LayerCall
from qubo_rounding.patches import by_window, patches_of
from qubo_rounding.relaxed.adam import Adam
from qubo_rounding.relaxed.objective import Slopes
from qubo_rounding.relaxed.sample_store import filled_store
from qubo_rounding.solvers.random_numbers import stream_keys, uniforms

_TOGETHER = 2**19  # outputs computed at once on a CPU: what is between two passes stays in cache
_WIDE = 64  # columns of a row that takes all the positions asked for


@dataclass(frozen=True)
class Compared:
    """What of a layer is compared, and how its rows count.

    Args:
        layer: the layer.
        following: what its output goes through before the comparison.
        bias: float32 (g, r), before any shift.
        row_weights: float32 (g, r), the c_k.
    """

    layer: Layer
    following: Following
    bias: Tensor
    row_weights: Tensor

    @property
    def name(self) -> str:
        """For messages."""
        return f"layer {self.layer.name!r}"

    def loss(self, outputs: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
        """The loss for outputs of the softly rounded layer."""
        return self._loss_and_slope(self.following(outputs, rows.get("added")), rows)[0]

    def slope(self, outputs: Tensor, rows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The loss for outputs of the softly rounded layer, and its derivative by them."""
        at = outputs.detach().requires_grad_()
        compared = self.following(at, rows.get("added"))
        loss, by_compared = self._loss_and_slope(compared.detach(), rows)
        (by_outputs,) = torch.autograd.grad(compared, at, by_compared)
        return loss, by_outputs

    def _loss_and_slope(
        self, compared: Tensor, rows: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The loss for what follows the outputs, and its derivative."""
        difference = compared - rows["target"].view_as(compared)
        weights = self.row_weights.flatten()
        if self.layer.kind != "linear":  # channels come second, not last
            weights = weights.reshape(-1, *[1] * (compared.ndim - 2))
        places = compared.numel() // self.row_weights.numel()
        weighted = difference * weights
        loss = torch.dot(weighted.flatten(), difference.flatten()) / places
        return loss, weighted.mul_(2 / places)

    def sides(self, pair: LayerPair) -> dict[str, Tensor]:
        """The float layer's compared values, and what is added to the rounded one's output."""
        outputs = pair.call.output_with(pair.call.arguments["weight"])
        added = {} if pair.added_q is None else {"added": pair.added_q}
        return {"target": self.following(outputs, pair.added), **added}


class MapObjective:
    """The loss over all positions of a sample, by the layer's own function.

    Args:
        compared: the layer and what follows it.
        pairs: its calls on the calibration batches.
        images: how many those hold.
        budget: bytes that inputs and targets may hold in memory.
    """

    extra: Sequence[Adam] = ()

    def __init__(
        self, compared: Compared, pairs: Iterator[LayerPair], images: int, budget: float
    ) -> None:
        first = next(pairs)
        self._compared = compared
        self._function, self._arguments = first.call_q.function, first.call_q.settings
        rows = (
            {"input": pair.call_q.input, **compared.sides(pair)} for pair in chain([first], pairs)
        )
        self._store = filled_store(rows, images, first.images, budget, compared.name)
        outputs = self._store.take(slice(0, 1))["target"]
        self._together = _TOGETHER // outputs.numel() if outputs.device.type == "cpu" else 2**31

    @property
    def count(self) -> int:
        """Samples there are."""
        return self._store.count

    @torch.no_grad()
    def loss(self, weights: Sequence[Tensor], shifts: Sequence[Tensor], samples: Tensor) -> Tensor:
        """The mean loss over some samples alone; see `Objective.loss`."""
        total = torch.zeros((), device=weights[0].device)
        for share, rows in self._parts(samples):
            outputs = self._outputs(weights[0], shifts[0], rows["input"])
            total += share * self._compared.loss(outputs, rows)
        return total

    @torch.enable_grad()
    def slopes(
        self,
        weights: Sequence[Tensor],
        shifts: Sequence[Tensor],
        samples: Tensor,
        iteration: int | None = None,
    ) -> Slopes:
        """The mean loss over some samples, and its derivatives; see `Objective.slopes`."""
        leaves = [tensor.detach().requires_grad_() for tensor in (*weights, *shifts)]
        weight, shift = leaves
        total: list[Tensor] = []
        for share, rows in self._parts(samples):
            outputs = self._outputs(weight, shift, rows["input"])
            loss, by_outputs = self._compared.slope(outputs, rows)
            found = [loss * share, *torch.autograd.grad(outputs, leaves, by_outputs.mul_(share))]
            total = [a.add_(b) for a, b in zip(total, found, strict=True)] if total else found
        return Slopes(total[0], [total[1]], [total[2]])

    def _parts(self, samples: Tensor) -> Iterator[tuple[float, dict[str, Tensor]]]:
        """As many samples as go together, and their share of all."""
        for part in samples.split(max(1, self._together)):
            # a single sample is looked at where it lies, several are copied together
            places = slice(int(part), int(part) + 1) if len(part) == 1 else part
            yield len(part) / len(samples), self._store.take(places)

    def _outputs(self, weight: Tensor, shift: Tensor, inputs: Tensor) -> Tensor:
        return self._function(
            input=inputs,
            weight=self._compared.layer.weight(weight),
            bias=(self._compared.bias + shift).flatten(),
            **self._arguments,
        )


class PatchObjective:
    """The loss over some positions of every sample, drawn once.

    Args:
        compared: the layer and what follows it.
        pairs: its calls on the calibration batches.
        images: how many those hold.
        budget: bytes that inputs and targets may hold in memory.
        positions: of each sample; all where it has fewer. Narrow rows take fewer, as they have
            less to learn: see `_positions_for`.
        seed: of the draw.
    """

    extra: Sequence[Adam] = ()

    def __init__(
        self,
        compared: Compared,
        pairs: Iterator[LayerPair],
        images: int,
        budget: float,
        positions: int,
        seed: int,
    ) -> None:
        first = next(pairs)
        self._compared = compared
        rows = _drawn_rows(compared, chain([first], pairs), positions, seed)
        self._store = filled_store(rows, images, first.images, budget, compared.name)

    @property
    def count(self) -> int:
        """Samples there are."""
        return self._store.count

    @torch.no_grad()
    def loss(self, weights: Sequence[Tensor], shifts: Sequence[Tensor], samples: Tensor) -> Tensor:
        """The mean loss over some samples alone; see `Objective.loss`."""
        rows = self._rows(samples)
        return self._compared.loss(self._outputs(weights[0], shifts[0], rows["input"]), rows)

    @torch.enable_grad()
    def slopes(
        self,
        weights: Sequence[Tensor],
        shifts: Sequence[Tensor],
        samples: Tensor,
        iteration: int | None = None,
    ) -> Slopes:
        """The mean loss over some samples, and its derivatives; see `Objective.slopes`."""
        leaves = [tensor.detach().requires_grad_() for tensor in (*weights, *shifts)]
        weight, shift = leaves
        rows = self._rows(samples)
        outputs = self._outputs(weight, shift, rows["input"])
        loss, by_outputs = self._compared.slope(outputs, rows)
        by_weight, by_shift = torch.autograd.grad(outputs, leaves, by_outputs)
        return Slopes(loss, [by_weight], [by_shift])

    def _rows(self, samples: Tensor) -> dict[str, Tensor]:
        """Stored inputs (n, values), and what is compared as maps of one position."""
        rows = {name: part.flatten(0, 1) for name, part in self._store.take(samples).items()}
        return {n: part if n == "input" else self._as_maps(part) for n, part in rows.items()}

    def _outputs(self, weight: Tensor, shift: Tensor, inputs: Tensor) -> Tensor:
        layer, bias = self._compared.layer, (self._compared.bias + shift).flatten()
        return self._as_maps(_products(inputs.unflatten(1, (layer.g, layer.d)), weight) + bias)

    def _as_maps(self, values: Tensor) -> Tensor:
        """Of one position each: activations may have settings for each channel."""
        return values.reshape(*values.shape, *[1] * len(self._compared.layer.kernel))

    def windows(self) -> Iterator[tuple[Tensor, Tensor, Tensor | float]]:
        """For every group all windows (n, d), targets (n, r), and what is added, (n, r) or 0."""
        layer = self._compared.layer
        every = {
            name: rows.flatten(0, 1)
            for name, rows in self._store.take(slice(0, self.count)).items()
        }
        for group in range(layer.g):
            columns = slice(group * layer.d, (group + 1) * layer.d)
            rows = slice(group * layer.r, (group + 1) * layer.r)
            added = every["added"][:, rows] if "added" in every else 0.0
            yield every["input"][:, columns].contiguous(), every["target"][:, rows], added


def _products(inputs: Tensor, weight: Tensor) -> Tensor:
    """(n, g r) outputs of patches (n, g, d) under weights (g, r, d)."""
    if weight.shape[0] == 1:
        return inputs[:, 0] @ weight[0].T
    if weight.shape[1] == 1:  # depthwise: far too small for a product of matrices each
        return (inputs * weight[:, 0]).sum(dim=2)
    return torch.bmm(inputs.transpose(0, 1), weight.mT).transpose(0, 1).flatten(1)


def _positions_for(d: int, positions: int) -> int:
    """How many positions of a sample a row of d columns takes, where one of 64 takes `positions`.

    Depthwise layers have 9 to 49 columns and a patch for each channel, which together would be
    many times their input.
    """
    return max(1, math.ceil(positions * min(d, _WIDE) / _WIDE))


def _drawn_rows(
    compared: Compared, pairs: Iterator[LayerPair], positions: int, seed: int
) -> Iterator[dict[str, Tensor]]:
    """(samples, positions, values) of every tensor, for each pair of calls."""
    taken, positions = 0, _positions_for(compared.layer.d, positions)
    for pair in pairs:
        samples = len(pair.call_q.input)
        every = patches_of(pair.call_q).count // samples
        keys = stream_keys(seed, torch.arange(taken, taken + samples))
        drawn = torch.from_numpy(uniforms(keys, every)).argsort(dim=1, stable=True)
        places = drawn[:, :positions].sort(dim=1).values
        index = places + every * torch.arange(samples)[:, None]
        taken += samples
        sides = compared.sides(pair)
        yield {
            "input": _windows_at(pair.call_q, index),
            **{name: _values_at(pair.call_q, side, index) for name, side in sides.items()},
        }


def _windows_at(call: LayerCall, index: Tensor) -> Tensor:
    """(n, p, g d) the patches of a call whose numbers are index (n, p)."""
    windows = patches_of(call).windows()
    sizes = windows.shape[2 + max(1, len(call.layer.kernel)) :]
    places = torch.unravel_index(index.to(windows.device), sizes)
    return windows[(..., *places)].flatten(0, -3).movedim(0, -1)


def _values_at(call: LayerCall, values: Tensor, index: Tensor) -> Tensor:
    """(n, p, g r) values shaped like the output of a call, at the patches of numbers index."""
    return by_window(call, values).flatten(0, 1)[:, index.to(values.device)].movedim(0, -1)
