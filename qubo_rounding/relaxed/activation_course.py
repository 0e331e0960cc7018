"""The course of a network's forward pass: its operations in order, and a way to visit some of them.

Operations are counted in the order of execution, whatever module makes them; control flow must not
depend on data.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch import Tensor

from qubo_rounding.batch_norm import tensors_in
from qubo_rounding.function_watch import FunctionWatch

Visit = Callable[[str, Tensor], Tensor]


def operation_name(func: Callable[..., Any]) -> str:
    """One name for all spellings of an operation: add for torch.add, Tensor.add_ and +=."""
    name = getattr(func, "__name__", type(func).__name__)
    plain = name.strip("_")
    is_variant = name.startswith("__") and plain[:1] in ("r", "i")
    return plain[1:] if is_variant and hasattr(operator, plain[1:]) else plain


# A number as the other operand only changes what the levels mean.
SCALINGS = frozenset({"mul", "div", "truediv"})
# These only move, repeat, select or pad values: what is on a grid stays on it.
MOVES = frozenset(
    {
        "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "alpha_dropout",
        "amax", "broadcast_to", "channel_shuffle", "chunk", "clone", "contiguous", "copy",
        "cpu", "cuda", "detach", "double", "dropout", "dropout1d", "dropout2d", "dropout3d",
        "expand", "expand_as", "feature_dropout", "flatten", "flip", "float", "gather", "get",
        "getitem", "half", "index_select", "masked_fill", "max_pool1d", "max_pool2d",
        "max_pool3d", "movedim", "narrow", "native_channel_shuffle", "pad", "permute",
        "pixel_shuffle", "pixel_unshuffle", "repeat", "repeat_interleave", "requires_grad",
        "reshape", "reshape_as", "roll", "select", "setitem", "split", "squeeze", "swapaxes",
        "swapdims", "t", "tensor_split", "tile", "to", "transpose", "type", "type_as", "unbind",
        "unflatten", "unfold", "unsqueeze", "view", "view_as",
    }
)  # fmt: skip
# These ask a tensor for its shape and make another.
MAKES = frozenset(
    {
        "empty_like", "full_like", "new_empty", "new_full", "new_ones", "new_tensor", "new_zeros",
        "ones_like", "rand_like", "randn_like", "zeros_like",
    }
)  # fmt: skip


def only_moves(name: str, arguments: Any) -> bool:
    """Does an operation compute no new values, or just a number times those it is given?"""
    by_a_number = name in SCALINGS and len([*tensors_in(arguments)]) < 2
    return name in MOVES | MAKES or by_a_number


def computed(result: Any) -> Tensor | None:
    """The values that an operation computes: its result, or the first of several."""
    first = result[0] if isinstance(result, (tuple, list)) and result else result
    return first if isinstance(first, Tensor) and first.is_floating_point() else None


@dataclass(frozen=True)
class Course:
    """The operations of a network's forward pass, in order, and which of them are sites.

    Operations that only move values are not counted. The network's input has number 0.

    Args:
        operations: name of each, counted from 0.
        sites: names of the sites by number.
        calls: for every module by dotted name the spans (first, end) of its calls.
    """

    operations: tuple[str, ...]
    sites: Mapping[int, str]
    calls: Mapping[str, tuple[tuple[int, int], ...]]


class Walk(FunctionWatch):
    """One pass along a course, or along one module's part of it, that shows every site.

    Args:
        course: of the network.
        visit: receives the name and the values of each site; what it returns takes their place.
        module: the module that is called, by dotted name; "" is the network.
        call: which of its calls, counted from 0.

    Raises:
        ValueError: the course has no such call; or what runs is another course.
    """

    def __init__(self, course: Course, visit: Visit, module: str = "", call: int = 0) -> None:
        super().__init__()
        spans = course.calls.get(module, ())
        if not 0 <= call < len(spans):
            raise ValueError(
                f"the network's forward pass has {len(spans)} calls of a module {module!r}; "
                f"there is no call {call}, counted from 0."
            )
        self._course, self._visit = course, visit
        self._place = f"module {module!r}" if module else "the network"
        self._at, self._end = spans[call]

    def run(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What the whole network's `forward` returns, with its input as the first site."""
        if (name := self._course.sites.get(0)) is not None:
            if not args:
                raise ValueError("give the network's input as its first argument, without a name.")
            args = (self._visit(name, args[0]), *args[1:])
        with self:
            return forward(*args, **kwargs)

    def observe(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """See `FunctionWatch.observe`."""
        result = func(*args, **kwargs)
        name, value = operation_name(func), computed(result)
        if value is None or only_moves(name, (args, kwargs)):
            return result
        expected = self._course.operations[self._at] if self._at < self._end else "the end"
        if name != expected:
            raise self._strayed(f"comes to {name}", expected)
        site = self._course.sites.get(self._at)
        self._at += 1
        if site is None:
            return result
        value = self._visit(site, value)
        return value if isinstance(result, Tensor) else type(result)((value, *result[1:]))

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        super().__exit__(exc_type, exc_val, exc_tb)
        if exc_type is None and self._at < self._end:
            raise self._strayed("ends", self._course.operations[self._at])

    def _strayed(self, what: str, expected: str) -> ValueError:
        return ValueError(
            f"{self._place} {what} where its activations were found with {expected} next "
            f"(operation {self._at}). Activation quantisers need a forward pass that is the same "
            "for all data, and nothing else within the context of a module's call."
        )
