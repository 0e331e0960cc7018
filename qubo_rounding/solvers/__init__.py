"""The solvers, one algorithm a file, and the table that names them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from qubo_rounding.relaxed.softening import RELAXATIONS, Relaxation
from qubo_rounding.solvers.adaround import AdaRound
from qubo_rounding.solvers.annealing import Annealing
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

SOLVERS: dict[str, Callable[..., Solver]] = {
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
    or, for `start`, the name of another solver, and for `relaxation` one of RELAXATIONS:
    `annealing:sweeps=500,start=nearest`.

    Raises:
        ValueError: an unknown name or key, or a value that the solver does not allow.
    """
    name, _, options = text.strip().partition(":")
    if name not in SOLVERS:
        raise ValueError(f"there is no solver {name!r}; there are {', '.join(SOLVERS)}.")
    factory = SOLVERS[name]
    known = inspect.signature(factory).parameters
    values: dict[str, Any] = {}
    for option in filter(None, options.split(",")):
        key, equals, value = (part.strip() for part in option.partition("="))
        if not equals or key not in known:
            raise ValueError(
                f"{option!r} is no option of {name}; write key=value with a key of "
                f"{', '.join(known) or 'none: it has no options'}."
            )
        named = _NAMED.get(key)
        values[key] = named(value) if named else _value(option, known[key].default)
    try:
        return factory(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{text!r}: {error}") from None


def make_relaxation(name: str) -> Relaxation:
    """The relaxation of that name with its default settings.

    Raises:
        ValueError: there is none.
    """
    if name not in RELAXATIONS:
        raise ValueError(f"there is no relaxation {name!r}; there are {', '.join(RELAXATIONS)}.")
    return RELAXATIONS[name]()


_NAMED: dict[str, Callable[[str], Any]] = {"start": make_solver, "relaxation": make_relaxation}


def _value(option: str, default: bool | int | float | str) -> bool | int | float | str:
    text = option.partition("=")[2].strip()
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        return type(default)(text)
    except (KeyError, ValueError):
        kind = {bool: "true or false", int: "a whole number", float: "a number"}[type(default)]
        raise ValueError(f"{option!r} does not fit; give {kind}.") from None


__all__ = [
    "SOLVERS",
    "AdaRound",
    "Annealing",
    "BestOf",
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
