"""Quantised activations: a network that keeps its activations as integer hardware would.

    quantisers = calibrate_activations(folded, images, bits=8)
    attach(folded, quantisers)
    logits = folded(batch)                                   # with quantised activations
    with quantisers.active_in("blocks.3"):
        output = folded.blocks[3](inputs)                    # the same, for one part alone

Grids are asymmetric, one for a whole activation, and hold value 0 exactly; weights are not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qubo_rounding.frozen_grids import FrozenGrid
from qubo_rounding.grid import check_fineness
from qubo_rounding.passes import check_eval_mode, input_batches
from qubo_rounding.relaxed.activation_course import Course, Visit, Walk
from qubo_rounding.relaxed.activation_quantiser import ActivationQuantiser
from qubo_rounding.relaxed.activation_ranges import (
    ActivationMinMax,
    ActivationMSE,
    ActivationPercentile,
    ActivationRule,
    collect_histograms,
)
from qubo_rounding.relaxed.activation_sites import find_sites
from qubo_rounding.relaxed.fused_quantiser import Draw
from qubo_rounding.solvers.random_numbers import stream_keys

__all__ = [
    "ActivationMSE",
    "ActivationMinMax",
    "ActivationPercentile",
    "ActivationQuantiser",
    "ActivationQuantisers",
    "ActivationRule",
    "attach",
    "calibrate_activations",
]

_CHILD = "activation_quantisers"


@dataclass(frozen=True)
class _Dropping:
    share: float
    generator: torch.Generator


class ActivationQuantisers(nn.Module):
    """The quantisers of all sites of a network, from `calibrate_activations`.

    Attached, it is a child module of the network; its own forward returns its argument, so that a
    network that runs its children one after the other may have it.

    Args:
        course: of the network's forward pass.
        quantisers: one for each site, in their order.

    Raises:
        ValueError: there are not as many quantisers as sites.
    """

    def __init__(self, course: Course, quantisers: Sequence[ActivationQuantiser]) -> None:
        super().__init__()
        if len(quantisers) != len(course.sites):
            raise ValueError(
                f"there are {len(quantisers)} quantisers for {len(course.sites)} sites; give one "
                "for each."
            )
        self.course = course
        self.quantisers = nn.ModuleList(quantisers)
        self._place = {name: place for place, name in enumerate(course.sites.values())}
        self._dropping: _Dropping | None = None

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites, in the order of execution."""
        return tuple(self._place)

    def __getitem__(self, site: str) -> ActivationQuantiser:
        """The quantiser of a site, by its name."""
        quantiser = self.quantisers[self._place[site]]
        assert isinstance(quantiser, ActivationQuantiser)
        return quantiser

    def forward(self, x: Any) -> Any:
        """Its argument as it is."""
        return x

    def active_in(self, module: str = "", call: int = 0) -> Walk:
        """A context for one call of one module of the network alone, with quantised activations.

        The module's input comes as it is given: the network quantises it before it gets there. The
        attached network's own call needs no context.

        Args:
            module: dotted name of the module; "" is the network that nothing is attached to.
            call: which of the module's calls in the network's pass it stands for, counted from 0.

        Raises:
            ValueError: the pass has no such call; or, within the context or at its end, anything
                else than this one call is computed.
        """
        return Walk(self.course, self._visit(), module, call)

    def learn(self, on: bool = True) -> None:
        """Let gradients reach all scales, or no longer."""
        for quantiser in self.quantisers:
            quantiser.get_parameter("scale").requires_grad_(on)

    @contextmanager
    def dropping(self, share: float, generator: torch.Generator | int) -> Iterator[None]:
        """A context in which values stay in float at random, for reconstruction.

        Every pass that begins within it takes one number from the generator, from which all its
        draws follow: passes begun in the same order get the same draws.

        Args:
            share: probability of a value to stay in float.
            generator: on the CPU; or the seed of a new one.

        Raises:
            ValueError: the share is no probability.

        Source: Wei et al. 2022, arXiv 2203.05740, section 4.2.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}; give a probability from 0 to 1.")
        if isinstance(generator, int):
            generator = torch.Generator().manual_seed(generator)
        before, self._dropping = self._dropping, _Dropping(share, generator)
        try:
            yield
        finally:
            self._dropping = before

    def _visit(self) -> Visit:
        """What a pass that begins now does at every site."""
        dropping = self._dropping
        if dropping is None:
            return lambda site, x: self[site].quantise(x)
        seed = int(torch.randint(2**62, (), generator=dropping.generator))

        def visit(site: str, x: Tensor) -> Tensor:
            key = int(stream_keys(seed, torch.tensor(self._place[site]))) % 2**63
            return self[site].quantise(x, Draw(dropping.share, key))

        return visit


class _QuantisedForward:
    """A network's forward with its activations quantised.

    Hooks would not do: they are not called when an interrupt or an abandoned pass ends the forward.
    """

    def __init__(self, forward: Callable[..., Any], quantisers: ActivationQuantisers) -> None:
        self._forward, self._quantisers = forward, quantisers

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._quantisers.active_in().run(self._forward, *args, **kwargs)


def attach(model: nn.Module, quantisers: ActivationQuantisers) -> None:
    """Quantised activations in every call of a network from now on, its copies' included.

    The quantisers become its child module "activation_quantisers", on its device and in its mode;
    no other module, parameter or buffer gets another name.

    Args:
        model: the network that was calibrated, or one that computes the same operations: a copy
            with rounded weights.
        quantisers: from `calibrate_activations`.

    Raises:
        ValueError: the network has activation quantisers.
    """
    _check_unattached(model)
    if (parameter := next(model.parameters(), None)) is not None:
        quantisers.to(parameter.device)
    model.forward = _QuantisedForward(model.forward, quantisers)
    model.add_module(_CHILD, quantisers.train(model.training))


def calibrate_activations(
    model: nn.Module,
    loader: Iterable[Any],
    bits: int | None = 8,
    *,
    rule: ActivationRule | None = None,
    site_bits: Mapping[str, int] | None = None,
    site_grids: Mapping[str, FrozenGrid] | None = None,
) -> ActivationQuantisers:
    """Activation quantisers for a network, their ranges chosen on its float activations.

    The loader is gone through twice: for the smallest and largest values of every site, then for
    their histograms. No activations are kept.

    Args:
        model: network in eval mode with its batch norms folded; it stays as it is.
        loader: calibration batches, tensors or tuples that begin with one: a list, or whatever
            else can be gone through more than once.
        bits: of all grids, 2 to 8; None where every site has bits or a grid of its own.
        rule: how wide the grids are; None is `ActivationMSE()`.
        site_bits: bits of single sites by name, where they differ.
        site_grids: grids of single sites by name, which are taken as they are.

    Raises:
        ValueError: the loader is an iterator, bits, a grid or the name of a site outside what is
            allowed, a site without any, an activation that is not finite, or a network that has
            quantisers or no single course.
    """
    _check_unattached(model)
    check_eval_mode(model)
    if isinstance(loader, Iterator):
        raise ValueError(
            "the loader is an iterator, which can be gone through only once, and calibration needs "
            "two passes; give a list of batches or a DataLoader."
        )
    course = find_sites(model, next(input_batches(loader))[:1])
    names = list(course.sites.values())
    general = {} if bits is None else dict.fromkeys(names, bits)
    site_bits = general | dict(site_bits or {})
    for its_bits in site_bits.values():
        check_fineness(its_bits, "tensor")
    frozen = {name: _frozen(name, grid) for name, grid in (site_grids or {}).items()}
    if unknown := sorted({*site_bits, *frozen} - set(names)):
        raise ValueError(f"the network has no sites {unknown}; it has {names}.")
    if missing := sorted(set(names) - {*site_bits, *frozen}):
        raise ValueError(f"sites {missing} have no grid and no bits; give bits for them.")
    rule = rule or ActivationMSE()
    histograms = collect_histograms(model, course, loader)

    def fitted(name: str) -> ActivationQuantiser:
        ends = rule.ends(histograms[name], site_bits[name])
        return ActivationQuantiser.covering(*ends, site_bits[name])

    return ActivationQuantisers(course, [frozen.get(name) or fitted(name) for name in names])


def quantisers_of(model: nn.Module) -> ActivationQuantisers | None:
    """The activation quantisers that are attached to a network; None where there are none."""
    return getattr(model, _CHILD, None)


def _frozen(site: str, grid: FrozenGrid) -> ActivationQuantiser:
    if len(grid.scales) != 1:
        raise ValueError(
            f"the grid of site {site!r} has {len(grid.scales)} scales; an activation has one."
        )
    try:
        return ActivationQuantiser(grid.scales[0], -grid.offsets[0], grid.bits)
    except ValueError as error:
        raise ValueError(f"the grid of site {site!r}: {error}") from None


def _check_unattached(model: nn.Module) -> None:
    if hasattr(model, _CHILD):
        raise ValueError(
            "the network has activation quantisers already; take a copy made before they were "
            "attached."
        )
