"""GPTQ, which is Babai's nearest plane: one column after the other, errors passed on."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

from qubo_rounding.parallel import for_each_tile
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.solution import Solution
from qubo_rounding.solvers.triangular import Triangular, TriangularSolver


@dataclass(frozen=True)
class Gptq(TriangularSolver):
    """Columns rounded one by one, each to its best level while all later ones are still free.

    With the damped Gram matrix written as L L' (L lower triangular, columns in reverse order), the
    best real error of the next column i given those already rounded is
    ``e_i = -sum_{j > i} L_ji e_j / L_ii``: Babai's nearest plane. The result is what GPTQ and LDLQ
    compute with the inverse; no inverse is needed. Levels stay within [low, high], so an up/down
    problem gives up/down GPTQ and a free one the published, free one.

    Args:
        damping: added to the diagonal, as a fraction of its mean; keeps singular Grams solvable.
        order: "activation" rounds the columns with the largest diagonal first (act-order),
            "index" in their own order.

    Source: Frantar et al. 2022, arXiv 2210.17323; Chen et al. 2025, 2507.18553 (GPTQ = Babai);
        Chee et al. 2023, 2307.13304 (GPTQ = LDLQ).
    """

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        """Babai's levels; the seed is not used."""
        del seed
        form = self.triangular(problem)
        return problem.solution(form.restore(nearest_plane(form)))


def nearest_plane(form: Triangular) -> Tensor:
    """(g, r, d) int16 levels, columns in rounding order: each the nearest to its wish."""
    of_rows = (form.centre, form.scale, form.low, form.high)
    arrays = [tensor.cpu().numpy() for tensor in of_rows]
    factor = form.factor.cpu().numpy()
    g, r, d = form.centre.shape
    levels = np.empty((g, r, d), np.int16)

    def round_tile(group: int, rows: slice) -> None:
        at = (group, rows)
        centres, scales, lows, highs = (array[at] for array in arrays)
        _nearest_plane(factor[group], centres, scales, lows, highs, levels[at])

    for_each_tile(g, r, round_tile)
    return torch.from_numpy(levels).to(form.centre.device)


@numba.njit(cache=True, nogil=True)
def _nearest_plane(lower, centre, scale, low, high, levels):  # pyright: ignore
    """Round the columns of (r, d) from last to first; lower (d, d) is the Cholesky factor."""
    rows, d = centre.shape
    # passed[i, j]: sum over rounded columns k of L_kj e_k, with errors measured from the centre.
    passed = np.zeros((rows, d))
    for c in range(d - 1, -1, -1):
        for i in range(rows):
            wish, weight = centre[i, c], lower[c, c] * scale[i, c]
            if weight > 0:  # else it has underflowed: no level costs anything
                wish -= passed[i, c] / weight
            level = min(max(np.rint(wish), low[i, c]), high[i, c])
            levels[i, c] = np.int16(level)
            error = scale[i, c] * (level - centre[i, c])
            for j in range(c):
                passed[i, j] += error * lower[c, j]
