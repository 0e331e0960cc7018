"""Flat records in a file: as CSV, or as Parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from qubo_rounding.atomic import atomic_path
from qubo_rounding.provenance import Provenance
from qubo_rounding.records import Record

Kind = TypeVar("Kind", bound=Provenance)


def check_records_path(path: str | Path) -> None:
    """Nothing, where records can be written as the path's ending asks for.

    Raises:
        ValueError: Parquet, and pyarrow is not installed.
    """
    if Path(path).suffix == ".parquet":
        _pyarrow()


def write_records(
    path: str | Path, records: Sequence[Provenance], kind: type[Provenance] = Record
) -> Path:
    """Write records as CSV, or as Parquet where the path ends in .parquet; returns the path.

    Args:
        path: of the file, which is replaced.
        records: all of one kind.
        kind: `Record` or `NetworkRecord`; its fields are the columns, the provenance last.

    Raises:
        ValueError: Parquet, and pyarrow is not installed.
    """
    columns, rows = _columns(kind), [asdict(record) for record in records]
    with atomic_path(path) as temporary:
        if Path(path).suffix == ".parquet":
            _write_parquet(temporary, columns, rows)
        else:
            with temporary.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(columns))
                writer.writeheader()
                writer.writerows(rows)
    return Path(path)


def read_records(path: str | Path, kind: type[Kind] = Record) -> list[Kind]:
    """The records that `write_records` wrote.

    Args:
        path: of the file.
        kind: of the records in it.

    Raises:
        ValueError: no CSV, other columns than such a record's, a value of a wrong kind, or Parquet
            without pyarrow.
    """
    columns = _columns(kind)
    if Path(path).suffix == ".parquet":
        rows = _pyarrow().read_table(path).to_pylist()
        _check_columns(path, rows[0] if rows else columns, columns)
        return [kind(**row) for row in rows]
    try:
        with Path(path).open(newline="") as file:
            reader = csv.DictReader(file)
            there, lines = reader.fieldnames or [], [(reader.line_num, row) for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no readable CSV file ({error}).") from None
    _check_columns(path, there, columns)
    records = []
    for line, row in lines:
        try:
            records.append(kind(**{name: _parsed(row[name], of) for name, of in columns.items()}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {line}: {error}.") from None
    return records


def _columns(kind: type[Provenance]) -> dict[str, Any]:
    """The types of a record's fields: what it is about first, its provenance last."""
    origin = get_type_hints(Provenance)
    own = {name: of for name, of in get_type_hints(kind).items() if name not in origin}
    return own | origin


def _check_columns(path: str | Path, given: Iterable[str], wanted: Iterable[str]) -> None:
    if (there := list(given)) != (columns := list(wanted)):
        raise ValueError(f"{path} has the columns {there}; records have {columns}.")


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


def _write_parquet(
    path: Path, columns: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> None:
    parquet = _pyarrow()
    import pyarrow as pa

    arrow = {str: pa.string(), int: pa.int64()}
    schema = pa.schema([(name, arrow.get(of, pa.float64())) for name, of in columns.items()])
    parquet.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)
