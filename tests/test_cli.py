"""The commands: what they write, what they print, how they end."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from qubo_rounding.cli import app
from qubo_rounding.cli_compare import split_descriptions
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.record_files import read_records
from qubo_rounding.records import NetworkRecord
from qubo_rounding.solution import Solution
from qubo_rounding.testing import random_problem

COMMANDS = ("demo", "problems", "solve", "compare", "compare-networks", "quantize", "report")
REPOSITORY = Path(__file__).resolve().parent.parent
NETWORK = """
import sys
sys.path.insert(0, {tests!r})
from networks import residual

def tiny():
    return residual(), dict(size=8, resize=8)

def nothing():
    return None
"""


@pytest.fixture
def problem_file(tmp_path: Path) -> Path:
    file = tmp_path / "problem.npz"
    random_problem(g=1, r=3, d=6, seed=0).save(file)
    return file


@pytest.fixture
def network(tmp_path: Path) -> str:
    """MODEL of a tiny network in a file."""
    file = tmp_path / "networks_file.py"
    file.write_text(NETWORK.format(tests=str(Path(__file__).parent)))
    return f"{file}:tiny"


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder of six small images."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for k in range(6):
        values = np.random.default_rng(k).integers(0, 256, (9, 10, 3), np.uint8)
        Image.fromarray(values).save(folder / f"{k}.png")
    return folder


@pytest.fixture
def labelled(tmp_path: Path, photographs: Path) -> Path:
    """The same images as a table with classes."""
    file = tmp_path / "labels.csv"
    rows = [f"photographs/{k}.png,{k % 5}" for k in range(6)]
    file.write_text("\n".join(["path,class_index", *rows]) + "\n")
    return file


def run(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def output_of(*words: Any) -> str:
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*words: Any) -> str:
    """The message of a command that ends in an error as all errors should."""
    result = run(*words)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    *_, last = (line for line in result.stderr.splitlines() if line.startswith("Error: "))
    return last


# solve and compare


def test_solve_writes_a_solution_and_ends_with_one_json_object(
    problem_file: Path, tmp_path: Path
) -> None:
    solution_file = tmp_path / "solution.npz"
    text = output_of(
        "solve", problem_file, "--solver", "enumeration", "--json", "-o", solution_file
    )
    told = json.loads(text.splitlines()[-1])
    problem, solution = RoundingProblem.load(problem_file), Solution.load(solution_file)
    energy = float(problem.energy(solution.levels).sum())
    assert told.pop("seconds") >= 0
    assert told.pop("energy_nearest") == float(problem.energy(problem.nearest()).sum())
    assert told.pop("lower_bound") == pytest.approx(energy, rel=1e-9)
    expected = {"solver": "enumeration", "energy": energy, "rows": 3, "proven_rows": 3}
    assert told == expected


def test_without_a_bound_there_is_null(problem_file: Path, tmp_path: Path) -> None:
    text = output_of(
        "solve", problem_file, "--solver", "nearest", "--json", "-o", tmp_path / "s.npz"
    )
    told = json.loads(text.splitlines()[-1])
    assert told["lower_bound"] is None
    assert told["energy"] == told["energy_nearest"]


def test_options_and_seed_reach_the_solver(problem_file: Path, tmp_path: Path) -> None:
    def levels(seed: int, solver: str) -> torch.Tensor:
        file = tmp_path / "s.npz"
        output_of("solve", problem_file, "--solver", solver, "--seed", seed, "-o", file)
        return Solution.load(file).levels

    one = levels(1, "stochastic:draws=1")
    assert torch.equal(one, levels(1, "stochastic:draws=1"))
    assert not torch.equal(one, levels(2, "stochastic:draws=1"))


def test_a_table_is_printed_without_json(problem_file: Path, tmp_path: Path) -> None:
    limit = ("--time-limit", 5)
    text = output_of("solve", problem_file, "--solver", "descent", *limit, "-o", tmp_path / "s.npz")
    assert "| solver " in text
    assert "energy_nearest" in text


def test_compare_prints_a_table_and_writes_the_records(problem_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.npz"
    random_problem(g=2, r=2, d=5, seed=1).save(other)
    table = tmp_path / "records.csv"
    solvers = "nearest,stochastic:draws=3,gptq"
    text = output_of("compare", problem_file, other, "--solvers", solvers, "-o", table)
    assert "stochastic:draws=3" in text
    records = [(r.problem, r.solver) for r in read_records(table)]
    assert len(records) == 6
    assert {name for name, _ in records} == {"problem", "other"}


def test_compare_takes_folders_seeds_and_held_out_files(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("problems", "held-out", "empty")]
    for seed, folder in enumerate(folders[:2]):
        folder.mkdir()
        drawn = random_problem(1, 2, 5, seed=seed)
        replace(random_problem(1, 2, 5), gram=drawn.gram).save(folder / "p.npz")
    table = tmp_path / "records.csv"
    call = ["compare", folders[0], "--solvers", "gptq,enumeration", "--held-out", folders[1]]
    call += ["--seed", 3, "--seeds", 2, "--study", tmp_path / "study", "-o", table]
    text = output_of(*call)
    records = read_records(table)
    assert [(r.solver, r.seed) for r in records] == [
        (solver, seed) for seed in (3, 4) for solver in ("gptq", "enumeration")
    ]
    assert all(r.held_out is not None and r.known_rows == 2 for r in records)
    for line in ("held out", "over the bounds", "rows exact"):
        assert f"| {line} " in text
    assert output_of(*call) == text  # nothing was measured again, seconds included
    folders[2].mkdir()
    assert "holds no problem files" in refused("compare", folders[2], "--solvers", "nearest")


@pytest.mark.parametrize(
    ("text", "solvers"),
    [
        ("nearest", ["nearest"]),
        (" nearest , gptq,", ["nearest", "gptq"]),
        ("annealing:sweeps=5,start=gptq,gptq", ["annealing:sweeps=5,start=gptq", "gptq"]),
        ("annealing:sweeps=5,adaround:lr=1", ["annealing:sweeps=5", "adaround:lr=1"]),
        ("descent:start=annealing:sweeps=5", ["descent:start=annealing:sweeps=5"]),
    ],
)
def test_solvers_are_split_at_commas_but_options_stay(text: str, solvers: list[str]) -> None:
    assert split_descriptions(text) == solvers


@pytest.mark.parametrize("text", ["", ",", " , "])
def test_no_solvers_are_refused(text: str, problem_file: Path) -> None:
    assert "no solvers are given" in refused("compare", problem_file, "--solvers", text)


def test_compare_networks_prints_a_table_and_resumes(
    network: str, photographs: Path, labelled: Path, tmp_path: Path
) -> None:
    study, table = tmp_path / "study", tmp_path / "networks.csv"
    call = ["compare-networks", network, "--images", photographs, "--eval", labelled]
    call += ["--solvers", "nearest,gptq", "--study", study, "-o", table]
    text = output_of(*call, "--methods", "adaround:iterations=3", "--seeds", 2)
    lines = [line.split("|")[2].strip() for line in text.splitlines()[2:]]
    assert lines == ["float", "nearest", "gptq", "method adaround:iterations=3"]
    records = read_records(table, NetworkRecord)
    assert [(r.method, r.seed) for r in records[:4]] == [
        *(("nearest", 0), ("gptq", 0), ("method adaround:iterations=3", 0), ("nearest", 1))
    ]
    output_of(*call)
    assert read_records(table, NetworkRecord) == records[:2]  # the study's, times and all
    assert output_of("report", study).strip() == str(study / "report.html")
    assert "is a study; --layer goes with" in refused("report", study, "--layer", "stem")


def test_quantize_takes_the_scales_of_an_encodings_file(
    network: str, photographs: Path, tmp_path: Path
) -> None:
    call = ["quantize", network, "--images", photographs, "--solver", "gptq"]
    output_of(*call, "-o", tmp_path / "first", "--export", "encodings", "--bits", 5)
    encodings = tmp_path / "first" / "model.encodings.json"
    output_of(*call, "-o", tmp_path / "second", "--encodings", encodings)
    first, second = (load_file(tmp_path / run / "model.safetensors") for run in ("first", "second"))
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
    assert "is no readable encodings file" in refused(
        *call, "-o", tmp_path / "third", "--encodings", tmp_path / "none.json"
    )


def test_compare_networks_refuses_nothing_to_compare(
    network: str, photographs: Path, labelled: Path
) -> None:
    call = ["compare-networks", network, "--images", photographs, "--eval", labelled]
    assert "give --solvers, --methods or both" in refused(*call)
    assert "no method 'magic'" in refused(*call, "--methods", "magic")


# problems and quantize


def test_problems_writes_one_file_a_layer_in_order(
    network: str, photographs: Path, tmp_path: Path
) -> None:
    text = output_of("problems", network, "--images", photographs, "-o", tmp_path / "out")
    files = sorted((tmp_path / "out").iterdir())
    names = ["000-stem", "001-depthwise", "002-pointwise", "003-down", "004-head"]
    assert [file.stem for file in files] == names
    assert [line.split()[0] for line in text.splitlines()] == [str(file) for file in files]
    problem = RoundingProblem.load(files[3])
    assert (problem.g, problem.r, problem.d) == (2, 4, 27)
    assert problem.meta["layer"] == "down"
    output_of("solve", files[1], "--solver", "enumeration", "-o", tmp_path / "s.npz")


LAYER_KEYS = {"name", "energy", "energy_nearest", "lower_bound", "solver"}


def test_quantize_writes_weights_and_a_summary(
    network: str, photographs: Path, labelled: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    data = ("--images", photographs, "--limit", 4, "--eval", labelled)
    output_of("quantize", network, *data, "--bits", 3, "--solver", "descent", "-o", folder)
    summary = json.loads((folder / "summary.json").read_text())
    for key in ("float_top1", "top1", "agreement"):
        assert 0 <= summary[key] <= 1
        assert summary[key] * 6 == pytest.approx(round(summary[key] * 6))
    assert summary["kl"] >= 0
    assert summary["seconds"] > 0
    assert [layer["name"] for layer in summary["layers"]] == [
        "stem", "depthwise", "pointwise", "down", "head",
    ]  # fmt: skip
    for layer in summary["layers"]:
        assert layer.keys() >= LAYER_KEYS
        assert layer["lower_bound"] is None
        assert layer["energy"] <= layer["energy_nearest"]
        assert layer["solver"].startswith("Descent(")
    weights = load_file(folder / "model.safetensors")
    assert all(len(row.unique()) <= 8 for row in weights["head.weight"])


def test_quantize_exports_and_report_writes_a_page(
    network: str, photographs: Path, labelled: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    formats = ("--export", "levels", "--export", "encodings")
    data = ("--images", photographs, "--eval", labelled)
    output_of("quantize", network, *data, "--solver", "gptq", *formats, "-o", folder)
    weights = (folder / "model.safetensors").stat().st_size
    assert (folder / "levels.safetensors").stat().st_size > 0
    assert weights > 0
    assert "param_encodings" in json.loads((folder / "model.encodings.json").read_text())
    told = output_of("report", folder)
    assert told.strip() == str(folder / "report.html")
    assert "stem" in (folder / "report.html").read_text()
    output_of("report", folder, "-o", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == (folder / "report.html").read_text()
    assert "no summary.json" in refused("report", tmp_path)


def test_without_eval_the_scores_are_null(network: str, photographs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    call = ("quantize", network, "--images", photographs, "--solver", "nearest", "-o", folder)
    assert "| network |" not in output_of(*call)
    summary = json.loads((folder / "summary.json").read_text())
    scores = ("float_top1", "top1", "top5", "agreement", "kl")
    assert {key: summary[key] for key in scores} == dict.fromkeys(scores)


def test_every_option_of_quantize_reaches_the_network(
    network: str, photographs: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    layers = ("--layer-bits", "head=8", "--skip", "down", "--skip", "depthwise")
    how = ("--granularity", "tensor", "--bias", "keep", "--calibration", "independent")
    output_of(
        "quantize", network, "--images", photographs, "--solver", "stochastic:draws=2",
        *layers, *how, "--seed", 5, "--memory", 0.5, "-o", folder,
    )  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    bits = {layer["name"]: layer["bits"] for layer in summary["layers"]}
    assert bits == {"stem": 4, "pointwise": 4, "head": 8}
    assert set(summary["skipped"]) == {"down", "depthwise"}
    settings = json.loads((folder / "settings.json").read_text())
    assert (settings["seed"], settings["calibration"]) == (5, "independent")
    assert settings["solver"] == "Stochastic(draws=2)"
    assert "granularity='tensor'" in settings["settings"]
    assert "bias='keep'" in settings["settings"]
    weights = load_file(folder / "model.safetensors")
    assert len(weights["stem.weight"].unique()) <= 16


def test_the_same_call_resumes_and_another_is_refused(
    network: str, photographs: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    call = ("quantize", network, "--images", photographs, "--solver", "stochastic", "-o", folder)
    output_of(*call)
    weights = (folder / "model.safetensors").read_bytes()
    layers = {file: file.stat().st_mtime_ns for file in (folder / "layers").iterdir()}
    assert len(layers) == 5
    assert json.loads((folder / "summary.json").read_text())["resumed"] is False
    assert " s, without the calls before that were resumed\n" in output_of(*call)
    assert json.loads((folder / "summary.json").read_text())["resumed"] is True
    assert {file: file.stat().st_mtime_ns for file in (folder / "layers").iterdir()} == layers
    assert (folder / "model.safetensors").read_bytes() == weights
    assert "seed: 0 there, 1 now" in refused(*call, "--seed", 1)
    assert "data: " in refused(*call, "--limit", 5)


def test_json_is_a_line_a_layer_and_one_at_the_end(
    network: str, photographs: Path, tmp_path: Path
) -> None:
    call = ["quantize", network, "--images", photographs, "--solver", "nearest"]
    result = run(*call, "--json", "-o", tmp_path / "run")
    assert result.exit_code == 0, result.output
    *layers, last = map(json.loads, result.stdout.splitlines())
    assert result.stderr == ""
    written = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [layer["name"] for layer in layers] == [layer["name"] for layer in written["layers"]]
    assert last["seconds"] == written["seconds"]


def test_one_corrupt_image_is_named_and_left_out_only_where_asked(
    network: str, photographs: Path, tmp_path: Path
) -> None:
    whole = (photographs / "0.png").read_bytes()
    (photographs / "9.png").write_bytes(whole[: len(whole) // 2])
    call = ("quantize", network, "--images", photographs, "--solver", "nearest", "--quiet")
    assert "9.png cannot be read as an image" in refused(*call, "-o", tmp_path / "none")
    result = run(*call, "--skip-unreadable", "-o", tmp_path / "run")
    assert result.exit_code == 0, result.output
    (told,) = result.stderr.splitlines()
    assert told.startswith("Left out: ")
    assert "9.png" in told
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["arguments"]["images"] == 6


def test_quiet_shows_no_bars(network: str, photographs: Path, tmp_path: Path) -> None:
    call = ["quantize", network, "--images", photographs, "--solver", "nearest", "--quiet"]
    result = run(*call, "-o", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert "energy / nearest" in result.stdout


def test_workers_give_the_same_bits(
    problem_file: Path, network: str, photographs: Path, tmp_path: Path
) -> None:
    solve = ("solve", problem_file, "--solver", "annealing:sweeps=5")
    output_of(*solve, "-o", tmp_path / "alone.npz")
    output_of(*solve, "--workers", 1, "-o", tmp_path / "spread.npz")
    alone, spread = (Solution.load(tmp_path / f"{name}.npz") for name in ("alone", "spread"))
    assert torch.equal(alone.levels, spread.levels)
    both = ("--workers", 1, "--cluster", "tcp://x:1")
    assert "not both" in refused(*solve, *both, "-o", tmp_path / "s.npz")
    quantize = ("quantize", network, "--images", photographs, "-o", tmp_path / "run")
    assert "give --solver" in refused(*quantize, "--method", "adaround", "--workers", 1)


# errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--solver", "magic"], "there is no solver 'magic'"),
        (["--solver", "annealing:sweep=5"], "'sweep=5' is no option of annealing"),
        (["--solver", "annealing:sweeps=many"], "give a whole number"),
        (["--solver", "annealing:sweeps=0"], "sweeps is 0"),
        (["--solver", "nearest", "--time-limit", "0"], "time limit is 0"),
        (["--solver", "nearest", "-o", "s.npy"], "end in .npz"),
        (
            ["--solver", "nearest", "-o", "nowhere/s.npz"],
            "there is no folder nowhere; make it first",
        ),
    ],
)
def test_solve_refuses_in_one_message(
    problem_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused("solve", problem_file, "-o", "s.npz", *words)
    assert [file.name for file in tmp_path.iterdir()] == ["problem.npz"]


def test_files_that_are_no_problems_are_refused(tmp_path: Path, problem_file: Path) -> None:
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(problem_file.read_bytes()[:100])
    output = ("-o", tmp_path / "s.npz")
    assert "damaged.npz" in refused("solve", damaged, "--solver", "nearest", *output)
    assert "no such file" in refused("solve", tmp_path / "x.npz", "--solver", "nearest", *output)
    assert "no such file" in refused("compare", tmp_path / "x.npz", "--solvers", "nearest")
    assert not (tmp_path / "s.npz").exists()


def test_a_solver_that_refuses_ends_solve(tmp_path: Path) -> None:
    file = tmp_path / "wide.npz"
    random_problem(g=1, r=1, d=40, seed=0).save(file)
    output = tmp_path / "s.npz"
    message = refused("solve", file, "--solver", "enumeration", "-o", output)
    assert "Enumeration refuses this problem" in message
    assert not output.exists()


def test_compare_refuses_before_it_works(problem_file: Path) -> None:
    assert "no solver 'magic'" in refused("compare", problem_file, "--solvers", "nearest,magic")
    assert "no solvers" in refused("compare", problem_file, "--solvers", ",")
    lost = ("-o", "nowhere/records.csv")
    assert "no folder nowhere" in refused("compare", problem_file, "--solvers", "nearest", *lost)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bits", "9"], "bits is 9"),
        (["--layer-bits", "head"], "give LAYER=BITS"),
        (["--layer-bits", "head=1"], "bits is 1"),
        (["--layer-bits", "tail=4"], "no layers ['tail']"),
        (["--skip", "tail"], "no layers ['tail']"),
        (["--limit", "0"], "limit is 0"),
        (["--images", "nowhere"], "nowhere is neither a folder"),
        (["--eval", "nowhere"], "nowhere is neither a folder"),
        (["--shrink", "auto"], "made from one; give more images"),
        (["--shrink", "1"], "shrink is 1.0"),
        (["--shrink", "most"], "'most' is no number"),
        (["--solver", "magic"], "there is no solver 'magic'"),
        (["--solver", "enumeration"], "layer 'stem': Enumeration refuses"),
    ],
)
def test_quantize_refuses_and_leaves_nothing(
    network: str, photographs: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    folder = tmp_path / "run"
    told = refused("quantize", network, "--images", photographs, "-o", folder, *words)
    assert message in told
    assert not folder.exists() or {file.name for file in folder.iterdir()} <= {".lock"}


def test_an_export_that_needs_a_missing_package_is_refused_before_the_work(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    call = ("quantize", "never_loaded", "--images", photographs, "-o", tmp_path / "run")
    assert 'pip install "qubo-rounding[onnx]"' in refused(*call, "--export", "onnx")


def test_labels_that_are_no_classes_are_told_before_the_work(
    network: str, photographs: Path, labelled: Path, tmp_path: Path
) -> None:
    labelled.write_text(labelled.read_text().replace(",4", ",40"))
    call = (network, "--images", photographs, "--eval", labelled)
    message = "labels run from 0 to 40, the network's classes from 0 to 4"
    assert message in refused("quantize", *call, "-o", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    study = ("--solvers", "nearest", "--study", tmp_path / "study")
    assert message in refused("compare-networks", *call, *study)
    assert not list(tmp_path.glob("study/runs/*"))


def test_an_output_that_is_a_folder_is_refused_before_the_work(
    problem_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "there.npz"
    folder.mkdir()
    for call in (
        ("solve", problem_file, "--solver", "magic", "-o", folder),
        ("compare", problem_file, "--solvers", "magic", "-o", folder),
        ("report", tmp_path, "-o", folder),
    ):
        assert f"{folder} is a folder; name a file" in refused(*call)


@pytest.mark.parametrize("command", ["problems", "quantize"])
def test_models_that_are_none_are_refused(
    network: str, photographs: Path, tmp_path: Path, command: str
) -> None:
    file = network.rpartition(":")[0]
    rest = ("--images", photographs, "-o", tmp_path / "run")
    assert "There is no model 'lenet'" in refused(command, "lenet", *rest)
    assert "defines no function 'lost'" in refused(command, f"{file}:lost", *rest)
    assert "must return an nn.Module" in refused(command, f"{file}:nothing", *rest)
    assert "There is no file" in refused(command, "lost.py:tiny", *rest)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_run_is_refused(
    network: str, photographs: Path, tmp_path: Path
) -> None:
    call = ("quantize", network, "--images", photographs, "--solver", "nearest", "-o")
    assert "holds no run" in refused(*call, photographs)
    assert len(list(photographs.iterdir())) == 6
    assert "Not a directory" in refused(*call, photographs / "0.png")


# help, exit codes, interrupts


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_that_parses(command: str) -> None:
    assert "Example:" in output_of(command, "--help")
    group: Any = typer.main.get_command(app)
    [example] = [line for line in group.commands[command].help.splitlines() if "Example:" in line]
    program, name, *words = shlex.split(example.partition("Example:")[2])
    assert (program, name) == ("qubo-rounding", command)
    parsed = group.commands[command].make_context(name, words).params
    assert parsed.keys() >= {"output", *({"problem"} if command in ("solve", "compare") else ())}


def test_all_commands_are_known() -> None:
    group: Any = typer.main.get_command(app)
    assert set(group.commands) == set(COMMANDS)


def command_line(*words: Any) -> subprocess.Popen[str]:
    code = "from qubo_rounding.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_an_error_is_exit_code_2_for_the_shell(tmp_path: Path) -> None:
    lost = tmp_path / "lost.npz"
    process = command_line("solve", lost, "--solver", "nearest", "-o", tmp_path / "s.npz")
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (2, "")
    assert errors == f"Error: {lost}: no such file.\n"


def test_an_interrupt_tells_what_is_kept(
    problem_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qubo_rounding.cli.run_solver", interrupted)
    monkeypatch.setattr("qubo_rounding.cli_compare.compare_solvers", interrupted)
    compare = ("compare", problem_file, "--solvers", "nearest")
    for call, told in (
        (("solve", problem_file, "--solver", "nearest", "-o", tmp_path / "s.npz"), "kept.\n"),
        (compare, "kept; with --study FOLDER what is finished would be.\n"),
        ((*compare, "--study", tmp_path / "study"), f"kept in {tmp_path / 'study'}.\n"),
    ):
        result = run(*call)
        assert result.exit_code == 130
        assert result.stderr.endswith(told)


def test_an_interrupt_ends_with_a_message_and_the_run_can_go_on(
    network: str, photographs: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    call = ("quantize", network, "--images", photographs, "-o", folder, "--solver")
    process = command_line(*call, "annealing:sweeps=50000")
    while not list(folder.glob("layers/*.safetensors")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.rstrip().endswith(f"Interrupted. What was finished is kept in {folder}.")
    assert "Traceback" not in errors
    assert not (folder / "summary.json").exists()
    assert (folder / "settings.json").exists()
