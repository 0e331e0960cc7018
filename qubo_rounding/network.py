"""Whole networks: the one loop over layers, from a float network to a rounded one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from qubo_rounding.activation_finish import ActivationFinish
from qubo_rounding.calibration import Step
from qubo_rounding.calibration_data import (
    Data,
    Supply,
    independent_supply,
    sequential_supply,
)
from qubo_rounding.fingerprint import Fingerprint, architecture
from qubo_rounding.folder_lock import locked
from qubo_rounding.following import find_following
from qubo_rounding.grid import Grid
from qubo_rounding.layer_problem import LayerSettings, layer_problem
from qubo_rounding.layer_work import LayerWork
from qubo_rounding.layers import find_layers, matrix_of
from qubo_rounding.network_arguments import (
    check_arguments,
    check_calibration,
    check_contrasts,
    check_executor,
    check_learnable,
    chosen_method,
)
from qubo_rounding.own_biases import check_own_biases, give_biases
from qubo_rounding.passes import input_batches
from qubo_rounding.plan import Plan, plan_rounding, prepared
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.refinement import Refinement
from qubo_rounding.relaxed.activations import attach, calibrate_activations, quantisers_of
from qubo_rounding.relaxed.reconstruction import BlockReconstruction, Reconstruction
from qubo_rounding.room import size_of
from qubo_rounding.rounders import (
    FinishingRounder,
    LayerRounder,
    NetworkData,
    Rounder,
    SolverRounder,
)
from qubo_rounding.run_folder import LayerRecord, RoundedLayer, RunFolder, install
from qubo_rounding.solvers import Annealing, Solver
from qubo_rounding.statistics import Gram, collect_grams
from qubo_rounding.tasks import Workers
from qubo_rounding.watch import watching


@dataclass(frozen=True)
class QuantisedNetwork:
    """A rounded network and how it came about.

    Args:
        model: batch norms folded, weights on their grids; channels equalised and biases refitted
            where asked for.
        layers: the rounded layers by name, in the order of execution.
        skipped: modules with parameters that were left as they are, with the reason.
    """

    model: nn.Module
    layers: dict[str, RoundedLayer]
    skipped: dict[str, str]

    @property
    def records(self) -> list[LayerRecord]:
        """What is known of each rounded layer, in the order of execution."""
        return [layer.record for layer in self.layers.values()]


def quantise(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    solver: Solver | None = None,
    reconstruction: Reconstruction | None = None,
    finish: ActivationFinish | None = None,
    settings: LayerSettings | None = None,
    calibration: Literal["sequential", "independent"] = "sequential",
    grams: Mapping[str, Gram] | None = None,
    held_out: Iterable[Any] | Mapping[str, Gram] = (),
    layers: Iterable[str] | None = None,
    skip: Iterable[str] = (),
    run: str | Path | None = None,
    seed: int = 0,
    memory: float = 4 * 2**30,
    executor: Workers | None = None,
    progress: bool = False,
    on_layer: Callable[[LayerRecord], None] | None = None,
) -> QuantisedNetwork:
    """A copy of a network with every layer's weights rounded; the model itself is left untouched.

    Args:
        model: any network in eval mode that maps one input tensor to outputs.
        loader: calibration batches: tensors, or tuples whose first element is the input.
        solver: rounds each layer's problem; None is `Auto("fast")`.
        reconstruction: learns each layer's levels on its inputs instead, activation function
            included; sequential calibration only, and instead of a solver.
        finish: improves each layer's levels behind its activation function, after a solver or a
            reconstruction; sequential calibration only.
        settings: grid and bias; None is 4 bits per channel with refitted bias.
        calibration: "sequential" rounds each layer on the inputs that the rounded layers before it
            give, and holds the batches in memory; "independent" takes every Gram from the float
            network and streams them.
        grams: for independent calibration, what `collect_grams` gave for this network before; of
            the loader only the first batch is then read.
        held_out: batches that only judge: every record then has held-out energies. For independent
            calibration Grams will do.
        layers: names of the layers to round; None means all that are found and reached.
        skip: names to leave out.
        run: folder that keeps finished layers and the problems of small ones; the same call
            resumes there, to the same bits.
        seed: everything random follows from it, layer by layer.
        memory: bytes that sequential calibration may hold in suspended passes, about; with a
            reconstruction half of them are for the inputs and targets of the layer at hand, of
            which the rest goes to disk.
        executor: solves the layers of an independent calibration, to the same bits: an executor, or
            a function that gives one, which is asked again when a worker died. A solver's rows are
            spread with `Spread`.
        progress: show progress bars on standard error.
        on_layer: called with the record of every layer that is finished, for logs.

    Raises:
        ValueError: a layer name that is not there, settings out of range, nothing to round, biases
            to refit that are not the layers' own, a run folder of another run or in use by one, or
            too little memory for what is asked.
        RefusedError: the solver refuses a layer; the message names the layer.
    """
    settings = settings or LayerSettings()
    method = chosen_method(solver, reconstruction, finish, calibration, settings)
    check_calibration(calibration, grams, held_out)
    check_executor(executor, method, calibration)
    check_arguments(method, layers, skip, seed, memory)
    stream = input_batches(loader)
    first = next(stream)
    plan = plan_rounding(model, first, layers, skip, settings)
    on_data = reconstruction is not None or finish is not None
    rounded = _copy_to_round(plan, first, settings, on_data)
    if on_data:
        memory /= 2
    data = Data(chain([first], stream) if grams is None else grams, _loaded_bytes(loader))
    judges = Data(held_out, _loaded_bytes(held_out))
    if calibration == "independent":
        supply = independent_supply(plan, data, judges, progress)
    else:
        supply = sequential_supply(plan, rounded, data, judges, memory)
    if settings.shrink == "auto":
        check_contrasts(supply.known)
    if settings.quantises_activations:
        quantisers = calibrate_activations(
            plan.folded, supply.batches, settings.act_bits, site_grids=settings.act_grids
        )
        attach(rounded, quantisers)
    how = {"solver": repr(method), "finish": repr(finish), "settings": repr(settings)}
    how |= {"calibration": calibration, "seed": seed}
    folder = None if run is None else RunFolder(run, how | _identity(plan, data, judges))
    rounder: Rounder = SolverRounder(_solver_of(method), settings, seed)
    if on_data:
        following = find_following(rounded, plan.layers, first[:1])
        images = sum(len(batch) for batch in supply.batches)
        network = NetworkData(plan.folded, following, images, seed, memory)
        rounder = _rounder_on(network, rounder, method, finish, folder)
    work = LayerWork(plan.folded, rounded, rounder, settings, folder)
    place = folder and folder.path
    in_blocks = isinstance(method, BlockReconstruction)  # of these a layer ends with all others
    with nullcontext() if place is None else locked(place), watching(progress=progress):
        at_once = None if in_blocks else on_layer
        finished = _rounded_layers(plan, work, supply, executor, at_once, progress)
        if in_blocks:
            refinement = Refinement(
                *(plan.folded, rounded, plan.layers, supply.batches, supply.judging),
                *(settings, method, seed, memory, place, progress),
            )
            finished = refinement.refine(finished)
            for done in finished.values():
                if on_layer is not None:
                    on_layer(done.record)
    return QuantisedNetwork(rounded, finished, plan.skipped)


def _copy_to_round(plan: Plan, batch: Tensor, settings: LayerSettings, on_data: bool) -> nn.Module:
    """A copy of the folded network whose layers can be rounded as the settings want it."""
    rounded = copy.deepcopy(plan.folded)
    if settings.bias == "refit":
        give_biases(rounded, plan.layers)
    if settings.bias == "refit" or on_data:
        check_own_biases(rounded, plan.layers, batch[:1])
    if on_data:
        check_learnable(plan.folded, plan.trial)
    return rounded


def _loaded_bytes(source: object) -> int:
    """Of `Images`, which know it; 0 of others."""
    return getattr(source, "loaded_bytes", 0)


def _identity(plan: Plan, data: Data, judges: Data) -> dict[str, Any]:
    """What a run resumes on, beside how it rounds: network, layers, and data as taken by now."""
    return {
        "layers": list(plan.layers),
        "architecture": architecture(plan.folded),
        "model": str(Fingerprint(chain(plan.folded.parameters(), plan.folded.buffers()))),
        "data": str(data.fingerprint),
        "held_out": str(judges.fingerprint),
    }


def _rounded_layers(
    plan: Plan,
    work: LayerWork,
    supply: Supply,
    executor: Workers | None,
    on_layer: Callable[[LayerRecord], None] | None,
    progress: bool,
) -> dict[str, RoundedLayer]:
    """All layers, in the order of the plan, whichever ended first."""
    finished: dict[str, RoundedLayer] = {}
    announced = f"layers, {size_of(supply.needed)} at most"
    bar = tqdm(total=len(plan.layers), desc=announced, disable=not progress)
    # Closing: a refused layer must not leave passes suspended.
    with torch.no_grad(), bar, closing(supply.steps):
        named = _named(supply.steps, bar)
        ending = work.in_turn(named) if executor is None else work.on_workers(named, executor)
        for done in ending:
            finished[done.record.name] = done
            if on_layer is not None:
                on_layer(done.record)
            bar.update()
    return {name: finished[name] for name in plan.layers}


def _named(steps: Iterable[Step], bar: tqdm[Any]) -> Iterator[Step]:
    """The steps, each named on the bar when its turn comes."""
    for step in steps:
        bar.set_postfix_str(step.layer.name)
        yield step


def _rounder_on(
    network: NetworkData,
    rounder: Rounder,
    method: Solver | Reconstruction,
    finish: ActivationFinish | None,
    folder: RunFolder | None,
) -> Rounder:
    """What rounds the layers where their inputs are looked at, not only their Grams."""
    if isinstance(method, Reconstruction) and not isinstance(method, BlockReconstruction):
        rounder = LayerRounder(method, network, folder)
    return rounder if finish is None else FinishingRounder(rounder, finish, network)


def _solver_of(method: Solver | Reconstruction) -> Solver:
    """The solver that rounds layers, where a method has one."""
    return method if isinstance(method, Solver) else method.start or Annealing()


def nearest_network(
    model: nn.Module, batch: Tensor, result: QuantisedNetwork, settings: LayerSettings
) -> nn.Module:
    """The network with every weight at its nearest level, on the grids of a result.

    Biases are those of the float network; activations are quantised as in the result.

    Args:
        model: the float network that was quantised.
        batch: one batch of inputs.
        result: what `quantise` gave.
        settings: that it was given.
    """
    folded, _ = prepared(model, batch, settings)
    nearest = copy.deepcopy(folded)
    layers = find_layers(folded).layers
    for name, done in result.layers.items():
        ends = settings.range_of(done.record.bits)
        grid = Grid(done.scale, done.zero_point, *ends)
        levels = grid.quantize(matrix_of(folded, layers[name]))
        plain = replace(done, levels=levels, bias_shift=torch.zeros_like(done.bias_shift))
        install(folded, nearest, layers[name], plain)
    if (quantisers := quantisers_of(result.model)) is not None:
        attach(nearest, copy.deepcopy(quantisers))
    return nearest


def problems(
    model: nn.Module,
    loader: Iterable[Any],
    settings: LayerSettings | None = None,
    progress: bool = False,
) -> Iterator[tuple[str, RoundingProblem]]:
    """Every layer's name and rounding problem, Grams collected independently, in execution order.

    Args:
        model, loader, settings, progress: as for `quantise`.
    """
    settings = settings or LayerSettings()
    stream = input_batches(loader)
    first = next(stream)
    plan = plan_rounding(model, first, None, (), settings)
    grams = collect_grams(
        plan.folded, chain([first], stream), layers=plan.layers, progress=progress
    )
    for name, gram in grams.items():
        weight = matrix_of(plan.folded, plan.layers[name])
        yield name, layer_problem(plan.layers[name], weight, gram, settings)[0]
