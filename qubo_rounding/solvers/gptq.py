"""GPTQ, which is Babai's nearest plane: one column after the other, errors passed on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numba
import numpy as np
import torch
from torch import Tensor

from qubo_rounding.parallel import for_each_tile
from qubo_rounding.problem import RoundingProblem, Solution
from qubo_rounding.solvers.solver import RefusedError, Solver


@dataclass(frozen=True)
class Gptq(Solver):
    """Columns rounded one by one, each to its best level while all later ones are still free.

    With the damped Gram matrix written as R' R (R upper triangular, columns in reverse order), the
    best real error of the next column i given those already rounded is
    ``e_i = -sum_{j > i} R_ij e_j / R_ii``: Babai's nearest plane. The result is what GPTQ and LDLQ
    compute with the inverse; no inverse is needed. Levels stay within [low, high], so an up/down
    problem gives up/down GPTQ and a free one the published, free one.

    Args:
        damping: added to the diagonal, as a fraction of its mean; keeps singular Grams solvable.
        order: "activation" rounds the columns with the largest diagonal first (act-order),
            "index" in their own order.

    Source: Frantar et al. 2022, arXiv 2210.17323; Chen et al. 2025, 2507.18553 (GPTQ = Babai);
        Chee et al. 2023, 2307.13304 (GPTQ = LDLQ).
    """

    damping: float = 0.01
    order: Literal["activation", "index"] = "activation"

    def __post_init__(self) -> None:
        if not 0 <= self.damping < np.inf:
            raise ValueError(f"damping is {self.damping}; give a finite number, 0 or more.")
        if self.order not in ("activation", "index"):
            raise ValueError(f"order is {self.order!r}; give 'activation' or 'index'.")

    def refuses(self, problem: RoundingProblem) -> str | None:
        """Not positive definite even when damped?"""
        _, info = torch.linalg.cholesky_ex(self._damped(problem))
        return self._not_definite(info) if bool(info.any()) else None

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        """Babai's levels; the seed is not used."""
        del seed
        order = self._column_order(problem)
        damped = _permute(self._damped(problem), order)
        factor, info = torch.linalg.cholesky_ex(damped)
        if bool(info.any()):  # rounding errors may differ from the unpermuted matrix's
            raise RefusedError(self._not_definite(info))
        centre = problem.target
        if problem.linear is not None:
            # Completing the square moves the unconstrained minimum by -1/2 (G + damping)^-1 l.
            linear = _take(problem.linear, order)
            shift = torch.cholesky_solve(linear.mT, factor).mT / 2
            centre = centre - _scatter(shift, order) / problem.scale
        # The factor's last row belongs to the column rounded first.
        arrays = [
            _take(tensor.expand_as(problem.target), order).cpu().numpy()
            for tensor in (centre, problem.scale, problem.low, problem.high)
        ]
        lower = factor.cpu().numpy()
        levels = np.empty(problem.target.shape, np.int16)

        def round_tile(group: int, rows: slice) -> None:
            at = (group, rows)
            centres, scales, lows, highs = (array[at] for array in arrays)
            _nearest_plane(lower[group], centres, scales, lows, highs, levels[at])

        for_each_tile(problem.g, problem.r, round_tile)
        return problem.solution(_scatter(torch.from_numpy(levels).to(problem.device), order))

    def _damped(self, problem: RoundingProblem) -> Tensor:
        diagonal = problem.diagonal[:, 0]
        extra = (self.damping * diagonal.mean(dim=1, keepdim=True)).expand_as(diagonal)
        # A group that nothing flows into is all zeros; any definite matrix rounds it to nearest.
        extra = torch.where((diagonal == 0).all(dim=1, keepdim=True), 1.0, extra)
        return problem.gram + torch.diag_embed(extra)

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


@numba.njit(cache=True, nogil=True)
def _nearest_plane(lower, centre, scale, low, high, levels):  # pyright: ignore
    """Round the columns of (r, d) from last to first; lower (d, d) is the Cholesky factor."""
    rows, d = centre.shape
    # passed[i, j]: sum over rounded columns k of R_jk e_k, with errors measured from the centre.
    passed = np.zeros((rows, d))
    for c in range(d - 1, -1, -1):
        for i in range(rows):
            wish = centre[i, c] - passed[i, c] / (lower[c, c] * scale[i, c])
            level = min(max(np.rint(wish), low[i, c]), high[i, c])
            levels[i, c] = np.int16(level)
            error = scale[i, c] * (level - centre[i, c])
            for j in range(c):
                passed[i, j] += error * lower[c, j]
