"""Tabu search: always the best single flip, up or down, but none that was made just before."""

from __future__ import annotations

from dataclasses import dataclass, field

import numba
import numpy as np
import torch
from torch import Tensor

from qubo_rounding.parallel import for_each_tile
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.solution import Solution
from qubo_rounding.solvers.best_levels import BestLevels
from qubo_rounding.solvers.gptq import Gptq
from qubo_rounding.solvers.idle_weights import fix_idle
from qubo_rounding.solvers.random_numbers import random_bits, stream_keys
from qubo_rounding.solvers.solver import Solver
from qubo_rounding.watch import watched
from qubo_rounding.whole_numbers import check_whole

_NEVER = np.float32(1e38)  # gain of a flip that cannot be made
_HIGHEST = np.int32(2**31 - 1)
_NOISE = 1e-6  # in units of energy: what float32 leaves of a sum of gains


@dataclass(frozen=True)
class Tabu(Solver):
    """The best levels met on several walks of single flips, each from the best levels so far.

    A move flips the weight with the lowest flip gain, also where that raises the energy; a flipped
    weight is tabu for some moves, unless flipping it gives the best energy yet. All walks but the
    first begin with random flips. The search ends by counting moves, not by a clock, and needs
    flip gains only, so the Gram matrix may be indefinite. A row never ends above its start.

    Worth its time up to d of some hundreds; wider rows want `Tabu(start=Annealing())`.

    Args (change often):
        rounds: walks, one after the other.
        start: the solver whose levels the first walk begins with.
    Args (with caution):
        moves: moves of a walk for each of the d weights.
        tenure: a flipped weight is tabu for this many moves and up to twice as many, at random;
            at most a quarter of the row's free weights.
        kick: share of the weights that are flipped at random before a walk, two at least; fixed
            ones are drawn too and stay.

    Source: Glover 1989; Palubeckis 2006, Iterated tabu search for the unconstrained binary
        quadratic optimization problem.
    """

    rounds: int = 100
    start: Solver = field(default_factory=Gptq)
    moves: int = 10
    tenure: int = 10
    kick: float = 0.05

    def __post_init__(self) -> None:
        check_whole(1, rounds=self.rounds, moves=self.moves)
        check_whole(0, tenure=self.tenure)
        if not 0 <= self.kick <= 1:
            raise ValueError(f"kick is {self.kick}; give a share in [0, 1].")

    def refuses(self, problem: RoundingProblem) -> str | None:
        """Not binary, or whatever the start refuses."""
        if not problem.is_binary:
            return "a flip needs two levels a weight; build the problem with up/down."
        return self.start.refuses(problem)

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        """The best levels of all rounds."""
        start = self.start.solve(problem, seed=seed)
        best, rounds = BestLevels(problem, start.levels, start.energy), 0
        normal = fix_idle(problem).normalised()
        gram = normal.gram.float().cpu().numpy()
        for rounds in watched(range(1, self.rounds + 1), "tabu"):
            keys = stream_keys(seed, problem.stream, rounds)
            kicks = 0 if rounds == 1 else max(2, round(self.kick * problem.d))
            best.offer(self._walk(normal, gram, best.levels, keys, kicks))
        return problem.solution(best.levels, rounds=rounds, energy_start=float(start.energy.sum()))

    def _walk(
        self,
        problem: RoundingProblem,
        gram: np.ndarray,
        levels: Tensor,
        keys: np.ndarray,
        kicks: int,
    ) -> Tensor:
        """The best levels of one walk from the given ones."""
        slope = (problem.gradient(levels) / 2).float().cpu().numpy()
        flip = torch.where(problem.high > problem.low, problem.low + problem.high - 2 * levels, 0)
        step = (problem.scale * flip).float().cpu().numpy()
        flipped = np.zeros(step.shape, np.bool_)

        def walk_tile(group: int, rows: slice) -> None:
            at = (group, rows)
            _walk_rows(
                *(gram[group], slope[at], step[at], keys[at], flipped[at]),
                *(kicks, self.moves * problem.d, self.tenure),
            )

        operations = 5 * self.moves * problem.d**2
        for_each_tile(problem.g, problem.r, walk_tile, operations)
        return levels + torch.from_numpy(flipped).to(problem.device) * flip


