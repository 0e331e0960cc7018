"""What rounds a layer whose turn it is: a solver on its Gram, or a reconstruction on its inputs."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from qubo_rounding.activation_finish import ActivationFinish
from qubo_rounding.calibration import LayerPair, Step
from qubo_rounding.following import Following
from qubo_rounding.grid import Grid
from qubo_rounding.kept_files import file_name
from qubo_rounding.layer_problem import LayerSettings
from qubo_rounding.layers import Layer, bias_of, weight_of
from qubo_rounding.local_loss import BiasMode, bias_shift
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.relaxed.checkpoint import NO_CHECKPOINT, Checkpoint
from qubo_rounding.relaxed.layer_objective import Compared, PatchObjective
from qubo_rounding.relaxed.layer_reconstruction import LayerData, reconstruct_layer
from qubo_rounding.relaxed.reconstruction import Reconstruction
from qubo_rounding.run_folder import RunFolder
from qubo_rounding.scale_refit import round_with_scales
from qubo_rounding.solution import Solution
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

    def with_inputs(self, quantised: bool) -> Posed:
        """The same with the inputs that the rounded network gives, or only the float network's."""
        gram = self.gram
        return self if quantised else replace(self, gram=Gram(gram.second, gram.total, gram.count))


@dataclass(frozen=True)
class Rounded:
    """What a rounder found for a layer.

    Args:
        posed: the problem that the levels belong to; on another grid where scales were refitted.
        solution: the levels.
        shift: (g, r) of the bias.
    """

    posed: Posed
    solution: Solution
    shift: Tensor


class Rounder(Protocol):
    """Finds levels for one layer after the other."""

    @property
    def name(self) -> str:
        """What records say of who found them."""
        ...

    def round(self, posed: Posed) -> Rounded:
        """The levels, and what goes with them."""
        ...

    def finish(self, layer: Layer) -> None:
        """The layer's result is kept: what was kept on the way may go."""
        ...


@dataclass(frozen=True)
class SolverRounder:
    """Every layer by one solver.

    Args:
        solver: the solver.
        settings: whose scale refits alternate with it.
        seed: of the network.
    """

    solver: Solver
    settings: LayerSettings
    seed: int

    @property
    def name(self) -> str:
        """The solver's configuration."""
        return repr(self.solver)

    def round(self, posed: Posed) -> Rounded:
        """See `Rounder.round`.

        Raises:
            RefusedError: the solver refuses the layer, which the message names.
        """
        layer = posed.step.layer
        try:
            problem, grid, solution = round_with_scales(
                *(posed.problem, posed.grid, posed.weight, self.solver, self.settings),
                self.settings.scale_refits,
                seed=layer_seed(self.seed, layer),
            )
        except RefusedError as error:
            raise RefusedError(f"layer {layer.name!r}: {error}") from None
        posed = replace(posed, problem=problem, grid=grid)
        return Rounded(posed, solution, posed.shift_for(solution.levels))

    def finish(self, layer: Layer) -> None:
        """Nothing: solvers keep nothing on the way."""


@dataclass(frozen=True)
class NetworkData:
    """What rounding on data needs to know of the network.

    Args:
        model: the float network.
        following: what follows each layer.
        images: calibration images.
        seed: of the network.
        budget: bytes that one layer's inputs and targets may hold in memory.
    """

    model: nn.Module
    following: Mapping[str, Following]
    images: int
    seed: int
    budget: float

    def bias_of(self, layer: Layer) -> Tensor:
        """float32 (g, r) the layer's bias; zeros where it has none."""
        bias = bias_of(self.model, layer)
        if bias is None:
            bias = weight_of(self.model, layer).new_zeros(layer.g * layer.r)
        return bias.reshape(layer.g, layer.r).float()

    def pairs(self, step: Step, following: Following) -> Iterator[LayerPair]:
        """The calls of the step's layer; sequential calibration has them."""
        assert step.pairs is not None
        return step.pairs(following)


@dataclass(frozen=True)
class LayerRounder:
    """Every layer by reconstruction of its own output.

    Args:
        settings: of the reconstruction.
        data: of the network.
        folder: for checkpoints; None keeps none.
    """

    settings: Reconstruction
    data: NetworkData
    folder: RunFolder | None

    @property
    def name(self) -> str:
        """The reconstruction's configuration."""
        return repr(self.settings)

    def round(self, posed: Posed) -> Rounded:
        """See `Rounder.round`."""
        layer, data, settings = posed.step.layer, self.data, self.settings
        refit = posed.bias == "refit"
        solution, shift = reconstruct_layer(
            LayerData(
                layer=layer,
                following=data.following[layer.name],
                pairs=lambda following: data.pairs(posed.step, following),
                images=data.images,
                bias=data.bias_of(layer),
                shift_for=posed.with_inputs(settings.asymmetric).shift_for if refit else None,
            ),
            posed.problem,
            posed.grid,
            settings,
            seed=layer_seed(data.seed, layer),
            budget=data.budget,
            checkpoint=self._checkpoint(layer),
        )
        return Rounded(posed, solution, shift)

    def finish(self, layer: Layer) -> None:
        """Deletes the layer's checkpoint."""
        self._checkpoint(layer).forget()

    def _checkpoint(self, layer: Layer) -> Checkpoint:
        if self.folder is None:
            return NO_CHECKPOINT
        path = self.folder.path / "layers" / f"{file_name(layer.name)}.checkpoint"
        return Checkpoint(path, prepare=self.folder.bind)


@dataclass(frozen=True)
class FinishingRounder:
    """Every layer by another rounder, and then behind its activation function where it has one.

    Args:
        first: the other rounder.
        finish: improves what it gives.
        data: of the network.
    """

    first: Rounder
    finish_with: ActivationFinish
    data: NetworkData

    @property
    def name(self) -> str:
        """Both configurations."""
        return f"{self.first.name}, {self.finish_with!r}"

    def round(self, posed: Posed) -> Rounded:
        """See `Rounder.round`."""
        found = self.first.round(posed)
        layer, posed = posed.step.layer, found.posed
        following = self.data.following[layer.name]
        if following.activation is None:
            return found
        bias = self.data.bias_of(layer)
        plain = replace(following, activation=None, name="none")
        objective = PatchObjective(
            Compared(layer, plain, bias, torch.ones_like(bias)),
            self.data.pairs(posed.step, following),
            self.data.images,
            self.data.budget,
            self.finish_with.positions,
            layer_seed(self.data.seed, layer),
        )
        refit = posed.bias == "refit"
        solution, shift = self.finish_with.improve(
            *(objective, replace(following, adds=False), posed.problem, posed.weight, bias),
            *(found.solution, found.shift, refit, layer_seed(self.data.seed, layer)),
        )
        return Rounded(posed, solution, shift)

    def finish(self, layer: Layer) -> None:
        """See `Rounder.finish`."""
        self.first.finish(layer)


def layer_seed(seed: int, layer: Layer) -> int:
    """A layer's own seed: layers draw different numbers, each the same whichever are rounded."""
    return seed ^ zlib.crc32(layer.name.encode())
