"""AdaRound on data: levels learned by gradient descent on a reconstruction error."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from qubo_rounding.grid import Grid
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.relaxed.adam import Adam
from qubo_rounding.relaxed.checkpoint import NO_CHECKPOINT, Checkpoint
from qubo_rounding.relaxed.choices import choices_of
from qubo_rounding.relaxed.course import Course
from qubo_rounding.relaxed.objective import Objective
from qubo_rounding.relaxed.soft_levels import SoftLevels
from qubo_rounding.relaxed.softening import KeptLevels, RectifiedSigmoid, Relaxation
from qubo_rounding.solution import Solution
from qubo_rounding.solvers.annealing import Annealing
from qubo_rounding.solvers.random_numbers import stream_keys, uniforms
from qubo_rounding.solvers.solver import Solver
from qubo_rounding.watch import watched
from qubo_rounding.whole_numbers import check_whole

_TINY = torch.finfo(torch.float32).tiny
_SAMPLES_AT_ONCE = 64  # where nothing is learned


@dataclass(frozen=True)
class Reconstruction:
    """Levels learned on minibatches of layer inputs; the defaults are the paper's.

    Minimises ||f_a(W x) - f_a(W~ x_q)||^2 + lam * f_reg(V) by Adam, with W~ the soft weights, x the
    layer's inputs in the float network, x_q those in the network rounded so far, f_a the
    activation function that really follows, residual additions before it included.

    Args (change often):
        iterations: Adam steps a layer.
        lr: Adam's step size; 1e-2 settles better in fewer iterations.
        lam: weight of the regulariser. 0.1 suits networks like MobileNetV2: their depthwise layers
            have few weights and large errors, beside which 0.01 leaves many bits unsettled. With
            `normalise` it is relative to each row's own energy scale and 1 suits all layers.
        positions: of each sample, drawn once; None takes all. 16 cost the same in every layer
            and are a small part of the time in the first ones.
    Args (with caution):
        asymmetric: False gives the layer the float network's inputs (eq 21).
        activation: False compares outputs before the activation function.
        normalise: see `lam`.
        start: a solver whose levels the optimisation begins near and chooses around; None is the
            paper's start, every weight where it lies between its two levels.
    Args (never):
        batch: samples a minibatch.
        relaxation: how levels are made continuous, with the regulariser and its annealing.

    Source: Nagel et al. 2020, arXiv 2004.10568, eq 25 and section 5.
    """

    iterations: int = 10_000
    lr: float = 1e-3
    lam: float = 0.01
    positions: int | None = None
    asymmetric: bool = True
    activation: bool = True
    normalise: bool = False
    start: Solver | None = None
    batch: int = 32
    relaxation: Relaxation = field(default_factory=RectifiedSigmoid)

    def __post_init__(self) -> None:
        counts = {"iterations": self.iterations, "batch": self.batch}
        if self.positions is not None:
            counts["positions"] = self.positions
        check_whole(1, **counts)
        if not (0 < self.lr < math.inf and 0 <= self.lam < math.inf):
            raise ValueError(f"lr is {self.lr} and lam {self.lam}; give lr > 0 and lam >= 0.")


@dataclass(frozen=True)
class BlockReconstruction(Reconstruction):
    """Levels of all layers of a block learned together, on the block's output.

    Every layer is first rounded by `start` (None: by `Annealing`) on its own inputs, one after the
    other; then the blocks are learned in order of execution, each on the inputs that the network
    rounded so far gives. A block begins near the levels of a `start` that is given, or where its
    weights are, and keeps the levels it had where it learns none with a lower loss.

    Args (change often):
        blocks: names of the modules to learn together; None finds the residual blocks, and "" is
            the whole network.
        divergence: "squared" compares outputs, "kl" the answers of the whole network.
    Args (with caution):
        fisher: weigh squared errors by the Fisher information of the outputs, whose labels are
            drawn from the float network's own answers.
        drop: share of activations left unquantised while weights are learned (QDrop: 0.5).
        step_lr: relative step size of the activation quantisers' scales; 0 leaves them alone.
        scale_lr: relative step size of the weights' scales, as many as the grid has rows or
            layers; 0 leaves them alone.

    Source: Li et al. 2021 (BRECQ), arXiv 2102.05426; Wei et al. 2022 (QDrop), arXiv 2203.05740.
    """

    blocks: tuple[str, ...] | None = None
    divergence: Literal["squared", "kl"] = "squared"
    fisher: bool = True
    drop: float = 0.5
    step_lr: float = 1e-3
    scale_lr: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.divergence not in ("squared", "kl"):
            raise ValueError(f"divergence is {self.divergence!r}; give 'squared' or 'kl'.")
        if self.divergence == "kl" and self.blocks != ("",):
            raise ValueError('divergence "kl" compares answers; give it blocks=("",).')
        if not 0 <= self.drop <= 1:
            raise ValueError(f"drop is {self.drop}; give a share, 0 to 1.")
        for name in ("step_lr", "scale_lr"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number >= 0.")


@dataclass(frozen=True)
class Distillation(BlockReconstruction):
    """The whole network at once, on the float network's answers.

    Starts at levels that layers were rounded to one by one, keeps them, and moves biases, the
    scales of the weights and the steps of activations together. `StraightThrough` moves the levels
    too: with so many at once to fit few images it learns these by heart, and wants a smaller `lr`
    (3e-3), more iterations and several views of each image (`Images.augmented`).

    Args: as those of `BlockReconstruction`, with other defaults.

    Source: Hinton et al. 2015, arXiv 1503.02531; Esser et al. 2020, arXiv 1902.08153, for scales.
    """

    iterations: int = 150
    lr: float = 2e-2
    start: Solver | None = field(default_factory=lambda: Annealing(sweeps=300, reads=1))
    relaxation: Relaxation = field(default_factory=KeptLevels)
    blocks: tuple[str, ...] | None = ("",)
    divergence: Literal["squared", "kl"] = "kl"
    scale_lr: float = 2e-4


@dataclass(frozen=True)
class Learned:
    """What reconstruction found for a layer.

    Args:
        levels: int16 (g, r, d).
        shift: float64 (g, r), added to the bias.
        factor: float64 (g | 1, r | 1, 1) or (), by which the grid's scales are multiplied.
    """

    levels: Tensor
    shift: Tensor
    factor: Tensor = field(default_factory=lambda: torch.ones((), dtype=torch.float64))

    def weight(self, grid: Grid) -> Tensor:
        """(g, r, d) float64, what these levels of a grid now stand for."""
        return grid.dequantize(self.levels) * self.factor


class SoftLayer:
    """A layer's weights while they are learned: levels, a shift of the bias, and scales.

    Args:
        problem: tells targets, levels allowed and each row's energy scale.
        grid: turns levels into weights.
        settings: of the reconstruction.
        start: levels to begin near; None begins where the weights are.
        shift: (g, r) the bias shift to begin with; None keeps the bias as it is.
        factor: logarithms of what scales are multiplied by, (g | 1, r | 1, 1); None keeps these.
    """

    def __init__(
        self,
        problem: RoundingProblem,
        grid: Grid,
        settings: Reconstruction,
        start: Solution | None,
        shift: Tensor | None,
        factor: Adam | None = None,
    ) -> None:
        self._relaxation = settings.relaxation
        choices = choices_of(problem, settings.relaxation, start)
        base = grid.dequantize(choices.lowest).float()
        step = (problem.scale * choices.room).float()
        self._soft = SoftLevels(self._relaxation, choices, base, step, settings.lr, settings.lam)
        # What moving one weight by one level does to the output, typically: the shift's unit.
        self._unit = problem.positive_unit.squeeze(2).sqrt().float().clamp_min(_TINY)
        self._shift = None
        if shift is not None:
            self._shift = Adam(shift.float() / self._unit, settings.lr)
        self._factor, self._weights = factor, base
        self._progress = 0.0

    def soften(self, progress: float) -> tuple[Tensor, Tensor]:
        """float32 weights (g, r, d) and bias shift (g, r) at this moment."""
        self._progress = progress
        shift = torch.zeros_like(self._unit)
        if self._shift is not None:
            shift = self._shift.value * self._unit
        self._weights = self._soft.values(progress)
        if self._factor is not None:
            self._weights *= self._factor.value.exp()
        return self._weights, shift

    def learn(self, by_weight: Tensor, by_shift: Tensor) -> None:
        """One step down the slopes of the loss by weights and shift, and the regulariser's."""
        rate = self._relaxation.rate(self._progress)
        if self._factor is not None:
            by_factor = (by_weight * self._weights).sum(2, keepdim=True)
            by_factor = by_factor.sum_to_size(self._factor.value.shape)
            by_weight = by_weight * self._factor.value.exp()
            self._factor.step(by_factor, rate)
        self._soft.descend(by_weight)
        if self._shift is not None:
            self._shift.step(by_shift * self._unit, rate)

    def unsettled(self) -> float:
        """Share of the weights that are not near a level yet."""
        return self._soft.unsettled(self._progress)

    def histogram(self) -> list[float]:
        """The shares of the undecided weights by h(V), at this moment."""
        return self._soft.histogram(self._progress)

    def learned(self) -> Learned:
        """What is decided on."""
        levels, shift = self._soft.decided(), self.soften(1.0)[1].double()
        if self._factor is None:
            return Learned(levels, shift)
        return Learned(levels, shift, self._factor.value.double().exp())

    def state(self) -> dict[str, Tensor]:
        """Everything that the next steps depend on."""
        return {
            f"{name}.{key}": tensor
            for name, part in self._parts().items()
            for key, tensor in part.state().items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state`."""
        for name, part in self._parts().items():
            part.restore({key: state[f"{name}.{key}"] for key in part.state()})

    def _parts(self) -> dict[str, SoftLevels | Adam]:
        adams = {"shift": self._shift, "factor": self._factor}
        return {"v": self._soft} | {name: adam for name, adam in adams.items() if adam is not None}


def learn(
    objective: Objective,
    layers: Sequence[SoftLayer],
    settings: Reconstruction,
    seed: int,
    checkpoint: Checkpoint = NO_CHECKPOINT,
    label: str = "reconstruction",
) -> dict[str, Any]:
    """Learn the layers' levels and shifts, in place; returns what is to be told about it.

    Args:
        objective: the loss.
        layers: those whose weights it depends on, in its order.
        settings: of the reconstruction.
        seed: of the minibatches.
        checkpoint: where the state is kept now and then, and found again.
        label: of the progress bar.
    """
    course, before = Course(settings.iterations), layers[0].histogram()
    parts = [*layers, *objective.extra, course]
    first = checkpoint.restore(parts)

    def unsettled() -> float:
        return max(layer.unsettled() for layer in layers)

    def note() -> str:
        return f"loss {float(course.loss):.3g}, unsettled {unsettled():.1%}"

    done = first
    for iteration in watched(range(first, settings.iterations), label, note):
        weights, shifts = zip(
            *(layer.soften(iteration / settings.iterations) for layer in layers), strict=True
        )
        samples = minibatch(objective.count, settings.batch, iteration, seed)
        slopes = objective.slopes(weights, shifts, samples, iteration)
        for adam, slope in zip(objective.extra, slopes.extra, strict=True):
            adam.step(slope)
        for layer, *by in zip(layers, slopes.weights, slopes.shifts, strict=True):
            layer.learn(*by)
        course.loss, done = slopes.loss.double(), iteration + 1
        if course.due(iteration):
            course.note(iteration, float(course.loss), unsettled())
        checkpoint.keep(parts, done)
    last = float(course.loss)
    if not math.isfinite(last):
        raise ValueError(f"the loss of {label} is {last}; choose a smaller lr.")
    told = {"iterations": done, "unsettled": unsettled(), "last_loss": last}
    told |= {"course": course.told()}
    if len(layers) == 1:
        told |= {"h_before": before, "h_after": layers[0].histogram()}
    return told


def mean_loss(objective: Objective, weights: Sequence[Tensor], shifts: Sequence[Tensor]) -> float:
    """The loss over all samples."""
    total = 0.0
    for samples in torch.arange(objective.count).split(_SAMPLES_AT_ONCE):
        total += float(objective.loss(weights, shifts, samples)) * len(samples)
    return total / objective.count


def minibatch(count: int, size: int, iteration: int, seed: int) -> Tensor:
    """int64 numbers of the samples of one iteration: each sample once before any comes again.

    Args:
        count: samples there are; all of them are taken where there are no more than `size`.
        size: samples a minibatch.
        iteration: counted from 0.
        seed: of the order.
    """
    if count <= size:
        return torch.arange(count)
    each = count // size  # minibatches in which every sample comes once, but for a rest
    epoch, number = divmod(iteration, each)
    order = _order(count, epoch, seed)
    return order[number * size : (number + 1) * size]


@functools.lru_cache(maxsize=4)
def _order(count: int, epoch: int, seed: int) -> Tensor:
    key = stream_keys(seed, torch.tensor(epoch))
    return torch.from_numpy(uniforms(key, count)).argsort(stable=True)
