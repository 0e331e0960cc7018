"""Metropolis sweeps on a GPU: a Triton kernel walks a block of columns, a product tells the others.

The proposals, their random numbers and the rule of acceptance are those of metropolis.py. Slopes
are summed in another order, so that a decision on the edge may fall differently; and blocks may be
wider than there, with other pairs.

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
from qubo_rounding.solvers.partners import Pairing
from qubo_rounding.solvers.sweeps import Sweeps, warmth

_BLOCK = 64  # columns a walk
_ROWS = 4  # a program: a warp holds them and the slopes of a block in registers


class DeviceSweeps(Sweeps):
    """On the device where the problem lies; see `Sweeps`."""

    def __init__(self, problem: RoundingProblem, start: Tensor) -> None:
        d, device = problem.d, problem.device
        pairing = Pairing.of(problem.gram, _BLOCK)
        self._order = torch.from_numpy(pairing.order).to(device).unsqueeze(1)
        self._pairs = torch.from_numpy(pairing.pairs.astype(np.int32)).to(device)

        def wide(tensor: Tensor, dtype: torch.dtype) -> Tensor:
            ordered = tensor.to(dtype).gather(2, self._order.expand(-1, tensor.shape[1], -1))
            return pad(ordered, (0, -d % _BLOCK)).contiguous()

        rows = wide(problem.gram, torch.float32)[..., :d].mT
        self._gram = pad(wide(rows, torch.float32), (0, 0, 0, -d % _BLOCK)).contiguous()
        self._scale = wide(problem.scale.expand_as(start), torch.float32)
        self._low, self._high = (wide(t, torch.int32) for t in (problem.low, problem.high))
        self._start = wide(problem.gradient(start) / 2, torch.float32), wide(start, torch.int32)
        self._warmth = warmth(problem, start)
        self._moves = self._scale.new_zeros(*start.shape[:2], _BLOCK)
        self._d = d

    def begin(self, keys: np.ndarray) -> None:
        """See `Sweeps.begin`."""
        self._slope, self._levels = (tensor.clone() for tensor in self._start)
        self._keys = torch.from_numpy(keys.view(np.int64)).to(self._slope.device)
        self._made = torch.zeros_like(self._keys)

    @property
    def levels(self) -> Tensor:
        """See `Sweeps.levels`."""
        found = self._levels[..., : self._d].to(torch.int16)
        return torch.empty_like(found).scatter_(2, self._order.expand_as(found), found)

    @property
    def accepted(self) -> int:
        """See `Sweeps.accepted`."""
        return int(self._made.sum())

    def run(self, temperatures: np.ndarray, first: int) -> None:
        """See `Sweeps.run`."""
        g, r, width = self._slope.shape
        matchings, blocks = self._pairs.shape[1:3]
        grid = (triton.cdiv(r, _ROWS), g)
        for number, temperature in enumerate(temperatures.tolist(), first):
            matching = number // 2 % matchings
            for block in range(blocks):
                begin = block * _BLOCK
                _walk[grid](  # pyright: ignore[reportIndexIssue]
                    *(self._gram, self._slope, self._scale, self._low, self._high, self._levels),
                    *(self._keys, self._warmth, self._pairs, self._moves, self._made),
                    *(temperature, number * self._d + begin, r, width, begin),
                    *(matching * blocks + block, matchings * blocks),
                    paired=number % 2 == 1,
                    rows_at_once=_ROWS,
                    block=_BLOCK,
                    num_warps=1,  # pyright: ignore[reportCallIssue]
                )
                # The walk kept its block's slopes to itself: here they change with all others.
                rows = self._gram[:, begin : begin + _BLOCK]
                self._slope.baddbmm_(self._moves, rows)


@triton.jit(do_not_specialize=["step", "begin", "matching"])
def _walk(  # pyright: ignore
    gram,
    slope,
    scale,
    low,
    high,
    levels,
    keys,
    warmth,
    pairs,
    moves,
    made,
    temperature,
    step,
    r,
    width,
    begin,
    matching,
    matchings,
    paired: tl.constexpr,
    rows_at_once: tl.constexpr,
    block: tl.constexpr,
):
    """One proposal for each column of a block in turn, or for each pair, in some rows of a group.

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
    warm = temperature * tl.load(warmth + row, mask=there, other=0.0)
    limit = -warm[:, None] * tl.log(uniform)
    is_up = (bits & 1) != 0

    lowest = tl.load(low + at, mask=mask, other=0)
    highest = tl.load(high + at, mask=mask, other=0)
    level = tl.load(levels + at, mask=mask, other=0)
    is_wide = highest - lowest > 1
    flip = lowest + highest - 2 * level
    rise = tl.where(is_wide, (level < highest).to(tl.int32), flip)
    fall = tl.where(is_wide, -(level > lowest).to(tl.int32), flip)
    steps = tl.load(scale + at, mask=mask, other=0.0)
    up, down = steps * rise.to(tl.float32), steps * fall.to(tl.float32)

    square = gram + group * width * width + begin * width + begin
    slopes = tl.load(slope + at, mask=mask, other=0.0)
    done = tl.zeros_like(steps)
    count = tl.zeros_like(row)
    if paired:
        left = pairs + (group * matchings + matching) * block
        for m in range(block // 2):
            j, k = tl.load(left + m), tl.load(left + block // 2 + m)
            at_j, at_k, here = (
                (column == j)[None, :],
                (column == k)[None, :],
                (column == m)[None, :],
            )
            first_is_up = tl.sum(tl.where(here & is_up, 1, 0), axis=1) > 0
            across = tl.load(square + j * width + k)
            second_is_up = first_is_up == (across < 0)
            up_j = tl.sum(tl.where(at_j, up, 0.0), axis=1)
            down_j = tl.sum(tl.where(at_j, down, 0.0), axis=1)
            up_k = tl.sum(tl.where(at_k, up, 0.0), axis=1)
            down_k = tl.sum(tl.where(at_k, down, 0.0), axis=1)
            first = tl.where(first_is_up, up_j, down_j)
            second = tl.where(second_is_up, up_k, down_k)
            curve = first * first * tl.load(square + j * (width + 1))
            curve += second * second * tl.load(square + k * (width + 1))
            curve += 2.0 * first * second * across
            slope_j = tl.sum(tl.where(at_j, slopes, 0.0), axis=1)
            slope_k = tl.sum(tl.where(at_k, slopes, 0.0), axis=1)
            gain = 2.0 * (first * slope_j + second * slope_k) + curve
            most = tl.sum(tl.where(here, limit, 0.0), axis=1)
            can = (first != 0.0) & (second != 0.0) & (j != k)
            wanted = can & (gain < most) & (gain != 0.0)
            first, second = tl.where(wanted, first, 0.0), tl.where(wanted, second, 0.0)
            slopes += first[:, None] * tl.load(square + j * width + column)[None, :]
            slopes += second[:, None] * tl.load(square + k * width + column)[None, :]
            done += tl.where(at_j, first[:, None], 0.0) + tl.where(at_k, second[:, None], 0.0)
            count += wanted.to(tl.int64)
    else:
        move = tl.where(is_up, up, down)
        curve = move * move * tl.load(square + column * (width + 1))[None, :]
        for c in range(block):
            here = (column == c)[None, :]
            gain = tl.sum(tl.where(here, 2.0 * move * slopes + curve, 0.0), axis=1)
            most = tl.sum(tl.where(here, limit, 0.0), axis=1)
            wanted = (gain < most) & (gain != 0.0)
            change = tl.where(wanted, tl.sum(tl.where(here, move, 0.0), axis=1), 0.0)
            slopes += change[:, None] * tl.load(square + c * width + column)[None, :]
            done = tl.where(here, change[:, None], done)
            count += wanted.to(tl.int64)
    tl.store(moves + row[:, None] * block + column[None, :], done, mask=mask)
    taken = tl.where(done > 0.0, rise, tl.where(done < 0.0, fall, 0))
    tl.store(levels + at, level + taken, mask=mask)
    tl.store(made + row, tl.load(made + row, mask=there, other=0) + count, mask=there)
