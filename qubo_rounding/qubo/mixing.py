"""Unit vectors for the semidefinite relaxation of rows that share a Gram matrix.

Each spin becomes a unit vector v_j, and one more, v_0, takes the place of the number 1 that linear
terms multiply. The vector of one spin is best set against the sum that all others pull it with,

    p_i = sum over j != i of G_ij h_j v_j + b_i v_0,

so the vectors are set one by one, and again, until the pulls keep their directions. Their lengths
are then the diagonal that the relaxation's dual leaves, which is all that a bound needs.

Sweeps are in float32: whatever the vectors are, the bound made of them holds. Pulls are lengths in
float64.

Source: Wang, Chang, Kolter 2017, arXiv 1706.00476 (the mixing method); Burer, Monteiro 2003, Math.
    Program. 95, 329 (low rank).
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from qubo_rounding.parallel import for_each_row
from qubo_rounding.qubo.spin_rows import SpinRows

RANK = 16  # length of the vectors, a multiple of 4; optima have rank 5 to 8, more is not faster
_BEYOND = 0.25  # share of a step that vectors go on beyond their best place
_TINY = 1e-15  # a pull that is none, where rows have unit size
_BLOCK = 64  # spins whose pulls are one matrix product, where rows are swept together


def pull_lengths(rows: SpinRows, sweeps: int) -> Tensor:
    """(g, r, d + 1) float64 lengths h_i |p_i| of all pulls after some sweeps; the last is v_0's.

    On a CPU each row is swept by itself, so its numbers do not depend on other rows. Elsewhere all
    rows take each step together.

    Args:
        rows: g x r rows in spin form.
        sweeps: passes over all vectors, each 2 d^2 RANK operations a row.
    """
    g, r, d = rows.half.shape
    start = np.random.default_rng(0).standard_normal((RANK, d + 1))
    start = torch.from_numpy(start / np.linalg.norm(start, axis=0)).to(rows.half)
    held, origin = rows.half.unsqueeze(2) * start[:, :d], start[:, d].expand(g, r, RANK)
    gram = rows.gram - torch.diag_embed(rows.gram.diagonal(dim1=1, dim2=2))
    sweep = sweep_apart if gram.device.type == "cpu" else sweep_together
    held, origin = sweep(
        *(gram.float(), rows.half.float(), rows.slope.float(), held.float(), origin.float()), sweeps
    )
    held, origin = held.double(), origin.double()
    # Exactly unit vectors again: float32 and steps beyond the best place have changed them a bit.
    held *= (rows.half / held.norm(dim=2).clamp_min(_TINY)).unsqueeze(2)
    origin = origin / origin.norm(dim=2, keepdim=True)
    pulls = (held.flatten(1, 2) @ gram).view_as(held)
    pulls += rows.slope.unsqueeze(2) * origin.unsqueeze(3)
    last = (held @ rows.slope.unsqueeze(3)).squeeze(3)
    return torch.cat([rows.half * pulls.norm(dim=2), last.norm(dim=2, keepdim=True)], dim=2)


def sweep_apart(
    gram: Tensor, half: Tensor, slope: Tensor, held: Tensor, origin: Tensor, sweeps: int
) -> tuple[Tensor, Tensor]:
    """The vectors after some sweeps, row by row in a compiled kernel, on torch's threads.

    Args:
        gram: (g, d, d) float32, as all others; its diagonal is zero.
        half, slope: (g, r, d).
        held: (g, r, RANK, d) the vectors h_j v_j; left untouched.
        origin: (g, r, RANK) v_0; left untouched.
        sweeps: passes over all vectors.
    """
    g, r, d = half.shape
    odd = d % 2  # the kernel treats spins in pairs; one that is added pulls nothing
    square = pad(gram, (0, odd, 0, odd)).numpy()
    steps, tilts = pad(half, (0, odd)).numpy(), pad(slope, (0, odd)).numpy()
    vectors, first = pad(held, (0, odd)).contiguous().numpy(), origin.numpy().copy()

    def sweep_row(group: int, row: int) -> None:
        at = (group, row)
        _sweep(square[group], steps[at], tilts[at], vectors[at], first[at], sweeps)

    for_each_row(g, r, sweep_row, "vectors")
    return torch.from_numpy(vectors)[..., :d], torch.from_numpy(first)


@numba.njit(cache=True, nogil=True, fastmath=True)
def _sweep(gram, half, slope, held, origin, sweeps):  # pyright: ignore
    """Sweeps over the vectors of one row, held (RANK, d), in place; d is even."""
    rank, d = held.shape
    pull, other = np.empty(rank, np.float32), np.empty(rank, np.float32)
    for _ in range(sweeps):
        for i in range(0, d, 2):
            _sum_pair(gram[i], gram[i + 1], held, pull, other)
            _move(pull, half[i], slope[i], origin, held[:, i])
            for k in range(rank):
                other[k] += gram[i, i + 1] * pull[k]
            _move(other, half[i + 1], slope[i + 1], origin, held[:, i + 1])
        length = np.float32(0)
        for k in range(rank):
            pull[k] = 0
            for j in range(d):
                pull[k] += slope[j] * held[k, j]
            length += pull[k] * pull[k]
        if length > np.float32(_TINY**2):
            for k in range(rank):
                origin[k] = -pull[k] / np.sqrt(length)


@numba.njit(cache=True, nogil=True, fastmath=True)
def _sum_pair(row, next_row, held, pull, other):  # pyright: ignore
    """Write held @ row into `pull` and held @ next_row into `other`.

    One pass over the vectors, which come from the second-level cache, serves both, and two by four
    sums stay in registers: nearly the speed of a matrix product.
    """
    rank, d = held.shape
    for k in range(0, rank, 4):
        a, b, c, e = held[k], held[k + 1], held[k + 2], held[k + 3]
        a0 = b0 = c0 = e0 = a1 = b1 = c1 = e1 = np.float32(0)
        for j in range(d):
            x, y = row[j], next_row[j]
            a0 += x * a[j]
            b0 += x * b[j]
            c0 += x * c[j]
            e0 += x * e[j]
            a1 += y * a[j]
            b1 += y * b[j]
            c1 += y * c[j]
            e1 += y * e[j]
        pull[k], pull[k + 1], pull[k + 2], pull[k + 3] = a0, b0, c0, e0
        other[k], other[k + 1], other[k + 2], other[k + 3] = a1, b1, c1, e1


@numba.njit(cache=True, nogil=True, fastmath=True)
def _move(pull, half, slope, origin, held):  # pyright: ignore
    """Set one vector against its pull, and a bit beyond; `pull` becomes what it moved by."""
    length = np.float32(0)
    for k in range(len(pull)):
        pull[k] += slope * origin[k]
        length += pull[k] * pull[k]
    pace = half / np.sqrt(max(length, np.float32(_TINY**2)))
    for k in range(len(pull)):
        pull[k] = -np.float32(1 + _BEYOND) * (pace * pull[k] + held[k])
        held[k] += pull[k]


def sweep_together(
    gram: Tensor, half: Tensor, slope: Tensor, held: Tensor, origin: Tensor, sweeps: int
) -> tuple[Tensor, Tensor]:
    """As `sweep_apart`, but each step for all rows at once, in tensor operations of any device.

    The pulls on a block of spins are one matrix product; within the block they learn of each move.
    """
    g, r, rank, d = held.shape
    held, origin = held.permute(0, 3, 1, 2).contiguous(), origin.unsqueeze(1)
    half, slope = (t.mT.unsqueeze(3) for t in (half, slope))  # (g, d, r, 1)
    for _ in range(sweeps):
        for begin in range(0, d, _BLOCK):
            at = slice(begin, min(begin + _BLOCK, d))
            tilt = (slope[:, at] * origin).flatten(2)
            pulls = torch.baddbmm(tilt, gram[:, at], held.flatten(2))
            moves = torch.zeros_like(pulls)
            for i in range(begin, at.stop):
                now = slice(i - begin, i - begin + 1)
                pull = torch.baddbmm(pulls[:, now], gram[:, i : i + 1, at], moves).view(g, r, rank)
                length = pull.norm(dim=2, keepdim=True).clamp_min(_TINY)
                move = -(1 + _BEYOND) * (half[:, i] / length * pull + held[:, i])
                held[:, i] += move
                moves[:, i - begin] = move.flatten(1)
        total = (slope * held).sum(dim=1, keepdim=True)
        length = total.norm(dim=3, keepdim=True)
        origin = torch.where(length > _TINY, -total / length, origin)
    return held.permute(0, 2, 3, 1), origin.squeeze(1)
