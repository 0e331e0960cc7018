"""The task loss itself as a rounding problem: one for all weights of a layer, or of several.

For a change e of the weights, E[L(w + e) - L(w)] is about g'e + e'He/2 (eq 12); a network that has
converged has g = 0, and e'He/2 is left (eq 13). All weights are coupled, so the problem has
g = r = 1 and as many columns as there are weights.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qubo_rounding.fingerprint import Fingerprint
from qubo_rounding.layer_problem import LayerSettings
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.qubo.gauss_newton import gauss_newton
from qubo_rounding.qubo.hessian_cost import Cost, judged_cost
from qubo_rounding.qubo.hessian_folder import HessianFolder
from qubo_rounding.qubo.layer_decisions import (
    DEFAULT_SETTINGS,
    check_settings,
    decisions,
    problem_notes,
)
from qubo_rounding.qubo.task_loss import (
    Curvature,
    HessianColumns,
    Loss,
    TaskLoss,
    all_watched,
)

BLOCK = 32  # columns that are kept, or lost by an interrupt, together
_ADVICE = "With a folder, the same call goes on from there."

_log = logging.getLogger(__name__)


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
            derivatives of the network, and is positive semidefinite for a convex loss. The two are
            equal for one layer of a piecewise linear network. Gauss-Newton takes a product for each
            of the network's outputs (or two for each weight), the Hessian a dearer one for each
            weight.
        gradient: whether to keep the first-order term g of eq 12; False is eq 13.
        settings: bits, range and candidates of each layer; None is 4 bits per channel. Biases stay
            as they are.
        chunk: products computed together, at most 32; None chooses by the size of the activations.
            1 also does for functions that torch cannot batch.
        memory: bytes this may take.
        folder: keeps what is finished, blocks of the Hessian's columns or the sum of Gauss-Newton
            matrices over batches; the same call resumes there, to the same bits.

    Raises:
        ValueError: a layer that is not there or not reached, a batch without labels, settings that
            a task loss cannot follow, more memory needed than allowed, a curvature that is not
            finite, a folder of another Hessian, outputs that Gauss-Newton cannot tell apart by
            samples.
        TimeoutError: the time limit of `watching` ended it early.

    Source: Nagel et al. 2020, arXiv 2004.10568, eq 12 and 13.
    """
    settings = settings or DEFAULT_SETTINGS
    check_settings(settings)
    task = TaskLoss.over(model, layers, loader, loss)
    gram = _hessian(task, curvature, chunk, memory, folder).div_(2)
    parts = [decisions(model, layer, settings) for layer in task.layers.values()]
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
    return judged_cost(TaskLoss.over(model, layers, loader, loss), curvature, chunk, memory)


def _hessian(
    task: TaskLoss,
    curvature: Curvature,
    chunk: int | None,
    memory: float,
    folder: str | Path | None,
) -> Tensor:
    cost = judged_cost(task, curvature, chunk, memory)
    kept = None if folder is None else HessianFolder(folder, _identity(task, curvature, chunk))
    finished = f"; {_finished(curvature, kept)} are kept" if kept else ""
    _log.info("%s of %s: %s%s", curvature, ", ".join(task.layers), cost, finished)
    compute = _by_columns if curvature == "hessian" else _by_batches
    found = compute(task, cost.chunk, kept)
    return (found + found.mT).div_(2)


def _finished(curvature: Curvature, kept: HessianFolder) -> str:
    numbers = kept.numbers()
    if curvature == "hessian":
        return f"{len(numbers)} blocks of {BLOCK}"
    return f"{max(numbers, default=0)} batches"


def _by_columns(task: TaskLoss, chunk: int, kept: HessianFolder | None) -> Tensor:
    """(d, d) float64 Hessian of the mean loss; blocks of columns are kept."""
    d = len(task.weights)
    hessian = torch.empty(d, d, dtype=torch.float64, device=task.weights.device)
    for start in all_watched(range(0, d, BLOCK), "hessian columns", _ADVICE):
        block = kept.load(start) if kept else None
        if block is None:
            block = _columns(task, start, min(start + BLOCK, d), chunk)
            if kept:
                kept.save(start, block)
        hessian[start : start + BLOCK] = block
    return hessian


def _columns(task: TaskLoss, start: int, end: int, chunk: int) -> Tensor:
    """Columns `start` to `end` of the mean Hessian, as float64 rows (end - start, d)."""
    total = torch.zeros_like(task.weights, dtype=torch.float64).repeat(end - start, 1)
    for share, batch in task.shares():
        columns = HessianColumns(task, batch)
        for first in range(start, end, chunk):
            part = columns.products(first, min(first + chunk, end))
            total[first - start : first - start + chunk] += share * part.double()
    _check_finite(task, total, "hessian", f"columns {start} to {end - 1}")
    return total


def _by_batches(task: TaskLoss, chunk: int, kept: HessianFolder | None) -> Tensor:
    """(d, d) float64 Gauss-Newton matrix of the mean loss; the sum so far is kept."""
    d, shares = len(task.weights), list(task.shares())
    total = torch.zeros(d, d, dtype=torch.float64, device=task.weights.device)
    done = max(kept.numbers(), default=0) if kept else 0
    if kept and (before := kept.load(done)) is not None:
        total += before.to(total.device)
    for number in all_watched(range(done, len(shares)), "gauss_newton batches", _ADVICE):
        share, batch = shares[number]
        total += share * gauss_newton(task, batch, chunk)
        _check_finite(task, total, "gauss_newton", f"batch {number}")
        if kept:
            kept.replace(number + 1, total)
    return total


def _check_finite(task: TaskLoss, values: Tensor, curvature: Curvature, where: str) -> None:
    if not bool(values.isfinite().all()):
        raise ValueError(
            f"the {curvature} of {', '.join(task.layers)} is not finite in {where}; check the "
            "weights, the inputs and the labels."
        )


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
