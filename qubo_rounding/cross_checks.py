"""Claims that contradict each other are caught here: solvers, bounds, both modules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from qubo_rounding.problem import RoundingProblem
from qubo_rounding.run_folder import LayerRecord
from qubo_rounding.solution import PROVEN_TOLERANCE, Solution
from qubo_rounding.solvers import Solver

REPORTED_TOLERANCE = 1e-6  # relative; a solver may report what it scored in float32 products
_GROUPS_CHECKED = 16  # of each problem, spread evenly: a QUBO a group takes its time
MODULES_TOLERANCE = 1e-6  # relative; a QUBO's large terms cancel, so it has fewer digits


class CrossCheckError(ValueError):
    """What a solver says contradicts the problem, itself or another solver: one is wrong."""


def check_claim(problem: RoundingProblem, solver: Solver, claimed: Solution) -> None:
    """Nothing, where levels are allowed and the reported energy is theirs, row by row.

    A relaxation that reports the energy of its soft levels is caught here: soft levels are no
    integers, and hard ones do not have the energy of soft ones.

    Raises:
        CrossCheckError: levels outside [low, high], or an energy that is not theirs.
    """
    if not problem.allows(claimed.levels):
        raise CrossCheckError(
            f"the levels of {solver!r}, {tuple(claimed.levels.shape)} {claimed.levels.dtype}, are "
            f"not integers of shape {tuple(problem.target.shape)} within [low, high]."
        )
    rows = (problem.g, problem.r)
    for name, value in (("energy", claimed.energy), ("lower bound", claimed.lower_bound)):
        if value is not None and value.shape != rows:
            raise CrossCheckError(
                f"the {name} of {solver!r} has shape {tuple(value.shape)}; give one a row, {rows}."
            )
    energy = problem.energy(claimed.levels)
    room = REPORTED_TOLERANCE * (energy.abs() + problem.unit[..., 0])
    wrong = ~((claimed.energy - energy).abs() <= room)  # NaN is wrong too
    if bool(wrong.any()):
        row = _first(wrong)
        raise CrossCheckError(
            f"{solver!r} reports energy {float(claimed.energy[row]):.9g} in (group, row) {row}; "
            f"its levels have {float(energy[row]):.9g}."
        )


def check_bound(
    problem: RoundingProblem, who: str, energy: Tensor, whose: str, bound: Tensor | None
) -> None:
    """Nothing, where no energy lies below a lower bound of the same row, whoever gives the bound.

    Args:
        problem: the layer's rounding problem.
        who, energy: a solver and its rows' energies (g, r).
        whose, bound: a solver and its rows' lower bounds (g, r); a proven optimum is one.

    Raises:
        CrossCheckError: an energy below a bound.
    """
    if bound is None:
        return
    room = PROVEN_TOLERANCE * (energy.abs() + problem.unit[..., 0])
    below = energy < bound - room  # False where a row has no bound: NaN
    if bool(below.any()):
        row = _first(below)
        raise CrossCheckError(
            f"{who} has energy {float(energy[row]):.12g} in (group, row) {row}, below the "
            f"lower bound {float(bound[row]):.12g} of {whose}; one of the two is wrong."
        )


def check_layer_bounds(network: str, results: Mapping[str, Sequence[LayerRecord]]) -> None:
    """Nothing, where no layer's energy lies below a lower bound that any result gives for it.

    Args:
        network: its name.
        results: the layers' records by method; all methods solved the same problems.

    Raises:
        CrossCheckError: an energy below a bound.
    """
    bounds: dict[str, tuple[float, str]] = {}
    for method, layers in results.items():
        for layer in layers:
            if layer.lower_bound is not None:
                bound = (layer.lower_bound, method)
                bounds[layer.name] = max(bounds.get(layer.name, bound), bound)
    for method, layers in results.items():
        for layer in layers:
            bound, whose = bounds.get(layer.name, (-math.inf, ""))
            room = PROVEN_TOLERANCE * (abs(layer.energy) + layer.energy_nearest)
            if layer.energy < bound - room:
                raise CrossCheckError(
                    f"network {network!r}: {method!r} has energy {layer.energy:.12g} in layer "
                    f"{layer.name!r}, below the lower bound {bound:.12g} of {whose!r}; one of the "
                    "two is wrong."
                )


def check_modules_agree(problem: RoundingProblem, levels: Tensor) -> None:
    """Nothing, where both modules give the same levels the same energy, in the first row of groups.

    Module one scores x' Q x + offset, what dimod's samplers minimise; module two e' G e of the
    problem in units of its own energy, what the relaxation minimises. Up/down problems only:
    others have no QUBO.

    Args:
        problem: the layer's rounding problem.
        levels: (g, r, d), allowed ones.

    Raises:
        CrossCheckError: they differ by more than 1e-6 of the energy and the row's unit.
    """
    if not problem.is_binary:
        return
    heads = problem.part(rows=slice(0, 1))
    unit = heads.positive_unit[..., 0]
    relaxed = heads.normalised().energy(levels[:, :1]) * unit
    for group in range(0, problem.g, -(-problem.g // _GROUPS_CHECKED)):
        quadratic, offset, columns = problem.to_qubo(group, 0)
        ups = (levels[group, 0] > problem.low[group, 0])[columns].to(torch.float64)
        exact = float(ups @ quadratic @ ups) + offset
        room = MODULES_TOLERANCE * (abs(exact) + float(unit[group, 0]))
        if not abs(exact - float(relaxed[group, 0])) <= room:
            raise CrossCheckError(
                f"the QUBO gives the levels of (group, row) {(group, 0)} energy {exact:.9g}, the "
                f"relaxation's objective {float(relaxed[group, 0]):.9g}; one of the two is wrong."
            )


def _first(rows: Tensor) -> tuple[int, int]:
    group, row = torch.nonzero(rows)[0].tolist()
    return group, row
