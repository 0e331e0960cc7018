"""The referee: runs solvers on problems, holds the clock, scores, and checks them on each other."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor
from tqdm import tqdm

import qubo_rounding
from qubo_rounding.atomic import atomic_path
from qubo_rounding.problem import PROVEN_TOLERANCE, RoundingProblem, Solution
from qubo_rounding.solvers import RefusedError, Solver
from qubo_rounding.testing import random_problem
from qubo_rounding.watch import watching

REPORTED_TOLERANCE = 1e-6  # relative; a solver may report what it scored in float32 products


class CrossCheckError(ValueError):
    """What a solver says contradicts the problem, itself or another solver: one is wrong."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One solver on one problem; energies are sums over rows, output^2 per position.

    Args:
        problem: its name.
        g, r, d: its shape.
        solver: the name it was given.
        configuration: repr of the solver, with every hyperparameter.
        seed: of its random numbers.
        energy: of the levels found, scored here in float64; None where refused.
        energy_nearest: of nearest rounding.
        ratio: energy / energy_nearest; None where refused or where nearest has energy 0.
        lower_bound: sum of the rows' lower bounds; None unless every row has one.
        proven_rows: rows proven optimal.
        seconds: the solver's wall time, without compilation; None where refused.
        refused: why the solver refused the problem; empty where it did not.
        package_version, torch_version, python_version: what ran.
        commit: of the package's repository, ending in -dirty after changes; empty without one.
        machine: processor and number of cores.
        device, threads: where the problem lay, and torch's number of threads.
        time: of the end of the run, UTC, ISO 8601.
    """

    problem: str
    g: int
    r: int
    d: int
    solver: str
    configuration: str
    seed: int
    energy: float | None = None
    energy_nearest: float
    ratio: float | None = None
    lower_bound: float | None = None
    proven_rows: int = 0
    seconds: float | None = None
    refused: str = ""
    package_version: str
    torch_version: str
    python_version: str
    commit: str
    machine: str
    device: str
    threads: int
    time: str


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
        CrossCheckError: levels outside [low, high], an energy that is not theirs, or one below the
            solver's own lower bound.
    """
    _warm_up(solver)
    began = time.perf_counter()
    claimed = solver.solve(problem, seed=seed)
    if problem.device.type == "cuda":  # its work is queued; the clock would stop too early
        torch.cuda.synchronize(problem.device)
    seconds = time.perf_counter() - began
    _check_claim(problem, solver, claimed)
    solution = problem.solution(claimed.levels, claimed.lower_bound, **claimed.stats)
    _check_bound(problem, repr(solver), solution.energy, "its own", solution.lower_bound)
    return solution, seconds


def compare(
    problems: Mapping[str, RoundingProblem] | Iterable[tuple[str, RoundingProblem]],
    solvers: Mapping[str, Solver],
    *,
    seed: int = 0,
    progress: bool = False,
) -> list[Record]:
    """One record for every solver on every problem, in the order given.

    Args:
        problems: by name, or pairs of name and problem; an iterator holds one problem at a time.
        solvers: by the names that go into the records.
        seed: given to every solver.
        progress: show progress bars on standard error.

    Raises:
        CrossCheckError: as `run_solver`, or an energy below a lower bound that another solver
            gives for the same problem.
        ValueError: two problems of one name.
    """
    pairs: Iterable[Any] = problems.items() if isinstance(problems, Mapping) else problems
    origin = provenance()
    records: dict[str, list[Record]] = {}
    with watching(progress=progress):
        for name, problem in tqdm(pairs, desc="problems", disable=not progress):
            if name in records:
                raise ValueError(f"two problems are named {name!r}; give each a name of its own.")
            records[name] = _compare_on(name, problem, solvers, seed, origin)
    return [record for of_problem in records.values() for record in of_problem]


def write_records(path: str | Path, records: Sequence[Record]) -> Path:
    """Write records as CSV, one line each; returns the path."""
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Record)])
        writer.writeheader()
        writer.writerows(asdict(record) for record in records)
    return Path(path)


def read_records(path: str | Path) -> list[Record]:
    """The records that `write_records` wrote.

    Raises:
        ValueError: other columns than a record's, or a value of a wrong kind.
    """
    kinds = get_type_hints(Record)
    with Path(path).open(newline="") as file:
        reader = csv.DictReader(file)
        if (columns := list(reader.fieldnames or [])) != list(kinds):
            raise ValueError(f"{path} has the columns {columns}; records have {list(kinds)}.")
        try:
            return [
                Record(**{key: _parsed(row[key], kind) for key, kind in kinds.items()})
                for row in reader
            ]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}.") from None


def _parsed(text: str, kind: Any) -> Any:
    if kind == float | None:
        return float(text) if text else None
    return kind(text)


def _compare_on(
    name: str,
    problem: RoundingProblem,
    solvers: Mapping[str, Solver],
    seed: int,
    origin: Mapping[str, Any],
) -> list[Record]:
    nearest = problem.energy(problem.nearest())
    case = {"problem": name, "g": problem.g, "r": problem.r, "d": problem.d, "seed": seed}
    case |= {"energy_nearest": float(nearest.sum()), "device": str(problem.device), **origin}
    energies, bounds, records = {"nearest rounding": nearest}, {}, []
    for label, solver in solvers.items():
        try:
            solution, seconds = run_solver(problem, solver, seed)
        except RefusedError as error:
            outcome: dict[str, Any] = {"refused": str(error)}
        except CrossCheckError as error:
            raise CrossCheckError(f"problem {name!r}: {error}") from None
        else:
            outcome = {**_score(solution, case["energy_nearest"]), "seconds": seconds}
            energies[label], bounds[label] = solution.energy, solution.lower_bound
        outcome |= {"solver": label, "configuration": repr(solver), "time": _now()}
        records.append(Record(**case, **outcome))
    for whose, bound in bounds.items():
        for who, energy in energies.items():
            _check_bound(problem, f"problem {name!r}: {who!r}", energy, repr(whose), bound)
    return records


def _score(solution: Solution, energy_nearest: float) -> dict[str, Any]:
    energy = float(solution.energy.sum())
    return {
        "energy": energy,
        "ratio": energy / energy_nearest if energy_nearest else None,
        "lower_bound": solution.total_bound,
        "proven_rows": int(solution.proven.sum()),
    }


def _check_claim(problem: RoundingProblem, solver: Solver, claimed: Solution) -> None:
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


def _check_bound(
    problem: RoundingProblem, who: str, energy: Tensor, whose: str, bound: Tensor | None
) -> None:
    """No energy may lie below a lower bound of the same row, whoever gives the bound."""
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


def _first(rows: Tensor) -> tuple[int, int]:
    group, row = torch.nonzero(rows)[0].tolist()
    return group, row


def _warm_up(solver: Solver) -> None:
    with watching(time_limit=1e-9), suppress(RefusedError):  # one step of every watched loop
        solver.solve(random_problem(1, 1, 4))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def provenance() -> dict[str, Any]:
    """What ran and where: versions, commit, machine, threads; by the names of `Record`."""
    return {
        "package_version": qubo_rounding.__version__,
        "torch_version": torch.__version__,
        "python_version": platform.python_version(),
        "commit": _commit(),
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
    }


def _commit() -> str:
    repository = Path(__file__).parent.parent
    if not (repository / ".git").exists():  # git itself would go on to the folders above
        return ""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(describe, cwd=repository, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip()


def _processor() -> str:
    information = Path("/proc/cpuinfo")  # on Linux `platform` knows the architecture only
    lines = information.read_text().splitlines() if information.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())
