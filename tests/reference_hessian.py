"""Curvatures of small networks by torch's own full Hessians and Jacobians, sample by sample.

Nothing here imports the package. Weights are flattened as PyTorch keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call

Loss = Callable[[Tensor, Tensor], Tensor]
Batches = Sequence[tuple[Tensor, Tensor]]


def _network(model: nn.Module, names: Sequence[str]) -> tuple[Tensor, Callable[..., Tensor]]:
    """The weights of some modules as one vector, and the outputs as a function of it."""
    keys = [f"{name}.weight".lstrip(".") for name in names]
    values = [model.get_parameter(key).detach() for key in keys]

    def outputs(flat: Tensor, x: Tensor) -> Tensor:
        parts = flat.split([value.numel() for value in values])
        named = {k: p.reshape(v.shape) for k, p, v in zip(keys, parts, values, strict=True)}
        return functional_call(model, named, (x,))

    return torch.cat([value.flatten() for value in values]), outputs


def _mean(batches: Batches, of_batch: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    count = sum(len(x) for x, _ in batches)
    return torch.stack([len(x) / count * of_batch(x, y) for x, y in batches]).sum(0)


def mean_loss(model: nn.Module, batches: Batches, loss: Loss) -> float:
    """Over all samples."""
    with torch.no_grad():
        return float(_mean(batches, lambda x, y: loss(model(x), y)))


def task_gradient(model: nn.Module, names: Sequence[str], batches: Batches, loss: Loss) -> Tensor:
    flat, outputs = _network(model, names)
    return _mean(batches, lambda x, y: jacobian(lambda w: loss(outputs(w, x), y), flat))


def task_hessian(model: nn.Module, names: Sequence[str], batches: Batches, loss: Loss) -> Tensor:
    flat, outputs = _network(model, names)
    return _mean(batches, lambda x, y: hessian(lambda w: loss(outputs(w, x), y), flat))


def gauss_newton(model: nn.Module, names: Sequence[str], batches: Batches, loss: Loss) -> Tensor:
    """Sum over samples of J' H J."""
    flat, outputs = _network(model, names)

    def of_batch(x: Tensor, y: Tensor) -> Tensor:
        j = jacobian(lambda w: outputs(w, x), flat).flatten(0, -2)
        z = outputs(flat, x)
        h = hessian(lambda z: loss(z, y), z).reshape(z.numel(), z.numel())
        return j.T @ h @ j

    return _mean(batches, of_batch)


def row_terms(
    model: nn.Sequential,
    at: int,
    batches: Batches,
    loss: Loss,
    channels: int = 1,
    gauss_newton: bool = False,
) -> list[tuple[Tensor, Tensor]]:
    """For every sample h (rows, positions) and x (rows, positions, weights) of one layer.

    h is the diagonal of the curvature by the layer's output; x the derivative of an output entry by
    the weights, so that every kind of layer will do. `channels` is the output's axis of channels.
    """
    layer, tail = model[at], model[at + 1 :]
    weight = layer.weight.detach()

    def of_sample(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = model[:at](x)
        z = layer(x).detach()
        h = hessian(lambda z: loss(tail(z), y), z)
        if gauss_newton:
            ends = tail(z).detach()
            j = jacobian(tail, z).reshape(ends.numel(), z.numel())
            bend = hessian(lambda e: loss(e, y), ends).reshape(ends.numel(), ends.numel())
            h = j.T @ bend @ j
        diagonal = h.reshape(z.numel(), z.numel()).diagonal().reshape(z.shape)
        patches = jacobian(lambda w: functional_call(layer, {"weight": w}, (x,)), weight)
        patches = patches.flatten(z.ndim).movedim(channels % z.ndim, 0).flatten(1, -2)
        return diagonal.movedim(channels, 0).flatten(1), patches

    return [of_sample(x[i : i + 1], y[i : i + 1]) for x, y in batches for i in range(len(x))]


def row_matrices(terms: list[tuple[Tensor, Tensor]]) -> Tensor:
    """(rows, weights, weights): half of E[ sum over positions of h x x' ]."""
    rows, _, weights = terms[0][1].shape
    total = torch.zeros(rows, weights, weights, dtype=torch.float64)
    for h, x in terms:
        for row in range(rows):
            for h_at, x_at in zip(h[row], x[row], strict=True):
                total[row] += h_at * torch.outer(x_at, x_at) / 2
    return total / len(terms)
