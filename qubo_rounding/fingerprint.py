"""Digests of tensors: is a run resumed with the same network and the same data?"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


def architecture(model: nn.Module) -> str:
    """SHA-256 of what a network's modules say that they are; weights do not count."""
    told = re.sub(r" at 0x[0-9a-f]+", "", repr(model))  # functions tell where they lie, too
    return hashlib.sha256(told.encode()).hexdigest()


class Fingerprint:
    """SHA-256 of the tensors seen so far, their dtypes and shapes; str() gives it."""

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        self._digest = hashlib.sha256()
        for tensor in tensors:
            self.add(tensor)

    def add(self, tensor: Tensor) -> None:
        """See one more tensor."""
        self._digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        self._digest.update(flat.view(torch.uint8).numpy().data)

    def passing(self, tensors: Iterable[Tensor]) -> Iterator[Tensor]:
        """The same tensors, each seen as it passes."""
        for tensor in tensors:
            self.add(tensor)
            yield tensor

    def __str__(self) -> str:
        return self._digest.hexdigest()
