"""Cross-layer equalisation: channels rescaled between two layers, the network's answers unchanged.

A channel that one layer makes and one other layer takes may be divided by s in the first layer's
weights and multiplied by s in the second's, as long as all between them lets a positive factor
through: ReLU, pooling, padding with zeros. With s = sqrt(range out / range in) both weights use
their grids equally well. That matters most for one scale a layer.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qubo_rounding.channel_links import Link, find_links
from qubo_rounding.layers import bias_of, matrix_of, weight_of
from qubo_rounding.passes import check_eval_mode

_ROUNDS, _SETTLED = 50, 1e-3


class ChannelClip(nn.Module):
    """min(max(x, 0), limit) with a limit for every channel: a ReLU6 of rescaled channels.

    Args:
        limit: (channels, 1, ...), positive.
    """

    limit: Tensor
    floor: Tensor

    def __init__(self, limit: Tensor) -> None:
        super().__init__()
        self.register_buffer("limit", limit)
        self.register_buffer("floor", torch.zeros_like(limit))

    def forward(self, x: Tensor) -> Tensor:
        """The clipped input, (n, channels, ...)."""
        return torch.clamp(x, self.floor, self.limit)


@dataclass(frozen=True)
class Equalised:
    """A network with equalised channels.

    Args:
        model: gives the answers of the network it was made from, to rounding errors.
        factors: float64 (channels,) by the names of two layers: what the channels between them
            were divided by.
    """

    model: nn.Module
    factors: dict[tuple[str, str], Tensor]


@torch.no_grad()
def equalise(model: nn.Module, batch: Tensor) -> Equalised:
    """A copy of a network with the channels between its layers equalised.

    All pairs are equalised in turn until the factors settle. A clipped activation function (ReLU6)
    needs a limit for each channel: a `ChannelClip` takes the place of the first layer's folded
    batch norm; without such a place the pair is left as it is.

    Args:
        model: in eval mode, batch norms folded (`fold_batch_norm`); it stays as it is.
        batch: one batch of inputs, run through the network once.

    Raises:
        ValueError: the network is in training mode.

    Source: Nagel et al. 2019, arXiv 1906.04721, section 4.1.
    """
    check_eval_mode(model)
    equalised = copy.deepcopy(model)
    links = find_links(equalised, batch)
    factors = {
        (link.first.name, link.second.name): matrix_of(model, link.first).new_ones(
            link.first.g * link.first.r, dtype=torch.float64
        )
        for link in links
    }
    for _ in range(_ROUNDS):
        change = 0.0
        for link in links:
            s = _factors(equalised, link)
            _rescale(equalised, link, s)
            factors[link.first.name, link.second.name] *= s
            change = max(change, float(s.log().abs().max()))
        if change < _SETTLED:
            break
    for link in links:
        if math.isfinite(link.limit):
            s = factors[link.first.name, link.second.name]
            # The clip that stands there already must do nothing more: no limit above its own.
            common = 1 / s.amin()
            _rescale(equalised, link, common.expand(len(s)))
            s *= common
            _clip(equalised, link, s)
    return Equalised(equalised, factors)


def _factors(model: nn.Module, link: Link) -> Tensor:
    """float64 (channels,) s for one pair; 1 for channels without weights on either side."""
    outward = matrix_of(model, link.first).double().abs().amax(dim=2).flatten()
    columns = matrix_of(model, link.second).double().abs().amax(dim=1).flatten()
    inward = columns.view(len(outward), -1).amax(dim=1)
    alive = (outward > 0) & (inward > 0)
    return torch.where(alive, outward / inward, 1.0).sqrt()


def _clip(model: nn.Module, link: Link, s: Tensor) -> None:
    assert link.clip is not None
    limit = (link.limit / s).to(weight_of(model, link.first).dtype)
    parent, _, child = link.clip.rpartition(".")
    clip = ChannelClip(limit.view(-1, *[1] * len(link.first.kernel))).eval()
    setattr(model.get_submodule(parent), child, clip)


def _rescale(model: nn.Module, link: Link, s: Tensor) -> None:
    first, second = link.first, link.second
    rows = matrix_of(model, first).double() / s.view(first.g, first.r, 1)
    weight_of(model, first).copy_(first.weight(rows))
    bias = bias_of(model, first)
    if bias is not None:
        bias.copy_(bias.double() / s)
    columns = s.repeat_interleave(second.g * second.d // len(s)).view(second.g, 1, second.d)
    weight_of(model, second).copy_(second.weight(matrix_of(model, second).double() * columns))
