"""A layer's loss behind its activation function as rounding problems, one for each row.

    E[(f(w~' x_q + b + s) - f(z))^2]  ~  E[ m (e' x_q + d + s)^2 ],   d = w' x_q + b - z

with z the float output, e = w~ - w, s the bias shift and m = ((f(z~) - f(z)) / (z~ - z))^2 at the
output z~ of levels at hand: a Gauss-Newton model that is exact there. Positions where the
activation is flat on the whole way do not count, so every row has a Gram matrix of its own,
E[m x x'], and a solver that knows nothing of activations minimises the loss behind one. Where the
bias may be refitted, s is minimised over too, which makes all moments central ones.

Source: the loss is eq 25 of Nagel et al. 2020, arXiv 2004.10568; the model is iteratively
reweighted least squares (Holland, Welsch 1977).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qubo_rounding.following import Following
from qubo_rounding.problem import RoundingProblem

_CHUNK_NUMBERS = 2**25  # of Gram matrices built at once


@dataclass(frozen=True)
class RowData:
    """One group's windows and what its rows are compared with.

    Args:
        inputs: float32 (n, d), windows of the rounded network's inputs.
        outputs: float32 (n, r), the float outputs before the activation function, all added.
        others: float32 (n, r), what is added to the rounded outputs besides weights: bias, skip.
        following: the activation function, for tensors (n, r).
    """

    inputs: Tensor
    outputs: Tensor
    others: Tensor
    following: Following

    def losses(self, weights: Tensor, shift: Tensor) -> Tensor:
        """float64 (r,) E[(f(z~) - f(z))^2] of weights (r, d) with bias shifts (r,)."""
        given = self.inputs @ weights.float().T + self.others + shift.float()
        error = self.following(given) - self.following(self.outputs)
        return error.double().square().mean(dim=0)

    def importance(self, weights: Tensor, shift: Tensor) -> Tensor:
        """(n, r) the m above, at given weights and shifts."""
        given = self.inputs @ weights.float().T + self.others + shift.float()
        change = given - self.outputs
        # On a way too short to divide by, a short step along it tells the slope.
        step = torch.where(change.abs() > _SHORT, change, _SHORT)
        slope = (self.following(self.outputs + step) - self.following(self.outputs)) / step
        return slope.square()


_SHORT = 1e-3


def row_problems(
    data: RowData,
    problem: RoundingProblem,
    weights: Tensor,
    shift: Tensor,
    levels: Tensor,
    refit: bool,
) -> Iterator[tuple[slice, RoundingProblem, Tensor, Tensor]]:
    """Problems of some rows at a time, every row a group of its own.

    Args:
        data: of one group.
        problem: of that group alone: targets, scales, levels allowed.
        weights: float64 (r, d), unrounded.
        shift: float64 (r,), the bias shift at hand.
        levels: int16 (r, d), at hand.
        refit: may the bias be refitted?

    Yields:
        The rows; their problem (rows, 1, d); and what their best shift is made from, constant
        (rows,) and slope (rows, d): s = constant + slope' e. Where the bias is kept, s stays.
    """
    r, d = weights.shape
    rounded = weights + problem.errors(levels[None])[0]
    importance = data.importance(rounded, shift)
    change = (data.inputs @ weights.float().T + data.others - data.outputs).double()
    together = max(1, _CHUNK_NUMBERS // d**2)
    for start in range(0, r, together):
        rows = slice(start, min(start + together, r))
        yield (rows, *_problem_of(data, problem, importance, change, shift, rows, refit))


def _problem_of(
    data: RowData,
    problem: RoundingProblem,
    importance: Tensor,
    change: Tensor,
    shift: Tensor,
    rows: slice,
    refit: bool,
) -> tuple[RoundingProblem, Tensor, Tensor]:
    x, n = data.inputs, len(data.inputs)
    m = importance[:, rows].double()
    fixed = change[:, rows] + (0 if refit else shift[rows])
    grams = torch.stack([(x * m[:, [k]].float()).T @ x for k in range(m.shape[1])]).double() / n
    cross = (m * fixed).T @ x.double() / n
    square = (m * fixed**2).mean(dim=0)
    constant, slope = shift[rows].clone(), torch.zeros_like(cross)
    if refit:
        share = m.mean(dim=0).clamp_min(torch.finfo(torch.float32).tiny)
        mean_x, mean_fixed = m.T @ x.double() / n, (m * fixed).mean(dim=0)
        grams -= mean_x[:, :, None] * mean_x[:, None, :] / share[:, None, None]
        cross -= mean_x * (mean_fixed / share)[:, None]
        square -= mean_fixed**2 / share
        constant, slope = -mean_fixed / share, -mean_x / share[:, None]
    grams = (grams + grams.mT) / 2
    part = problem.part(rows=rows)
    by_row = RoundingProblem(
        gram=grams,
        target=part.target.transpose(0, 1),
        scale=part.scale.transpose(0, 1),
        low=part.low.transpose(0, 1),
        high=part.high.transpose(0, 1),
        linear=2 * cross[:, None],
        offset=square[:, None],
        stream=part.stream.T,
        meta=problem.meta,
    )
    return by_row, constant, slope
