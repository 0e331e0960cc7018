"""Run folders: what is finished stays finished, and only the same run resumes."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import LAYERS, batches, residual
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from qubo_rounding.fingerprint import Fingerprint
from qubo_rounding.layer_problem import LayerSettings
from qubo_rounding.network import QuantisedNetwork, quantise
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.relaxed.checkpoint import Checkpoint
from qubo_rounding.relaxed.reconstruction import BlockReconstruction, Reconstruction
from qubo_rounding.run_folder import LayerRecord, RoundedLayer, RunFolder, problem_file
from qubo_rounding.solution import Solution
from qubo_rounding.solvers import Nearest, RefusedError, Solver, Stochastic
from qubo_rounding.testing import random_problem

MODES = ("independent", "sequential")
RECORD = LayerRecord(
    "a.b", 1, 2, 3, 4, 0.5, 0.75, None, None, None, 0, 1, 0.1, "Nearest()", {"n": 1}
)
PROBLEM = random_problem(1, 2, 3)


@dataclass(frozen=True)
class Spy(Solver):
    """Draws at random, slowly, and tells which layers it was given."""

    seconds: float = 0.0

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        time.sleep(self.seconds)
        SOLVED.append(problem.meta["layer"])
        return Stochastic(draws=1).solve(problem, seed=seed)


SOLVED: list[str] = []


@pytest.fixture(autouse=True)
def solved() -> list[str]:
    SOLVED.clear()
    return SOLVED


def rounded(run: Path | None, **options: Any) -> QuantisedNetwork:
    given = {"model": residual(), "loader": batches(), "solver": Spy()} | options
    return quantise(run=run, **given)


def of_another_make() -> nn.Module:
    """The same weights."""
    model = residual()
    model.extra = nn.Tanh()
    return model.eval()


def bits(result: QuantisedNetwork) -> dict[str, bytes]:
    return {name: t.numpy().tobytes() for name, t in result.model.state_dict().items()}


def layer_file(run: Path, name: str) -> Path:
    return run / "layers" / f"{name}.safetensors"


@pytest.fixture
def layer() -> RoundedLayer:
    draw = torch.Generator().manual_seed(0)
    scale, zero = torch.rand(1, 2, 1, generator=draw).double(), torch.ones(1, 2, 1).double()
    levels = torch.randint(-8, 8, (1, 2, 3), generator=draw, dtype=torch.int16)
    return RoundedLayer(levels, scale, zero, torch.rand(1, 2, generator=draw).double(), RECORD)


# the folder itself


def test_a_layer_comes_back_as_it_was_kept(tmp_path: Path, layer: RoundedLayer) -> None:
    folder = RunFolder(tmp_path / "deep" / "run", {"seed": 0})
    assert folder.load("a.b") is None
    folder.save(layer, PROBLEM)
    back = RunFolder(tmp_path / "deep" / "run", {"seed": 0}).load("a.b")
    assert back is not None
    assert back.record == layer.record
    for name in ("levels", "scale", "zero_point", "bias_shift", "weight"):
        ours, theirs = getattr(back, name), getattr(layer, name)
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_a_network_that_is_one_layer_has_a_file_too(tmp_path: Path, layer: RoundedLayer) -> None:
    folder = RunFolder(tmp_path, {})
    folder.save(replace(layer, record=replace(RECORD, name="")), PROBLEM)
    assert layer_file(tmp_path, "model").is_file()
    assert folder.load("") is not None


def test_small_problems_are_kept_as_their_solvers_had_them(tmp_path: Path) -> None:
    result = quantise(residual(), batches(), solver=Nearest(), run=tmp_path)
    assert sorted(path.stem for path in (tmp_path / "problems").iterdir()) == sorted(result.layers)
    for name, done in result.layers.items():
        kept = RoundingProblem.load(problem_file(tmp_path, name))
        assert kept.meta["layer"] == name
        assert float(kept.energy(done.levels).sum()) == done.record.energy


def test_wide_problems_are_not_kept(tmp_path: Path, layer: RoundedLayer) -> None:
    RunFolder(tmp_path, {}).save(layer, random_problem(1, 1, 400))
    assert not (tmp_path / "problems").exists()


def test_weights_alone_that_differ_may_be_random(tmp_path: Path, layer: RoundedLayer) -> None:
    RunFolder(tmp_path, {"seed": 0, "model": "a"}).save(layer, PROBLEM)
    with pytest.raises(ValueError, match=r"drawn at random, seed them"):
        RunFolder(tmp_path, {"seed": 0, "model": "b"})
    with pytest.raises(ValueError, match=r"resume it\.$"):
        RunFolder(tmp_path, {"seed": 1, "model": "b"})


def test_other_settings_are_named(tmp_path: Path, layer: RoundedLayer) -> None:
    RunFolder(tmp_path, {"seed": 0, "solver": "Nearest()"}).save(layer, PROBLEM)
    with pytest.raises(ValueError, match=r"other settings \(seed: 0 there, 1 now\)"):
        RunFolder(tmp_path, {"seed": 1, "solver": "Nearest()"})


def test_a_foreign_folder_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("draft")
    with pytest.raises(ValueError, match="not empty and holds no run; give a new"):
        RunFolder(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("content", ["", "{", "[1]", "\udcff"])
def test_foreign_settings_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "settings.json").write_text(content, errors="surrogateescape")
    with pytest.raises(ValueError, match="is no settings file of a run"):
        RunFolder(tmp_path, {})


def test_a_run_killed_before_its_settings_were_written_can_start_anew(
    tmp_path: Path, layer: RoundedLayer
) -> None:
    (tmp_path / ".settings.123.json").write_text("{")
    folder = RunFolder(tmp_path, {})
    folder.save(layer, PROBLEM)
    assert folder.load("a.b") is not None


def test_a_run_killed_within_its_first_reconstruction_resumes_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    keep = Checkpoint.keep

    def keep_and_die(self: Checkpoint, parts: Any, iterations: int) -> None:
        self._seconds = 0
        keep(self, parts, iterations)
        raise KilledError

    how = {"solver": None, "reconstruction": Reconstruction(iterations=3)}
    monkeypatch.setattr(Checkpoint, "keep", keep_and_die)
    with pytest.raises(KilledError):
        rounded(tmp_path, **how)
    monkeypatch.undo()
    assert list((tmp_path / "layers").glob("*.checkpoint"))
    resumed, whole = rounded(tmp_path, **how), rounded(None, **how)
    for name, layer in whole.layers.items():
        assert torch.equal(layer.levels, resumed.layers[name].levels)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _foreign(file: Path) -> None:
    save_file({"levels": torch.zeros(1)}, file)


def _other_record(file: Path) -> None:
    with safe_open(file, framework="pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in ("levels", "scale")}
    save_file(tensors, file, metadata={"record": "{"})


@pytest.mark.parametrize("damage", [_cut, _empty, _foreign, _other_record])
def test_a_damaged_layer_file_is_refused_with_the_remedy(
    tmp_path: Path, layer: RoundedLayer, damage: Callable[[Path], None]
) -> None:
    folder = RunFolder(tmp_path, {})
    folder.save(layer, PROBLEM)
    damage(layer_file(tmp_path, "a.b"))
    with pytest.raises(ValueError, match=r"a\.b\.safetensors is damaged .*delete it and run again"):
        folder.load("a.b")


# runs


@pytest.mark.parametrize("mode", MODES)
def test_resuming_solves_only_what_is_not_finished(
    tmp_path: Path, solved: list[str], mode: str
) -> None:
    whole = rounded(tmp_path, calibration=mode, held_out=batches(seed=1))
    assert solved == LAYERS
    for name in ("depthwise", "head"):
        layer_file(tmp_path, name).unlink()
    solved.clear()
    resumed = rounded(tmp_path, calibration=mode, held_out=batches(seed=1))
    assert solved == ["depthwise", "head"]
    assert bits(resumed) == bits(whole) == bits(rounded(None, calibration=mode))
    kept = [name for name in LAYERS if name not in solved]
    assert all(resumed.layers[n].record == whole.layers[n].record for n in kept)


def another_model() -> nn.Module:
    model = residual()
    model.head.bias.data[0] += 1
    return model


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("named", "options"),
    [
        ("seed", {"seed": 1}),
        ("solver", {"solver": Nearest()}),
        ("settings", {"settings": LayerSettings(bits=3)}),
        ("layers", {"skip": ["head"]}),
        ("model", {"model": another_model()}),
        ("architecture", {"model": of_another_make()}),
        ("data", {"loader": batches(seed=1)}),
        ("data", {"loader": batches(3)}),
        ("held_out", {"held_out": batches(1)}),
    ],
)
def test_another_run_is_refused_by_what_differs(
    tmp_path: Path, mode: str, named: str, options: dict
) -> None:
    rounded(tmp_path, calibration=mode)
    with pytest.raises(ValueError, match=rf"other settings \({named}: [^;]*\)"):
        rounded(tmp_path, calibration=mode, **options)


def test_the_other_calibration_is_another_run(tmp_path: Path) -> None:
    rounded(tmp_path, calibration="independent")
    with pytest.raises(ValueError, match="calibration: 'independent' there, 'sequential' now"):
        rounded(tmp_path, calibration="sequential")


@dataclass(frozen=True)
class Refuses(Solver):
    def refuses(self, problem: RoundingProblem) -> str | None:
        return "it never solves anything."

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        raise NotImplementedError


def test_a_run_that_finished_nothing_binds_nobody(tmp_path: Path) -> None:
    with pytest.raises(RefusedError):
        rounded(tmp_path, solver=Refuses())
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]
    assert list(rounded(tmp_path).layers) == LAYERS


# killed


def run_to_the_end(run: Path, mode: str, begun: Any) -> None:
    begun.set()
    rounded(run, calibration=mode, solver=Spy(seconds=0.02))


def wait_and_kill(process: Any, begun: Any, seconds: float) -> None:
    process.start()
    begun.wait()
    process.join(seconds)
    process.kill()
    process.join()


@pytest.mark.parametrize("mode", MODES)
def test_killed_at_any_moment_and_restarted_it_ends_in_the_same_bits(
    tmp_path: Path, mode: str
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["qubo_rounding.network"])
    moments = random.Random(0)
    for _ in range(6):
        begun = context.Event()
        process = context.Process(target=run_to_the_end, args=(tmp_path, mode, begun))
        wait_and_kill(process, begun, moments.uniform(0.0, 0.15))
    resumed = rounded(tmp_path, calibration=mode, solver=Spy(seconds=0.02))
    undisturbed = rounded(None, calibration=mode)
    assert bits(resumed) == bits(undisturbed)
    for name in LAYERS:
        assert torch.equal(resumed.layers[name].levels, undisturbed.layers[name].levels)


def test_tensors_of_any_kind_have_a_fingerprint() -> None:
    tensors: list[Tensor] = [
        torch.tensor(3),
        torch.zeros(0, 2),
        torch.ones(2, 3, dtype=torch.bfloat16).mT,
        torch.tensor([True]),
    ]
    seen = Fingerprint()
    assert all(ours is theirs for ours, theirs in zip(seen.passing(tensors), tensors, strict=True))
    assert str(seen) == str(Fingerprint(tensors))
    assert len({str(Fingerprint(tensors[:k])) for k in range(5)}) == 5
    assert str(Fingerprint([torch.zeros(2, 3)])) != str(Fingerprint([torch.zeros(3, 2)]))


STRANGE = "a/b: c"


def strangely_named() -> nn.Module:
    torch.manual_seed(0)
    two_layers = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    return Named(nn.ModuleDict({STRANGE: two_layers})).eval()


class Named(nn.Module):
    def __init__(self, inside: nn.ModuleDict) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        return self.inside[STRANGE](x)


@pytest.mark.parametrize(
    "how",
    [
        {"solver": Nearest()},
        {"reconstruction": Reconstruction(iterations=3)},
        {"reconstruction": BlockReconstruction(iterations=3, blocks=(f"inside.{STRANGE}",))},
    ],
    ids=["solver", "reconstruction", "blocks"],
)
def test_any_name_of_a_module_makes_a_file(tmp_path: Path, how: dict[str, Any]) -> None:
    data = [torch.randn(8, 4, generator=torch.Generator().manual_seed(1))]
    first = quantise(strangely_named(), data, run=tmp_path / "run", **how)
    again = quantise(strangely_named(), data, run=tmp_path / "run", **how)
    assert list(first.layers) == [f"inside.{STRANGE}.0", f"inside.{STRANGE}.2"]
    for name, layer in first.layers.items():
        assert torch.equal(layer.levels, again.layers[name].levels)
    inside = sorted(path.name for path in (tmp_path / "run" / "layers").iterdir())
    assert inside == [f"inside.a%2Fb%3A%20c.{number}.safetensors" for number in (0, 2)]
