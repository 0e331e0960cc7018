"""Simulated annealing of all rows of a layer at once, in sweeps over blocks of columns."""

from __future__ import annotations

from dataclasses import dataclass, field

import numba
import numpy as np
import torch

from qubo_rounding.parallel import for_each_tile
from qubo_rounding.problem import RoundingProblem, Solution
from qubo_rounding.solvers.best_levels import BestLevels
from qubo_rounding.solvers.descent import descend
from qubo_rounding.solvers.gptq import Gptq
from qubo_rounding.solvers.random_numbers import random_bits, stream_keys
from qubo_rounding.solvers.solver import Solver
from qubo_rounding.watch import watched
from qubo_rounding.whole_numbers import check_whole

_BLOCK = 64  # columns of the Gram matrix that stay in cache while all rows of a tile pass over them
_PROPOSALS_PER_CALL = 2**23  # some tens of milliseconds between two looks at the clock


@dataclass(frozen=True)
class Annealing(Solver):
    """The best of several Metropolis runs, each cooled geometrically and ended by descent.

    Temperatures are in units of ``problem.unit``, the mean of scale^2 * G_jj, row by row: at 1 a
    typical lone weight moves freely. A proposal flips an up/down weight, or moves a wider one by
    one level. A row never ends above its start.

    Args (change often):
        sweeps: proposals per weight and read; energy falls slowly with more.
        reads: independent runs; the best is kept for each row.
        start: the solver whose levels the first sweep begins with.
    Args (with caution):
        hot: first temperature. Too cold cannot leave the start's valley, too hot forgets it.
        cold: last temperature; ill-conditioned layers still move at 0.003, others no longer.

    Source: Kirkpatrick, Gelatt, Vecchi 1983; Metropolis et al. 1953. Blocks as in GPTQ's lazy
        batches (arXiv 2210.17323), counter-based random numbers as in Salmon et al. 2011.
    """

    sweeps: int = 1000
    reads: int = 4
    start: Solver = field(default_factory=Gptq)
    hot: float = 0.1
    cold: float = 0.003

    def __post_init__(self) -> None:
        check_whole(1, sweeps=self.sweeps, reads=self.reads)
        if not 0 < self.cold <= self.hot < np.inf:
            raise ValueError(f"give 0 < cold <= hot; they are {self.cold} and {self.hot}.")

    def refuses(self, problem: RoundingProblem) -> str | None:
        """Whatever the start refuses."""
        return self.start.refuses(problem)

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        """The best local minimum of all reads."""
        start = self.start.solve(problem, seed=seed)
        best, shares = BestLevels(problem, start.levels, start.energy), []
        for read in watched(range(self.reads), "reads"):
            annealed, share = self._anneal(problem, start.levels, seed, read)
            best.offer(descend(problem, annealed)[0])
            shares.append(share)
        return problem.solution(
            best.levels,
            reads=len(shares),
            accepted_share=sum(shares) / len(shares),
            energy_start=float(start.energy.sum()),
        )

    def _anneal(
        self, problem: RoundingProblem, start: torch.Tensor, seed: int, read: int
    ) -> tuple[torch.Tensor, float]:
        """Levels after all sweeps of one read, and the share of proposals accepted."""
        problem = problem.normalised()
        gram = problem.gram.float().cpu().numpy()
        slope = (problem.gradient(start) / 2).float().cpu().numpy()
        scale = problem.scale.float().expand_as(problem.target).cpu().contiguous().numpy()
        low, high = problem.low.cpu().numpy(), problem.high.cpu().numpy()
        keys = stream_keys(seed, problem.stream, read)
        levels = start.cpu().numpy().copy()
        accepted = np.zeros(levels.shape[:2], np.int64)
        temperatures = np.geomspace(self.hot, self.cold, self.sweeps).astype(np.float32)

        done, at_once = 0, max(1, _PROPOSALS_PER_CALL // levels.size)
        for first in watched(range(0, self.sweeps, at_once), "annealing"):
            part = temperatures[first : first + at_once]

            def sweep_tile(group: int, rows: slice, part=part, first=first) -> None:
                at = (group, rows)
                _metropolis_sweeps(
                    *(gram[group], slope[at], scale[at], low[at], high[at]),
                    *(part, keys[at], first, levels[at], accepted[at]),
                )

            for_each_tile(problem.g, problem.r, sweep_tile)
            done = first + len(part)
        share = float(accepted.sum()) / (done * levels.size)
        return torch.from_numpy(levels).to(problem.device), share


@numba.njit(cache=True, nogil=True)
def _metropolis_sweeps(gram, slope, scale, low, high, temperatures, keys, first, levels, accepted):  # pyright: ignore
    """Sweeps over all columns; slope (r, d) is half the energy gradient and stays up to date.

    Inside a block of columns a row's moves update the slopes of that block at once; the rest of the
    row follows when the block is done, several moves in one pass over memory. That is the product
    (r x d)(d x d) of a full gradient, but only for the weights that moved.
    """
    rows, d = levels.shape
    columns = np.empty(_BLOCK, np.int64)
    moves = np.empty(_BLOCK, np.float32)
    for s in range(len(temperatures)):
        for begin in range(0, d, _BLOCK):
            end = min(begin + _BLOCK, d)
            for i in range(rows):
                n = _metropolis_block(
                    *(gram, slope[i], scale[i], low[i], high[i], levels[i], begin, end),
                    *(temperatures[s], keys[i], (first + s) * d, columns, moves),
                )
                accepted[i] += n
                _add_moves(gram, slope[i], columns, moves, n, 0, begin)
                _add_moves(gram, slope[i], columns, moves, n, end, d)


@numba.njit(cache=True, nogil=True)
def _metropolis_block(
    gram, slope, scale, low, high, levels, begin, end, temperature, key, step0, columns, moves
):  # pyright: ignore
    """Propose one move for each column in [begin, end) of one row; returns how many it accepted."""
    n = 0
    for c in range(begin, end):
        room = high[c] - low[c]
        if room == 0:
            continue
        step = low[c] + high[c] - 2 * levels[c]
        if room > 1:
            step = 1 if random_bits(key, np.uint64(step0 + c)) & np.uint64(1) else -1
            if not low[c] <= levels[c] + step <= high[c]:
                continue
        move = scale[c] * np.float32(step)
        gain = move * (np.float32(2) * slope[c] + move * gram[c, c])
        if gain == 0:  # a column that nothing flows into stays where it is
            continue
        if gain > 0:
            # exp(-17) is below the smallest uniform number: spare the exponential.
            if gain >= 17 * temperature:
                continue
            bits = random_bits(key, np.uint64(step0 + c))
            uniform = np.float32(bits >> np.uint64(40)) * np.float32(2.0**-24)
            if uniform >= np.exp(-gain / temperature):
                continue
        levels[c] += np.int16(step)
        for j in range(begin, end):
            slope[j] += move * gram[c, j]
        columns[n] = c
        moves[n] = move
        n += 1
    return n


@numba.njit(cache=True, nogil=True)
def _add_moves(gram, slope, columns, moves, n, begin, end):  # pyright: ignore
    """slope[begin:end] += sum of moves[k] * gram[columns[k], begin:end], four moves at a time."""
    k = 0
    while k + 4 <= n:
        a, b, c, e = moves[k], moves[k + 1], moves[k + 2], moves[k + 3]
        row_a, row_b = gram[columns[k]], gram[columns[k + 1]]
        row_c, row_e = gram[columns[k + 2]], gram[columns[k + 3]]
        for j in range(begin, end):
            slope[j] += (a * row_a[j] + b * row_b[j]) + (c * row_c[j] + e * row_e[j])
        k += 4
    while k < n:
        a, row_a = moves[k], gram[columns[k]]
        for j in range(begin, end):
            slope[j] += a * row_a[j]
        k += 1
