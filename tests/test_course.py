"""What is told about learning: the course of the loss, and h(V) before and after."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from qubo_rounding.relaxed.course import BINS, POINTS, Course, histogram
from qubo_rounding.solvers import AdaRound
from qubo_rounding.testing import random_problem


@pytest.mark.parametrize("iterations", [1, 2, 31, 32, 33, 63, 95, 100, 1000])
def test_a_course_has_points_from_the_first_iteration_on(iterations):
    course = Course(iterations)
    for iteration in range(iterations):
        if course.due(iteration):
            course.note(iteration, 2.0 * iteration, 0.5)
    told = course.told()
    points = told["iteration"]
    assert points[0] == 0
    assert min(iterations, POINTS // 2) <= len(points) <= POINTS
    assert iterations - points[-1] <= iterations / len(points)  # to the end, not cut off
    assert len({b - a for a, b in pairwise(points)}) <= 1
    assert told["loss"] == [2 * point for point in points]
    assert set(told["unsettled"]) == {0.5}


def test_a_course_goes_on_from_its_state():
    whole, first = Course(100), Course(100)
    for iteration in range(100):
        for course in (whole, first) if iteration < 50 else (whole,):
            if course.due(iteration):
                course.note(iteration, 1 / (1 + iteration), 0.0)
    second = Course(100)
    second.restore({key: value.clone() for key, value in first.state().items()})
    for iteration in range(50, 100):
        if second.due(iteration):
            second.note(iteration, 1 / (1 + iteration), 0.0)
    assert second.told() == whole.told()


def test_a_histogram_counts_the_undecided():
    h = torch.tensor([0.0, 0.01, 0.5, 1.0, 1.0, 0.7])
    room = torch.tensor([1, 1, 1, 1, 1, 0])
    shares = histogram(h, room)
    assert len(shares) == BINS
    assert sum(shares) == pytest.approx(1)
    assert (shares[0], shares[-1]) == (0.4, 0.4)
    assert histogram(h, torch.zeros(6)) == [0.0] * BINS


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("linear", [True, False])
def test_adaround_tells_the_energy_of_its_soft_levels(normalise, linear):
    problem = random_problem(2, 3, 12, seed=3, linear=linear)
    stats = AdaRound(iterations=3000, normalise=normalise).solve(problem).stats
    course = stats["course"]
    # It begins where the weights are, clipped: no error but the offset and the clipping.
    start = problem.energy(problem.target.clamp(problem.low, problem.high))
    assert course["loss"][0] == pytest.approx(float(start.sum()), rel=1e-5, abs=1e-8)
    final = AdaRound(iterations=3000, normalise=normalise).solve(problem)
    if final.stats["unsettled"] == 0:  # soft levels are hard ones at the end
        assert course["loss"][-1] == pytest.approx(float(final.energy.sum()), rel=0.05)
    assert stats["h_before"] != stats["h_after"]
    assert stats["h_after"][0] + stats["h_after"][-1] > 0.9
