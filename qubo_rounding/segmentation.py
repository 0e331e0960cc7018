"""How good dense answers are: networks that name a class for every pixel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from qubo_rounding.evaluation import device_of, divergences

IGNORED = 255  # the label of pixels that nobody judges, as in Pascal VOC and Cityscapes


@dataclass(frozen=True)
class DenseEvaluation:
    """What a network's answers for every pixel are worth; None where nothing is known to compare.

    Args:
        images: how many were answered.
        pixel_accuracy: share of labelled pixels with the right class.
        mean_iou: mean over classes of intersection / union with the labels; classes that neither
            the labels nor the answers hold do not count.
        agreement: share of pixels on which the float network gives the same class.
        float_iou: as mean_iou, with the float network's classes for labels.
        kl: mean over pixels of KL(softmax(float) || softmax(this network)), nats.
    """

    images: int
    pixel_accuracy: float | None = None
    mean_iou: float | None = None
    agreement: float | None = None
    float_iou: float | None = None
    kl: float | None = None


def dense_answer(output: Any) -> Tensor | None:
    """The logits (n, classes, height, width) in a network's output; None if there are none.

    Args:
        output: such a tensor, or a dict that has it under "out", as torchvision's networks give.
    """
    found = output.get("out") if isinstance(output, Mapping) else output
    return found if isinstance(found, Tensor) and found.ndim == 4 else None


@torch.no_grad()
def evaluate_dense(
    model: nn.Module,
    images: Iterable[Any],
    float_model: nn.Module | None = None,
    progress: bool = False,
) -> DenseEvaluation:
    """Accuracy and intersection over union of a network that answers for every pixel.

    Args:
        model: in eval mode, with outputs that `dense_answer` reads.
        images: batches x, or (x, labels); labels int64 (n, height, width) of the outputs' size,
            255 where nobody judges, or None.
        float_model: the network to agree with, or None.
        progress: whether to count the batches on the terminal.

    Raises:
        ValueError: there are no images, other outputs, or labels of another shape or outside the
            classes.
    """
    count = 0
    by_labels: list[Tensor] = []
    by_float: list[Tensor] = []
    kl_of_images: list[Tensor] = []
    for batch in tqdm(iter(images), desc="predict", unit="batch", disable=not progress):
        x, labels = _parts(batch)
        logits = _logits(model, x)
        classes, chosen = logits.shape[1], logits.argmax(dim=1)
        count += len(x)
        if labels is not None:
            by_labels.append(_confusion(_checked(labels, logits), chosen, classes))
        if float_model is not None:
            wanted = _logits(float_model, x)
            by_float.append(_confusion(wanted.argmax(dim=1), chosen, classes))
            kl_of_images.append(divergences(wanted, logits).flatten(1).mean(dim=1))
    if count == 0:
        raise ValueError("There are no images to predict.")
    accuracy, iou = _scores(by_labels)
    agreement, float_iou = _scores(by_float)
    kl = float(torch.cat(kl_of_images).mean()) if kl_of_images else None
    return DenseEvaluation(count, accuracy, iou, agreement, float_iou, kl)


def _parts(batch: Any) -> tuple[Tensor, Tensor | None]:
    if isinstance(batch, (tuple, list)):
        return batch[0], batch[1] if len(batch) > 1 else None
    return batch, None


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    output = model(x.to(device_of(model)))
    answer = dense_answer(output)
    if answer is None:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"The model returns {shape}; a segmenter's is (n, classes, height, width), or a dict "
            'with it under "out".'
        )
    return answer.float().cpu()


def _checked(labels: Tensor, logits: Tensor) -> Tensor:
    wanted = (logits.shape[0], *logits.shape[2:])
    if tuple(labels.shape) != wanted:
        raise ValueError(f"The labels have shape {tuple(labels.shape)}; it must be {wanted}.")
    judged = labels[labels != IGNORED]
    if len(judged) and not 0 <= int(judged.min()) <= int(judged.max()) < logits.shape[1]:
        raise ValueError(
            f"The labels run from {int(judged.min())} to {int(judged.max())}, the network's "
            f"classes from 0 to {logits.shape[1] - 1} ({IGNORED} is ignored)."
        )
    return labels


def _confusion(labels: Tensor, chosen: Tensor, classes: int) -> Tensor:
    """int64 (classes, classes): how often each label met each chosen class."""
    judged = labels != IGNORED
    pairs = labels[judged].long() * classes + chosen[judged]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def _scores(confusions: list[Tensor]) -> tuple[float | None, float | None]:
    """Share of right pixels, and mean intersection over union."""
    if not confusions:
        return None, None
    total = torch.stack(confusions).sum(dim=0).double()
    right = total.diagonal()
    union = total.sum(dim=0) + total.sum(dim=1) - right
    if not bool((union > 0).any()):
        return None, None  # no pixel is labelled
    return float(right.sum() / total.sum()), float((right / union)[union > 0].mean())
