"""The task loss that levels really give, to hold against the energy that a problem foresees."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from qubo_rounding.problem import ProblemError, RoundingProblem, gram_product
from qubo_rounding.qubo.layer_decisions import layer_names
from qubo_rounding.qubo.task_loss import Loss, TaskLoss, all_watched

MOST_FREE = 20  # weights whose 2^n candidates are still enumerated
CANDIDATES = 2**12  # at a time
TOGETHER = 2**20  # numbers in the inputs of all networks that run together
_ADVICE = "Allow more time, or take fewer samples."


def true_losses(
    model: nn.Module,
    problem: RoundingProblem,
    levels: Tensor,
    loader: Iterable[Any],
    *,
    loss: Loss = F.cross_entropy,
) -> Tensor:
    """(k,) float64 mean loss of the network on each of k candidates' weights.

    Args:
        model: the network that the problem was made for, in eval mode.
        problem: one of a task loss, with ``meta["layers"]``.
        levels: (k, g, r, d) of the problem.
        loader: batches (inputs, labels); they are held in memory.
        loss: gives the mean over a batch, a scalar, from outputs and labels.

    Raises:
        ProblemError: the problem does not know its layers, or levels have another shape.
        ValueError: as for `task_problem`.
    """
    _check_candidates(problem, levels)
    return _losses(TaskLoss.over(model, layer_names(problem), loader, loss), problem, levels)


def every_loss(
    model: nn.Module,
    problem: RoundingProblem,
    loader: Iterable[Any],
    *,
    loss: Loss = F.cross_entropy,
) -> Tensor:
    """(2^n,) float64 mean loss of every candidate of a problem with n free weights, by its number.

    Args:
        model, problem, loader, loss: as for `true_losses`.

    Raises:
        ProblemError: as for `true_losses`; or the problem is not binary, or n exceeds 20.
        TimeoutError: the time limit of `watching` ended it early.
    """
    total = 2 ** len(_free(problem))
    task = TaskLoss.over(model, layer_names(problem), loader, loss)
    found = []
    for start in all_watched(range(0, total, CANDIDATES), "candidates", _ADVICE):
        numbers = torch.arange(start, min(start + CANDIDATES, total), device=problem.device)
        found.append(_losses(task, problem, candidate_levels(problem, numbers)))
    return torch.cat(found)


def every_energy(problem: RoundingProblem) -> Tensor:
    """(2^n,) float64 energy, summed over rows, of every candidate of a problem, by its number.

    Raises:
        ProblemError: the problem is not binary, or has more than 20 free weights.
    """
    total = 2 ** len(_free(problem))
    found = []
    for start in range(0, total, CANDIDATES):
        numbers = torch.arange(start, min(start + CANDIDATES, total), device=problem.device)
        found.append(total_energies(problem, candidate_levels(problem, numbers)))
    return torch.cat(found)


def total_energies(problem: RoundingProblem, levels: Tensor) -> Tensor:
    """(k,) float64 energies of k candidates (k, g, r, d), summed over rows.

    Raises:
        ProblemError: levels have another shape.
    """
    _check_candidates(problem, levels)
    errors = problem.errors(levels)
    k, g, r, d = errors.shape
    slope = gram_product(errors.transpose(0, 1).reshape(g, k * r, d), problem.gram)
    slope = slope.reshape(g, k, r, d).transpose(0, 1)
    if problem.linear is not None:
        slope = slope + problem.linear
    return (slope * errors).sum(dim=(1, 2, 3)) + problem.offset.sum()


def candidate_levels(problem: RoundingProblem, numbers: Tensor) -> Tensor:
    """(k, g, r, d) int16 levels of candidates: bit i of the number takes free weight i to `high`.

    Args:
        problem: a binary problem with at most 20 free weights, counted row-major.
        numbers: int64 (k,), from 0 to 2^n - 1.

    Raises:
        ProblemError: the problem is not binary, or has more than 20 free weights.
    """
    free = _free(problem)
    low, high = problem.low.flatten(), problem.high.flatten()
    bits = numbers[:, None] >> torch.arange(len(free), device=problem.device) & 1
    levels = low.repeat(len(numbers), 1)
    levels[:, free] = torch.where(bits == 1, high[free], low[free])
    return levels.reshape(-1, *problem.target.shape)


def _losses(task: TaskLoss, problem: RoundingProblem, levels: Tensor) -> Tensor:
    weights = (task.weights + problem.errors(levels).flatten(1)).to(task.weights.dtype)
    total = torch.zeros(len(weights), dtype=torch.float64, device=weights.device)
    for share, (inputs, labels) in task.shares():

        def loss(w: Tensor, inputs: Tensor = inputs, labels: Tensor = labels) -> Tensor:
            return task.value(task.outputs(w, inputs), labels)

        together = max(1, TOGETHER // inputs.numel())
        total += share * vmap(loss, chunk_size=together)(weights).double()
    return total


def _free(problem: RoundingProblem) -> Tensor:
    """(n,) places of the weights that have two levels."""
    free = torch.nonzero((problem.high > problem.low).flatten()).flatten()
    if not problem.is_binary or len(free) > MOST_FREE:
        raise ProblemError(
            f"the problem has {len(free)} free weights; every candidate is looked at for an "
            f"up/down problem with at most {MOST_FREE}."
        )
    return free


def _check_candidates(problem: RoundingProblem, levels: Tensor) -> None:
    if levels.ndim != 4 or levels.shape[1:] != problem.target.shape:
        raise ProblemError(
            f"levels have shape {tuple(levels.shape)}; give (k, g, r, d) with (g, r, d) = "
            f"{tuple(problem.target.shape)}."
        )
