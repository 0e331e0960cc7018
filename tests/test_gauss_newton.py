"""Gauss-Newton matrices from whole Jacobians, by forward and by reverse mode, batch by batch."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from interrupted_loss import Interrupted
from torch import Tensor, nn

from qubo_rounding.qubo import gauss_newton
from qubo_rounding.qubo.gauss_newton import SampleJacobian
from qubo_rounding.qubo.hessian import task_cost, task_hessian
from qubo_rounding.qubo.task_loss import TaskLoss
from qubo_rounding.watch import watching
from tests import reference_hessian as reference

BATCHES = 3
# torch compiles some derivatives when forward mode is first used, in a way that it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")


def segmentation() -> nn.Sequential:
    """18 weights in the first layer, 2 x 5 x 5 outputs a sample."""
    torch.manual_seed(0)
    return (
        nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Conv2d(2, 2, 3, padding=1))
        .double()
        .eval()
    )


def pictures() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(n, 1, 5, 5, generator=draw, dtype=torch.float64),
            torch.randint(2, (n, 5, 5), generator=draw),
        )
        for n in range(1, BATCHES + 1)
    ]


def contrast(outputs: Tensor, labels: Tensor) -> Tensor:
    """A loss in which the samples of a batch meet."""
    right = outputs.gather(1, labels[:, None])
    return right.flatten(1).mean(1).logsumexp(0) + outputs.square().mean()


def weighted(outputs: Tensor, labels: Tensor) -> Tensor:
    """Its mean over a batch is no mean of its values for single samples."""
    return F.cross_entropy(outputs, labels, weight=outputs.new_tensor([1.0, 7.0]))


@pytest.mark.parametrize("loss", [contrast, weighted])
@pytest.mark.parametrize("names", [["0"], ["2", "0"]], ids="+".join)
@pytest.mark.parametrize("cost", [0, 1000], ids=["forward", "reverse"])
def test_both_modes_give_the_matrix_of_the_definition(
    loss, names: list[str], cost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauss_newton, "FORWARD_COST", cost)
    expected = reference.gauss_newton(segmentation(), names, pictures(), loss)
    for chunk in (1, 32):
        found = task_hessian(
            segmentation(), names, pictures(), loss=loss, curvature="gauss_newton", chunk=chunk
        )
        torch.testing.assert_close(found, expected, atol=1e-14, rtol=0)


def test_columns_are_bent_together_or_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = task_hessian(segmentation(), "0", pictures(), loss=contrast, curvature="gauss_newton")
    monkeypatch.setattr(gauss_newton, "BENT_TOGETHER", 7)
    parts = task_hessian(segmentation(), "0", pictures(), loss=contrast, curvature="gauss_newton")
    torch.testing.assert_close(parts, whole, atol=1e-15, rtol=1e-12)


def test_the_mode_with_fewer_products_is_taken() -> None:
    model, ((one, labels), *_) = segmentation(), pictures()
    task = TaskLoss.over(model, "0", [(one, labels)], F.cross_entropy)
    assert SampleJacobian(task, one).forward  # 18 weights against 50 outputs
    pooled = nn.Sequential(model, nn.AdaptiveAvgPool2d(1)).eval()
    task = TaskLoss.over(pooled, "0.0", [(one, labels)], F.cross_entropy)
    jacobian = SampleJacobian(task, one)
    assert not jacobian.forward
    assert jacobian.count == 2


class Alone(torch.autograd.Function):
    """A function that torch neither batches nor differentiates forward."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, *slopes: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * torch.from_numpy(slopes[0].numpy())


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Alone.apply(x)  # pyright: ignore[reportReturnType]


def test_single_products_do_for_functions_that_torch_cannot_batch() -> None:
    torch.manual_seed(0)
    strange = nn.Sequential(nn.Linear(3, 4), Square(), nn.Linear(4, 2)).double().eval()
    data = [(torch.ones(1, 3, dtype=torch.float64), torch.tensor([1]))]
    found = task_hessian(strange, "0", data, curvature="gauss_newton", chunk=1)
    expected = reference.gauss_newton(strange, ["0"], data, F.cross_entropy)
    torch.testing.assert_close(found, expected)
    with pytest.raises(RuntimeError, match=r"[Bb]atch"):
        task_hessian(strange, "0", data, curvature="gauss_newton", chunk=2)


def test_an_interrupted_sum_goes_on_where_it_was_to_the_same_bits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, data = segmentation(), pictures()
    whole = task_hessian(model, "0", data, curvature="gauss_newton")
    # The first call tells the folder which loss it is.
    stopped = Interrupted(at=4)
    with pytest.raises(KeyboardInterrupt):
        task_hessian(model, "0", data, loss=stopped, curvature="gauss_newton", folder=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["part-000002.safetensors"]
    resumed = Interrupted(at=100)
    with caplog.at_level(logging.INFO):
        found = task_hessian(
            model, "0", data, loss=resumed, curvature="gauss_newton", folder=tmp_path
        )
    assert torch.equal(found, whole)
    assert resumed.calls == 2
    assert "2 batches are kept" in caplog.text
    again = Interrupted(at=2)  # nothing is left to be done
    found = task_hessian(model, "0", data, loss=again, curvature="gauss_newton", folder=tmp_path)
    assert torch.equal(found, whole)


def test_a_time_limit_ends_it_after_a_batch(tmp_path: Path) -> None:
    given = dict(curvature="gauss_newton", folder=tmp_path)
    refusal = pytest.raises(TimeoutError, match=r"gauss_newton batches 2 steps before the last")
    with watching(time_limit=1e-9), refusal:
        task_hessian(segmentation(), "0", pictures(), **given)
    found = task_hessian(segmentation(), "0", pictures(), **given)
    assert torch.equal(
        found, task_hessian(segmentation(), "0", pictures(), curvature="gauss_newton")
    )


def test_the_jacobian_of_a_batch_counts_as_memory() -> None:
    model, data = segmentation(), pictures()
    small, large = (
        task_cost(model, "0", data[n : n + 1], curvature="gauss_newton", chunk=1)
        for n in (0, BATCHES - 1)
    )
    outputs = 2 * 5 * 5
    assert large.memory - small.memory >= 2 * 8 * (BATCHES - 1) * outputs * 18
    with pytest.raises(ValueError, match=r"needs .* for a batch's Jacobian.*smaller batches"):
        task_hessian(model, "0", data, curvature="gauss_newton", memory=small.memory - 1)


def test_what_cannot_be_is_refused() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).flatten()

    data = [(torch.ones(2, 3), torch.tensor([1, 1]))]
    with pytest.raises(ValueError, match=r"gives \(4,\) for one sample.*outputs of its own"):
        task_hessian(Mixing().eval(), "layer", data, curvature="gauss_newton")
    spoilt = [pictures()[0], (torch.full((1, 1, 5, 5), torch.nan), torch.zeros(1, 5, 5).long())]
    with pytest.raises(ValueError, match="gauss_newton of 0 is not finite in batch 1; check"):
        task_hessian(segmentation(), "0", spoilt, curvature="gauss_newton")
