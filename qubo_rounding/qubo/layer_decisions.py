"""Rounding decisions of several layers in one problem, and the way back to the network.

A problem of this kind has ``meta["layers"]``, a list of names and (g, r, d) shapes. Its values in
row-major order are those of the layers, one layer after the other, whatever its own (g, r, d).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from qubo_rounding.grid import OutputMSE
from qubo_rounding.layer_problem import LayerSettings
from qubo_rounding.layers import Layer, find_layers, matrix_of, weight_of
from qubo_rounding.problem import ProblemError, RoundingProblem
from qubo_rounding.qubo.task_loss import Curvature, TaskLoss

# The curvature of the task sees the biases as they are.
DEFAULT_SETTINGS = LayerSettings(bias="keep")


def check_settings(settings: LayerSettings) -> None:
    """Nothing, for settings that a problem without a Gram matrix of inputs can follow.

    Raises:
        ValueError: refitted biases, OutputMSE, or candidates that are another word.
    """
    if settings.bias != "keep":
        raise ValueError(
            f"bias is {settings.bias!r}, but the task loss sees the biases as they are; "
            "give LayerSettings(bias='keep')."
        )
    if isinstance(settings.range_rule, OutputMSE):
        raise ValueError(
            "OutputMSE weighs errors by the Gram matrix of a layer's inputs, which a problem of "
            "the task loss does not have; give WeightMSE() or MinMax()."
        )
    if settings.candidates not in ("up_down", "free"):
        raise ValueError(f"candidates is {settings.candidates!r}; give 'up_down' or 'free'.")


def decisions(model: nn.Module, layer: Layer, settings: LayerSettings) -> dict[str, Tensor]:
    """What a layer's weights may become: target, scale, low and high, each (g, r, d).

    Args:
        model: the network with the layer's float weights.
        layer: the layer.
        settings: bits, range and candidates.
    """
    weight = matrix_of(model, layer)
    grid = settings.grid_of(layer, weight, None)
    low, high = grid.up_down(weight) if settings.candidates == "up_down" else grid.free(weight)
    scale = grid.scale.expand_as(weight)
    return {"target": grid.target(weight), "scale": scale, "low": low, "high": high}


def problem_notes(task: TaskLoss, curvature: Curvature, settings: LayerSettings) -> dict[str, Any]:
    """The meta of a problem of the task loss."""
    layers = [
        {"name": name, "shape": [layer.g, layer.r, layer.d], "bits": settings.bits_of(layer)}
        for name, layer in task.layers.items()
    ]
    return {
        "layers": layers,
        "loss": task.loss_name,
        "curvature": curvature,
        "images": task.images,
    }


def split_layers(problem: RoundingProblem, values: Tensor) -> dict[str, Tensor]:
    """Levels, errors or whatever else belongs to the weights of a problem, layer by layer.

    Args:
        problem: one of a task loss, with ``meta["layers"]``.
        values: (..., g, r, d) of the problem.

    Returns:
        (..., g, r, d) of each layer, by name, as views where strides allow.

    Raises:
        ProblemError: the problem does not know its layers, or the shape is another one.
    """
    shapes = {note["name"]: tuple(note["shape"]) for note in _noted(problem)}
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    if sum(sizes) != problem.target.numel():
        raise ProblemError(
            f"the problem's meta tells of {sum(sizes)} weights, but it has "
            f"{problem.target.numel()}; split the whole problem, no part of it."
        )
    check_values(problem, values)
    parts = values.flatten(-3).split(sizes, dim=-1)
    return {
        name: part.unflatten(-1, shape)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def rounded_network(model: nn.Module, problem: RoundingProblem, levels: Tensor) -> nn.Module:
    """A copy of a network whose weights stand on the given levels.

    Args:
        model: the network that the problem was made for; it stays as it is.
        problem: one of a task loss, with ``meta["layers"]``.
        levels: (g, r, d) of the problem.

    Raises:
        ProblemError: the problem does not know its layers, or the shape is another one.
        ValueError: the network has no such layers.
    """
    rounded = copy.deepcopy(model)
    layers = find_layers(rounded).layers
    check_values(problem, levels)
    for name, errors in split_layers(problem, problem.errors(levels)).items():
        if name not in layers:
            raise ValueError(f"the model has no layer {name!r}; it has {list(layers)}.")
        weight = weight_of(rounded, layers[name])
        weight.data.copy_(weight.double() + layers[name].weight(errors))
    return rounded


def check_values(problem: RoundingProblem, values: Tensor) -> None:
    """Nothing, for values that end in the (g, r, d) of a problem.

    Raises:
        ProblemError: their shape is another one.
    """
    if values.shape[-3:] != problem.target.shape:
        raise ProblemError(
            f"values have shape {tuple(values.shape)}; give (..., g, r, d) with (g, r, d) = "
            f"{tuple(problem.target.shape)}."
        )


def layer_names(problem: RoundingProblem) -> list[str]:
    """The names of a problem's layers, in the order of its values.

    Raises:
        ProblemError: the problem does not know its layers.
    """
    return [note["name"] for note in _noted(problem)]


def _noted(problem: RoundingProblem) -> list[dict[str, Any]]:
    notes = problem.meta.get("layers")
    if not notes:
        raise ProblemError(
            "the problem's meta names no layers; take one of task_problem or row_hessian_problem."
        )
    return notes
