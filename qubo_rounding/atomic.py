"""Files that are either whole or absent, wherever the process is killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`; what is written there becomes `path` when the block ends.

    The rename is atomic, so a reader (or a resumed run) sees the old file or the new one, never
    half of one. An exception in the block removes the temporary file and leaves `path` as it was.
    """
    path = Path(path)
    # The suffix stays last: numpy and others append one where it is missing.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
