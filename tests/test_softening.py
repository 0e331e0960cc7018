"""Relaxations: values, slopes, where they start and how they decide."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_rounding.relaxed.softening import (
    RELAXATIONS,
    KeptLevels,
    PlainSigmoid,
    RectifiedSigmoid,
    Relaxation,
    StraightThrough,
    TemperatureSigmoid,
)
from qubo_rounding.solvers import AdaRound, Descent, Gptq, make_relaxation, make_solver
from qubo_rounding.testing import planted_problem, random_problem

SMOOTH = [RectifiedSigmoid(), PlainSigmoid(), TemperatureSigmoid()]
ONE = torch.ones(1, dtype=torch.int16)


@pytest.mark.parametrize("relaxation", SMOOTH, ids=repr)
@given(v=st.floats(-2, 2), progress=st.floats(0, 0.5))
@settings(deadline=None, max_examples=30)
def test_slopes_are_those_of_the_values(relaxation: Relaxation, v: float, progress: float) -> None:
    at = torch.tensor([v], dtype=torch.float64)
    h, slope = relaxation.soften(at, ONE, progress)
    assert 0 <= float(h) <= 1
    step = 1e-6
    ends = [float(relaxation.soften(at + s, ONE, progress)[0]) for s in (step, -step)]
    numeric = (ends[0] - ends[1]) / (2 * step)
    if 0 < float(h) < 1:
        assert float(slope) == pytest.approx(numeric, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("relaxation", [*SMOOTH, StraightThrough()], ids=repr)
def test_a_start_is_the_share_it_is_given(relaxation: Relaxation) -> None:
    share = torch.linspace(0.05, 0.95, 7)
    room = torch.full((7,), 1000, dtype=torch.int16)  # so wide that rounding to levels is fine
    h, _ = relaxation.soften(relaxation.start(share, room), room, 0.0)
    assert torch.allclose(h, share, atol=1e-3)


@pytest.mark.parametrize("relaxation", SMOOTH, ids=repr)
def test_decisions_cut_at_one_half(relaxation: Relaxation) -> None:
    room = torch.tensor([1, 1, 1, 1], dtype=torch.int16)
    v = relaxation.start(torch.tensor([0.1, 0.45, 0.55, 0.9]), room)
    assert relaxation.decide(v, room).tolist() == [0, 0, 1, 1]
    assert relaxation.decide(v, 0 * room).tolist() == [0, 0, 0, 0]


def test_temperatures_end_in_steps() -> None:
    relaxation = TemperatureSigmoid()
    v = torch.tensor([-0.1, 0.1])
    assert relaxation.unsettled(v, ONE, 0.0) == 1
    assert relaxation.unsettled(v, ONE, 1.0) == 0
    assert relaxation.regulariser_slope(v, 0.9) is None


def test_the_regulariser_waits_for_its_warm_start() -> None:
    h = torch.tensor([0.3])
    for relaxation in (RectifiedSigmoid(warm_start=0.5), PlainSigmoid(warm_start=0.5)):
        assert relaxation.regulariser_slope(h, 0.49) is None
        slope = relaxation.regulariser_slope(h, 1.0)  # beta 2: d (1 - |2h - 1|^2) / dh
        assert slope is not None
        assert float(slope) == pytest.approx(-4 * (2 * 0.3 - 1), rel=1e-5)


def test_straight_through_rounds_forward_and_passes_back() -> None:
    relaxation, room = StraightThrough(), torch.tensor([15, 15, 15, 0], dtype=torch.int16)
    v = torch.tensor([-0.3, 0.49, 7.6, 0.4])
    h, slope = relaxation.soften(v, room, 0.3)
    assert (h * room).round().tolist() == [0, 0, 8, 0]
    assert (slope * 15).tolist() == pytest.approx([1, 1, 1, 15])
    assert relaxation.decide(v, room).tolist() == [0, 0, 8, 0]
    assert relaxation.rate(0.25) == 0.75
    assert RectifiedSigmoid().rate(0.25) == 1


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (RectifiedSigmoid, {"warm_start": 1.0}, "share in"),
        (RectifiedSigmoid, {"warm_start": -0.1}, "share in"),
        (RectifiedSigmoid, {"beta_last": 1.0}, "1 < beta_last"),
        (RectifiedSigmoid, {"beta_first": 2.0, "beta_last": 3.0}, "1 < beta_last"),
        (PlainSigmoid, {"beta_first": float("inf")}, "1 < beta_last"),
        (PlainSigmoid, {"schedule": "steps"}, "'cosine' or 'linear'"),
        (TemperatureSigmoid, {"cold": 0.0}, "0 < cold"),
        (TemperatureSigmoid, {"hot": 1e-5}, "0 < cold"),
    ],
)
def test_settings_out_of_range_are_refused(kind: type, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_relaxations_have_names_on_the_command_line() -> None:
    for name, kind in RELAXATIONS.items():
        assert make_relaxation(name) == kind()
        assert make_solver(f"adaround:relaxation={name}") == AdaRound(relaxation=kind())
    with pytest.raises(ValueError, match="there are rectified_sigmoid, "):
        make_relaxation("sigmoid")


# the solver with other relaxations and with a start


@pytest.mark.parametrize("lr", [1e-4])
def test_straight_through_beats_nearest(lr: float) -> None:
    problem = random_problem(1, 8, 40, seed=3)
    solver = AdaRound(iterations=2000, lr=lr, relaxation=StraightThrough())
    nearest = problem.energy(problem.nearest())
    assert solver.solve(problem).energy.sum() < 0.9 * nearest.sum()


@pytest.mark.parametrize("relaxation", [PlainSigmoid(), TemperatureSigmoid()], ids=repr)
def test_the_other_sigmoids_beat_nearest(relaxation: Relaxation) -> None:
    problem = random_problem(1, 8, 40, seed=3)
    solution = AdaRound(iterations=1000, relaxation=relaxation).solve(problem)
    assert solution.energy.sum() < 0.6 * problem.energy(problem.nearest()).sum()


@pytest.mark.parametrize("start", [Gptq(), Descent()], ids=repr)
@pytest.mark.parametrize("binary", [True, False], ids=["up/down", "free"])
def test_no_row_ends_above_its_start(start: object, binary: bool) -> None:
    problem, _ = planted_problem(1, 6, 12, seed=2)
    if not binary:
        problem = wide(problem)
    solution = AdaRound(iterations=200, start=start).solve(problem)  # pyright: ignore
    begun = start.solve(problem)  # pyright: ignore
    assert bool((solution.energy <= begun.energy).all())


def test_a_start_gives_free_levels() -> None:
    problem = wide(random_problem(1, 16, 40, seed=5))
    two = AdaRound(iterations=500).solve(problem)
    free = AdaRound(iterations=500, start=Descent()).solve(problem)
    around = problem.target.floor(), problem.target.ceil()
    assert bool(((two.levels >= around[0]) & (two.levels <= around[1])).all())
    assert bool(((free.levels < around[0]) | (free.levels > around[1])).any())
    assert free.energy.sum() < Descent().solve(problem).energy.sum()


def wide(problem: object) -> object:
    from dataclasses import replace

    low, high = np.iinfo(np.int16).min // 2, np.iinfo(np.int16).max // 2
    ones = torch.ones_like(problem.low)  # pyright: ignore
    return replace(problem, low=low * ones, high=high * ones)  # pyright: ignore


def test_kept_levels_stay_those_of_the_start() -> None:
    problem = random_problem(1, 4, 20, seed=3)
    start = Gptq().solve(problem)
    solver = AdaRound(iterations=30, lr=1.0, relaxation=KeptLevels(), start=Gptq())
    assert torch.equal(solver.solve(problem).levels, start.levels)
