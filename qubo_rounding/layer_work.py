"""One layer's turn: its problem posed, rounded, recorded and kept; in turn, or many on workers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from qubo_rounding.calibration import Step
from qubo_rounding.layer_problem import LayerSettings, layer_problem
from qubo_rounding.layers import Layer, matrix_of
from qubo_rounding.local_loss import output_error
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.rounders import Posed, Rounder
from qubo_rounding.run_folder import LayerRecord, RoundedLayer, RunFolder, install
from qubo_rounding.statistics import Gram
from qubo_rounding.tasks import Workers, run_tasks

_Found = tuple[RoundedLayer, RoundingProblem]


@dataclass(frozen=True)
class LayerWork:
    """What every layer's turn needs.

    Args:
        model: the float network.
        rounded: its copy, into which rounded layers are put.
        rounder: rounds them.
        settings: how their problems are posed.
        folder: keeps what is finished; None keeps nothing.
    """

    model: nn.Module
    rounded: nn.Module
    rounder: Rounder
    settings: LayerSettings
    folder: RunFolder | None

    def in_turn(self, steps: Iterable[Step]) -> Iterator[RoundedLayer]:
        """Every layer, rounded or taken from the folder, and put into the rounded network."""
        for step in steps:
            done = self._kept(step.layer)
            if done is None:
                weight = matrix_of(self.model, step.layer)
                done = self._keep(_round(step, weight, self.rounder, self.settings))
            yield self._install(step.layer, done)

    def on_workers(self, steps: Iterable[Step], workers: Workers) -> Iterator[RoundedLayer]:
        """The same in the order in which workers end; the steps must not need each other.

        Args:
            steps: of independent calibration.
            workers: an executor, or a function that gives one; see `run_tasks`.

        Raises:
            BrokenExecutor: workers die again and again, or an executor that was given broke.
        """
        missing = []
        for step in steps:
            if (done := self._kept(step.layer)) is None:
                missing.append(step)
            else:
                yield self._install(step.layer, done)
        tasks = (
            (s.layer, *s.grams(), matrix_of(self.model, s.layer), self.rounder, self.settings)
            for s in missing
        )
        for number, found in run_tasks(workers, _round_apart, tasks):
            yield self._install(missing[number].layer, self._keep(found))

    def _kept(self, layer: Layer) -> RoundedLayer | None:
        return self.folder.load(layer.name) if self.folder else None

    def _keep(self, found: _Found) -> RoundedLayer:
        if self.folder:
            self.folder.save(*found)
        return found[0]

    def _install(self, layer: Layer, done: RoundedLayer) -> RoundedLayer:
        self.rounder.finish(layer)
        install(self.model, self.rounded, layer, done)
        return done


def _round_apart(
    layer: Layer,
    gram: Gram,
    held: Gram | None,
    weight: Tensor,
    rounder: Rounder,
    settings: LayerSettings,
) -> _Found:
    """In a worker: one layer that needs no other."""
    return _round(Step(layer, lambda: (gram, held)), weight, rounder, settings)


def _round(step: Step, weight: Tensor, rounder: Rounder, settings: LayerSettings) -> _Found:
    """A layer's levels with what is known of them, and the problem that they solve."""
    layer = step.layer
    gram, held = step.grams()
    problem, grid = layer_problem(layer, weight, gram, settings)
    posed = Posed(step, gram, weight, problem, grid, settings.bias_of(layer))
    began = time.perf_counter()
    found = rounder.round(posed)
    seconds = time.perf_counter() - began
    solution, nearest = found.solution, problem.nearest()
    share = {"shrink": problem.meta["shrink"]} if "shrink" in problem.meta else {}

    def error_held_out(posed: Posed, levels: Tensor, shift: Tensor) -> float | None:
        if held is None:
            return None
        return float(output_error(weight, posed.grid.dequantize(levels), shift, held).sum())

    record = LayerRecord(
        name=layer.name,
        g=layer.g,
        r=layer.r,
        d=layer.d,
        bits=settings.bits_of(layer),
        energy=float(solution.energy.sum()),
        energy_nearest=float(problem.energy(nearest).sum()),
        held_out=error_held_out(found.posed, solution.levels, found.shift),
        held_out_nearest=error_held_out(posed, nearest, posed.shift_for(nearest)),
        lower_bound=solution.total_bound,
        proven_rows=int(solution.proven.sum()),
        flips=int((solution.levels != nearest).sum()),
        seconds=seconds,
        solver=str(solution.stats.get("solved_by", rounder.name)),
        stats={**solution.stats, **share},
    )
    grid = found.posed.grid
    done = RoundedLayer(solution.levels, grid.scale, grid.zero_point, found.shift, record)
    return done, found.posed.problem
