"""Studies that go on: records and solutions kept in a folder, one cell after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from qubo_rounding.cross_checks import CrossCheckError
from qubo_rounding.exchange_file import check_npz_file
from qubo_rounding.fingerprint import Fingerprint
from qubo_rounding.problem import ProblemError, RoundingProblem
from qubo_rounding.record_files import read_records, write_records
from qubo_rounding.records import Record
from qubo_rounding.solution import Solution

RECORDS = "records.csv"


@dataclass(frozen=True)
class Case:
    """A problem of a comparison.

    Args:
        name: of the layer or instance.
        problem: what the solvers are given.
        calibration: the name of the images that its Gram is from, where there are several.
        held_out: (g, r) energy of levels (g, r, d) on images that were not used, such as the
            `energy` of the same problem with another Gram; None without any.
    """

    name: str
    problem: RoundingProblem
    calibration: str = ""
    held_out: Callable[[Tensor], Tensor] | None = None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the problem's tensors."""
        p = self.problem
        tensors = (p.gram, p.target, p.scale, p.low, p.high, p.linear, p.offset)
        return str(Fingerprint(tensor for tensor in tensors if tensor is not None))

    @cached_property
    def nearest(self) -> Solution:
        """Nearest rounding, which everything is compared with."""
        return self.problem.solution(self.problem.nearest())

    def held_out_energy(self, levels: Tensor) -> float | None:
        """Of levels (g, r, d), summed over all rows; None without held-out images."""
        return None if self.held_out is None else float(self.held_out(levels).sum())

    @classmethod
    def from_file(cls, path: Path, held_out: Path | None = None) -> Case:
        """The case of a problem file, named after it.

        Args:
            path: a problem file (.npz).
            held_out: a folder with a problem file of the same name whose Gram is from held-out
                images; levels are scored by it.

        Raises:
            ProblemError: no readable problem file, or a held-out one of another layer.
        """
        problem = RoundingProblem.load(path)
        if held_out is None:
            return cls(path.stem, problem)
        other = RoundingProblem.load(held_out / path.name)
        same = other.target.shape == problem.target.shape
        if not (same and bool((other.target == problem.target).all())):
            raise ProblemError(
                f"{held_out / path.name}: its targets are not those of {path}; give the same layer "
                "on the same grid."
            )
        return cls(path.stem, problem, held_out=other.energy)


@dataclass(frozen=True)
class CaseFiles:
    """The cases of problem files, of which one is held at a time.

    Args:
        paths: problem files (.npz).
        held_out: as for `Case.from_file`.

    Raises:
        ProblemError: a file that is missing or cut, or two of one name.
    """

    paths: Sequence[Path]
    held_out: Path | None = None

    def __post_init__(self) -> None:
        # All at once: what is read in turn would be missed in the middle of the work.
        named: dict[str, Path] = {}
        for path in self.paths:
            if path.stem in named:
                raise ProblemError(
                    f"{named[path.stem]} and {path} are both problem {path.stem!r}; give each file "
                    "once, and its own name."
                )
            named[path.stem] = path
            check_npz_file(path)
            if self.held_out is not None:
                check_npz_file(self.held_out / path.name)

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Case]:
        return (Case.from_file(path, self.held_out) for path in self.paths)


@dataclass
class Outcome:
    """What one solver did with one case: its record, and the solution unless it refused."""

    record: Record
    solution: Solution | None


class Study:
    """A folder that keeps what was measured: `records.csv`, and the solution files.

    Args:
        folder: made if it is not there.

    Raises:
        ValueError: its records are not readable.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._solutions.mkdir(parents=True, exist_ok=True)
        there = read_records(self.path) if self.path.exists() else []
        self._records = {record.cell: record for record in there}

    @property
    def path(self) -> Path:
        """Where the records are."""
        return self._folder / RECORDS

    @property
    def _solutions(self) -> Path:
        return self._folder / "solutions"

    def finished(self, case: Case) -> dict[tuple[str, str, str, str, int], Outcome]:
        """What was measured on a case before, by the cell of its record.

        Raises:
            CrossCheckError: the records of this name are of other data.
        """
        found = {}
        fingerprint = case.fingerprint
        for cell, record in self._records.items():
            if cell[:2] != (case.name, case.calibration):
                continue
            if record.fingerprint != fingerprint:
                raise CrossCheckError(
                    f"{self.path} holds problem {case.name!r} of other data "
                    f"({record.fingerprint[:8]}, not {fingerprint[:8]}); name the calibration "
                    "sets, or choose another folder."
                )
            if record.refused:
                found[cell] = Outcome(record, None)
            elif (path := self._file(record)).exists():
                found[cell] = Outcome(record, Solution.load(path))
        return found

    def keep(self, outcomes: list[Outcome]) -> None:
        """Write outcomes of one case; records of the same cells are replaced."""
        for outcome in outcomes:
            path, cell = self._file(outcome.record), outcome.record.cell
            kept = cell in self._records and path.exists()
            if outcome.solution is not None and not kept:
                outcome.solution.save(path)
            self._records[cell] = outcome.record
        write_records(self.path, list(self._records.values()))

    def _file(self, record: Record) -> Path:
        name = hashlib.sha256(repr((record.cell, record.fingerprint)).encode()).hexdigest()
        return self._solutions / f"{name[:32]}.npz"
