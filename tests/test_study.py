"""Studies resume, keep what they found, and catch data and solvers that do not belong together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from qubo_rounding.compare import compare
from qubo_rounding.cross_checks import CrossCheckError, check_modules_agree
from qubo_rounding.problem import ProblemError, RoundingProblem
from qubo_rounding.record_files import read_records
from qubo_rounding.solution import Solution
from qubo_rounding.solvers import AdaRound, Annealing, Enumeration, Gptq, Nearest, Solver
from qubo_rounding.study import Case
from qubo_rounding.testing import random_problem


@dataclass(frozen=True)
class Counting(Solver):
    """Another solver that counts how often it was asked about problems of a test."""

    inner: Solver
    asked: list[int] = field(default_factory=list, repr=False, compare=False)

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        if problem.d > 4:  # not the warm-up
            self.asked.append(seed)
        return self.inner.find(problem, seed)


@dataclass(frozen=True)
class Claiming(Solver):
    """Nearest rounding with a claim about it."""

    claim: Callable[[RoundingProblem, Solution], Solution]

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        return self.claim(problem, Nearest().find(problem, seed))


@pytest.fixture
def problem() -> RoundingProblem:
    return random_problem(2, 3, 7, seed=1)


def test_seeds_and_calibration_sets_have_records_of_their_own(problem):
    other = replace(problem, gram=2 * problem.gram)
    cases = [Case("p", problem, "first"), Case("p", other, "second")]
    records = compare(cases, {"near": Nearest(), "annealing": Annealing(sweeps=3)}, seeds=[4, 5])
    assert len({record.cell for record in records}) == 8
    assert {(r.calibration, r.seed) for r in records} == {
        (c, s) for c in ("first", "second") for s in (4, 5)
    }
    assert len({r.fingerprint for r in records}) == 2
    assert records[4].energy == pytest.approx(2 * records[0].energy)


def test_a_study_does_not_measure_twice(problem, tmp_path):
    near, exact = Counting(Nearest()), Counting(Enumeration())
    first = compare({"p": problem}, {"near": near}, seeds=[0, 1], study=tmp_path)
    again = compare({"p": problem}, {"near": near}, seeds=[0, 1, 2], study=tmp_path)
    assert near.asked == [0, 1, 2]
    assert again[:2] == first
    both = compare({"p": problem}, {"near": near, "exact": exact}, seeds=[0], study=tmp_path)
    assert (near.asked, exact.asked) == ([0, 1, 2], [0])
    assert [record.solver for record in both] == ["near", "exact"]
    assert len(read_records(tmp_path / "records.csv")) == 4


def test_an_optimum_found_later_reaches_earlier_records(problem, tmp_path):
    (before,) = compare({"p": problem}, {"near": Nearest()}, study=tmp_path)
    assert (before.known_rows, before.over_bound, before.bits_of_optimum) == (0, None, None)
    compare({"p": problem}, {"exact": Enumeration()}, study=tmp_path)
    after, _ = read_records(tmp_path / "records.csv")
    assert after.solver == "near"
    assert (after.known_rows, after.proven_by) == (6, "exact")
    assert after.over_bound > 1
    assert after.seconds == before.seconds


def test_the_relaxation_of_a_study_reaches_all_of_its_records(problem, tmp_path):
    compare({"p": problem}, {"relaxed": AdaRound(iterations=50)}, study=tmp_path)
    (near,) = compare({"p": problem}, {"near": Nearest()}, study=tmp_path)
    assert near.bits_of_relaxation is not None
    kept = {record.solver: record for record in read_records(tmp_path / "records.csv")}
    assert kept["relaxed"].bits_of_relaxation == 1
    for solution in (tmp_path / "solutions").iterdir():
        solution.unlink()
    (again,) = compare({"p": problem}, {"exact": Enumeration()}, study=tmp_path)
    assert again.bits_of_relaxation is None  # its levels are lost
    kept = {record.solver: record for record in read_records(tmp_path / "records.csv")}
    assert kept["near"].bits_of_relaxation == near.bits_of_relaxation


def test_a_study_interrupted_within_a_case_keeps_the_cases_before(problem, tmp_path):
    def interrupted(problem: RoundingProblem, solution: Solution) -> Solution:
        if problem.d == 9:
            raise KeyboardInterrupt
        return solution

    problems = {"a": problem, "b": random_problem(1, 2, 9)}
    with pytest.raises(KeyboardInterrupt):
        compare(problems, {"s": Claiming(interrupted)}, study=tmp_path)
    assert [r.problem for r in read_records(tmp_path / "records.csv")] == ["a"]


def test_refusals_are_kept(problem, tmp_path):
    never = Enumeration(max_assignments=2)
    first = compare({"p": problem}, {"never": never}, study=tmp_path)
    assert first[0].refused
    assert compare({"p": problem}, {"never": never}, study=tmp_path) == first


def test_a_lost_solution_file_is_solved_again(problem, tmp_path):
    near = Counting(Nearest())
    compare({"p": problem}, {"near": near}, study=tmp_path)
    (kept,) = (tmp_path / "solutions").iterdir()
    kept.unlink()
    compare({"p": problem}, {"near": near}, study=tmp_path)
    assert near.asked == [0, 0]
    assert kept.exists()


def test_mixed_data_are_caught(problem, tmp_path):
    compare({"p": problem}, {"near": Nearest()}, study=tmp_path)
    other = replace(problem, gram=2 * problem.gram)
    with pytest.raises(CrossCheckError, match=r"holds problem 'p' of other data .*another folder"):
        compare({"p": other}, {"near": Nearest()}, study=tmp_path)
    compare([Case("p", other, "other images")], {"near": Nearest()}, study=tmp_path)


def test_a_bound_that_is_too_high_is_caught_across_a_study(problem, tmp_path):
    def overconfident(problem: RoundingProblem, solution: Solution) -> Solution:
        return replace(solution, lower_bound=solution.energy)

    compare({"p": problem}, {"wrong": Claiming(overconfident)}, study=tmp_path)
    with pytest.raises(CrossCheckError, match=r"'exact' has energy .* below .* of 'wrong'"):
        compare({"p": problem}, {"exact": Enumeration()}, study=tmp_path)


def test_a_soft_energy_is_caught(problem):
    def soft(problem: RoundingProblem, solution: Solution) -> Solution:
        halfway = (problem.low + problem.high).double() / 2
        return replace(solution, energy=problem.energy(halfway))

    with pytest.raises(CrossCheckError, match="reports energy"):
        compare({"p": problem}, {"relaxed": Claiming(soft)})


@pytest.mark.parametrize("wrong", [1 + 1e-4, float("nan")])
def test_modules_that_do_not_agree_are_caught(problem, wrong, monkeypatch):
    levels = Annealing(sweeps=2).solve(problem).levels
    check_modules_agree(problem, levels)
    qubo = RoundingProblem.to_qubo

    def doctored(self: RoundingProblem, *row: int):
        quadratic, offset, columns = qubo(self, *row)
        return wrong * quadratic, offset, columns

    monkeypatch.setattr(RoundingProblem, "to_qubo", doctored)
    with pytest.raises(CrossCheckError, match="the relaxation's objective"):
        compare({"p": problem}, {"annealing": Annealing(sweeps=2)})


@pytest.mark.parametrize("scale", [1e-12, 1, 1e9])
def test_modules_agree_on_problems_of_all_kinds(scale):
    for problem in (
        random_problem(20, 2, 5, seed=2),
        random_problem(1, 3, 30, seed=3, free=True),
        random_problem(1, 2, 40, seed=4, rank=5),
    ):
        scaled = replace(problem, scale=problem.scale * scale, linear=None)
        check_modules_agree(scaled, scaled.nearest())


def test_bits_in_common(problem):
    solvers = {"near": Nearest(), "exact": Enumeration(), "relaxed": AdaRound(iterations=50)}
    near, exact, relaxed = compare({"p": problem}, solvers)
    undecided = problem.low < problem.high
    assert not bool(undecided.all())
    assert exact.bits_of_optimum == relaxed.bits_of_relaxation == 1
    for share, solver in (
        (near.bits_of_optimum, Enumeration()),
        (near.bits_of_relaxation, AdaRound(iterations=50)),
    ):
        same = (problem.nearest() == solver.solve(problem).levels)[undecided]
        assert share == float(same.double().mean())


def test_exact_rows_are_those_with_the_optimal_energy(problem):
    near, _ = compare({"p": problem}, {"near": Nearest(), "exact": Enumeration()})
    gap = problem.energy(problem.nearest()) - Enumeration().solve(problem).energy
    assert (near.known_rows, near.exact_rows) == (6, int((gap < 1e-12).sum()))
    assert near.best_bound == pytest.approx(float(Enumeration().solve(problem).energy.sum()))
    assert near.over_bound == near.energy / near.best_bound


def test_fixed_weights_are_no_bits_in_common(problem):
    fixed = replace(problem, low=problem.nearest(), high=problem.nearest())
    (record,) = compare({"p": fixed}, {"exact": Enumeration()})
    assert record.known_rows == 6
    assert record.bits_of_optimum is None


def test_held_out_energies_stand_beside(problem, tmp_path):
    other = replace(problem, gram=random_problem(2, 3, 7, seed=9).gram)
    (record,) = compare([Case("p", problem, held_out=other.energy)], {"gptq": Gptq()})
    levels = Gptq().solve(problem).levels
    assert record.held_out == float(other.energy(levels).sum())
    assert record.held_out_nearest == float(other.energy(problem.nearest()).sum())
    folder = tmp_path / "held-out"
    folder.mkdir()
    problem.save(tmp_path / "p.npz")
    other.save(folder / "p.npz")
    (from_file,) = compare([Case.from_file(tmp_path / "p.npz", folder)], {"gptq": Gptq()})
    assert from_file.held_out == record.held_out
    replace(other, target=other.target + 0.1).save(folder / "p.npz")
    with pytest.raises(ProblemError, match="its targets are not those of"):
        Case.from_file(tmp_path / "p.npz", folder)


def test_a_damaged_study_is_named(problem, tmp_path):
    compare({"p": problem}, {"near": Nearest()}, study=tmp_path)
    (kept,) = (tmp_path / "solutions").iterdir()
    kept.write_bytes(kept.read_bytes()[:-30])
    with pytest.raises(ValueError, match=f"{kept.name} is not a readable"):
        compare({"p": problem}, {"near": Nearest()}, study=tmp_path)
    Path(tmp_path / "records.csv").write_text("nothing\n")
    with pytest.raises(ValueError, match=r"records\.csv has the columns"):
        compare({"p": problem}, {"near": Nearest()}, study=tmp_path)
