"""Cells of a comparison: one solver and seed on one problem, measured in turn or by workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch

from qubo_rounding.cross_checks import CrossCheckError
from qubo_rounding.means import quotient
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.provenance import now
from qubo_rounding.records import Record
from qubo_rounding.referee import run_solver
from qubo_rounding.solution import Solution
from qubo_rounding.solvers import RefusedError, Solver
from qubo_rounding.study import Case, Outcome
from qubo_rounding.tasks import SentProblem, Workers, run_tasks, sending

Cell = tuple[str, str, str, str, int]  # problem, calibration, solver, its configuration, seed


@dataclass
class Plan:
    """What is known of a case, and what is still to be measured.

    Args:
        case: the problem.
        outcomes: of the cells that were measured.
        asked: the cells of the comparison, in its order.
        missing: those to be measured, with their solvers.
        origin: what ran and where, for the records.
    """

    case: Case
    outcomes: dict[Cell, Outcome]
    asked: list[Cell]
    missing: dict[Cell, Solver]
    origin: Mapping[str, Any]

    @property
    def key(self) -> tuple[str, str]:
        """Names of the problem and of its calibration set."""
        return self.case.name, self.case.calibration

    def enter(self, cell: Cell, measured: _Measured | RefusedError) -> None:
        """Turn what was measured into the cell's outcome."""
        self.outcomes[cell] = _outcome(self.case, cell, self.origin, measured)
        del self.missing[cell]


def in_turn(plans: Iterable[Plan]) -> Iterator[Plan]:
    """The plans, each when all its cells are measured; one problem is held at a time."""
    for plan in plans:
        for cell, solver in list(plan.missing.items()):
            plan.enter(cell, _measured(plan.case.name, plan.case.problem, solver, cell[-1]))
        yield plan


def on_workers(plans: Iterable[Plan], workers: Workers) -> Iterator[Plan]:
    """The same, measured by workers, in the order in which they end."""
    cells: dict[int, tuple[Plan, Cell, SentProblem]] = {}  # those that workers have
    finished: list[Plan] = []  # nothing was missing
    numbers = count()

    with sending() as send:

        def tasks() -> Iterator[tuple[str, SentProblem, Solver, int]]:
            for plan in plans:
                if not plan.missing:
                    finished.append(plan)
                    continue
                sent = send(plan.case.problem)
                for cell, solver in list(plan.missing.items()):
                    cells[next(numbers)] = plan, cell, sent
                    yield plan.case.name, sent, solver, cell[-1]

        for number, measured in run_tasks(workers, _measured_apart, tasks()):
            plan, cell, sent = cells.pop(number)
            plan.enter(cell, measured)
            if not plan.missing:
                sent.forget()
                yield plan
            while finished:
                yield finished.pop()
        yield from finished


@dataclass(frozen=True)
class _Measured:
    """What a solver found on a problem, its seconds, and the threads it had."""

    solution: Solution
    seconds: float
    threads: int


def _measured(
    name: str, problem: RoundingProblem, solver: Solver, seed: int
) -> _Measured | RefusedError:
    try:
        return _Measured(*run_solver(problem, solver, seed), torch.get_num_threads())
    except RefusedError as error:
        return error
    except CrossCheckError as error:
        raise CrossCheckError(f"problem {name!r}: {error}") from None


def _measured_apart(
    name: str, sent: SentProblem, solver: Solver, seed: int
) -> _Measured | RefusedError:
    """In a worker."""
    return _measured(name, sent.load(), solver, seed)


def _outcome(
    case: Case, cell: Cell, origin: Mapping[str, Any], measured: _Measured | RefusedError
) -> Outcome:
    """The record of a cell, without regard to the others."""
    problem, energy_nearest = case.problem, float(case.nearest.energy.sum())
    *_, label, configuration, seed = cell
    row: dict[str, Any] = {
        "problem": case.name,
        "calibration": case.calibration,
        "fingerprint": case.fingerprint,
    }
    row |= {"g": problem.g, "r": problem.r, "d": problem.d, "device": str(problem.device)}
    row |= {"solver": label, "configuration": configuration, "seed": seed, **origin}
    row["energy_nearest"] = energy_nearest
    row["held_out_nearest"] = case.held_out_energy(case.nearest.levels)
    if isinstance(measured, RefusedError):
        return Outcome(Record(**row, refused=str(measured), time=now()), None)
    solution = measured.solution
    energy = float(solution.energy.sum())
    row["threads"] = measured.threads
    scores = {
        "energy": energy,
        "ratio": quotient(energy, energy_nearest),
        "held_out": case.held_out_energy(solution.levels),
        "lower_bound": solution.total_bound,
        "proven_rows": int(solution.proven.sum()),
    }
    return Outcome(Record(**row, **scores, seconds=measured.seconds, time=now()), solution)
