"""The task loss as a function of some layers' weights, and what differentiates it.

The weights are one flat vector: the (g, r, d) matrices of the layers, row-major, one after the
other. With z(w) the network's outputs and L(z) the mean loss of a batch,

    Hessian        d2L/dw2
    Gauss-Newton   J' (d2L/dz2) J,  J = dz/dw

Both are exact by automatic differentiation, for any scalar loss. They are the same where the
outputs are piecewise linear in the weights: for one layer, used once, of a network whose other
functions are piecewise linear (ReLU, ReLU6, pooling). The weights of several layers multiply each
other, so that off the diagonal blocks of several layers the two differ even there.

Source: Nagel et al. 2020, arXiv 2004.10568, eq 6 and 13; Martens 2020, arXiv 1412.1193
(Gauss-Newton matrices).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from qubo_rounding.layers import Layer, find_layers, matrix_of, weight_of
from qubo_rounding.passes import LayerTap, check_eval_mode
from qubo_rounding.watch import Item, watched

Loss = Callable[[Tensor, Tensor], Tensor]
Curvature = Literal["hessian", "gauss_newton"]
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class TaskLoss:
    """The mean loss of a network over batches, as a function of the weights of some layers.

    Args:
        model: a network in eval mode.
        layers: the layers whose weights vary, by name, in the order of the flat vector.
        batches: (inputs, labels) each, on the weights' device and the inputs in their dtype.
        loss: gives a scalar, the mean over a batch, from the network's outputs and the labels.
    """

    model: nn.Module
    layers: Mapping[str, Layer]
    batches: Sequence[Batch]
    loss: Loss

    @classmethod
    def over(
        cls, model: nn.Module, layers: str | Iterable[str], loader: Iterable[Any], loss: Loss
    ) -> TaskLoss:
        """The task loss over all batches of a loader, which are held in memory.

        Args:
            model: a network in eval mode.
            layers: name of a layer, or several.
            loader: gives (inputs, labels), tuples or lists.
            loss: see above.

        Raises:
            ValueError: training mode, a layer that is not there or that the first batch does not
                reach, no batch, a batch without labels.
        """
        check_eval_mode(model)
        chosen = _chosen(model, [layers] if isinstance(layers, str) else list(layers))
        like = weight_of(model, next(iter(chosen.values())))
        batches = [_batch(number, item, like) for number, item in enumerate(loader)]
        if not batches:
            raise ValueError("The loader yields no batch. Give at least one.")
        _check_reached(model, chosen, batches[0][0])
        return cls(model, chosen, batches, loss)

    @cached_property
    def weights(self) -> Tensor:
        """(d,) the weights as they are, in the model's dtype."""
        matrices = [matrix_of(self.model, layer) for layer in self.layers.values()]
        return torch.cat([matrix.flatten() for matrix in matrices])

    @cached_property
    def images(self) -> int:
        """Samples in all batches."""
        return sum(len(inputs) for inputs, _ in self.batches)

    @property
    def loss_name(self) -> str:
        """The loss in one word."""
        return getattr(self.loss, "__qualname__", type(self.loss).__qualname__)

    def shares(self) -> Iterator[tuple[float, Batch]]:
        """Every batch with its share of all samples: the mean loss is the sum of share x loss."""
        for inputs, labels in self.batches:
            yield len(inputs) / self.images, (inputs, labels)

    @torch.enable_grad()
    def outputs(self, weights: Tensor, inputs: Tensor) -> Tensor:
        """The network's outputs with other weights (d,), differentiable by them and nothing else.

        Raises:
            ValueError: the outputs are no single tensor.
        """
        # Only the first name of a tied parameter is here; functional_call gives it to all.
        parameters = {name: p.detach() for name, p in self.model.named_parameters()}
        sizes = [layer.g * layer.r * layer.d for layer in self.layers.values()]
        for layer, part in zip(self.layers.values(), weights.split(sizes), strict=True):
            matrix = part.reshape(layer.g, layer.r, layer.d)
            parameters[f"{layer.name}.weight".lstrip(".")] = layer.weight(matrix)
        outputs = functional_call(self.model, parameters, (inputs,))
        if not isinstance(outputs, Tensor):
            raise ValueError(
                f"The model returns a {type(outputs).__name__}; its outputs must be one tensor."
            )
        return outputs

    @torch.enable_grad()
    def value(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The loss of one batch.

        Raises:
            ValueError: it is no scalar.
        """
        value = self.loss(outputs, labels)
        if not isinstance(value, Tensor) or value.ndim != 0:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"The loss gives {shape}; it must give the mean over a batch, shape ()."
            )
        return value

    def gradient(self) -> Tensor:
        """(d,) float64 gradient of the mean loss at the weights as they are."""
        total = torch.zeros_like(self.weights, dtype=torch.float64)
        for share, (inputs, labels) in self.shares():
            at = self.weights.clone().requires_grad_()
            value = self.value(self.outputs(at, inputs), labels)
            total += share * torch.autograd.grad(value, at)[0].double()
        return total


class HessianColumns:
    """The Hessian of one batch's loss, some columns at a time.

    Args:
        task: the loss.
        batch: inputs and labels.
    """

    def __init__(self, task: TaskLoss, batch: Batch) -> None:
        inputs, labels = batch
        self._at = task.weights.clone().requires_grad_()
        (self._slope,) = slope_at(task.value(task.outputs(self._at, inputs), labels), [self._at])
        self.count = len(self._at)

    def products(self, start: int, end: int) -> Tensor:
        """Columns `start` to `end` as rows (end - start, d)."""
        return pull_back(self._slope, self._at, unit_rows(self._at, start, end))


def slope_at(value: Tensor, at: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradients of a value by each of some tensors, to be differentiated once more."""
    return torch.autograd.grad(
        value, at, create_graph=True, allow_unused=True, materialize_grads=True
    )


def pull_back(outputs: Tensor, inputs: Tensor, vectors: Tensor) -> Tensor:
    """Vectors (k, *outputs) times d outputs / d inputs: (k, *inputs), by one batched backward pass.

    A single vector goes the ordinary way, which knows more functions than the batched one.
    """
    nothing = inputs.new_zeros(len(vectors), *inputs.shape)
    if not outputs.requires_grad:
        return nothing
    batched = len(vectors) > 1
    (result,) = torch.autograd.grad(
        outputs,
        inputs,
        vectors if batched else vectors[0],
        retain_graph=True,
        allow_unused=True,
        is_grads_batched=batched,
    )
    return nothing if result is None else result.reshape(nothing.shape)


def unit_rows(like: Tensor, start: int, end: int) -> Tensor:
    """(end - start, n) rows of the identity matrix, for `like` (n,)."""
    units = like.new_zeros(end - start, len(like))
    units.diagonal(start).fill_(1)
    return units


def all_watched(items: Sequence[Item], label: str, advice: str) -> Iterator[Item]:
    """The items under the eyes of `watching`; a sum over them is worth nothing without the last.

    Raises:
        TimeoutError: the time limit ended the loop early; the message ends with the advice.
    """
    left = len(items)
    for item in watched(items, label):
        yield item
        left -= 1
    if left:
        raise TimeoutError(f"the time limit ended {label} {left} steps before the last. {advice}")


def check_curvature(curvature: str) -> None:
    """Nothing, for one of the two curvatures.

    Raises:
        ValueError: it is another word.
    """
    if curvature not in ("hessian", "gauss_newton"):
        raise ValueError(f"curvature is {curvature!r}; give 'hessian' or 'gauss_newton'.")


def _chosen(model: nn.Module, names: Sequence[str]) -> dict[str, Layer]:
    known = find_layers(model).layers
    unknown = [name for name in names if name not in known]
    if unknown or not names or len(set(names)) < len(names):
        raise ValueError(
            f"the layers are {list(names)}; give at least one of {list(known)}, each once."
        )
    return {name: known[name] for name in names}


def _batch(number: int, item: Any, like: Tensor) -> Batch:
    if not isinstance(item, (tuple, list)) or len(item) < 2 or not isinstance(item[0], Tensor):
        raise ValueError(f"Batch {number} is no pair of inputs and labels. Give (inputs, labels).")
    inputs, labels = item[:2]
    if not isinstance(labels, Tensor):
        raise ValueError(
            f"Batch {number} has no labels, but a {type(labels).__name__}. The task loss needs a "
            "tensor of them."
        )
    dtype = like.dtype if inputs.is_floating_point() else inputs.dtype
    return inputs.to(like.device, dtype), labels.to(like.device)


def _check_reached(model: nn.Module, layers: Mapping[str, Layer], inputs: Tensor) -> None:
    reached = set()
    tap = LayerTap(model, layers, lambda call: reached.add(call.layer.name))
    with torch.no_grad(), tap:
        model(inputs)
    if missing := [name for name in layers if name not in reached]:
        raise ValueError(
            f"The first batch does not reach {missing}: the forward pass gives these weights to no "
            "linear or convolution function. Leave these layers out."
        )
