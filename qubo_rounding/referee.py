"""The referee: holds the clock, scores what a solver finds, and checks its claim."""

from __future__ import annotations

import time
from contextlib import suppress

import torch

from qubo_rounding.cross_checks import check_bound, check_claim, check_modules_agree
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.solution import Solution
from qubo_rounding.solvers import Auto, RefusedError, Solver
from qubo_rounding.testing import random_problem
from qubo_rounding.watch import watching


def run_solver(problem: RoundingProblem, solver: Solver, seed: int = 0) -> tuple[Solution, float]:
    """What a solver finds, rescored and cross-checked, and its wall time in seconds.

    The solver first treats a tiny problem off the clock: kernels compile at their first call.

    Args:
        problem: the layer's rounding problem.
        solver: any solver.
        seed: of its random numbers.

    Returns:
        The solution with energies scored by the problem, and the seconds of `solver.solve`.

    Raises:
        RefusedError: the solver refuses the problem.
        CrossCheckError: levels outside [low, high], an energy that is not theirs, one below the
            solver's own lower bound, or one on which both modules do not agree.
    """
    _warm_up(solver, problem)
    began = time.perf_counter()
    claimed = solver.solve(problem, seed=seed)
    if problem.device.type == "cuda":  # its work is queued; the clock would stop too early
        torch.cuda.synchronize(problem.device)
    seconds = time.perf_counter() - began
    check_claim(problem, solver, claimed)
    check_modules_agree(problem, claimed.levels)
    solution = problem.solution(claimed.levels, claimed.lower_bound, **claimed.stats)
    check_bound(problem, repr(solver), solution.energy, "its own", solution.lower_bound)
    return solution, seconds


def _warm_up(solver: Solver, problem: RoundingProblem) -> None:
    # Of a tiny problem `Auto` would enumerate the rows, and compile nothing else.
    chosen = solver.choice(problem) if isinstance(solver, Auto) else solver
    with watching(time_limit=1e-9), suppress(RefusedError):  # one step of every watched loop
        chosen.solve(random_problem(1, 1, 4).to(problem.device))
