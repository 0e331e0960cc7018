"""Biases that can be refitted: every layer's own, given where missing, added by its own calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import Tensor, nn

from qubo_rounding.layers import Layer, add_zero_bias
from qubo_rounding.passes import LayerCall, Pass


def give_biases(model: nn.Module, layers: Mapping[str, Layer]) -> None:
    """A zero bias for every layer that has none, before any pass: refits go into it."""
    for layer in layers.values():
        module = model.get_submodule(layer.name)
        if module.bias is None and not layer.aliases:
            add_zero_bias(model, layer).requires_grad_(False)


def shared_biases(model: nn.Module) -> set[int]:
    """The ids of the biases that several modules have in common."""
    biases = [getattr(module, "bias", None) for module in model.modules()]
    return {key for key, n in Counter(id(b) for b in biases if b is not None).items() if n > 1}


def has_own_bias(model: nn.Module, call: LayerCall, shared: set[int]) -> bool:
    """Whether a call adds the bias of the layer's module, and no other module has it too."""
    bias = model.get_submodule(call.layer.name).bias
    return call.arguments["bias"] is bias and id(bias) not in shared


def check_own_biases(model: nn.Module, layers: Mapping[str, Layer], batch: Tensor) -> None:
    """Nothing, where every layer with a weight of its own is called with a bias of its own.

    Args:
        model: network in eval mode, biases given.
        layers: those to look at.
        batch: inputs, which are run through the network.

    Raises:
        ValueError: a layer's call adds another bias than its module's, none, or one that another
            module has too: what is refitted or learned there would not be what is added.
    """
    shared = shared_biases(model)
    alone = {name: layer for name, layer in layers.items() if not layer.aliases}
    with Pass(model, alone, batch) as calls:
        foreign = [call.layer.name for call in calls if not has_own_bias(model, call, shared)]
    if foreign:
        raise ValueError(
            f"the network adds another bias than their own, or a shared one, to {foreign}; leave "
            "these layers out with skip, or choose a solver with bias='keep'."
        )
