"""Reading and writing the `.npz` exchange files, with one clear message for each bad one."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile, ZipFile, is_zipfile

import numpy as np
import torch
from torch import Tensor

from qubo_rounding.atomic import atomic_path
from qubo_rounding.room import check_room

_UNREADABLE = (ValueError, OSError, EOFError, KeyError, MemoryError)


class ProblemError(ValueError):
    """A rounding problem, solution or exchange file that does not fit its definition."""


def check_npz_path(path: str | Path) -> None:
    """Nothing, for a path that an exchange file can be written to.

    Raises:
        ProblemError: it does not end in .npz, its folder is not there, or it is a folder itself.
    """
    if Path(path).suffix != ".npz":
        raise ProblemError(f"{path}: exchange files end in .npz.")
    if Path(path).is_dir():
        raise ProblemError(f"{path} is a folder; name a file.")
    if not Path(path).parent.is_dir():
        raise ProblemError(f"{path}: there is no folder {Path(path).parent}; make it first.")


def save_npz(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays to an `.npz` file in one step."""
    check_npz_path(path)
    with atomic_path(path) as temporary:
        np.savez(temporary, **arrays)  # pyright: ignore[reportArgumentType]


def check_npz_file(path: str | Path) -> None:
    """Nothing, where a file may be an exchange file: told before work that reads it later.

    Raises:
        ProblemError: it is not there, is cut, or is something else.
    """
    _check_there(path)
    if not is_zipfile(path):  # its directory stands at the end
        raise _unreadable(path, "it is no zip file, or the beginning of one")


def load_npz(path: str | Path, required: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The named arrays of an `.npz` file; object arrays are never unpickled.

    Raises:
        ProblemError: not a readable `.npz` of plain arrays, or a required one is missing.
    """
    _check_there(path)
    try:
        with Path(path).open("rb") as file:  # numpy forgets to close its own when it fails
            _check_size(file)
            arrays = _named_arrays(np.load(file, allow_pickle=False))
    # RuntimeError is zipfile's for encryption and unknown compression, MemoryError numpy's for a
    # header that tells of more numbers than there can be.
    except (*_UNREADABLE, RuntimeError, BadZipFile, zlib.error) as error:
        raise _unreadable(path, error) from error
    if missing := [name for name in required if name not in arrays]:
        raise ProblemError(f"{path} lacks {missing}; it needs {list(required)}.")
    return arrays


def _check_there(path: str | Path) -> None:
    if not Path(path).is_file():
        raise ProblemError(f"{path}: no such file.")


def _unreadable(path: str | Path, why: object) -> ProblemError:
    return ProblemError(
        f"{path} is not a readable .npz file of plain arrays ({why}); write it with save()."
    )


def _check_size(file: BinaryIO) -> None:
    """An archive may hold a thousand times its own size: refused where that cannot be held."""
    if is_zipfile(file):
        with ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
        check_room(size, "unpacking it", "take a machine with more")
    file.seek(0)


def _named_arrays(content: Any) -> dict[str, np.ndarray]:
    if isinstance(content, np.ndarray):
        raise ValueError("it is a single array")
    arrays = {name: content[name] for name in content.files}
    if strange := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise ValueError(f"{strange} are no arrays")
    return arrays


def tensor_from(path: str | Path, name: str, array: np.ndarray) -> Tensor:
    """An array of numbers as a tensor of its own.

    Raises:
        ProblemError: it holds no real or integer numbers.
    """
    if array.dtype.kind not in "fiu":
        raise ProblemError(f"{path}: {name} has dtype {array.dtype}; give real or integer numbers.")
    # Foreign writers leave other byte orders, unsigned integers and long doubles.
    native = {"f": np.float64, "u": np.int64, "i": array.dtype.newbyteorder("=")}
    return torch.from_numpy(array.astype(native[array.dtype.kind], order="C"))


def json_from(path: str | Path, array: np.ndarray | None, name: str) -> dict[str, Any]:
    """The JSON object in a string array; empty where there is none.

    Raises:
        ProblemError: it is not a JSON object.
    """
    if array is None:
        return {}
    try:
        value = json.loads(str(array))
    except json.JSONDecodeError as error:
        raise ProblemError(f"{path}: {name} is not JSON ({error}).") from None
    if not isinstance(value, dict):
        raise ProblemError(f"{path}: {name} is a JSON {type(value).__name__}; give an object.")
    return value
