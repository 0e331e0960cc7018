"""The Gauss-Newton matrix J' (d2L/dz2) J of a batch, from the whole Jacobian J = dz/dw.

A product with the matrix would take a pass forward and one back for each of the d columns. J takes
one pass for each of a sample's outputs, or for each weight where they are much fewer, and the
curvature by the outputs z is cheap beside them. It is exact for any scalar loss of the outputs;
samples must not see each other inside the network.

Source: Martens 2020, arXiv 1412.1193; Griewank, Walther 2008, Evaluating Derivatives, chapter 3
(forward and reverse mode).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import jvp, vmap

from qubo_rounding.qubo.task_loss import Batch, TaskLoss, pull_back, slope_at, unit_rows

# What a product by forward mode takes in reverse ones: torch also convolves every layer's inputs
# with the change of its weights where there is none.
FORWARD_COST = 2
BENT_TOGETHER = 32  # columns of J that the loss's curvature is applied to at once


def gauss_newton(task: TaskLoss, batch: Batch, chunk: int) -> Tensor:
    """(d, d) float64 Gauss-Newton matrix of the mean loss of one batch.

    Args:
        task: the loss.
        batch: inputs and labels.
        chunk: products with J computed together.

    Raises:
        ValueError: a sample's outputs are no (1, ...), the loss is no scalar.
    """
    inputs, labels = batch
    outputs, jacobians = zip(
        *(_of_sample(task, one, chunk) for one in inputs.split(1)), strict=True
    )
    ends, jacobian = torch.cat(outputs).requires_grad_(), torch.cat(jacobians)  # (n c, d)
    (slope,) = slope_at(task.value(ends, labels), [ends])
    parts = []
    for columns in jacobian.split(BENT_TOGETHER, dim=1):
        moves = columns.T.reshape(-1, *ends.shape).to(ends.dtype)
        parts.append(pull_back(slope, ends, moves).flatten(1).double() @ jacobian)
    return torch.cat(parts)


class SampleJacobian:
    """The derivatives J (c, d) of one sample's outputs by the weights, a few products at a time.

    Args:
        task: tells the network and the weights.
        sample: (1, ...) the network's input.

    Raises:
        ValueError: the outputs are no (1, ...).
    """

    def __init__(self, task: TaskLoss, sample: Tensor) -> None:
        self._task, self._sample = task, sample
        self._at = task.weights.clone().requires_grad_()
        self._reached = task.outputs(self._at, sample)
        self.outputs = self._reached.detach()
        if self.outputs.ndim < 1 or len(self.outputs) != 1:
            raise ValueError(
                f"The network gives {tuple(self.outputs.shape)} for one sample; Gauss-Newton "
                "matrices need (1, ...): every sample with outputs of its own, first axis first."
            )
        d, c = len(self._at), self.outputs.numel()
        self.forward = FORWARD_COST * d < c
        self.count = d if self.forward else c

    def products(self, start: int, end: int) -> Tensor:
        """Columns `start` to `end` of J by forward mode, else its rows: (end - start, c or d)."""
        if not self.forward:
            units = unit_rows(self.outputs.flatten(), start, end)
            return pull_back(self._reached, self._at, units.reshape(-1, *self.outputs.shape))

        def outputs(weights: Tensor) -> Tensor:
            return self._task.outputs(weights, self._sample)

        def change(direction: Tensor) -> Tensor:
            return jvp(outputs, (self._task.weights,), (direction,))[1]

        units = unit_rows(self._task.weights, start, end)
        # A single one goes the ordinary way, which knows more functions than the batched one.
        changes = vmap(change)(units) if len(units) > 1 else change(units[0])
        return changes.reshape(len(units), -1)


def _of_sample(task: TaskLoss, sample: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Outputs (1, ...) and all of J, float64 (c, d)."""
    one = SampleJacobian(task, sample)
    starts = range(0, one.count, chunk)
    found = [one.products(start, min(start + chunk, one.count)).double() for start in starts]
    return one.outputs, torch.cat(found).T if one.forward else torch.cat(found)
