"""The evaluation kit's networks, for `load_model("analysis/kit_networks.py:mobilenet_v2")`.

Their weights lie in the kit's folder: QUBO_ROUNDING_KIT, or ../shared/kit beside the repository.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REPOSITORY = Path(__file__).resolve().parent.parent
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
PLUS_MINUS_ONE = {"size": 224, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
CIFAR = {"size": 32, "resize": 32, **IMAGENET}


def kit_folder() -> Path:
    """Where the evaluation kit lies."""
    return Path(os.environ.get("QUBO_ROUNDING_KIT", REPOSITORY.parent / "shared" / "kit"))


class SameConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow's SAME: an odd pixel goes to the bottom and right."""

    def forward(self, input: Tensor) -> Tensor:
        """Output (n, outputs, ceil(height / stride), ceil(width / stride))."""
        pads = []
        for side, kernel, stride in zip(
            reversed(input.shape[2:]),
            reversed(self.kernel_size),
            reversed(self.stride),
            strict=True,
        ):
            outputs = (side + stride - 1) // stride
            total = max(0, (outputs - 1) * stride + kernel - side)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(input, pads))


def _same_conv(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> SameConv2d:
    return SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)


def _normalised(convolution: SameConv2d, eps: float) -> nn.Sequential:
    norm = nn.BatchNorm2d(convolution.out_channels, eps=eps)
    return nn.Sequential(convolution, norm, nn.ReLU6())


class MobileNet(nn.Module):
    """A stack of blocks, the mean over the picture, a classifier."""

    def __init__(self, blocks: list[nn.Module], classifier: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(*blocks)
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, 3, height, width)."""
        return self.classifier(self.features(x).mean((2, 3)))


class InvertedResidual(nn.Module):
    """Widen, filter each channel alone, narrow; added to the input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, widening: int) -> None:
        super().__init__()
        width, eps = inputs * widening, 1e-5
        widen = [_normalised(_same_conv(inputs, width), eps)] if widening > 1 else []
        self.conv = nn.Sequential(
            *widen,
            _normalised(_same_conv(width, width, 3, stride, groups=width), eps),
            _same_conv(width, outputs),
            nn.BatchNorm2d(outputs, eps=eps),
        )
        self.has_skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, outputs, height / stride, width / stride)."""
        return x + self.conv(x) if self.has_skip else self.conv(x)


class CifarBlock(nn.Module):
    """Two convolutions beside a skip that drops every other pixel and pads with zero channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, outputs, height / stride, width / stride)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        skip = x[:, :, :: self.stride, :: self.stride]
        return F.relu(y + F.pad(skip, (0, 0, 0, 0, self.padding, self.padding)))


class CifarResNet(nn.Module):
    """A ResNet for 32 x 32 images: three stages of `depth` blocks each."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, depth, stride=1)
        self.layer2 = self._stage(16, 32, depth, stride=2)
        self.layer3 = self._stage(32, 64, depth, stride=2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(inputs: int, outputs: int, depth: int, stride: int) -> nn.Sequential:
        rest = [CifarBlock(outputs, outputs, 1) for _ in range(depth - 1)]
        return nn.Sequential(CifarBlock(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, 10) of images (n, 3, 32, 32)."""
        x = self.layer1(F.relu(self.bn1(self.conv1(x))))
        return self.linear(self.layer3(self.layer2(x)).mean((2, 3)))


class FoldedBlock(nn.Module):
    """ResNet's basic block, batch norm already folded into its convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        narrowing = [] if inputs == outputs else [nn.Conv2d(inputs, outputs, 1, stride)]
        self.downsample = nn.Sequential(*narrowing)

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, outputs, height / stride, width / stride)."""
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.downsample(x))


