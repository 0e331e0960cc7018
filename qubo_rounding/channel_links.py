"""Which layers are linked by channels that a positive factor passes, seen in one forward pass."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qubo_rounding.batch_norm import METADATA, tensors_in
from qubo_rounding.following import ACTIVATIONS, activation_of
from qubo_rounding.function_watch import FunctionWatch
from qubo_rounding.layers import Layer, find_layers, weight_of
from qubo_rounding.own_biases import has_own_bias, shared_biases
from qubo_rounding.passes import LayerCall, call_arguments

_POOLINGS = frozenset(
    f"{kind}_pool{n}d" for kind in ("avg", "max", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)
)
_RESHAPINGS = frozenset({"flatten", "view", "reshape", "squeeze"})


@dataclass(frozen=True)
class Link:
    """Two layers of which the second is the only one to take what the first one makes.

    Args:
        first, second: the layers.
        limit: above which the activation function between them is constant; infinite for none.
        clip: name of an `nn.Identity` behind the first layer, where a `ChannelClip` may stand; None
            where there is none.
    """

    first: Layer
    second: Layer
    limit: float
    clip: str | None


def find_links(model: nn.Module, batch: Tensor) -> list[Link]:
    """The pairs of layers that can be equalised, in the order of execution.

    Args:
        model: network in eval mode, batch norms folded.
        batch: one batch of inputs.
    """
    layers = find_layers(model).layers
    watch = _Watch(model, layers)
    with torch.no_grad(), _noticing_identities(model, watch.pass_identity), watch:
        watch.spoil(model(batch))
    links = []
    for trace, second in watch.met:
        first, clip = trace.layer, trace.clip
        calls = {watch.calls[first.name], watch.calls[second.name]}
        if trace.spoilt or calls != {1} or first.aliases or second.aliases:
            continue
        if clip is not None and watch.identities[clip] != 1:
            clip = None
        if math.isinf(trace.limit) or clip is not None:
            links.append(Link(first, second, trace.limit, clip))
    return links


@dataclass
class _Trace:
    """One layer's output on its way; spoilt where a factor would not come through.

    All tensors it has been are kept alive, so that no later one takes an id of theirs.
    """

    layer: Layer
    tensors: list[Tensor]
    limit: float = math.inf
    clip: str | None = None
    used: bool = False
    spoilt: bool = False

    @property
    def tensor(self) -> Tensor:
        """What it is now."""
        return self.tensors[-1]


class _Watch(FunctionWatch):
    """Follows every layer's output, through what lets factors pass, to the layer that takes it."""

    def __init__(self, model: nn.Module, layers: Mapping[str, Layer]) -> None:
        super().__init__()
        self._model, self._shared = model, shared_biases(model)
        self._layers = {id(weight_of(model, layer)): layer for layer in layers.values()}
        self._traces: dict[int, _Trace] = {}
        self.met: list[tuple[_Trace, Layer]] = []
        self.calls: Counter[str] = Counter()
        self.identities: Counter[str] = Counter()

    def spoil(self, value: Any) -> None:
        """These tensors are used in a way that no factor gets through."""
        for tensor in tensors_in(value):
            if (trace := self._traces.get(id(tensor))) is not None:
                trace.spoilt = True

    def pass_identity(self, name: str, x: Any) -> None:
        """Notice that an `nn.Identity` is called, which a clip could take the place of."""
        self.identities[name] += 1
        trace = self._traces.get(id(x))
        if trace is not None and math.isinf(trace.limit) and not trace.used:
            trace.clip = name

    def observe(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """See `FunctionWatch.observe`."""
        traces = [] if func in METADATA else self._traced((args, kwargs))
        result = func(*args, **kwargs)
        for trace in traces:
            trace.spoilt |= trace.used
            trace.used = True
        arguments = call_arguments(func, args, kwargs)
        layer = self._layers.get(id(arguments["weight"])) if arguments else None
        if layer is not None:
            self.calls[layer.name] += 1
            fits = traces and arguments["input"] is traces[0].tensor and _takes(layer, traces[0])
            if fits:
                self.met.append((traces.pop(0), layer))
            if isinstance(result, Tensor):
                own = has_own_bias(self._model, LayerCall(layer, func, arguments), self._shared)
                self._traces[id(result)] = _Trace(layer, [result], spoilt=not own)
        elif len(traces) == 1 and isinstance(result, Tensor) and args[0] is traces[0].tensor:
            limit = _limit_of(func, args, kwargs, result, traces[0])
            if limit is not None:
                going_on = traces.pop()
                going_on.tensors.append(result)
                going_on.used = False
                going_on.limit = min(going_on.limit, limit)
                self._traces[id(result)] = going_on
        for trace in traces:
            trace.spoilt = True
        return result

    def _traced(self, value: Any) -> list[_Trace]:
        return [t for x in tensors_in(value) if (t := self._traces.get(id(x))) is not None]


def _telling(notice: Callable[[str, Any], None], name: str) -> Callable[[nn.Module, Any], None]:
    return lambda _, args: notice(name, args[0])


@contextmanager
def _noticing_identities(model: nn.Module, notice: Callable[[str, Any], None]) -> Iterator[None]:
    hooks = [
        module.register_forward_pre_hook(_telling(notice, name))
        for name, module in model.named_modules()
        if type(module) is nn.Identity
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _takes(layer: Layer, trace: _Trace) -> bool:
    """Whether a layer's columns are the channels of a trace, each several times in a row."""
    channels = trace.layer.g * trace.layer.r
    if layer.kind == "linear":
        flat = trace.tensor.ndim == 2 or trace.layer.kind == "linear"
        return flat and layer.d % channels == 0
    return trace.tensor.ndim == len(layer.kernel) + 2 and trace.tensor.shape[1] == channels


def _limit_of(
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    result: Tensor,
    trace: _Trace,
) -> float | None:
    """Above which a call is constant, infinite if nowhere; None where it stops factors."""
    x, name = trace.tensor, getattr(func, "__name__", "").strip("_")
    if func in ACTIVATIONS:
        settings = itertools.chain(args[1:], kwargs.values())
        activation = activation_of(func, args, kwargs)
        if activation is None or any(isinstance(s, Tensor) for s in settings):
            return None
        return _limit_of_function(activation)
    if name == "dropout":  # in eval mode: lets everything pass
        return math.inf
    if trace.layer.kind == "linear":
        return None
    pads = list(args[1]) if name == "pad" and len(args) > 1 else []
    mode, value = (*args[2:], *(None, None))[:2]
    zeros = not (value or kwargs.get("value")) and (mode or "constant") == "constant"
    keeps = {
        "pooling": name in _POOLINGS and result.ndim == x.ndim,
        "padding": bool(pads) and zeros and len(pads) <= 2 * (x.ndim - 2),
        "mean": name in ("mean", "amax") and result.shape[:2] == x.shape[:2],
        "reshaping": name in _RESHAPINGS
        and result.ndim == 2
        and result.shape[0] == x.shape[0]
        and x.numel() == result.numel(),
    }
    return math.inf if any(keeps.values()) else None


def _limit_of_function(activation: Callable[[Tensor], Tensor]) -> float | None:
    """Of a function that is told by its values: c x below 0, min(x, limit) above, or others."""
    x = torch.tensor([-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 1e30], dtype=torch.float64)
    limit = float(activation(x)[-1])
    below = float(activation(x)[0]) / -4
    if limit == 1e30:
        expected = torch.where(x < 0, below * x, x)
    elif limit > 0 and below == 0:
        expected = x.clamp(0, limit)
    else:
        return None
    if not torch.allclose(activation(x), expected, rtol=1e-12, atol=0):
        return None
    return math.inf if limit == 1e30 else limit
