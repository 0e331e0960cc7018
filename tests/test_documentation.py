"""The API reference is built without a warning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pdoc")

NAMES = ("qubo_rounding", "qubo_rounding.guides")


def test_the_reference_is_built_without_warnings(tmp_path: Path) -> None:
    call = [sys.executable, "-W", "error", "-m", "pdoc", "--math", "-o", str(tmp_path)]
    done = subprocess.run([*call, *NAMES], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "warn" not in done.stderr.lower(), done.stderr[-2000:]
    page = (tmp_path / "qubo_rounding" / "guides.html").read_text()
    assert "What you can rely on" in page
    assert "I have a dimod sampler" in page
    assert "RoundingProblem" in (tmp_path / "qubo_rounding.html").read_text()
