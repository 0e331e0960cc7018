"""The solvers, one algorithm a file, and the table that names them."""

from __future__ import annotations

from collections.abc import Callable

from qubo_rounding.relaxed.softening import RELAXATIONS, Relaxation
from qubo_rounding.solvers.adaround import AdaRound
from qubo_rounding.solvers.annealing import Annealing
from qubo_rounding.solvers.auto import Auto
from qubo_rounding.solvers.certified import Certified
from qubo_rounding.solvers.composites import BestOf, FirstThatAccepts, Given
from qubo_rounding.solvers.cross_entropy import CrossEntropy
from qubo_rounding.solvers.descent import Descent
from qubo_rounding.solvers.dimod_sampler import (
    DimodSampler,
    dimod_exact,
    dwave_annealing,
    dwave_descent,
    dwave_tabu,
)
from qubo_rounding.solvers.enumeration import Enumeration
from qubo_rounding.solvers.gptq import Gptq
from qubo_rounding.solvers.k_best import KBest, Klein
from qubo_rounding.solvers.nearest import Nearest
from qubo_rounding.solvers.solver import RefusedError, Solver
from qubo_rounding.solvers.stochastic import Stochastic
from qubo_rounding.solvers.tabu import Tabu
from qubo_rounding.solvers.tree_search import TreeSearch
from qubo_rounding.specification import made_from

SOLVERS: dict[str, Callable[..., Solver]] = {
    "auto": Auto,
    "certified": Certified,
    "nearest": Nearest,
    "stochastic": Stochastic,
    "gptq": Gptq,
    "k_best": KBest,
    "klein": Klein,
    "descent": Descent,
    "annealing": Annealing,
    "tabu": Tabu,
    "cross_entropy": CrossEntropy,
    "adaround": AdaRound,
    "tree_search": TreeSearch,
    "enumeration": Enumeration,
    "dwave_annealing": dwave_annealing,
    "dwave_tabu": dwave_tabu,
    "dwave_descent": dwave_descent,
    "dimod_exact": dimod_exact,
}


def make_solver(text: str) -> Solver:
    """The solver that `NAME[:key=value,...]` describes, NAME one of SOLVERS.

    Values are of the kind of the option's default: whole or decimal numbers, true or false, words,
    or, for `start` and `solver`, the name of another solver, and for `relaxation` one of
    RELAXATIONS: `annealing:sweeps=500,start=nearest`.

    Raises:
        ValueError: an unknown name or key, or a value that the solver does not allow.
    """
    named = {"start": make_solver, "solver": make_solver, "relaxation": make_relaxation}
    return made_from(text, SOLVERS, "solver", named)


def make_relaxation(name: str) -> Relaxation:
    """The relaxation of that name with its default settings.

    Raises:
        ValueError: there is none.
    """
    if name not in RELAXATIONS:
        raise ValueError(f"there is no relaxation {name!r}; there are {', '.join(RELAXATIONS)}.")
    return RELAXATIONS[name]()


__all__ = [
    "SOLVERS",
    "AdaRound",
    "Annealing",
    "Auto",
    "BestOf",
    "Certified",
    "CrossEntropy",
    "Descent",
    "DimodSampler",
    "Enumeration",
    "FirstThatAccepts",
    "Given",
    "Gptq",
    "KBest",
    "Klein",
    "Nearest",
    "RefusedError",
    "Solver",
    "Stochastic",
    "Tabu",
    "TreeSearch",
    "dimod_exact",
    "dwave_annealing",
    "dwave_descent",
    "dwave_tabu",
    "make_relaxation",
    "make_solver",
]
