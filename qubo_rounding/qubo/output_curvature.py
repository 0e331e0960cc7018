"""The curvature of the task loss by a layer's outputs z, and the Kronecker form it gives (eq 16).

For z = W x the Hessian by the weights is ``E[ d2L/dz2 (x) x x' ]``, row-major. A convolution is
linear in the same way, with one z and one patch x for each position; its Hessian sums over pairs of
positions. Samples do not see each other: the loss is a mean over them.

Source: Nagel et al. 2020, arXiv 2004.10568, eq 14 to 16, and 27 to 37 for convolutions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qubo_rounding.layers import Layer
from qubo_rounding.passes import LayerCall, LayerTap
from qubo_rounding.patches import by_window, patches_of
from qubo_rounding.qubo.task_loss import (
    Batch,
    Curvature,
    Loss,
    TaskLoss,
    check_curvature,
    pull_back,
    slope_at,
)

TOGETHER = 2**20  # numbers in the outputs of all samples, for all entries differentiated together


class OutputTap(LayerTap):
    """A context that records every call of one layer, and adds zeros to differentiate by.

    Args:
        model: the network.
        layer: the layer.
    """

    def __init__(self, model: nn.Module, layer: Layer) -> None:
        self.calls: list[LayerCall] = []
        self.shifts: list[Tensor] = []  # zeros, shaped like each call's output and added to it
        super().__init__(model, {layer.name: layer}, self.calls.append)

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        output = super().__torch_function__(func, types, args, kwargs)
        if len(self.calls) == len(self.shifts):
            return output
        self.shifts.append(torch.zeros_like(output, requires_grad=True))
        return output + self.shifts[-1]


def output_diagonals(
    task: TaskLoss, layer: Layer, curvature: Curvature, batch: Batch
) -> Iterator[tuple[LayerCall, Tensor]]:
    """Every call of a layer, and the diagonal of the batch loss's curvature by its output, exactly.

    The Hessian takes one product for each entry of a sample's output, Gauss-Newton one for each of
    the network's outputs, all samples at once.

    Args:
        task: the loss.
        layer: the layer.
        curvature: "hessian" or "gauss_newton".
        batch: inputs and labels.

    Returns:
        The calls in order, each with a tensor shaped like its output.

    Raises:
        ValueError: the layer's output has no entry of its own for each sample, or the network's
            outputs are not finite.
    """
    check_curvature(curvature)
    tap, outputs = _tapped(task, layer, batch)
    if curvature == "hessian":
        slopes = slope_at(task.value(outputs, batch[1]), tap.shifts)
        for call, shift, slope in zip(tap.calls, tap.shifts, slopes, strict=True):
            diagonal = torch.zeros_like(shift).flatten(1)
            for entries, columns in _sample_columns(slope, shift):
                diagonal[:, entries] = columns[:, :, entries].diagonal(dim1=0, dim2=2)
            yield call, diagonal.reshape(shift.shape)
        return
    values, vectors = torch.linalg.eigh(_end_hessians(task, outputs, batch[1]))
    for call, shift in zip(tap.calls, tap.shifts, strict=True):
        yield call, _gauss_newton_diagonal(outputs, shift, values, vectors)


def output_hessians(
    model: nn.Module, layer: str, loader: Iterable[Any], *, loss: Loss = F.cross_entropy
) -> tuple[Tensor, Tensor]:
    """Every sample's Hessian of its loss by a layer's outputs, and the inputs they came from.

    For tiny networks: there are (p r)^2 numbers a sample.

    Args:
        model: a network in eval mode that calls the layer once.
        layer: its name; one group.
        loader: batches (inputs, labels).
        loss: gives the mean over a batch, a scalar, from outputs and labels.

    Returns:
        hessians: float64 (n, p, r, p, r), p positions and r outputs.
        inputs: float64 (n, p, d), the patches. `kronecker_hessian` makes the layer's Hessian.

    Raises:
        ValueError: more than one group, or not exactly one call.
    """
    task = TaskLoss.over(model, layer, loader, loss)
    found = [_batch_hessians(task, task.layers[layer], batch) for batch in task.batches]
    hessians, inputs = zip(*found, strict=True)
    return torch.cat(hessians), torch.cat(inputs)


def kronecker_hessian(output_hessians: Tensor, inputs: Tensor) -> Tensor:
    """(r d, r d) float64 Hessian of the mean loss by a layer's weights: E[ d2L/dz2 (x) x x' ].

    ``H[(i, j), (m, o)] = E[ sum over p, q of d2L/dz_pi dz_qm x_pj x_qo ]`` with weights flattened
    row-major, as PyTorch keeps them.

    Args:
        output_hessians: (n, r, r), each sample's Hessian of its own loss by the layer's outputs;
            or (n, p, r, p, r), where a sample has p positions.
        inputs: (n, d), each sample's input; or (n, p, d).

    Raises:
        ValueError: the shapes do not fit together.

    Source: Nagel et al. 2020, arXiv 2004.10568, eq 16.
    """
    if inputs.ndim == 2 and output_hessians.ndim == 3:
        output_hessians, inputs = output_hessians[:, None, :, None], inputs[:, None]
    n, p, d = inputs.shape if inputs.ndim == 3 else (0, 0, 0)
    r = output_hessians.shape[-1]
    if n == 0 or output_hessians.shape != (n, p, r, p, r):
        raise ValueError(
            f"output Hessians of shape {tuple(output_hessians.shape)} and inputs of shape "
            f"{tuple(inputs.shape)} do not fit; give (n, r, r) and (n, d), or (n, p, r, p, r) and "
            "(n, p, d)."
        )
    total = inputs.new_zeros(r, d, r, d, dtype=torch.float64)
    for curvature, x in zip(output_hessians.double(), inputs.double(), strict=True):
        total += torch.einsum("pimo,pj,mk->ijok", curvature, x, x)
    return total.reshape(r * d, r * d) / n


def _tapped(task: TaskLoss, layer: Layer, batch: Batch) -> tuple[OutputTap, Tensor]:
    """One forward pass, with the layer's calls and what was added to them."""
    inputs, _ = batch
    tap = OutputTap(task.model, layer)
    with torch.enable_grad(), tap:
        outputs = task.model(inputs)
    for tensor in (*tap.shifts, outputs):
        if tensor.ndim < 2 or len(tensor) != len(inputs):
            raise ValueError(
                f"Layer {layer.name!r} or the network gives {tuple(tensor.shape)} for "
                f"{len(inputs)} samples; each sample needs its own entries along the first axis."
            )
    if not bool(outputs.isfinite().all()):
        raise ValueError("The network's outputs are not finite; check the weights and the inputs.")
    return tap, outputs


