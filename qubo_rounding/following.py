"""What really follows a layer: the additions and the activation function its output goes through.

Reconstruction compares outputs after the activation function, so it has to know which one the
network applies. That is watched in a forward pass, whatever module or function makes the call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qubo_rounding.batch_norm import METADATA, tensors_in
from qubo_rounding.function_watch import FunctionWatch
from qubo_rounding.layers import Layer, weight_of
from qubo_rounding.passes import LayerCall, call_arguments

# Every way to call an activation function, and the one that leaves its input as it is.
ACTIVATIONS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu, torch.relu_, Tensor.relu_), F.relu),
    **dict.fromkeys((F.hardtanh, F.hardtanh_), F.hardtanh),
    **dict.fromkeys((torch.clamp, Tensor.clamp, torch.clamp_, Tensor.clamp_), torch.clamp),
    **dict.fromkeys((torch.clip, Tensor.clip), torch.clamp),
    **dict.fromkeys((torch.clamp_min, Tensor.clamp_min), torch.clamp_min),
    **dict.fromkeys((torch.sigmoid, Tensor.sigmoid, F.sigmoid, Tensor.sigmoid_), torch.sigmoid),
    **dict.fromkeys((torch.tanh, Tensor.tanh, F.tanh, Tensor.tanh_), torch.tanh),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), F.leaky_relu),
    **dict.fromkeys((F.elu, F.elu_), F.elu),
    **{f: f for f in (F.relu6, F.silu, F.gelu, F.hardswish, F.hardsigmoid, F.mish, F.softplus)},
    **{f: f for f in (F.selu, F.celu, F.prelu, torch.prelu)},
}
_INPLACE_LAST = frozenset(
    {
        F.relu,
        F.hardtanh,
        F.leaky_relu,
        F.elu,
        F.relu6,
        F.silu,
        F.hardswish,
        F.hardsigmoid,
        F.mish,
        F.selu,
        F.celu,
    }
)
ADDITIONS: frozenset[Callable[..., Any]] = frozenset(
    {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__}
)


@dataclass(frozen=True)
class Activation:
    """An activation function out of place, with the settings that a network gives it.

    Args:
        function: one of the values of ACTIVATIONS.
        others: its arguments after the first.
        settings: its arguments by name.
    """

    function: Callable[..., Tensor]
    others: tuple[Any, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, output: Tensor) -> Tensor:
        """Its value for outputs (n, channels, ...)."""
        return self.function(output, *self.others, **self.settings)

    @property
    def has_settings_of_each(self) -> bool:
        """Whether channels have settings of their own."""
        return any(map(_is_of_each, (*self.others, *self.settings.values())))

    def of(self, channels: slice) -> Activation:
        """The same for tensors (n, chosen channels): settings of each channel are cut to them."""

        def cut(value: Any) -> Any:
            return value.flatten()[channels] if _is_of_each(value) else value

        cut_settings = {key: cut(value) for key, value in self.settings.items()}
        return Activation(self.function, tuple(map(cut, self.others)), cut_settings)


def _is_of_each(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() > 1


@dataclass(frozen=True)
class Following:
    """What a layer's output goes through before anything else sees it.

    Args:
        activation: the activation function with all its settings; None where none follows.
        name: of that function, "none" without.
        adds: whether another tensor of the same shape is added before the activation function.
    """

    activation: Activation | None = None
    name: str = "none"
    adds: bool = False

    def __call__(self, output: Tensor, added: Tensor | None = None) -> Tensor:
        """The activation function's value for a layer's output, and what is added to it."""
        total = output if added is None else output + added
        return total if self.activation is None else self.activation(total)

    def of(self, channels: slice) -> Following:
        """The same for tensors (n, chosen channels) alone."""
        if self.activation is None:
            return self
        return replace(self, activation=self.activation.of(channels))


def find_following(
    model: nn.Module, layers: Mapping[str, Layer], batch: Tensor
) -> dict[str, Following]:
    """What follows each layer, by name, seen in one forward pass.

    An activation function counts where it is the only user of the layer's output, or of a sum that
    is the only user of that output. A layer that is called more than once is followed by nothing.

    Args:
        model: network in eval mode.
        layers: the layers to look at.
        batch: one batch of inputs.
    """
    watch = _Watch(model, layers)
    with torch.no_grad(), watch:
        watch.bar(model(batch))
    return {name: watch.following(name) for name in layers}


@dataclass
class _Trace:
    """A tensor that is one or more layers' output, or a sum with it; kept alive with its id."""

    tensor: Tensor
    layers: frozenset[str]
    adds: bool = False
    used: bool = False


