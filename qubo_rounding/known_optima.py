"""What several solvers know of one problem together: bounds, proven optima, and who proved them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qubo_rounding.problem import RoundingProblem
from qubo_rounding.solution import PROVEN_TOLERANCE, Solution


@dataclass(frozen=True)
class KnownOptima:
    """The best that is known of a problem's rows.

    Args:
        problem: the layer's rounding problem.
        bound: (g, r) highest lower bound; -inf where a row has none.
        proven: (g, r) bool, whether some solver proved the row's optimum.
        energy: (g, r) of the optimum, where it is proven.
        levels: (g, r, d) of the optimum, where it is proven.
        proven_by: the solvers that proved rows.
    """

    problem: RoundingProblem
    bound: Tensor
    proven: Tensor
    energy: Tensor
    levels: Tensor
    proven_by: tuple[str, ...]

    @classmethod
    def of(cls, problem: RoundingProblem, found: Sequence[tuple[str, Solution]]) -> KnownOptima:
        """What solutions tell, each with the name of its solver."""
        levels = problem.nearest()
        energy = problem.energy(levels)
        bound = torch.full_like(energy, -torch.inf)
        proven = torch.zeros_like(energy, dtype=torch.bool)
        names: list[str] = []
        for name, solution in found:
            bound = bound.maximum(solution.known_bound)
            new = solution.proven & ~proven
            if bool(solution.proven.any()) and name not in names:
                names.append(name)
            levels = torch.where(new[..., None], solution.levels, levels)
            energy = torch.where(new, solution.energy, energy)
            proven = proven | new
        return cls(problem, bound, proven, energy, levels, tuple(names))

    def relation(self, solution: Solution, relaxed: Tensor | None) -> dict[str, Any]:
        """How a solution stands to what is known, by the names of `Record`.

        Args:
            solution: of the same problem.
            relaxed: (g, r, d) levels of the relaxation; None tells nothing of it.
        """
        energy = float(solution.energy.sum())
        bound = float(self.bound.sum())
        room = PROVEN_TOLERANCE * (self.energy.abs() + self.problem.unit[..., 0])
        exact = self.proven & (solution.energy <= self.energy + room)
        told: dict[str, Any] = {
            "best_bound": bound if bound > -torch.inf else None,
            "over_bound": energy / bound if bound > 0 else None,
            "known_rows": int(self.proven.sum()),
            "exact_rows": int(exact.sum()),
            "proven_by": " + ".join(self.proven_by),
            "bits_of_optimum": self._in_common(solution.levels, self.levels, self.proven),
        }
        if relaxed is not None:
            every = torch.ones_like(self.proven)
            told["bits_of_relaxation"] = self._in_common(solution.levels, relaxed, every)
        return told

    def _in_common(self, levels: Tensor, others: Tensor, rows: Tensor) -> float | None:
        """Share of the undecided weights of these rows (g, r) with equal levels."""
        undecided = (self.problem.low < self.problem.high) & rows[..., None]
        count = int(undecided.sum())
        return int(((levels == others) & undecided).sum()) / count if count else None
