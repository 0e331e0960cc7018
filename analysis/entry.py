"""How scripts begin: `--help` tells their docstring, and what they do not know is refused."""

from __future__ import annotations

import argparse

from analysis.kit_networks import kit_folder


def described(description: str | None) -> argparse.ArgumentParser:
    """The parser of a script, without options so far; the description is its docstring."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )


def begin(description: str | None, kit: bool = True) -> None:
    """Nothing, where a script without options was called without any.

    Args:
        description: its docstring.
        kit: whether it needs the evaluation kit.
    """
    parser = described(description)
    parser.parse_args()
    if kit:
        need_kit(parser)


def need_kit(parser: argparse.ArgumentParser) -> None:
    """End with one line where the evaluation kit is missing."""
    if not kit_folder().is_dir():
        parser.error(
            f"the evaluation kit is not at {kit_folder()}; name its folder by QUBO_ROUNDING_KIT, "
            "or take --scale demo where there is one."
        )
