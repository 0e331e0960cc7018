"""The state of an optimisation in a file, so that a killed run goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from qubo_rounding.kept_files import keep, kept


class Resumable(Protocol):
    """What has a state."""

    def state(self) -> dict[str, Tensor]:
        """Everything that what comes next depends on."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        ...


class Checkpoint:
    """Keeps the state of some objects after an iteration, not more often than it is worth.

    Args:
        path: the file; None keeps nothing.
        seconds: between two times of keeping.
        prepare: called before anything is kept: it makes the place one that can be resumed from.
    """

    def __init__(
        self,
        path: Path | None = None,
        seconds: float = 20.0,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self._path, self._seconds, self._prepare = path, seconds, prepare
        self._last = time.monotonic()

    def restore(self, parts: Sequence[Resumable]) -> int:
        """The number of iterations that are done, whose state the parts now have; 0 without a file.

        Raises:
            ValueError: the file is damaged.
        """
        if self._path is None or not self._path.exists():
            return 0
        with kept(self._path) as file:
            for number, part in enumerate(parts):
                keys = part.state()
                part.restore({key: file.tensors[f"{number}.{key}"] for key in keys})
            return int(file.metadata["iterations"])

    def keep(self, parts: Sequence[Resumable], iterations: int) -> None:
        """Keep the state after so many iterations, if the last time was long enough ago."""
        if self._path is None or time.monotonic() - self._last < self._seconds:
            return
        tensors = {
            f"{number}.{key}": tensor
            for number, part in enumerate(parts)
            for key, tensor in part.state().items()
        }
        self._prepare()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        keep(self._path, tensors, {"iterations": str(iterations)})
        self._last = time.monotonic()

    def forget(self) -> None:
        """Delete the file: what it led to is kept elsewhere."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


NO_CHECKPOINT = Checkpoint()
