"""What rounds a layer whose turn it is: a solver on its Gram, or a reconstruction on its inputs."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from qubo_rounding.calibration import Step
from qubo_rounding.following import Following
from qubo_rounding.grid import Grid
from qubo_rounding.layers import Layer, bias_of
from qubo_rounding.local_loss import BiasMode, bias_shift
from qubo_rounding.problem import RoundingProblem, Solution
from qubo_rounding.relaxed.checkpoint import Checkpoint
from qubo_rounding.relaxed.layer_reconstruction import LayerData, reconstruct_layer
from qubo_rounding.relaxed.reconstruction import Reconstruction
from qubo_rounding.solvers import RefusedError, Solver
from qubo_rounding.statistics import Gram


@dataclass(frozen=True)
class Posed:
    """A layer's problem with all that it was made from.

    Args:
        step: the layer and its data.
        gram: of its inputs.
        weight: (g, r, d) float weights.
        problem, grid: from `layer_problem`.
        bias: may the bias be refitted?
    """

    step: Step
    gram: Gram
    weight: Tensor
    problem: RoundingProblem
    grid: Grid
    bias: BiasMode

    def shift_for(self, levels: Tensor) -> Tensor:
        """(g, r) the bias shift that these levels ask for, from the means of the inputs."""
        return bias_shift(self.weight, self.grid.dequantize(levels), self.gram, self.bias)


class Rounder(Protocol):
    """Finds levels for one layer after the other."""

    @property
    def name(self) -> str:
        """What records say of who found them."""
        ...

    def round(self, posed: Posed) -> tuple[Solution, Tensor]:
        """The levels, and the bias shift (g, r) that goes with them."""
        ...

    def finish(self, layer: Layer) -> None:
        """The layer's result is kept: what was kept on the way may go."""
        ...


@dataclass(frozen=True)
class SolverRounder:
    """Every layer by one solver.

    Args:
        solver: the solver.
        seed: of the network.
    """

    solver: Solver
    seed: int

    @property
    def name(self) -> str:
        """The solver's configuration."""
        return repr(self.solver)

    def round(self, posed: Posed) -> tuple[Solution, Tensor]:
        """See `Rounder.round`.

        Raises:
            RefusedError: the solver refuses the layer, which the message names.
        """
        layer = posed.step.layer
        try:
            solution = self.solver.solve(posed.problem, seed=layer_seed(self.seed, layer))
        except RefusedError as error:
            raise RefusedError(f"layer {layer.name!r}: {error}") from None
        return solution, posed.shift_for(solution.levels)

    def finish(self, layer: Layer) -> None:
        """Nothing: solvers keep nothing on the way."""


@dataclass(frozen=True)
class LayerRounder:
    """Every layer by reconstruction of its own output.

    Args:
        settings: of the reconstruction.
        model: the float network.
        following: what follows each layer.
        images: calibration images.
        seed: of the network.
        budget: bytes that one layer's inputs and targets may hold in memory.
        folder: for checkpoints; None keeps none.
    """

    settings: Reconstruction
    model: nn.Module
    following: Mapping[str, Following]
    images: int
    seed: int
    budget: float
    folder: Path | None

    @property
    def name(self) -> str:
        """The reconstruction's configuration."""
        return repr(self.settings)

    def round(self, posed: Posed) -> tuple[Solution, Tensor]:
        """See `Rounder.round`."""
        layer, pairs = posed.step.layer, posed.step.pairs
        assert pairs is not None  # steps of sequential calibration have them
        zeros = torch.zeros(posed.weight.shape[:2], device=posed.weight.device)
        refit = posed.bias == "refit"
        bias = bias_of(self.model, layer)
        data = LayerData(
            layer=layer,
            following=self.following[layer.name],
            pairs=pairs,
            images=self.images,
            bias=zeros if bias is None else bias.reshape(zeros.shape),
            shift=posed.shift_for(posed.problem.nearest()) if refit else None,
        )
        return reconstruct_layer(
            data,
            posed.problem,
            posed.grid,
            self.settings,
            seed=layer_seed(self.seed, layer),
            budget=self.budget,
            checkpoint=self._checkpoint(layer),
        )

    def finish(self, layer: Layer) -> None:
        """Deletes the layer's checkpoint."""
        self._checkpoint(layer).forget()

    def _checkpoint(self, layer: Layer) -> Checkpoint:
        name = f"{layer.name or 'model'}.checkpoint"
        return Checkpoint(None if self.folder is None else self.folder / "layers" / name)


def layer_seed(seed: int, layer: Layer) -> int:
    """A layer's own seed: layers draw different numbers, each the same whichever are rounded."""
    return seed ^ zlib.crc32(layer.name.encode())
