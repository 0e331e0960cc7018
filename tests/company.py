"""Solving in other company: on other numbers of threads, without the other rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from qubo_rounding.problem import RoundingProblem
from qubo_rounding.solvers import Solver


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def levels_in_any_company(solver: Solver, problem: RoundingProblem, rows: Iterable[int]) -> Tensor:
    """The levels of seed 3, the same for each of these rows alone and with other threads."""
    together = solver.solve(problem, seed=3).levels
    for row in rows:
        at = slice(row, row + 1)
        assert torch.equal(solver.solve(problem.part(rows=at), seed=3).levels, together[:, at])
    with torch_threads(3 - min(torch.get_num_threads(), 2)):
        assert torch.equal(solver.solve(problem, seed=3).levels, together)
    return together
