"""Networks of which only the first layer is rounded, with labelled images to round and judge by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from analysis.cifar10 import cifar10
from analysis.kit_networks import kit_folder
from qubo_rounding import fold_batch_norm, load_model, open_images
from qubo_rounding.digits import DigitsNetwork, train_cnn, train_mlp
from qubo_rounding.imagenet import Images

Batch = tuple[Tensor, Tensor]
LITE0_CALIBRATION_IMAGES = 32  # half a minute of Gauss-Newton each


@dataclass(frozen=True, eq=False)
class FirstLayer:
    """A network in eval mode, batch norms folded, and the name of its first layer.

    Args:
        model: maps images to logits.
        layer: the layer to be rounded.
        calibration: batches that problems are made from.
        held_out: batches that only judge.
    """

    model: nn.Module
    layer: str
    calibration: list[Batch]
    held_out: list[Batch]


def digits_mlp() -> FirstLayer:
    """208 weights, 128 of them in the first layer."""
    return _digits(train_mlp(), "hidden")


def digits_cnn() -> FirstLayer:
    """476 weights, 54 of them in the first layer."""
    return _digits(train_cnn(), "stem")


def cifar10_resnet20() -> FirstLayer:
    """432 weights in the first layer; all 1,000 calibration images."""
    return _cifar10_resnet20(1000)


def cifar10_resnet20_few() -> FirstLayer:
    """The same with 32 calibration images, as many as EfficientNet-Lite0 has here."""
    return _cifar10_resnet20(32)


def efficientnet_lite0() -> FirstLayer:
    """864 weights in the first layer."""
    model, preprocessing = load_model("efficientnet_lite0")
    folder = kit_folder() / "images"
    calibration = open_images(
        folder / "calibration", preprocessing, limit=LITE0_CALIBRATION_IMAGES, batch_size=1
    )
    held_out = open_images(folder / "validation", preprocessing)
    calibration, held_out = _channels_last(calibration), _channels_last(held_out)
    return _folded(model, "_conv_stem", calibration, held_out)


FIRST_LAYERS: dict[str, Callable[[], FirstLayer]] = {
    "digits_mlp": digits_mlp,
    "digits_cnn": digits_cnn,
    "cifar10_resnet20": cifar10_resnet20,
    "cifar10_resnet20_few": cifar10_resnet20_few,
    "efficientnet_lite0": efficientnet_lite0,
}


def _digits(network: DigitsNetwork, layer: str) -> FirstLayer:
    data = network.data
    return FirstLayer(network.model, layer, [data.calibration], [data.test])


def _cifar10_resnet20(images: int) -> FirstLayer:
    model, preprocessing = load_model(
        f"{Path(__file__).parent / 'kit_networks.py'}:cifar10_resnet20"
    )
    calibration, held_out = (
        _batches(*cifar10(split, preprocessing)) for split in ("calibration", "validation")
    )
    first = [(x[:images], y[:images]) for x, y in calibration[: -(-images // 100)]]
    return _folded(model, "conv1", first, held_out)


def _batches(images: Tensor, labels: Tensor) -> list[Batch]:
    return list(zip(images.split(100), labels.split(100), strict=True))


def _folded(
    model: nn.Module, layer: str, calibration: list[Batch], held_out: list[Batch]
) -> FirstLayer:
    folded, _ = fold_batch_norm(model, calibration[0][0][:1])
    return FirstLayer(folded, layer, calibration, held_out)


def _channels_last(images: Images) -> list[Batch]:
    """All batches, in the memory order that takes two thirds of the time for large images."""
    last = torch.channels_last
    return [(x.contiguous(memory_format=last), y) for x, y in images if y is not None]
