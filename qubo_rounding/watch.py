"""Progress and time limits of long loops, kept outside the algorithms.

A solver writes `for step in watched(range(n), "annealing")` and knows nothing of clocks or bars;
who calls it decides about both with `watching(...)`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Watch:
    deadline: float = float("inf")
    progress: bool = False


_NOBODY = _Watch()
_current: ContextVar[_Watch] = ContextVar("watch", default=_NOBODY)


@contextmanager
def watching(*, time_limit: float | None = None, progress: bool = False) -> Iterator[None]:
    """Inside the block every `watched` loop ends at the time limit and shows a bar if wanted.

    Args:
        time_limit: seconds from now; None means none. A loop always does its first step.
        progress: show a progress bar for each loop on standard error.

    Raises:
        ValueError: the time limit is not positive.
    """
    if time_limit is not None and not time_limit > 0:
        raise ValueError(f"the time limit is {time_limit} s; give a positive number of seconds.")
    deadline = float("inf") if time_limit is None else time.monotonic() + time_limit
    outer = _current.get()
    token = _current.set(_Watch(min(deadline, outer.deadline), progress or outer.progress))
    try:
        yield
    finally:
        _current.reset(token)


def watched(
    items: Iterable[Item], label: str, note: Callable[[], str] = lambda: ""
) -> Iterator[Item]:
    """The items, until the time limit of the enclosing `watching` block is reached.

    Args:
        items: the steps of the loop.
        label: of the progress bar.
        note: what stands behind the bar; asked only when the bar is drawn anew.
    """
    watch = _current.get()
    with tqdm(items, desc=label, leave=False, disable=not watch.progress) as bar:
        for item in items:
            yield item
            if bar.update():
                bar.set_postfix_str(note())
            if time.monotonic() >= watch.deadline:
                return


def alarm() -> Callable[[], bool]:
    """A function that says whether the enclosing `watching` block's time limit is reached.

    For kernels on other threads, which do not see the block themselves.
    """
    deadline = _current.get().deadline
    return lambda: time.monotonic() >= deadline


def seconds_left() -> float:
    """Until the time limit of the enclosing `watching` block; infinite without one."""
    return _current.get().deadline - time.monotonic()
