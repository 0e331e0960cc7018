"""The check that counts are counts."""

from __future__ import annotations

from numbers import Integral


def check_whole(least: int, **values: object) -> None:
    """Nothing, for whole numbers of at least so much.

    Raises:
        ValueError: one is not; it is named.
    """
    for name, value in values.items():
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not whole or value < least:  # pyright: ignore[reportOperatorIssue]
            raise ValueError(f"{name} is {value!r}; give a whole number from {least}.")
