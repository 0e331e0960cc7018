"""The public names and their signatures are those of the list; a change has to be meant.

To change them, change tests/public_names.txt too: run `python tests/test_public_names.py`.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import qubo_rounding as qr

LIST = Path(__file__).parent / "public_names.txt"


def described(name: str) -> str:
    thing = getattr(qr, name)
    if not callable(thing):
        return f"{name}: {type(thing).__name__}"
    try:
        parameters = inspect.signature(thing).parameters.values()
    except ValueError:
        return name
    told = ", ".join(f"{p.name}=" if p.default is not p.empty else p.name for p in parameters)
    return f"{name}({told})"


def listing() -> str:
    return "\n".join(described(name) for name in qr.__all__) + "\n"


def test_public_names_are_those_of_the_list() -> None:
    assert listing() == LIST.read_text()


def test_every_public_name_is_described() -> None:
    silent = [name for name in qr.__all__ if not inspect.getdoc(getattr(qr, name))]
    assert silent == []


if __name__ == "__main__":
    LIST.write_text(listing())
