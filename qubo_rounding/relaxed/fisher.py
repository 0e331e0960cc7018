"""How much each output of each block matters to the network's answer: its Fisher information."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qubo_rounding.relaxed.blocks import Block
from qubo_rounding.relaxed.sample_store import SampleStore, filled_store


def fisher_information(
    model: nn.Module, blocks: Sequence[Block], batches: Sequence[Tensor], budget: float, seed: int
) -> SampleStore:
    """The diagonal of each block's Fisher information, sample by sample: (dL / dy)^2.

    L is the negative log-likelihood of a label that is drawn from the network's own answer, so no
    labels are needed and the mean is the Fisher information, not an empirical stand-in.

    Args:
        model: the float network, whose outputs are logits (n, classes).
        blocks: their outputs are looked at, before what follows them.
        batches: calibration batches.
        budget: bytes to hold in memory; what is more goes to disk.
        seed: of the labels.

    Returns:
        A store with one tensor for each block, by its name, shaped as its outputs.

    Raises:
        ValueError: the network's outputs are no logits.

    Source: Li et al. 2021 (BRECQ), arXiv 2102.05426, eq 10; Martens 2020, arXiv 1412.1193.
    """
    draw = torch.Generator().manual_seed(seed % 2**63)
    rows = (_of_batch(model, blocks, batch, draw) for batch in batches)
    return filled_store(rows, sum(map(len, batches)), len(batches[0]), budget, "a block")


def _of_batch(
    model: nn.Module, blocks: Sequence[Block], batch: Tensor, draw: torch.Generator
) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = {}

    def recording(name: str) -> Any:
        def record(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            # A copy: what follows may change the output in place.
            outputs[name] = output if output.requires_grad else output.detach().requires_grad_()
            return outputs[name].clone()

        return record

    with ExitStack() as hooks, torch.enable_grad():
        for block in blocks:
            module = model.get_submodule(block.name)
            hooks.callback(module.register_forward_hook(recording(block.name)).remove)
        logits = model(batch)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise ValueError(
            "the network's outputs are no logits (n, classes), which the Fisher information needs; "
            "give fisher=False."
        )
    answers = logits.detach().double().softmax(dim=1).cpu()
    labels = torch.multinomial(answers, 1, generator=draw).flatten().to(logits.device)
    loss = F.cross_entropy(logits, labels, reduction="sum")
    slopes = torch.autograd.grad(loss, list(outputs.values()), materialize_grads=True)
    return {name: slope.square() for name, slope in zip(outputs, slopes, strict=True)}
