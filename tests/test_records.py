"""Records go into files and come back, whole or with a word about what is wrong."""

from __future__ import annotations

import builtins
from dataclasses import asdict, replace

import pytest

from qubo_rounding.compare import compare
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.record_files import check_records_path, read_records, write_records
from qubo_rounding.records import Record
from qubo_rounding.solvers import Enumeration, Nearest
from qubo_rounding.testing import random_problem


@pytest.fixture
def problem() -> RoundingProblem:
    return random_problem(2, 3, 7, seed=1)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_records_survive_the_file(problem, tmp_path, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    never = Enumeration(max_assignments=2)
    solvers = {"near, with comma": Nearest(), "never": never, "exact": Enumeration()}
    records = compare({'a "quoted" name': problem}, solvers)
    path = write_records(tmp_path / f"records.{suffix}", records)
    assert read_records(path) == records
    assert list(tmp_path.iterdir()) == [path]


def test_no_records_are_a_file_with_a_head(tmp_path):
    path = write_records(tmp_path / "none.csv", [])
    assert path.read_text().startswith("problem,calibration,fingerprint,g,r,d,solver")
    assert read_records(path) == []


def test_a_foreign_table_is_named(tmp_path):
    path = tmp_path / "foreign.csv"
    path.write_text("method,top-1\nnearest,0.1\n")
    with pytest.raises(ValueError, match=r"foreign.csv has the columns \['method', 'top-1'\]"):
        read_records(path)


@pytest.mark.parametrize(
    "content", [b"problem\n" + 200_000 * b"x", b"problem\n\xff\xfe"], ids=["long", "no text"]
)
def test_a_file_that_is_no_csv_is_named(tmp_path, content):
    path = tmp_path / "records.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"records\.csv is no readable CSV file"):
        read_records(path)


def test_a_damaged_line_is_named(problem, tmp_path):
    (record,) = compare({"p": problem}, {"near": Nearest()})
    path = write_records(tmp_path / "records.csv", [record])
    text = path.read_text()
    path.write_text(text.replace(",2,3,7,", ",2,three,7,"))
    with pytest.raises(ValueError, match=r"records.csv, line 2: .*three"):
        read_records(path)
    path.write_text(text[: text.index(",2,3,7,") + 3])
    with pytest.raises(ValueError, match=r"records.csv, line 2"):
        read_records(path)


def test_the_table_has_a_column_for_every_field(problem):
    (record,) = compare({"p": problem}, {"near": Nearest()})
    assert list(asdict(record)) == list(Record.__dataclass_fields__)


def test_parquet_without_pyarrow_is_named(problem, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name: str, *rest: object):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    records = compare({"p": problem}, {"near": Nearest()})
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"Parquet needs pyarrow.*\[parquet\].*\.csv"):
        write_records(tmp_path / "records.parquet", records)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="Parquet needs pyarrow"):
        check_records_path(tmp_path / "records.parquet")  # before anything is solved
    check_records_path(tmp_path / "records.csv")


def test_a_foreign_parquet_file_is_named(problem, tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "foreign.parquet"
    parquet.write_table(pa.table({"method": ["nearest"]}), path)
    with pytest.raises(ValueError, match=r"foreign.parquet has the columns \['method'\]"):
        read_records(path)


def test_a_cell_is_what_was_measured(problem):
    (record,) = compare({"p": problem}, {"near": Nearest()}, seeds=[5])
    assert record.cell == ("p", "", "near", "Nearest()", 5)
    assert replace(record, energy=1.0).cell == record.cell
