"""One layer learned on its own data: the problem, the calls, the objective, the levels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qubo_rounding.calibration import LayerPair
from qubo_rounding.following import Following
from qubo_rounding.grid import Grid
from qubo_rounding.layers import Layer
from qubo_rounding.problem import RoundingProblem, Solution
from qubo_rounding.relaxed.checkpoint import NO_CHECKPOINT, Checkpoint
from qubo_rounding.relaxed.layer_objective import Compared, MapObjective, PatchObjective
from qubo_rounding.relaxed.reconstruction import Reconstruction, SoftLayer, learn, mean_loss


@dataclass(frozen=True)
class LayerData:
    """What a layer is reconstructed from.

    Args:
        layer: the layer.
        following: what follows it.
        pairs: its calls on the calibration batches, given what follows.
        images: how many those hold.
        bias: (g, r) its bias; zeros where it has none.
        shift: (g, r) the bias shift to begin with; None keeps the bias.
    """

    layer: Layer
    following: Following
    pairs: Callable[[Following], Iterator[LayerPair]]
    images: int
    bias: Tensor
    shift: Tensor | None


def reconstruct_layer(
    data: LayerData,
    problem: RoundingProblem,
    grid: Grid,
    settings: Reconstruction,
    *,
    seed: int,
    budget: float,
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> tuple[Solution, Tensor]:
    """The levels that minimise a layer's reconstruction error, and the bias shift learned beside.

    Args:
        data: what the layer is reconstructed from.
        problem: the layer's rounding problem: levels allowed, energy scales, the start's problem.
        grid: the layer's grid.
        settings: of the reconstruction.
        seed: of minibatches, positions and the start.
        budget: bytes that inputs and targets may hold in memory; what is more goes to disk.
        checkpoint: where the state is kept now and then.

    Returns:
        The solution, whose stats tell the loss of nearest rounding and of the levels found, and
        the shift, float64 (g, r).
    """
    objective = _objective(data, problem, settings, seed, budget)
    start = None if settings.start is None else settings.start.solve(problem, seed=seed)
    soft = SoftLayer(problem, grid, settings, start, data.shift)
    stats = learn(objective, [soft], settings, seed, checkpoint, data.layer.name or "layer")
    found = soft.learned()

    def loss_of(levels: Tensor) -> float:
        weights, shift = grid.dequantize(levels).float(), found.shift.float()
        return mean_loss(objective, [weights], [shift])

    stats |= {"loss": loss_of(found.levels), "loss_nearest": loss_of(problem.nearest())}
    return problem.solution(found.levels, **stats), found.shift


def _objective(
    data: LayerData, problem: RoundingProblem, settings: Reconstruction, seed: int, budget: float
) -> MapObjective | PatchObjective:
    following = data.following if settings.activation else Following()
    unit = problem.unit.squeeze(2)
    weights = torch.where(unit > 0, 1 / unit, 0.0) if settings.normalise else torch.ones_like(unit)
    compared = Compared(data.layer, following, data.bias.float(), weights.float())
    pairs = data.pairs(following)
    if not settings.asymmetric:
        pairs = (replace(pair, call_q=pair.call, added_q=pair.added) for pair in pairs)
    if settings.positions is None:
        return MapObjective(compared, pairs, data.images, budget)
    return PatchObjective(compared, pairs, data.images, budget, settings.positions, seed)
