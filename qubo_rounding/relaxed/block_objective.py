"""The reconstruction error of a block's output on stored samples, and its slopes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from qubo_rounding.layers import Layer
from qubo_rounding.relaxed.activations import ActivationQuantisers, quantisers_of
from qubo_rounding.relaxed.adam import Adam
from qubo_rounding.relaxed.blocks import Block
from qubo_rounding.relaxed.objective import Slopes
from qubo_rounding.relaxed.reconstruction import BlockReconstruction
from qubo_rounding.relaxed.sample_store import SampleStore
from qubo_rounding.solvers.random_numbers import stream_keys, uniforms

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
        # Convolutions take the order of their weights' memory. With the channels last the whole
        # network takes two thirds of the time on a CPU; single blocks gain nothing.
        self._channels_last = on_cpu and not block.name
        self.factor = 1.0  # the c above
        self.extra: list[Adam] = []
        if self._quantisers is not None and settings.step_lr > 0:
            self._quantisers.learn(True)
            steps = torch.stack(scales_of(self._quantisers)).detach()
            self.extra.append(Adam(steps.log(), settings.step_lr))

    @property
    def count(self) -> int:
        """Samples there are."""
        return self._store.count

    @torch.no_grad()
    def loss(self, weights: Sequence[Tensor], shifts: Sequence[Tensor], samples: Tensor) -> Tensor:
        """The mean loss over some samples alone; see `Objective.loss`."""
        self._take_steps()
        total = torch.zeros((), device=weights[0].device)
        for part in self._parts(samples):
            total += self._loss(weights, shifts, self._store.take(part), None) * len(part)
        return self.factor / len(samples) * total

    @torch.enable_grad()
    def slopes(
        self,
        weights: Sequence[Tensor],
        shifts: Sequence[Tensor],
        samples: Tensor,
        iteration: int | None = None,
    ) -> Slopes:
        """The mean loss over some samples, and its derivatives; see `Objective.slopes`."""
        self._take_steps()
        steps = self._scales() if self.extra else []
        leaves = [tensor.detach().requires_grad_() for tensor in (*weights, *shifts)]
        n = len(weights)
        total: list[Tensor] = []
        for part in self._parts(samples):
            draw = None if iteration is None else _key(self._seed, iteration, int(part[0]))
            loss = self._loss(leaves[:n], leaves[n:], self._store.take(part), draw)
            loss = loss * (self.factor * len(part) / len(samples))
            slopes = torch.autograd.grad(loss, [*leaves, *steps], materialize_grads=True)
            found = [loss.detach(), *slopes]
            total = [a.add_(b) for a, b in zip(total, found, strict=True)] if total else found
        by_step = total[2 * n + 1 :]
        extra = [torch.stack(by_step) * torch.stack(steps).detach()] if steps else []
        return Slopes(total[0], total[1 : n + 1], total[n + 1 : 2 * n + 1], extra)

    def steps(self) -> Tensor | None:
        """(sites,) the scales of the activation quantisers as they are; None without any."""
        scales = self._scales()
        return torch.stack(scales).detach().clone() if scales else None

    def finish(self, steps: Tensor | None = None) -> None:
        """Learn no more, with the scales given or as they were learned."""
        if steps is not None:
            self._set_steps(steps)
        if self._quantisers is not None:
            self._quantisers.learn(False)

    def _parts(self, samples: Tensor) -> Sequence[Tensor]:
        return samples.split(max(1, self._together))

    def _take_steps(self) -> None:
        if self.extra:
            self._set_steps(self.extra[0].value.exp())

    def _scales(self) -> list[Tensor]:
        return [] if self._quantisers is None else scales_of(self._quantisers)

    def _set_steps(self, steps: Tensor) -> None:
        for scale, step in zip(self._scales(), steps, strict=True):
            scale.data.copy_(step)

    def _loss(
        self,
        weights: Sequence[Tensor],
        shifts: Sequence[Tensor],
        rows: Mapping[str, Tensor],
        draw: int | None,
    ) -> Tensor:
        parameters = {}
        for layer, bias, weight, shift in zip(
            self._layers, self._biases, weights, shifts, strict=True
        ):
            place = layer.name.removeprefix(self._block.name).lstrip(".")
            weight = layer.weight(weight)
            if self._channels_last and weight.ndim == 4:
                weight = weight.contiguous(memory_format=torch.channels_last)
            parameters[f"{place}.weight".lstrip(".")] = weight
            if bias is not None:
                parameters[f"{place}.bias".lstrip(".")] = bias + shift.flatten()
        output = self._block.following(self._run(parameters, rows["input"], draw))
        if self._settings.divergence == "kl":
            wanted, given = (F.log_softmax(x, dim=1) for x in (rows["target"], output))
            return F.kl_div(given, wanted, reduction="batchmean", log_target=True)
        error = (output - rows["target"]).square()
        if "fisher" in rows:
            error = error * rows["fisher"]
        last = self._layers[-1].kind == "linear"  # then channels are the last dimension
        return error.mean() * error.shape[-1 if last else 1]

    def _run(self, parameters: dict[str, Tensor], x: Tensor, draw: int | None) -> Tensor:
        """The block's output, its activations quantised, some of them dropped while it learns."""
        with ExitStack() as stack:
            if self._quantisers is not None:
                if draw is not None and self._settings.drop > 0:
                    stack.enter_context(self._quantisers.dropping(self._settings.drop, draw))
                if self._block.name:  # the whole network turns its own on
                    stack.enter_context(self._quantisers.active_in(self._block.name))
            arguments, settings = (x, *self._call.others), dict(self._call.settings)
            return functional_call(self._module, parameters, arguments, settings)


def scales_of(quantisers: ActivationQuantisers) -> list[Tensor]:
    """The scale parameters of all sites, in their order."""
    return [quantisers[site].scale for site in quantisers.sites]


def _key(seed: int, iteration: int, sample: int) -> int:
    """A seed of its own for one part of one minibatch."""
    return int(uniforms(stream_keys(seed, torch.tensor(iteration), sample), 1)[0] * 2**53)
