"""The referee: what it scores, and that it catches solvers that are wrong."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import which

import pytest
import torch

from qubo_rounding import provenance as provenance_module
from qubo_rounding.compare import compare
from qubo_rounding.cross_checks import CrossCheckError
from qubo_rounding.problem import ProblemError, RoundingProblem
from qubo_rounding.referee import run_solver
from qubo_rounding.solution import Solution
from qubo_rounding.solvers import Descent, Enumeration, Nearest, RefusedError, Solver
from qubo_rounding.study import Case, CaseFiles
from qubo_rounding.testing import random_problem


@dataclass(frozen=True)
class Doctored(Solver):
    """Nearest rounding, with something wrong about the solution."""

    change: Callable[[RoundingProblem, Solution], Solution]

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        return self.change(problem, Nearest().find(problem, seed))


@dataclass(frozen=True)
class Unwilling(Solver):
    def refuses(self, problem: RoundingProblem) -> str | None:
        return "it has no appetite."

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        raise AssertionError("never asked")


def bounded_by(problem: RoundingProblem, solution: Solution, shift: float) -> Solution:
    return replace(solution, lower_bound=solution.energy + shift * problem.unit[..., 0])


@pytest.fixture
def problem() -> RoundingProblem:
    return random_problem(2, 3, 7, seed=1)


def test_run_solver_returns_what_the_solver_found(problem):
    solution, seconds = run_solver(problem, Enumeration())
    assert torch.equal(solution.levels, Enumeration().solve(problem).levels)
    assert bool(solution.proven.all())
    assert 0 < seconds < 5


@pytest.mark.parametrize("wrong", [1e-5, -1e-5, float("nan")])
def test_a_misreported_energy_is_caught(problem, wrong):
    liar = Doctored(lambda p, s: replace(s, energy=s.energy * (1 + wrong)))
    with pytest.raises(CrossCheckError, match=r"reports energy .* its levels have"):
        run_solver(problem, liar)


def test_a_rounding_error_is_forgiven_and_rescored(problem):
    careless = Doctored(lambda p, s: replace(s, energy=s.energy * (1 + 1e-8)))
    solution, _ = run_solver(problem, careless)
    assert torch.equal(solution.energy, problem.energy(problem.nearest()))


def test_an_energy_below_the_own_bound_is_caught(problem):
    overconfident = Doctored(lambda p, s: bounded_by(p, s, 1e-6))
    with pytest.raises(CrossCheckError, match=r"below the lower bound .* of its own"):
        run_solver(problem, overconfident)


def test_rows_without_a_bound_are_not_checked(problem):
    def bound_one_row(problem: RoundingProblem, solution: Solution) -> Solution:
        bound = torch.full_like(solution.energy, float("nan"))
        bound[0, 0] = -1
        return replace(solution, lower_bound=bound)

    solution, _ = run_solver(problem, Doctored(bound_one_row))
    assert int(solution.gap.isfinite().sum()) == 1
    (record,) = compare({"p": problem}, {"one row": Doctored(bound_one_row)})
    assert record.lower_bound is None


@pytest.mark.parametrize(
    "levels",
    [lambda p, s: p.high + 1, lambda p, s: s.levels.double(), lambda p, s: s.levels[:, :1]],
    ids=["too high", "float", "rows missing"],
)
def test_levels_out_of_range_are_caught(problem, levels):
    with pytest.raises(CrossCheckError, match=r"not integers of shape \(2, 3, 7\) within"):
        run_solver(problem, Doctored(lambda p, s: replace(s, levels=levels(p, s))))


@pytest.mark.parametrize("field", ["energy", "lower_bound"])
def test_sums_instead_of_rows_are_caught(problem, field):
    with pytest.raises(CrossCheckError, match=r"give one a row, \(2, 3\)"):
        run_solver(problem, Doctored(lambda p, s: replace(s, **{field: s.energy.sum()})))


def test_an_energy_below_the_bound_of_another_is_caught(problem):
    solvers = {"wrong": Doctored(lambda p, s: bounded_by(p, s, 0)), "better": Descent()}
    assert bool((Descent().solve(problem).energy < problem.energy(problem.nearest())).any())
    with pytest.raises(CrossCheckError, match=r"problem 'p': 'better' .* below .* of 'wrong'"):
        compare({"p": problem}, solvers)


def test_a_bound_above_nearest_is_caught(problem):
    def worst(problem: RoundingProblem, solution: Solution) -> Solution:
        other = problem.solution(problem.low + problem.high - solution.levels)
        return replace(other, lower_bound=other.energy)

    with pytest.raises(CrossCheckError, match="'nearest rounding' has energy"):
        compare({"p": problem}, {"worst": Doctored(worst)})


def test_a_doctored_solver_is_named_with_the_problem(problem):
    liar = Doctored(lambda p, s: replace(s, energy=s.energy / 2))
    with pytest.raises(CrossCheckError, match=r"problem 'p': Doctored.*reports"):
        compare({"p": problem}, {"liar": liar})


def test_records_hold_the_scores(problem):
    other = random_problem(1, 4, 30, seed=2)
    solvers = {"near": Nearest(), "exact": Enumeration(max_assignments=2**10)}
    near, exact, far, refused = compare({"small": problem, "wide": other}, solvers, seeds=[3])
    least = Enumeration().solve(problem).energy.sum()
    assert (exact.problem, exact.g, exact.r, exact.d) == ("small", 2, 3, 7)
    assert (exact.solver, exact.configuration) == ("exact", repr(solvers["exact"]))
    assert exact.seed == 3
    assert exact.energy == float(least)
    assert exact.ratio == exact.energy / exact.energy_nearest
    assert exact.proven_rows == 6
    assert exact.lower_bound == pytest.approx(exact.energy, rel=1e-9)
    assert (near.ratio, near.proven_rows, near.lower_bound) == (1, 0, None)
    assert (far.problem, far.energy) == ("wide", float(other.energy(other.nearest()).sum()))
    assert refused.energy is refused.ratio is refused.seconds is None
    assert refused.refused.endswith(".")
    assert "assignments" in refused.refused


def test_records_know_where_they_come_from(problem):
    (record,) = compare([Case("p", problem)], {"near": Nearest()})
    assert record.torch_version == torch.__version__
    assert record.threads == torch.get_num_threads()
    assert record.device == "cpu"
    assert record.machine.endswith("cores")
    assert record.time.endswith("+00:00")
    assert all(getattr(record, name) for name in ("package_version", "python_version"))


@pytest.mark.skipif(which("git") is None, reason="git is not installed")
def test_the_commit_is_that_of_the_package_alone(problem, tmp_path, monkeypatch):
    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        call = ["git", *identity, *words]
        return subprocess.run(call, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    def commit(file: Path) -> str:
        monkeypatch.setattr(provenance_module, "__file__", str(file))
        return compare([Case("p", problem)], {"near": Nearest()})[0].commit

    installed = tmp_path / "environment" / "package" / "compare.py"
    installed.parent.mkdir(parents=True)
    checked_out = tmp_path / "package" / "compare.py"
    checked_out.parent.mkdir()
    git("init")
    assert commit(checked_out) == ""  # nothing is committed yet
    checked_out.write_text("one")
    git("add", "package")
    git("commit", "-m", "one")
    head = git("rev-parse", "HEAD").strip()
    assert commit(checked_out) == head
    assert commit(installed) == ""
    checked_out.write_text("two")
    assert commit(checked_out) == f"{head}-dirty"


def test_no_ratio_where_nearest_is_exact(problem):
    exact = replace(problem, target=problem.nearest().double())
    (record,) = compare({"exact": exact}, {"near": Nearest()})
    assert (record.energy, record.ratio) == (0, None)


def test_a_refusal_raises_when_run_alone(problem):
    with pytest.raises(RefusedError, match="no appetite"):
        run_solver(problem, Unwilling())


def test_the_first_run_is_off_the_clock(problem):
    sizes = []

    def notice(problem: RoundingProblem, solution: Solution) -> Solution:
        sizes.append(problem.d)
        return solution

    run_solver(problem, Doctored(notice))
    assert sizes == [4, 7]


def test_problems_come_one_at_a_time(problem):
    def generated():
        yield Case("a", problem)
        yield Case("a", problem)

    with pytest.raises(ValueError, match="two problems are named 'a'"):
        compare(generated(), {"near": Nearest()})


def test_progress_goes_to_standard_error(problem, capsys):
    compare({"p": problem}, {"near": Nearest()}, progress=True)
    printed = capsys.readouterr()
    assert "problems" in printed.err
    assert printed.out == ""


def test_problem_files_tell_their_number_and_are_read_one_at_a_time(problem, tmp_path, capsys):
    paths = [tmp_path / f"{name}.npz" for name in "ab"]
    for path in paths:
        problem.save(path)
    cases = CaseFiles(paths)
    assert len(cases) == 2
    first = next(iter(cases))
    assert (first.name, first.fingerprint) == ("a", Case("a", problem).fingerprint)
    records = compare(cases, {"near": Nearest()}, progress=True)
    assert [record.problem for record in records] == ["a", "b"]
    assert "2/2" in capsys.readouterr().err


def test_problem_files_that_cannot_be_used_are_told_before_the_work(problem, tmp_path):
    first, second, cut = paths = [tmp_path / f"{name}.npz" for name in ("a", "b", "cut")]
    held_out = tmp_path / "held-out"
    held_out.mkdir()
    for path in paths:
        problem.save(path)
    problem.save(held_out / "a.npz")
    cut.write_bytes(cut.read_bytes()[:-30])
    for given, message in (
        ([first, tmp_path / "lost.npz"], r"lost\.npz: no such file"),
        ([first, cut], r"cut\.npz is not a readable"),
        ([first, second, first], r"a\.npz and .*a\.npz are both problem 'a'"),
        ([first, held_out / "a.npz"], r"are both problem 'a'"),
    ):
        with pytest.raises(ProblemError, match=message):
            CaseFiles(given)
    with pytest.raises(ProblemError, match=r"held-out.b\.npz: no such file"):
        CaseFiles([first, second], held_out)
