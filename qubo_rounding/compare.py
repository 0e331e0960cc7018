"""The referee: runs solvers on problems, holds the clock, scores, and checks them on each other."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from tqdm import tqdm

from qubo_rounding.cross_checks import (
    CrossCheckError,
    check_bound,
    check_claim,
    check_modules_agree,
)
from qubo_rounding.folder_lock import locked
from qubo_rounding.known_optima import KnownOptima
from qubo_rounding.means import quotient
from qubo_rounding.problem import RoundingProblem, Solution
from qubo_rounding.provenance import now, provenance
from qubo_rounding.records import Record
from qubo_rounding.solvers import AdaRound, RefusedError, Solver
from qubo_rounding.study import Case, Outcome, Study
from qubo_rounding.testing import random_problem
from qubo_rounding.watch import watching


def run_solver(problem: RoundingProblem, solver: Solver, seed: int = 0) -> tuple[Solution, float]:
    """What a solver finds, rescored and cross-checked, and its wall time in seconds.

    The solver first treats a tiny problem off the clock: kernels compile at their first call.

    Args:
        problem: the layer's rounding problem.
        solver: any solver.
        seed: of its random numbers.

    Returns:
        The solution with energies scored by the problem, and the seconds of `solver.solve`.

    Raises:
        RefusedError: the solver refuses the problem.
        CrossCheckError: levels outside [low, high], an energy that is not theirs, one below the
            solver's own lower bound, or one on which both modules do not agree.
    """
    _warm_up(solver)
    began = time.perf_counter()
    claimed = solver.solve(problem, seed=seed)
    if problem.device.type == "cuda":  # its work is queued; the clock would stop too early
        torch.cuda.synchronize(problem.device)
    seconds = time.perf_counter() - began
    check_claim(problem, solver, claimed)
    check_modules_agree(problem, claimed.levels)
    solution = problem.solution(claimed.levels, claimed.lower_bound, **claimed.stats)
    check_bound(problem, repr(solver), solution.energy, "its own", solution.lower_bound)
    return solution, seconds


def compare(
    problems: Mapping[str, RoundingProblem] | Iterable[Case],
    solvers: Mapping[str, Solver],
    *,
    seeds: Sequence[int] = (0,),
    study: str | Path | None = None,
    progress: bool = False,
) -> list[Record]:
    """One record for every solver and seed on every problem, in the order given.

    Args:
        problems: by name, or cases, which may have held-out energies and several calibration sets;
            an iterator holds one problem at a time.
        solvers: by the names that go into the records.
        seeds: each is given to every solver.
        study: folder that keeps records and solutions; what is there is not measured again, and
            counts as what the new solvers are compared with.
        progress: show progress bars on standard error.

    Raises:
        CrossCheckError: as `run_solver`, an energy below a lower bound that another solver gives
            for the same problem, or a study of other data.
        ValueError: two problems of one name and calibration, or a study that is not readable.
    """
    origin = provenance()
    records: dict[tuple[str, str], list[Record]] = {}
    with watching(progress=progress), nullcontext() if study is None else locked(Path(study)):
        kept = None if study is None else Study(study)
        for case in tqdm(_cases(problems), desc="problems", disable=not progress):
            key = case.name, case.calibration
            if key in records:
                raise ValueError(f"two problems are named {case.name!r}; give each its own name.")
            there = {} if kept is None else kept.finished(case)
            asked = []
            for seed in seeds:
                for label, solver in solvers.items():
                    cell = (*key, label, repr(solver), seed)
                    if cell not in there:
                        there[cell] = _outcome(case, label, solver, seed, origin)
                    asked.append(cell)
            _relate(case, there, solvers)
            if kept is not None:
                kept.keep(list(there.values()))
            records[key] = [there[cell].record for cell in asked]
    return [record for of_case in records.values() for record in of_case]


def _cases(problems: Mapping[str, RoundingProblem] | Iterable[Case]) -> Iterable[Case]:
    if not isinstance(problems, Mapping):
        return problems
    by_name = cast(Mapping[str, RoundingProblem], problems)
    return [Case(name, problem) for name, problem in by_name.items()]


def _outcome(
    case: Case, label: str, solver: Solver, seed: int, origin: Mapping[str, Any]
) -> Outcome:
    """What one solver does with a case, without regard to the others."""
    problem, energy_nearest = case.problem, float(case.nearest.energy.sum())
    row: dict[str, Any] = {
        "problem": case.name,
        "calibration": case.calibration,
        "fingerprint": case.fingerprint,
    }
    row |= {"g": problem.g, "r": problem.r, "d": problem.d, "device": str(problem.device)}
    row |= {"solver": label, "configuration": repr(solver), "seed": seed, **origin}
    row["energy_nearest"] = energy_nearest
    row["held_out_nearest"] = case.held_out_energy(case.nearest.levels)
    try:
        solution, seconds = run_solver(problem, solver, seed)
    except RefusedError as error:
        return Outcome(Record(**row, refused=str(error), time=now()), None)
    except CrossCheckError as error:
        raise CrossCheckError(f"problem {case.name!r}: {error}") from None
    energy = float(solution.energy.sum())
    scores = {
        "energy": energy,
        "ratio": quotient(energy, energy_nearest),
        "held_out": case.held_out_energy(solution.levels),
        "lower_bound": solution.total_bound,
        "proven_rows": int(solution.proven.sum()),
    }
    return Outcome(Record(**row, **scores, seconds=seconds, time=now()), solution)


def _relate(case: Case, outcomes: Mapping[Any, Outcome], solvers: Mapping[str, Solver]) -> None:
    """Check the outcomes of a case on each other, and put what they tell into their records."""
    problem = case.problem
    found = [(o.record, o.solution) for o in outcomes.values() if o.solution is not None]
    energies = [("nearest rounding", case.nearest.energy)]
    energies += [(record.solver, solution.energy) for record, solution in found]
    for record, solution in found:
        for who, energy in energies:
            label = f"problem {case.name!r}: {who!r}"
            check_bound(problem, label, energy, repr(record.solver), solution.lower_bound)
    known = KnownOptima.of(problem, [(record.solver, solution) for record, solution in found])
    relaxations = {label for label, solver in solvers.items() if isinstance(solver, AdaRound)}
    relaxed: dict[int, Tensor] = {}
    for record, solution in found:
        if record.solver in relaxations:
            relaxed.setdefault(record.seed, solution.levels)
    for outcome in outcomes.values():
        if outcome.solution is not None:
            relation = known.relation(outcome.solution, relaxed.get(outcome.record.seed))
            outcome.record = replace(outcome.record, **relation)


def _warm_up(solver: Solver) -> None:
    with watching(time_limit=1e-9), suppress(RefusedError):  # one step of every watched loop
        solver.solve(random_problem(1, 1, 4))
