"""Workers: processes of this machine, or of a cluster."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from contextlib import contextmanager

import torch

from qubo_rounding.whole_numbers import check_whole


@contextmanager
def processes(count: int) -> Iterator[Callable[[], Executor]]:
    """A function that makes pools of so many processes; they end with the block.

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
            made.append(ProcessPoolExecutor(count, context, initializer=_begin))
        return made[-1]

    try:
        yield make
    finally:
        for pool in made:
            pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """In a worker: one thread, and Ctrl-C, which reaches all processes, ends it without a word."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


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
