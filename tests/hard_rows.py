"""Problems that exact methods have to get right, hundreds of rows each, all enumerable."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import torch
from reference_bounds import exact_optimum
from torch import Tensor

from qubo_rounding.problem import RoundingProblem
from qubo_rounding.testing import random_problem


def _duplicated_columns() -> RoundingProblem:
    problem = random_problem(2, 100, 10, seed=21)
    gram = problem.gram.clone()
    gram[:, 5:] = gram[:, :5]
    gram[:, :, 5:] = gram[:, :, :5]
    return replace(problem, gram=gram)


def _zero_columns() -> RoundingProblem:
    problem = random_problem(2, 100, 10, seed=22)
    gram = problem.gram.clone()
    gram[:, [0, 7]], gram[:, :, [0, 7]] = 0, 0
    return replace(problem, gram=gram)


def _fixed_weights() -> RoundingProblem:
    problem = random_problem(2, 100, 10, seed=23, linear=True)
    fixed = torch.rand(problem.target.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    return replace(problem, high=torch.where(fixed, problem.low, problem.high))


def _scaled(factor: float) -> RoundingProblem:
    problem = random_problem(2, 100, 10, seed=24)
    return replace(problem, gram=problem.gram * factor)


def _scale_per_column() -> RoundingProblem:
    problem = random_problem(2, 100, 10, seed=25)
    draw = torch.Generator().manual_seed(2)
    factor = 10 ** (2 * torch.rand(problem.target.shape, generator=draw, dtype=torch.float64) - 1)
    return replace(problem, scale=problem.scale * factor)


def _only_linear() -> RoundingProblem:
    problem = random_problem(2, 50, 8, seed=26, linear=True)
    return replace(problem, gram=torch.zeros_like(problem.gram))


def _dead_columns_that_pull() -> RoundingProblem:
    problem = random_problem(2, 50, 8, seed=27, linear=True)
    gram = problem.gram.clone()
    gram[:, [1, 4]], gram[:, :, [1, 4]] = 0, 0
    return replace(problem, gram=gram)


def _hardly_curved() -> RoundingProblem:
    """Wide weights whose linear term is far greater than anything the Gram matrix says."""
    problem = random_problem(2, 50, 4, seed=28, bits=2, free=True, linear=True)
    return replace(problem, gram=1e-20 * problem.gram)


def _one_column() -> RoundingProblem:
    problem = random_problem(2, 50, 1, seed=19, linear=True)
    return replace(problem, high=problem.low + 1)


def indefinite(seed: int, free: bool = False) -> RoundingProblem:
    """A Gram matrix with eigenvalues of both signs, as a task Hessian has."""
    problem = random_problem(2, 20, 5 if free else 10, seed=seed, bits=2, free=free, linear=True)
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(problem.gram.shape, generator=draw, dtype=torch.float64)
    return replace(problem, gram=problem.gram + (noise + noise.mT) / 2)


def huge_errors_that_cancel(seed: int) -> RoundingProblem:
    """Two fixed weights err by a million steps, and hardly anything reaches the output."""
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(1, 5, 1, generator=draw, dtype=torch.float64)
    target = torch.randn(1, 20, 5, generator=draw, dtype=torch.float64)
    target[..., 0] = 1e6 * (1 + torch.rand(20, generator=draw, dtype=torch.float64))
    target[..., 1] = -target[..., 0] * inputs[0, 0] / inputs[0, 1]
    low = target.clamp(-9, 9).floor().to(torch.int16)
    low[..., :2] = 0
    high = low + torch.tensor([0, 0, 1, 1, 1], dtype=torch.int16)
    scale = torch.ones(1, 20, 1, dtype=torch.float64)
    return RoundingProblem(inputs @ inputs.mT, target, scale, low, high)


def assert_below_in_exact_arithmetic(
    bound: Tensor, problem: RoundingProblem, gram: Tensor | None = None
) -> None:
    """No bound (1, r) above the row's optimum, with the problem's Gram matrix or the one given."""
    matrix = (problem.gram if gram is None else gram)[0].numpy()
    tensors = (problem.target, problem.scale.expand_as(problem.target), problem.low, problem.high)
    for row in range(problem.r):
        own = (tensor[0, row].numpy() for tensor in tensors)
        assert Fraction(float(bound[0, row])) <= exact_optimum(matrix, *own)


HARD_ROWS = {
    "dense": random_problem(3, 200, 10, seed=11),
    "linear": random_problem(2, 100, 10, seed=12, linear=True),
    "rank 3": random_problem(2, 100, 10, seed=13, rank=3),
    "rank 1": random_problem(2, 100, 10, seed=14, rank=1),
    "duplicated columns": _duplicated_columns(),
    "zero columns": _zero_columns(),
    "only linear": _only_linear(),
    "dead columns that pull": _dead_columns_that_pull(),
    "fixed weights": _fixed_weights(),
    "tiny": _scaled(1e-25),
    "huge": _scaled(1e25),
    "scale per column": _scale_per_column(),
    "free, 2 bits": random_problem(2, 60, 5, seed=15, bits=2, free=True),
    "free, 3 bits": random_problem(2, 40, 4, seed=16, bits=3, free=True, linear=True),
    "free, rank 2": random_problem(2, 40, 4, seed=17, bits=3, free=True, rank=2),
    "free, rank 3, linear": random_problem(
        2, 75, 5, seed=22, bits=2, free=True, rank=3, linear=True
    ),
    "free, hardly curved": _hardly_curved(),
    "grouped": random_problem(150, 1, 9, seed=18),
    "one column": _one_column(),
}
