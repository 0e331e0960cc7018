"""Where integer hardware would store activations: the sites of a network's activation quantisers.

Operations are counted in the order of execution, which must not depend on the data. A site is the
result of one of them, unless only an activation function or a batch norm uses it: a convolution,
its batch norm and its activation function are one operation of the hardware, with one result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from qubo_rounding.batch_norm import METADATA, tensors_in
from qubo_rounding.following import ACTIVATIONS, ADDITIONS
from qubo_rounding.passes import CALL_KINDS

INPUT = "input"
_FUSED_INTO = frozenset({F.batch_norm, *ACTIVATIONS})
_PRODUCTS = frozenset({torch.mul, Tensor.mul, Tensor.mul_, Tensor.__mul__, Tensor.__imul__})
_STORED = frozenset(
    {
        *CALL_KINDS,
        *_FUSED_INTO,
        *(torch.cat, torch.concat, torch.mean, Tensor.mean),
        *(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.interpolate),
        *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
        *(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, torch.baddbmm),
        *(F.softmax, torch.softmax, Tensor.softmax, F.layer_norm, F.group_norm),
        F.scaled_dot_product_attention,
    }
)
_OF_TWO = ADDITIONS | _PRODUCTS


def is_stored(func: Callable[..., Any], args: Sequence[Any]) -> bool:
    """Whether hardware stores the result of a call as a tensor of its own."""
    if func in _OF_TWO:
        return sum(isinstance(x, Tensor) and x.is_floating_point() for x in args) == 2
    return func in _STORED


@dataclass(frozen=True)
class Sites:
    """The sites of a network.

    Args:
        names: of the sites by the number of their operation, the network's input being number 0.
        entered: by module name, the number of the last operation before its first call.
    """

    names: Mapping[int, str]
    entered: Mapping[str, int]


class SiteMode(TorchFunctionMode):
    """A context in which the results at some sites are replaced.

    Args:
        sites: numbers of the operations whose results are sites.
        replace: called with the number and the result.
        first: number of the last operation before the context.
    """

    def __init__(
        self, sites: Iterable[int], replace: Callable[[int, Tensor], Tensor], first: int = 0
    ) -> None:
        super().__init__()
        self._sites = frozenset(sites)
        self._replace = replace
        self._number = first

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not is_stored(func, args):
            return result
        self._number += 1
        return self._replace(self._number, result) if self._number in self._sites else result


def find_sites(model: nn.Module, batch: Tensor) -> Sites:
    """The sites of a network, seen in one forward pass.

    What the network returns is no site: its outputs stay as they are.

    Args:
        model: network in eval mode.
        batch: one batch of inputs.
    """
    watch = _Watch()
    with torch.no_grad(), ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.callback(module.register_forward_pre_hook(watch.entering(name)).remove)
            hooks.callback(module.register_forward_hook(watch.leaving).remove)
        with watch:
            output = model(batch)
    return watch.sites(output)


@dataclass
class _Operation:
    number: int
    name: str
    result: Tensor  # kept alive with its id
    users: list[Callable[..., Any]] = field(default_factory=list)


class _Watch(TorchFunctionMode):
    """Numbers the operations and records who uses their results."""

    def __init__(self) -> None:
        super().__init__()
        self._modules: list[str] = []
        self._entered: dict[str, int] = {}
        self._operations: list[_Operation] = []
        self._latest: dict[int, _Operation] = {}

    def entering(self, name: str) -> Callable[..., None]:
        """A hook to be called before a module."""

        def enter(*_: object) -> None:
            self._modules.append(name)
            self._entered.setdefault(name, len(self._operations))

        return enter

    def leaving(self, *_: object) -> None:
        """A hook to be called after every module."""
        self._modules.pop()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func not in METADATA:
            for tensor in tensors_in((args, kwargs)):
                if operation := self._latest.get(id(tensor)):
                    operation.users.append(func)
        result = func(*args, **kwargs)
        if is_stored(func, args):
            number = len(self._operations) + 1
            place = self._modules[-1] if self._modules else ""
            name = f"{place}.{func.__name__.strip('_')}".lstrip(".")
            self._operations.append(_Operation(number, name, result))
            self._latest[id(result)] = self._operations[-1]
        return result

    def sites(self, output: Any) -> Sites:
        """What was seen, for a pass that returned this."""
        returned = {id(tensor) for tensor in tensors_in(output)}
        names, seen = {0: INPUT}, Counter()
        for operation in self._operations:
            is_last = self._latest[id(operation.result)] is operation
            fused = len(operation.users) == 1 and operation.users[0] in _FUSED_INTO
            if fused or (is_last and id(operation.result) in returned):
                continue
            seen[operation.name] += 1
            count = seen[operation.name]
            names[operation.number] = operation.name + (f".{count}" if count > 1 else "")
        return Sites(names, self._entered)
