"""Solvers against their naive twins, the theorems that tie them together, and their arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import dimod
import pytest
import reference
import torch
from company import torch_threads

from qubo_rounding.problem import RoundingProblem
from qubo_rounding.qubo.bqm import Encoding
from qubo_rounding.relaxed.choices import choices_of
from qubo_rounding.relaxed.soft_levels import SoftLevels
from qubo_rounding.relaxed.softening import PlainSigmoid, RectifiedSigmoid, StraightThrough
from qubo_rounding.solvers import (
    SOLVERS,
    AdaRound,
    Annealing,
    Descent,
    DimodSampler,
    Enumeration,
    FirstThatAccepts,
    Given,
    Gptq,
    Nearest,
    RefusedError,
    Solver,
    Stochastic,
    dimod_exact,
    dwave_annealing,
    dwave_descent,
    dwave_tabu,
    make_solver,
)
from qubo_rounding.testing import planted_problem, random_problem
from qubo_rounding.watch import watching


def group_wise(problem: RoundingProblem) -> RoundingProblem:
    draw = torch.Generator().manual_seed(1)
    spread = torch.rand(problem.target.shape, generator=draw, dtype=torch.float64)
    return replace(problem, scale=problem.scale * (0.5 + spread))


def with_gram(problem: RoundingProblem, change: Callable[[torch.Tensor], None]) -> RoundingProblem:
    gram = problem.gram.clone()
    change(gram)
    return replace(problem, gram=gram)


def zero_column(gram: torch.Tensor) -> None:
    gram[:, 2], gram[:, :, 2] = 0, 0


def duplicate_column(gram: torch.Tensor) -> None:
    gram[:, 3], gram[:, :, 3] = gram[:, 1].clone(), gram[:, :, 1].clone()
    gram[:, 3, 3] = gram[:, 1, 1]


def make_indefinite(gram: torch.Tensor) -> None:
    gram -= gram.diagonal(dim1=1, dim2=2).mean() * torch.eye(gram.shape[1], dtype=gram.dtype)


def fixed(problem: RoundingProblem, columns: slice) -> RoundingProblem:
    high = problem.high.clone()
    high[..., columns] = problem.low[..., columns]
    return replace(problem, high=high)


def scaled(problem: RoundingProblem, factor: float) -> RoundingProblem:
    return replace(problem, scale=problem.scale * factor)


SMALL = {
    "binary": random_problem(2, 2, 7, seed=1),
    "linear": random_problem(2, 2, 7, seed=2, linear=True),
    "some fixed": fixed(random_problem(1, 3, 7, seed=3, linear=True), slice(1, 4)),
    "all fixed": fixed(random_problem(1, 2, 4, seed=3, linear=True), slice(None)),
    "one weight": random_problem(1, 3, 1, seed=4),
    "free": random_problem(1, 3, 3, seed=5, bits=3, free=True),
    "free, linear, group-wise": group_wise(
        random_problem(1, 2, 3, seed=6, bits=3, free=True, linear=True)
    ),
    "singular": random_problem(1, 3, 7, seed=7, rank=2),
    "zero column": with_gram(random_problem(2, 2, 6, seed=8), zero_column),
    "duplicated columns": with_gram(random_problem(1, 3, 6, seed=9), duplicate_column),
    "indefinite": with_gram(random_problem(1, 3, 7, seed=10), make_indefinite),
    "indefinite, free": with_gram(
        random_problem(1, 2, 3, seed=11, bits=3, free=True), make_indefinite
    ),
    "tiny scales": scaled(random_problem(1, 3, 7, seed=12), 1e-12),
    "huge scales": scaled(random_problem(1, 3, 7, seed=12), 1e12),
}
every_small = pytest.mark.parametrize("problem", SMALL.values(), ids=SMALL)


def test_a_singular_matrix_is_refused_beforehand_or_not_at_all() -> None:
    """Its permuted copy may fail to factor where it does not."""
    for seed in range(60):
        problem = random_problem(1, 2, 12, rank=11, seed=seed)
        FirstThatAccepts((Gptq(damping=0.0), Nearest())).solve(problem)


# Enumeration


@every_small
def test_enumeration_is_brute_force(problem: RoundingProblem) -> None:
    solution = Enumeration().solve(problem)
    assert bool(solution.proven.all())
    for at, row in reference.rows_of(problem):
        _, least = reference.optimum(row)
        room = 1e-12 * float(problem.unit[at])
        assert float(solution.energy[at]) == pytest.approx(least, rel=1e-9, abs=room)


def test_enumeration_does_not_drift_where_large_terms_cancel() -> None:
    """Errors that do not sum to 0 cost 1e10 times the rest; all these numbers are exact."""
    problem = random_problem(1, 6, 16, seed=3)
    target = (1024 * problem.target).round() / 1024
    target[..., -1] -= target.sum(dim=2)
    gram = (1024 * problem.gram).round() / 1024
    low = target.floor().to(torch.int16)
    problem = replace(problem, target=target, low=low, high=low + 1)
    problem = replace(problem, scale=torch.ones_like(problem.scale), gram=gram + 1e10)
    solution = Enumeration().solve(problem)
    steps = torch.cartesian_prod(*[torch.arange(2)] * 16)
    for row in range(6):
        errors = low[0, row] + steps - target[0, row]
        errors = errors[errors.sum(dim=1) == 0]
        least = float(((errors @ gram[0]) * errors).sum(dim=1).min())
        found = problem.errors(solution.levels)[0, row]
        assert float(found.sum()) == 0
        assert float(found @ gram[0] @ found) == pytest.approx(least, rel=1e-5)
        assert float(solution.lower_bound[0, row]) <= least
    assert not bool(solution.proven.any())


def test_rows_that_a_time_limit_keeps_from_enumeration_have_no_bound() -> None:
    problem = random_problem(2, 3, 18, seed=1)
    with watching(time_limit=1e-9):
        solution = Enumeration().solve(problem)
    left = solution.lower_bound.isnan()
    assert not bool(left[0, 0])
    assert solution.stats["rows_left"] == int(left.sum()) == 5
    assert torch.equal(solution.levels[left], problem.nearest()[left])
    assert not bool(solution.proven[left].any())
    assert Enumeration().solve(problem).stats["rows_left"] == 0


def test_the_optimum_does_not_depend_on_the_unit_of_weights() -> None:
    plain = Enumeration().solve(random_problem(1, 3, 7, seed=12)).levels
    for name in ("tiny scales", "huge scales"):
        assert torch.equal(Enumeration().solve(SMALL[name]).levels, plain)


def test_enumeration_refuses_more_than_it_may_visit() -> None:
    problem = fixed(random_problem(1, 2, 9, seed=1), slice(8, 9))
    assert Enumeration(max_assignments=256).refuses(problem) is None
    with pytest.raises(RefusedError, match=r"2\^8\.0 assignments.*raise max_assignments"):
        Enumeration(max_assignments=255).solve(problem)


# GPTQ = Babai = LDLQ


@pytest.mark.parametrize("order", ["index", "activation"])
@pytest.mark.parametrize("damping", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("free", [False, True], ids=["up/down", "free"])
@pytest.mark.parametrize("spread", [lambda p: p, group_wise], ids=["channel", "group-wise"])
def test_gptq_is_babai_is_ldlq(
    order: Any, damping: float, free: bool, spread: Callable[[RoundingProblem], RoundingProblem]
) -> None:
    problem = spread(random_problem(2, 4, 14, seed=3, free=free))
    levels = Gptq(damping=damping, order=order).solve(problem).levels
    for at, row in reference.rows_of(problem):
        columns = list(range(14)) if order == "index" else reference.activation_order(row)
        for twin in (reference.gptq, reference.babai, reference.ldlq):
            assert levels[at].tolist() == twin(row, columns, damping).tolist(), twin.__name__


@pytest.mark.parametrize("damping", [0.0, 0.05])
def test_gptq_with_a_linear_term_rounds_towards_the_shifted_minimum(damping: float) -> None:
    problem = random_problem(2, 3, 10, seed=4, free=True, linear=True)
    assert problem.linear is not None
    gram = torch.stack([torch.tensor(reference.damped(g.numpy(), damping)) for g in problem.gram])
    minimum = problem.target - torch.linalg.solve(gram, problem.linear.mT).mT / 2 / problem.scale
    shifted = replace(problem, target=minimum, linear=None)
    solver = Gptq(damping=damping)
    assert torch.equal(solver.solve(problem).levels, solver.solve(shifted).levels)


def test_gptq_beats_nearest_on_correlated_inputs() -> None:
    problem = random_problem(1, 40, 30, seed=5)
    assert Gptq().solve(problem).energy.sum() < problem.energy(problem.nearest()).sum()


def test_gptq_rounds_what_nothing_flows_into_to_nearest() -> None:
    problem = random_problem(2, 3, 6, seed=6)
    gram = problem.gram.clone()
    gram[1] = 0
    levels = Gptq().solve(replace(problem, gram=gram)).levels
    assert torch.equal(levels[1], problem.nearest()[1])


@pytest.mark.parametrize("change", [zero_column, make_indefinite])
def test_gptq_names_the_remedy_where_it_cannot_factor(change: Any) -> None:
    problem = with_gram(random_problem(2, 3, 8, seed=6), change)
    with pytest.raises(RefusedError, match=r"group 0 with damping 0\.0.*raise the damping"):
        Gptq(damping=0.0).solve(problem)


# Descent


@every_small
@pytest.mark.parametrize("start", ["low", "nearest"])
def test_descent_ends_where_no_single_move_helps(problem: RoundingProblem, start: str) -> None:
    levels = problem.low if start == "low" else problem.nearest()
    solution = Descent(start=Given(levels)).solve(problem)
    tiny = 1e-12 * problem.unit
    assert bool((solution.energy <= problem.energy(levels) + tiny[..., 0]).all())
    widest = int((problem.high - problem.low).max())
    for step in range(-widest, widest + 1):
        moved = solution.levels + step
        allowed = (moved >= problem.low) & (moved <= problem.high)
        gain = problem.flip_gain(solution.levels, torch.full_like(problem.low, step))
        assert bool((gain >= -tiny)[allowed].all())


def test_descent_stops_at_max_sweeps() -> None:
    problem = random_problem(1, 20, 40, seed=1)
    once = Descent(start=Given(problem.low), max_sweeps=1).solve(problem)
    full = Descent(start=Given(problem.low)).solve(problem)
    assert once.stats["sweeps"] == 1
    assert full.stats["sweeps"] > 1
    assert bool((full.energy <= once.energy).all())


# Annealing


@every_small
def test_annealing_never_ends_above_its_start(problem: RoundingProblem) -> None:
    start = Given(problem.nearest())
    solution = Annealing(sweeps=3, hot=100.0, cold=50.0, start=start).solve(problem)
    assert bool((solution.energy <= problem.energy(problem.nearest())).all())
    assert 0 <= solution.stats["accepted_share"] <= 1


def test_more_reads_never_hurt() -> None:
    problem = random_problem(1, 10, 40, seed=3)
    one, four = (Annealing(sweeps=5, reads=n).solve(problem) for n in (1, 4))
    assert bool((four.energy <= one.energy).all())
    assert four.energy.sum() < one.energy.sum()
    assert four.stats["reads"] == 4


@pytest.mark.parametrize("solver", [Enumeration(), Annealing(reads=5)], ids=["exact", "annealing"])
def test_a_planted_optimum_is_found(solver: Solver) -> None:
    problem, hidden = planted_problem(2, 4, 12, seed=1)
    assert torch.equal(solver.solve(problem).levels, hidden)


# AdaRound


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("normalise", [True, False], ids=["normalised", "raw"])
def test_adaround_is_autograd_with_adam(schedule: Any, normalise: bool, monkeypatch) -> None:
    problem = fixed(random_problem(2, 2, 12, seed=4, linear=True), slice(5, 6))
    relaxation = RectifiedSigmoid(schedule=schedule)
    solver = AdaRound(iterations=300, lr=0.02, lam=0.05, normalise=normalise, relaxation=relaxation)
    ends: list[torch.Tensor] = []

    def decided(soft: SoftLevels) -> torch.Tensor:
        ends.append(soft.state()["h"])
        choices = choices_of(problem, relaxation)
        return choices.lowest + choices.room * ends[0].round().to(torch.int16)

    monkeypatch.setattr(SoftLevels, "decided", decided)
    solution = solver.solve(problem)
    levels, (h,) = solution.levels, ends
    assert solution.stats["iterations"] == 300
    for at, row in reference.rows_of(problem):
        expected, expected_h = reference.adaround(
            row,
            iterations=300,
            lr=0.02,
            lam=0.05,
            normalise=normalise,
            warm_start=0.2,
            linear_schedule=schedule == "linear",
        )
        assert levels[at].tolist() == expected.tolist()
        assert h[at].numpy() == pytest.approx(expected_h, abs=1e-3)


def test_a_range_begins_in_the_cell_of_its_start_towards_the_target() -> None:
    problem = wide_enough(random_problem(1, 4, 30, seed=2))
    start = Gptq().solve(problem)
    choices = choices_of(problem, StraightThrough(), start)
    at = choices.lowest + choices.share.double() * choices.room
    assert torch.equal(at.round().to(torch.int16), start.levels)
    stayed = (problem.target - start.levels).abs() <= 0.4
    assert torch.allclose(at[stayed], problem.target[stayed], atol=1e-4)
    assert bool(((at - problem.target).abs() <= (start.levels - problem.target).abs() + 1e-4).all())
    assert bool((~stayed).any())


def wide_enough(problem: RoundingProblem) -> RoundingProblem:
    return replace(problem, low=problem.low - 3, high=problem.high + 3)


def test_solvers_that_differ_are_told_apart() -> None:
    """Records keep the representation for the configuration."""
    sampler = dimod.ExactSolver()
    options: list[dict[str, Any]] = [{}, {"exact": True}, {"max_variables": 9}]
    assert len({repr(DimodSampler(sampler, **own)) for own in options}) == 3


def test_a_range_of_16_bits_is_relaxed() -> None:
    problem = random_problem(1, 2, 8, seed=3, bits=8, free=True)
    whole = torch.full_like(problem.low, -(2**15)), torch.full_like(problem.low, 2**15 - 1)
    wide = replace(problem, low=whole[0], high=whole[1])
    for relaxation in (StraightThrough(), RectifiedSigmoid()):
        solution = AdaRound(iterations=100, relaxation=relaxation).solve(wide)
        assert bool(((solution.levels - problem.target).abs() < 3).all())


def test_unsettled_bits_are_counted() -> None:
    problem = random_problem(1, 5, 20, seed=5)
    short = AdaRound(iterations=1).solve(problem).stats["unsettled"]
    long = AdaRound(iterations=1500, lr=0.05).solve(problem).stats["unsettled"]
    published = AdaRound(iterations=200, lr=1e-3, lam=0.01, normalise=False).solve(problem)
    assert 0.9 < short <= 1
    assert long < 0.1
    assert 0 < published.stats["unsettled"] <= 1
    assert AdaRound(iterations=1).solve(SMALL["all fixed"]).stats["unsettled"] == 0


def test_adaround_of_a_wide_problem_chooses_floor_or_ceil() -> None:
    problem = random_problem(1, 4, 10, seed=6, free=True)
    levels = AdaRound(iterations=200).solve(problem).levels
    assert bool(((levels - problem.target).abs() < 1).all())
    outside = replace(problem, target=problem.target + 100)
    assert torch.equal(AdaRound(iterations=5).solve(outside).levels, problem.high)


# Stochastic rounding, nearest


@pytest.mark.parametrize("free", [False, True], ids=["up/down", "free"])
def test_stochastic_rounding_is_unbiased(free: bool) -> None:
    problem = random_problem(2, 3, 10, seed=7, free=free)
    seeds = 1000
    total = sum(Stochastic(draws=1).solve(problem, seed=k).levels.double() for k in range(seeds))
    fraction = problem.target - problem.target.floor()
    deviation = (fraction * (1 - fraction) / seeds).sqrt()
    assert bool(((total / seeds - problem.target).abs() <= 5 * deviation + 1e-9).all())


def test_more_draws_never_hurt() -> None:
    problem = random_problem(1, 10, 20, seed=8)
    few, many = (Stochastic(draws=n).solve(problem).energy for n in (1, 50))
    assert bool((many <= few).all())
    assert many.sum() < few.sum()


def test_nearest_is_the_problems_nearest() -> None:
    problem = SMALL["free"]
    assert torch.equal(Nearest().solve(problem).levels, problem.nearest())


# dimod


def test_exact_sampler_agrees_with_enumeration() -> None:
    problem = SMALL["some fixed"]
    exact = dimod_exact().solve(problem)
    assert torch.equal(exact.levels, Enumeration().solve(problem).levels)
    assert bool(exact.proven.all())
    assert exact.stats["rows_left"] == 0


@pytest.mark.parametrize("encoding", ["binary", "unary"])
def test_exact_sampler_agrees_with_enumeration_on_wide_ranges(encoding: Encoding) -> None:
    problem = random_problem(2, 2, 3, seed=6, bits=2, free=True)
    exact = DimodSampler(dimod.ExactSolver(), exact=True, encoding=encoding).solve(problem)
    assert torch.equal(exact.levels, Enumeration().solve(problem).levels)
    assert bool(exact.proven.all())


def test_exact_sampler_refuses_too_many_variables() -> None:
    binary, free = SMALL["binary"], random_problem(1, 1, 3, seed=6, bits=3, free=True)
    with pytest.raises(RefusedError, match="6 binary variables and max_variables is 5"):
        dimod_exact(max_variables=5).solve(binary)
    with pytest.raises(RefusedError, match="9 binary variables and max_variables is 8"):
        dimod_exact(max_variables=8).solve(free)
    with pytest.raises(RefusedError, match="21 binary variables and max_variables is 18"):
        DimodSampler(dimod.ExactSolver(), max_variables=18, encoding="unary").solve(free)


# The same bits


WIDE = random_problem(1, 70, 130, seed=9, linear=True)
NARROW = fixed(WIDE, slice(8, None))


@pytest.mark.parametrize(
    ("solver", "problem"),
    [
        (Nearest(), WIDE),
        (Stochastic(draws=5), WIDE),
        (Gptq(), WIDE),
        (Descent(), WIDE),
        (Annealing(sweeps=15, reads=2), WIDE),
        (AdaRound(iterations=60, lr=0.05), WIDE),
        (Enumeration(), NARROW),
        (dwave_annealing(reads=1, sweeps=5), WIDE.part(rows=slice(9))),
        (dwave_descent(reads=2), WIDE.part(rows=slice(9))),
        (dimod_exact(), NARROW),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Solver) else "",
)
def test_the_bits_do_not_depend_on_threads(solver: Solver, problem: RoundingProblem) -> None:
    solutions = []
    for number in (1, 2):
        with torch_threads(number):
            solutions.append(solver.solve(problem, seed=3))
    one, two = solutions
    assert torch.equal(one.levels, two.levels)
    assert torch.equal(one.energy, two.energy)


@pytest.mark.parametrize("solver", [Stochastic(draws=1), Annealing(sweeps=3, start=Nearest())])
def test_another_seed_gives_other_levels(solver: Solver) -> None:
    first, second = (solver.solve(WIDE, seed=seed).levels for seed in (0, 1))
    assert not torch.equal(first, second)


# Arguments


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (Stochastic, {"draws": 0}),
        (Enumeration, {"max_assignments": 0}),
        (Gptq, {"damping": -0.1}),
        (Gptq, {"damping": NAN}),
        (Gptq, {"damping": INF}),
        (Gptq, {"order": "random"}),
        (Descent, {"max_sweeps": 0}),
        (Annealing, {"sweeps": 0}),
        (Annealing, {"reads": 0}),
        (Annealing, {"hot": 0.1, "cold": 0.2}),
        (Annealing, {"cold": 0.0}),
        (Annealing, {"hot": INF}),
        (Annealing, {"hot": NAN}),
        (AdaRound, {"iterations": 0}),
        (AdaRound, {"lr": 0.0}),
        (AdaRound, {"lr": NAN}),
        (AdaRound, {"lam": -1.0}),
        (AdaRound, {"lam": INF}),
        (dwave_annealing, {"reads": 0}),
        (dwave_annealing, {"sweeps": 0}),
        (dwave_tabu, {"reads": 0}),
        (dwave_tabu, {"milliseconds": -1}),
        (dwave_descent, {"reads": 0}),
        (dimod_exact, {"max_variables": 0}),
        (partial(DimodSampler, dimod.ExactSolver()), {"encoding": "gray"}),
    ],
    ids=lambda given: (
        getattr(given, "__name__", type(given).__name__) if callable(given) else str(given)
    ),
)
def test_a_bad_hyperparameter_is_named(make: Callable[..., Solver], arguments: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        make(**arguments)


def test_parameters_that_a_sampler_lacks_are_refused() -> None:
    sampler = dwave_descent().sampler
    with pytest.raises(ValueError, match=r"has no parameters \['sweeps'\]"):
        DimodSampler(sampler, {"sweeps": 3})


@pytest.mark.parametrize(
    ("text", "solver"),
    [
        ("nearest", Nearest()),
        (" gptq:order=index , damping=1e-3", Gptq(order="index", damping=1e-3)),
        ("annealing:sweeps=50,start=nearest", Annealing(sweeps=50, start=Nearest())),
        ("annealing:start=stochastic:draws=3", Annealing(start=Stochastic(draws=3))),
        ("descent:", Descent()),
        (
            "adaround:normalise=False,lam=0.01,relaxation=plain_sigmoid,lr=1",
            AdaRound(normalise=False, lam=0.01, lr=1.0, relaxation=PlainSigmoid()),
        ),
        ("dimod_exact:max_variables=5", dimod_exact(max_variables=5)),
    ],
)
def test_a_solver_is_made_from_text(text: str, solver: Solver) -> None:
    made = make_solver(text)
    assert type(made) is type(solver)
    if isinstance(solver, DimodSampler):
        assert isinstance(made, DimodSampler)
        assert made.max_variables == solver.max_variables
    else:
        assert repr(made) == repr(solver)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no solver ''; there are auto, certified"),
        ("anealing", "there is no solver 'anealing'"),
        ("nearest:draws=3", "'draws=3' is no option of nearest.*it has no options"),
        ("annealing:sweep=3", "'sweep=3' is no option of annealing.*sweeps, reads, start"),
        ("annealing:sweeps", "'sweeps' is no option"),
        ("annealing:sweeps=1e3", "'sweeps=1e3' does not fit; give a whole number"),
        ("annealing:sweeps=", "give a whole number"),
        ("annealing:hot=warm", "'hot=warm' does not fit; give a number"),
        ("adaround:normalise=no", "'normalise=no' does not fit; give true or false"),
        ("annealing:start=quickly", "there is no solver 'quickly'"),
        ("annealing:sweeps=0", "'annealing:sweeps=0': sweeps is 0"),
        ("gptq:order=random", "give 'activation' or 'index'"),
        ("adaround:lr=nan", "lr is nan"),
    ],
)
def test_a_text_that_makes_no_solver_is_explained(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_solver(text)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_name_of_the_table_makes_a_solver(name: str) -> None:
    assert isinstance(make_solver(name), Solver)


def test_rows_that_nothing_flows_into_reach_no_sampler() -> None:
    problem = random_problem(2, 2, 5, seed=3)
    gram = problem.gram.clone()
    gram[1] = 0
    dead = replace(problem, gram=gram)
    solution = make_solver("dwave_annealing:reads=1,sweeps=20").solve(dead)  # would warn
    assert torch.equal(solution.levels[1], dead.nearest()[1])
    assert not solution.energy[1].any()


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (Annealing, "sweeps"),
        (Annealing, "reads"),
        (AdaRound, "iterations"),
        (Enumeration, "max_assignments"),
        (Stochastic, "draws"),
        (Descent, "max_sweeps"),
    ],
)
@pytest.mark.parametrize("value", [0, 1.5, True, "3", None])
def test_counts_are_whole_numbers(kind: type[Solver], field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} is .*; give a whole number from 1"):
        kind(**{field: value})


@pytest.mark.parametrize(
    "name", ["gptq", "descent", "annealing", "tabu", "k_best", "auto", "tree_search"]
)
def test_steps_so_small_that_products_underflow_crash_nothing(name: str) -> None:
    problem = random_problem(1, 2, 6)
    tiny = replace(problem, scale=torch.full_like(problem.scale, 5e-324))
    assert tiny.allows(make_solver(name).solve(tiny).levels)
