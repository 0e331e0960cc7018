"""Tensors of many samples, kept within a memory budget: on the device, in host memory, on disk."""

from __future__ import annotations

import math
import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor


class SampleStore:
    """Named float32 tensors, one row a sample, of which any rows can be taken.

    Each tensor goes where there is room for all of it, in the order given: to the device (where
    that is a GPU, within the budget), to pinned or plain host memory (within the budget), else to
    an unnamed file in the temporary folder. Where it lies does not change its values.

    Args:
        count: samples.
        shapes: of one sample of every tensor, by name.
        budget: bytes that may be held on the device, and again in host memory.
        device: where taken rows are wanted.
    """

    def __init__(
        self,
        count: int,
        shapes: Mapping[str, Sequence[int]],
        budget: float,
        device: torch.device | str = "cpu",
    ) -> None:
        self.count = count
        device = torch.device(device)
        left = {"device": budget if device.type == "cuda" else 0.0, "host": budget}
        self._rows: dict[str, _InMemory | _OnDisk] = {}
        for name, shape in shapes.items():
            size = 4 * count * math.prod(shape)
            place = next((place for place, room in left.items() if size <= room), None)
            if place is None:
                self._rows[name] = _OnDisk(count, tuple(shape), device)
            else:
                left[place] -= size
                home = device if place == "device" else torch.device("cpu")
                self._rows[name] = _InMemory(count, tuple(shape), home, device)

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
    batches: Iterator[Mapping[str, Tensor]], images: int, first_images: int, budget: float
) -> SampleStore:
    """A store with the rows of all batches, on the device of the first.

    Args:
        batches: rows by name, for one batch of images after the other.
        images: in all batches.
        first_images: in the first of them; what it has more rows, every batch has more.
        budget: as for `SampleStore`.
    """
    first = next(batches)
    rows = len(next(iter(first.values())))
    store = SampleStore(
        images * rows // first_images,
        {name: values.shape[1:] for name, values in first.items()},
        budget,
        next(iter(first.values())).device,
    )
    start = 0
    for batch in chain([first], batches):
        store.put(start, batch)
        start += len(next(iter(batch.values())))
    return store


class _InMemory:
    def __init__(
        self, count: int, shape: tuple[int, ...], home: torch.device, device: torch.device
    ) -> None:
        pinned = home.type == "cpu" and device.type == "cuda"
        self._rows = torch.empty(count, *shape, device=home, pin_memory=pinned)
        self._device = device

    def put(self, start: int, values: Tensor) -> None:
        self._rows[start : start + len(values)] = values

    def take(self, samples: slice | Tensor) -> Tensor:
        if isinstance(samples, Tensor):
            samples = samples.to(self._rows.device)
        return self._rows[samples].to(self._device, non_blocking=True)


class _OnDisk:
    """Rows in a file that is read explicitly: a mapped one would count as this process's memory."""

    def __init__(self, count: int, shape: tuple[int, ...], device: torch.device) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._shape, self._device = shape, device
        self._row_bytes = 4 * math.prod(shape)
        self._file.truncate(count * self._row_bytes)

    def put(self, start: int, values: Tensor) -> None:
        array = values.to("cpu", torch.float32).contiguous().numpy()
        self._file.seek(start * self._row_bytes)
        self._file.write(array.data)
        self._file.flush()

    def take(self, samples: slice | Tensor) -> Tensor:
        if isinstance(samples, slice):
            numbers = list(range(samples.start, samples.stop))
        else:
            numbers = samples.tolist()
        rows = np.empty((len(numbers), *self._shape), np.float32)
        for row, number in zip(rows, numbers, strict=True):
            view = row.reshape(-1).view(np.uint8)
            done = 0
            while done < self._row_bytes:  # one call reads at most 2 GiB
                at = number * self._row_bytes + done
                done += os.preadv(self._file.fileno(), [view[done:]], at)
        return torch.from_numpy(rows).to(self._device)
