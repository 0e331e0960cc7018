"""A rounded network as integers: levels packed into bytes, and back to the bit."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qubo_rounding.export.row_grids import in_layer
from qubo_rounding.grid import Grid, check_fineness
from qubo_rounding.kept_files import keep, kept
from qubo_rounding.layer_problem import LayerSettings
from qubo_rounding.layers import add_zero_bias, find_layers, weight_of
from qubo_rounding.network import QuantisedNetwork
from qubo_rounding.plan import prepared
from qubo_rounding.relaxed.activation_quantiser import ActivationQuantiser
from qubo_rounding.relaxed.activation_sites import find_sites
from qubo_rounding.relaxed.activations import ActivationQuantisers, attach, quantisers_of

FORMAT = "qubo-rounding levels 1"
_LAYER, _STATE = "layer.", "state."


def save_levels(path: str | Path, result: QuantisedNetwork, settings: LayerSettings) -> int:
    """Write a rounded network as packed levels with their grids; returns the file's size in bytes.

    For each layer NAME the file has `layer.NAME.levels` (uint8, packed), `.scale` and `.zero_point`
    (float64); everything else of the network, biases above all, is `state.*`. The metadata's JSON
    under "description" tells shapes, ranges of levels and activation grids.

    A level is stored as its distance from the smallest one, in 2, 4 or 8 bits, whichever is the
    first that suffices; earlier levels take the lower bits of a byte.

    Args:
        path: the file, .safetensors.
        result: what `quantise` gave.
        settings: that it was given.
    """
    tensors, layers = {}, {}
    found = find_layers(result.model).layers
    weights = {id(weight_of(result.model, found[name])) for name in result.layers}
    for name, done in result.layers.items():
        bits, (smallest, largest) = done.record.bits, settings.range_of(done.record.bits)
        packed = pack(done.levels.cpu().short() - smallest, bits)
        parts = {"levels": packed, "scale": done.scale, "zero_point": done.zero_point}
        tensors |= {f"{_LAYER}{name}.{key}": tensor for key, tensor in parts.items()}
        layers[name] = {"shape": list(done.levels.shape), "bits": bits}
        layers[name] |= {"smallest": smallest, "largest": largest}
    quantisers = quantisers_of(result.model)
    sites = None if quantisers is None else [_grid_of(quantisers[s]) for s in quantisers.sites]
    for key, value in result.model.state_dict(keep_vars=True).items():
        if id(value) not in weights and not key.startswith("activation_quantisers."):
            tensors[f"{_STATE}{key}"] = value.detach().clone()  # shared ones are written twice
    description = {"format": FORMAT, "layers": layers, "equalise": settings.equalise}
    keep(path, tensors, {"description": json.dumps(description | {"activations": sites})})
    return Path(path).stat().st_size


def load_levels(path: str | Path, model: nn.Module, batch: Tensor) -> nn.Module:
    """The rounded network that `save_levels` wrote, to the bit.

    Args:
        path: the file.
        model: the float network, as it was given to `quantise`: it brings the module definitions,
            its weights do not count.
        batch: one batch of inputs, for a forward pass.

    Raises:
        ValueError: a damaged or foreign file, or a network that it was not made from.
    """
    with kept(Path(path)) as file:
        description = json.loads(file.metadata.get("description", "{}"))
        if description.get("format") != FORMAT:
            raise ValueError(f"its format is {description.get('format')!r}, not {FORMAT!r}")
        equalised, sites = description["equalise"], description["activations"]
        weights = {
            name: _weight(file.tensors, name, what) for name, what in description["layers"].items()
        }
    network, _ = prepared(model, batch, LayerSettings(equalise=equalised))
    _take_state(network, file.tensors, weights)
    layers = find_layers(network).layers
    for name, weight in weights.items():
        weight_of(network, layers[name]).data.copy_(layers[name].weight(weight))
    if sites is not None:
        course = find_sites(network, batch[:1])
        attach(network, ActivationQuantisers(course, [ActivationQuantiser(**s) for s in sites]))
    return network


def _weight(tensors: Mapping[str, Tensor], name: str, what: Mapping[str, Any]) -> Tensor:
    """float64 (g, r, d) weights of a layer."""
    packed, scale, zero_point = (
        tensors[f"{_LAYER}{name}.{key}"] for key in ("levels", "scale", "zero_point")
    )
    levels = unpack(packed, what["bits"], what["shape"]) + what["smallest"]
    return Grid(scale, zero_point, what["smallest"], what["largest"]).dequantize(levels)


def pack(numbers: Tensor, bits: int) -> Tensor:
    """uint8 bytes of integers from 0 to 2^bits - 1, flattened; the last byte is filled with 0."""
    size = _container(bits)
    flat = numbers.flatten().to(torch.uint8)
    each = 8 // size
    flat = torch.cat([flat, flat.new_zeros(-len(flat) % each)]).view(-1, each)
    packed = torch.zeros(len(flat), dtype=torch.uint8)
    for place in range(each):
        packed |= flat[:, place] << (size * place)
    return packed


def unpack(packed: Tensor, bits: int, shape: list[int]) -> Tensor:
    """int16 integers of a shape, from what `pack` gave.

    Raises:
        ValueError: there are not as many bytes as the shape needs.
    """
    size, count = _container(bits), math.prod(shape)
    each = 8 // size
    if packed.dtype != torch.uint8 or packed.numel() != math.ceil(count / each):
        raise ValueError(f"{packed.numel()} bytes cannot be {count} levels of {bits} bits")
    parts = [(packed >> (size * place)) & (2**size - 1) for place in range(each)]
    return torch.stack(parts, dim=1).flatten()[:count].view(shape).short()


def _container(bits: int) -> int:
    check_fineness(bits, "tensor")
    return next(size for size in (2, 4, 8) if bits <= size)


def _grid_of(quantiser: ActivationQuantiser) -> dict[str, Any]:
    return {
        "scale": float(quantiser.scale),
        "zero_point": int(quantiser.zero_point),
        "bits": quantiser.bits,
    }


def _take_state(
    network: nn.Module, tensors: Mapping[str, Tensor], rounded: Collection[str]
) -> None:
    """Everything but the weights of the rounded layers.

    Raises:
        ValueError: the network is another one.
    """
    state = {key.removeprefix(_STATE): t for key, t in tensors.items() if key.startswith(_STATE)}
    layers = find_layers(network).layers
    if strange := sorted(set(rounded) - set(layers)):
        raise _another_network(f"the network has no layer {strange[0]!r}")
    for name, layer in layers.items():
        # Refitted biases may be new: quantise gave one to every layer.
        if not layer.has_bias and in_layer(name, "bias") in state:
            add_zero_bias(network, layer).requires_grad_(False)
    weights = {id(weight_of(network, layers[name])) for name in rounded}
    there = {key for key, t in network.state_dict(keep_vars=True).items() if id(t) not in weights}
    if strange := sorted(set(state) - there):
        raise _another_network(f"the network has no {strange[0]!r}")
    if strange := sorted(there - set(state)):
        raise _another_network(f"the file has no {strange[0]!r}")
    network.load_state_dict(state, strict=False)


def _another_network(what: str) -> ValueError:
    return ValueError(f"{what}; give the float network that was rounded and saved.")
