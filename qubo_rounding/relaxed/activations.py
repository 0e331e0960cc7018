"""Quantised activations: per tensor, 4 to 8 bits, where integer hardware stores them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from qubo_rounding.passes import check_eval_mode, input_batches
from qubo_rounding.relaxed.activation_sites import SiteMode, Sites, find_sites

_BINS = 2048  # of the histograms that ranges are chosen from
CHILD = "activation_quantisers"


@dataclass(frozen=True)
class Histogram:
    """The values at one site.

    Args:
        low, high: smallest and largest value, zero included.
        counts: float64 (bins,), values in equal bins from low to high.
    """

    low: float
    high: float
    counts: Tensor

    @property
    def centres(self) -> Tensor:
        """float64 (bins,) middle of every bin."""
        width = (self.high - self.low) / len(self.counts)
        return self.low + width * (torch.arange(len(self.counts), dtype=torch.float64) + 0.5)


class ActivationRange(ABC):
    """How wide the range of a site's grid is."""

    @abstractmethod
    def ends(self, values: Histogram, largest: int) -> tuple[float, float]:
        """Smallest and largest value that the grid holds, not above and not below zero.

        Args:
            values: what was seen at the site.
            largest: level of the grid, which begins at 0.
        """


@dataclass(frozen=True)
class WholeRange(ActivationRange):
    """All values that were seen."""

    def ends(self, values: Histogram, largest: int) -> tuple[float, float]:
        """See `ActivationRange.ends`."""
        return values.low, values.high


@dataclass(frozen=True)
class PercentileRange(ActivationRange):
    """All but the most extreme values.

    Args:
        percent: of the values are held, half of the others left out at each end that is not zero.
    """

    percent: float = 99.99

    def __post_init__(self) -> None:
        if not 0 < self.percent <= 100:
            raise ValueError(f"percent is {self.percent}; give a number in (0, 100].")

    def ends(self, values: Histogram, largest: int) -> tuple[float, float]:
        """See `ActivationRange.ends`."""
        shares = values.counts.cumsum(0) / values.counts.sum()
        sides = int(values.low < 0) + int(values.high > 0)
        outside = (1 - self.percent / 100) / max(1, sides)
        edges = torch.linspace(values.low, values.high, len(shares) + 1, dtype=torch.float64)
        low = float(edges[int((shares <= outside).sum())])
        high = float(edges[1 + int((shares < 1 - outside).sum())])
        return min(low, 0.0), max(high, 0.0)


@dataclass(frozen=True)
class MSERange(ActivationRange):
    """The range whose grid changes the values least: argmin E[(x - x_q)^2].

    Args:
        candidates: ranges tried, from the whole one down to a small part of it.
    """

    candidates: int = 100

    def __post_init__(self) -> None:
        if self.candidates < 2:
            raise ValueError(f"candidates is {self.candidates}; give at least 2.")

    def ends(self, values: Histogram, largest: int) -> tuple[float, float]:
        """See `ActivationRange.ends`."""
        parts = torch.linspace(1, 0.05, self.candidates, dtype=torch.float64)[:, None]
        low, high = values.low * parts, values.high * parts
        scale, zero_point = _grid(low, high, largest)
        x = values.centres
        levels = ((x / scale).round() + zero_point).clamp(0, largest)
        errors = ((scale * (levels - zero_point) - x).square() * values.counts).sum(dim=1)
        best = int(errors.argmin())
        return float(low[best]), float(high[best])