class _Watch(FunctionWatch):
    """Follows every layer's output to its first use."""

    def __init__(self, model: nn.Module, layers: Mapping[str, Layer]) -> None:
        super().__init__()
        self._layers = layers
        self._names = {id(weight_of(model, layer)): layer.name for layer in layers.values()}
        self._traces: dict[int, _Trace] = {}
        self._found: dict[str, Following] = {}
        self._called: set[str] = set()
        self._barred: set[str] = set()

    def following(self, name: str) -> Following:
        """What was found for a layer."""
        return Following() if name in self._barred else self._found.get(name, Following())

    def bar(self, value: Any) -> None:
        """These tensors are used in a way that nothing follows."""
        for trace in self._traced(value):
            self._barred |= trace.layers

    def observe(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """See `FunctionWatch.observe`."""
        traced = [] if func in METADATA else self._traced((args, kwargs))
        result = func(*args, **kwargs)
        if traced:
            self._use(traced, func, args, kwargs, result)
        arguments = call_arguments(func, args, kwargs)
        if arguments and (name := self._names.get(id(arguments["weight"]))) is not None:
            if name in self._called:
                self._barred.add(name)
            self._called.add(name)
            self._traces[id(result)] = _Trace(result, frozenset({name}))
        return result

    def _traced(self, value: Any) -> list[_Trace]:
        return [t for x in tensors_in(value) if (t := self._traces.get(id(x))) is not None]

    def _use(
        self,
        traced: Sequence[_Trace],
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        result: Any,
    ) -> None:
        for trace in traced:
            if trace.used:
                self._barred |= trace.layers
            trace.used = True
        first = traced[0]
        if (activation := activation_of(func, args, kwargs)) and args[0] is first.tensor:
            found = Following(activation, ACTIVATIONS[func].__name__, first.adds)
            self._found.update(dict.fromkeys(first.layers, found))
            if activation.has_settings_of_each and first.tensor.ndim != 2:
                # They are of the second dimension, where linear layers have no channels.
                linear = {name for name in first.layers if self._layers[name].kind == "linear"}
                self._barred |= linear
            self._traces.pop(id(result), None)  # in place: what comes now follows the activation
        elif addends(func, args, kwargs):
            layers = frozenset().union(*(trace.layers for trace in traced))
            self._traces[id(result)] = _Trace(result, layers, adds=True)
        elif func is F.dropout:  # of a network in eval mode, which lets everything pass
            self._traces[id(result)] = _Trace(result, first.layers, first.adds)
        else:
            self.bar([trace.tensor for trace in traced])


def activation_of(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Activation | None:
    """The activation function that a call applies to its first argument, out of place."""
    if func not in ACTIVATIONS or not args:
        return None
    settings = {key: value for key, value in kwargs.items() if key != "inplace"}
    others = tuple(args[1:])
    if func in _INPLACE_LAST and others and isinstance(others[-1], bool):
        others = others[:-1]
    return Activation(ACTIVATIONS[func], others, settings)


def addends(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Tensor, Tensor] | None:
    """The two tensors of one shape that a call adds up; None for any other call."""
    if func not in ADDITIONS or kwargs or len(args) != 2:
        return None
    left, right = args
    alike = isinstance(left, Tensor) and isinstance(right, Tensor) and left.shape == right.shape
    return (left, right) if alike else None


class _Reached(BaseException):  # no `except Exception` of a model swallows it
    """The activation function is reached; the rest of the pass is not wanted."""


class _Capture(FunctionWatch):
    """Records a layer's first call and what is added to its output."""

    def __init__(self, weight: Tensor, layer: Layer, following: Following) -> None:
        super().__init__()
        self._weight, self._layer, self._following = weight, layer, following
        self._total: Tensor | None = None
        self.call: LayerCall | None = None
        self.added: Tensor | None = None

    def observe(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """See `FunctionWatch.observe`."""
        seen = self._total is not None and any(x is self._total for x in args)
        if seen and func in ACTIVATIONS:
            raise _Reached
        other = None
        if seen and (pair := addends(func, args, kwargs)):
            # A copy: the sum may be written over it.
            other = (pair[1] if pair[0] is self._total else pair[0]).clone()
        result = func(*args, **kwargs)
        arguments = call_arguments(func, args, kwargs)
        if arguments and arguments["weight"] is self._weight:
            self.call, self._total = LayerCall(self._layer, func, arguments), result
            if not self._following.adds:
                raise _Reached
        elif other is not None:
            self.added = other if self.added is None else self.added + other
            self._total = result
        elif seen and func is F.dropout:
            self._total = result
        return result


def capture(
    model: nn.Module, layer: Layer, following: Following, batch: Tensor
) -> tuple[LayerCall, Tensor | None]:
    """A layer's first call in a pass of one batch, and what is added before the activation.

    Args:
        model: network in eval mode.
        layer: one of its layers.
        following: what `find_following` saw behind it.
        batch: inputs of the network.

    Raises:
        ValueError: the pass does not reach the layer.
    """
    mode = _Capture(weight_of(model, layer), layer, following)
    with torch.no_grad(), suppress(_Reached), mode:
        model(batch)
    if mode.call is None:
        raise ValueError(f"a batch does not reach layer {layer.name!r}; leave the layer out.")
    return mode.call, mode.added
