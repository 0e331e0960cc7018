"""What `quantise` refuses before it begins: arguments that are wrong, or do not go together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice

import torch
from torch import nn

from qubo_rounding.activation_finish import ActivationFinish
from qubo_rounding.batch_contrasts import ONE_BATCH
from qubo_rounding.calibration import Grams, Trial
from qubo_rounding.layer_problem import LayerSettings, share_of_chance
from qubo_rounding.relaxed.reconstruction import BlockReconstruction, Reconstruction
from qubo_rounding.solvers import Solver
from qubo_rounding.solvers.auto import DEFAULT_SOLVER
from qubo_rounding.spread import Spread
from qubo_rounding.tasks import Workers


def chosen_method(
    solver: Solver | None,
    reconstruction: Reconstruction | None,
    finish: ActivationFinish | None,
    calibration: str,
    settings: LayerSettings,
) -> Solver | Reconstruction:
    """What rounds the layers, where all that was chosen goes together."""
    if solver is not None and reconstruction is not None:
        raise ValueError(
            "give a solver or a reconstruction, not both; a reconstruction takes a solver as its "
            "start."
        )
    on_data = reconstruction is not None or finish is not None
    if (on_data or settings.quantises_activations) and calibration != "sequential":
        raise ValueError(
            "reconstruction, finish and quantised activations need the layers' inputs one layer "
            "after the other; choose calibration='sequential' (Reconstruction(asymmetric=False) "
            "for float inputs)."
        )
    if isinstance(reconstruction, BlockReconstruction):
        for given, grids in (("step_lr", "act_grids"), ("scale_lr", "grids")):
            if getattr(settings, grids) and getattr(reconstruction, given) > 0:
                raise ValueError(
                    f"{grids} are taken as they are, and this reconstruction learns their scales; "
                    f"give it {given}=0."
                )
    return reconstruction or solver or DEFAULT_SOLVER


def check_learnable(model: nn.Module, trial: Trial) -> None:
    """Layers are called once, in float32: what reconstruction and finish need."""
    often = [name for name, calls in trial.calls.items() if calls > 1]
    if often:
        raise ValueError(
            f"the network calls {often} more than once; reconstruction needs one call of a layer. "
            "Leave them out with skip, or choose a solver."
        )
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    if kinds:
        raise ValueError(
            f"the network has parameters of {kinds.pop()}; reconstruction learns in float32. Give "
            "it model.float(), or choose a solver."
        )


def check_calibration(calibration: str, grams: object, held_out: object) -> None:
    """Grams and judges come as this calibration takes them."""
    if calibration not in ("sequential", "independent"):
        raise ValueError(f"calibration is {calibration!r}; give 'sequential' or 'independent'.")
    if calibration == "sequential" and (grams is not None or isinstance(held_out, Mapping)):
        raise ValueError(
            "sequential calibration collects its Grams as the network is rounded; give batches, "
            "or choose calibration='independent' for Grams collected before."
        )


def check_contrasts(known: Grams | int) -> None:
    """Grams that know how batches differ, or so many batches that theirs will."""
    if isinstance(known, int):
        if known < 2:
            raise ValueError(f"shrink='auto': {ONE_BATCH}")
        return
    for name, gram in islice(known.items(), 1):
        share_of_chance(name, gram, central=False)


def check_executor(executor: Workers | None, method: object, calibration: str) -> None:
    """An executor has layers to solve that need no other."""
    if executor is not None and (calibration == "sequential" or isinstance(method, Spread)):
        raise ValueError(
            "an executor solves layers that need no other, each as a whole; choose "
            "calibration='independent' and a plain solver, or spread a solver's rows: "
            "Spread(solver, executor)."
        )


def check_arguments(
    method: object, layers: object, skip: object, seed: object, memory: float
) -> None:
    """Types and ranges, those that Python would not tell in time."""
    if not isinstance(method, (Solver, Reconstruction)):
        raise ValueError(
            f"the solver is {method!r}; give an object such as Annealing(), or what "
            "make_solver('annealing') gives."
        )
    for name, names in (("layers", layers), ("skip", skip)):
        if isinstance(names, str):
            raise ValueError(f"{name} is {names!r}; give a list of names.")
    if type(seed) is not int:
        raise ValueError(f"seed is {seed!r}; give a whole number.")
    if not 0 <= memory < math.inf:
        raise ValueError(f"memory is {memory}; give a number of bytes, 0 or more.")
