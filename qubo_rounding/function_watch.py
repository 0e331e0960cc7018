"""The base of all that watches a forward pass: one method for every call of a torch function."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode


class FunctionWatch(TorchFunctionMode):
    """A context in which `observe` receives every call of a torch function, and makes it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """See `observe`; torch's own way to ask."""
        del types
        return self.observe(func, args, kwargs or {})

    @abstractmethod
    def observe(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """The result of a call; calls made in here are not watched.

        Args:
            func: the torch function, or the tensor method.
            args, kwargs: its arguments.
        """
