"""Which activations of a network integer hardware stores, seen in one real forward pass.

What a layer accumulates goes straight through the batch norm, the residual addition and the
activation function behind it; the last of them is what is stored, and that is a site.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qubo_rounding.batch_norm import tensors_in
from qubo_rounding.following import ACTIVATIONS
from qubo_rounding.function_watch import FunctionWatch
from qubo_rounding.passes import CALL_KINDS
from qubo_rounding.relaxed.activation_course import (
    MAKES,
    Course,
    computed,
    only_moves,
    operation_name,
)

ACTIVATION_FUNCTIONS = frozenset(map(operation_name, ACTIVATIONS))
LAYERS = frozenset(
    {*map(operation_name, CALL_KINDS), "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum"}
)
ARITHMETIC = frozenset({"add", "sub", "mul", "div", "truediv"})
NORMALISATIONS = frozenset({"batch_norm", "group_norm", "instance_norm", "layer_norm"})
NORM, SUM = "batch_norm", "add"  # what takes over a layer's result
CLIP = "clamp"  # before an activation function, as equalised channels have it, is one with it


def find_sites(model: nn.Module, example: Tensor) -> Course:
    """The course of a network's forward pass, with the activations that are stored as sites.

    Sites are the network's input and the results of operations that compute, save for:

    - a layer's result that only a batch norm, an activation function or the residual addition
      uses; of two layers that are added up, the one that is called last;
    - a normalisation's, an arithmetic operation's or a clip's result that only an activation
      function uses;
    - what only moves values, or multiplies them by a number;
    - the network's outputs, which stay in float unless they are used within, too.

    Inside of a function such as `F.multi_head_attention_forward` nothing is seen but its result.
    A site's name is that of the innermost module at work and of the operation, with a number where
    the module makes several of them: "blocks.3.add", "features.0.2.hardtanh", "relu_2".

    Args:
        model: network in eval mode.
        example: one batch of inputs; a single one will do.

    Raises:
        ValueError: an in-place operation is a site, and its argument is used again under its old
            name: a quantised result could not take its place.
    """
    record = _Record(model, example)
    handles = [
        handle
        for name, module in model.named_modules()
        for handle in (
            module.register_forward_pre_hook(lambda *_, name=name: record.enter(name)),
            module.register_forward_hook(lambda *_: record.leave()),
        )
    ]
    try:
        with torch.no_grad(), record:
            output = model(example)
    finally:
        for handle in handles:
            handle.remove()
    record.use(tensors_in(output), _Step("output"))
    return record.course()


@dataclass(eq=False)
class _Step:
    """An operation on activations.

    Args:
        name: of the operation.
        module: the module at work.
        moves: whether it only moves values.
        number: in the order of execution; None where it is not counted.
        sources: the operations whose results it uses.
        users: the operations that use its result, once for each use.
        overwrites: whether its argument is used under its old name after it was overwritten.
    """

    name: str
    module: str = ""
    moves: bool = False
    number: int | None = None
    sources: list[_Step] = field(default_factory=list)
    users: list[_Step] = field(default_factory=list)
    overwrites: bool = False

    @property
    def origins(self) -> Iterator[_Step]:
        """The operations that compute what it uses, beyond those that only move it."""
        for source in self.sources:
            yield from source.origins if source.moves else (source,)

    @property
    def consumers(self) -> Iterator[_Step]:
        """The operations that compute from its result, beyond those that only move it."""
        for user in self.users:
            yield from user.consumers if user.moves else (user,)

    @property
    def accumulates(self) -> bool:
        """Is its result a layer's, normalised or not, that one operation alone uses?"""
        first = next(self.origins, self) if self.name == NORM else self
        return first.name in LAYERS and all(len([*step.consumers]) == 1 for step in {first, self})

    @property
    def is_stored(self) -> bool:
        """Is its result a site?"""
        users = list(self.consumers)
        if self.moves or all(user.name == "output" for user in users):
            return False
        return len(users) > 1 or not users[0].absorbs(self)

    def absorbs(self, source: _Step) -> bool:
        """Does it take this source's result before that is stored?"""
        if self.name in ACTIVATION_FUNCTIONS:
            return source.name in LAYERS | ARITHMETIC | NORMALISATIONS | {CLIP}
        if self.name == NORM:
            return source.name in LAYERS
        if self.name == SUM and source.accumulates:
            ready = [step for step in self.origins if step.accumulates]
            return source is max(ready, key=lambda step: step.number or 0)
        return False


class _Record(FunctionWatch):
    """Records the operations on what follows from the network's input.

    An in-place operation's result is handed on as an alias: so its uses can be told from those of
    the overwritten argument.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        super().__init__()
        self._operations = ["input"]
        # Integers, such as the numbers of words, are no activations.
        self._steps = [_Step("input", moves=not example.is_floating_point(), number=0)]
        self._alive: list[Tensor] = []  # so that no later tensor takes an id
        self._made_by: dict[int, _Step] = {}
        self._overwritten: set[int] = set()
        self._open = [("", 1)]
        self._calls: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._keep(example, self._steps[0])

    def enter(self, module: str) -> None:
        """A module is called."""
        self._open.append((module, len(self._operations)))

    def leave(self) -> None:
        """The innermost module returns."""
        module, first = self._open.pop()
        self._calls[module].append((first, len(self._operations)))

    def use(self, tensors: Iterable[Tensor], user: _Step) -> None:
        """An operation uses these tensors."""
        for tensor in tensors:
            if (source := self._made_by.get(id(tensor))) is not None:
                source.overwrites |= id(tensor) in self._overwritten
                source.users.append(user)
                user.sources.append(source)

    def course(self) -> Course:
        """What was recorded.

        Raises:
            ValueError: as for `find_sites`.
        """
        stored = [step for step in self._steps if step.is_stored]
        names = [f"{step.module}.{step.name}".lstrip(".") for step in stored]
        often, seen = Counter(names), Counter()
        sites: dict[int, str] = {}
        for step, name in zip(stored, names, strict=True):
            seen[name] += 1
            site = f"{name}_{seen[name]}" if often[name] > 1 else name
            if step.overwrites:
                raise ValueError(
                    f"operation {site!r} works in place and its argument is used again under its "
                    "old name; let the network use the operation's result instead."
                )
            assert step.number is not None
            sites[step.number] = site
        calls = {name: tuple(spans) for name, spans in self._calls.items()}
        return Course(tuple(self._operations), sites, calls)

    def observe(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """See `FunctionWatch.observe`."""
        result = func(*args, **kwargs)
        name = operation_name(func)
        values = args[0] if name == "setitem" else result
        if computed(values) is None or name in MAKES:
            return result
        step = _Step(name, self._open[-1][0], only_moves(name, (args, kwargs)))
        if not step.moves:
            step.number = len(self._operations)
            self._operations.append(name)
        self.use(tensors_in((args, kwargs)), step)
        if not step.sources:  # made from parameters alone
            return result
        self._steps.append(step)
        for argument in tensors_in((args, kwargs)):
            if argument is values:
                self._keep(argument, step)
                if not step.moves:
                    self._overwritten.add(id(argument))
                result = None if result is None else result.view_as(result)
        for tensor in tensors_in(result):
            self._keep(tensor, step)
        return result

    def _keep(self, tensor: Tensor, step: _Step) -> None:
        self._alive.append(tensor)
        self._made_by[id(tensor)] = step
        self._overwritten.discard(id(tensor))
