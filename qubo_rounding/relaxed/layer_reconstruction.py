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
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.relaxed.checkpoint import NO_CHECKPOINT, Checkpoint
from qubo_rounding.relaxed.layer_objective import Compared, MapObjective, PatchObjective
from qubo_rounding.relaxed.reconstruction import (
    Learned,
    Reconstruction,
    SoftLayer,
    learn,
    mean_loss,
)
from qubo_rounding.solution import Solution


@dataclass(frozen=True)
class LayerData:
    """What a layer is reconstructed from.

    Args:
        layer: the layer.
        following: what follows it.
        pairs: its calls on the calibration batches, given what follows.
        images: how many those hold.
        bias: (g, r) its bias; zeros where it has none.
        shift_for: (g, r) the bias shift that given levels ask for; None keeps the bias.
    """

    layer: Layer
    following: Following
    pairs: Callable[[Following], Iterator[LayerPair]]
    images: int
    bias: Tensor
    shift_for: Callable[[Tensor], Tensor] | None


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
    """The levels that minimise a layer's reconstruction error, and the bias shift that goes beside.

    The shift was learned for soft weights, and levels that had not settled move the mean output
    once they are decided: so the levels found are tried with the shift of their own means too, and
    nearest rounding is the answer where neither has a lower loss.

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
    nearest = _shifted(data, problem.nearest())
    soft = SoftLayer(problem, grid, settings, start, nearest.shift if data.shift_for else None)
    stats = learn(objective, [soft], settings, seed, checkpoint, data.layer.name or "layer")
    learned = soft.learned()

    def loss_of(found: Learned) -> float:
        return mean_loss(objective, [found.weight(grid).float()], [found.shift.float()])

    answers = [learned, _shifted(data, learned.levels), nearest]
    losses = [loss_of(answer) for answer in answers]
    best = min(range(len(answers)), key=losses.__getitem__)
    stats |= {"loss": losses[best], "loss_nearest": losses[-1]}
    return problem.solution(answers[best].levels, **stats), answers[best].shift


def _shifted(data: LayerData, levels: Tensor) -> Learned:
    """Levels with the bias shift that they ask for."""
    if data.shift_for is None:
        return Learned(levels, levels.new_zeros(levels.shape[:2], dtype=torch.float64))
    return Learned(levels, data.shift_for(levels))


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
