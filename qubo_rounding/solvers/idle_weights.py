"""Weights whose level does not matter, so that no search need spend its time on them."""

from __future__ import annotations

from dataclasses import replace

import torch

from qubo_rounding.problem import RoundingProblem


def fix_idle(problem: RoundingProblem) -> RoundingProblem:
    """The same problem with every weight that cannot change the energy fixed at nearest.

    These are the columns that nothing flows into: their row of the Gram matrix is zero, and so is
    the linear term. Calibration says nothing of them, and nearest is the safest guess.
    """
    idle = ~problem.gram.any(dim=1).unsqueeze(1)
    if problem.linear is not None:
        idle = idle & (problem.linear == 0)
    nearest = problem.nearest()
    low, high = (torch.where(idle, nearest, bound) for bound in (problem.low, problem.high))
    return replace(problem, low=low, high=high)
