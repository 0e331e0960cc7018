"""Rows of a problem on many workers: processes of this machine, or of a cluster.

Rows do not see each other and draw their random numbers by their own names, so whoever solves them
gives the same bits. What is given is the standard library's `Executor`: a `ProcessPoolExecutor`,
Dask's `client.get_executor()`, mpi4py's `MPIPoolExecutor`.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qubo_rounding.problem import RoundingProblem, Solution
from qubo_rounding.row_batches import row_batches
from qubo_rounding.solvers.solver import Solver
from qubo_rounding.watch import seconds_left, watched, watching
from qubo_rounding.whole_numbers import check_whole

Part = tuple[Tensor, Tensor | None, dict[str, Any]]  # levels, lower bounds, stats
_NO_TIME = 1e-9  # seconds; loops do their first step all the same
_TASKS = 16  # that a problem is cut into: enough for workers of different speed
_ATTEMPTS = 5  # executors that may break, one after the other, before it is no accident


@dataclass(frozen=True, eq=False)
class Spread(Solver):
    """A solver whose rows are solved by workers, to the same bits as without.

    Its configuration is the solver's own: where rows were solved does not count. The problem goes
    to the workers once each, as a file, not with every task. Tasks of a worker that was killed are
    done again.

    Args:
        solver: any solver; `stats` come as a list, one for each part of the rows.
        executor: one, or a function that makes one, which is called again when one breaks.
        folder: where problem files lie; it has to be seen by all workers. None is this machine's
            folder for temporary files.
    """

    solver: Solver
    executor: Executor | Callable[[], Executor]
    folder: str | Path | None = None

    def __repr__(self) -> str:
        return repr(self.solver)

    def refuses(self, problem: RoundingProblem) -> str | None:
        """Whatever the solver refuses."""
        return self.solver.refuses(problem)

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        """The solver's levels and bounds, put together from all parts.

        Raises:
            BrokenExecutor: workers die again and again, or an executor that was given broke.
        """
        parts = list(row_batches(problem.g, problem.r, 1, -(-problem.g * problem.r // _TASKS)))
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            path = Path(folder) / "problem.npz"
            problem.save(path)
            deadline = time.time() + seconds_left()
            tasks = [(str(path), self.solver, part, seed, deadline) for part in parts]
            found = self._run(tasks)
        levels = torch.zeros_like(problem.low)
        bound = torch.full_like(problem.offset, torch.nan)
        for part, (of_part, bound_of_part, _) in zip(parts, found, strict=True):
            levels[part] = of_part
            if bound_of_part is not None:
                bound[part] = bound_of_part
        bounded = not bool(bound.isnan().all())
        return problem.solution(levels, bound if bounded else None, parts=[s for *_, s in found])

    def _run(self, tasks: Sequence[tuple[Any, ...]]) -> list[Part]:
        """What every task gives; those that a broken executor lost go to the next one."""
        given, found = self.executor, dict[int, Part]()
        for attempt in range(_ATTEMPTS):
            executor = given if isinstance(given, Executor) else given()
            futures: dict[int, Future[Part]] = {}
            try:
                for number in set(range(len(tasks))) - found.keys():
                    futures[number] = executor.submit(_solve_part, *tasks[number])
                for future in watched(list(futures.values()), "parts"):
                    future.result()
                found |= {number: future.result() for number, future in futures.items()}
                break
            except BrokenExecutor:
                if isinstance(given, Executor) or attempt == _ATTEMPTS - 1:
                    raise
                found |= {n: f.result() for n, f in futures.items() if _succeeded(f)}
            finally:
                for future in futures.values():
                    future.cancel()
        return [found[number] for number in range(len(tasks))]


@contextmanager
def processes(count: int) -> Iterator[Callable[[], Executor]]:
    """A function that makes pools of so many processes, for `Spread`; they end with the block.

    The same pool is given again until it breaks. Each process works on one thread.

    Raises:
        ValueError: the count is no positive whole number.
    """
    check_whole(1, workers=count)
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that threads hold
    made: list[ProcessPoolExecutor] = []

    def make() -> Executor:
        try:
            made[-1].submit(int)
        except (IndexError, BrokenExecutor):
            alone = {"initializer": torch.set_num_threads, "initargs": (1,)}
            made.append(ProcessPoolExecutor(count, context, **alone))
        return made[-1]

    try:
        yield make
    finally:
        for pool in made:
            pool.shutdown(cancel_futures=True)


@contextmanager
def cluster(address: str, seconds: float = 30.0) -> Iterator[Executor]:
    """The executor of a running Dask cluster, whose workers have this package and see one folder.

    Args:
        address: of its scheduler, such as tcp://node:8786.
        seconds: to wait for an answer.

    Raises:
        ValueError: Dask's `distributed` is not installed, or nothing answers.
    """
    try:
        from distributed import Client
    except ImportError:
        raise ValueError(
            "a cluster needs Dask, which is not installed; pip install 'qubo-rounding[cluster]'."
        ) from None
    try:
        client = Client(address, timeout=seconds)
    except (OSError, ValueError) as error:
        raise ValueError(f"no cluster answers at {address} ({error}); start one there.") from None
    with client:
        yield client.get_executor(pure=False)


@functools.lru_cache(maxsize=1)
def _problem(path: str, _changed: int) -> RoundingProblem:
    return RoundingProblem.load(path)


def _solve_part(
    path: str, solver: Solver, part: tuple[slice, slice], seed: int, deadline: float
) -> Part:
    """In a worker: levels, lower bounds and stats of a part of a problem file."""
    problem = _problem(path, Path(path).stat().st_mtime_ns).part(*part)
    left = deadline - time.time()
    with watching(time_limit=None if math.isinf(left) else max(left, _NO_TIME)):
        found = solver.solve(problem, seed=seed)
    return found.levels, found.lower_bound, dict(found.stats)


def _succeeded(future: Future[Part]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None
