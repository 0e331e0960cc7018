"""Tasks on an executor of any kind, done again where a worker died.

What is given is the standard library's `Executor`: a `ProcessPoolExecutor`, Dask's
`client.get_executor()`, mpi4py's `MPIPoolExecutor`; or a function that makes one.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from qubo_rounding.problem import RoundingProblem
from qubo_rounding.watch import seconds_left, watching

Workers = Executor | Callable[[], Executor]
Result = TypeVar("Result")

_AHEAD = 64  # tasks handed over at a time: their arguments wait in memory
_NO_TIME = 1e-9  # seconds; loops do their first step all the same
_ATTEMPTS = 5  # executors that may break under a task before it is no accident


def run_tasks(
    workers: Workers, function: Callable[..., Result], tasks: Iterable[tuple[Any, ...]]
) -> Iterator[tuple[int, Result]]:
    """Number and result of every task, in the order in which they end.

    The time limit of the enclosing `watching` block reaches the workers.

    Args:
        workers: an executor; or a function that gives one, which is asked again when that breaks,
            so that the tasks of a worker that was killed are done again.
        function: what is done; workers have to be able to import it.
        tasks: its arguments, taken as workers come to them.

    Raises:
        BrokenExecutor: an executor that was given broke, or those made break again and again.
        Exception: whatever a task raises.
    """
    within = functools.partial(_within, time.time() + seconds_left(), function)
    todo = ((number, arguments, 0) for number, arguments in enumerate(tasks))
    running: dict[Future[Result], tuple[int, tuple[Any, ...], int]] = {}
    try:
        while True:
            for task in islice(todo, _AHEAD - len(running)):
                running[_started(workers, within, task[1])] = task
            if not running:
                return
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                number, arguments, breaks = running.pop(future)
                try:
                    result = future.result()
                except BrokenExecutor:
                    if isinstance(workers, Executor) or breaks + 1 == _ATTEMPTS:
                        raise
                    again = _started(workers, within, arguments)
                    running[again] = number, arguments, breaks + 1
                else:
                    yield number, result
    finally:
        for future in running:
            future.cancel()


def _started(
    workers: Workers, function: Callable[..., Result], arguments: tuple[Any, ...]
) -> Future[Result]:
    executor = workers if isinstance(workers, Executor) else workers()
    try:
        return executor.submit(function, *arguments)
    except BrokenExecutor as error:  # since it was given
        lost: Future[Result] = Future()
        lost.set_exception(error)
        return lost


def _within(deadline: float, function: Callable[..., Result], *arguments: Any) -> Result:
    """In a worker: the function's result, its watched loops ended by the deadline."""
    left = deadline - time.time()
    with watching(time_limit=None if math.isinf(left) else max(left, _NO_TIME)):
        return function(*arguments)


@dataclass(frozen=True)
class SentProblem:
    """A problem as a file, which a worker reads once for all tasks that need it.

    Args:
        path: of the file.
        written: its time in nanoseconds: names are used again.
    """

    path: str
    written: int

    def load(self) -> RoundingProblem:
        """The problem."""
        return _loaded(self.path, self.written)

    def forget(self) -> None:
        """Delete the file: no task needs it any more."""
        Path(self.path).unlink()


@functools.lru_cache(maxsize=2)
def _loaded(path: str, _written: int) -> RoundingProblem:
    return RoundingProblem.load(path)


@contextmanager
def sending(folder: str | Path | None = None) -> Iterator[Callable[[RoundingProblem], SentProblem]]:
    """A function that writes problems for workers; the files go with the block.

    Args:
        folder: where they lie; all workers have to see it. None is this machine's folder for
            temporary files.
    """
    with TemporaryDirectory(dir=folder) as place:
        numbers = count()

        def send(problem: RoundingProblem) -> SentProblem:
            path = Path(place) / f"{next(numbers)}.npz"
            problem.save(path)
            return SentProblem(str(path), path.stat().st_mtime_ns)

        yield send
