"""How a layer of a network becomes a rounding problem: bits, range, candidates, bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from qubo_rounding.frozen_grids import FrozenGrid
from qubo_rounding.grid import (
    Granularity,
    Grid,
    RangeRule,
    WeightMSE,
    check_fineness,
    fit_grid,
    level_range,
)
from qubo_rounding.layers import Layer
from qubo_rounding.local_loss import BiasMode, Candidates, local_problem
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.statistics import Gram
from qubo_rounding.whole_numbers import check_whole


@dataclass(frozen=True)
class LayerSettings:
    """How each layer's rounding problem is posed.

    Args:
        bits: of the weight grid, 2 to 8.
        layer_bits: bits of single layers by name, where they differ.
        symmetric: a grid around zero; False moves the zero point.
        granularity: "channel", "tensor" or a number of columns that share a scale.
        range_rule: how wide the grid is.
        grids: of single layers by name, which are taken as they are, with their own bits: those of
            an encodings file, from `read_encodings`. The layers' batch norms must have been folded
            when they were made.
        candidates: "up_down" (the paper's) or "free".
        bias: "refit" lets the bias absorb the mean error, "keep" is the paper's.
        scale_refits: how often scales are refitted to the levels found by a solver, and the levels
            found anew on them.
        equalise: rescale channels between layers first, so that weights fit their grids; for one
            scale a layer. The network's answers stay as they are.
        act_bits: of the activations, 2 to 8; None leaves them in float.
        act_grids: of single activations by the name of their site, which are taken as they are:
            `read_encodings(path, "activations")`. Others have act_bits; without, all must be there.
        shrink: share in [0, 1) that the off-diagonal moments of the inputs lose, or "auto" for as
            much as chance is in them, layer by layer: little in the first layers of a network,
            which see thousands of positions of an image, much in the last ones, where it keeps
            levels from fitting the calibration images alone. "auto" compares batches, so there
            have to be two at least. Records then tell the share (stats["shrink"]) and the energy
            of the shrunk problem; held-out energies are never shrunk.

    Raises:
        ValueError: bits, granularity or shrink outside what is allowed, or grids beside what would
            change them.
    """

    bits: int = 4
    layer_bits: Mapping[str, int] = field(default_factory=dict)
    symmetric: bool = True
    granularity: Granularity = "channel"
    range_rule: RangeRule = field(default_factory=WeightMSE)
    grids: Mapping[str, FrozenGrid] = field(default_factory=dict)
    candidates: Candidates = "up_down"
    bias: BiasMode = "refit"
    scale_refits: int = 0
    equalise: bool = False
    act_bits: int | None = None
    act_grids: Mapping[str, FrozenGrid] = field(default_factory=dict)
    shrink: float | Literal["auto"] = 0.0

    def __post_init__(self) -> None:
        activations = () if self.act_bits is None else (self.act_bits,)
        for bits in (self.bits, *self.layer_bits.values(), *activations):
            check_fineness(bits, self.granularity)
        check_whole(0, scale_refits=self.scale_refits)
        if self.grids and (self.scale_refits or self.equalise):
            raise ValueError(
                "grids are taken as they are, and neither fit equalised weights nor can be "
                "refitted; leave out equalise and scale_refits, or grids."
            )
        if self.act_grids and self.equalise:
            raise ValueError(
                "act_grids do not fit the activations of an equalised network; leave out equalise, "
                "or act_grids."
            )
        if twice := sorted(set(self.grids) & set(self.layer_bits)):
            raise ValueError(f"layers {twice} have bits of their own and grids; give one of both.")
        if self.shrink != "auto" and not (
            isinstance(self.shrink, float | int) and 0 <= self.shrink < 1
        ):
            raise ValueError(f"shrink is {self.shrink!r}; give a share in [0, 1), or 'auto'.")

    @property
    def quantises_activations(self) -> bool:
        """Whether activations are put on grids, too."""
        return self.act_bits is not None or bool(self.act_grids)

    def bits_of(self, layer: Layer) -> int:
        """Bits of this layer's grid."""
        if (frozen := self.grids.get(layer.name)) is not None:
            return frozen.bits
        return self.layer_bits.get(layer.name, self.bits)

    def grid_of(self, layer: Layer, weight: Tensor, gram: Tensor | None) -> Grid:
        """The grid of a layer's weights (g, r, d), given or fitted."""
        if (frozen := self.grids.get(layer.name)) is not None:
            try:
                return frozen.grid(layer.g, layer.r, self.symmetric)
            except ValueError as error:
                raise ValueError(f"the grid of layer {layer.name!r}: {error}") from None
        return fit_grid(
            weight,
            self.bits_of(layer),
            symmetric=self.symmetric,
            granularity=self.granularity,
            rule=self.range_rule,
            gram=gram,
        )

    def range_of(self, bits: int) -> tuple[int, int]:
        """Smallest and largest level of a grid of so many bits."""
        return level_range(bits, self.symmetric)

    def bias_of(self, layer: Layer) -> BiasMode:
        """A weight shared by several modules keeps its biases: no one shift suits them all."""
        return "keep" if layer.aliases else self.bias


def layer_problem(
    layer: Layer, weight: Tensor, gram: Gram, settings: LayerSettings
) -> tuple[RoundingProblem, Grid]:
    """The rounding problem of one layer, and its grid.

    Args:
        layer: the layer.
        weight: (g, r, d) its float weights.
        gram: moments of its inputs.
        settings: how the problem is posed.
    """
    bits, bias = settings.bits_of(layer), settings.bias_of(layer)
    own = gram.second_moment_q if gram.is_paired else gram.second_moment
    grid = settings.grid_of(layer, weight, own)
    meta = {"layer": layer.name, "kind": layer.kind, "bits": bits, "bias": bias}
    problem = local_problem(
        weight, grid, gram, bias=bias, candidates=settings.candidates, meta=meta
    )
    share = settings.shrink
    if share == "auto":
        share = share_of_chance(layer.name, gram, central=bias == "refit")
    if share > 0:
        meta["shrink"] = share
        problem = replace(problem, gram=shrunk(problem.gram, share), meta=meta)
    return problem, grid


def share_of_chance(name: str, gram: Gram, *, central: bool) -> float:
    """`Gram.sampling_share`, whose error names the layer.

    Raises:
        ValueError: it cannot be known.
    """
    try:
        return gram.sampling_share(central=central)
    except ValueError as error:
        raise ValueError(f"shrink='auto', layer {name!r}: {error}") from None


def shrunk(gram: Tensor, share: float) -> Tensor:
    """(1 - share) G + share diag(G): a Gram matrix (g, d, d) that trusts its own less.

    Source: Ledoit, Wolf 2004, J. Multivar. Anal. 88, 365, with the diagonal as the target.
    """
    return torch.lerp(gram, torch.diag_embed(gram.diagonal(dim1=1, dim2=2)), share)
