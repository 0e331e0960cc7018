"""The local loss: moments against outputs measured sample by sample."""

import pytest
import torch

from qubo_rounding.grid import fit_grid
from qubo_rounding.local_loss import bias_shift, local_problem, output_error
from qubo_rounding.statistics import Gram

G, R, D, N = 2, 3, 5, 40


def samples(seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(G, N, D, generator=draw, dtype=torch.float64).relu() + 0.3


def gram_from(x: torch.Tensor, x_q: torch.Tensor | None = None) -> Gram:
    paired = {}
    if x_q is not None:
        paired = {"second_q": x_q.mT @ x_q, "cross": x.mT @ x_q, "total_q": x_q.sum(1)}
    return Gram(second=x.mT @ x, total=x.sum(1), count=N, **paired)


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(G, R, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("bias", ["keep", "refit"])
def test_the_energy_is_the_measured_output_error(weight, paired, bias):
    x = samples(2)
    x_q = x + 0.1 * samples(3) if paired else x
    gram = gram_from(x, x_q if paired else None)
    grid = fit_grid(weight, 3)
    problem = local_problem(weight, grid, gram, bias=bias)
    levels = grid.quantize(weight)
    rounded = grid.dequantize(levels)
    shift = bias_shift(weight, rounded, gram, bias)
    error = rounded @ x_q.mT + shift.unsqueeze(2) - weight @ x.mT
    measured = error.square().mean(dim=2)
    assert torch.allclose(problem.energy(levels), measured, rtol=1e-9)
    assert torch.allclose(output_error(weight, rounded, shift, gram), measured, rtol=1e-9)


def test_the_refitted_bias_leaves_no_mean_error_and_no_better_one_exists(weight):
    x = samples(4)
    gram = gram_from(x)
    rounded = fit_grid(weight, 3).dequantize(fit_grid(weight, 3).quantize(weight))
    shift = bias_shift(weight, rounded, gram)
    mean_error = (rounded @ x.mT + shift.unsqueeze(2) - weight @ x.mT).mean(dim=2)
    assert float(mean_error.abs().max()) < 1e-12
    best = output_error(weight, rounded, shift, gram)
    for nudge in (-1e-3, 1e-3):
        assert bool((output_error(weight, rounded, shift + nudge, gram) > best).all())


def test_kept_biases_are_not_shifted(weight):
    assert not bias_shift(weight, weight * 1.1, gram_from(samples(5)), "keep").any()


def test_free_candidates_allow_the_whole_grid(weight):
    grid = fit_grid(weight, 3)
    problem = local_problem(weight, grid, gram_from(samples(6)), candidates="free")
    assert bool((problem.low == -4).all())
    assert bool((problem.high == 3).all())


@pytest.mark.parametrize("wrong", [{"bias": "drop"}, {"candidates": "all"}])
def test_other_words_are_refused(weight, wrong):
    with pytest.raises(ValueError, match="give"):
        local_problem(weight, fit_grid(weight, 3), gram_from(samples(7)), **wrong)
