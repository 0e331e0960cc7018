"""Packages of extras: missing, or built for another torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from qubo_rounding.extras import imported


def test_a_missing_package_is_named_with_its_extra() -> None:
    with pytest.raises(ValueError, match=r'pip install "qubo-rounding\[timm\]"'):
        imported("no_such_package", "timm")


def test_a_package_built_for_another_torch_is_to_be_reinstalled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'raise RuntimeError("operator torchvision::nms does not exist")\n'
    (tmp_path / "mismatched.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"nms does not exist.* reinstall torchvision") as told:
        imported("mismatched", "torchvision")
    assert "pip install" not in str(told.value)