def _sample_columns(slope: Tensor, at: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Columns of every sample's own Hessian, d slope / d at: entries, and (k, n, m) columns."""
    n, m = len(at), at[0].numel()
    together = max(1, TOGETHER // at.numel())
    for start in range(0, m, together):
        entries = slice(start, min(start + together, m))
        units = at.new_zeros(entries.stop - start, n, m)
        units.diagonal(start, 0, 2).fill_(1)
        columns = pull_back(slope, at, units.reshape(-1, *at.shape))
        yield entries, columns.reshape(-1, n, m)


def _sample_hessians(slope: Tensor, at: Tensor) -> Tensor:
    """(n, m, m) all of it."""
    return torch.cat([columns for _, columns in _sample_columns(slope, at)]).transpose(0, 1)


def _end_hessians(task: TaskLoss, outputs: Tensor, labels: Tensor) -> Tensor:
    """(n, c, c) Hessians of the loss by the network's outputs."""
    ends = outputs.detach().requires_grad_()
    (slope,) = slope_at(task.value(ends, labels), [ends])
    return _sample_hessians(slope, ends)


def _gauss_newton_diagonal(
    outputs: Tensor, shift: Tensor, values: Tensor, vectors: Tensor
) -> Tensor:
    """diag(J' U diag(values) U' J): one product with J' for each eigenvector, squared."""
    n, classes = values.shape
    together = max(1, TOGETHER // shift.numel())
    diagonal = torch.zeros_like(shift)
    for start in range(0, classes, together):
        part = slice(start, start + together)
        ends = vectors[:, :, part].permute(2, 0, 1).reshape(-1, *outputs.shape)
        pulled = pull_back(outputs, shift, ends)
        weights = values[:, part].T.reshape(-1, n, *[1] * (shift.ndim - 1))
        diagonal += (weights * pulled.square()).sum(dim=0)
    return diagonal


def _batch_hessians(task: TaskLoss, layer: Layer, batch: Batch) -> tuple[Tensor, Tensor]:
    tap, outputs = _tapped(task, layer, batch)
    if layer.g != 1 or len(tap.calls) != 1:
        raise ValueError(
            f"Layer {layer.name!r} has {layer.g} groups and is called {len(tap.calls)} times; the "
            "Kronecker form is for one group and one call."
        )
    (call,), (shift,), n = tap.calls, tap.shifts, len(batch[0])
    (slope,) = slope_at(task.value(outputs, batch[1]), [shift])
    entries = torch.arange(shift[0].numel(), device=shift.device).reshape(1, *shift.shape[1:])
    order = by_window(call, entries)[0].T.flatten()  # positions first, then rows
    hessians = _sample_hessians(slope, shift)[:, order][:, :, order].double()
    positions = len(order) // layer.r
    windows = patches_of(call).windows().detach().reshape(layer.d, n, positions)
    shape = (n, positions, layer.r, positions, layer.r)
    # The batch loss is a mean: n times it are the samples' own losses.
    return n * hessians.reshape(shape), windows.permute(1, 2, 0).double()
