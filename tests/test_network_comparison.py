"""Whole networks compared: records, resuming, and what contradicts itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from networks import LAYERS, batches, residual
from torch import Tensor

from qubo_rounding import network_study
from qubo_rounding.cross_checks import CrossCheckError
from qubo_rounding.evaluation import evaluate, predict
from qubo_rounding.layer_problem import LayerSettings
from qubo_rounding.network import quantise
from qubo_rounding.network_comparison import compare_networks
from qubo_rounding.network_study import NetworkCase, NetworkMethod
from qubo_rounding.network_tables import network_rows
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.record_files import read_records, write_records
from qubo_rounding.records import NetworkRecord
from qubo_rounding.relaxed.reconstruction import Reconstruction
from qubo_rounding.report import networks_table
from qubo_rounding.solution import Solution
from qubo_rounding.solvers import Annealing, Gptq, Nearest, Solver, TreeSearch
from qubo_rounding.solvers.auto import DEFAULT_SOLVER
from qubo_rounding.study_page import write_study_page

ASKED: list[int] = []


@dataclass(frozen=True)
class Counting(Solver):
    """Nearest rounding that counts its calls, and fails at one of them."""

    fails_at: int = field(default=-1, repr=False)

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        if len(ASKED) == self.fails_at:
            raise KeyboardInterrupt
        ASKED.append(seed)
        return Nearest().find(problem, seed)


@dataclass(frozen=True)
class TooHigh(Solver):
    """Nearest rounding, whose own energy it calls a lower bound."""

    factor: float = 1.0

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        solution = Nearest().find(problem, seed)
        return replace(solution, lower_bound=self.factor * solution.energy)


@pytest.fixture(autouse=True)
def nothing_asked() -> None:
    ASKED.clear()


@pytest.fixture
def case() -> NetworkCase:
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
    return NetworkCase(
        "residual", residual(), {"": batches()}, batches(seed=1), labels, held_out=batches(seed=2)
    )


def independent(solver: Solver) -> NetworkMethod:
    return NetworkMethod(solver, calibration="independent")


def test_a_record_holds_what_quantise_and_evaluate_give(case: NetworkCase) -> None:
    settings = LayerSettings(bits=3)
    method = NetworkMethod(Annealing(sweeps=20), settings=settings)
    (record,) = compare_networks([case], {"annealing": method}, seeds=[7])
    result = quantise(residual(), batches(), solver=Annealing(sweeps=20), settings=settings, seed=7)
    float_logits = predict(residual(), case.judges)
    judged = evaluate(predict(result.model, case.judges), case.labels, float_logits)
    assert (record.top1, record.loss) == (judged.top1, judged.loss)
    assert (record.agreement, record.kl) == (judged.agreement, judged.kl)
    of_float = evaluate(float_logits, case.labels)
    assert (record.float_top1, record.float_loss) == (of_float.top1, of_float.loss)
    assert record.layers == len(LAYERS)
    assert record.images == 8
    assert record.weights == sum(layer.levels.numel() for layer in result.layers.values())
    assert record.held_out_ratio is not None
    ratios = torch.tensor([layer.ratio for layer in result.records], dtype=torch.float64)
    assert record.ratio == pytest.approx(float(ratios.log().mean().exp()))


def test_independent_methods_get_the_grams_that_quantise_collects(case: NetworkCase) -> None:
    (record,) = compare_networks([case], {"gptq": independent(Gptq())})
    result = quantise(
        *(residual(), batches()),
        solver=Gptq(),
        calibration="independent",
        held_out=batches(seed=2),
    )
    held = torch.tensor([layer.held_out_ratio for layer in result.records], dtype=torch.float64)
    assert record.held_out_ratio == pytest.approx(float(held.log().mean().exp()))


def test_every_network_set_method_and_seed_has_its_record(case: NetworkCase) -> None:
    two = replace(case, calibrations={"few": batches(1), "more": batches(3)})
    cases = [two, replace(two, name="other", labels=None)]
    methods = {
        "near": NetworkMethod(Nearest()),
        "relaxed": NetworkMethod(reconstruction=Reconstruction(iterations=2)),
    }
    records = compare_networks(cases, methods, seeds=[1, 2])
    assert len({record.cell for record in records}) == 16
    assert [record.top1 is None for record in records] == [False] * 8 + [True] * 8
    assert len({record.fingerprint for record in records}) == 4  # two sets, labels or none
    with pytest.raises(ValueError, match="two networks are named 'residual'"):
        compare_networks([case, case], methods)


def test_what_is_not_given_is_named_in_the_configuration() -> None:
    assert NetworkMethod().solver == DEFAULT_SOLVER
    assert repr(DEFAULT_SOLVER) in repr(NetworkMethod())


def test_a_study_does_not_measure_twice_and_goes_on_at_the_layer(case, tmp_path) -> None:
    methods = {"counting": NetworkMethod(Counting())}
    with pytest.raises(KeyboardInterrupt):
        compare_networks([case], {"counting": NetworkMethod(Counting(3))}, study=tmp_path)
    assert len(ASKED) == 3
    (first,) = compare_networks([case], methods, study=tmp_path)
    assert len(ASKED) == len(LAYERS)
    (second,) = compare_networks([case], methods, study=tmp_path)
    assert len(ASKED) == len(LAYERS)
    assert first == second
    compare_networks([case], methods, study=tmp_path, seeds=[0, 1])
    assert len(ASKED) == 2 * len(LAYERS)
    kept = read_records(tmp_path / "networks.csv", NetworkRecord)
    assert [record.seed for record in kept] == [0, 1]
    assert kept[0].seconds is None  # the call that was interrupted took some of its time
    assert kept[1].seconds is not None


def test_a_study_of_other_data_is_refused(case: NetworkCase, tmp_path) -> None:
    methods = {"near": NetworkMethod(Nearest())}
    compare_networks([case], methods, study=tmp_path)
    changes: list[Callable[[], NetworkCase]] = [
        lambda: replace(case, calibrations={"": batches(seed=9)}),
        lambda: replace(case, judges=batches(seed=9)),
        lambda: replace(case, labels=torch.zeros(8, dtype=torch.int64)),
        lambda: replace(case, held_out=batches(seed=9)),
        lambda: replace(case, model=_changed(residual())),
    ]
    for change in changes:
        with pytest.raises(CrossCheckError, match="on other data"):
            compare_networks([change()], methods, study=tmp_path)


def test_a_study_goes_on_where_the_float_network_rounds_differently(
    case: NetworkCase, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = {"near": NetworkMethod(Nearest())}
    first = compare_networks([case], methods, study=tmp_path)
    # As with another number of threads.
    monkeypatch.setattr(network_study, "predict", lambda *given: predict(*given) * (1 + 1e-6))
    assert compare_networks([replace(case)], methods, study=tmp_path) == first


def _changed(model: torch.nn.Module) -> torch.nn.Module:
    model.get_parameter("head.weight").data[0, 0] += 1
    return model


def test_a_bound_that_another_method_undercuts_is_caught(case: NetworkCase, tmp_path) -> None:
    methods = {"wrong": independent(TooHigh()), "better": independent(TreeSearch())}
    with pytest.raises(CrossCheckError, match=r"'better, seed 0' has energy .* of 'wrong, seed 0'"):
        compare_networks([case], methods)
    # Across the sessions of a study, too.
    compare_networks([case], {"wrong": methods["wrong"]}, study=tmp_path)
    with pytest.raises(CrossCheckError, match="of 'wrong, seed 0'"):
        compare_networks([case], methods, study=tmp_path)


def test_a_bound_above_its_own_energy_is_caught(case: NetworkCase) -> None:
    with pytest.raises(CrossCheckError, match="'wrong, seed 0' has energy"):
        compare_networks([case], {"wrong": NetworkMethod(TooHigh(factor=1.001))})


def test_other_settings_are_other_problems(case: NetworkCase) -> None:
    finer = replace(independent(TreeSearch()), settings=LayerSettings(bits=6))
    records = compare_networks([case], {"coarse": independent(TooHigh()), "finer": finer})
    assert len(records) == 2


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_network_records_survive_the_file(case: NetworkCase, tmp_path, suffix) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    records = compare_networks([case], {"near": NetworkMethod(Nearest())})
    path = write_records(tmp_path / f"networks.{suffix}", records, NetworkRecord)
    assert read_records(path, NetworkRecord) == records


def test_the_table_averages_over_seeds(case: NetworkCase) -> None:
    methods = {"near": NetworkMethod(Nearest()), "draws": NetworkMethod(Annealing(sweeps=1))}
    records = compare_networks([case], methods, seeds=[0, 1, 2])
    floats, near, draws = network_rows(records)
    assert (floats["method"], floats["top1"]) == ("float", records[0].float_top1)
    assert (near["seeds"], near["top1"], near["top1 +-"]) == (3, records[0].top1, 0)
    top1 = torch.tensor([r.top1 for r in records if r.method == "draws"], dtype=torch.float64)
    assert draws["top1"] == pytest.approx(float(top1.mean()))
    assert draws["top1 +-"] == pytest.approx(float(top1.std()))
    lines = networks_table(records).splitlines()
    assert len(lines) == 5
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["float", "near", "draws"]


def test_the_page_shows_networks_with_and_without_labels(case: NetworkCase, tmp_path) -> None:
    cases = [case, replace(case, name="unlabelled", labels=None)]
    compare_networks(cases, {"near": NetworkMethod(Nearest())}, study=tmp_path)
    text = write_study_page(tmp_path).read_text()
    assert "2 networks, 1 method<" in text
    assert text.count("<img ") == 2
    assert text.count("<td>near</td>") == 2


def test_task_loss_is_the_cross_entropy() -> None:
    logits, labels = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([1, 1])
    judged: Tensor = -logits.double().log_softmax(1)[[0, 1], labels]
    assert evaluate(logits, labels).loss == pytest.approx(float(judged.mean()))
    assert evaluate(logits, None, logits).loss is None
