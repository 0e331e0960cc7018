"""The task loss as one rounding problem for each row, where output entries curve it by themselves.

With only the diagonal of the Hessian by a layer's outputs z, the loss changes by

    sum over rows k of e_k' G_k e_k,    G_k = E[ sum over positions of h_k x x' ] / 2

with h_k = d2L/dz_k^2 (eq 17, 18): every row has a matrix of its own. With h_k replaced by its mean
the matrices are multiples of one, E[x x'], and the rows are those of the local loss (eq 19, 20).

Source: Nagel et al. 2020, arXiv 2004.10568, eq 17 to 20.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qubo_rounding.layer_problem import LayerSettings
from qubo_rounding.layers import Layer
from qubo_rounding.passes import LayerCall
from qubo_rounding.patches import by_window, patches_of
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.qubo.layer_decisions import (
    DEFAULT_SETTINGS,
    check_settings,
    decisions,
    problem_notes,
)
from qubo_rounding.qubo.output_curvature import output_diagonals
from qubo_rounding.qubo.task_loss import Curvature, Loss, TaskLoss, all_watched

CHUNK_ELEMENTS = 2**21  # float64 numbers of patches at a time


def row_hessian_problem(
    model: nn.Module,
    layer: str,
    loader: Iterable[Any],
    *,
    loss: Loss = F.cross_entropy,
    curvature: Curvature = "hessian",
    settings: LayerSettings | None = None,
    memory: float = 4 * 2**30,
) -> RoundingProblem:
    """The rounding problem of one layer in which every row has its own matrix, in loss units.

    Its groups are the layer's rows: g is groups x rows of the layer, r is 1. The energies add up to
    the change of the task loss to second order, products of different outputs (and, for a
    convolution, of different positions) left out. `split_layers` gives levels of (g, r, d).

    Args:
        model: a network in eval mode, batch norms folded.
        layer: the layer's name.
        loader: batches (inputs, labels); they are held in memory.
        loss: gives the mean over the samples of a batch, from outputs and labels.
        curvature: "hessian" takes a product for each entry of the layer's output, "gauss_newton"
            one for each output of the network. They are equal where the network behind the layer
            is piecewise linear.
        settings: bits, range and candidates; None is 4 bits per channel.
        memory: bytes that the matrices may take.

    Raises:
        ValueError: as for `task_problem`.
        TimeoutError: the time limit of `watching` ended it early.

    Source: Nagel et al. 2020, arXiv 2004.10568, eq 17 and 18.
    """
    settings = settings or DEFAULT_SETTINGS
    check_settings(settings)
    task = TaskLoss.over(model, layer, loader, loss)
    one = task.layers[layer]
    g, r, d = one.g, one.r, one.d
    if (needed := 3 * 8 * g * r * d * d) > memory:
        raise ValueError(
            f"the {g * r} matrices of layer {layer!r} need {needed} bytes (3 x 8 x {g * r} x "
            f"{d}^2); memory allows {memory:.0f}. Raise it, or weigh the rows of the local loss "
            "with row_weights."
        )
    gram = torch.zeros(g, r, d, d, dtype=torch.float64, device=task.weights.device)
    for call, weights in _curvatures(task, one, curvature):
        _add_weighted(gram, call, weights)
    gram = (gram + gram.mT).div_(4).flatten(0, 1)
    fields = decisions(model, one, settings)
    fields = {name: value.reshape(g * r, 1, d) for name, value in fields.items()}
    return RoundingProblem(gram, **fields, meta=problem_notes(task, curvature, settings))


def row_weights(
    model: nn.Module,
    layer: str,
    loader: Iterable[Any],
    *,
    loss: Loss = F.cross_entropy,
    curvature: Curvature = "hessian",
) -> Tensor:
    """(g, r) float64 weights that turn a layer's local losses into a change of the task loss.

    ``c_k = E[ sum over positions of h_k ] / 2``: the sum of c_k times the local energy of row k is
    the change of the task loss, if h_k does not vary with the input. The local problem has to keep
    its biases (``LayerSettings(bias="keep")``).

    Args:
        model, layer, loader, loss, curvature: as for `row_hessian_problem`.

    Raises:
        ValueError, TimeoutError: as for `row_hessian_problem`.

    Source: Nagel et al. 2020, arXiv 2004.10568, eq 19 and 20.
    """
    task = TaskLoss.over(model, layer, loader, loss)
    one = task.layers[layer]
    total = torch.zeros(one.g, one.r, dtype=torch.float64, device=task.weights.device)
    for _, weights in _curvatures(task, one, curvature):
        total += weights.sum(dim=2)
    return total / 2


def _curvatures(
    task: TaskLoss, layer: Layer, curvature: Curvature
) -> Iterator[tuple[LayerCall, Tensor]]:
    """Every call with h (g, r, n), float64, as it enters the mean over all samples."""
    advice = "Allow more time, or take fewer samples."
    for share, batch in all_watched(list(task.shares()), f"rows of {layer.name}", advice):
        for call, diagonal in output_diagonals(task, layer, curvature, batch):
            yield call, share * by_window(call, diagonal).double()


def _add_weighted(gram: Tensor, call: LayerCall, weights: Tensor) -> None:
    """Add the sum over windows of weights (g, r, n) times x x' to gram (g, r, d, d)."""
    patches, done = patches_of(call), 0
    count = max(1, CHUNK_ELEMENTS // (patches.groups * patches.columns))
    for chunk in patches.chunks(count):
        x = chunk.detach().double()
        part = weights[:, :, done : done + x.shape[2]]
        for row in range(gram.shape[1]):
            gram[:, row] += (x * part[:, row, None]) @ x.mT
        done += x.shape[2]
