"""Batch norm folded into the layer whose output it normalises, found by what really flows."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from qubo_rounding.function_watch import FunctionWatch
from qubo_rounding.layers import Layer, add_zero_bias, find_layers, weight_of
from qubo_rounding.passes import call_arguments

# Asking a tensor for these does not use its values.
METADATA: frozenset[Callable[..., Any]] = frozenset(
    {
        Tensor.dim,
        Tensor.is_contiguous,
        Tensor.is_floating_point,
        Tensor.numel,
        Tensor.size,
        Tensor.stride,
        *(
            getattr(Tensor, name).__get__
            for name in ("device", "dtype", "is_cuda", "layout", "ndim", "requires_grad", "shape")
        ),
    }
)


def fold_batch_norm(model: nn.Module, example: Tensor) -> tuple[nn.Module, dict[str, str]]:
    """A copy of a network with its batch norms folded into the layers before them.

    With s = gamma / sqrt(variance + eps), the layer's weights become s * W and its bias
    beta + s * (b - mean), computed in float64; the batch norm becomes an `nn.Identity`, or where it
    has child modules, such as an activation function, an `nn.Sequential` of them. A batch norm is
    folded where its one input is the output of one linear or convolution layer and nothing else
    uses that output, that layer's weight or that batch norm.

    Args:
        model: any network; it stays as it is.
        example: one batch of inputs, which is run through the network once.

    Returns:
        The copy, in eval mode, and for each batch norm that it keeps the reason, by dotted name.
    """
    folded = copy.deepcopy(model).eval()
    layers = find_layers(folded).layers
    biasless = [layer for layer in layers.values() if not layer.has_bias and not layer.aliases]
    for layer in biasless:
        add_zero_bias(folded, layer)
    flow = _Flow(folded, layers)
    with torch.no_grad(), flow:
        flow.mark_as_used(folded(example))
    targets = {name: _target(folded, flow, norm) for name, norm in _batch_norms(folded).items()}
    kept = {name: target for name, target in targets.items() if isinstance(target, str)}
    fold = {name: target for name, target in targets.items() if isinstance(target, Layer)}
    for layer in biasless:
        if layer not in fold.values():
            folded.get_submodule(layer.name).register_parameter("bias", None)
    for name, layer in fold.items():
        _fold(folded, layer, name)
    return folded, kept


@dataclass(frozen=True)
class _LayerOutput:
    layer: Layer
    weight: Tensor
    bias: Tensor | None
    tensor: Tensor


class _Flow(FunctionWatch):
    """Records which tensors the layers make, who uses them, and what batch norms receive."""

    def __init__(self, model: nn.Module, layers: Mapping[str, Layer]) -> None:
        super().__init__()
        self._layers = {id(weight_of(model, layer)): layer for layer in layers.values()}
        self._outputs: dict[int, _LayerOutput] = {}
        self.uses: Counter[int] = Counter()
        self.norm_inputs: dict[int, list[Tensor]] = defaultdict(list)

    def observe(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """See `FunctionWatch.observe`."""
        result = func(*args, **kwargs)
        if func not in METADATA:
            self.mark_as_used((args, kwargs))
        if func is functional.batch_norm:
            given = {**dict(zip(("input", "running_mean"), args, strict=False)), **kwargs}
            self.norm_inputs[id(given["running_mean"])].append(given["input"])
        arguments = call_arguments(func, args, kwargs)
        if arguments and (layer := self._layers.get(id(arguments["weight"]))):
            # Kept alive, so that no later tensor takes its id; earlier ones may have had it.
            self._outputs[id(result)] = _LayerOutput(
                layer, arguments["weight"], arguments["bias"], result
            )
            self.uses[id(result)] = 0
        return result

    def mark_as_used(self, value: Any) -> None:
        """Count one more use of each tensor in nested tuples, lists and dicts."""
        self.uses.update(id(tensor) for tensor in tensors_in(value))

    def output_of(self, tensor: Tensor) -> _LayerOutput | None:
        """The layer output that this very tensor is, if it is one."""
        return self._outputs.get(id(tensor))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists, dicts and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))


def _batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    return {name: norm for name, norm in model.named_modules() if isinstance(norm, _BatchNorm)}


def _target(model: nn.Module, flow: _Flow, norm: _BatchNorm) -> Layer | str:
    """The layer a batch norm can be folded into, or the reason why there is none."""
    if norm.running_mean is None:
        return "it keeps no running statistics"
    inputs = flow.norm_inputs[id(norm.running_mean)]
    if len(inputs) != 1:
        return f"the forward pass uses it {len(inputs)} times"
    output = flow.output_of(inputs[0])
    if output is None:
        return "its input is not the output of a linear or convolution layer"
    layer = output.layer
    if layer.aliases or flow.uses[id(output.weight)] != 1:
        return f"its input comes from {layer.name!r}, whose weight is used more than once"
    if flow.uses[id(output.tensor)] != 1:
        return f"the output of {layer.name!r} is also used elsewhere"
    if output.bias is not _bias(model, layer):
        return f"{layer.name!r} is not called with its own bias"
    if output.tensor.dim() != len(layer.shape):
        return f"it does not normalise the output channels of {layer.name!r}"
    if _does_more(norm, inputs[0][:1]):  # one sample tells
        return "its forward does more than normalise and run its children"
    return layer


def _bias(model: nn.Module, layer: Layer) -> nn.Parameter:
    return model.get_submodule(layer.name).get_parameter("bias")


@torch.no_grad()
def _fold(model: nn.Module, layer: Layer, norm_name: str) -> None:
    norm = model.get_submodule(norm_name)
    assert isinstance(norm, _BatchNorm)
    scale, shift = _affine(norm)
    weight, bias = weight_of(model, layer), _bias(model, layer)
    rows = layer.matrix(weight.double()) * scale.reshape(layer.g, layer.r, 1)
    module = model.get_submodule(layer.name)
    module.weight = nn.Parameter(layer.weight(rows).to(weight.dtype).contiguous())
    module.bias = nn.Parameter((bias.double() * scale + shift).to(bias.dtype))
    _replace(model, norm, _remainder(norm))


def _remainder(norm: _BatchNorm) -> nn.Module:
    """What a batch norm does after it normalises: nothing, or what its child modules do."""
    children = OrderedDict(norm.named_children())
    return (nn.Sequential(children) if children else nn.Identity()).eval()


@torch.no_grad()
def _does_more(norm: _BatchNorm, x: Tensor) -> bool:
    """Whether a batch norm does more to its input than normalise it and run its children."""
    plain = functional.batch_norm(
        *(x, norm.running_mean, norm.running_var, norm.weight, norm.bias), eps=norm.eps
    )
    return not torch.equal(norm(x), _remainder(norm)(plain))


def _affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """What a batch norm in eval mode does to each channel, in float64: scale * y + shift."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        scale, shift = scale * norm.weight.double(), shift * norm.weight.double() + norm.bias
    return scale, shift


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, new)
