"""A folder with the finished columns of one Hessian: an interrupted computation goes on there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qubo_rounding.atomic import atomic_path

_BLOCK_NAME = re.compile(r"columns-(\d+)\.safetensors")


class ColumnFolder:
    """Finished blocks of columns, one file each; every file tells whose Hessian it belongs to.

    Args:
        path: the folder; made where it is missing.
        identity: everything that decides about the columns, JSON-serialisable.

    Raises:
        ValueError: the folder holds columns of another Hessian, or something else.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._identity = json.loads(json.dumps(dict(identity)))
        self.path.mkdir(parents=True, exist_ok=True)
        for file in sorted(self.path.iterdir()):
            # Hidden files do not count: a run killed early may have left a temporary one.
            if not file.name.startswith("."):
                self._check(file)

    def save(self, start: int, columns: Tensor) -> None:
        """Keep the columns (k, d) from number `start` on."""
        metadata = {"identity": json.dumps(self._identity)}
        with atomic_path(self._file(start)) as temporary:
            save_file({"columns": columns.cpu().contiguous()}, temporary, metadata=metadata)

    def load(self, start: int) -> Tensor | None:
        """The columns (k, d) kept from number `start` on, or None where they are still to be done.

        Raises:
            ValueError: their file is damaged.
        """
        file = self._file(start)
        if not file.exists():
            return None
        with _reading(file) as content:
            return content.get_tensor("columns")

    def count(self) -> int:
        """How many blocks are kept."""
        return sum(1 for _ in self.path.glob("columns-*.safetensors"))

    def _file(self, start: int) -> Path:
        return self.path / f"columns-{start:06d}.safetensors"

    def _check(self, file: Path) -> None:
        if not _BLOCK_NAME.fullmatch(file.name):
            raise ValueError(
                f"{self.path} holds {file.name}, which is no block of columns; give a new or an "
                "empty folder."
            )
        with _reading(file) as content:
            found, wanted = json.loads((content.metadata() or {})["identity"]), self._identity
        differing = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
        if differing:
            raise ValueError(
                f"{self.path} holds columns of another Hessian (other {', '.join(differing)}). "
                "Give a new folder, or the same network, data and settings to go on there."
            )


@contextmanager
def _reading(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as content:
            yield content
    except (SafetensorError, KeyError, JSONDecodeError) as error:
        raise ValueError(f"{file} is damaged ({error}); delete it and run again.") from error
