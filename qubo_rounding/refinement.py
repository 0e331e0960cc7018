"""A rounded network refined block by block: what reconstruction of blocks needs of a network."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from qubo_rounding.grid import Grid
from qubo_rounding.layer_problem import LayerSettings
from qubo_rounding.layers import Layer, bias_of, matrix_of
from qubo_rounding.local_loss import bias_shift, local_problem, output_error
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.relaxed.block_reconstruction import RoundedBefore, reconstruct_blocks
from qubo_rounding.relaxed.blocks import find_blocks
from qubo_rounding.relaxed.reconstruction import BlockReconstruction, Learned
from qubo_rounding.run_folder import RoundedLayer, install
from qubo_rounding.scale_refit import allowed_levels, on_grid
from qubo_rounding.statistics import Gram, collect_grams

_UNIT_IMAGES = 16  # energy scales need no more; levels are learned on all images


@dataclass(frozen=True)
class Refinement:
    """What refines a rounded network.

    Args:
        model: the float network, batch norms folded.
        rounded: its rounded copy, which is changed in place.
        layers: the rounded layers, in the order of execution.
        batches: calibration batches.
        judging: batches that only judge; none gives no held-out energies.
        settings: how the layers were rounded.
        method: how blocks are learned.
        seed: of everything random.
        budget: bytes that inputs and targets may hold in memory.
        folder: of the run; None keeps nothing.
        progress: show progress bars.
    """

    model: nn.Module
    rounded: nn.Module
    layers: Mapping[str, Layer]
    batches: Sequence[Tensor]
    judging: Sequence[Tensor]
    settings: LayerSettings
    method: BlockReconstruction
    seed: int
    budget: float
    folder: Path | None
    progress: bool

    def refine(self, finished: Mapping[str, RoundedLayer]) -> dict[str, RoundedLayer]:
        """The layers anew, installed in the rounded network; energies are those of its inputs."""
        began = time.perf_counter()
        some = self.batches[0][:_UNIT_IMAGES]
        units = collect_grams(self.model, [some], layers=self.layers)
        before = {name: self._before(done, units[name]) for name, done in finished.items()}
        blocks = find_blocks(self.model, self.layers, some[:1], self.method.blocks)
        refined: dict[str, RoundedLayer] = {}
        for name, learned in reconstruct_blocks(
            self.model,
            self.rounded,
            blocks,
            before,
            self.batches,
            self.method,
            seed=self.seed,
            budget=self.budget,
            folder=self.folder,
            progress=self.progress,
        ):
            done = finished[name]
            scale = done.scale * learned.factor
            refined[name] = replace(
                done, levels=learned.levels, scale=scale, bias_shift=learned.shift
            )
            install(self.model, self.rounded, self.layers[name], refined[name])
        seconds = (time.perf_counter() - began) / len(refined)
        grams, held = (self._paired_grams(batches) for batches in (self.batches, self.judging))
        return {
            name: self._judged(refined[name], before[name], grams[name], held.get(name), seconds)
            for name in finished
        }

    def _paired_grams(self, batches: Sequence[Tensor]) -> dict[str, Gram]:
        if not batches:
            return {}
        return collect_grams(self.model, batches, layers=self.layers, quantised=self.rounded)

    def _before(self, done: RoundedLayer, gram: Gram) -> RoundedBefore:
        layer = self.layers[done.record.name]
        grid = self._grid(done)
        bias, weight = bias_of(self.model, layer), matrix_of(self.model, layer)
        problem = self._problem(layer, grid, gram)
        # Refitted scales may have moved an up/down weight's two levels away from the one it has.
        low, high = allowed_levels(grid, weight, done.levels, self.settings.candidates)
        clipped = grid.dequantize(grid.target(weight).clamp(grid.smallest, grid.largest))
        return RoundedBefore(
            layer=layer,
            problem=replace(problem, low=low, high=high),
            grid=grid,
            bias=None if bias is None else bias.float(),
            found=Learned(done.levels, done.bias_shift),
            clipped_shift=bias_shift(weight, clipped, gram, self.settings.bias_of(layer)),
            refit=self.settings.bias_of(layer) == "refit",
            scales=(1, 1, 1) if self.settings.granularity == "tensor" else (layer.g, layer.r, 1),
        )

    def _grid(self, done: RoundedLayer) -> Grid:
        ends = self.settings.range_of(done.record.bits)
        return Grid(done.scale, done.zero_point, *ends)

    def _problem(self, layer: Layer, grid: Grid, gram: Gram) -> RoundingProblem:
        return local_problem(
            matrix_of(self.model, layer),
            grid,
            gram,
            bias=self.settings.bias_of(layer),
            candidates=self.settings.candidates,
        )

    def _judged(
        self,
        done: RoundedLayer,
        before: RoundedBefore,
        gram: Gram,
        held: Gram | None,
        seconds: float,
    ) -> RoundedLayer:
        given = self._problem(before.layer, before.grid, gram)
        nearest = given.nearest()
        weight, plain = matrix_of(self.model, before.layer), before.grid.dequantize(nearest)
        problem = on_grid(given, self._grid(done), weight)  # scales may have been learned
        shift = bias_shift(weight, plain, gram, self.settings.bias_of(before.layer))

        def error_held_out(rounded: Tensor, shift: Tensor) -> float | None:
            return None if held is None else float(output_error(weight, rounded, shift, held).sum())

        record = replace(
            done.record,
            energy=float(problem.energy(done.levels).sum()),
            energy_nearest=float(given.energy(nearest).sum()),
            held_out=error_held_out(done.weight, done.bias_shift),
            held_out_nearest=error_held_out(plain, shift),
            lower_bound=None,
            proven_rows=0,
            flips=int((done.levels != nearest).sum()),
            seconds=done.record.seconds + seconds,
            solver=repr(self.method),
            stats={"changed": int((done.levels != before.found.levels).sum())},
        )
        return replace(done, record=record)
