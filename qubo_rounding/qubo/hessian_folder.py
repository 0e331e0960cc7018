"""A folder with the finished parts of one Hessian: an interrupted computation goes on there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from qubo_rounding.kept_files import differing_keys, keep, kept

_PART_NAME = re.compile(r"part-(\d+)\.safetensors")


class HessianFolder:
    """Numbered parts, one file each: blocks of columns, or the sum over the first batches.

    Every file tells whose Hessian it belongs to.

    Args:
        path: the folder; made where it is missing.
        identity: everything that decides about the parts, JSON-serialisable.

    Raises:
        ValueError: the folder holds parts of another Hessian, or something else.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._identity = json.loads(json.dumps(dict(identity)))
        self.path.mkdir(parents=True, exist_ok=True)
        for file in sorted(self.path.iterdir()):
            # Hidden files do not count: a run killed early may have left a temporary one.
            if not file.name.startswith("."):
                self._check(file)

    def save(self, number: int, part: Tensor) -> None:
        """Keep one part."""
        keep(self._file(number), {"part": part}, {"identity": json.dumps(self._identity)})

    def replace(self, number: int, part: Tensor) -> None:
        """Keep this part and no other."""
        self.save(number, part)
        for other in set(self.numbers()) - {number}:
            self._file(other).unlink()

    def load(self, number: int) -> Tensor | None:
        """The part of this number, or None where it is still to be done.

        Raises:
            ValueError: its file is damaged.
        """
        file = self._file(number)
        if not file.exists():
            return None
        with kept(file) as content:
            return content.tensors["part"]

    def numbers(self) -> list[int]:
        """Which parts are kept, in order."""
        names = (_PART_NAME.fullmatch(file.name) for file in self.path.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def _file(self, number: int) -> Path:
        return self.path / f"part-{number:06d}.safetensors"

    def _check(self, file: Path) -> None:
        if not _PART_NAME.fullmatch(file.name):
            raise ValueError(
                f"{self.path} holds {file.name}, which is no part of a Hessian; give a new or an "
                "empty folder."
            )
        with kept(file) as content:
            found, wanted = json.loads(content.metadata["identity"]), self._identity
        if differing := differing_keys(found, wanted):
            raise ValueError(
                f"{self.path} holds parts of another Hessian (other {', '.join(differing)}). "
                "Give a new folder, or the same network, data and settings to go on there."
            )
