"""The `.npz` files of problems and solutions: round trips, foreign writers, malformed files."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from qubo_rounding import room
from qubo_rounding.problem import ProblemError, RoundingProblem
from qubo_rounding.solution import Solution
from qubo_rounding.solvers import SOLVERS, make_solver
from qubo_rounding.testing import random_problem
from qubo_rounding.watch import watching

Arrays = dict[str, np.ndarray]
FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def full_problem() -> RoundingProblem:
    """A problem with every field, streams and group-wise scales included."""
    problem = random_problem(2, 3, 5, seed=1, linear=True).part(rows=slice(1, 3))
    scale = problem.scale.expand_as(problem.target).clone()
    return replace(problem, scale=scale, meta={"layer": "conv1", "bits": 4, "ü": [1.5, None]})


def arrays_of(problem: RoundingProblem, path: Path) -> Arrays:
    problem.save(path)
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def assert_same(first: RoundingProblem, second: RoundingProblem) -> None:
    for f in fields(RoundingProblem):
        before, after = getattr(first, f.name), getattr(second, f.name)
        if isinstance(before, Tensor):
            assert before.dtype == after.dtype
            assert torch.equal(before, after)
        else:
            assert before == after


@pytest.mark.parametrize("problem", [full_problem(), random_problem(1, 1, 1)], ids=["full", "bare"])
def test_a_problem_comes_back_bit_for_bit(problem: RoundingProblem, tmp_path: Path) -> None:
    problem.save(tmp_path / "p.npz")
    assert_same(problem, RoundingProblem.load(tmp_path / "p.npz"))
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz"]


def test_a_solution_comes_back_bit_for_bit(tmp_path: Path) -> None:
    problem = full_problem()
    bound = torch.tensor([[1.0, torch.nan], [-torch.inf, 0.1]], dtype=torch.float64)
    solution = problem.solution(problem.nearest(), bound, sweeps=3)
    solution.save(tmp_path / "s.npz")
    loaded = Solution.load(tmp_path / "s.npz")
    assert loaded.levels.dtype == torch.int16
    assert torch.equal(loaded.levels, solution.levels)
    assert torch.equal(loaded.energy, solution.energy)
    assert loaded.lower_bound is not None
    assert torch.allclose(loaded.lower_bound, bound, rtol=0, equal_nan=True)
    assert loaded.stats == {"sweeps": 3}


def test_a_solution_without_bound_has_none_after_loading(tmp_path: Path) -> None:
    problem = full_problem()
    problem.solution(problem.nearest()).save(tmp_path / "s.npz")
    assert Solution.load(tmp_path / "s.npz").lower_bound is None


def test_only_the_required_arrays_are_required(tmp_path: Path) -> None:
    arrays = arrays_of(full_problem(), tmp_path / "p.npz")
    required = {name: arrays[name] for name in ("gram", "target", "scale", "low", "high")}
    np.savez_compressed(tmp_path / "q.npz", **required)
    loaded = RoundingProblem.load(tmp_path / "q.npz")
    assert loaded.linear is None
    assert loaded.meta == {}
    assert torch.equal(loaded.offset, torch.zeros(2, 2, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [">f8", ">f4", "<f4", "<f2", "longdouble"])
def test_floats_of_foreign_writers(dtype: str, tmp_path: Path) -> None:
    arrays = arrays_of(random_problem(1, 2, 3), tmp_path / "p.npz")
    arrays["target"] = arrays["target"].astype(dtype)
    np.savez(tmp_path / "q.npz", **arrays)
    loaded = RoundingProblem.load(tmp_path / "q.npz")
    assert loaded.target.numpy().tolist() == arrays["target"].astype(float).tolist()


@pytest.mark.parametrize("dtype", ["u1", ">u2", "u4", "<u8", ">i2", ">i8", "i1"])
def test_integers_of_foreign_writers(dtype: str, tmp_path: Path) -> None:
    problem = random_problem(1, 2, 3)
    shifted = replace(
        problem, target=problem.target + 8, low=problem.low + 8, high=problem.high + 8
    )
    arrays = arrays_of(shifted, tmp_path / "p.npz")
    for name in ("low", "high"):
        arrays[name] = np.asfortranarray(arrays[name].astype(dtype))
    np.savez(tmp_path / "q.npz", **arrays)
    assert_same(shifted, RoundingProblem.load(tmp_path / "q.npz"))


def with_(name: str, value: Any) -> Callable[[Arrays], Arrays]:
    return lambda arrays: arrays | {name: np.asarray(value)}


def with_entry(name: str, value: float) -> Callable[[Arrays], Arrays]:
    def change(arrays: Arrays) -> Arrays:
        array = arrays[name].copy()
        array.flat[1] = value
        return arrays | {name: array}

    return change


def without(name: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {key: value for key, value in arrays.items() if key != name}


BAD_ARRAYS = [
    (with_("gram", np.array([None, 1], dtype=object)), "allow_pickle"),
    (without("gram"), r"lacks \['gram'\]"),
    (without("high"), r"lacks \['high'\]"),
    (with_("extra", 1.0), r"unknown arrays \['extra'\]"),
    (with_("gram", "words"), "gram has dtype <U5"),
    (with_("gram", np.ones((2, 5, 5), complex)), "gram has dtype complex128"),
    (with_("low", np.zeros((2, 2, 5))), "low has dtype torch.float64"),
    (with_("low", np.zeros((2, 2, 5), bool)), "low has dtype bool"),
    (with_("high", np.full((2, 2, 5), 40_000, np.uint16)), "high holds levels beyond 16 bits"),
    (with_("offset", np.zeros(2)), r"offset has shape \(2,\)"),
    (with_("target", 1.0), r"target has shape \(\)"),
    (with_entry("target", np.nan), "target holds NaN"),
    (with_entry("linear", np.inf), "linear holds NaN or infinity"),
    (with_entry("gram", 1e6), "gram is not symmetric"),
    (with_entry("low", 30_000), "low exceeds high"),
    (with_entry("scale", -1.0), "scale holds zero or negative"),
    (with_("meta", "{oops"), "meta is not JSON"),
    (with_("meta", np.zeros(3)), "meta is not JSON"),
    (with_("meta", "[1, 2]"), "meta is a JSON list; give an object"),
]


@pytest.mark.parametrize(("change", "cause"), BAD_ARRAYS, ids=[cause for _, cause in BAD_ARRAYS])
def test_a_bad_array_is_named(
    change: Callable[[Arrays], Arrays], cause: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.npz"
    arrays: Any = change(arrays_of(full_problem(), tmp_path / "p.npz"))
    np.savez(path, **arrays)
    with pytest.raises(ProblemError, match=cause) as caught:
        RoundingProblem.load(path)
    assert str(path) in str(caught.value)


def write_text(path: Path) -> None:
    path.write_text("no zip at all")


def write_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.ones(3))


def write_text_members(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name in ("gram", "target", "scale", "low", "high"):
            file.writestr(f"{name}.npy", "no array at all")


@pytest.mark.parametrize(
    ("write", "cause"),
    [
        (Path.touch, "No data left"),
        (Path.mkdir, "no such file"),
        (lambda path: None, "no such file"),
        (write_text, "not a readable"),
        (write_array, "single array"),
        (write_text_members, "are no arrays"),
    ],
)
@pytest.mark.parametrize("kind", [RoundingProblem, Solution])
def test_a_file_of_another_kind_is_named(
    write: Callable[[Path], None], cause: str, kind: Any, tmp_path: Path
) -> None:
    path = tmp_path / "bad.npz"
    write(path)
    with pytest.raises(ProblemError, match=cause) as caught:
        kind.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("compress", [False, True])
@FUZZ
@given(data=st.data())
def test_a_truncated_file_is_refused(compress: bool, data: st.DataObject, tmp_path: Path) -> None:
    whole = file_bytes(compress, tmp_path)
    path = tmp_path / "cut.npz"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ProblemError, match=r"cut\.npz"):
        RoundingProblem.load(path)


@pytest.mark.parametrize("compress", [False, True])
@FUZZ
@given(data=st.data())
def test_a_damaged_file_is_refused_or_harmless(
    compress: bool, data: st.DataObject, tmp_path: Path
) -> None:
    damaged = bytearray(file_bytes(compress, tmp_path))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "damaged.npz"
    path.write_bytes(damaged)
    try:
        loaded = RoundingProblem.load(path)
    except ProblemError as error:
        named = "damaged.npz" in str(error)
        loaded = None
    assert named if loaded is None else torch.equal(loaded.gram, full_problem().gram)


@pytest.mark.parametrize("flag_bits", [0x01, 0x20])
def test_an_encrypted_or_patched_member_is_refused(flag_bits: int, tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    data = bytearray(file_bytes(False, tmp_path))
    data[data.index(b"PK\x01\x02") + 8] |= flag_bits  # general purpose flags, central directory
    path.write_bytes(data)
    with pytest.raises(ProblemError, match="not a readable"):
        RoundingProblem.load(path)


def test_an_archive_that_unpacks_to_more_than_there_is_memory_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, gram=np.zeros(10 * 2**20))
    monkeypatch.setattr(room, "free_memory", lambda device="cpu": 70 * 2**20)
    with pytest.raises(ProblemError, match=r"bomb\.npz is not .* takes 80.0 MiB, and 70.0 MiB"):
        RoundingProblem.load(path)


def test_a_header_that_tells_of_too_many_numbers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "header.npz"
    header = io.BytesIO()
    shape = {"descr": "<f8", "fortran_order": False, "shape": (2**45,)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("gram.npy", header.getvalue() + bytes(80))
    with pytest.raises(ProblemError, match=r"header\.npz is not a readable"):
        RoundingProblem.load(path)


def file_bytes(compress: bool, folder: Path) -> bytes:
    path = folder / "whole.npz"
    arrays: Any = arrays_of(full_problem(), path)
    if compress:
        np.savez_compressed(path, **arrays)
    return path.read_bytes()


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match=r"end in \.npz"):
        full_problem().save(tmp_path / "problem.zip")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SOLVERS)
def test_numpy_alone_gets_the_same_energies(name: str, tmp_path: Path) -> None:
    problem = random_problem(2, 2, 6, seed=5, linear=True)
    problem.save(tmp_path / "p.npz")
    with watching(time_limit=0.3):
        make_solver(name).solve(RoundingProblem.load(tmp_path / "p.npz")).save(tmp_path / "s.npz")

    p, s = np.load(tmp_path / "p.npz"), np.load(tmp_path / "s.npz")
    e = p["scale"] * (s["levels"] - p["target"])
    energy = np.einsum("grd,gde,gre->gr", e, p["gram"], e) + (p["linear"] * e).sum(2) + p["offset"]

    assert s["levels"].dtype == np.int16
    assert np.all((p["low"] <= s["levels"]) & (s["levels"] <= p["high"]))
    assert s["energy"] == pytest.approx(energy, rel=1e-9)
    assert isinstance(json.loads(str(s["stats"])), dict)
    if "lower_bound" in s.files:
        assert np.all(s["lower_bound"] <= energy + 1e-9)
    p.close()
    s.close()
