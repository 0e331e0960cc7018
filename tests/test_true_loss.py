"""True losses of candidates against networks rounded one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qubo_rounding.layer_problem import LayerSettings
from qubo_rounding.problem import ProblemError, RoundingProblem
from qubo_rounding.qubo import true_loss
from qubo_rounding.qubo.hessian import task_problem
from qubo_rounding.qubo.layer_decisions import rounded_network
from qubo_rounding.qubo.row_hessian import row_hessian_problem
from qubo_rounding.qubo.true_loss import (
    candidate_levels,
    every_energy,
    every_loss,
    total_energies,
    true_losses,
)
from qubo_rounding.solvers import Enumeration
from qubo_rounding.watch import watching
from tests.reference_hessian import mean_loss

CLASSES = 2


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv1d(2, 2, 2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(4, CLASSES))
    return nn.Sequential(*layers).double().eval()


def batches() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(n, 2, 3, generator=draw, dtype=torch.float64),
            torch.randint(CLASSES, (n,), generator=draw),
        )
        for n in (4, 7)
    ]


MODEL, DATA = network(), batches()


def joint() -> RoundingProblem:
    settings = LayerSettings(bits=2, bias="keep")
    return task_problem(MODEL, ["3", "0"], DATA, gradient=True, settings=settings)


def test_true_losses_are_those_of_rounded_networks() -> None:
    problem = joint()
    numbers = torch.tensor([0, 5, 77, 2 ** int((problem.high > problem.low).sum()) - 1])
    levels = candidate_levels(problem, numbers)
    assert torch.equal(levels[0], problem.low)
    assert torch.equal(levels[-1], problem.high)
    expected = [
        mean_loss(rounded_network(MODEL, problem, one), DATA, F.cross_entropy) for one in levels
    ]
    assert len(set(expected)) == len(numbers)
    found = true_losses(MODEL, problem, levels, DATA)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    energies = [float(problem.energy(one)) for one in levels]
    torch.testing.assert_close(
        total_energies(problem, levels), torch.tensor(energies, dtype=torch.float64)
    )


def test_every_candidate_is_looked_at_once_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = joint()
    free = int((problem.high > problem.low).sum())
    assert 4 < free < 14
    levels = candidate_levels(problem, torch.arange(2**free))
    assert len(levels.flatten(1).unique(dim=0)) == 2**free
    energies, losses = every_energy(problem), every_loss(MODEL, problem, DATA)
    torch.testing.assert_close(losses, true_losses(MODEL, problem, levels, DATA))
    assert float(energies.min()) == pytest.approx(float(Enumeration().solve(problem).energy))
    monkeypatch.setattr(true_loss, "CANDIDATES", 37)
    monkeypatch.setattr(true_loss, "TOGETHER", 1)
    torch.testing.assert_close(every_energy(problem), energies)
    torch.testing.assert_close(every_loss(MODEL, problem, DATA), losses)


def squared(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs - labels[:, None]).square().sum(1).mean()


def test_a_quadratic_loss_is_foreseen_exactly_as_a_whole_and_by_rows() -> None:
    before = mean_loss(MODEL, DATA, squared)
    whole = task_problem(MODEL, "3", DATA, loss=squared, gradient=True)
    rows = row_hessian_problem(MODEL, "3", DATA, loss=squared)
    assert whole.linear is not None
    rows = replace(rows, linear=whole.linear.reshape(rows.target.shape))
    for problem in (whole, rows):
        change = every_loss(MODEL, problem, DATA, loss=squared) - before
        torch.testing.assert_close(change, every_energy(problem))


def test_what_cannot_be_looked_at_is_refused() -> None:
    problem = joint()
    with pytest.raises(ProblemError, match=r"give \(k, g, r, d\)"):
        true_losses(MODEL, problem, problem.low, DATA)
    with pytest.raises(ProblemError, match=r"give \(k, g, r, d\)"):
        total_energies(problem, problem.low)
    wide = replace(problem, high=problem.low + 2)
    with pytest.raises(ProblemError, match=r"12 free weights.*up/down"):
        every_energy(wide)
    torch.manual_seed(0)
    large = nn.Sequential(nn.Flatten(), nn.Linear(6, 5)).double().eval()
    many = task_problem(large, "1", DATA)
    with pytest.raises(ProblemError, match="at most 20"):
        every_loss(large, many, DATA)
    nameless = replace(problem, meta={})
    with pytest.raises(ProblemError, match="names no layers"):
        every_loss(MODEL, nameless, DATA)


def test_a_time_limit_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = joint()
    monkeypatch.setattr(true_loss, "CANDIDATES", 8)
    with watching(time_limit=1e-9), pytest.raises(TimeoutError, match="candidates"):
        every_loss(MODEL, problem, DATA)
