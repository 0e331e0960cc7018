"""How a run's networks are judged: the scores of its summary, and one row a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qubo_rounding.evaluation import check_labels, evaluate, predict
from qubo_rounding.imagenet import Images
from qubo_rounding.segmentation import dense_answer, evaluate_dense

NOT_PRINTED = ("images", "top1_interval")  # columns for pages, not for the terminal


def check_judges(network: nn.Module, judges: Images, example: Tensor) -> None:
    """Nothing, where images can judge a network: told before it is rounded.

    Args:
        network: the float network.
        judges: the images; labels do not matter to networks that answer for every pixel.
        example: one input.

    Raises:
        ValueError: a label is none of its classes, or it gives no classes.
    """
    with torch.no_grad():
        dense = dense_answer(network(example)) is not None
    if not dense and judges.labels is not None:
        check_labels(judges.labels, predict(network, [example]).shape[1])


def network_scores(
    network: nn.Module,
    rounded: Mapping[str, nn.Module],
    judges: Images | None,
    example: Tensor,
    progress: bool,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The scores that summary.json holds, null without images to judge by, and a table of all.

    Args:
        network: the float network.
        rounded: rounded ones by name; the last one's scores are the summary's.
        judges: labelled images; None without any.
        example: one input, which tells whether the network answers for every pixel.
        progress: show progress bars.
    """
    keys = ("top1", "top5", "agreement", "kl")
    table: list[dict[str, Any]] = [{"network": name} for name in ("float", *rounded)]
    scores: dict[str, Any] = dict.fromkeys(("float_top1", "nearest_top1", *keys))
    if judges is None:
        return scores, table
    models = (network, *rounded.values())
    with torch.no_grad():
        dense = dense_answer(network(example)) is not None
    if dense:  # class folders name no pixels: the float network is the judge
        keys = ("agreement", "float_iou", "kl")
        pictures = replace(judges, labels=None)
        for row, model in zip(table, models, strict=True):
            judged = evaluate_dense(model, pictures, float_model=network, progress=progress)
            row |= {key: getattr(judged, key) for key in keys}
    else:
        float_logits = predict(network, judges, progress)
        for row, model in zip(table, models, strict=True):
            logits = float_logits if model is network else predict(model, judges, progress)
            judged = evaluate(logits, judges.labels, float_logits)
            row |= {key: getattr(judged, key) for key in (*keys, *NOT_PRINTED)}
        scores |= {"float_top1": table[0]["top1"], "nearest_top1": table[1]["top1"]}
    return scores | {key: table[-1][key] for key in keys}, table


def run_time(summary: Mapping[str, Any]) -> str:
    """What a summary tells of the time that its run took."""
    resumed = ", without the calls before that were resumed" if summary.get("resumed") else ""
    return f"{summary['seconds']:.0f} s{resumed}"
