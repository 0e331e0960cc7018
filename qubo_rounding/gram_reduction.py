"""Grams of data that several processes went through, each through its share: sums of sums."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import distributed

from qubo_rounding.statistics import Gram


def all_reduce_grams(grams: Mapping[str, Gram]) -> dict[str, Gram]:
    """The Grams of all processes of torch.distributed's default group together, in every process.

    Each calls `collect_grams` on batches of its own and then this. Sums are float64; their order is
    the backend's, so the last bits may depend on the number of processes.

    Args:
        grams: of the same layers, in the same order, in every process.

    Raises:
        ValueError: no process group is there, or the processes have Grams of different layers.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        raise ValueError(
            "there is no process group; call torch.distributed.init_process_group first, as under "
            "torchrun."
        )
    _check_same_layers(grams)
    return {name: _reduced(gram) for name, gram in grams.items()}


def _reduced(gram: Gram) -> Gram:
    count = torch.tensor(gram.count, device=gram.second.device)
    distributed.all_reduce(count)
    sums = {name: tensor.clone() for name, tensor in gram.tensors().items()}
    for tensor in sums.values():
        distributed.all_reduce(tensor)
    return Gram(count=int(count), **sums)


def _check_same_layers(grams: Mapping[str, Gram]) -> None:
    shapes = [
        (name, {k: list(t.shape) for k, t in g.tensors().items()}) for name, g in grams.items()
    ]
    digest = hashlib.sha256(json.dumps(shapes).encode()).digest()
    number = int.from_bytes(digest[:7], "big")
    device = next(iter(grams.values())).second.device if grams else torch.device("cpu")
    ends = torch.tensor([number, -number], device=device)
    distributed.all_reduce(ends, op=distributed.ReduceOp.MAX)
    if int(ends[0]) != -int(ends[1]):
        raise ValueError(
            f"the processes have Grams of different layers; this one has {list(grams)}. Collect "
            "those of one network everywhere."
        )
