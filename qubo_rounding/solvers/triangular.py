"""A rounding problem made triangular by Cholesky, so that columns can be decided one by one."""

# Annotations are evaluated here: subclasses elsewhere inherit `order`, and tools look its words up.
import math
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from qubo_rounding.problem import RoundingProblem
from qubo_rounding.solvers.solver import RefusedError, Solver


@dataclass(frozen=True, eq=False)
class Triangular:
    """The damped energy as a sum of squares, one per column; columns stand in rounding order.

    With the damped Gram matrix written as L L' (L lower triangular), the damped energy is a
    constant plus ``sum_c (L_cc scale_c)^2 (level_c - wish_c)^2``, where ``wish_c = centre_c -
    sum_{j > c} L_jc e_j / (L_cc scale_c)`` and ``e = scale * (levels - centre)``: what column c
    costs is known once all columns after it are decided. The last column is rounded first.

    Args:
        order: (g, d), which column of the problem stands at each place.
        factor: (g, d, d), L.
        added: (g, 1, 1), the damping: what was added to the Gram matrix's diagonal.
        centre: (g, r, d), where the damped energy is least, in levels.
        target, scale, low, high: (g, r, d), as in the problem.
    """

    order: Tensor
    factor: Tensor
    added: Tensor
    centre: Tensor
    target: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    def part(self, groups: slice, rows: slice) -> "Triangular":
        """The same of some groups and rows alone."""
        of_rows = (self.centre, self.target, self.scale, self.low, self.high)
        cut = (tensor[groups, rows] for tensor in of_rows)
        return Triangular(self.order[groups], self.factor[groups], self.added[groups], *cut)

    def single(self, unit: Tensor) -> "Triangular":
        """The same in float32, energies divided by `unit` (g, r, 1) where that is positive.

        The factor stays as it is; a row's scale alone carries the unit.
        """
        scale = self.scale / torch.where(unit > 0, unit, 1.0).sqrt()
        tensors = (self.factor, self.added, self.centre, self.target, scale, self.low, self.high)
        return Triangular(self.order, *(tensor.float() for tensor in tensors))

    def restore(self, levels: Tensor) -> Tensor:
        """Levels (g, r, d) back in the problem's order of columns."""
        return _scatter(levels, self.order)


# Solvers that begin with others ask the same of a problem again and again.
_REFUSALS: WeakKeyDictionary[RoundingProblem, dict[tuple[float, str], str | None]]
_REFUSALS = WeakKeyDictionary()


@dataclass(frozen=True)
class TriangularSolver(Solver):
    """Base of the solvers that round column by column; it refuses what Cholesky cannot factor.

    Args:
        damping: added to the diagonal, as a fraction of its mean; keeps singular Grams solvable.
        order: "activation" rounds the columns with the largest diagonal first (act-order),
            "index" in their own order.
    """

    damping: float = 0.01
    order: Literal["activation", "index"] = "activation"

    def __post_init__(self) -> None:
        if not 0 <= self.damping < math.inf:
            raise ValueError(f"damping is {self.damping}; give a finite number, 0 or more.")
        if self.order not in ("activation", "index"):
            raise ValueError(f"order is {self.order!r}; give 'activation' or 'index'.")

    def refuses(self, problem: RoundingProblem) -> str | None:
        """Not positive definite even when damped?"""
        known, key = _REFUSALS.setdefault(problem, {}), (self.damping, self.order)
        if key not in known:
            # Of the very matrix that is to be factored: another order's rounding errors may differ.
            _, info = torch.linalg.cholesky_ex(self._ordered(problem, self._column_order(problem)))
            known[key] = self._not_definite(info) if bool(info.any()) else None
        return known[key]

    def triangular(self, problem: RoundingProblem) -> Triangular:
        """The problem's triangular form, damped and ordered.

        Raises:
            RefusedError: the damped Gram matrix is not positive definite.
        """
        order = self._column_order(problem)
        factor, info = torch.linalg.cholesky_ex(self._ordered(problem, order))
        if bool(info.any()):
            raise RefusedError(self._not_definite(info))
        centre = problem.target
        if problem.linear is not None:
            # Completing the square moves the unconstrained minimum by -1/2 (G + damping)^-1 l.
            linear = _take(problem.linear, order)
            shift = torch.cholesky_solve(linear.mT, factor).mT / 2
            centre = centre - _scatter(shift, order) / problem.scale
        of_rows = (centre, problem.target, problem.scale, problem.low, problem.high)
        taken = (_take(tensor.expand_as(problem.target), order) for tensor in of_rows)
        return Triangular(order, factor, self._added(problem), *taken)

    def _ordered(self, problem: RoundingProblem, order: Tensor) -> Tensor:
        """(g, d, d) the damped matrix, its columns in the order of rounding."""
        matrix = _permute(problem.gram, order)
        matrix.diagonal(dim1=1, dim2=2).add_(self._added(problem).squeeze(2))
        return matrix

    def _added(self, problem: RoundingProblem) -> Tensor:
        """(g, 1, 1) what damping adds to the diagonal."""
        diagonal = problem.diagonal
        # A group that nothing flows into is all zeros; any definite matrix rounds it to nearest.
        dead = (diagonal == 0).all(dim=2, keepdim=True)
        return torch.where(dead, 1.0, self.damping * diagonal.mean(dim=2, keepdim=True))

    def _column_order(self, problem: RoundingProblem) -> Tensor:
        """(g, d) columns, the one to be rounded first in last place."""
        if self.order == "index":
            return torch.arange(problem.d - 1, -1, -1, device=problem.device).repeat(problem.g, 1)
        return problem.diagonal[:, 0].argsort(dim=1, descending=True, stable=True).flip(1)

    def _not_definite(self, info: Tensor) -> str:
        group = int(torch.nonzero(info)[0])
        return (
            f"the Gram matrix of group {group} with damping {self.damping} is not positive "
            "definite; raise the damping, or use a solver that does not factor it."
        )


def _permute(matrix: Tensor, order: Tensor) -> Tensor:
    rows = matrix.gather(1, order.unsqueeze(2).expand_as(matrix))
    return rows.gather(2, order.unsqueeze(1).expand_as(matrix))


def _take(values: Tensor, order: Tensor) -> Tensor:
    return values.gather(2, order.unsqueeze(1).expand_as(values)).contiguous()


def _scatter(values: Tensor, order: Tensor) -> Tensor:
    return torch.empty_like(values).scatter_(2, order.unsqueeze(1).expand_as(values), values)