class ResNet18ToLayer3(nn.Module):
    """ResNet-18 up to the end of layer3; it returns features, not logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3)
        self.layer1 = nn.Sequential(FoldedBlock(64, 64, 1), FoldedBlock(64, 64, 1))
        self.layer2 = nn.Sequential(FoldedBlock(64, 128, 2), FoldedBlock(128, 128, 1))
        self.layer3 = nn.Sequential(FoldedBlock(128, 256, 2), FoldedBlock(256, 256, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, 256, height / 16, width / 16) of images (n, 3, height, width)."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 3, 2, 1)
        return self.layer3(self.layer2(self.layer1(x)))


def mobilenet_v1_075() -> tuple[nn.Module, dict]:
    """MobileNetV1 at three quarters of its width, 224 x 224, 1,000 classes."""
    eps = 1e-3
    widths = [24, 48, 96, 96, 192, 192, 384, 384, 384, 384, 384, 384, 768, 768]
    strided = {2, 4, 6, 12}
    blocks: list[nn.Module] = [_normalised(_same_conv(3, widths[0], 3, 2), eps)]
    for index in range(1, len(widths)):
        inputs, outputs = widths[index - 1 : index + 1]
        stride = 2 if index in strided else 1
        depthwise = _same_conv(inputs, inputs, 3, stride, groups=inputs)
        pointwise = _same_conv(inputs, outputs)
        blocks.append(nn.Sequential(_normalised(depthwise, eps), _normalised(pointwise, eps)))
    model = MobileNet(blocks, nn.Linear(widths[-1], 1000))
    return _with_weights(model, "mobilenet_v1_075"), PLUS_MINUS_ONE


def mobilenet_v2() -> tuple[nn.Module, dict]:
    """MobileNetV2, 224 x 224, 1,000 classes; its weights were stored in 8 bits."""
    # outputs, blocks, first stride, widening
    stages = [
        (24, 2, 2, 6),
        (32, 3, 2, 6),
        (64, 4, 2, 6),
        (96, 3, 1, 6),
        (160, 3, 2, 6),
        (320, 1, 1, 6),
    ]
    blocks: list[nn.Module] = [_normalised(_same_conv(3, 32, 3, 2), 1e-5)]
    inputs = 32
    for outputs, count, first_stride, widening in [(16, 1, 1, 1), *stages]:
        for stride in [first_stride] + [1] * (count - 1):
            blocks.append(InvertedResidual(inputs, outputs, stride, widening))
            inputs = outputs
    blocks.append(_normalised(_same_conv(inputs, 1280), 1e-5))
    model = MobileNet(blocks, nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000)))
    return _with_weights(model, "mobilenet_v2"), PLUS_MINUS_ONE


def resnet18_to_layer3() -> tuple[nn.Module, dict]:
    """ResNet-18 without layer4 and classifier: features (n, 256, 14, 14) of 224 x 224 images."""
    return _with_weights(ResNet18ToLayer3(), "resnet18_partial_bnfolded"), {"size": 224, **IMAGENET}


def cifar10_resnet20() -> tuple[nn.Module, dict]:
    """ResNet-20 for CIFAR-10, 32 x 32, 10 classes."""
    return _with_weights(CifarResNet(depth=3), "cifar10_resnet20"), CIFAR


def cifar10_resnet56() -> tuple[nn.Module, dict]:
    """ResNet-56 for CIFAR-10, 32 x 32, 10 classes."""
    return _with_weights(CifarResNet(depth=9), "cifar10_resnet56"), CIFAR


def _with_weights(model: nn.Module, name: str) -> nn.Module:
    kit = kit_folder()
    file = kit / "weights" / f"{name}.pth"
    if not file.is_file():
        raise ValueError(
            f"There are no weights of {name} at {file}; set QUBO_ROUNDING_KIT to the kit's folder."
        )
    stored = torch.load(file, map_location="cpu", weights_only=True)
    # the ResNet-18 file goes on beyond layer3; batch counters are not stored everywhere
    wanted = {key: stored.get(key, value) for key, value in model.state_dict().items()}
    missing = [k for k in wanted if k not in stored and not k.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(f"{file} has no {missing[0]}, which {type(model).__name__} needs.")
    model.load_state_dict(wanted)
    return model.eval()
