"""CIFAR-10's photographs from the evaluation kit, as a network takes them."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from analysis.kit_networks import kit_folder
from qubo_rounding import Preprocessing


def cifar10(
    split: str, preprocessing: Preprocessing, count: int | None = None
) -> tuple[Tensor, Tensor]:
    """(n, 3, size, size) normalised photographs, enlarged where size is not 32, and labels (n,).

    Args:
        split: "calibration" or "validation".
        preprocessing: of the network.
        count: how many, from the first; None takes all.
    """
    with np.load(kit_folder() / "images" / "cifar10.npz") as pictures:
        pixels, labels = (torch.from_numpy(pictures[f"{split}_{end}"][:count]) for end in "xy")
    images = pixels.permute(0, 3, 1, 2).contiguous().float() / 255
    if images.shape[2] != preprocessing.size:
        side = (preprocessing.size, preprocessing.size)
        images = F.interpolate(images, side, mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(x)[:, None, None] for x in (preprocessing.mean, preprocessing.std))
    return (images - mean) / std, labels.long()
