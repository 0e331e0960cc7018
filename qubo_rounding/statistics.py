"""Gram matrices: what a layer's inputs look like, summed over samples and positions.

A Gram is all that rounding needs to know of the data: the energy of a weight change E (r x d) is
trace(E G E') with G = E[x x'], whatever the number of images behind it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from qubo_rounding.accumulation import InputSums, outer
from qubo_rounding.batch_contrasts import probes_of, sampling_share
from qubo_rounding.foresight import check_grams
from qubo_rounding.kept_files import keep, kept
from qubo_rounding.layers import Layer, find_layers
from qubo_rounding.passes import LayerCall, Pass, input_batches
from qubo_rounding.room import size_of

# Of an input's second moment: five units in the last place of a float32, squared, and far above
# the rounding of float64 sums.
_CONSTANT = 1e-13


@dataclass(frozen=True, eq=False)
class Gram:
    """Sums over samples and positions of a layer's input patches x (d values per group).

    Those of x_q are None unless inputs of a quantised network were collected beside x.

    Args:
        second: float64 (g, d, d), sum of x x'.
        total: float64 (g, d), sum of x.
        count: n, samples x positions.
        second_q: float64 (g, d, d), sum of x_q x_q'.
        cross: float64 (g, d, d), sum of x x_q'.
        total_q: float64 (g, d), sum of x_q.
        contrasts: float64 (g, 3 d + 1, k), how batches differ, of x_q where there are any; see
            batch_contrasts.py. None where nobody noted it.

    Raises:
        ValueError: shapes or dtypes do not fit together, or the count is not positive.
    """

    second: Tensor
    total: Tensor
    count: int
    second_q: Tensor | None = None
    cross: Tensor | None = None
    total_q: Tensor | None = None
    contrasts: Tensor | None = None

    def __post_init__(self) -> None:
        vector, square = tuple(self.total.shape), (*self.total.shape, *self.total.shape[-1:])
        sums = self.tensors()
        contrasts = sums.pop("contrasts", None)
        for name, tensor in sums.items():
            shape = vector if name.startswith("total") else square
            if tuple(tensor.shape) != shape or len(vector) != 2 or tensor.dtype != torch.float64:
                raise ValueError(
                    f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}. A Gram needs "
                    "float64 sums of shape (g, d, d), and totals of shape (g, d)."
                )
        if len(sums) not in (2, 5):
            raise ValueError("Give all of second_q, cross and total_q, or none of them.")
        if contrasts is not None:
            g, d = vector
            shape = (g, 3 * d + 1, probes_of(g))
            if tuple(contrasts.shape) != shape or contrasts.dtype != torch.float64:
                raise ValueError(
                    f"contrasts are {contrasts.dtype} of shape {tuple(contrasts.shape)}; beside "
                    f"totals of shape {vector} they are float64 of shape {shape}."
                )
        if self.count < 1:
            raise ValueError(f"count is {self.count}: a Gram needs at least one patch.")

    @property
    def is_paired(self) -> bool:
        """Whether inputs of a quantised network were collected too."""
        return self.second_q is not None

    @property
    def mean(self) -> Tensor:
        """E[x], (g, d)."""
        return self.total / self.count

    @property
    def second_moment(self) -> Tensor:
        """E[x x'], (g, d, d)."""
        return self.second / self.count

    @property
    def covariance(self) -> Tensor:
        """E[x x'] - E[x] E[x]', (g, d, d): the Gram that is left when the bias may be refitted."""
        return self._about_means(self.second_moment, "", "")

    @property
    def mean_q(self) -> Tensor:
        """E[x_q], (g, d)."""
        return self._present("total_q") / self.count

    @property
    def second_moment_q(self) -> Tensor:
        """E[x_q x_q'], (g, d, d)."""
        return self._present("second_q") / self.count

    @property
    def covariance_q(self) -> Tensor:
        """E[x_q x_q'] - E[x_q] E[x_q]', (g, d, d)."""
        return self._about_means(self.second_moment_q, "_q", "_q")

    @property
    def cross_moment(self) -> Tensor:
        """E[x x_q'], (g, d, d)."""
        return self._present("cross") / self.count

    @property
    def cross_covariance(self) -> Tensor:
        """E[x x_q'] - E[x] E[x_q]', (g, d, d)."""
        return self._about_means(self.cross_moment, "", "_q")

    def sampling_share(self, *, central: bool) -> float:
        """The share of the off-diagonal moments that is chance, in [0, 1]: what `shrunk` takes off.

        Args:
            central: of the covariance, not of the second moment; of x_q's where there are any.

        Raises:
            ValueError: there was one batch only, or it is not known how batches differ.
        """
        if self.contrasts is None:
            raise ValueError(
                "This Gram has no contrasts: it is older, or made by hand. Collect it by "
                "collect_grams."
            )
        if self.is_paired:
            moments, mean = self.covariance_q if central else self.second_moment_q, self.mean_q
        else:
            moments, mean = self.covariance if central else self.second_moment, self.mean
        return sampling_share(self.contrasts, moments, mean if central else None, self.count)

    def tensors(self) -> dict[str, Tensor]:
        """The sums that are present, by field name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def __add__(self, other: Gram) -> Gram:
        """The Gram of both data sets together.

        Raises:
            ValueError: the shapes differ, or only one of the two is paired.
        """
        mine, theirs = self.tensors(), other.tensors()
        if self.total.shape != other.total.shape or mine.keys() != theirs.keys():
            raise ValueError(
                f"These Grams are of different layers or kinds: (g, d) is "
                f"{tuple(self.total.shape)} and {tuple(other.total.shape)}, paired is "
                f"{self.is_paired} and {other.is_paired}. Add Grams of one layer, collected alike."
            )
        sums = {name: mine[name] + theirs[name] for name in mine}
        return Gram(count=self.count + other.count, **sums)

    def _about_means(self, moment: Tensor, left: str, right: str) -> Tensor:
        """(g, d, d) a second moment less its means'; of x on a side named "", of x_q on "_q"."""
        means = (self._present(f"total{side}") / self.count for side in (left, right))
        return (moment - outer(*means)) * outer(self._varies(left), self._varies(right))

    def _varies(self, side: str) -> Tensor:
        """float64 (g, d): 0 for inputs whose variance is none as far as the sums can tell."""
        moment = self._present(f"second{side}").diagonal(dim1=1, dim2=2) / self.count
        variance = moment - (self._present(f"total{side}") / self.count).square()
        return ((variance > _CONSTANT * moment) & (self.count > 1)).double()

    def _present(self, name: str) -> Tensor:
        value = getattr(self, name)
        if value is None:
            raise ValueError(
                f"This Gram has no {name}: inputs of a quantised network were not collected. "
                "Pass quantised= to collect_grams."
            )
        return value


def gram_of(call: LayerCall, call_q: LayerCall | None = None) -> Gram:
    """The Gram of one layer call, or of the same call in a float and in a quantised network.

    Args:
        call: the call whose input is x.
        call_q: the call whose input is x_q; None means that there is none.

    Raises:
        ValueError: an input is not finite, or the two calls differ in layer or input shape.
    """
    return gram_of_calls([(call, call_q)])


def gram_of_calls(calls: Iterable[tuple[LayerCall, LayerCall | None]]) -> Gram:
    """The Gram of one layer over many of its calls, at least one; see `gram_of`."""
    sums: dict[str, InputSums] = {}
    for number, (call, call_q) in enumerate(calls):
        _add_call(sums, call, call_q, batch=number)
    (total,) = sums.values()
    return _gram(total)


def collect_grams(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    layers: Mapping[str, Layer] | None = None,
    quantised: nn.Module | None = None,
    progress: bool = False,
) -> dict[str, Gram]:
    """The Gram of every layer that the batches reach, all in one walk through the data.

    Products are in float32 (float64 for a float64 model), sums in float64. Activations are never
    kept. A layer called several times in one forward pass adds up all its calls.

    Args:
        model: a network in eval mode.
        loader: batches; tensors, or tuples or lists that begin with one, on the model's device.
        layers: the layers wanted; None means all of `find_layers(model).layers`.
        quantised: a copy of the model with other weights, which walks beside it and gives x_q.
        progress: show a progress bar over the batches on standard error.

    Returns:
        One Gram per layer, in the order of first execution. Layers that no batch reaches are
        absent when `layers` is None.

    Raises:
        ValueError: no layer is reached, or one of `layers` is not; the loader gives something else
            or nothing; an input is NaN or infinite (layer and batch are named); the two networks
            do not call the same layers in the same order; there is no room for so many Grams.
    """
    wanted = find_layers(model).layers if layers is None else layers
    needed = _check_room(model, wanted, paired=quantised is not None)
    models = [model] if quantised is None else [model, quantised]
    sums: dict[str, InputSums] = {}
    batches = tqdm(
        input_batches(loader), desc=f"grams, {size_of(needed)}", leave=False, disable=not progress
    )
    for number, images in enumerate(batches):
        _add_batch(sums, models, wanted, images, number)
    missing = [name for name in wanted if name not in sums]
    if missing and (layers is not None or not sums):
        raise ValueError(
            f"No batch reaches {', '.join(map(repr, missing))}: the forward pass gives these "
            "weights to no linear or convolution function. Leave these layers out."
        )
    if not sums:
        raise ValueError("The model has no linear or convolution layer that can be rounded.")
    # One layer's sums go as its Gram comes: there need not be room for all of them twice.
    return {name: _gram(sums.pop(name)) for name in list(sums)}


def save_grams(path: str | Path, grams: Mapping[str, Gram]) -> None:
    """Write Grams to a safetensors file; an existing file is replaced in one step."""
    tensors = {
        f"{name}/{field}": tensor
        for name, gram in grams.items()
        for field, tensor in gram.tensors().items()
    }
    # Safetensors keeps no order of its own.
    counts = [[name, gram.count] for name, gram in grams.items()]
    keep(path, tensors, {"grams": json.dumps(counts)})


def load_grams(path: str | Path) -> dict[str, Gram]:
    """The Grams that `save_grams` wrote, on the CPU, in the same order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or holds something else.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such file of Grams.")
    with kept(Path(path)) as file:
        counts = json.loads(file.metadata["grams"])
    return {name: Gram(count=count, **_fields_of(name, file.tensors)) for name, count in counts}


def _fields_of(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    keys = {field.name: f"{name}/{field.name}" for field in fields(Gram)}
    return {field: tensors[key] for field, key in keys.items() if key in tensors}


def _add_batch(
    sums: dict[str, InputSums],
    models: list[nn.Module],
    layers: Mapping[str, Layer],
    images: Tensor,
    batch: int,
) -> None:
    """All models walk through the batch side by side; their calls are added where they meet."""
    with ExitStack() as stack:
        passes = [stack.enter_context(Pass(model, layers, images)) for model in models]
        for calls in zip_longest(*passes):
            _check_same_layer(calls)
            _add_call(sums, *calls, batch=batch)


def _check_room(model: nn.Module, layers: Mapping[str, Layer], *, paired: bool) -> int:
    if not layers:
        return 0
    device = next(model.parameters()).device
    return check_grams(layers.values(), paired=paired, device=device)


def _check_same_layer(calls: tuple[LayerCall | None, ...]) -> None:
    names = [repr(call.layer.name) if call else "its end" for call in calls]
    if len(set(names)) > 1:
        raise ValueError(
            f"The float network reaches {names[0]} where the quantised one reaches {names[1]}. "
            "Pair only networks that call the same layers in the same order."
        )


def _add_call(
    sums: dict[str, InputSums], call: LayerCall, call_q: LayerCall | None = None, *, batch: int
) -> None:
    name = call.layer.name
    if name not in sums:
        sums[name] = InputSums(call.layer, paired=call_q is not None, device=call.input.device)
    sums[name].add(call, call_q, batch=batch)
    if not sums[name].is_finite():
        raise ValueError(
            f"An input of layer {name!r} in batch {batch} is NaN, infinite or beyond 1e19. "
            "Check the images and the weights of the layers before it."
        )


def _gram(sums: InputSums) -> Gram:
    return Gram(count=sums.count, **sums.finish())
