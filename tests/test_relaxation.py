"""The relaxation's functions against their formulas and their derivatives against autograd."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_rounding.relaxed.relaxation import (
    annealing_progress,
    beta_at,
    inverse_rectified_sigmoid,
    rectified_sigmoid,
    rounding_regulariser,
    rounding_regulariser_slope,
)

V = torch.linspace(-6, 6, 241, dtype=torch.float64)
H = torch.linspace(0, 1, 101, dtype=torch.float64)


def test_rectified_sigmoid_is_equation_23() -> None:
    h, slope = rectified_sigmoid(V.clone())
    v = V.clone().requires_grad_()
    expected = (1.2 / (1 + (-v).exp()) - 0.1).clamp(0, 1)
    expected.sum().backward()
    assert torch.allclose(h, expected, atol=1e-14)
    assert v.grad is not None
    assert torch.allclose(slope, v.grad, atol=1e-14)


def test_rectified_sigmoid_reaches_its_ends_and_stops_there() -> None:
    h, slope = rectified_sigmoid(torch.tensor([-3.0, 3.0]))
    assert h.tolist() == [0, 1]
    assert slope.tolist() == [0, 0]


def test_rectified_sigmoid_leaves_its_argument_alone() -> None:
    v = V.clone()
    rectified_sigmoid(v)
    assert torch.equal(v, V)


@settings(max_examples=50, deadline=None)
@given(h=st.floats(0, 1))
def test_inverse_gives_the_fraction_back(h: float) -> None:
    v = inverse_rectified_sigmoid(torch.tensor(h, dtype=torch.float64))
    assert float(rectified_sigmoid(v)[0]) == pytest.approx(h, abs=1e-12)


@pytest.mark.parametrize("beta", [2.0, 2.5, 7.0, 20.0])
def test_regulariser_is_equation_24_with_its_derivative(beta: float) -> None:
    h = H.clone().requires_grad_()
    value = rounding_regulariser(h, beta)
    assert value.tolist() == pytest.approx([1 - abs(2 * x - 1) ** beta for x in H.tolist()])
    value.sum().backward()
    assert h.grad is not None
    assert torch.allclose(rounding_regulariser_slope(H, beta), h.grad, atol=1e-12)


def test_regulariser_vanishes_where_bits_are_settled() -> None:
    ends = torch.tensor([0.0, 1.0])
    assert rounding_regulariser(ends, 2.0).tolist() == [0, 0]
    assert float(rounding_regulariser(torch.tensor(0.5), 2.0)) == 1
    assert float(rounding_regulariser_slope(torch.tensor(0.5), 2.0)) == 0


def test_beta_falls_along_half_a_cosine() -> None:
    assert beta_at(0.0) == 20
    assert beta_at(1.0) == pytest.approx(2)
    assert beta_at(0.5) == pytest.approx(11)
    assert beta_at(1 / 3, 10, 4) == pytest.approx(4 + 6 * (1 + math.cos(math.pi / 3)) / 2)
    betas = [beta_at(k / 100) for k in range(101)]
    assert betas == sorted(betas, reverse=True)


def test_beta_stays_at_its_ends_outside_the_annealing() -> None:
    assert beta_at(-0.3) == beta_at(0.0)
    assert beta_at(1.2) == beta_at(1.0)


def test_beta_may_fall_along_a_line() -> None:
    betas = [beta_at(k / 4, 10, 2, "linear") for k in range(5)]
    assert betas == pytest.approx([10, 8, 6, 4, 2])


def test_the_annealing_begins_when_the_warm_start_ends() -> None:
    assert annealing_progress(0.199, 0.2) is None
    assert annealing_progress(0.2, 0.2) == 0
    assert annealing_progress(0.6, 0.2) == pytest.approx(0.5)
    assert annealing_progress(0.0, 0.0) == 0
