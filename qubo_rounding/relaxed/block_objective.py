"""The reconstruction error of a block's output on stored samples, and its slopes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from qubo_rounding.layers import Layer
from qubo_rounding.relaxed.activations import quantisers_of
from qubo_rounding.relaxed.adam import Adam
from qubo_rounding.relaxed.blocks import Block
from qubo_rounding.relaxed.objective import Slopes
from qubo_rounding.relaxed.reconstruction import BlockReconstruction
from qubo_rounding.relaxed.sample_store import SampleStore

_TOGETHER = 2**20  # numbers that go into a block at once on a CPU


@dataclass(frozen=True)
class BlockCall:
    """One call of a block's module.

    Args:
        input: its first argument.
        others: its further arguments, none of them a tensor.
        settings: its keyword arguments.
        output: what it returned, after what follows the block.
    """

    input: Tensor
    others: tuple[Any, ...]
    settings: Mapping[str, Any]
    output: Tensor


class _Reached(BaseException):  # no `except Exception` of a model swallows it
    """The block has returned; the rest of the pass is not wanted."""


def block_call(model: nn.Module, block: Block, batch: Tensor) -> BlockCall:
    """A block's call in a pass of one batch, which ends there.

    Args:
        model: network in eval mode.
        block: one of its blocks.
        batch: inputs of the network.
    """
    inputs: list[Tensor] = []
    found: list[BlockCall] = []

    def enter(_: nn.Module, args: tuple) -> None:
        inputs.append(args[0].clone())  # the block may begin with an operation in place

    def leave(_: nn.Module, args: tuple, settings: dict, output: Tensor) -> None:
        found.append(BlockCall(inputs[0], args[1:], settings, block.following(output)))
        raise _Reached

    module = model.get_submodule(block.name)
    hooks = [
        module.register_forward_pre_hook(enter),
        module.register_forward_hook(leave, with_kwargs=True),
    ]
    try:
        with torch.no_grad(), suppress(_Reached):
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0]


class BlockObjective:
    """c * mean over samples and positions of sum over channels of f (y - y~)^2, or c * KL(y || y~).

    With y the float block's output on the float network's inputs, y~ that of the softly rounded one
    on those that the rounded network gives it, f the Fisher information where it is stored.

    Args:
        rounded: the rounded network, whose activation quantisers act if it has any.
        block: the block.
        layers: its layers.
        biases: (g r) theirs in the float network, one for each layer; None where there is none.
        call: a call of the block, for its other arguments.
        store: "input" and "target" of every sample, and "fisher" or not.
        settings: of the reconstruction.
        seed: of what is dropped.
    """

    def __init__(
        self,
        rounded: nn.Module,
        block: Block,
        layers: Sequence[Layer],
        biases: Sequence[Tensor | None],
        call: BlockCall,
        store: SampleStore,
        settings: BlockReconstruction,
        seed: int,
    ) -> None:
        self._module = rounded.get_submodule(block.name)
        self._quantisers = quantisers_of(rounded)
        self._block, self._layers, self._biases = block, layers, biases
        self._call, self._store, self._settings, self._seed = call, store, settings, seed
        on_cpu = call.input.device.type == "cpu"
        self._together = _TOGETHER // call.input[0].numel() if on_cpu else self.count
        self.factor = 1.0  # the c above
        self.extra: list[Adam] = []
        if self._quantisers is not None and settings.step_lr > 0:
            self.extra.append(Adam(self._quantisers.scale.detach().log(), settings.step_lr))

    @property
    def count(self) -> int:
        """Samples there are."""
        return self._store.count

    @torch.enable_grad()
    def slopes(
        self,
        weights: Sequence[Tensor],
        shifts: Sequence[Tensor],
        samples: Tensor,
        iteration: int | None = None,
    ) -> Slopes:
        """The mean loss over some samples, and its derivatives; see `Objective.slopes`."""
        leaves = [tensor.detach().requires_grad_() for tensor in (*weights, *shifts)]
        n = len(weights)
        total: list[Tensor] = []
        with self._steps() as steps:
            for part in samples.split(max(1, self._together)):
                with self._activations(iteration, int(part[0])):
                    loss = self._loss(leaves[:n], leaves[n:], self._store.take(part))
                loss = loss * (self.factor * len(part) / len(samples))
                slopes = torch.autograd.grad(loss, [*leaves, *steps], materialize_grads=True)
                found = [loss.detach(), *slopes]
                total = [a.add_(b) for a, b in zip(total, found, strict=True)] if total else found
        by_logarithm = [slope * steps[0].detach() for slope in total[2 * n + 1 :]]
        return Slopes(total[0], total[1 : n + 1], total[n + 1 : 2 * n + 1], by_logarithm)

    def steps(self) -> Tensor | None:
        """The scales of the activation quantisers as they are; None without quantisers."""
        return None if self._quantisers is None else self._quantisers.scale.detach().clone()

    def set_steps(self, steps: Tensor | None) -> None:
        """Put scales that `steps` gave back in their place."""
        if self._quantisers is not None and steps is not None:
            self._quantisers.scale.data.copy_(steps)

    def _loss(
        self, weights: Sequence[Tensor], shifts: Sequence[Tensor], rows: Mapping[str, Tensor]
    ) -> Tensor:
        parameters = {}
        for layer, bias, weight, shift in zip(
            self._layers, self._biases, weights, shifts, strict=True
        ):
            place = layer.name.removeprefix(self._block.name).lstrip(".")
            parameters[f"{place}.weight".lstrip(".")] = layer.weight(weight)
            if bias is not None:
                parameters[f"{place}.bias".lstrip(".")] = bias + shift.flatten()
        arguments = (rows["input"], *self._call.others)
        output = functional_call(self._module, parameters, arguments, dict(self._call.settings))
        output = self._block.following(output)
        if self._settings.divergence == "kl":
            wanted, given = (F.log_softmax(x, dim=1) for x in (rows["target"], output))
            return F.kl_div(given, wanted, reduction="batchmean", log_target=True)
        error = (output - rows["target"]).square()
        if "fisher" in rows:
            error = error * rows["fisher"]
        channels = error.shape[1] if error.ndim != 3 else error.shape[2]
        return error.mean() * channels

    @contextmanager
    def _steps(self) -> Iterator[list[Tensor]]:
        """The scales of the activation quantisers, where they are learned."""
        if not self.extra or self._quantisers is None:
            yield []
            return
        self._quantisers.scale.data.copy_(self.extra[0].value.exp())
        with self._quantisers.learning() as scale:
            yield [scale]

    @contextmanager
    def _activations(self, iteration: int | None, part: int) -> Iterator[None]:
        """Activation quantisers at work in the block, some of them dropped while it learns."""
        if self._quantisers is None:
            yield
            return
        with ExitStack() as stack:
            if self._block.name:  # the whole network turns its own on
                stack.enter_context(self._quantisers.active_in(self._block.name))
            if iteration is not None and self._settings.drop > 0:
                draw = torch.Generator().manual_seed(hash((self._seed, iteration, part)))
                stack.enter_context(self._quantisers.dropping(self._settings.drop, draw))
            yield
