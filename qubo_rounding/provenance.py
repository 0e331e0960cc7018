"""Where a number comes from: what ran, and on which machine."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import qubo_rounding


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What every record ends with.

    Args:
        package_version, torch_version, python_version: what ran.
        commit: of the package's repository, ending in -dirty after changes; empty without one.
        machine: processor and number of cores.
        device, threads: where the data lay, and torch's number of threads.
        time: of the end of the run, UTC, ISO 8601.
    """

    package_version: str
    torch_version: str
    python_version: str
    commit: str
    machine: str
    device: str
    threads: int
    time: str


def provenance() -> dict[str, Any]:
    """What ran and where: versions, commit, machine, threads; by the names of `Record`."""
    return {
        "package_version": qubo_rounding.__version__,
        "torch_version": torch.__version__,
        "python_version": platform.python_version(),
        "commit": _commit(),
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
    }


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _commit() -> str:
    repository = Path(__file__).parent.parent
    if not (repository / ".git").exists():  # git itself would go on to the folders above
        return ""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(describe, cwd=repository, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip()


def _processor() -> str:
    information = Path("/proc/cpuinfo")  # on Linux `platform` knows the architecture only
    lines = information.read_text().splitlines() if information.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())
