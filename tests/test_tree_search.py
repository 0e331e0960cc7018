"""Tree search: the optimum of enumeration, honest limits, and what its tables promise."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from company import torch_threads
from hard_rows import (
    HARD_ROWS,
    assert_below_in_exact_arithmetic,
    huge_errors_that_cancel,
    indefinite,
)

from qubo_rounding.problem import RoundingProblem
from qubo_rounding.qubo.bounds import eigenvalue_bound, sdp_bound, sdp_bound_of
from qubo_rounding.qubo.spins import SpinRow, spin_row
from qubo_rounding.solution import PROVEN_TOLERANCE, Solution
from qubo_rounding.solvers import Annealing, Enumeration, Gptq, Nearest, Solver, ellipsoid
from qubo_rounding.solvers.depth_first import Tree, grow_tree, search
from qubo_rounding.solvers.ellipsoid import first_shift, fit_shift, search_tables
from qubo_rounding.solvers.solver import RefusedError
from qubo_rounding.solvers.tree_search import RowSearch, TreeSearch
from qubo_rounding.testing import planted_problem, random_problem
from qubo_rounding.watch import watching


def assert_optimal(problem: RoundingProblem, solver: Solver) -> None:
    optimum = Enumeration().solve(problem).energy
    solution = solver.solve(problem)
    room = 1e-9 * optimum.abs() + 1e-12 * problem.unit[..., 0]
    assert bool((solution.energy <= optimum + room).all())
    assert solution.lower_bound is not None
    assert bool((solution.lower_bound <= optimum).all())
    assert bool((solution.energy - solution.lower_bound <= room).all())


@pytest.mark.parametrize("name", HARD_ROWS)
def test_hundreds_of_rows_end_at_the_optimum_of_enumeration(name: str) -> None:
    assert_optimal(HARD_ROWS[name], TreeSearch(start=Nearest()))


@pytest.mark.parametrize("seed", range(5))
def test_an_indefinite_matrix_is_searched_where_weights_are_up_down(seed: int) -> None:
    assert_optimal(indefinite(seed), TreeSearch())


def test_wider_rows_end_at_the_optimum_too() -> None:
    assert_optimal(random_problem(1, 8, 16, seed=31), TreeSearch(start=Nearest()))
    assert_optimal(random_problem(1, 4, 16, seed=32, rank=8), TreeSearch(start=Nearest()))


def test_the_growing_radii_end_at_the_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qubo_rounding.solvers.tree_search._EASY_NODES", 3)
    assert_optimal(random_problem(1, 60, 12, seed=33), TreeSearch(start=Nearest()))
    assert_optimal(random_problem(1, 30, 5, seed=34, bits=3, free=True), TreeSearch(start=Gptq()))


def test_a_row_of_forty_weights_is_proven_below_annealing() -> None:
    problem = random_problem(1, 6, 40, seed=35)
    solution = TreeSearch().solve(problem)
    assert bool(solution.proven.all())
    assert bool((solution.energy <= Annealing().solve(problem).energy).all())


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_free_rows_are_proven_however_wide_their_range(bits: int) -> None:
    """Rounding errors count where the search goes, not at the farthest level."""
    posed = random_problem(1, 4, 12, seed=36, bits=8, free=True)
    half = 2 ** (bits - 1)
    low, high = (torch.full_like(posed.low, end) for end in (-half, half - 1))
    solution = TreeSearch().solve(replace(posed, low=low, high=high))
    assert bool(solution.proven.all())


def test_bounds_of_wide_rows_hold_in_exact_arithmetic() -> None:
    for rank in (None, 1):
        problem = random_problem(1, 5, 3, seed=38, bits=4, free=True, rank=rank)
        for nodes in (1, 10**8):
            solution = TreeSearch(max_nodes=nodes, start=Nearest()).solve(problem)
            assert_below_in_exact_arithmetic(solution.lower_bound, problem)


def test_a_limited_search_of_wide_rows_certifies_the_bound_of_its_tree() -> None:
    problem = random_problem(1, 2, 60, seed=37, bits=8, free=True)
    bound = TreeSearch(max_nodes=1).solve(problem).lower_bound
    assert bool((bound > eigenvalue_bound(problem)).all())


def test_a_planted_optimum_is_found() -> None:
    problem, hidden = planted_problem(2, 3, 12, seed=5)
    assert torch.equal(TreeSearch(start=Nearest()).solve(problem).levels, hidden)


@pytest.mark.parametrize("noise", [0.0, 1e-14, 1e-10, 1e-6])
@pytest.mark.parametrize(("d", "rank"), [(3, 1), (6, 2), (10, 5), (10, 9)])
def test_targets_on_the_grid_of_a_singular_matrix_end_at_the_optimum(
    noise: float, d: int, rank: int
) -> None:
    """The relaxed bound reaches the incumbent, and the smallest ellipsoid has no volume."""
    problem = random_problem(4, 25, d, seed=41, rank=rank)
    target = problem.target.round() + noise * (problem.target - problem.target.round())
    low = target.floor().to(torch.int16)
    problem = replace(problem, target=target, low=low, high=low + 1)
    optimum, room = Enumeration().solve(problem).energy, 1e-12 * problem.unit[..., 0]
    solution = TreeSearch(start=Nearest()).solve(problem)
    assert bool((solution.energy <= optimum + room).all())
    assert bool((solution.lower_bound <= optimum).all())
    assert bool((solution.gap <= 1e-9 * optimum + room).all())


def test_leaves_of_wrong_tables_are_neither_taken_nor_proof(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def sunk(*arguments: Any) -> Tree:
        tree = grow_tree(*arguments)
        tree.cost[-1] -= 1
        return tree

    monkeypatch.setattr("qubo_rounding.solvers.tree_search.grow_tree", sunk)
    problem, start = random_problem(1, 8, 12, seed=42), Annealing()
    solution = TreeSearch(start=start).solve(problem)
    assert_honest(problem, solution, start)
    assert bool((solution.lower_bound <= Enumeration().solve(problem).energy).all())


# limits


def hard() -> RoundingProblem:
    """Rows that no search proves in a second: nearly orthogonal inputs, many of them."""
    return random_problem(1, 2, 180, seed=7)


def assert_honest(problem: RoundingProblem, solution: Solution, start: Solver) -> None:
    assert problem.allows(solution.levels)
    assert bool((solution.energy <= start.solve(problem).energy).all())
    assert not bool(solution.proven.any())


def test_at_the_node_limit_come_incumbent_and_bound() -> None:
    problem, start = hard(), Gptq()
    solution = TreeSearch(max_nodes=400_000, start=start).solve(problem)
    assert_honest(problem, solution, start)
    assert solution.stats["nodes"] <= 2 * 400_000
    assert bool((solution.lower_bound > 0).all())
    assert bool((solution.lower_bound < solution.energy).all())


def test_more_nodes_certify_more() -> None:
    problem = random_problem(1, 1, 130, seed=7)
    few, many = (TreeSearch(max_nodes=nodes).solve(problem).lower_bound for nodes in (1, 4_000_000))
    assert few is not None
    assert many is not None
    # The search's form of one row starts from other vectors, so the two converge a little apart.
    assert 0.99 * float(sdp_bound(problem)) <= float(few) < float(many)


def test_rows_that_the_time_limit_kept_from_beginning_have_the_eigenvalue_bound() -> None:
    problem, start = random_problem(1, 12, 180, seed=7), Nearest()
    TreeSearch(max_nodes=1, start=start).solve(problem)  # compiled off the clock
    with watching(time_limit=1e-9):
        solution = TreeSearch(max_nodes=10**12, start=start).solve(problem)
    assert_honest(problem, solution, start)
    simple = eigenvalue_bound(problem)
    assert bool((solution.lower_bound >= simple).all())
    assert bool(solution.lower_bound[0, 0] > simple[0, 0])
    assert bool(solution.lower_bound[0, -1] == simple[0, -1])


def test_a_limit_ends_the_fits_of_a_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    row = spin_row(random_problem(1, 1, 60, seed=7), 0, 0)
    fits = []
    steps = ellipsoid._newton_steps
    monkeypatch.setattr(ellipsoid, "_newton_steps", lambda *own: fits.append(1) or steps(*own))
    monkeypatch.setattr(ellipsoid, "_OPERATIONS", 1)  # the clock is looked at after every step
    search = RowSearch(row, row.levels(row.low), 10**6, lambda: len(fits) >= 3)
    search.run()
    assert len(fits) == 3
    assert search.lower_bound == pytest.approx(sdp_bound_of(row))
    RowSearch(row, row.levels(row.low), 10**6, lambda: True).run()
    assert len(fits) == 3


def test_ctrl_c_returns_the_incumbent() -> None:
    problem, start = hard(), Nearest()
    TreeSearch(max_nodes=1, start=start).solve(problem)
    began = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    began.start()
    solution = TreeSearch(max_nodes=10**12, start=start).solve(problem)
    began.join()
    assert solution.stats["interrupted"]
    assert_honest(problem, solution, start)


def test_the_same_bits_on_any_number_of_threads() -> None:
    problem, solver = random_problem(1, 6, 120, seed=8), TreeSearch(max_nodes=200_000)
    found = []
    for threads in (1, 2, 5):
        with torch_threads(threads):
            found.append(solver.solve(problem))
    for other in found[1:]:
        assert torch.equal(found[0].levels, other.levels)
        assert torch.equal(found[0].lower_bound, other.lower_bound)


def test_what_no_shift_makes_convex_is_refused() -> None:
    with pytest.raises(RefusedError, match="more than two levels"):
        TreeSearch().solve(indefinite(seed=1, free=True))


def test_every_row_that_is_searched_at_once_has_its_matrices_foreseen() -> None:
    """The row, its shifted matrix, inverse, four tables and what Newton's method works in."""
    solver, problem = TreeSearch(), random_problem(1, 3, 100)
    needed = []
    for threads in (1, 2, 5):
        with torch_threads(threads):
            needed.append(solver.memory(problem))
    assert needed[1] - needed[0] == needed[2] - needed[1] > 10 * 8 * 100**2


