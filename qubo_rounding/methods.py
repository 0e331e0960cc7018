"""Ways to round a network, by name: what the command line calls a method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from qubo_rounding.relaxed.reconstruction import (
    BlockReconstruction,
    Distillation,
    Reconstruction,
)
from qubo_rounding.solvers import make_relaxation, make_solver
from qubo_rounding.solvers.auto import DEFAULT_SOLVER, Auto
from qubo_rounding.specification import made_from


def _auto(effort: Literal["fast", "balanced", "best"] = DEFAULT_SOLVER.effort) -> Auto:
    return Auto(effort)


METHODS: dict[str, Callable[..., Any]] = {
    "adaround": Reconstruction,
    "block": BlockReconstruction,
    "distil": Distillation,
    "auto": _auto,
}

_NAMED: dict[str, Callable[[str], Any]] = {
    "start": make_solver,
    "relaxation": make_relaxation,
    "positions": int,
    "blocks": lambda text: tuple("" if name == "model" else name for name in text.split("+")),
}


def method_options(text: str) -> dict[str, Any]:
    """What `quantise` is to be told for a method `NAME[:key=value,...]`.

    `adaround` is `Reconstruction`, `block` is `BlockReconstruction`, `distil` is `Distillation`,
    with their fields as keys (blocks by name with + between them, the whole network as `model`).
    `auto` is the solver `Auto` on the Gram matrices, with effort fast where none is given.

    Raises:
        ValueError: an unknown name or key, or a value that the method does not allow.
    """
    made = made_from(text, METHODS, "method", _NAMED)
    return {"solver" if isinstance(made, Auto) else "reconstruction": made}
