"""The list of scripts is that of the folder and of its README; small ones run."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from analysis import rows
from analysis.__main__ import main
from analysis.correlation import rank_correlation
from analysis.scripts import APART, SCRIPTS
from analysis.toy import measure, toy_problem

FOLDER = Path(__file__).parent.parent / "analysis"


def test_every_script_is_listed_and_every_listed_one_is_there() -> None:
    found = {
        ".".join(path.relative_to(FOLDER).with_suffix("").parts)
        for path in FOLDER.rglob("*.py")
        if "__main__" in path.read_text() and path.name != "__main__.py"
    }
    own = {name for name in found if not name.endswith("_run")}  # others are started by them
    assert own == {script.module for script in (*SCRIPTS, *APART)}


def test_the_readme_has_the_listing(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    assert capsys.readouterr().out.strip() in (FOLDER / "README.md").read_text()


def test_an_unknown_script_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["nothing"])
    assert ended.value.code == 2
    assert "there is no script ['nothing']" in capsys.readouterr().err


def test_scripts_run_at_the_scales_they_have(monkeypatch, capsys) -> None:
    calls: list[list[str]] = []

    def run(call: list[str], check: bool) -> SimpleNamespace:
        calls.append(call[2:])
        return SimpleNamespace(returncode=int("toy" in call[2]))

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit, match=r"these did not: toy"):
        main(["all", "--scale", "demo"])
    assert calls == [["analysis.toy"], ["analysis.headline", "--scale", "demo"]]
    assert "1 of 2 scripts ran to their end" in capsys.readouterr().out


def run_script(name: str, *words: str) -> None:
    """As `python -m` does, on a machine without the evaluation kit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUBO_ROUNDING_KIT", "nowhere")
        patch.setattr(sys, "argv", [name, *words])
        runpy.run_path(str(FOLDER / f"{name.replace('.', '/')}.py"), run_name="__main__")


@pytest.mark.parametrize("name", [script.module for script in (*SCRIPTS, *APART)])
def test_scripts_refuse_what_they_do_not_know(name: str, monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr(rows, "RESULTS", tmp_path)  # of one that would run all the same
    with pytest.raises(SystemExit) as ended:
        run_script(name, "--sclae=demo")
    assert ended.value.code == 2
    assert ": error: " in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        run_script(name, "--help")
    assert ended.value.code == 0
    assert f"python -m analysis.{name}" in capsys.readouterr().out


def test_options_of_one_script_go_with_that_script_alone(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["toy", "headline", "--sclae=demo"])
    assert "--sclae=demo" in capsys.readouterr().err


def test_scripts_name_a_missing_kit(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        run_script("whole_networks")
    assert ended.value.code == 2
    assert "the evaluation kit is not at nowhere; name its folder" in capsys.readouterr().err


def test_nearest_is_optimal_without_coupling_and_symmetric_in_its_sign() -> None:
    rows, excess = measure()
    by_coupling = {row["coupling c"]: row for row in rows}
    assert by_coupling[0.0]["nearest is wrong"] == "0.0%"
    assert by_coupling[-1.0]["nearest / optimum"] == pytest.approx(
        by_coupling[1.0]["nearest / optimum"]
    )
    assert excess.min() >= -1e-12
    assert excess.max() > 0.1
    assert toy_problem(1.0).energy(toy_problem(1.0).nearest()).shape == (1, 200 * 200)


def test_correlations_and_their_intervals() -> None:
    draw = np.random.default_rng(0)
    x = draw.standard_normal(200)
    same = rank_correlation(x, x**3)
    assert [same.value, same.low, same.high] == pytest.approx([1, 1, 1])
    noisy = rank_correlation(x, x + draw.standard_normal(200))
    assert noisy.low < 0.7 < noisy.high
    assert str(rank_correlation([1, 2, 3], [3, 2, 1])).startswith("-1.00")


def test_the_first_table_of_a_result_is_read_back(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    closing = "The check:\n\n| other | table |\n| --- | --- |\n| 1 | 2 |"
    rows.write_markdown("made", [{"a": 1, "b": "x y"}, {"a": 2, "b": "z"}], closing)
    assert rows.read_markdown("made") == [{"a": "1", "b": "x y"}, {"a": "2", "b": "z"}]