def test_no_nodes_are_refused() -> None:
    with pytest.raises(ValueError, match="give a whole number from 1"):
        TreeSearch(max_nodes=0)


def test_proof_is_within_the_tolerance_that_proven_asks_for() -> None:
    solution = TreeSearch().solve(random_problem(1, 20, 20, seed=6))
    assert bool((solution.gap <= PROVEN_TOLERANCE * solution.energy).all())
    assert bool((solution.gap > 0).all())  # and never claims what float64 cannot know


@pytest.mark.parametrize("seed", range(4))
def test_proofs_hold_where_the_gram_matrix_is_hardly_symmetric(seed: int) -> None:
    """Targets half way between levels leave the decision to what the two triangles differ by."""
    draw = torch.Generator().manual_seed(seed)
    upper = torch.randn(1, 6, 6, generator=draw, dtype=torch.float64).triu(1).clamp(-1, 1)
    gram = torch.eye(6, dtype=torch.float64)[None] + 9e-10 * upper
    problem = random_problem(1, 1, 6, seed=seed)
    problem = replace(problem, gram=gram, target=problem.low + 0.5)
    solution = TreeSearch(start=Nearest()).solve(problem)
    assert_below_in_exact_arithmetic(solution.lower_bound, problem, gram)


@pytest.mark.parametrize("seed", range(4))
def test_proofs_hold_where_huge_errors_cancel(seed: int) -> None:
    problem = huge_errors_that_cancel(seed)
    solution = TreeSearch(start=Nearest()).solve(problem)
    assert_below_in_exact_arithmetic(solution.lower_bound, problem)


