"""Networks as torchvision and timm define them, with random weights: they fold and they round."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import qubo_rounding as qr
from qubo_rounding.segmentation import dense_answer

TORCHVISION = {
    "resnet18": 64,
    "resnet50": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "efficientnet_b0": 64,
    "shufflenet_v2_x0_5": 64,
    "googlenet": 64,
    "inception_v3": 80,
    "segmentation.lraspp_mobilenet_v3_large": 64,
    "segmentation.deeplabv3_mobilenet_v3_large": 64,
}
TIMM = {
    "mobilenetv3_small_050": 64,
    "efficientnet_lite0": 64,
    "repvgg_a0": 64,
    "vit_tiny_patch16_224": 224,
}
# Auxiliary classifiers are for training; RepVGG has batch norms without a layer before them.
ALLOWED = {
    "the forward pass uses it 0 times",
    "its input is not the output of a linear or convolution layer",
}


def lively(model: nn.Module) -> nn.Module:
    """In eval mode, with batch norms that have something to fold."""
    draw = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=draw)
            module.running_var.uniform_(0.5, 1.5, generator=draw)
    return model.eval()


@pytest.fixture
def torchvision_model(torchvision_operators: None) -> Callable[[str], nn.Module]:
    models = pytest.importorskip("torchvision.models")

    def make(name: str) -> nn.Module:
        torch.manual_seed(0)
        dense = name.startswith("segmentation.")
        options = {"weights_backbone": None} if dense else {}
        if name in ("googlenet", "inception_v3"):
            options = {"init_weights": True}
        return models.get_model(name.removeprefix("segmentation."), weights=None, **options)

    return make


@pytest.fixture
def timm_model(torchvision_operators: None) -> Callable[[str], nn.Module]:
    timm = pytest.importorskip("timm", reason="timm not installed; the timm extra brings it")

    def make(name: str) -> nn.Module:
        torch.manual_seed(0)
        return timm.create_model(name, pretrained=False)

    return make


def photographs(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def answer(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        output = model(x)
    found = dense_answer(output)
    return output if found is None else found


def check_folds(model: nn.Module, size: int) -> None:
    x = photographs(size)
    folded, kept = qr.fold_batch_norm(model, x)
    expected = answer(model, x)
    assert set(kept.values()) <= ALLOWED
    assert len(kept) < len(qr.find_layers(model).layers) / 2
    torch.testing.assert_close(
        answer(folded, x), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())
    )


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_s_networks_fold(
    torchvision_model: Callable[[str], nn.Module], name: str
) -> None:
    check_folds(lively(torchvision_model(name)), TORCHVISION[name])


@pytest.mark.parametrize("name", TIMM)
def test_timm_s_networks_fold(timm_model: Callable[[str], nn.Module], name: str) -> None:
    check_folds(lively(timm_model(name)), TIMM[name])


@pytest.mark.parametrize("name", ["mobilenet_v2", "segmentation.lraspp_mobilenet_v3_large"])
def test_torchvision_s_networks_round(
    torchvision_model: Callable[[str], nn.Module], name: str
) -> None:
    model, x = lively(torchvision_model(name)), photographs(TORCHVISION[name])
    settings = qr.LayerSettings(bits=8)
    result = qr.quantise(model, [x], solver=qr.Nearest(), settings=settings)
    expected = answer(model, x)
    error = (answer(result.model, x) - expected).square().mean() / expected.var()
    assert len(result.layers) > 20
    assert float(error) < 0.02


def test_a_transformer_rounds_where_its_weights_are_met(
    timm_model: Callable[[str], nn.Module],
) -> None:
    model, x = timm_model("vit_tiny_patch16_224").eval(), photographs(224)
    settings = qr.LayerSettings(bits=8)
    layers = ["patch_embed.proj", "blocks.0.attn.qkv", "blocks.11.mlp.fc2", "head"]
    result = qr.quantise(model, [x], solver=qr.Nearest(), settings=settings, layers=layers)
    assert list(result.layers) == layers
    assert float((answer(result.model, x) - answer(model, x)).abs().max()) < 0.1
