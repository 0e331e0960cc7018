"""A network to round and what its rounded copies are judged by: labelled images, float answers."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from analysis.kit_networks import kit_folder
from qubo_rounding import NetworkCase, evaluate, load_model, open_images, predict
from qubo_rounding.imagenet import Images
from qubo_rounding.models import Preprocessing

_KIT_NETWORKS = Path(__file__).parent / "kit_networks.py"
NETWORKS = {
    "efficientnet_lite0": "efficientnet_lite0",
    "mobilenet_v2": f"{_KIT_NETWORKS}:mobilenet_v2",
}
SMALL_NETWORKS = {"mobilenet_v1_075": f"{_KIT_NETWORKS}:mobilenet_v1_075"}


@dataclass(frozen=True)
class JudgedNetwork:
    """A float network, the images it may be calibrated on, and those that judge.

    Args:
        model: the float network.
        folder: of the images it may be calibrated on.
        preprocessing: what it expects.
        validation: batches, decoded once for all runs.
        labels: of the validation images.
    """

    model: nn.Module
    folder: Path
    preprocessing: Preprocessing
    validation: list[Any]
    labels: Tensor | None

    @classmethod
    def load(
        cls, spec: str, calibration: Path | None = None, validation: Path | None = None
    ) -> JudgedNetwork:
        """A network by its MODEL, with the kit's images where no folders are given."""
        model, preprocessing = load_model(spec)
        kit = kit_folder() / "images"
        judges = open_images(validation or kit / "validation", preprocessing)
        folder = calibration or kit / "calibration"
        return cls(model, folder, preprocessing, list(judges), judges.labels)

    @cached_property
    def float_logits(self) -> Tensor:
        """The float network's answers to the validation images."""
        return predict(self.model, self.validation)

    def spread(self, count: int) -> Images:
        """So many calibration images, spread evenly over all."""
        return open_images(self.folder, self.preprocessing, limit=count)

    def drawn(self, count: int, seed: int) -> Images:
        """So many calibration images, drawn by a seed."""
        every = open_images(self.folder, self.preprocessing)
        views = random.Random(seed).sample(every.views, min(count, len(every)))
        return replace(every, views=tuple(views), labels=None)

    def case(self, name: str, calibrations: Mapping[str, Iterable[Any]]) -> NetworkCase:
        """For `compare_networks`, with calibration sets by name."""
        return NetworkCase(name, self.model, calibrations, self.validation, self.labels)

    def judge(self, rounded: nn.Module) -> dict[str, float | None]:
        """Top-1 of the float network and of a rounded one; its agreement and divergence."""
        judged = evaluate(predict(rounded, self.validation), self.labels, self.float_logits)
        float_top1 = evaluate(self.float_logits, self.labels).top1
        return {
            "float_top1": float_top1,
            "top1": judged.top1,
            "agreement": judged.agreement,
            "kl": judged.kl,
        }
