"""What a solver gives: levels, their energies, and how good they are known to be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qubo_rounding.exchange_file import ProblemError, json_from, load_npz, save_npz, tensor_from

PROVEN_TOLERANCE = 1e-9  # relative; what float64 leaves of an energy that two roads computed
_OF_ROWS = ("energy", "lower_bound")


@dataclass(frozen=True, eq=False)
class Solution:
    """Levels with their energies, and how good they are known to be.

    Args:
        levels: (g, r, d) int16.
        energy: (g, r) float64, output^2 per position.
        lower_bound: (g, r) float64, no levels have less energy; NaN or -inf where a row has no
            bound, None where no row has one.
        stats: what the solver tells about its work (JSON-serialisable).
    """

    levels: Tensor
    energy: Tensor
    lower_bound: Tensor | None = None
    stats: Mapping[str, Any] = field(default_factory=dict)

    @property
    def known_bound(self) -> Tensor:
        """(g, r) lower bounds, -inf where there is none; a tensor of its own."""
        if self.lower_bound is None:
            return torch.full_like(self.energy, -torch.inf)
        return self.lower_bound.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)

    @property
    def gap(self) -> Tensor:
        """(g, r) energy minus lower bound; infinite where there is no bound."""
        return self.energy - self.known_bound

    @property
    def total_bound(self) -> float | None:
        """Sum of the rows' lower bounds; None unless every row has one."""
        if self.lower_bound is None or not bool(self.lower_bound.isfinite().all()):
            return None
        return float(self.lower_bound.sum())

    @property
    def proven(self) -> Tensor:
        """(g, r) bool: is the lower bound within 1e-9 relative of the energy?"""
        return self.gap <= PROVEN_TOLERANCE * self.energy.abs()

    def save(self, path: str | Path) -> None:
        """Write the `.npz` exchange file: levels, energy, lower_bound if any, stats as JSON."""
        arrays = {"levels": self.levels.cpu().numpy(), "energy": self.energy.cpu().numpy()}
        if self.lower_bound is not None:
            arrays["lower_bound"] = self.lower_bound.cpu().numpy()
        save_npz(path, arrays | {"stats": np.array(json.dumps(dict(self.stats)))})

    @classmethod
    def load(cls, path: str | Path) -> Solution:
        """Read an exchange file.

        Raises:
            ProblemError: not a readable `.npz`, a field missing or of a wrong shape or kind.
        """
        arrays = load_npz(path, required=("levels", "energy"))
        stats = json_from(path, arrays.pop("stats", None), "stats")
        tensors = {name: tensor_from(path, name, array) for name, array in arrays.items()}
        levels = tensors.pop("levels")
        whole = not levels.is_floating_point() and bool((levels == levels.to(torch.int16)).all())
        if levels.ndim != 3 or not whole:
            raise ProblemError(f"{path}: levels have to be 16-bit integers of shape (g, r, d).")
        of_rows = {name: tensors[name].double() for name in _OF_ROWS if name in tensors}
        for name, value in of_rows.items():
            if value.shape != levels.shape[:2]:
                raise ProblemError(
                    f"{path}: {name} has shape {tuple(value.shape)}; with levels "
                    f"{tuple(levels.shape)} give {tuple(levels.shape[:2])}."
                )
        return cls(levels.to(torch.int16), **of_rows, stats=stats)
