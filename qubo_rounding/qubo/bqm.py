"""Rows of a rounding problem as dimod binary quadratic models, and samples back as levels."""

from __future__ import annotations

from collections.abc import Mapping

import dimod
import torch
from torch import Tensor

from qubo_rounding.problem import RoundingProblem


def to_bqm(problem: RoundingProblem, group: int = 0, row: int = 0) -> dimod.BinaryQuadraticModel:
    """One row as a binary quadratic model; a sample's energy is the row's energy, offset included.

    Variables are the column numbers of the free weights; 1 stands for `high`, 0 for `low`.

    Raises:
        ProblemError: the problem is not binary.
    """
    quadratic, offset, columns = problem.to_qubo(group, row)
    bqm = dimod.BinaryQuadraticModel(quadratic.cpu().numpy(), "BINARY")
    bqm.offset += offset
    bqm.relabel_variables(dict(enumerate(columns.tolist())))
    return bqm


def levels_from_sample(
    problem: RoundingProblem, sample: Mapping[int, int], group: int = 0, row: int = 0
) -> Tensor:
    """(d,) int16 levels of a sample of `to_bqm(problem, group, row)`."""
    levels = problem.low[group, row].clone()
    columns = torch.tensor([column for column, bit in sample.items() if bit], dtype=torch.long)
    levels[columns] = problem.high[group, row, columns]
    return levels
