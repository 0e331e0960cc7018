"""What really flows: the linear and convolution calls of a forward pass, one at a time.

A layer's forward may pad, reorder or reuse its input as it likes; what counts is the call of
`F.linear`, `F.conv*` or `F.conv_transpose*` that receives the layer's weight. A layer whose weight
reaches no such call (because it is derived, standardised, or hidden in a fused function) is never
seen here, rather than seen wrongly.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qubo_rounding.function_watch import FunctionWatch
from qubo_rounding.layers import Kind, Layer, weight_of

CALL_KINDS: dict[Callable[..., Tensor], Kind] = {
    functional.linear: "linear",
    functional.conv1d: "conv",
    functional.conv2d: "conv",
    functional.conv3d: "conv",
    functional.conv_transpose1d: "conv_transpose",
    functional.conv_transpose2d: "conv_transpose",
    functional.conv_transpose3d: "conv_transpose",
}

# The functions' own parameters, in order, with their defaults.
CALL_PARAMETERS: dict[Kind, dict[str, Any]] = {
    "linear": {"input": None, "weight": None, "bias": None},
    "conv": {
        "input": None, "weight": None, "bias": None,
        "stride": 1, "padding": 0, "dilation": 1, "groups": 1,
    },
    "conv_transpose": {
        "input": None, "weight": None, "bias": None,
        "stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1,
    },
}  # fmt: skip


@dataclass(frozen=True)
class LayerCall:
    """One call of a linear or convolution function with a layer's weight.

    Args:
        layer: the layer whose weight is used.
        function: `F.linear`, `F.conv2d`, ...
        arguments: all arguments of the call by the function's own names, defaults filled in.
    """

    layer: Layer
    function: Callable[..., Tensor]
    arguments: Mapping[str, Any]

    @property
    def input(self) -> Tensor:
        """The tensor the function receives, after whatever padding the module does itself."""
        return self.arguments["input"]

    @property
    def settings(self) -> dict[str, Any]:
        """The other arguments than input, weight and bias: stride, padding, ..."""
        tensors = ("input", "weight", "bias")
        return {name: value for name, value in self.arguments.items() if name not in tensors}

    def output_with(self, weight: Tensor) -> Tensor:
        """The output of this very call with another weight, bias included."""
        return self.function(**{**self.arguments, "weight": weight})


def call_arguments(function: Callable[..., Any], args: Sequence, kwargs: Mapping) -> dict[str, Any]:
    """The arguments of a linear or convolution function by name; empty for other functions."""
    kind = CALL_KINDS.get(function)
    if kind is None:
        return {}
    parameters = CALL_PARAMETERS[kind]
    return {**parameters, **dict(zip(parameters, args, strict=False)), **kwargs}


class LayerTap(FunctionWatch):
    """A context in which `on_call` receives every LayerCall of a model before it executes.

    Args:
        model: the network; calls are recognised by the identity of its parameters.
        layers: the layers to report, by name.
        on_call: called with each LayerCall.

    Raises:
        ValueError: the model lacks one of the layers, or (at the call) uses a layer's weight with
            another function or other groups than its module declares.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Layer],
        on_call: Callable[[LayerCall], None],
    ) -> None:
        super().__init__()
        pairs = [(weight_of(model, layer), layer) for layer in layers.values()]
        # The parameters are kept beside their ids, so that no id can be taken by a later tensor.
        self._weights = {id(weight): (weight, layer) for weight, layer in pairs}
        self._on_call = on_call

    def observe(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """See `FunctionWatch.observe`."""
        arguments = call_arguments(func, args, kwargs)
        if arguments and id(arguments["weight"]) in self._weights:
            _, layer = self._weights[id(arguments["weight"])]
            _check_use(layer, func, arguments)
            self._on_call(LayerCall(layer, func, arguments))
        return func(*args, **kwargs)


def _check_use(layer: Layer, func: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    used = (CALL_KINDS[func], arguments.get("groups", 1))
    if used != (layer.kind, layer.groups):
        raise ValueError(
            f"Layer {layer.name!r} is a {layer.kind} with {layer.groups} group(s), but the model "
            f"uses its weight in a {used[0]} with {used[1]}. Leave this layer out."
        )


class _Abandoned(BaseException):
    """Ends the thread of a closed pass; no `except Exception` in a model can swallow it."""


class Pass:
    """One forward pass of one model on one batch, suspended before every layer call.

    The model runs in a thread of its own, but never at the same time as the caller: it moves only
    during `advance`. A layer's weight is read when its call executes, that is during the *next*
    `advance`; until then the caller may change it in place. The caller's `no_grad`, autocast and
    default device belong to its own thread: the pass runs without gradients and without the others.

    Use it as a context manager, so that a pass left half-way ends its thread; iterating gives all
    remaining calls.

    Args:
        model: a network in eval mode.
        layers: the layers to stop at, by name.
        batch: the one argument of the model.

    Raises:
        ValueError: the model is in training mode or lacks one of the layers.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, Layer], batch: Tensor) -> None:
        check_eval_mode(model)
        self._model = model
        self._batch = batch
        self._tap = LayerTap(model, layers, self._suspend)
        self._thread = threading.Thread(target=self._run, name="forward pass", daemon=True)
        self._may_run = threading.Semaphore(0)
        self._has_stopped = threading.Semaphore(0)
        self._call: LayerCall | None = None
        self._output: Any = None
        self._error: BaseException | None = None
        self._ended = False
        self._closed = False

    def advance(self, to: str | None = None) -> LayerCall | None:
        """The next layer call, not yet executed; None once the model has returned.

        Args:
            to: name of a layer; calls of other layers are executed without stopping.

        Raises:
            RuntimeError: the pass has been closed.
            Exception: whatever the model raises, with its own traceback.
        """
        while True:
            call = self._step()
            if call is None or to is None or call.layer.name == to:
                return call

    @property
    def output(self) -> Any:
        """What the model returned.

        Raises:
            RuntimeError: the model has not returned yet.
        """
        if not self._ended or self._closed:
            raise RuntimeError("The pass has no output yet: advance it until it gives None.")
        return self._output

    def close(self) -> None:
        """Abandon the pass: its thread ends and its tensors are let go."""
        self._closed = True
        if self._thread.is_alive():
            self._may_run.release()
            self._thread.join()
        self._call = self._output = None

    def __iter__(self) -> Iterator[LayerCall]:
        while (call := self.advance()) is not None:
            yield call

    def __enter__(self) -> Pass:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._ended:
            self.close()

    def _step(self) -> LayerCall | None:
        if self._closed:
            raise RuntimeError("This pass has been closed. Start a new one.")
        if self._ended:
            return None
        self._call = None
        self._let_run()
        if self._error is not None:
            self._closed = True
            raise self._error
        return self._call

    def _let_run(self) -> None:
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._may_run.release()
        try:
            self._has_stopped.acquire()
        except BaseException:  # an interrupt: the model still runs, so it must not be resumed twice
            self.close()
            raise

    def _run(self) -> None:
        try:
            with torch.no_grad(), self._tap:
                self._output = self._model(self._batch)
        except _Abandoned:
            pass
        except BaseException as error:  # handed to the caller, who raises it
            self._error = error
        finally:
            self._ended = True
            self._has_stopped.release()

    def _suspend(self, call: LayerCall) -> None:
        if not self._closed:
            self._call = call
            self._has_stopped.release()
            self._may_run.acquire()
        if self._closed:
            raise _Abandoned


def check_eval_mode(model: nn.Module) -> None:
    """Nothing, for a network that is in eval mode throughout.

    Raises:
        ValueError: a module is in training mode, where dropout would make noise and batch norm
            would change the model; or it is no module.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"The model is {model!r}; give an nn.Module, such as load_model gives.")
    for name, module in model.named_modules():
        if module.training:
            where = f"Module {name!r}" if name else "The model"
            raise ValueError(f"{where} is in training mode. Call model.eval() first.")


def input_batches(loader: Iterable[Any]) -> Iterator[Tensor]:
    """The model's input of every batch: the batch itself, or its first element.

    Args:
        loader: gives tensors, or tuples or lists that begin with a tensor.

    Raises:
        ValueError: a batch is neither or has no samples, there is no batch at all, or the loader
            itself is a tensor.
    """
    if isinstance(loader, Tensor):  # iterating would take it for batches without a batch dimension
        raise ValueError("The loader is a tensor; give a list of batches, such as [tensor].")
    try:
        batches = iter(loader)
    except TypeError:
        raise ValueError(
            f"The loader is {loader!r}; give batches, such as open_images gives."
        ) from None
    number = -1
    for number, batch in enumerate(batches):
        images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if not isinstance(images, Tensor):
            raise ValueError(
                f"Batch {number} of the loader is a {type(batch).__name__}. Give tensors, or "
                "tuples or lists whose first element is the model's input tensor."
            )
        if images.ndim == 0 or len(images) == 0:
            raise ValueError(
                f"Batch {number} of the loader has shape {tuple(images.shape)}, no samples. Give "
                "batches of at least one."
            )
        yield images
    if number < 0:
        raise ValueError(
            "The loader yields no batch. Give at least one (a used iterator is empty)."
        )
