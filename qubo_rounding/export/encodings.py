"""Grids as an AIMET-style encodings file: JSON with scale, offset and range of every tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qubo_rounding.atomic import atomic_path
from qubo_rounding.export.row_grids import in_layer, row_grid
from qubo_rounding.layer_problem import LayerSettings
from qubo_rounding.network import QuantisedNetwork
from qubo_rounding.relaxed.activations import quantisers_of

VERSION = "0.6.1"


def write_encodings(path: str | Path, result: QuantisedNetwork, settings: LayerSettings) -> Path:
    """Write the grids of a rounded network's weights and activations; returns the path.

    A weight has one encoding an output channel, or one for all; `offset` is the smallest level less
    the zero point, so that a value is (level + offset) * scale with levels counted from 0.

    Args:
        path: the file, .json.
        result: what `quantise` gave.
        settings: that it was given.

    Raises:
        ValueError: scales that change along a row, which the format cannot tell.
    """
    weights = {}
    for name, done in result.layers.items():
        smallest, largest = settings.range_of(done.record.bits)
        scales, zeros = (t.tolist() for t in row_grid(done, "an encodings file"))
        weights[in_layer(name, "weight")] = [
            _encoding(scale, smallest - zero, largest - smallest, done.record.bits, zero == 0)
            for scale, zero in zip(scales, zeros, strict=True)
        ]
    activations: dict[str, list[dict[str, Any]]] = {}
    if (quantisers := quantisers_of(result.model)) is not None:
        for site in quantisers.sites:
            its = quantisers[site]
            offset = -float(its.zero_point)
            activations[site] = [
                _encoding(float(its.scale), offset, 2**its.bits - 1, its.bits, False)
            ]
    content = {"version": VERSION, "activation_encodings": activations, "param_encodings": weights}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
    return Path(path)


def _encoding(
    scale: float, offset: float, steps: int, bits: int, symmetric: bool
) -> dict[str, Any]:
    return {
        "bitwidth": bits,
        "dtype": "int",
        "is_symmetric": str(symmetric),
        "min": scale * offset,
        "max": scale * (offset + steps),
        "offset": int(offset),
        "scale": scale,
    }
