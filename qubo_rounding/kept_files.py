"""Safetensors files that resumable work leaves behind, and what tells two such works apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qubo_rounding.atomic import atomic_path
from qubo_rounding.fingerprint import Fingerprint

_CHECKSUM = "sha256"  # its key in the metadata


def keep(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors from any device to a file, which is whole or absent, with a checksum."""
    on_cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    checked = {**metadata, _CHECKSUM: _checksum(on_cpu, metadata)}
    with atomic_path(path) as temporary:
        save_file(on_cpu, temporary, metadata=checked)


@dataclass(frozen=True)
class Kept:
    """What a file holds: tensors on the CPU, and words about them."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


@contextmanager
def kept(path: Path) -> Iterator[Kept]:
    """The content of a file that `keep` wrote, checked.

    Raises:
        ValueError: it is damaged, none of ours, or lacks what the block looks for.
    """
    try:
        yield _checked(path)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and run again.") from error


def file_name(module: str) -> str:
    """A module's name as the stem of a file's: whatever is no plain character is escaped."""
    return quote(module, safe="") or "model"


def differing_keys(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The keys of either whose values are not the same, in order."""
    return [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]


def _checked(path: Path) -> Kept:
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    told = metadata.pop(_CHECKSUM, None)
    if told is None:
        raise ValueError("it has no checksum")
    if told != _checksum(tensors, metadata):
        raise ValueError("its checksum is another one")
    return Kept(tensors, metadata)


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of names, tensors and metadata, in the order of their names."""
    digest = hashlib.sha256(repr(sorted(metadata.items())).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {Fingerprint([tensors[name]])}".encode())
    return digest.hexdigest()
