"""A folder belongs to one run at a time, and to nobody after a run was killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from networks import batches, residual

from qubo_rounding.compare import compare
from qubo_rounding.folder_lock import locked
from qubo_rounding.network import quantise
from qubo_rounding.solvers import Nearest
from qubo_rounding.testing import random_problem


def hold(folder: Path, ready) -> None:
    with locked(folder):
        ready.set()
        signal.pause()


def test_the_second_run_is_refused(tmp_path):
    with locked(tmp_path), pytest.raises(ValueError, match="in use by another run"):
        quantise(residual(), batches(), solver=Nearest(), run=tmp_path)
    result = quantise(residual(), batches(), solver=Nearest(), run=tmp_path)
    assert result.records


def test_the_second_study_is_refused(tmp_path):
    problems, solvers = {"p": random_problem()}, {"near": Nearest()}
    with locked(tmp_path), pytest.raises(ValueError, match="in use by another run"):
        compare(problems, solvers, study=tmp_path)
    assert len(compare(problems, solvers, study=tmp_path)) == 1


def test_the_lock_ends_with_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), locked(tmp_path):
        raise KeyboardInterrupt
    with locked(tmp_path):
        pass


def test_a_killed_process_holds_no_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(30)
    with pytest.raises(ValueError, match="in use"), locked(tmp_path):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with locked(tmp_path):
        pass
