"""Blocks of a rounded network learned anew, one after the other, each on its own output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from qubo_rounding.grid import Grid
from qubo_rounding.kept_files import file_name, keep, kept
from qubo_rounding.layers import Layer
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.relaxed.activations import quantisers_of
from qubo_rounding.relaxed.adam import Adam
from qubo_rounding.relaxed.block_objective import BlockObjective, block_call, scales_of
from qubo_rounding.relaxed.blocks import Block
from qubo_rounding.relaxed.checkpoint import Checkpoint
from qubo_rounding.relaxed.fisher import fisher_information
from qubo_rounding.relaxed.reconstruction import (
    BlockReconstruction,
    Learned,
    SoftLayer,
    learn,
    mean_loss,
)
from qubo_rounding.relaxed.sample_store import SampleStore, filled_store


@dataclass(frozen=True)
class RoundedBefore:
    """A layer as it was rounded before its block is learned.

    Args:
        layer: the layer.
        problem: levels allowed, targets, energy scales.
        grid: its grid.
        bias: (g r) in the float network; None where the layer has none.
        found: its levels and bias shift.
        clipped_shift: float64 (g, r), what the bias needs where weights are clipped to the grid's
            range and not rounded.
        refit: may the bias be learned?
        scales: shape of the factors that its grid's scales may be multiplied by, (g | 1, r | 1, 1).
    """

    layer: Layer
    problem: RoundingProblem
    grid: Grid
    bias: Tensor | None
    found: Learned
    clipped_shift: Tensor
    refit: bool
    scales: tuple[int, int, int]


def reconstruct_blocks(
    model: nn.Module,
    rounded: nn.Module,
    blocks: Sequence[Block],
    before: Mapping[str, RoundedBefore],
    batches: Sequence[Tensor],
    settings: BlockReconstruction,
    *,
    seed: int,
    budget: float,
    folder: Path | None,
    progress: bool,
) -> Iterator[tuple[str, Learned]]:
    """Every layer's name with its levels and bias shift, block after block.

    The caller installs what it gets in the rounded network before it asks for the next block.

    Args:
        model: the float network.
        rounded: the rounded one, activation quantisers attached if there are any.
        blocks: in the order of execution.
        before: every layer as it is rounded now.
        batches: calibration batches.
        settings: of the reconstruction.
        seed: of minibatches, labels and what is dropped.
        budget: bytes that inputs and targets may hold in memory.
        folder: keeps finished blocks and checkpoints; None keeps nothing.
        progress: show a progress bar for the blocks.
    """
    fisher = None
    for number, block in enumerate(tqdm(blocks, desc="blocks", disable=not progress)):
        inside = [before[name] for name in block.layers]
        files = _Files(folder, block, rounded)
        found = files.load(inside)
        if found is None:
            if fisher is None and settings.fisher and settings.divergence == "squared":
                fisher = fisher_information(model, blocks, batches, budget / 2, seed)
            objective = _objective(
                model, rounded, block, inside, batches, fisher, settings, seed + number, budget / 2
            )
            found = _learn_block(
                objective, block, inside, settings, seed + number, files.checkpoint
            )
            files.keep(inside, found)
        files.checkpoint.forget()
        yield from zip(block.layers, found, strict=True)


class _Files:
    """What a run folder keeps of a block; nothing without a folder.

    Args:
        folder: of the run.
        block: the block.
        rounded: the rounded network, whose activation quantisers belong to the result.
    """

    def __init__(self, folder: Path | None, block: Block, rounded: nn.Module) -> None:
        name = file_name(block.name)
        place = None if folder is None else folder / "blocks"
        self._path = place and place / f"{name}.safetensors"
        self._quantisers = quantisers_of(rounded)
        self.checkpoint = Checkpoint(place and place / f"{name}.checkpoint")

    def load(self, inside: Sequence[RoundedBefore]) -> list[Learned] | None:
        """What a finished block's layers are, whose steps the quantisers then have; or None."""
        if self._path is None or not self._path.exists():
            return None
        with kept(self._path) as file:
            if self._quantisers is not None:
                steps = file.tensors["steps"]
                for scale, step in zip(scales_of(self._quantisers), steps, strict=True):
                    scale.data.copy_(step)
            names = [one.layer.name for one in inside]
            keys = [field.name for field in fields(Learned)]
            return [Learned(**{k: file.tensors[f"{name}/{k}"] for k in keys}) for name in names]

    def keep(self, inside: Sequence[RoundedBefore], found: Sequence[Learned]) -> None:
        """Keep a finished block."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for one, learned in zip(inside, found, strict=True):
            tensors |= {f"{one.layer.name}/{k}": value for k, value in vars(learned).items()}
        if self._quantisers is not None:
            tensors["steps"] = torch.stack(scales_of(self._quantisers)).detach()
        keep(self._path, tensors, {})


def _objective(
    model: nn.Module,
    rounded: nn.Module,
    block: Block,
    inside: Sequence[RoundedBefore],
    batches: Sequence[Tensor],
    fisher: SampleStore | None,
    settings: BlockReconstruction,
    seed: int,
    budget: float,
) -> BlockObjective:
    starts = accumulate(map(len, batches), initial=0)

    def rows() -> Iterator[dict[str, Tensor]]:
        for batch, start in zip(batches, starts, strict=False):
            row = {
                "input": block_call(rounded, block, batch).input,
                "target": block_call(model, block, batch).output,
            }
            if fisher is not None:
                weights = fisher.take(slice(start, start + len(batch)))[block.name]
                row["fisher"] = weights
            yield row

    images, name = sum(map(len, batches)), f"block {block.name!r}"
    store = filled_store(rows(), images, len(batches[0]), budget, name)
    call = block_call(rounded, block, batches[0][:1])
    layers, biases = [one.layer for one in inside], [one.bias for one in inside]
    return BlockObjective(rounded, block, layers, biases, call, store, settings, seed)


def _learn_block(
    objective: BlockObjective,
    block: Block,
    inside: Sequence[RoundedBefore],
    settings: BlockReconstruction,
    seed: int,
    checkpoint: Checkpoint,
) -> list[Learned]:
    """What is learned, or what was there before where that has the lower loss."""
    steps = objective.steps()

    def loss_of(found: Sequence[Learned]) -> float:
        weights = [f.weight(one.grid).float() for one, f in zip(inside, found, strict=True)]
        return mean_loss(objective, weights, [f.shift.float() for f in found])

    before = [one.found for one in inside]
    loss_before = loss_of(before)
    if settings.normalise and loss_before > 0:
        # What nearest rounding costs in the problems' own units: a twelfth of a unit a weight.
        weights = sum(one.problem.target.numel() for one in inside)
        objective.factor = weights / 12 / loss_before
    softs = [_soft(one, settings) for one in inside]
    learn(objective, softs, settings, seed, checkpoint, block.name or "network")
    found = [soft.learned() for soft in softs]
    objective.factor = 1.0
    is_better = loss_of(found) < loss_before
    objective.finish(None if is_better else steps)
    return found if is_better else before


def _soft(one: RoundedBefore, settings: BlockReconstruction) -> SoftLayer:
    """A layer near the levels of a start that was given, else as it is in the float network."""
    start, shift = one.problem.solution(one.found.levels), one.found.shift
    if settings.start is None:
        start, shift = None, one.clipped_shift
    factor = None
    if settings.scale_lr > 0:
        factor = Adam(torch.zeros(one.scales, device=shift.device), settings.scale_lr)
    return SoftLayer(one.problem, one.grid, settings, start, shift if one.refit else None, factor)