# the tables


def never() -> bool:
    return False


def fitted(seed: int, free: bool = False) -> tuple[SpinRow, np.ndarray, float, float]:
    problem = random_problem(1, 1, 12, seed=seed, bits=3, free=free)
    row = spin_row(problem, 0, 0)
    largest = np.maximum(row.low**2, row.high**2)
    shift, may_move = first_shift(row.matrix, row.slope, row.wide)
    charge = np.where(row.wide & (shift < 0), largest, 1.0)
    ceiling = row.energy(row.spins(problem.nearest()[0, 0].numpy())) / row.unit - row.offset
    own = (shift, charge, may_move, row.wide & may_move)
    base = fit_shift(row.matrix, row.slope, ceiling, 0.0, *own, never)
    return row, shift, base, ceiling


def log_volume(row: SpinRow, shift: np.ndarray, ceiling: float) -> float:
    matrix = row.matrix - np.diag(shift)
    base = shift.sum() - row.slope @ np.linalg.solve(matrix, row.slope)
    return len(shift) / 2 * np.log(ceiling - base) - np.linalg.slogdet(matrix)[1] / 2


@pytest.mark.parametrize("seed", range(4))
def test_the_ellipsoid_is_the_smallest(seed: int) -> None:
    row, shift, base, ceiling = fitted(seed)
    assert base <= ceiling
    assert np.linalg.eigvalsh(row.matrix - np.diag(shift))[0] > 0
    least, draw = log_volume(row, shift, ceiling), np.random.default_rng(seed)
    for _ in range(100):
        moved = shift + 0.2 * np.abs(shift) * draw.standard_normal(len(shift))
        if np.linalg.eigvalsh(row.matrix - np.diag(moved))[0] > 0:
            assert log_volume(row, moved, ceiling) > least - 0.02


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("halted", [never, lambda: True])
def test_the_tables_say_what_fixing_spins_costs(free: bool, halted: Callable[[], bool]) -> None:
    row, shift, _, _ = fitted(5, free)
    order, centre, price, pull, floor = search_tables(row.matrix, row.slope, shift, 4, halted)
    assert sorted(order) == list(range(row.n))
    matrix = (row.matrix - np.diag(shift))[np.ix_(order, order)]
    assert centre == pytest.approx(-np.linalg.solve(matrix, row.slope[order]))
    for u in range(1, row.n + 1):
        inverse = np.linalg.inv(matrix[:u, :u])
        assert price[u, :u] == pytest.approx(1 / inverse.diagonal())
        assert price[u, u - 1] == pytest.approx(price[u, :u].max())
        expected = inverse[: u - 1, u - 1] / inverse[u - 1, u - 1]
        assert pull[u, : u - 1] == pytest.approx(expected)
        assert (floor[u, :u] > 0).all()
        assert np.linalg.eigvalsh(matrix[:u, :u] - np.diag(floor[u, :u]))[0] > -1e-12