def _grid(low: Tensor, high: Tensor, largest: int | Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the grid from low to high; one for sites that are always zero."""
    scale = (high - low) / largest
    scale = torch.where(scale > torch.finfo(torch.float32).tiny, scale, 1.0)
    return scale, (-low / scale).round()


class ActivationQuantisers(nn.Module):
    """The activation quantisers of a network: x_q = scale * (clip(round(x / scale) + z, 0, L) - z).

    Attached to a network they act in every forward pass of it, in copies of it too, and are a child
    module whose state goes with the network's; names of modules and parameters stay as they are.

    Args:
        sites: of the network.
        scale: (sites,), positive, activation units.
        zero_point: (sites,) whole numbers.
        largest: (sites,) largest level L, 2^bits - 1.
    """

    scale: nn.Parameter
    zero_point: Tensor
    largest: Tensor

    def __init__(self, sites: Sites, scale: Tensor, zero_point: Tensor, largest: Tensor) -> None:
        super().__init__()
        self.sites = sites
        self._slots = {number: slot for slot, number in enumerate(sites.names)}
        self.scale = nn.Parameter(scale.float(), requires_grad=False)
        self.register_buffer("zero_point", zero_point.to(torch.int32))
        self.register_buffer("largest", largest.to(torch.int32))
        self._dropping: tuple[float, torch.Generator] | None = None
        self.eval()

    @property
    def names(self) -> list[str]:
        """Of the sites, in the order of execution."""
        return list(self.sites.names.values())

    def quantise(self, number: int, x: Tensor) -> Tensor:
        """The values at the site of an operation's number on its grid, dropping some if told to."""
        slot = self._slots[number]
        largest = int(self.largest[slot])
        if self.scale.requires_grad:
            quantised = self._learnable(slot, largest, x)
        else:
            quantised = torch.fake_quantize_per_tensor_affine(
                x.float(), self.scale[slot], self.zero_point[slot], 0, largest
            ).to(x.dtype)
        if self._dropping is None:
            return quantised
        share, generator = self._dropping
        drawn = torch.rand(x.shape, generator=generator, device=generator.device)
        return torch.where(drawn.to(x.device) < share, x, quantised)

    def _learnable(self, slot: int, largest: int, x: Tensor) -> Tensor:
        """As `quantise`, with LSQ's derivatives by the scale."""
        zero_point = int(self.zero_point[slot])
        calm = 1 / math.sqrt(x.numel() * largest)
        scale = self.scale[slot]
        scale = scale.detach() + calm * (scale - scale.detach())  # same value, a calmer slope
        levels = (x / scale).clamp(-zero_point, largest - zero_point)
        return (levels + (levels.round() - levels).detach()) * scale

    @contextmanager
    def active_in(self, module: str = "") -> Iterator[None]:
        """Inside the block a call of that module alone has its activations quantised.

        The module's input comes quantised as the network would give it, or not, as the caller
        likes.

        Args:
            module: name of a module of the network, whose first call in a pass counts.

        Raises:
            ValueError: the network's pass does not call it.
        """
        if module not in self.sites.entered:
            raise ValueError(f"a forward pass of the network calls no module {module!r}.")
        with SiteMode(self._slots, self.quantise, self.sites.entered[module]):
            yield

    @contextmanager
    def learning(self) -> Iterator[nn.Parameter]:
        """Inside the block the scales have derivatives.

        Source: Esser et al. 2020 (LSQ), arXiv 1902.08153.
        """
        self.scale.requires_grad_(True)
        try:
            yield self.scale
        finally:
            self.scale.requires_grad_(False)

    @contextmanager
    def dropping(self, share: float, generator: torch.Generator) -> Iterator[None]:
        """Inside the block this share of all values, drawn anew each time, stays unquantised.

        Source: Wei et al. 2022 (QDrop), arXiv 2203.05740.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"the share of dropped quantisations is {share}; give 0 to 1.")
        self._dropping = (share, generator)
        try:
            yield
        finally:
            self._dropping = None


def calibrate_activations(
    model: nn.Module,
    loader: Iterable[Any],
    bits: int = 8,
    *,
    rule: ActivationRange | None = None,
    site_bits: Mapping[str, int] | None = None,
    progress: bool = False,
) -> ActivationQuantisers:
    """Quantisers for a network's activations, their ranges chosen on its own data.

    Args:
        model: the float network, in eval mode, batch norms folded.
        loader: calibration batches, which are passed through twice.
        bits: 2 to 8.
        rule: how wide the ranges are; None is `MSERange()`.
        site_bits: bits of single sites by name, where they differ.
        progress: show a progress bar.

    Raises:
        ValueError: bits out of range, a site that is not there, activations that are not finite.
    """
    check_eval_mode(model)
    batches = list(input_batches(loader))
    sites = find_sites(model, batches[0][:1])
    given = dict.fromkeys(sites.names.values(), bits) | dict(site_bits or {})
    if unknown := sorted(set(given) - set(sites.names.values())):
        raise ValueError(f"there is no site {unknown[0]!r}; there are {[*sites.names.values()]}.")
    for name, wanted in given.items():
        if type(wanted) is not int or not 2 <= wanted <= 8:
            raise ValueError(f"bits at {name!r} are {wanted!r}; give a whole number from 2 to 8.")
    largest = torch.tensor([2 ** given[name] - 1 for name in sites.names.values()])
    rule = rule or MSERange()
    found = histograms(model, sites, batches, progress)
    ends = [rule.ends(values, int(top)) for values, top in zip(found, largest, strict=True)]
    low, high = torch.tensor(ends, dtype=torch.float64).unbind(1)
    scale, zero_point = _grid(low, high, largest)
    quantisers = ActivationQuantisers(sites, scale, zero_point, largest)
    return quantisers.to(batches[0].device)


def histograms(
    model: nn.Module, sites: Sites, batches: Iterable[Tensor], progress: bool = False
) -> list[Histogram]:
    """What flows through every site, from two passes of all batches.

    Raises:
        ValueError: values that are not finite.
    """
    ends = dict.fromkeys(sites.names, (0.0, 0.0))
    counts = {number: torch.zeros(_BINS, dtype=torch.float64) for number in sites.names}

    def widen(number: int, x: Tensor) -> Tensor:
        low, high = (float(end) for end in x.detach().aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"activations at {sites.names[number]!r} are NaN or infinite.")
        ends[number] = (min(low, ends[number][0]), max(high, ends[number][1]))
        return x

    def count(number: int, x: Tensor) -> Tensor:
        low, high = ends[number]
        if high > low:
            bins = torch.histc(x.detach().float(), _BINS, low, high)
            counts[number] += bins.double().cpu()
        return x

    for look in (widen, count):
        with torch.no_grad():
            for batch in tqdm(batches, desc="activations", leave=False, disable=not progress):
                look(0, batch)
                with SiteMode(sites.names, look):
                    model(batch)
    return [Histogram(*ends[number], counts[number]) for number in sites.names]


def attach(model: nn.Module, quantisers: ActivationQuantisers) -> None:
    """Give a network activation quantisers that act in every forward pass, in place.

    Raises:
        ValueError: it has some already.
    """
    if hasattr(model, CHILD):
        raise ValueError("the network has activation quantisers already; attach them once.")
    original = type(model)

    def forward(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        own = quantisers_of(self)
        assert own is not None
        with own.active_in():
            return original.forward(self, own.quantise(0, x), *args, **kwargs)

    # A class of its own, as torch's parametrisations have: copies of the network keep it.
    model.__class__ = type(original.__name__, (original,), {"forward": forward})
    model.add_module(CHILD, quantisers)


def quantisers_of(model: nn.Module) -> ActivationQuantisers | None:
    """A network's activation quantisers, if it has any."""
    return getattr(model, CHILD, None)
