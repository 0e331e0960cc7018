"""Tables say what was measured; pictures come out as files."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from qubo_rounding.evaluation import Evaluation
from qubo_rounding.records import Record
from qubo_rounding.report import (
    markdown_table,
    plot_accuracy,
    plot_energy_per_layer,
    plot_gram_flips,
    records_table,
    write_table,
)
from qubo_rounding.testing import random_problem

RECORD = Record(
    problem="stem",
    fingerprint="0",
    g=1,
    r=2,
    d=3,
    solver="nearest",
    configuration="Nearest()",
    seed=0,
    energy=4.0,
    energy_nearest=4.0,
    ratio=1.0,
    seconds=0.5,
    package_version="0",
    torch_version="0",
    python_version="0",
    commit="",
    machine="one",
    device="cpu",
    threads=1,
    time="2020-01-01T00:00:00+00:00",
)


def solved(problem: str, solver: str, energy: float, nearest: float) -> Record:
    ratio = energy / nearest if nearest else None
    changes = {"energy": energy, "energy_nearest": nearest, "ratio": ratio}
    return replace(RECORD, problem=problem, solver=solver, **changes)


def cells(table: str) -> dict[str, list[str]]:
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    return {head.strip(): [cell.strip() for cell in rest] for head, *rest in lines}


def test_a_table_is_aligned():
    table = markdown_table([{"name": "a", "value": 0.5}, {"name": "long name", "value": 12}])
    assert table.splitlines() == [
        "| name      |  value |",
        "| --------- | -----: |",
        "| a         | 0.5000 |",
        "| long name |     12 |",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1 / 3, "0.3333"),
        (0.0, "0"),
        (123.456, "123.5"),
        (999.96, "1000"),
        (-12345.6, "-12346"),
        (1.23456e-7, "1.235e-07"),
        (1.23456e12, "1.235e+12"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (None, "-"),
        (True, "True"),
        (10**6, "1000000"),
        ("a|b\nc", "a\\|b c"),
    ],
)
def test_values_in_a_table(value, text):
    last = markdown_table([{"x": value}]).splitlines()[-1]
    assert last.strip("| ") == text


def test_columns_can_be_chosen_and_may_be_missing():
    rows = [{"a": 1}, {"b": 2.0, "a": 3}]
    assert cells(markdown_table(rows))["a"] == ["b"]
    assert markdown_table(rows, ["b"]).splitlines()[2] == "|     - |"


def test_a_table_needs_columns(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        markdown_table([])
    with pytest.raises(ValueError, match="at least one row"):
        write_table(tmp_path / "none.csv", [{}])
    assert list(tmp_path.iterdir()) == []


def test_a_csv_holds_all_columns_and_all_digits(tmp_path):
    path = write_table(tmp_path / "t.csv", [{"method": "float"}, {"method": "a,b", "top-1": 1 / 3}])
    with path.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first == {"method": "float", "top-1": ""}
    assert second["method"] == "a,b"
    assert float(second["top-1"]) == 1 / 3
    assert list(tmp_path.iterdir()) == [path]


def test_a_table_of_records():
    refused = replace(solved("head", "exact", 1, 1), energy=None, ratio=None, seconds=None)
    records = [
        solved("stem", "nearest", 4, 4),
        solved("stem", "annealing", 1, 4),
        solved("stem", "exact", 1, 4),
        solved("head", "nearest", 1, 1),
        solved("head", "annealing", 1, 1),
        replace(refused, refused="too wide."),
    ]
    table = records_table(records)
    assert cells(table) == {
        "energy / nearest": ["nearest", "annealing", "exact"],
        "-" * 16: ["-" * 6 + ":", "-" * 8 + ":", "-" * 5 + ":"],
        "stem": ["1.000", "0.2500", "0.2500"],
        "head": ["1.000", "1.000", "-"],
        "geometric mean": ["1.000", "0.5000", "-"],
        "sum of energies": ["1.000", "0.4000", "-"],
        "seconds": ["1.000", "1.000", "-"],
    }
    assert table.splitlines()[-1] == "exact refused 1 of 2 problems, first head: too wide."


def test_no_mean_of_ratios_that_have_none():
    zero = [solved("stem", "nearest", 0, 0), solved("head", "nearest", 1, 2)]
    found = cells(records_table(zero))
    assert found["stem"] == ["-"]
    assert (found["geometric mean"], found["sum of energies"]) == (["-"], ["0.5000"])
    negative = [solved("stem", "nearest", -1, 2)]
    assert cells(records_table(negative))["geometric mean"] == ["-"]


def test_two_records_of_one_cell_are_refused():
    with pytest.raises(ValueError, match="two records are of 'nearest' on 'stem' with seed 0"):
        records_table([RECORD, replace(RECORD, configuration="Nearest(x)")])


def test_seeds_are_averaged_and_calibration_sets_kept_apart():
    records = [
        replace(solved("stem", "a", energy, 4), calibration=images, seed=seed)
        for images, seed, energy in (("64", 0, 1), ("64", 1, 3), ("256", 0, 2))
    ]
    table = cells(records_table(records))
    assert (table["stem (64)"], table["stem (256)"]) == (["0.5000"], ["0.5000"])
    assert table["sum of energies"] == ["0.5000"]


def test_lines_of_what_is_known_appear_when_something_is():
    plain = cells(records_table([solved("stem", "a", 1, 4)]))
    assert {"held out", "over the bounds", "rows exact"}.isdisjoint(plain)
    known = replace(solved("stem", "a", 3, 4), best_bound=2.0, known_rows=2, exact_rows=1)
    known = replace(known, held_out=3.0, held_out_nearest=6.0)
    table = cells(records_table([known]))
    assert table["held out"] == ["0.5000"]
    assert table["over the bounds"] == ["1.500"]
    assert table["rows exact"] == ["1 of 2"]


def draw(kind: str, path: Path) -> Path:
    problem = random_problem(1, 3, 6)
    return {
        "energy": lambda: plot_energy_per_layer({"a": {"stem": 0.5, "head": 0.7}}, path),
        "accuracy": lambda: plot_accuracy({"a": Evaluation(9, agreement=0.5)}, path),
        "flips": lambda: plot_gram_flips(problem, problem.low, path, rows=2),
    }[kind]()


@pytest.mark.parametrize("kind", ["energy", "accuracy", "flips"])
def test_pictures_are_saved(kind, tmp_path):
    png = draw(kind, tmp_path / "picture.png")
    assert png == tmp_path / "picture.png"
    with Image.open(png) as image:
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        assert image.width >= 1200
    first, second = (draw(kind, tmp_path / f"{name}.svg").read_text() for name in "ab")
    assert first.lstrip().startswith("<?xml")
    assert first == second
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.svg", "b.svg", "picture.png"]


def test_an_unknown_suffix_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="bmpx"):
        plot_energy_per_layer({"a": {"stem": torch.tensor(0.5).item()}}, tmp_path / "a.bmpx")
    assert list(tmp_path.iterdir()) == []