@numba.njit(cache=True, nogil=True)
def _walk_rows(gram, slopes, steps, keys, flipped, kicks, moves, tenure):  # pyright: ignore
    """One walk of every row; flipped (r, d) tells which weights differ at its best levels.

    A flip's gain is twice[j] * slope[j] + own[j], of which the second part never changes; `gains`
    has `offer` in its place, out of reach where a weight is fixed or tabu. Energies are told from
    the walk's beginning, the best levels so far: only less than that counts.
    """
    d = len(gram)
    now, until = np.empty(d, np.bool_), np.empty(d, np.int64)
    # Four arrays: rows of one array would not be known to be contiguous, and take twice the time.
    twice, own = np.empty(d, np.float32), np.empty(d, np.float32)
    offer, gains = np.empty(d, np.float32), np.empty(d, np.float32)
    tabu = np.empty(2 * tenure + 2, np.int64)
    for i in range(len(steps)):
        slope, free = slopes[i], 0
        for j in range(d):
            step = steps[i, j]
            twice[j], own[j] = np.float32(2) * step, step * step * gram[j, j]
            offer[j] = own[j] if step != 0 else _NEVER
            free += step != 0
        if free == 0:
            continue
        stay = min(tenure, free // 4)
        now[:] = False
        count, energy, least = 0, 0.0, 0.0
        _flip(gram[0], np.float32(0), slope, twice, offer, gains)
        for move in range(kicks + moves):
            bits = random_bits(keys[i], np.uint64(move))
            if move < kicks:
                c = np.int64(bits % np.uint64(d))
                if twice[c] == 0:
                    continue
            else:
                needed = np.float32(least - energy - _NOISE)
                c = _best_flip(slope, twice, own, gains, tabu, count, needed)
            energy += twice[c] * slope[c] + own[c]
            now[c] = not now[c]
            until[c] = move + 1 + stay + np.int64((bits >> np.uint64(32)) % np.uint64(stay + 1))
            if offer[c] != _NEVER:
                offer[c] = _NEVER
                tabu[count] = c
                count += 1
            count = _let_go(tabu, count, until, move + 1, own, offer)
            change = twice[c] / np.float32(2)
            twice[c] = -twice[c]
            _flip(gram[c], change, slope, twice, offer, gains)
            if energy < least - _NOISE:
                least = energy
                flipped[i] = now


@numba.njit(cache=True, nogil=True)
def _flip(column, change, slope, twice, offer, gains):  # pyright: ignore
    """Slopes and gains on offer after a weight has changed."""
    for j in range(len(slope)):
        slope[j] += change * column[j]
    for j in range(len(slope)):
        gains[j] = twice[j] * slope[j] + offer[j]


@numba.njit(cache=True, nogil=True)
def _best_flip(slope, twice, own, gains, tabu, count, needed):  # pyright: ignore
    """The column with the lowest gain that is not tabu or, better still, a tabu one below `needed`.

    At most half of the free weights are tabu, so there always is one.
    """
    best = _place_of_lowest(gains.view(np.int32))
    least = gains[best]
    for k in range(count):
        j = tabu[k]
        gain = twice[j] * slope[j] + own[j]
        if gain < needed and gain < least:
            best, least = j, gain
    return best


@numba.njit(cache=True, nogil=True)
def _place_of_lowest(bits):  # pyright: ignore
    """Where the least of float32 numbers is, told by integers in the same order; the first of many.

    A minimum of integers is found in vector registers; one of floats, which may be NaN, is not.
    """
    lowest = place = _HIGHEST
    for j in range(len(bits)):
        rank = np.int32(bits[j] ^ ((bits[j] >> np.int32(31)) & _HIGHEST))
        lowest = min(lowest, rank)
    wanted = np.int32(lowest ^ ((lowest >> np.int32(31)) & _HIGHEST))
    for j in range(len(bits)):
        place = min(place, np.int32(j) if bits[j] == wanted else _HIGHEST)
    return np.int64(place)


@numba.njit(cache=True, nogil=True)
def _let_go(tabu, count, until, move, own, offer):  # pyright: ignore
    """How many stay tabu when those are let go whose time is over."""
    kept = 0
    for k in range(count):
        j = tabu[k]
        if until[j] <= move:
            offer[j] = own[j]
        else:
            tabu[kept] = j
            kept += 1
    return kept
