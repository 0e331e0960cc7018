"""Grids that are given instead of fitted: the scales of an AIMET-style encodings file."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from qubo_rounding.grid import Grid, check_fineness, level_range

_WEIGHT = "weight"
_SECTIONS = {"weights": "param_encodings", "activations": "activation_encodings"}
_LARGEST = sys.float_info.max  # JSON has integers beyond it, infinities and NaN, too


@dataclass(frozen=True, repr=False)
class FrozenGrid:
    """The grid of a layer's weights, or of an activation: values (k + offset) * scale.

    k counts from 0 to 2^bits - 1.

    Args:
        scales: one for all, or one an output channel of the weights; in the values' units.
        offsets: as many, whole numbers.
        bits: 2 to 8.

    Raises:
        ValueError: bits out of range, no scales, or other numbers of offsets.
    """

    scales: tuple[float, ...]
    offsets: tuple[int, ...]
    bits: int

    def __post_init__(self) -> None:
        check_fineness(self.bits, "channel")
        if not self.scales or len(self.scales) != len(self.offsets):
            raise ValueError(
                f"there are {len(self.scales)} scales and {len(self.offsets)} offsets; give one of "
                "each for all rows, or one an output channel."
            )

    def __repr__(self) -> str:
        """Short enough for records, and another one for other numbers."""
        digest = hashlib.sha256(repr((self.scales, self.offsets)).encode()).hexdigest()
        return f"FrozenGrid(bits={self.bits}, rows={len(self.scales)}, sha256={digest[:12]!r})"

    def grid(self, g: int, r: int, symmetric: bool) -> Grid:
        """The same values as a grid for weights (g, r, d).

        Args:
            g, r: groups and rows of the layer.
            symmetric: whether levels are counted from -2^(bits-1) or from 0.

        Raises:
            ValueError: scales for another number of rows.
        """
        if len(self.scales) not in (1, g * r):
            raise ValueError(
                f"there are {len(self.scales)} scales for {g * r} output channels; give one for "
                "each, or one for all."
            )
        smallest, largest = level_range(self.bits, symmetric)
        scale = torch.tensor(self.scales, dtype=torch.float64).expand(g * r)
        zero = smallest - torch.tensor(self.offsets, dtype=torch.float64).expand(g * r)
        shape = (g, r, 1)
        return Grid(scale.reshape(shape), zero.reshape(shape), smallest, largest)


def read_encodings(
    path: str | Path, of: Literal["weights", "activations"] = "weights"
) -> dict[str, FrozenGrid]:
    """The grids in an encodings file, as `write_encodings` writes it, by layer or by site.

    Encodings of biases are left unread.

    Args:
        path: JSON with `param_encodings` and `activation_encodings`: for every name a list of
            encodings with `scale`, `offset` and `bitwidth`, one or as many as the layer has output
            channels.
        of: which of both to read.

    Raises:
        ValueError: no such file, no such content, or grids that are none of ours: other bits than 2
            to 8, floating point, a range of fewer than 2^bits levels.
    """
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no readable encodings file ({error}).") from None
    section = _SECTIONS[of]
    found = content.get(section) if isinstance(content, dict) else None
    if not isinstance(found, Mapping) or not found:
        raise ValueError(
            f"{path} has no {section} by name; give a file as write_encodings writes it "
            "(AIMET's format 0.6.1)."
        )
    if of == "weights":
        ends = {name: name.rpartition(".") for name in found}
        named = {name: layer for name, (layer, _, end) in ends.items() if end == _WEIGHT}
    else:
        named = {name: name for name in found}
    try:
        return {place: _frozen(name, found[name]) for name, place in named.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _frozen(name: str, encodings: Any) -> FrozenGrid:
    if not isinstance(encodings, list) or not encodings:
        raise ValueError(f"{name!r} has no list of encodings.")
    try:
        bits = {encoding["bitwidth"] for encoding in encodings}
        scales = [encoding["scale"] for encoding in encodings]
        offsets = [encoding["offset"] for encoding in encodings]
        kinds = {encoding.get("dtype", "int") for encoding in encodings}
        ends = [(encoding["min"], encoding["max"]) for encoding in encodings]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"an encoding of {name!r} lacks a key ({error}).") from None
    if len(bits) != 1 or kinds != {"int"}:
        raise ValueError(f"{name!r} has bitwidths {bits} and dtypes {kinds}; give one, and 'int'.")
    (bit,) = bits
    _check_numbers(name, scales, offsets, ends)
    grid = FrozenGrid(tuple(map(float, scales)), tuple(map(int, offsets)), bit)
    for scale, (low, high) in zip(scales, ends, strict=True):
        levels = (high - low) / scale + 1  # infinite where the scale is next to nothing
        if abs(levels - 2**bit) > 0.5:
            raise ValueError(
                f"{name!r} has {levels:.0f} levels between min and max; a grid of {bit} bits has "
                f"{2**bit}."
            )
    return grid


def _check_numbers(
    name: str, scales: list[Any], offsets: list[Any], ends: list[tuple[Any, Any]]
) -> None:
    every = [*scales, *offsets, *(end for pair in ends for end in pair)]
    numbers = all(type(x) in (int, float) and abs(x) <= _LARGEST for x in every)
    if not numbers or min(scales) <= 0 or any(x != int(x) or abs(x) > 2**14 for x in offsets):
        raise ValueError(
            f"{name!r} has a scale that is not positive, an offset that is no whole number of at "
            "most 16,384, or an end that is not finite."
        )
