"""The order in which layers get their Grams: all at once, or one after the other.

Independent calibration collects every Gram from the float network in one pass. Sequential
calibration rounds layer by layer, each on the inputs that the layers already rounded give it: every
batch is a forward pass suspended before the layer at hand, in the float and in the rounded network,
and all passes move through the network in lockstep. The network is walked once, whatever its depth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice

from torch import Tensor, nn

from qubo_rounding.following import Following, capture
from qubo_rounding.layers import Layer
from qubo_rounding.passes import LayerCall, Pass
from qubo_rounding.statistics import Gram, collect_grams, gram_of_calls

Grams = Mapping[str, Gram]

# What a suspended pass holds beside the layer's input: a residual branch, as a rule.
_HELD_PER_INPUT = 1.5
_MOST_SUSPENDED = 256  # pairs of passes, each of them a thread: a process may have a few thousand


@dataclass(frozen=True)
class LayerPair:
    """A layer's call on one batch, in the float and in the rounded network.

    Args:
        call, call_q: in the float network; in the rounded one.
        added, added_q: what is added to the outputs before the activation function; None without.
        images: in the batch.
    """

    call: LayerCall
    call_q: LayerCall
    added: Tensor | None
    added_q: Tensor | None
    images: int


@dataclass(frozen=True)
class Step:
    """One layer whose turn it is.

    Args:
        layer: the layer; its weight in the rounded network is to be replaced before the next step.
        grams: computes its Gram on the calibration data and on the held-out data (None without).
        pairs: its calls on the calibration batches, given what follows the layer; None where the
            Grams were collected before.
    """

    layer: Layer
    grams: Callable[[], tuple[Gram, Gram | None]]
    pairs: Callable[[Following], Iterator[LayerPair]] | None = None


def independent_steps(
    layers: Mapping[str, Layer], grams: Grams, held_out: Grams
) -> Generator[Step, None, None]:
    """Steps in the order of the Grams, which were all collected from the float network."""
    for name in grams:
        yield Step(layers[name], lambda name=name: (grams[name], held_out.get(name)))


def sequential_steps(
    model: nn.Module,
    rounded: nn.Module,
    layers: Mapping[str, Layer],
    calibration: Sequence[Tensor],
    held_out: Sequence[Tensor],
    trial: Trial,
    memory: float,
) -> Generator[Step, None, None]:
    """Steps in the order of execution; Grams are paired, of the float and the rounded network.

    Batches beyond the memory budget are not kept suspended before a layer: they run anew from the
    start, which costs time and changes no bit. As a rule that is so in a network's first, wide
    layers, which are soon reached again.

    Args:
        model: the float network.
        rounded: a copy of it; the caller replaces a layer's weight during its step.
        layers: the layers to stop at.
        calibration, held_out: batches.
        trial: what `trial_run` saw of the model.
        memory: bytes that suspended passes may hold, about.

    Raises:
        ValueError: batches reach the layers in different orders.
    """
    batches = [*calibration, *held_out]
    seen: set[str] = set()
    with ExitStack() as stack:
        pairs = [stack.enter_context(_Pair(model, rounded, layers, batches[0]))]
        while (name := _common_layer([pair.advance() for pair in pairs])) is not None:
            if name in seen:  # a later call of a layer that is rounded already
                continue
            # Networks grow narrow with depth: more passes have room as they go on.
            room = min(int(memory / (2 * trial.held_bytes[name])), _MOST_SUSPENDED)
            for batch in batches[len(pairs) : room]:
                pairs.append(stack.enter_context(_Pair(model, rounded, layers, batch)))
                _common_layer([name, pairs[-1].advance(to=name)])
            seen.add(name)
            layer = layers[name]

            def grams(layer: Layer = layer) -> tuple[Gram, Gram | None]:
                if trial.calls[layer.name] > 1:  # the passes show the first of its calls only
                    gram = _of_full_passes(model, rounded, layer, calibration)
                    judge = _of_full_passes(model, rounded, layer, held_out) if held_out else None
                    return gram, judge
                met = _of_suspended(model, rounded, layer, pairs, batches)
                called = ((pair.call, pair.call_q) for pair in met)
                gram = gram_of_calls(islice(called, len(calibration)))
                return gram, gram_of_calls(called) if held_out else None

            def calls(following: Following, layer: Layer = layer) -> Iterator[LayerPair]:
                if following.adds:  # what is added may come after the layer
                    return _captured(model, rounded, layer, following, calibration)
                every = _of_suspended(model, rounded, layer, pairs, batches)
                return (next(every) for _ in calibration)

            yield Step(layer, grams, calls)


@dataclass(frozen=True)
class Trial:
    """What one forward pass of one batch shows.

    Args:
        calls: how often each layer is called, in the order of first execution.
        held_bytes: for each layer, about the most that a pass suspended at its first call holds
            from then on to its end.
    """

    calls: Counter[str]
    held_bytes: dict[str, float]


def trial_run(model: nn.Module, layers: Mapping[str, Layer], batch: Tensor) -> Trial:
    """One pass of one batch through the model, watching the layers."""
    with Pass(model, layers, batch) as one:
        met = [(call.layer.name, call.input.nbytes) for call in one]
    held: dict[str, float] = {}
    largest = 0
    for name, size in reversed(met):
        largest = max(largest, size)
        held[name] = _HELD_PER_INPUT * largest
    return Trial(Counter(name for name, _ in met), held)


def suspended_bytes(trial: Trial, batches: int, memory: float) -> float:
    """About the most that suspended passes of so many batches hold, within a budget."""
    return min(memory, 2 * batches * max(trial.held_bytes.values()))


class _Pair:
    """A batch on its way through the float and the rounded network."""

    def __init__(
        self, model: nn.Module, rounded: nn.Module, layers: Mapping[str, Layer], batch: Tensor
    ) -> None:
        self._passes = [Pass(model, layers, batch), Pass(rounded, layers, batch)]
        self._images = len(batch)
        self.calls: list[LayerCall | None] = []

    def advance(self, to: str | None = None) -> str | None:
        """Name of the layer that both stand before now; None at the end.

        Args:
            to: name of a layer to stop at; None stops at the next one.
        """
        self.calls = []  # lets the inputs of the layer before go while the passes run on
        self.calls = [one.advance(to) for one in self._passes]
        return _common_layer([call.layer.name if call else None for call in self.calls])

    def at_hand(self) -> LayerPair:
        """The calls that both stand before."""
        call, call_q = self.calls
        assert call is not None
        assert call_q is not None
        return LayerPair(call, call_q, None, None, self._images)

    def __enter__(self) -> _Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.calls = []
        for one in self._passes:
            one.close()


def _of_suspended(
    model: nn.Module,
    rounded: nn.Module,
    layer: Layer,
    pairs: Sequence[_Pair],
    batches: Sequence[Tensor],
) -> Iterator[LayerPair]:
    for pair in pairs:
        yield pair.at_hand()
    for batch in batches[len(pairs) :]:
        with _Pair(model, rounded, {layer.name: layer}, batch) as pair:
            _common_layer([layer.name, pair.advance()])
            yield pair.at_hand()


def _captured(
    model: nn.Module,
    rounded: nn.Module,
    layer: Layer,
    following: Following,
    batches: Sequence[Tensor],
) -> Iterator[LayerPair]:
    for batch in batches:
        call, added = capture(model, layer, following, batch)
        call_q, added_q = capture(rounded, layer, following, batch)
        yield LayerPair(call, call_q, added, added_q, len(batch))


def _of_full_passes(
    model: nn.Module, rounded: nn.Module, layer: Layer, batches: Sequence[Tensor]
) -> Gram:
    layers = {layer.name: layer}
    return collect_grams(model, batches, layers=layers, quantised=rounded)[layer.name]


def _common_layer(names: Sequence[str | None]) -> str | None:
    if len(set(names)) > 1:
        places = ", ".join(sorted({"the end" if name is None else repr(name) for name in names}))
        raise ValueError(
            f"batches of one network stand before different layers at the same time ({places}): "
            "its control flow depends on the data. Use independent calibration."
        )
    return names[0]
