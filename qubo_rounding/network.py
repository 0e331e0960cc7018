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
from qubo_rounding.calibration import (
    Data,
    Grams,
    Step,
    independent_steps,
    sequential_steps,
    suspended_bytes,
)
from qubo_rounding.fingerprint import Fingerprint, architecture
from qubo_rounding.folder_lock import locked
from qubo_rounding.following import find_following
from qubo_rounding.foresight import check_network
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
from qubo_rounding.room import check_room, size_of
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
    rounded = copy.deepcopy(plan.folded)
    on_data = reconstruction is not None or finish is not None
    if settings.bias == "refit":
        give_biases(rounded, plan.layers)
    if settings.bias == "refit" or on_data:
        check_own_biases(rounded, plan.layers, first[:1])
    if on_data:
        check_learnable(plan.folded, plan.trial)
        memory /= 2
    batches: list[Tensor] = []
    judging: list[Tensor] = []
    every: list[Grams] = []
    sizes = [getattr(source, "loaded_bytes", 0) for source in (loader, held_out)]  # of `Images`
    data = Data(chain([first], stream) if grams is None else grams, sizes[0])
    judges = Data(held_out, sizes[1])
    sets = data.is_collected + judges.is_collected
    needed = check_network(plan.layers.values(), calibration, sets, first.device)
    if calibration == "independent":
        every = [d.grams(plan.folded, plan.layers, progress) for d in (data, judges)]
        steps = independent_steps(plan.layers, *every)
    else:
        batches, judging = (d.held(reserve=needed) for d in (data, judges))
        needed += suspended_bytes(plan.trial, len(batches) + len(judging), memory)
        check_room(needed, "rounding behind suspended passes", "give less memory", first.device)
        _quantise_activations(plan, rounded, batches, settings)
        steps = sequential_steps(
            *(plan.folded, rounded, plan.layers, batches, judging), trial=plan.trial, memory=memory
        )
    if settings.shrink == "auto":
        check_contrasts(every[0] if calibration == "independent" else len(batches))
    how = {"solver": repr(method), "finish": repr(finish), "settings": repr(settings)}
    how |= {"calibration": calibration, "seed": seed}
    folder = None if run is None else RunFolder(run, how | _identity(plan, data, judges))
    place = folder and folder.path
    if on_data:
        following = find_following(rounded, plan.layers, first[:1])
        images = sum(len(batch) for batch in batches)
        network = NetworkData(plan.folded, following, images, seed, memory)
        rounder = _rounder_on(network, method, finish, settings, folder)
    else:
        rounder = SolverRounder(_solver_of(method), settings, seed)
    work = LayerWork(plan.folded, rounded, rounder, settings, folder)
    finished, in_blocks = {}, isinstance(method, BlockReconstruction)
    tell = on_layer or (lambda record: None)
    announced = f"layers, {size_of(needed)} at most"
    bar = tqdm(total=len(plan.layers), desc=announced, disable=not progress)
    with nullcontext() if place is None else locked(place):
        # Closing: a refused layer must not leave passes suspended.
        with torch.no_grad(), bar, watching(progress=progress), closing(steps):
            named = _named(steps, bar)
            ending = work.in_turn(named) if executor is None else work.on_workers(named, executor)
            for done in ending:
                finished[done.record.name] = done
                if not in_blocks:
                    tell(done.record)
                bar.update()
        finished = {name: finished[name] for name in plan.layers}
        if isinstance(method, BlockReconstruction):
            refinement = Refinement(
                *(plan.folded, rounded, plan.layers, batches, judging, settings, method),
                *(seed, memory, place, progress),
            )
            with watching(progress=progress):
                finished = refinement.refine(finished)
            for done in finished.values():
                tell(done.record)
    return QuantisedNetwork(rounded, finished, plan.skipped)


def _quantise_activations(
    plan: Plan, rounded: nn.Module, batches: list[Tensor], settings: LayerSettings
) -> None:
    if settings.quantises_activations:
        quantisers = calibrate_activations(
            plan.folded, batches, settings.act_bits, site_grids=settings.act_grids
        )
        attach(rounded, quantisers)


def _identity(plan: Plan, data: Data, judges: Data) -> dict[str, Any]:
    """What a run resumes on, beside how it rounds: network, layers, and data as taken by now."""
    return {
        "layers": list(plan.layers),
        "architecture": architecture(plan.folded),
        "model": str(Fingerprint(chain(plan.folded.parameters(), plan.folded.buffers()))),
        "data": str(data.fingerprint),
        "held_out": str(judges.fingerprint),
    }


def _named(steps: Iterable[Step], bar: tqdm[Any]) -> Iterator[Step]:
    """The steps, each named on the bar when its turn comes."""
    for step in steps:
        bar.set_postfix_str(step.layer.name)
        yield step


def _rounder_on(
    network: NetworkData,
    method: Solver | Reconstruction,
    finish: ActivationFinish | None,
    settings: LayerSettings,
    folder: RunFolder | None,
) -> Rounder:
    """What rounds the layers where their inputs are looked at, not only their Grams."""
    rounder: Rounder = SolverRounder(_solver_of(method), settings, network.seed)
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
