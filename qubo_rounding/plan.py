"""What is to be rounded: the folded network, its layers in order, what is left out and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qubo_rounding.batch_norm import fold_batch_norm
from qubo_rounding.calibration import Trial, trial_run
from qubo_rounding.equalisation import equalise
from qubo_rounding.layer_problem import LayerSettings
from qubo_rounding.layers import Layer, find_layers
from qubo_rounding.passes import check_eval_mode


@dataclass(frozen=True)
class Plan:
    """What is to be rounded.

    Args:
        folded: a copy of the network with its batch norms folded, equalised where asked for.
        layers: the layers to round, by name, in the order of execution.
        skipped: modules with parameters that are left as they are, with the reason.
        trial: what one pass of the first batch showed.
    """

    folded: nn.Module
    layers: dict[str, Layer]
    skipped: dict[str, str]
    trial: Trial


def plan_rounding(
    model: nn.Module,
    batch: Tensor,
    names: Iterable[str] | None,
    skip: Iterable[str],
    settings: LayerSettings,
) -> Plan:
    """The plan for a network, made with one batch of its inputs.

    Args:
        model: the network, in eval mode; it stays as it is.
        batch: one batch of inputs.
        names: of the layers to round; None means all that are found and reached.
        skip: names to leave out.
        settings: whose `layer_bits` and `grids` must name layers that are there.

    Raises:
        ValueError: a name that is not there, nothing to round, or a network that changes its input.
    """
    check_eval_mode(model)
    given, batch = batch, batch.clone()
    folded, unfolded = prepared(model, batch, settings)
    wanted, skipped = _choose_layers(folded, names, skip, settings)
    trial = trial_run(folded, wanted, batch)
    if not torch.allclose(given, batch, rtol=0, atol=0, equal_nan=True):
        raise ValueError(
            "the network changes its input in place, so that every pass over a batch would see "
            "another one; let its forward begin with x = x.clone()."
        )
    if not trial.calls:
        raise ValueError("the network reaches none of the layers to round; there is nothing to do.")
    missed = [name for name in wanted if name not in trial.calls]
    unreached = dict.fromkeys(missed, "the first batch does not reach it")
    layers = {name: wanted[name] for name in trial.calls}
    return Plan(folded, layers, skipped | unfolded | unreached, trial)


def prepared(
    model: nn.Module, batch: Tensor, settings: LayerSettings
) -> tuple[nn.Module, dict[str, str]]:
    """A copy of a network ready to be rounded, and the batch norms it keeps, with the reason.

    Args:
        model: in eval mode; it stays as it is.
        batch: one batch of inputs.
        settings: whether channels are equalised.

    Raises:
        ValueError: the network does not take such a batch.
    """
    try:
        folded, unfolded = fold_batch_norm(model, batch)
    except RuntimeError as error:  # what torch raises for shapes and types that do not fit
        raise ValueError(
            f"the network does not take a batch of shape {tuple(batch.shape)} and {batch.dtype}: "
            f"{error}. Give inputs of the size and type that it was made for."
        ) from error
    return (equalise(folded, batch[:1]).model if settings.equalise else folded), unfolded


def _choose_layers(
    model: nn.Module, names: Iterable[str] | None, skip: Iterable[str], settings: LayerSettings
) -> tuple[dict[str, Layer], dict[str, str]]:
    inventory = find_layers(model)
    skip, wanted = set(skip), set(inventory.layers if names is None else names)
    named = wanted | skip | set(settings.layer_bits) | set(settings.grids)
    if unknown := sorted(named - set(inventory.layers)):
        raise ValueError(
            f"the network has no layers {unknown} that can be rounded; "
            f"it has {list(inventory.layers)}."
        )
    chosen = {n: layer for n, layer in inventory.layers.items() if n in wanted - skip}
    if not chosen:
        raise ValueError("there is no layer left to round; name at least one.")
    left_out = {n: "left out by the caller" for n in inventory.layers if n not in chosen}
    return chosen, inventory.skipped | left_out
