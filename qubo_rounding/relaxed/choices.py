"""Between which levels a relaxation chooses, and where it starts between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qubo_rounding.problem import RoundingProblem
from qubo_rounding.relaxed.softening import Relaxation
from qubo_rounding.solution import Solution

_DOUBT = 0.2  # how far from a given level its weight starts: near enough to come back
_CELL = 0.4  # in a range it starts where it was, but no further away: beyond 0.5 it is rounded away


@dataclass(frozen=True)
class Choices:
    """The levels each weight may take.

    Args:
        lowest: int16 (g, r, d).
        room: int32 (g, r, d), levels above the lowest; 0 where there is nothing to choose.
        share: float32 (g, r, d), where in the room the weight starts, 0 to 1.
    """

    lowest: Tensor
    room: Tensor
    share: Tensor


def choices_of(
    problem: RoundingProblem, relaxation: Relaxation, start: Solution | None = None
) -> Choices:
    """What a relaxation chooses between on a problem.

    The two levels of an up/down problem, or those around the target; with a start its level and
    the neighbour that alone would cost least. Or the whole range, where the relaxation takes it;
    with a start each weight begins as near to its target as still is rounded to the start's level.

    Args:
        problem: the problem.
        relaxation: knows whether it takes ranges.
        start: levels to begin near; None begins where the weights are.
    """
    if relaxation.takes_ranges:
        at = problem.target
        if start is not None:
            at = torch.maximum(torch.minimum(at, start.levels + _CELL), start.levels - _CELL)
        return _between(problem.low, problem.high, at)
    if start is not None:
        return _around(problem, start.levels)
    if problem.is_binary:
        return _between(problem.low, problem.high, problem.target)
    below, above = (
        torch.maximum(torch.minimum(t, problem.high), problem.low).to(torch.int16)
        for t in (problem.target.floor(), problem.target.ceil())
    )
    return _between(below, above, problem.target)


def _between(low: Tensor, high: Tensor, at: Tensor) -> Choices:
    room = high.int() - low.int()
    return Choices(low, room, ((at - low) / room.clamp_min(1)).clamp(0, 1).float())


def _around(problem: RoundingProblem, levels: Tensor) -> Choices:
    one = torch.ones_like(levels)
    up = problem.flip_gain(levels, one).where(levels < problem.high, torch.inf)
    down = problem.flip_gain(levels, -one).where(levels > problem.low, torch.inf)
    room = (problem.high > problem.low).int()
    goes_down = (down < up).int()
    lowest = (levels - goes_down * room).to(torch.int16)
    share = torch.where(goes_down > 0, 1 - _DOUBT, _DOUBT).where(room > 0, 0.0)
    return Choices(lowest, room, share.float())
