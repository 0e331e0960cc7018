"""A rounded network as ONNX, with integer weights and DequantizeLinear."""

from __future__ import annotations

import importlib
import io
import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qubo_rounding.atomic import atomic_path
from qubo_rounding.export.row_grids import in_layer, row_grid
from qubo_rounding.extras import imported
from qubo_rounding.layer_problem import LayerSettings
from qubo_rounding.layers import Layer, find_layers, weight_of
from qubo_rounding.network import QuantisedNetwork
from qubo_rounding.run_folder import RoundedLayer

_TRACED, _WRITTEN = 20, 21  # 21 is the first operator set with 4-bit integers


def write_onnx(
    path: str | Path, result: QuantisedNetwork, settings: LayerSettings, batch: Tensor
) -> Path:
    """Write a rounded network as ONNX, operator set 21; returns the path.

    Each rounded weight becomes its integer levels and a DequantizeLinear, per tensor or per output
    channel; levels of up to 4 bits are INT4 or UINT4, others INT8 or UINT8. Quantised activations
    become QuantizeLinear and DequantizeLinear of 8 bits, with a Clip before where they have fewer.
    The input is called "input", its first dimension is free.

    Runtimes may go further: with all its optimisations onnxruntime rounds what a linear layer of
    4-bit weights multiplies to 8 bits, unless its graph_optimization_level is ORT_ENABLE_BASIC.

    Args:
        path: the file, .onnx.
        result: what `quantise` gave.
        settings: that it was given.
        batch: one batch of inputs, to trace the network with.

    Raises:
        ValueError: the package onnx is missing; scales that change along a row, or grouped
            transposed convolutions with a scale a channel, which DequantizeLinear cannot tell; an
            unnamed or derived weight; weights in half or double precision.
    """
    onnx = imported("onnx", "onnx")
    layers = find_layers(result.model).layers
    weights = {name: weight_of(result.model, layers[name]) for name in result.layers}
    if others := {weight.dtype for weight in weights.values()} - {torch.float32}:
        raise ValueError(
            f"the network has weights of {others.pop()}, and this file would join them to scales "
            "of float32; round model.float()."
        )
    quantised = {
        name: _dequantised(onnx, layers[name], done, settings)
        for name, done in result.layers.items()
    }
    with _told_apart(weights.values()):
        model = _traced(onnx, result.model, batch)
    graph, nodes = model.graph, []
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    for name, (tensors, node) in quantised.items():
        weight = in_layer(name, "weight")
        if weight not in initializers:
            raise ValueError(f"the traced network has no weight {weight!r} to replace.")
        graph.initializer.remove(initializers[weight])
        graph.initializer.extend(tensors)
        nodes.append(node)
    nodes += graph.node
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model, full_check=True)
    with atomic_path(path) as temporary:
        onnx.save(model, temporary)
    return Path(path)


@contextmanager
def _told_apart(weights: Iterable[Tensor]) -> Iterator[None]:
    """Within, every weight is filled with a number of its own: a trace keeps equal ones once."""
    kept = [(weight.data, weight.detach().clone()) for weight in weights]
    try:
        for number, (weight, _) in enumerate(kept):
            weight.fill_(math.pi + number)
        yield
    finally:
        for weight, values in kept:
            weight.copy_(values)


def _traced(onnx: Any, model: torch.nn.Module, batch: Tensor) -> Any:
    """The ONNX model with float weights, whatever they are, under their parameters' names."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing is old; sizes become constants, as they should
        # torch.export's exporter would not see activations that a mode quantises.
        torch.onnx.export(
            model,
            (batch,),
            buffer,  # pyright: ignore[reportArgumentType]
            dynamo=False,
            opset_version=_TRACED,
            do_constant_folding=False,  # would hide weights that are transposed first
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={"input": {0: "n"}, "output": {0: "n"}},
        )
    traced = onnx.load_from_string(buffer.getvalue())
    for alias in [node for node in traced.graph.node if node.op_type == "Identity"]:
        _bypass(traced.graph, alias)
    return importlib.import_module("onnx.version_converter").convert_version(traced, _WRITTEN)


def _bypass(graph: Any, alias: Any) -> None:
    """Equal biases share a tensor in the trace: take it without the Identity between."""
    if alias.output[0] in {output.name for output in graph.output}:
        return
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == alias.output[0]:
                node.input[place] = alias.input[0]
    graph.node.remove(alias)


def _dequantised(
    onnx: Any, layer: Layer, done: RoundedLayer, settings: LayerSettings
) -> tuple[list[Any], Any]:
    """A layer's levels, scale and zero point as initializers, and the node that joins them."""
    name = layer.name
    scale, zero = row_grid(done, "ONNX")
    if len(scale) == 1:
        scale, zero, axis = scale[0], zero[0], None
    elif layer.kind == "conv_transpose" and layer.g > 1:
        raise ValueError(
            f"layer {name!r} is a grouped transposed convolution, whose output channels are no "
            "axis of its weight; round it with granularity 'tensor'."
        )
    else:
        axis = 1 if layer.kind == "conv_transpose" else 0
    smallest, largest = settings.range_of(done.record.bits)
    sign, size = "INT" if smallest < 0 else "UINT", 4 if largest - smallest < 16 else 8
    kind = getattr(onnx.TensorProto, f"{sign}{size}")
    arrays = {
        "levels": layer.weight(done.levels).cpu().numpy().astype(np.int32),
        "zero_point": zero.round().cpu().numpy().astype(np.int32),
    }
    tensors = [
        onnx.helper.make_tensor(in_layer(name, key), kind, array.shape, array.flatten())
        for key, array in arrays.items()
    ]
    scales = scale.float().cpu().numpy()
    tensors.insert(1, onnx.numpy_helper.from_array(scales, in_layer(name, "scale")))
    node = onnx.helper.make_node(
        "DequantizeLinear",
        [in_layer(name, key) for key in ("levels", "scale", "zero_point")],
        [in_layer(name, "weight")],
        name=in_layer(name, "dequantize"),
        **({} if axis is None else {"axis": axis}),
    )
    return tensors, node
