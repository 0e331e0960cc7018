"""The solver to take where none is named: by width and effort, from what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qubo_rounding.problem import RoundingProblem
from qubo_rounding.solution import Solution
from qubo_rounding.solvers.annealing import Annealing
from qubo_rounding.solvers.composites import BestOf, FirstThatAccepts
from qubo_rounding.solvers.enumeration import Enumeration
from qubo_rounding.solvers.gptq import Gptq
from qubo_rounding.solvers.k_best import KBest
from qubo_rounding.solvers.nearest import Nearest
from qubo_rounding.solvers.solver import Solver
from qubo_rounding.solvers.tabu import Tabu
from qubo_rounding.solvers.tree_search import TreeSearch

_ENUMERATED = 2**12  # assignments a row: less than a millisecond


_MAX_NODES = 10**7  # of tree search a row: a second or two
_WIDE = 256  # columns from which annealing is worth more than walks
_KICK = 0.02  # steep layers gain by less than tabu search's own, and flat ones lose little


def _tabu(rounds: int, start: Solver, moves: int = 10) -> Tabu:
    """Where the Gram matrix is indefinite, it starts at nearest rounding."""
    start = FirstThatAccepts((start, Nearest()))
    return Tabu(rounds=rounds, start=start, moves=moves, kick=_KICK)


def _annealing(sweeps: int) -> Annealing:
    return Annealing(sweeps=sweeps, reads=1, start=FirstThatAccepts((Gptq(), Nearest())))


@dataclass(frozen=True)
class _Plan:
    """What an effort means.

    Args:
        provable: columns up to which tree search is to prove rows of two levels a weight.
        narrow, wide: what searches the other rows of two levels a weight.
        ranges: what searches where weights have more levels.
    """

    provable: int
    narrow: Solver
    wide: Solver
    ranges: Solver


# Measured by analysis/benchmarks/auto_against_adaround.py. A single walk from GPTQ's levels is what
# little time is best spent on. With more, annealing comes first, for longer the wider the rows are,
# and tabu search finishes, which steep spectra need most. Narrow rows of steep spectra also gain by
# many short walks from K-best's levels.
PLANS = {
    "fast": _Plan(0, _tabu(1, Gptq(), 4), _tabu(1, Gptq(), 4), _annealing(300)),
    "balanced": _Plan(32, _tabu(3, _annealing(300)), _tabu(2, _annealing(1200)), _annealing(3000)),
    "best": _Plan(
        80,
        BestOf((_tabu(50, KBest(), 2), _tabu(5, _annealing(3000)))),
        _tabu(20, _annealing(12_000)),
        _annealing(12_000),
    ),
}


@dataclass(frozen=True)
class Auto(Solver):
    """Enumeration, tree search, tabu search or annealing: what suits the problem and the effort.

    Rows of few assignments are enumerated, and narrow up/down rows proven by tree search. Others
    are annealed, where there is time for it, and then go to iterated tabu search; from 256 columns
    on more of the time is for annealing. Weights with more than two levels are annealed only.
    `stats["solved_by"]` tells the choice.

    Args:
        effort: "fast" is for whole networks; "balanced" proves rows of up to 32 weights and
            searches the others about four times as long; "best" proves up to 80, and takes about
            as long as AdaRound with 10,000 iterations.
    """

    effort: Literal["fast", "balanced", "best"] = "balanced"

    def __post_init__(self) -> None:
        if self.effort not in PLANS:
            raise ValueError(f"effort is {self.effort!r}; give one of {', '.join(PLANS)}.")

    def choice(self, problem: RoundingProblem) -> Solver:
        """The solver for a problem."""
        plan = PLANS[self.effort]
        enumeration = Enumeration(_ENUMERATED)
        if enumeration.refuses(problem) is None:
            return enumeration
        if not problem.is_binary:
            return plan.ranges
        if problem.d <= plan.provable:
            return TreeSearch(_MAX_NODES, start=plan.narrow)
        return plan.narrow if problem.d < _WIDE else plan.wide

    def refuses(self, problem: RoundingProblem) -> str | None:
        """Whatever its choice refuses."""
        return self.choice(problem).refuses(problem)

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        """What its choice finds."""
        chosen = self.choice(problem)
        solution = chosen.solve(problem, seed=seed)
        stats = {**solution.stats, "solved_by": repr(chosen)}
        return problem.solution(solution.levels, solution.lower_bound, **stats)


DEFAULT_SOLVER = Auto("fast")  # of whole networks, where none is named
