"""How much memory is free, and what work will take: told and refused before it begins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from tqdm import tqdm

_NEGLIGIBLE = 2**26  # bytes; asking what is free takes longer than small problems do


def free_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that can still be taken on a device; on a CPU within what its container may hold."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(psutil.virtual_memory().available, *_left_in_containers(Path("/")))


def check_room(needed: float, work: str, remedy: str, device: torch.device | str = "cpu") -> None:
    """Nothing, where there is room.

    Args: as for `lacking_room`.

    Raises:
        ValueError: there is not, with its message.
    """
    if message := lacking_room(needed, work, remedy, device):
        raise ValueError(message)


def lacking_room(
    needed: float, work: str, remedy: str, device: torch.device | str = "cpu"
) -> str | None:
    """What is needed, what is free and what to change, in one sentence; None where there is room.

    Args:
        needed: bytes, beyond what is held already.
        work: what needs them.
        remedy: what to change, in the imperative.
        device: where they are needed.
    """
    if needed <= _NEGLIGIBLE or needed <= (free := free_memory(device)):
        return None
    return f"{work} takes {size_of(needed)}, and {size_of(free)} are free; {remedy}."


def size_of(count: float) -> str:
    """Bytes as people read them: 1.42 GiB."""
    text = tqdm.format_sizeof(count, "", 1024)
    return f"{text[:-1]} {text[-1]}iB" if text[-1].isalpha() else f"{text} bytes"


@dataclass(frozen=True)
class _Kind:
    """Where Linux tells what a control group may hold, what it holds, and what of it is a cache."""

    place: str
    line: str  # begins that of /proc/self/cgroup which names the group
    most: str
    held: str
    cached: str


_KINDS = (
    _Kind("sys/fs/cgroup", "0::", "memory.max", "memory.current", "inactive_file"),
    _Kind(
        *("sys/fs/cgroup/memory", ":memory:", "memory.limit_in_bytes"),
        *("memory.usage_in_bytes", "total_inactive_file"),
    ),
)


def _left_in_containers(root: Path) -> Iterator[int]:
    """Bytes left to the control groups that this process is in, where they have limits."""
    yield psutil.virtual_memory().total
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # another system
        return
    for kind in _KINDS:
        top = root / kind.place
        for line in lines:
            if kind.line in line:
                group = top / line.rpartition(":")[2].lstrip("/")
                for folder in (group, *group.parents):
                    if folder.is_relative_to(top):
                        yield from _left_in(folder, kind)


def _left_in(folder: Path, kind: _Kind) -> Iterator[int]:
    try:
        most = (folder / kind.most).read_text().strip()
        held = int((folder / kind.held).read_text())
        pairs = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # outermost groups have no such files
        return
    if most != "max":
        yield max(0, int(most) - held + int(pairs.get(kind.cached, 0)))
