"""Objects described in one word or line, such as `annealing:sweeps=500`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def made_from(
    text: str,
    table: Mapping[str, Callable[..., Any]],
    kind: str,
    named: Mapping[str, Callable[[str], Any]],
) -> Any:
    """What `NAME[:key=value,...]` describes, NAME a key of the table.

    Values are of the kind of the option's default: whole or decimal numbers, true or false, words.

    Args:
        text: the description.
        table: what makes each object from its options.
        kind: of the objects, for messages.
        named: how to read the values of some keys.

    Raises:
        ValueError: an unknown name or key, or a value that is not allowed.
    """
    name, _, options = text.strip().partition(":")
    if name not in table:
        raise ValueError(f"there is no {kind} {name!r}; there are {', '.join(table)}.")
    factory = table[name]
    known = inspect.signature(factory).parameters
    values: dict[str, Any] = {}
    for option in filter(None, options.split(",")):
        key, equals, value = (part.strip() for part in option.partition("="))
        if not equals or key not in known:
            raise ValueError(
                f"{option!r} is no option of {name}; write key=value with a key of "
                f"{', '.join(known) or 'none: it has no options'}."
            )
        if key in named:
            values[key] = _named_value(option, value, named[key])
        else:
            values[key] = _value(option, known[key].default)
    try:
        return factory(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{text!r}: {error}") from None


def _named_value(option: str, value: str, read: Callable[[str], Any]) -> Any:
    try:
        return read(value)
    except ValueError as error:
        raise ValueError(f"{option!r} does not fit: {error}") from None


def _value(option: str, default: bool | int | float | str) -> bool | int | float | str:
    text = option.partition("=")[2].strip()
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        return type(default)(text)
    except (KeyError, ValueError):
        kind = {bool: "true or false", int: "a whole number", float: "a number"}[type(default)]
        raise ValueError(f"{option!r} does not fit; give {kind}.") from None
