"""The evaluation kit's networks, as analysis/kit_networks.py defines them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from qubo_rounding.evaluation import evaluate, predict
from qubo_rounding.imagenet import open_images
from qubo_rounding.models import Preprocessing, load_model

NETWORKS = Path(__file__).resolve().parent.parent / "analysis" / "kit_networks.py"


def test_mobilenet_v2_knows_the_kit_s_photographs(kit: Path) -> None:
    model, preprocessing = load_model(f"{NETWORKS}:mobilenet_v2")
    images = open_images(kit / "images" / "validation", preprocessing, limit=100)
    result = evaluate(predict(model, images), images.labels)
    assert result.top1 is not None
    assert 0.55 < result.top1 < 0.9


def test_mobilenet_v1_knows_the_kit_s_photographs(kit: Path) -> None:
    model, preprocessing = load_model(f"{NETWORKS}:mobilenet_v1_075")
    images = open_images(kit / "images" / "validation", preprocessing, limit=30)
    result = evaluate(predict(model, images), images.labels)
    assert result.top1 is not None
    assert result.top1 > 0.5


@pytest.mark.parametrize("name", ["cifar10_resnet20", "cifar10_resnet56"])
def test_the_cifar_networks_know_the_kit_s_small_pictures(kit: Path, name: str) -> None:
    model, preprocessing = load_model(f"{NETWORKS}:{name}")
    with np.load(kit / "images" / "cifar10.npz") as pictures:
        x, y = pictures["validation_x"][:100], pictures["validation_y"][:100]
    mean, std = np.array([preprocessing.mean, preprocessing.std], np.float32)
    batch = torch.from_numpy(((x.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2))
    result = evaluate(predict(model, [batch]), torch.from_numpy(y.astype(np.int64)))
    assert preprocessing.size == preprocessing.resize == 32
    assert result.top1 is not None
    assert result.top1 > 0.65


def test_resnet18_gives_the_features_of_layer3(kit: Path) -> None:
    model, preprocessing = load_model(f"{NETWORKS}:resnet18_to_layer3")
    with torch.no_grad():
        features = model(torch.zeros(2, 3, preprocessing.size, preprocessing.size))
    assert preprocessing == Preprocessing()
    assert features.shape == (2, 256, 14, 14)
    assert bool((features >= 0).all())


def test_a_kit_without_the_weights_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUBO_ROUNDING_KIT", str(tmp_path))
    with pytest.raises(ValueError, match="no weights of cifar10_resnet20"):
        load_model(f"{NETWORKS}:cifar10_resnet20")
