"""Tensors of many samples, kept within a memory budget: on the device, in host memory, on disk."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from itertools import chain

import numpy as np
import torch
from torch import Tensor


class SampleStore:
    """Named tensors, one row a sample, of which any rows can be taken; real ones in float32.

    Each tensor goes where there is room for all of it, in the order given: to the device (where
    that is a GPU, within the budget), to pinned or plain host memory (within the budget), else to
    an unnamed file in the temporary folder. Where it lies does not change its values.

    Args:
        count: samples.
        like: rows of every tensor, by name, which tell shape and kind of one sample.
        budget: bytes that may be held on the device, and again in host memory.
        device: where taken rows are wanted.
    """

    def __init__(
        self,
        count: int,
        like: Mapping[str, Tensor],
        budget: float,
        device: torch.device | str = "cpu",
    ) -> None:
        self.count = count
        device = torch.device(device)
        left = {"device": budget if device.type == "cuda" else 0.0, "host": budget}
        self._rows: dict[str, _InMemory | _OnDisk] = {}
        for name, rows in like.items():
            dtype = torch.float32 if rows.is_floating_point() else rows.dtype
            sample = torch.empty((count, *rows.shape[1:]), dtype=dtype, device="meta")
            size = sample.nbytes
            place = next((place for place, room in left.items() if size <= room), None)
            if place is None:
                self._rows[name] = _OnDisk(sample, device)
            else:
                left[place] -= size
                home = device if place == "device" else torch.device("cpu")
                self._rows[name] = _InMemory(sample, home, device)

    def put(self, start: int, rows: Mapping[str, Tensor]) -> None:
        """Keep rows from sample `start` on, of every tensor as many."""
        for name, values in rows.items():
            self._rows[name].put(start, values.detach())

    def take(self, samples: slice | Tensor) -> dict[str, Tensor]:
        """The rows of some samples on the device: views where a slice of them lies there.

        Args:
            samples: a slice with bounds, or int64 (n,) on the CPU.
        """
        return {name: rows.take(samples) for name, rows in self._rows.items()}


def filled_store(
    batches: Iterator[Mapping[str, Tensor]], images: int, first_images: int, budget: float, of: str
) -> SampleStore:
    """A store with the rows of all batches, on the device of the first.

    Args:
        batches: rows by name, for one batch of images after the other.
        images: in all batches.
        first_images: in the first of them; what it has more rows, every batch has more.
        budget: as for `SampleStore`.
        of: what they are rows of, for the message.

    Raises:
        ValueError: rows are not so many for every image.
    """
    first = next(batches)
    rows = len(next(iter(first.values())))
    count = images * rows // first_images
    store = SampleStore(count, first, budget, next(iter(first.values())).device)
    start = 0
    for batch in chain([first], batches):
        stop = start + len(next(iter(batch.values())))
        if rows % first_images or stop > count:
            break
        store.put(start, batch)
        start = stop
    if start != count:
        raise ValueError(
            f"{of} does not see the same number of inputs for every image, which reconstruction "
            "draws by image. Leave it out with skip, or choose a solver."
        )
    return store


class _InMemory:
    def __init__(self, like: Tensor, home: torch.device, device: torch.device) -> None:
        pinned = home.type == "cpu" and device.type == "cuda"
        self._rows = torch.empty(like.shape, dtype=like.dtype, device=home, pin_memory=pinned)
        self._device = device

    def put(self, start: int, values: Tensor) -> None:
        self._rows[start : start + len(values)] = values

    def take(self, samples: slice | Tensor) -> Tensor:
        if isinstance(samples, Tensor):
            samples = samples.to(self._rows.device)
        return self._rows[samples].to(self._device, non_blocking=True)


class _OnDisk:
    """Rows in a file that is read explicitly: a mapped one would count as this process's memory."""

    def __init__(self, like: Tensor, device: torch.device) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._like, self._device = like, device
        self._row_bytes = like.nbytes // len(like)
        self._file.truncate(like.nbytes)

    def put(self, start: int, values: Tensor) -> None:
        array = values.to("cpu", self._like.dtype).contiguous().numpy()
        self._file.seek(start * self._row_bytes)
        self._file.write(array.data)
        self._file.flush()

    def take(self, samples: slice | Tensor) -> Tensor:
        if isinstance(samples, slice):
            numbers = list(range(samples.start, samples.stop))
        else:
            numbers = samples.tolist()
        rows = torch.empty((len(numbers), *self._like.shape[1:]), dtype=self._like.dtype)
        for row, number in zip(rows.numpy(), numbers, strict=True):
            view = row.reshape(-1).view(np.uint8)
            done = 0
            while done < self._row_bytes:  # one call reads at most 2 GiB
                at = number * self._row_bytes + done
                done += os.preadv(self._file.fileno(), [view[done:]], at)
        return rows.to(self._device)
