"""Safetensors files that resumable work leaves behind, and what tells two such works apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qubo_rounding.atomic import atomic_path


def keep(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors from any device to a file, which is whole or absent."""
    on_cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(on_cpu, temporary, metadata=dict(metadata))


@contextmanager
def kept(path: Path) -> Iterator[Any]:
    """The open file, for `get_tensor` and `metadata`.

    Raises:
        ValueError: it is damaged, or lacks what the block looks for.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and run again.") from error


def differing_keys(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The keys of either whose values are not the same, in order."""
    return [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
