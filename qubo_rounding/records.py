"""Flat rows of what was measured, with their provenance; as CSV or Parquet."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import torch

import qubo_rounding
from qubo_rounding.atomic import atomic_path
from qubo_rounding.means import quotient


@dataclass(frozen=True, kw_only=True)
class Record:
    """One solver on one problem; energies are sums over rows, output^2 per position.

    Args:
        problem: its name.
        calibration: the name of the calibration set that its Gram is from; may be empty.
        fingerprint: SHA-256 of the problem's tensors.
        g, r, d: its shape.
        solver: the name it was given.
        configuration: repr of the solver, with every hyperparameter.
        seed: of its random numbers.
        energy: of the levels found, scored here in float64; None where refused.
        energy_nearest: of nearest rounding.
        ratio: energy / energy_nearest; None where refused or where nearest has energy 0.
        held_out, held_out_nearest: the same energies on held-out images; None without any.
        lower_bound: sum of the rows' lower bounds by this solver; None unless every row has one.
        proven_rows: rows that this solver proved optimal.
        best_bound: sum over rows of the highest lower bound that any solver of the comparison
            gives; the optimum where all rows are proven. None unless every row has one.
        over_bound: energy / best_bound; None without a positive bound.
        known_rows: rows whose optimum some solver of the comparison proved.
        exact_rows: those of them that this solver solved, to the optimum's energy.
        proven_by: the solvers that proved them, joined by " + ".
        bits_of_optimum: share of the undecided weights of the known rows that have the level of
            the optimum; None without any.
        bits_of_relaxation: share of the undecided weights that have AdaRound's level, same seed;
            None where AdaRound was not among the solvers.
        seconds: the solver's wall time, without compilation; None where refused.
        refused: why the solver refused the problem; empty where it did not.
        package_version, torch_version, python_version: what ran.
        commit: of the package's repository, ending in -dirty after changes; empty without one.
        machine: processor and number of cores.
        device, threads: where the problem lay, and torch's number of threads.
        time: of the end of the run, UTC, ISO 8601.
    """

    problem: str
    calibration: str = ""
    fingerprint: str
    g: int
    r: int
    d: int
    solver: str
    configuration: str
    seed: int
    energy: float | None = None
    energy_nearest: float
    ratio: float | None = None
    held_out: float | None = None
    held_out_nearest: float | None = None
    lower_bound: float | None = None
    proven_rows: int = 0
    best_bound: float | None = None
    over_bound: float | None = None
    known_rows: int = 0
    exact_rows: int = 0
    proven_by: str = ""
    bits_of_optimum: float | None = None
    bits_of_relaxation: float | None = None
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

    @property
    def held_out_ratio(self) -> float | None:
        """Held-out energy relative to nearest's; None without."""
        return quotient(self.held_out, self.held_out_nearest)

    @property
    def cell(self) -> tuple[str, str, str, str, int]:
        """What the row measures: problem, calibration, solver, its configuration, seed."""
        return self.problem, self.calibration, self.solver, self.configuration, self.seed


def check_records_path(path: str | Path) -> None:
    """Nothing, where records can be written as the path's ending asks for.

    Raises:
        ValueError: Parquet, and pyarrow is not installed.
    """
    if Path(path).suffix == ".parquet":
        _pyarrow()


def write_records(path: str | Path, records: Sequence[Record]) -> Path:
    """Write records as CSV, or as Parquet where the path ends in .parquet; returns the path.

    Raises:
        ValueError: Parquet, and pyarrow is not installed.
    """
    with atomic_path(path) as temporary:
        if Path(path).suffix == ".parquet":
            _write_parquet(temporary, records)
        else:
            with temporary.open("w", newline="") as file:
                writer = csv.DictWriter(file, [field.name for field in fields(Record)])
                writer.writeheader()
                writer.writerows(asdict(record) for record in records)
    return Path(path)


def read_records(path: str | Path) -> list[Record]:
    """The records that `write_records` wrote.

    Raises:
        ValueError: other columns than a record's, a value of a wrong kind, or Parquet without
            pyarrow.
    """
    if Path(path).suffix == ".parquet":
        rows = _pyarrow().read_table(path).to_pylist()
        _check_columns(path, rows[0] if rows else get_type_hints(Record))
        return [Record(**row) for row in rows]
    kinds = get_type_hints(Record)
    with Path(path).open(newline="") as file:
        reader = csv.DictReader(file)
        _check_columns(path, reader.fieldnames or [])
        try:
            return [
                Record(**{key: _parsed(row[key], kind) for key, kind in kinds.items()})
                for row in reader
            ]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}.") from None


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


def _check_columns(path: str | Path, columns: Iterable[str]) -> None:
    if (given := list(columns)) != (wanted := list(get_type_hints(Record))):
        raise ValueError(f"{path} has the columns {given}; records have {wanted}.")


def _parsed(text: str, kind: Any) -> Any:
    if kind == float | None:
        return float(text) if text else None
    return kind(text)


def _pyarrow() -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise ValueError(
            "Parquet needs pyarrow, which is not installed; pip install 'qubo-rounding[parquet]', "
            "or choose a path that ends in .csv."
        ) from None
    return parquet


def _write_parquet(path: Path, records: Sequence[Record]) -> None:
    parquet = _pyarrow()
    import pyarrow as pa

    arrow = {str: pa.string(), int: pa.int64()}
    kinds = get_type_hints(Record).items()
    schema = pa.schema([(name, arrow.get(kind, pa.float64())) for name, kind in kinds])
    rows = [asdict(record) for record in records]
    parquet.write_table(pa.Table.from_pylist(rows, schema=schema), path)


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
