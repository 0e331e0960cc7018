"""The solver to take where none is named: by width and effort, from what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qubo_rounding.problem import RoundingProblem, Solution
from qubo_rounding.solvers.annealing import Annealing
from qubo_rounding.solvers.composites import FirstThatAccepts
from qubo_rounding.solvers.enumeration import Enumeration
from qubo_rounding.solvers.gptq import Gptq
from qubo_rounding.solvers.k_best import KBest
from qubo_rounding.solvers.nearest import Nearest
from qubo_rounding.solvers.solver import Solver
from qubo_rounding.solvers.tabu import Tabu
from qubo_rounding.solvers.tree_search import TreeSearch

_ENUMERATED = 2**12  # assignments a row: less than a millisecond


@dataclass(frozen=True)
class _Plan:
    """What an effort means.

    Args:
        provable: columns up to which tree search is to prove rows of two levels a weight.
        start: of the search on wider rows.
        rounds: of tabu search there.
        sweeps: of annealing where weights have more than two levels.
    """

    provable: int
    start: Solver
    rounds: int
    sweeps: int


# analysis/benchmarks/auto_against_adaround.py measures it. Steep and flat spectra need no lines of
# their own: iterated tabu search is best on both, K-best starts help it where it is steep.
PLANS = {
    "fast": _Plan(provable=0, start=Gptq(), rounds=2, sweeps=100),
    "balanced": _Plan(provable=32, start=Gptq(), rounds=20, sweeps=1000),
    "best": _Plan(provable=80, start=KBest(), rounds=100, sweeps=4000),
}
_KICK = 0.02  # steep layers gain by less than tabu search's own, and flat ones lose little
_MAX_NODES = 10**7  # of tree search a row: a second or two


@dataclass(frozen=True)
class Auto(Solver):
    """Enumeration, tree search, tabu search or annealing: what suits the problem and the effort.

    Rows of few assignments are enumerated. Narrow up/down rows are proven by tree search, wide ones
    go to iterated tabu search. Weights with more than two levels are annealed. Where the Gram
    matrix is indefinite, searches start at nearest rounding instead of GPTQ's. `stats["solved_by"]`
    tells the choice.

    Args:
        effort: "fast" is for whole networks; "balanced" proves rows of up to 32 weights and
            searches wide ones ten times as long; "best" proves up to 80, five times as long again.
    """

    effort: Literal["fast", "balanced", "best"] = "balanced"

    def __post_init__(self) -> None:
        if self.effort not in PLANS:
            raise ValueError(f"effort is {self.effort!r}; give one of {', '.join(PLANS)}.")

    def choice(self, problem: RoundingProblem) -> Solver:
        """The solver for a problem."""
        plan = PLANS[self.effort]
        start = FirstThatAccepts((plan.start, Nearest()))
        enumeration = Enumeration(_ENUMERATED)
        if enumeration.refuses(problem) is None:
            return enumeration
        if not problem.is_binary:
            return Annealing(sweeps=plan.sweeps, reads=1, start=start)
        tabu = Tabu(rounds=plan.rounds, start=start, kick=_KICK)
        if problem.d <= plan.provable:
            return TreeSearch(_MAX_NODES, start=tabu)
        return tabu

    def refuses(self, problem: RoundingProblem) -> str | None:
        """Whatever its choice refuses."""
        return self.choice(problem).refuses(problem)

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        """What its choice finds."""
        chosen = self.choice(problem)
        solution = chosen.solve(problem, seed=seed)
        stats = {**solution.stats, "solved_by": repr(chosen)}
        return problem.solution(solution.levels, solution.lower_bound, **stats)
