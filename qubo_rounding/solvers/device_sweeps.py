"""Metropolis sweeps on a GPU: a Triton kernel walks a block of columns, a product tells the others.

The proposals, their random numbers and the rule of acceptance are those of metropolis.py. Slopes
are summed in another order, so that a decision on the edge may fall differently.

Source: blocks as in GPTQ's lazy batches (Frantar et al. 2023, arXiv 2210.17323).
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from qubo_rounding.problem import RoundingProblem
from qubo_rounding.solvers.metropolis import Sweeps

_BLOCK = 64  # columns a walk
_ROWS = 4  # a program: a warp holds them and the slopes of a block in registers


class DeviceSweeps(Sweeps):
    """On the device where the problem lies; see `Sweeps`."""

    def __init__(self, problem: RoundingProblem, start: Tensor, keys: np.ndarray) -> None:
        more = -problem.d % _BLOCK

        def wide(tensor: Tensor, dtype: torch.dtype) -> Tensor:
            return pad(tensor.to(dtype), (0, more)).contiguous()

        gram = problem.gram.float()
        self._gram = pad(gram, (0, more, 0, more)).contiguous()
        self._slope = wide(problem.gradient(start) / 2, torch.float32)
        self._scale = wide(problem.scale.expand_as(start), torch.float32)
        self._low, self._high = (wide(t, torch.int32) for t in (problem.low, problem.high))
        self._levels = wide(start, torch.int32)
        self._keys = torch.from_numpy(keys.view(np.int64)).to(problem.device)
        self._moves = self._slope.new_zeros(*start.shape[:2], _BLOCK)
        self._made = torch.zeros_like(self._keys)
        self._d = problem.d

    @property
    def levels(self) -> Tensor:
        """See `Sweeps.levels`."""
        return self._levels[..., : self._d].to(torch.int16)

    @property
    def accepted(self) -> int:
        """See `Sweeps.accepted`."""
        return int(self._made.sum())

    def run(self, temperatures: np.ndarray, first: int) -> None:
        """See `Sweeps.run`."""
        g, r, width = self._slope.shape
        grid = (triton.cdiv(r, _ROWS), g)
        for number, temperature in enumerate(temperatures.tolist(), first):
            for begin in range(0, width, _BLOCK):
                _walk[grid](  # pyright: ignore[reportIndexIssue]
                    *(self._gram, self._slope, self._scale, self._low, self._high, self._levels),
                    *(self._keys, self._moves, self._made, temperature),
                    *(number * self._d + begin, r, width, begin),
                    rows_at_once=_ROWS,
                    block=_BLOCK,
                    num_warps=1,  # pyright: ignore[reportCallIssue]
                )
                # The walk kept its block's slopes to itself: here they change with all others.
                rows = self._gram[:, begin : begin + _BLOCK]
                self._slope.baddbmm_(self._moves, rows)


@triton.jit(do_not_specialize=["step", "begin"])
def _walk(  # pyright: ignore
    gram,
    slope,
    scale,
    low,
    high,
    levels,
    keys,
    moves,
    made,
    temperature,
    step,
    r,
    width,
    begin,
    rows_at_once: tl.constexpr,
    block: tl.constexpr,
):
    """Propose one move for each column of a block in turn, for some rows of a group.

    Writes the moves that were made, zero elsewhere, and the levels after them.
    """
    group = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * rows_at_once + tl.arange(0, rows_at_once)
    there = row < r
    row = group * r + row
    column = tl.arange(0, block)
    at = row[:, None] * width + begin + column[None, :]
    mask = there[:, None]

    key = tl.load(keys + row, mask=there, other=0).to(tl.uint64, bitcast=True)
    z = key[:, None] + (step + column + 1).to(tl.uint64)[None, :] * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    bits = z ^ (z >> 31)
    uniform = (bits >> 40).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08 + 2.98023224e-08
    limit = -temperature * tl.log(uniform)
    way = (bits & 1).to(tl.int32) * 2 - 1

    lowest = tl.load(low + at, mask=mask, other=0)
    highest = tl.load(high + at, mask=mask, other=0)
    level = tl.load(levels + at, mask=mask, other=0)
    jump = tl.where(highest - lowest > 1, way, lowest + highest - 2 * level)
    allowed = (level + jump >= lowest) & (level + jump <= highest)
    move = tl.load(scale + at, mask=mask, other=0.0) * tl.where(allowed, jump, 0).to(tl.float32)

    square = gram + group * width * width + begin * width + begin
    curve = move * move * tl.load(square + column * (width + 1))[None, :]
    slopes = tl.load(slope + at, mask=mask, other=0.0)
    done = tl.zeros_like(move)
    for c in range(block):
        here = (column == c)[None, :]
        gain = tl.sum(tl.where(here, 2.0 * move * slopes + curve, 0.0), axis=1)
        most = tl.sum(tl.where(here, limit, 0.0), axis=1)
        wanted = (gain < most) & (gain != 0.0)
        change = tl.where(wanted, tl.sum(tl.where(here, move, 0.0), axis=1), 0.0)
        slopes += change[:, None] * tl.load(square + c * width + column)[None, :]
        done = tl.where(here, change[:, None], done)
    moved = done != 0.0
    tl.store(moves + row[:, None] * block + column[None, :], done, mask=mask)
    tl.store(levels + at, tl.where(moved, level + jump, level), mask=mask)
    count = tl.load(made + row, mask=there, other=0) + tl.sum(moved.to(tl.int64), axis=1)
    tl.store(made + row, count, mask=there)
