"""Problems to test solvers on, and the conformance suite that every solver has to pass."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor

from qubo_rounding.problem import RoundingProblem
from qubo_rounding.solvers.enumeration import Enumeration
from qubo_rounding.solvers.solver import RefusedError, Solver


def random_problem(
    g: int = 1,
    r: int = 3,
    d: int = 8,
    *,
    seed: int = 0,
    bits: int = 4,
    free: bool = False,
    rank: int | None = None,
    linear: bool = False,
) -> RoundingProblem:
    """A problem with correlated non-negative inputs, as after a ReLU, and Gaussian weights.

    Args:
        g, r, d: its shape.
        seed: everything is drawn from it.
        bits: of the symmetric grid; the scale is absmax / (2^(bits-1) - 1) for each row.
        free: allow the whole grid instead of up/down.
        rank: number of input samples behind the Gram matrix; below d it is singular. None: 3 d.
        linear: add a linear term and an offset, as quantised inputs do.
    """
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(g, d, d, generator=draw, dtype=torch.float64) / d**0.5
    samples = torch.randn(g, rank or 3 * d, d, generator=draw, dtype=torch.float64)
    inputs = (samples + samples @ mixing).relu()
    gram = inputs.mT @ inputs / inputs.shape[1]
    weight = torch.randn(g, r, d, generator=draw, dtype=torch.float64)
    largest = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(dim=2, keepdim=True) / largest
    target = weight / scale
    low, high = (t.clamp(-largest - 1, largest) for t in (target.floor(), target.ceil()))
    if free:
        low, high = torch.full_like(low, -largest - 1), torch.full_like(high, largest)
    problem = RoundingProblem(
        (gram + gram.mT) / 2, target, scale, low.to(torch.int16), high.to(torch.int16)
    )
    if not linear:
        return problem
    tilt = 0.3 * torch.randn(g, r, d, generator=draw, dtype=torch.float64) @ gram
    return replace(problem, linear=tilt * scale, offset=torch.ones(g, r, dtype=torch.float64))


def planted_problem(
    g: int = 1, r: int = 3, d: int = 8, *, seed: int = 0
) -> tuple[RoundingProblem, Tensor]:
    """A problem whose optimum is known: energy 0 at levels hidden behind a linear term.

    Returns:
        The problem and its only optimal levels (g, r, d), which nearest rounding misses.
    """
    problem = random_problem(g, r, d, seed=seed)
    draw = torch.Generator().manual_seed(seed + 1)
    up = torch.rand(problem.target.shape, generator=draw) < 0.5
    hidden = torch.where(up, problem.high, problem.low)
    errors = problem.errors(hidden)
    # (e - e*)' G (e - e*) = e'Ge - 2 (G e*)'e + e*'G e*, and G is positive definite.
    linear = -2 * errors @ problem.gram
    offset = -(linear * errors).sum(dim=2) / 2
    return replace(problem, linear=linear, offset=offset), hidden


def check_solver(solver: Solver, *, repeatable: bool = True) -> list[str]:
    """Run the conformance suite; returns the names of the checks made.

    Checks shapes, types and bounds of the solution, that inputs stay untouched, that rows and
    groups solved apart give the same bits as together, that no energy is below the proven optimum
    and no bound above it, that a diagonal Gram matrix gives nearest rounding, that a column nothing
    flows into is harmless, and that a refusal is a sentence. A check on a problem that the solver
    refuses is left out.

    Args:
        solver: any Solver, ours or foreign.
        repeatable: False for a solver that ends by the clock: its bits are not compared.

    Raises:
        AssertionError: a check failed; the message names solver, check and problem.
    """
    made = []
    for name, problem in _conformance_problems().items():
        reason = solver.refuses(problem)
        if reason is not None:
            _check_refusal(solver, name, problem, reason)
            made.append(f"refusal: {name}")
            continue
        _check_solution(solver, name, problem)
        made.append(f"solution: {name}")
        if repeatable:
            _check_same_bits(solver, name, problem)
            made.append(f"same bits: {name}")
    made += _check_diagonal(solver)
    return made


def _conformance_problems() -> dict[str, RoundingProblem]:
    dead = random_problem(2, 3, 7, seed=4)
    gram = dead.gram.clone()
    gram[:, 2], gram[:, :, 2] = 0, 0
    fixed = random_problem(1, 2, 6, seed=5)
    return {
        "up/down": random_problem(1, 11, 9, seed=1),
        "grouped": random_problem(5, 1, 9, seed=2),
        "linear term": random_problem(2, 3, 8, seed=3, linear=True),
        "zero column": replace(dead, gram=gram),
        "all fixed": replace(fixed, high=fixed.low),
        "singular": random_problem(1, 2, 8, seed=6, rank=4),
        "free, 3 bits": random_problem(1, 2, 5, seed=7, bits=3, free=True),
        "one column": random_problem(1, 2, 1, seed=8),
    }


def _check_refusal(solver: Solver, name: str, problem: RoundingProblem, reason: str) -> None:
    where = f"{solver!r} on {name!r}"
    is_sentence = reason.strip().endswith(".") and " " in reason
    assert is_sentence, f"{where}: refusal is no sentence"
    try:
        solver.solve(problem)
    except RefusedError:
        return
    raise AssertionError(f"{where}: refuses() gives a reason, solve() works all the same")


def _check_solution(solver: Solver, name: str, problem: RoundingProblem) -> None:
    where = f"{solver!r} on {name!r}"
    inputs = [
        value for f in fields(problem) if isinstance(value := getattr(problem, f.name), Tensor)
    ]
    before = [tensor.clone() for tensor in inputs]
    solution = solver.solve(problem, seed=3)
    assert all(map(torch.equal, before, inputs)), f"{where}: changed its input"
    assert solution.levels.dtype == torch.int16, f"{where}: levels are {solution.levels.dtype}"
    assert problem.allows(solution.levels), f"{where}: levels outside [low, high]"
    optimum = Enumeration().solve(problem).energy
    room = 1e-9 * (optimum.abs() + problem.unit[..., 0])
    energy = problem.energy(solution.levels)
    assert bool(((energy - solution.energy).abs() <= room).all()), f"{where}: misreports energy"
    assert bool((energy >= optimum - room).all()), f"{where}: below the optimum"
    below = solution.known_bound <= optimum + room
    assert bool(below.all()), f"{where}: lower bound above the optimum"


def _check_same_bits(solver: Solver, name: str, problem: RoundingProblem) -> None:
    where = f"{solver!r} on {name!r}"
    together = solver.solve(problem, seed=5).levels
    assert torch.equal(together, solver.solve(problem, seed=5).levels), f"{where}: not repeatable"
    for group in range(problem.g):
        at = slice(group, group + 1)
        apart = solver.solve(problem.part(at), seed=5).levels
        assert torch.equal(together[at], apart), f"{where}: group {group} differs when alone"
    for row in range(problem.r):
        at = slice(row, row + 1)
        apart = solver.solve(problem.part(rows=at), seed=5).levels
        assert torch.equal(together[:, at], apart), f"{where}: row {row} differs when alone"


def _check_diagonal(solver: Solver) -> list[str]:
    problem = random_problem(1, 4, 6, seed=9)
    diagonal = replace(problem, gram=torch.diag_embed(problem.gram.diagonal(dim1=1, dim2=2)))
    if solver.refuses(diagonal) is not None:
        return []
    solution = solver.solve(diagonal, seed=1)
    least = diagonal.energy(diagonal.nearest())
    assert torch.allclose(solution.energy, least, rtol=1e-9), f"{solver!r}: diagonal is not nearest"
    return ["diagonal Gram gives nearest"]
