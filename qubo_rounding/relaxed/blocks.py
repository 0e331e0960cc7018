"""The blocks of a network that are reconstructed together, found by what its modules do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qubo_rounding.batch_norm import tensors_in
from qubo_rounding.following import Following, addends, find_following
from qubo_rounding.function_watch import FunctionWatch
from qubo_rounding.layers import Layer


@dataclass(frozen=True)
class Block:
    """A module whose layers are reconstructed together.

    Args:
        name: of the module; "" is the whole network.
        layers: names of the layers in it, in the order of execution.
        following: what its output goes through before it is compared; nothing as a rule.
    """

    name: str
    layers: tuple[str, ...]
    following: Following = field(default_factory=Following)


def find_blocks(
    model: nn.Module,
    layers: Mapping[str, Layer],
    batch: Tensor,
    names: Iterable[str] | None = None,
) -> list[Block]:
    """The blocks of a network, in the order of execution; together they hold every layer once.

    A block is a module of a class that adds two tensors in its own forward, as residual blocks do,
    whether this one does or not. Layers outside of all blocks are blocks of their own, compared
    after the activation function that follows them.

    Args:
        model: network in eval mode.
        layers: the layers to be rounded, in the order of execution.
        batch: one batch of inputs, which is run through the network.
        names: of the modules that are to be the blocks instead; "" is the whole network.

    Raises:
        ValueError: a name that is no module, holds no layer, or lies within another one; a module
            that the pass calls more than once, or not with one tensor in and one out.
    """
    calls = _module_calls(model, batch)
    following = find_following(model, layers, batch)
    adding = {type(model.get_submodule(name)) for name in calls.adding}
    chosen = (
        [name for name, module in model.named_modules() if name and type(module) in adding]
        if names is None
        else list(names)
    )
    blocks: dict[str, list[str]] = {}
    for layer in layers:
        owners = [name for name in chosen if _lies_in(layer, name)]
        if names is None:
            owners = [name for name in owners if calls.problem(name) is None][:1]
        if len(owners) > 1:
            raise ValueError(f"layer {layer!r} lies in {owners}; give blocks that do not overlap.")
        blocks.setdefault(owners[0] if owners else layer, []).append(layer)
    for name in chosen if names is not None else ():
        if name not in blocks:
            raise ValueError(f"there is no layer to round in a module {name!r}; leave it out.")
        if (problem := calls.problem(name)) is not None:
            raise ValueError(f"{name!r} cannot be a block: {problem}.")
    return [
        Block(name, tuple(inside), following[name] if inside == [name] else Following())
        for name, inside in blocks.items()
    ]


def _lies_in(layer: str, module: str) -> bool:
    return module in ("", layer) or layer.startswith(module + ".")


class _Calls(FunctionWatch):
    """How modules are called in a pass, and which of them add tensors in their own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.adding: set[str] = set()
        self._stack: list[str] = []
        self._problems: dict[str, str | None] = {}

    def problem(self, name: str) -> str | None:
        """Why a module cannot be a block; None where it can."""
        return self._problems.get(name, "the forward pass does not call it")

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        hooks = []
        for name, module in model.named_modules():
            hooks.append(module.register_forward_pre_hook(self._entering(name)))
            hooks.append(module.register_forward_hook(self._leaving(name), with_kwargs=True))
        try:
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def observe(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """See `FunctionWatch.observe`."""
        if self._stack and addends(func, args, kwargs):
            self.adding.add(self._stack[-1])
        return func(*args, **kwargs)

    def _entering(self, name: str) -> Any:
        return lambda *_: self._stack.append(name)

    def _leaving(self, name: str) -> Any:
        def leave(_: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            self._stack.pop()
            tensors = list(tensors_in((args, kwargs)))
            problem = None
            if name in self._problems:
                problem = "the forward pass calls it more than once"
            elif len(tensors) != 1 or not args or tensors[0] is not args[0]:
                problem = "it is not called with one tensor as its first argument"
            elif not isinstance(output, Tensor):
                problem = "it does not return one tensor"
            self._problems[name] = problem

        return leave


def _module_calls(model: nn.Module, batch: Tensor) -> _Calls:
    calls = _Calls()
    with torch.no_grad(), calls.watching(model):
        model(batch)
    return calls
