"""The best of all levels that a solver comes across, row by row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qubo_rounding.problem import RoundingProblem


@dataclass(eq=False)
class BestLevels:
    """The best levels offered so far, compared in float64; of equals the first stay.

    Args:
        problem: whose energy decides.
        levels: (g, r, d) int16 to begin with.
        energy: (g, r) their energy; infinite where any offer is better.
    """

    problem: RoundingProblem
    levels: Tensor
    energy: Tensor

    def offer(self, levels: Tensor) -> Tensor:
        """Keep these levels (g, r, d) in the rows where they are better; tells which, (g, r)."""
        energy = self.problem.energy(levels)
        better = energy < self.energy
        self.levels = torch.where(better.unsqueeze(2), levels, self.levels)
        self.energy = torch.where(better, energy, self.energy)
        return better
