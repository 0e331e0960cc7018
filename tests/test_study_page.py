"""The page of a study: what every solver reached, refusals included."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qubo_rounding.compare import compare
from qubo_rounding.record_files import read_records, write_records
from qubo_rounding.solvers import AdaRound, Annealing, Enumeration, Nearest
from qubo_rounding.study import Case
from qubo_rounding.study_page import bound_figure, solver_rows, time_figure, write_study_page
from qubo_rounding.testing import random_problem


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("study <1>")
    problems = {f"layer{d}": random_problem(1, 3, d, seed=d) for d in (6, 9, 30)}
    cases = [Case(name, problem, held_out=problem.energy) for name, problem in problems.items()]
    solvers = {
        "near": Nearest(),
        "exact": Enumeration(max_assignments=2**12),
        "annealing": Annealing(sweeps=20),
        "adaround": AdaRound(iterations=30),
    }
    compare(cases, solvers, seeds=[0, 1], study=folder)
    return folder


def test_the_page_tells_everything(study):
    page = write_study_page(study)
    text = page.read_text()
    assert page == study / "report.html"
    assert "study &lt;1&gt;" in text
    assert "3 problems, 4 solvers" in text
    assert text.count("<img ") == 2
    assert text.count("<table>") == 4
    assert "assignments" in text  # why enumeration refused the wide one
    assert text.count("<tr><td>layer30</td><td>exact</td>") == 2
    assert "http" not in text.replace("http://www.w3.org", "")


def test_solvers_stand_with_their_means(study):
    text = write_study_page(study, study / "other.html").read_text()
    records = [r for r in read_records(study / "records.csv") if r.solver == "exact"]
    exact = sum(r.exact_rows for r in records)
    assert exact == 12
    row = text[text.index("<tr><td>exact</td>") :]
    assert f'data-value="{exact!r}">{exact}<' in row[: row.index("</tr>")]


def test_who_refused_a_problem_has_no_means(study):
    records = read_records(study / "records.csv")
    rows = {row["solver"]: row for row in solver_rows(records)}
    for column in ("energy / nearest", "held out / nearest", "energy / best bound", "seconds"):
        assert rows["exact"][column] is None
    assert rows["near"]["energy / nearest"] == 1
    (axes,) = time_figure(records).axes
    large = [points for points in axes.collections if points.get_sizes()[0] > 100]
    assert len(large) == 3  # of four solvers
    assert len(axes.get_legend_handles_labels()[1]) == 4
    some = [record for record in records if (record.solver, record.problem) != ("near", "layer6")]
    rows = {row["solver"]: row for row in solver_rows(some)}
    assert rows["near"]["energy / nearest"] is None  # not asked about all


def test_a_study_without_bounds_has_one_picture(study, tmp_path):
    records = [
        replace(record, over_bound=None, held_out=None)
        for record in read_records(study / "records.csv")
        if record.solver == "near"
    ]
    write_records(tmp_path / "records.csv", records)
    text = write_study_page(tmp_path).read_text()
    assert text.count("<img ") == 1
    assert "<p>Nothing.</p>" in text


def test_nothing_to_draw_is_refused(study, tmp_path):
    near = next(r for r in read_records(study / "records.csv") if r.solver == "near")
    with pytest.raises(ValueError, match="no record has a bound"):
        bound_figure([replace(near, over_bound=None)])
    with pytest.raises(ValueError, match="no record has a ratio"):
        time_figure([replace(near, ratio=None)])
    write_records(tmp_path / "records.csv", [])
    with pytest.raises(ValueError, match="no solved problem"):
        write_study_page(tmp_path)
