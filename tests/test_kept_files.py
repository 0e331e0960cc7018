"""Files that were kept come back whole, or are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from qubo_rounding.kept_files import keep, kept

TENSORS = {"b": torch.arange(6).view(2, 3), "a": torch.tensor(2.5, dtype=torch.float64)}


def content(path: Path) -> tuple[dict[str, str], dict[str, list]]:
    with kept(path) as file:
        return file.metadata, {name: file.tensors[name].tolist() for name in TENSORS}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kept") / "layer.safetensors"
    keep(path, TENSORS, {"record": "{}"})
    return path


def test_what_was_kept_comes_back(file):
    metadata, tensors = content(file)
    assert metadata["record"] == "{}"
    assert tensors == {name: tensor.tolist() for name, tensor in TENSORS.items()}


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_flipped_bit_or_a_lost_end_is_noticed(file, tmp_path, data):
    whole = file.read_bytes()
    damaged = bytearray(whole)
    if data.draw(st.booleans()):
        damaged[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del damaged[data.draw(st.integers(0, len(whole) - 1)) :]
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(bytes(damaged))
    try:
        found = content(path)
    except ValueError as error:
        told = str(error)
    else:
        told = "harmless" if found == content(file) else "wrong"  # spaces may pad the header
    assert told == "harmless" or "damaged.safetensors is damaged" in told


def test_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"foreign\.safetensors is damaged \(it has no checksum\)"):
        content(path)


def test_metadata_count(tmp_path):
    path = tmp_path / "changed.safetensors"
    keep(path, TENSORS, {"record": "1"})
    changed = path.read_bytes().replace(b'"record":"1"', b'"record":"2"')
    path.write_bytes(changed)
    with pytest.raises(ValueError, match="its checksum is another one"):
        content(path)
