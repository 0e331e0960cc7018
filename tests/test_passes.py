"""Forward passes that stop at every layer call."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from qubo_rounding.layers import find_layers
from qubo_rounding.passes import LayerCall, LayerTap, Pass, input_batches


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    # The threads, not their number: one that an earlier test left may end meanwhile.
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


class Branches(nn.Module):
    """A skip connection, two branches, and one layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.left = nn.Conv2d(4, 4, 1)
        self.right = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = self.left(x) + self.right(x)
        return self.head((self.left(y) + x).mean((2, 3)))


ORDER = ["stem", "left", "right", "left", "head"]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Branches().eval()


def images(count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, 5, 5, generator=torch.Generator().manual_seed(seed))


def start(model: nn.Module, batch: Tensor) -> Pass:
    return Pass(model, find_layers(model).layers, batch)


def names(calls: list[LayerCall]) -> list[str]:
    return [call.layer.name for call in calls]


def test_it_stops_at_every_call_and_gives_the_output(model: nn.Module) -> None:
    with start(model, images()) as one:
        calls = list(one)
        assert names(calls) == ORDER
        assert one.advance() is None
    with torch.no_grad():
        assert torch.equal(one.output, model(images()))


def test_advance_to_a_layer_runs_through_the_others(model: nn.Module) -> None:
    with start(model, images()) as one:
        assert names([one.advance("right")]) == ["right"]
        assert names([one.advance("left")]) == ["left"]
        assert one.advance("left") is None


def test_a_weight_changed_at_a_stop_counts(model: nn.Module) -> None:
    with start(model, images()) as one:
        one.advance("head")
        model.head.weight.data.zero_()
        assert one.advance() is None
        assert torch.equal(one.output, model.head.bias.detach().expand(2, 3))


def test_a_call_can_be_repeated_with_another_weight(model: nn.Module) -> None:
    with start(model, images()) as one:
        call = one.advance("right")
    expected = functional.conv2d(call.input, 2 * model.right.weight, model.right.bias, 1, 1, 1, 4)
    assert torch.equal(call.output_with(2 * model.right.weight), expected)


def test_many_passes_in_lockstep_do_not_disturb_each_other(model: nn.Module) -> None:
    batches = [images(seed=seed) for seed in range(16)]
    passes = [start(model, batch) for batch in batches]
    for name in ORDER:
        assert names([one.advance() for one in passes]) == [name] * 16
    assert [one.advance() for one in passes] == [None] * 16
    with torch.no_grad():
        for one, batch in zip(passes, batches, strict=True):
            assert torch.equal(one.output, model(batch))


def test_closing_half_way_ends_the_thread(model: nn.Module) -> None:
    before = set(threading.enumerate())
    one = start(model, images())
    one.advance()
    assert len(set(threading.enumerate()) - before) == 1
    one.close()
    assert set(threading.enumerate()) <= before  # threads of other tests may end meanwhile
    with pytest.raises(RuntimeError, match="closed"):
        one.advance()
    with pytest.raises(RuntimeError, match="no output"):
        _ = one.output
    one.close()


def test_a_pass_that_never_started_needs_no_thread(model: nn.Module) -> None:
    before = threading.active_count()
    with start(model, images()):
        assert threading.active_count() == before


def test_the_model_s_error_surfaces_with_its_traceback(model: nn.Module) -> None:
    def breaks(module: nn.Module, args: tuple[Tensor]) -> None:
        raise ArithmeticError("deep inside")

    model.head.register_forward_pre_hook(breaks)
    with start(model, images()) as one, pytest.raises(ArithmeticError) as caught:
        list(one)
    assert "breaks" in [entry.name for entry in caught.traceback]
    with pytest.raises(RuntimeError, match="closed"):
        one.advance()


def test_an_interrupt_while_waiting_ends_the_pass(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    one = start(model, images())
    monkeypatch.setattr(one._has_stopped, "acquire", interrupted)
    with pytest.raises(KeyboardInterrupt):
        one.advance()
    with pytest.raises(RuntimeError, match="closed"):
        one.advance()


class Swallows(nn.Module):
    """Tries the second layer and carries on whatever happens."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.first(x)
        except Exception:
            return self.second(x)


def test_closing_is_not_swallowed_by_the_model() -> None:
    one = start(Swallows().eval(), torch.zeros(1, 2))
    one.advance()
    one.close()
    with pytest.raises(RuntimeError, match="closed"):
        one.advance()


def test_control_flow_may_depend_on_the_data() -> None:
    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dark, self.light = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.light(x) if bool(x.sum() > 0) else self.dark(x)

    model = Chooses().eval()
    seen = []
    for value in (1.0, -1.0):
        with start(model, torch.full((1, 2), value)) as one:
            seen += names(list(one))
    assert seen == ["light", "dark"]


def test_no_gradients_and_the_caller_s_mode_untouched(model: nn.Module) -> None:
    with start(model, images()) as one:
        call = one.advance("left")
        assert not call.input.requires_grad
        assert torch.is_grad_enabled()


def test_a_derived_weight_is_never_seen() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return functional.conv2d(x, self.weight - self.weight.mean(), self.bias)

    model = nn.Sequential(Standardised(2, 2, 1), nn.Conv2d(2, 2, 1)).eval()
    with start(model, images()) as one:
        assert names(list(one)) == ["1"]


def test_a_weight_used_otherwise_than_declared_is_refused() -> None:
    class Odd(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return functional.conv2d(x, self.weight, groups=2)

    model = Odd(2, 2, 1)
    model.weight = nn.Parameter(torch.zeros(2, 1, 1, 1))
    with (
        start(model.eval(), images()) as one,
        pytest.raises(ValueError, match="conv with 1 group"),
    ):
        one.advance()


def test_training_mode_is_refused(model: nn.Module) -> None:
    model.left.train()
    with pytest.raises(ValueError, match="'left' is in training mode"):
        start(model, images())


def test_the_tap_sees_keyword_arguments_and_only_the_layers_asked_for(model: nn.Module) -> None:
    seen: list[LayerCall] = []
    layers = {"left": find_layers(model).layers["left"]}
    with LayerTap(model, layers, seen.append):
        model.left.forward(torch.zeros(1, 4, 2, 2))
        functional.conv2d(input=torch.zeros(4, 2, 2), weight=model.left.weight, padding="same")
        model.head(torch.zeros(1, 4))
    assert names(seen) == ["left", "left"]
    assert seen[1].arguments["padding"] == "same"
    assert seen[1].arguments["stride"] == 1


def test_batches_may_be_tensors_or_begin_with_one() -> None:
    batch = torch.zeros(1, 2)
    given = [batch, (batch, 3), [batch]]
    assert all(images is batch for images in input_batches(given))
    with pytest.raises(ValueError, match="Batch 1 of the loader is a dict"):
        list(input_batches([batch, {"images": batch}]))
    with pytest.raises(ValueError, match="is a tuple"):
        list(input_batches([()]))
    with pytest.raises(ValueError, match="no batch"):
        list(input_batches([]))
