"""The demonstration's numbers; the demonstration itself takes minutes."""

from __future__ import annotations

import math
from typing import Any

import pytest
from networks import LAYERS, batches, residual
from torch import nn

from qubo_rounding.demo import METHODS, PICTURED_LAYER, _Result, _table, energy_ratios
from qubo_rounding.evaluation import Evaluation
from qubo_rounding.layer_problem import LayerSettings
from qubo_rounding.layers import find_layers
from qubo_rounding.network import QuantisedNetwork, quantise
from qubo_rounding.solvers import Nearest, Solver

KEEP, REFIT = LayerSettings(bias="keep"), LayerSettings(bias="refit")


def rounded(solver: Solver, settings: LayerSettings, **options: Any) -> QuantisedNetwork:
    given = dict(solver=solver, settings=settings, calibration="independent")
    return quantise(residual(), batches(), **given, **options)


@pytest.fixture(scope="module")
def nearest() -> QuantisedNetwork:
    return rounded(Nearest(), KEEP, held_out=batches(seed=1))


@pytest.fixture(scope="module")
def refitted() -> QuantisedNetwork:
    return rounded(Nearest(), REFIT, held_out=batches(seed=1))


def test_ratios_are_relative_to_nearest_in_the_yardstick(
    nearest: QuantisedNetwork, refitted: QuantisedNetwork
) -> None:
    assert energy_ratios(nearest, nearest) == dict.fromkeys(LAYERS, 1.0)
    for name, ratio in energy_ratios(refitted, nearest).items():
        ours, theirs = (network.layers[name].record for network in (refitted, nearest))
        assert ratio * theirs.energy_nearest == pytest.approx(ours.energy)
        assert ratio < 1


def test_the_table_has_geometric_means_over_layers(
    nearest: QuantisedNetwork, refitted: QuantisedNetwork
) -> None:
    judged = Evaluation(10, top1=0.5, agreement=0.75, kl=0.125)
    results = {"nearest": _Result(nearest, judged), "refit": _Result(refitted, judged)}
    first, second, third = _table(results, Evaluation(10, top1=0.75))
    known = {key: value for key, value in first.items() if value is not None}
    assert known == {"method": "float", "top-1": 0.75}
    assert (second["method"], third["method"]) == ("nearest", "refit")
    assert second["energy / nearest"] == pytest.approx(1.0)
    assert second["held out"] == pytest.approx(1.0)
    product = math.prod(energy_ratios(refitted, nearest).values())
    assert third["energy / nearest"] == pytest.approx(product ** (1 / len(LAYERS)))
    pairs = zip(refitted.records, nearest.records, strict=True)
    held_out = math.prod(ours.held_out / theirs.held_out for ours, theirs in pairs)
    assert third["held out"] == pytest.approx(held_out ** (1 / len(LAYERS)))
    assert (third["top-1"], third["agreement"], third["KL"]) == (0.5, 0.75, 0.125)


def test_methods_differ_in_more_than_their_name() -> None:
    assert next(iter(METHODS)) == "nearest"
    assert len({repr(method) for method in METHODS.values()}) == len(METHODS)


def test_the_pictured_layer_exists(efficientnet: tuple[nn.Module, Any]) -> None:
    assert PICTURED_LAYER in find_layers(efficientnet[0]).layers
