"""How good a network's answers are, against labels and against the float network's answers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

NORMAL_QUANTILE = 1.959963984540054  # two-sided 95 %


@dataclass(frozen=True)
class Evaluation:
    """What a network's answers are worth; None where labels or float answers are missing.

    Args:
        images: how many images were answered.
        top1: share of images whose label has the largest logit.
        top5: share of images whose label is among the five largest logits.
        top1_interval, top5_interval: their 95 % Wilson intervals.
        agreement: share of images on which the float network gives the same first answer.
        kl: mean over images of KL(softmax(float) || softmax(this network)), nats.
        loss: mean cross-entropy of the labels, nats.
    """

    images: int
    top1: float | None = None
    top5: float | None = None
    top1_interval: tuple[float, float] | None = None
    top5_interval: tuple[float, float] | None = None
    agreement: float | None = None
    kl: float | None = None
    loss: float | None = None


def predict(model: nn.Module, images: Iterable[Any], progress: bool = False) -> Tensor:
    """The network's logits, float32 (n, classes) on the CPU.

    Args:
        model: classifier in eval mode.
        images: batches (x, ...) or x, such as `Images` or a DataLoader.
        progress: whether to count the batches on the terminal.

    Raises:
        ValueError: no batch came, or the model's output is not (n, classes).
    """
    device = device_of(model)
    answers = []
    with torch.no_grad():
        for batch in tqdm(iter(images), desc="predict", unit="batch", disable=not progress):
            x = batch[0] if isinstance(batch, (tuple, list)) else batch
            answer = model(x.to(device))
            if not isinstance(answer, Tensor) or answer.ndim != 2:
                shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
                raise ValueError(
                    f"The model returns {shape}; a classifier's is (n, classes). "
                    "Judge answers for every pixel with evaluate_dense."
                )
            answers.append(answer.float().cpu())
    if not answers:
        raise ValueError("There are no images to predict.")
    return torch.cat(answers)


def evaluate(
    logits: Tensor, labels: Tensor | None = None, float_logits: Tensor | None = None
) -> Evaluation:
    """Top-1, top-5, task loss, agreement and divergence of a network's answers.

    Args:
        logits: (n, classes), from `predict`.
        labels: int64 (n,), or None where unknown.
        float_logits: (n, classes), the float network's answers to the same images, or None.

    Returns:
        Evaluation; what needs a missing argument is None.

    Raises:
        ValueError: shapes that disagree, labels outside the classes, logits that are not finite.
    """
    _check(logits, labels, float_logits)
    judged = Evaluation(len(logits))
    if labels is not None:
        best_five = logits.topk(min(5, logits.shape[1]), dim=1).indices
        first, five = (
            int((logits.argmax(1) == labels).sum()),
            int((best_five == labels[:, None]).sum()),
        )
        judged = replace(
            judged,
            top1=first / len(labels),
            top5=five / len(labels),
            top1_interval=wilson_interval(first, len(labels)),
            top5_interval=wilson_interval(five, len(labels)),
            loss=float(F.cross_entropy(logits.double(), labels)),
        )
    if float_logits is not None:
        agreement = int((logits.argmax(1) == float_logits.argmax(1)).sum()) / len(logits)
        judged = replace(
            judged, agreement=agreement, kl=float(divergences(float_logits, logits).mean())
        )
    return judged


def device_of(model: nn.Module) -> torch.device:
    """Where a network's parameters lie; the CPU where it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def divergences(reference: Tensor, logits: Tensor) -> Tensor:
    """float64 (n, ...) KL(softmax(reference) || softmax(logits)) in nats, of each answer.

    Args:
        reference, logits: (n, classes, ...).
    """
    wanted, given = (F.log_softmax(x.double(), dim=1) for x in (reference, logits))
    return (wanted.exp() * (wanted - given)).sum(1)


def wilson_interval(hits: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of which `hits` among n were seen.

    Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209.
    """
    share, square = hits / n, NORMAL_QUANTILE**2
    centre = (share + square / (2 * n)) / (1 + square / n)
    spread = math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    half = NORMAL_QUANTILE * spread / (1 + square / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def check_labels(labels: Tensor, classes: int) -> None:
    """Nothing, where a network of so many classes can be judged by these labels.

    Raises:
        ValueError: a label is none of its classes.
    """
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"The labels run from {int(labels.min())} to {int(labels.max())}, "
            f"the network's classes from 0 to {classes - 1}."
        )


def _check(logits: Tensor, labels: Tensor | None, float_logits: Tensor | None) -> None:
    if logits.ndim != 2 or logits.numel() == 0:
        raise ValueError(f"The logits have shape {tuple(logits.shape)}; it must be (n, classes).")
    n, classes = logits.shape
    if labels is not None and labels.shape != (n,):
        raise ValueError(f"There are {n} answers and labels of shape {tuple(labels.shape)}.")
    if labels is not None:
        check_labels(labels, classes)
    if float_logits is not None and float_logits.shape != logits.shape:
        raise ValueError(
            f"The logits have shape {tuple(logits.shape)}, the float network's "
            f"{tuple(float_logits.shape)}; they must answer the same images."
        )
    for name, values in (("logits", logits), ("float network's logits", float_logits)):
        if values is not None and not bool(torch.isfinite(values).all()):
            raise ValueError(f"The {name} hold NaN or infinite values.")
