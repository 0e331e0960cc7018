"""Which layers of a network can be rounded, and their weights as (g, r, d) matrices.

Letters: g groups, r output channels per group, d inputs of one output. This file knows
`nn.Module`; it knows nothing of data (see passes.py) and nothing of grids or solvers.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

Kind = Literal["linear", "conv", "conv_transpose"]

MODULE_KINDS: dict[Kind, tuple[type[nn.Module], ...]] = {
    "linear": (nn.Linear,),
    "conv": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    "conv_transpose": (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
}


@dataclass(frozen=True)
class Layer:
    """A linear or convolution layer, described by its weight alone.

    Args:
        name: dotted name of the first module, in definition order, that owns the weight.
        kind: "linear", "conv" or "conv_transpose".
        shape: shape of the weight tensor, as PyTorch keeps it.
        groups: g; 1 for a linear layer.
        has_bias: whether the module has a bias parameter.
        aliases: dotted names of further modules that own the very same weight.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    groups: int
    has_bias: bool
    aliases: tuple[str, ...] = ()

    @property
    def g(self) -> int:
        """Groups."""
        return self.groups

    @property
    def r(self) -> int:
        """Rows: output channels per group."""
        return self.shape[1] if self.kind == "conv_transpose" else self.shape[0] // self.groups

    @property
    def d(self) -> int:
        """Columns: inputs of one output, in/groups * kernel size."""
        return math.prod(self.shape) // (self.groups * self.r)

    @property
    def kernel(self) -> tuple[int, ...]:
        """Kernel size per spatial dimension; empty for a linear layer."""
        return self.shape[2:]

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as one matrix per group; columns are (input channel, *kernel) flattened.

        Args:
            weight: tensor of shape `self.shape`.

        Returns:
            (g, r, d), a view where strides allow. `self.weight` is the exact inverse.

        Raises:
            ValueError: the shape is another one.
        """
        self._check(weight, self.shape)
        if self.kind == "conv_transpose":
            weight = weight.unflatten(0, (self.g, -1)).transpose(1, 2)
        return weight.reshape(self.g, self.r, self.d)

    def weight(self, matrix: Tensor) -> Tensor:
        """The (g, r, d) matrix back in the shape PyTorch keeps the weight in.

        Args:
            matrix: tensor of shape (g, r, d).

        Returns:
            Tensor of shape `self.shape`, a view where strides allow.

        Raises:
            ValueError: the shape is another one.
        """
        self._check(matrix, (self.g, self.r, self.d))
        if self.kind == "conv_transpose":
            matrix = matrix.reshape(self.g, self.r, -1, *self.kernel).transpose(1, 2)
        return matrix.reshape(self.shape)

    def _check(self, tensor: Tensor, shape: tuple[int, ...]) -> None:
        if tuple(tensor.shape) != shape:
            raise ValueError(f"Layer {self.name!r} needs shape {shape}, got {tuple(tensor.shape)}.")


@dataclass(frozen=True)
class Inventory:
    """What `find_layers` found.

    Args:
        layers: the layers that can be rounded, by name, in definition order.
        skipped: every other module that owns parameters directly, with the reason.
    """

    layers: dict[str, Layer]
    skipped: dict[str, str]


def find_layers(model: nn.Module) -> Inventory:
    """All layers of a network whose weights can be rounded, and why the others cannot.

    Linear, Conv1d/2d/3d, ConvTranspose1d/2d/3d and their subclasses, any groups. A weight shared
    by several modules is one layer, named after the first of them. Whether a forward pass really
    uses a layer's weight is not known here: passes.py finds that out.

    Args:
        model: any module; a single `nn.Linear` will do (its name is then "").

    Returns:
        The layers and the skipped modules, by dotted name, in definition order.
    """
    owners = _weight_owners(model)
    layers: dict[str, Layer] = {}
    skipped: dict[str, str] = {}
    for name, module in model.named_modules():
        kind = _kind(module)
        if kind is None:
            if parameters := _own_parameters(module):
                skipped[name] = _foreign_reason(module, parameters)
        elif reason := _weight_obstacle(module) or _sharing_obstacle(module, owners):
            skipped[name] = reason
        else:
            names = tuple(owners[id(module.weight)])
            if name == names[0]:
                layers[name] = _describe(module, kind, names)
    return Inventory(layers, skipped)


def weight_of(model: nn.Module, layer: Layer) -> nn.Parameter:
    """The parameter that holds a layer's weight in a network.

    Args:
        model: the network the layer was found in, or a copy of it.
        layer: one of `find_layers(model).layers`.

    Returns:
        The parameter itself, of shape `layer.shape`.

    Raises:
        ValueError: the network has no such parameter.
    """
    try:
        weight = model.get_submodule(layer.name).get_parameter("weight")
    except AttributeError:
        weight = None
    if weight is None or tuple(weight.shape) != layer.shape:
        raise ValueError(
            f"The model has no layer {layer.name!r} with a weight of shape {layer.shape}. "
            "Use the layers that find_layers gives for this very model."
        )
    return weight


def matrix_of(model: nn.Module, layer: Layer) -> Tensor:
    """(g, r, d) a layer's weight in a network as the matrices of its groups, without a graph.

    Args and Raises: as for `weight_of`.
    """
    return layer.matrix(weight_of(model, layer).detach())


def bias_of(model: nn.Module, layer: Layer) -> Tensor | None:
    """(g r) a layer's bias in a network, the parameter's own memory; None where it has none."""
    bias = getattr(model.get_submodule(layer.name), "bias", None)
    return None if bias is None else bias.detach()


def add_zero_bias(model: nn.Module, layer: Layer) -> nn.Parameter:
    """A bias of zeros for a layer that has none, registered in the network; returns it.

    Args and Raises: as for `weight_of`.
    """
    zeros = nn.Parameter(weight_of(model, layer).new_zeros(layer.g * layer.r))
    model.get_submodule(layer.name).register_parameter("bias", zeros)
    return zeros


def _kind(module: nn.Module) -> Kind | None:
    return next((kind for kind, types in MODULE_KINDS.items() if isinstance(module, types)), None)


def _describe(module: nn.Module, kind: Kind, names: tuple[str, ...]) -> Layer:
    parameters = _own_parameters(module)
    return Layer(
        name=names[0],
        kind=kind,
        shape=tuple(parameters["weight"].shape),
        groups=_groups(module),
        has_bias="bias" in parameters,
        aliases=names[1:],
    )


def _own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters(recurse=False, remove_duplicate=False))


def _groups(module: nn.Module) -> int:
    return getattr(module, "groups", 1)


def _weight_owners(model: nn.Module) -> Mapping[int, dict[str, nn.Module]]:
    """Every module that owns a parameter, by the parameter's id and the module's name."""
    owners: dict[int, dict[str, nn.Module]] = defaultdict(dict)
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in _own_parameters(module).values():
            owners[id(parameter)][name] = module
    return owners


def _foreign_reason(module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> str:
    return (
        f"{type(module).__name__} is neither a linear nor a convolution layer: "
        f"its parameters ({', '.join(parameters)}) stay as they are"
    )


def _weight_obstacle(module: nn.Module) -> str | None:
    weight = _own_parameters(module).get("weight")
    if weight is None:
        return "its weight is computed from other parameters, which would overwrite the rounded one"
    if is_lazy(weight):
        return "its parameters are not initialised yet: run the model on one batch first"
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}: only real floating-point weights are rounded"
    if weight.numel() == 0:
        return "its weight is empty"
    return None


def _sharing_obstacle(
    module: nn.Module, owners: Mapping[int, Mapping[str, nn.Module]]
) -> str | None:
    """A shared weight is one layer only where all its modules read it as the same matrix."""
    for name, other in owners[id(module.weight)].items():
        if (_kind(other), _groups(other)) != (_kind(module), _groups(module)):
            return (
                f"its weight is shared with {name!r} ({type(other).__name__}), "
                "which does not use it as the same matrix"
            )
    return None
