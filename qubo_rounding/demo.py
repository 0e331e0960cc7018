"""The demonstration: a real ImageNet network rounded by several methods, table and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import nn

from qubo_rounding.batch_norm import fold_batch_norm
from qubo_rounding.evaluation import Evaluation, evaluate, predict
from qubo_rounding.imagenet import demo_photographs
from qubo_rounding.layer_problem import LayerSettings, layer_problem
from qubo_rounding.layers import find_layers, matrix_of
from qubo_rounding.models import load_model
from qubo_rounding.network import QuantisedNetwork, quantise
from qubo_rounding.report import (
    markdown_table,
    plot_accuracy,
    plot_energy_per_layer,
    plot_gram_flips,
    write_table,
)
from qubo_rounding.solvers import AdaRound, Annealing, Descent, Gptq, Nearest, Solver
from qubo_rounding.statistics import Gram, collect_grams

NOTE = """\
20 photographs are a demonstration, not a benchmark: the calibration crops and the held-out crops
show different halves of the same scenes. Measured numbers are in analysis/results."""

_KEPT, _REFIT = LayerSettings(bias="keep"), LayerSettings(bias="refit")
METHODS: dict[str, tuple[Solver, LayerSettings]] = {
    "nearest": (Nearest(), _KEPT),
    "nearest + bias refit": (Nearest(), _REFIT),
    "gptq": (Gptq(), _REFIT),
    "descent": (Descent(), _REFIT),
    "annealing": (Annealing(reads=1), _REFIT),
    "adaround": (AdaRound(iterations=1000), _REFIT),
}
PICTURED_LAYER = "_blocks.1._expand_conv"  # narrow enough to see single weights


@dataclass(frozen=True)
class _Result:
    network: QuantisedNetwork
    evaluation: Evaluation


def run_demo(folder: Path, seed: int = 0) -> None:
    """Round EfficientNet-Lite0 to 4 bits per channel by every method; print the table and paths.

    Args:
        folder: receives table.csv and the pictures.
        seed: of the solvers that draw random numbers.

    Raises:
        ValueError: the extra `demo` is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)  # a path that cannot be is told before the work
    pretrained, preprocessing = load_model("efficientnet_lite0")
    calibration, held_out = demo_photographs(preprocessing)
    print(f"EfficientNet-Lite0, 4 bits per channel, {len(calibration)} calibration crops.")
    model, _ = fold_batch_norm(pretrained, next(iter(calibration))[0])
    grams = collect_grams(model, calibration, progress=True)
    held_grams = collect_grams(model, held_out, progress=True)
    float_logits = predict(model, held_out)
    float_result = evaluate(float_logits, held_out.labels, float_logits)
    results = {}
    for name, (solver, settings) in METHODS.items():
        print(f"... {name}", flush=True)
        network = quantise(
            model,
            calibration,
            solver=solver,
            settings=settings,
            calibration="independent",
            grams=grams,
            held_out=held_grams,
            seed=seed,
            progress=True,
        )
        logits = predict(network.model, held_out)
        results[name] = _Result(network, evaluate(logits, held_out.labels, float_logits))
    rows = _table(results, float_result)
    paths = [write_table(folder / "table.csv", rows)]
    paths += _pictures(folder, model, grams, results, float_result)
    print(f"\n{markdown_table(rows)}\n\n{NOTE}\n")
    print("\n".join(str(path) for path in paths))


def energy_ratios(network: QuantisedNetwork, yardstick: QuantisedNetwork) -> dict[str, float]:
    """Each layer's energy relative to nearest rounding of the same layer in the yardstick."""
    return {
        ours.name: ours.energy / theirs.energy_nearest
        for ours, theirs in zip(network.records, yardstick.records, strict=True)
    }


def _table(results: Mapping[str, _Result], float_result: Evaluation) -> list[dict[str, Any]]:
    nearest = results["nearest"].network
    columns = ("method", "energy / nearest", "held out", "top-1", "agreement", "KL")
    rows = [dict.fromkeys(columns) | {"method": "float", "top-1": float_result.top1}]
    for name, result in results.items():
        held_out = [
            ours.held_out / theirs.held_out
            for ours, theirs in zip(result.network.records, nearest.records, strict=True)
            if ours.held_out is not None and theirs.held_out
        ]
        energies = energy_ratios(result.network, nearest)
        rows.append(
            {
                "method": name,
                "energy / nearest": _geometric_mean(energies.values()),
                "held out": _geometric_mean(held_out),
                "top-1": result.evaluation.top1,
                "agreement": result.evaluation.agreement,
                "KL": result.evaluation.kl,
                "solver seconds": sum(record.seconds for record in result.network.records),
            }
        )
    return rows


def _geometric_mean(values: Iterable[float]) -> float:
    return math.exp(fmean(math.log(value) for value in values))


def _pictures(
    folder: Path,
    model: nn.Module,
    grams: Mapping[str, Gram],
    results: Mapping[str, _Result],
    float_result: Evaluation,
) -> list[Path]:
    yardstick = results["nearest"].network
    ratios = {name: energy_ratios(r.network, yardstick) for name, r in results.items()}
    evaluations = {name: r.evaluation for name, r in results.items()}
    layer = find_layers(model).layers[PICTURED_LAYER]
    weight = matrix_of(model, layer)
    problem, _ = layer_problem(layer, weight, grams[layer.name], _REFIT)
    levels = results["annealing"].network.layers[layer.name].levels
    return [
        plot_energy_per_layer(ratios, folder / "energy.png"),
        plot_accuracy(evaluations, folder / "accuracy.png", float_top1=float_result.top1),
        plot_gram_flips(problem, levels, folder / "flips.png"),
    ]
