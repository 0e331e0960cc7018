"""Batch norm is folded where the flow allows it, and kept with a reason where not."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qubo_rounding.batch_norm import fold_batch_norm
from qubo_rounding.imagenet import demo_photographs
from qubo_rounding.models import Preprocessing


def lively(model: nn.Module) -> nn.Module:
    """The model in eval mode with statistics and affine maps that are not the identity."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_var, module.weight):
                if tensor is not None:
                    tensor.data.uniform_(0.5, 2.0, generator=generator)
            for tensor in (module.running_mean, module.bias):
                if tensor is not None:
                    tensor.data.normal_(generator=generator)
    return model.eval()


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def batch_norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


@torch.no_grad()
def check_same_output(model: nn.Module, folded: nn.Module, batch: Tensor) -> None:
    torch.testing.assert_close(folded(batch), model(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()), (2, 3, 6, 6)),
        (nn.Sequential(nn.Conv1d(4, 6, 3, groups=2), nn.BatchNorm1d(6)), (2, 4, 7)),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4)), (2, 4, 6, 6)),
        (nn.Sequential(nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3, affine=False)), (2, 2, 4, 4, 4)),
        (nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)), (3, 5)),
        (
            nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)),
            (2, 4, 5, 5),
        ),
    ],
)
def test_it_folds_into_every_kind_of_layer(model: nn.Module, batch: tuple[int, ...]) -> None:
    lively(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded, kept = fold_batch_norm(model, images(*batch))
    assert kept == {}
    assert batch_norms(folded) == 0
    check_same_output(model, folded, images(*batch))
    assert batch_norms(model) == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_copy_is_in_eval_mode_and_the_model_stays_in_training_mode() -> None:
    model = lively(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))).train()
    statistics = model[1].running_mean.clone()
    folded, kept = fold_batch_norm(model, images(2, 1, 3, 3))
    assert kept == {}
    assert model.training
    assert not any(module.training for module in folded.modules())
    assert torch.equal(model[1].running_mean, statistics)


class Crossed(nn.Module):
    """Defined in an order in which it does not flow."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_of_b = nn.BatchNorm2d(4)
        self.a = nn.Conv2d(3, 4, 1)
        self.norm_of_a = nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 4, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_of_a(self.a(x)).relu_()
        assert x.shape[1] == 4
        return x + self.norm_of_b(self.b(x))


def test_flow_counts_not_definition_order() -> None:
    model = lively(Crossed())
    folded, kept = fold_batch_norm(model, images(1, 3, 5, 5))
    assert kept == {}
    check_same_output(model, folded, images(2, 3, 5, 5))


class Kept(nn.Module):
    """One convolution (bias-free) and one batch norm, joined in a way that cannot be folded."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv = nn.Conv2d(2, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(2, track_running_stats=how != "no statistics")

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.how == "pre-activation":
            return self.conv(self.norm(x).relu())
        if self.how == "unused":
            return self.conv(x)
        if self.how == "norm twice":
            return self.norm(self.norm(self.conv(x)))
        if self.how == "layer twice":
            return self.norm(self.conv(self.conv(x)))
        y = nn.functional.conv2d(x, self.conv.weight) if self.how == "own bias" else self.conv(x)
        if self.how == "changed":
            y.mul_(2.0)
        if self.how == "weight used":
            return self.norm(y) * self.conv.weight.sum()
        if self.how == "two consumers":
            return self.norm(y) + y
        return (self.norm(y), y) if self.how == "returned" else self.norm(y)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("no statistics", "no running statistics"),
        ("pre-activation", "not the output of a linear or convolution"),
        ("unused", "uses it 0 times"),
        ("norm twice", "uses it 2 times"),
        ("layer twice", "weight is used more than once"),
        ("weight used", "weight is used more than once"),
        ("own bias", "not called with its own bias"),
        ("changed", "also used elsewhere"),
        ("two consumers", "also used elsewhere"),
        ("returned", "also used elsewhere"),
    ],
)
def test_what_cannot_be_folded_is_kept_with_the_reason(how: str, reason: str) -> None:
    model = lively(Kept(how))
    folded, kept = fold_batch_norm(model, images(2, 2, 3, 3))
    assert list(kept) == ["norm"]
    assert reason in kept["norm"]
    assert folded.get_submodule("conv").bias is None
    with torch.no_grad():
        torch.testing.assert_close(
            folded(images(2, 2, 3, 3)), model(images(2, 2, 3, 3)), rtol=0, atol=0
        )


def test_a_linear_layer_normalised_along_another_dimension_keeps_its_norm() -> None:
    model = lively(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)))
    _, kept = fold_batch_norm(model, images(2, 4, 5))
    assert "does not normalise the output channels of '0'" in kept["1"]


def test_a_shared_weight_keeps_its_norms() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[2].weight = model[0].weight
    folded, kept = fold_batch_norm(lively(model), images(2, 3))
    assert set(kept) == {"1", "3"}
    assert folded[0].weight is folded[2].weight


def test_efficientnet_folds_completely(efficientnet: tuple[nn.Module, Preprocessing]) -> None:
    model, preprocessing = efficientnet
    photographs = next(demo_photographs(preprocessing)[0].batches(2))[0]
    folded, kept = fold_batch_norm(model, photographs[:1])
    assert kept == {}
    assert batch_norms(model) == 49
    assert batch_norms(folded) == 0
    with torch.no_grad():
        expected, got = model(photographs), folded(photographs)
    assert float((got - expected).abs().max() / expected.abs().max()) < 1e-4


class NormThenActivation(nn.BatchNorm2d):
    """A batch norm with the activation function inside, as timm has it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, input: Tensor) -> Tensor:
        x = F.batch_norm(
            *(input, self.running_mean, self.running_var, self.weight, self.bias), eps=self.eps
        )
        return self.act(self.drop(x))


class DoubledNorm(nn.BatchNorm2d):
    """One that does what no child module tells."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_an_activation_inside_of_a_batch_norm_stays() -> None:
    model = lively(nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), NormThenActivation(4)))
    x = images(2, 2, 5, 5)
    folded, kept = fold_batch_norm(model, x)
    assert kept == {}
    assert [type(child) for child in folded[1]] == [nn.Identity, nn.ReLU]
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_batch_norm_that_does_more_is_kept() -> None:
    model = lively(nn.Sequential(nn.Conv2d(2, 4, 3), DoubledNorm(4)))
    folded, kept = fold_batch_norm(model, images(2, 2, 5, 5))
    assert kept == {"1": "its forward does more than normalise and run its children"}
    assert isinstance(folded[1], DoubledNorm)


def test_a_feature_returned_in_a_dataclass_is_a_use():
    @dataclass
    class Answer:
        feature: Tensor
        logits: Tensor

    class Telling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Answer:
            feature = self.conv(x)
            return Answer(feature, self.norm(feature))

    _, kept = fold_batch_norm(Telling().eval(), torch.randn(2, 3, 4, 4))
    assert kept == {"norm": "the output of 'conv' is also used elsewhere"}