def test_a_search_in_small_steps_visits_the_same_nodes() -> None:
    row, shift, _, ceiling = fitted(6)
    ones = np.ones(row.n)

    def tree() -> Tree:
        return grow_tree(row, shift, ones, 4, never)

    at_once, in_steps = tree(), tree()
    reached, nodes = search(at_once, ceiling, 10**9)
    total, height = 0, ceiling
    while in_steps.place[0] <= row.n:
        height, used = search(in_steps, height, 5)
        total += used
    assert (height, total) == (reached, nodes)
    assert np.array_equal(at_once.best, in_steps.best)


def test_a_better_start_saves_nodes_and_changes_nothing_else() -> None:
    problem = random_problem(1, 1, 40, seed=3)
    poor, good = (TreeSearch(start=s).solve(problem) for s in (Nearest(), Annealing()))
    assert torch.equal(poor.levels, good.levels)
    assert good.stats["nodes"] <= poor.stats["nodes"]


def test_a_shifted_problem_has_the_same_optimum() -> None:
    """x^2 = x: a diagonal may move into the linear term, so any curvature will do."""
    problem = random_problem(1, 4, 10, seed=2)
    ends = problem.errors(problem.low), problem.errors(problem.high)
    shift = 3.0 * problem.diagonal.amax()
    moved = replace(
        problem,
        gram=problem.gram - shift * torch.eye(10, dtype=torch.float64),
        linear=shift * (ends[0] + ends[1]),
        offset=-shift * (ends[0] * ends[1]).sum(dim=2),
    )
    expected = Enumeration().solve(problem).energy
    assert torch.allclose(TreeSearch().solve(moved).energy, expected, rtol=1e-9)


def test_wide_rows_of_a_matrix_that_rounding_left_indefinite_end() -> None:
    vector = torch.tensor([1.4325**0.5, -1.8716 / 1.4325**0.5], dtype=torch.float64)
    gram = torch.outer(vector, vector)
    posed = random_problem(1, 3, 2, free=True)
    for dent in (0.0, 1e-12, 1e-11):
        gram_ = gram - dent * torch.eye(2, dtype=torch.float64)
        problem = replace(posed, gram=gram_[None])
        if TreeSearch().refuses(problem) is None:
            optimum = Enumeration().solve(problem).energy
            assert torch.allclose(TreeSearch().solve(problem).energy, optimum, atol=1e-9)
