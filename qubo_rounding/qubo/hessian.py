"""The task loss itself as a rounding problem: one for all weights of a layer, or of several.

For a change e of the weights, E[L(w + e) - L(w)] is about g'e + e'He/2 (eq 12); a network that has
converged has g = 0, and e'He/2 is left (eq 13). All weights are coupled, so the problem has
g = r = 1 and as many columns as there are weights.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from tqdm import tqdm

from qubo_rounding.fingerprint import Fingerprint
from qubo_rounding.layer_problem import LayerSettings
from qubo_rounding.layers import weight_of
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.qubo.column_folder import ColumnFolder
from qubo_rounding.qubo.layer_decisions import (
    DEFAULT_SETTINGS,
    check_settings,
    decisions,
    problem_notes,
)
from qubo_rounding.qubo.task_loss import Curvature, Loss, Product, TaskLoss, all_watched

BLOCK = 32  # columns that are kept, or lost by an interrupt, together
# Columns differentiated together share the overhead of a call, but each needs activations of its
# own: beyond this many bytes of them a processor is faster with one after the other.
TOGETHER_BYTES = 2**23

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cost:
    """What a task Hessian takes, told before it is computed.

    Args:
        columns: d, weights of all its layers.
        chunk: columns differentiated together.
        memory: bytes: the Hessian, two copies for the checks of a problem, the activations.
        seconds: for all columns, judged by the first of them on the first batch.
    """

    columns: int
    chunk: int
    memory: int
    seconds: float

    def __str__(self) -> str:
        size = tqdm.format_sizeof(self.memory, "B", 1024)
        duration = tqdm.format_interval(self.seconds)
        return f"{self.columns} columns, {self.chunk} together, {size}, about {duration}"


def task_problem(
    model: nn.Module,
    layers: str | Iterable[str],
    loader: Iterable[Any],
    *,
    loss: Loss = F.cross_entropy,
    curvature: Curvature = "hessian",
    gradient: bool = False,
    settings: LayerSettings | None = None,
    chunk: int | None = None,
    memory: float = 4 * 2**30,
    folder: str | Path | None = None,
) -> RoundingProblem:
    """The rounding problem whose energy is the change of the task loss to second order.

    ``energy = e' (H/2) e + g' e``, in units of the loss; g = r = 1, and the columns are the
    (g, r, d) weights of the layers, row-major, one layer after the other. `split_layers` takes
    levels back to the layers, `rounded_network` into a network.

    Args:
        model: a network in eval mode, batch norms folded (`fold_batch_norm`): otherwise the weights
            are not those that will be rounded. The derivatives are computed in its dtype; take
            ``model.double()`` for exact ones.
        layers: name of a layer, or several for one joint problem.
        loader: batches (inputs, labels); they are held in memory.
        loss: gives the mean over a batch, a scalar, from outputs and labels.
        curvature: "hessian" is exact and may be indefinite; "gauss_newton" leaves out the second
            derivatives of the network, and is positive semidefinite for a convex loss.
        gradient: whether to keep the first-order term g of eq 12; False is eq 13.
        settings: bits, range and candidates of each layer; None is 4 bits per channel. Biases stay
            as they are.
        chunk: columns differentiated together, at most 32; None chooses by the size of the
            activations. 1 also does for functions that torch cannot batch.
        memory: bytes this may take.
        folder: keeps finished blocks of columns; the same call resumes there, to the same bits.

    Raises:
        ValueError: a layer that is not there or not reached, a batch without labels, settings that
            a task loss cannot follow, more memory needed than allowed, a curvature that is not
            finite, a folder of another Hessian.
        TimeoutError: the time limit of `watching` ended it early.

    Source: Nagel et al. 2020, arXiv 2004.10568, eq 12 and 13.
    """
    settings = settings or DEFAULT_SETTINGS
    check_settings(settings)
    task = TaskLoss.over(model, layers, loader, loss)
    gram = _hessian(task, curvature, chunk, memory, folder).div_(2)
    parts = [
        decisions(layer, layer.matrix(weight_of(model, layer).detach()), settings)
        for layer in task.layers.values()
    ]
    fields = {name: torch.cat([part[name].flatten() for part in parts]) for name in parts[0]}
    return RoundingProblem(
        gram[None],
        **{name: value[None, None] for name, value in fields.items()},
        linear=task.gradient()[None, None] if gradient else None,
        meta=problem_notes(task, curvature, settings),
    )


def task_hessian(
    model: nn.Module,
    layers: str | Iterable[str],
    loader: Iterable[Any],
    *,
    loss: Loss = F.cross_entropy,
    curvature: Curvature = "hessian",
    chunk: int | None = None,
    memory: float = 4 * 2**30,
    folder: str | Path | None = None,
) -> Tensor:
    """(d, d) float64 Hessian of the mean task loss by the weights of the layers, symmetric.

    Args and Raises: as for `task_problem`, whose Gram matrix is half of it.
    """
    return _hessian(TaskLoss.over(model, layers, loader, loss), curvature, chunk, memory, folder)


def task_cost(
    model: nn.Module,
    layers: str | Iterable[str],
    loader: Iterable[Any],
    *,
    loss: Loss = F.cross_entropy,
    curvature: Curvature = "hessian",
    chunk: int | None = None,
    memory: float = 4 * 2**30,
) -> Cost:
    """What `task_problem` or `task_hessian` will take; the first columns are computed to judge it.

    Args and Raises: as for `task_problem`.
    """
    return _cost(TaskLoss.over(model, layers, loader, loss), curvature, chunk, memory)


def _hessian(
    task: TaskLoss,
    curvature: Curvature,
    chunk: int | None,
    memory: float,
    folder: str | Path | None,
) -> Tensor:
    kept = None if folder is None else ColumnFolder(folder, _identity(task, curvature, chunk))
    cost = _cost(task, curvature, chunk, memory)
    finished = f"; {kept.count()} blocks of {BLOCK} are kept" if kept else ""
    _log.info("%s of %s: %s%s", curvature, ", ".join(task.layers), cost, finished)
    d = cost.columns
    hessian = torch.empty(d, d, dtype=torch.float64, device=task.weights.device)
    advice = "With a folder, the same call goes on from there."
    for start in all_watched(range(0, d, BLOCK), f"{curvature} columns", advice):
        block = kept.load(start) if kept else None
        if block is None:
            block = _columns(task, curvature, start, min(start + BLOCK, d), cost.chunk)
            if kept:
                kept.save(start, block)
        hessian[start : start + BLOCK] = block
    return (hessian + hessian.mT).div_(2)


def _columns(task: TaskLoss, curvature: Curvature, start: int, end: int, chunk: int) -> Tensor:
    """Columns `start` to `end` of the mean curvature, as float64 rows (end - start, d)."""
    total = torch.zeros_like(task.weights, dtype=torch.float64).repeat(end - start, 1)
    for share, batch in task.shares():
        product = task.product(curvature, batch)
        for first in range(start, end, chunk):
            units = _units(task.weights, first, min(first + chunk, end))
            total[first - start : first - start + chunk] += share * product(units).double()
    if not bool(total.isfinite().all()):
        raise ValueError(
            f"the {curvature} of {', '.join(task.layers)} is not finite in columns {start} to "
            f"{end - 1}; check the weights, the inputs and the labels."
        )
    return total


def _units(like: Tensor, start: int, end: int) -> Tensor:
    """(end - start, d) rows of the identity."""
    units = like.new_zeros(end - start, len(like))
    units.diagonal(start).fill_(1)
    return units


def _cost(task: TaskLoss, curvature: Curvature, chunk: int | None, memory: float) -> Cost:
    d, first = len(task.weights), task.batches[0]
    if chunk is not None and not 1 <= chunk <= BLOCK:
        raise ValueError(f"chunk is {chunk}; give 1 to {BLOCK} columns, or None.")
    began = time.perf_counter()
    product, activations = _traced(task, curvature)
    prepared = time.perf_counter()
    chunk = chunk or int(min(max(TOGETHER_BYTES // max(activations, 1), 1), BLOCK, d))
    # A problem compares its Gram matrix with its transpose: twice more.
    needed = 3 * 8 * d * d + (1 + chunk) * activations
    if needed > memory:
        raise ValueError(
            f"the {curvature} of {d} weights needs {needed} bytes (3 x 8 x {d}^2, and "
            f"{1 + chunk} x {activations} for activations); memory allows {memory:.0f}. Raise it, "
            "or take fewer layers, smaller batches or a smaller chunk."
        )
    units = _units(task.weights, 0, min(chunk, d))
    product(units)
    done = time.perf_counter()
    per_batch = (prepared - began) * -(-d // BLOCK) + (done - prepared) * d / len(units)
    return Cost(d, chunk, needed, per_batch * task.images / len(first[0]))


def _traced(task: TaskLoss, curvature: Curvature) -> tuple[Product, int]:
    """The product with the first batch's curvature, and the bytes that its graph keeps."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output kept with its own graph would never be freed

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        product = task.product(curvature, task.batches[0])
    return product, sum(sizes.values())


def _identity(task: TaskLoss, curvature: Curvature, chunk: int | None) -> dict[str, Any]:
    """What decides about the columns; the loss is known by its name and its value."""
    state = chain(task.model.parameters(), task.model.buffers())
    inputs, labels = task.batches[0]
    value = float(task.value(task.outputs(task.weights, inputs), labels))
    return {
        "layers": list(task.layers),
        "curvature": curvature,
        "loss": f"{task.loss_name}, {value:.6g} on the first batch",
        "network": str(Fingerprint(state)),
        "data": str(Fingerprint(chain.from_iterable(task.batches))),
        "chunk": chunk,
        "block": BLOCK,
    }
