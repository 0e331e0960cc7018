"""Tabu search: always the best single flip, up or down, but none that was made just before."""

from __future__ import annotations

from dataclasses import dataclass, field

import numba
import numpy as np
import torch
from torch import Tensor

from qubo_rounding.parallel import for_each_tile
from qubo_rounding.problem import RoundingProblem, Solution
from qubo_rounding.solvers.best_levels import BestLevels
from qubo_rounding.solvers.gptq import Gptq
from qubo_rounding.solvers.idle_weights import fix_idle
from qubo_rounding.solvers.random_numbers import random_bits, stream_keys
from qubo_rounding.solvers.solver import Solver
from qubo_rounding.watch import watched

_NEVER = np.float32(1e38)  # gain of a flip that cannot be made
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
        kick: share of the weights that are flipped at random before a walk, two at least.

    Source: Glover 1989; Palubeckis 2006, Iterated tabu search for the unconstrained binary
        quadratic optimization problem.
    """

    rounds: int = 100
    start: Solver = field(default_factory=Gptq)
    moves: int = 10
    tenure: int = 10
    kick: float = 0.05

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.moves < 1 or self.tenure < 0:
            raise ValueError(
                f"rounds is {self.rounds}, moves {self.moves} and tenure {self.tenure}; "
                "give at least 1, 1 and 0."
            )
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

        for_each_tile(problem.g, problem.r, walk_tile)
        return levels + torch.from_numpy(flipped).to(problem.device) * flip


@numba.njit(cache=True, nogil=True)
def _walk_rows(gram, slopes, steps, keys, flipped, kicks, moves, tenure):  # pyright: ignore
    """One walk of every row; flipped (r, d) tells which weights differ at its best levels.

    Energies are told from the walk's beginning, the best levels so far: only less than that counts.
    """
    d = len(gram)
    diagonal, gains = np.diag(gram).copy(), np.empty(d, np.float32)
    now, until = np.empty(d, np.bool_), np.empty(d, np.int64)
    for i in range(len(steps)):
        slope, step = slopes[i], steps[i]
        free = np.sum(step != 0)
        if free == 0:
            continue
        stay = min(tenure, free // 4)
        now[:] = False
        until[:] = 0
        energy, least = 0.0, 0.0
        _flip_gains(slope, step, diagonal, gains)
        for move in range(kicks + moves):
            bits = random_bits(keys[i], np.uint64(move))
            if move < kicks:
                c = np.int64(bits % np.uint64(d))
                if step[c] == 0:
                    continue
            else:
                c = _best_flip(gains, until, move, least - energy - _NOISE)
            energy += gains[c]
            now[c] = not now[c]
            until[c] = move + 1 + stay + np.int64((bits >> np.uint64(32)) % np.uint64(stay + 1))
            change = step[c]
            for j in range(d):
                slope[j] += change * gram[c, j]
            step[c] = -change
            _flip_gains(slope, step, diagonal, gains)
            if energy < least - _NOISE:
                least = energy
                flipped[i] = now


@numba.njit(cache=True, nogil=True)
def _flip_gains(slope, step, diagonal, gains):  # pyright: ignore
    for j in range(len(gains)):
        gain = step[j] * (np.float32(2) * slope[j] + step[j] * diagonal[j])
        gains[j] = gain if step[j] != 0 else _NEVER


@numba.njit(cache=True, nogil=True)
def _best_flip(gains, until, move, needed):  # pyright: ignore
    """The column with the lowest gain that is not tabu or, better still, a tabu one below `needed`.

    At most half of the free weights are tabu, so there always is one.
    """
    lowest, best, excused = np.float32(np.inf), 0, -1
    for j in range(len(gains)):
        if gains[j] < lowest:
            if until[j] <= move:
                lowest, best = gains[j], j
            elif gains[j] < needed:
                needed, excused = gains[j], j
    return excused if excused >= 0 and gains[excused] < lowest else best
