"""Comparisons: solvers on problems, checked on each other, one record for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from tqdm import tqdm

from qubo_rounding.cells import Plan, in_turn, on_workers
from qubo_rounding.cross_checks import check_bound
from qubo_rounding.folder_lock import locked
from qubo_rounding.known_optima import KnownOptima
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.provenance import provenance
from qubo_rounding.records import Record
from qubo_rounding.solvers import AdaRound, Solver
from qubo_rounding.study import Case, Outcome, Study
from qubo_rounding.tasks import Workers
from qubo_rounding.watch import watching


def compare(
    problems: Mapping[str, RoundingProblem] | Iterable[Case],
    solvers: Mapping[str, Solver],
    *,
    seeds: Sequence[int] = (0,),
    study: str | Path | None = None,
    executor: Workers | None = None,
    progress: bool = False,
) -> list[Record]:
    """One record for every solver and seed on every problem, in the order given.

    Args:
        problems: by name, or cases, which may have held-out energies and several calibration sets;
            an iterator holds one problem at a time, or those that an executor works at.
        solvers: by the names that go into the records.
        seeds: each is given to every solver.
        study: folder that keeps records and solutions; what is there is not measured again, and
            counts as what the new solvers are compared with.
        executor: measures solvers on problems side by side, to the same bits: an executor, or a
            function that gives one, which is asked again when a worker died. Its workers have to
            see this machine's folder for temporary files. Seconds are then those of a busy worker.
        progress: show progress bars on standard error.

    Raises:
        CrossCheckError: as `run_solver`, an energy below a lower bound that another solver gives
            for the same problem, or a study of other data.
        ValueError: two problems of one name and calibration, or a study that is not readable.
    """
    records: dict[tuple[str, str], list[Record]] = {}
    total = len(problems) if isinstance(problems, Sized) else None
    with (
        watching(progress=progress),
        nullcontext() if study is None else locked(Path(study)),
        tqdm(total=total, desc="problems", disable=not progress) as bar,
    ):
        kept = None if study is None else Study(study)
        plans = _plans(problems, solvers, seeds, kept, records)
        for plan in in_turn(plans) if executor is None else on_workers(plans, executor):
            _relate(plan.case, plan.outcomes)
            if kept is not None:
                kept.keep(list(plan.outcomes.values()))
            records[plan.key] = [plan.outcomes[cell].record for cell in plan.asked]
            bar.update()
    return [record for of_case in records.values() for record in of_case]


def _plans(
    problems: Mapping[str, RoundingProblem] | Iterable[Case],
    solvers: Mapping[str, Solver],
    seeds: Sequence[int],
    kept: Study | None,
    records: dict[tuple[str, str], list[Record]],
) -> Iterator[Plan]:
    """The plan of every case, whose place in the records it takes."""
    origin = provenance()
    for case in _cases(problems):
        plan = Plan(case, {} if kept is None else kept.finished(case), [], {}, origin)
        if plan.key in records:
            raise ValueError(f"two problems are named {case.name!r}; give each its own name.")
        records[plan.key] = []
        for seed in seeds:
            for label, solver in solvers.items():
                cell = (*plan.key, label, repr(solver), seed)
                plan.asked.append(cell)
                if cell not in plan.outcomes:
                    plan.missing[cell] = solver
        yield plan


def _cases(problems: Mapping[str, RoundingProblem] | Iterable[Case]) -> Iterable[Case]:
    if not isinstance(problems, Mapping):
        return problems
    by_name = cast(Mapping[str, RoundingProblem], problems)
    return [Case(name, problem) for name, problem in by_name.items()]


def _relate(case: Case, outcomes: Mapping[Any, Outcome]) -> None:
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
    relaxed: dict[int, Tensor] = {}
    for record, solution in found:
        # Not by this call's solvers: the relaxation may be one that the study has kept.
        if record.configuration.startswith(f"{AdaRound.__name__}("):
            relaxed.setdefault(record.seed, solution.levels)
    for outcome in outcomes.values():
        if outcome.solution is not None:
            relation = known.relation(outcome.solution, relaxed.get(outcome.record.seed))
            outcome.record = replace(outcome.record, **relation)
