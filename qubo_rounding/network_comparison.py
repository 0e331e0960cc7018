"""Whole networks compared: every method on every network, judged by the same images."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tqdm import tqdm

from qubo_rounding.cross_checks import check_layer_bounds
from qubo_rounding.evaluation import Evaluation, device_of, evaluate, predict
from qubo_rounding.folder_lock import locked
from qubo_rounding.layer_problem import LayerSettings
from qubo_rounding.means import geometric_mean
from qubo_rounding.network import QuantisedNetwork, quantise
from qubo_rounding.network_study import NetworkCase, NetworkMethod, NetworkStudy
from qubo_rounding.passes import input_batches
from qubo_rounding.plan import prepared
from qubo_rounding.provenance import now, provenance
from qubo_rounding.records import NetworkRecord
from qubo_rounding.run_folder import LayerRecord, finished_records, is_begun
from qubo_rounding.statistics import Gram, collect_grams
from qubo_rounding.tasks import Workers


def compare_networks(
    cases: Iterable[NetworkCase],
    methods: Mapping[str, NetworkMethod],
    *,
    seeds: Sequence[int] = (0,),
    study: str | Path | None = None,
    memory: float = 4 * 2**30,
    executor: Workers | None = None,
    progress: bool = False,
) -> list[NetworkRecord]:
    """One record for every method and seed on every network and calibration set, in that order.

    Methods of independent calibration get the same Grams, collected once; where their settings are
    the same, too, they solve the same problems and are checked on each other's lower bounds.

    Args:
        cases: networks, each with its images.
        methods: by the names that go into the records.
        seeds: each is given to every method.
        study: folder that keeps records (networks.csv) and a run folder for each; what is there is
            not measured again, and what was stopped goes on at its layer.
        memory: as for `quantise`.
        executor: as for `quantise`; methods of sequential calibration go without.
        progress: show progress bars on standard error.

    Raises:
        CrossCheckError: a layer's energy below a lower bound of the same problem, or a study of
            other data.
        ValueError: two networks of one name, a study that is not readable, or as `quantise`.
    """
    records: dict[str, list[NetworkRecord]] = {}
    with nullcontext() if study is None else locked(Path(study)):
        kept = NetworkStudy(study)
        for case in tqdm(cases, desc="networks", disable=not progress):
            if case.name in records:
                raise ValueError(f"two networks are named {case.name!r}; give each its own name.")
            records[case.name] = []
            for calibration in case.calibrations:
                how = {"memory": memory, "executor": executor, "progress": progress}
                work = _Work(case, calibration, kept, how)
                for seed in seeds:
                    records[case.name] += [
                        work.record(label, method, seed) for label, method in methods.items()
                    ]
    return [record for of_case in records.values() for record in of_case]


class _Work:
    """One network with one of its calibration sets."""

    def __init__(
        self, case: NetworkCase, calibration: str, kept: NetworkStudy, how: Mapping[str, Any]
    ) -> None:
        self._case, self._calibration, self._kept, self._how = case, calibration, kept, how
        self._fingerprint = case.fingerprint(calibration)
        self._origin = provenance()
        self._grams: dict[bool, dict[str, Mapping[str, Gram]]] = {}
        # Of methods that solve the same problems: those of the same settings, independently.
        self._together: dict[str, dict[str, Sequence[LayerRecord]]] = {}

    def record(self, label: str, method: NetworkMethod, seed: int) -> NetworkRecord:
        """The record of a method and seed, measured where it is not there yet."""
        cell = (self._case.name, self._calibration, label, repr(method), seed)
        run = self._kept.run(cell)
        record = self._kept.find(cell, self._fingerprint)
        if record is not None:
            if run is not None:
                self._check(f"{label}, seed {seed}", method, finished_records(run))
            return record
        judged_float = self._case.float_evaluation  # before the work: labels may not fit
        data = self._data(method)
        resumed = run is not None and is_begun(run)
        began = time.perf_counter()
        result = quantise(
            self._case.model,
            self._case.calibrations[self._calibration],
            solver=method.solver,
            reconstruction=method.reconstruction,
            finish=method.finish,
            settings=method.settings,
            calibration=method.calibration,
            run=run,
            seed=seed,
            **data,
            **self._how_for(method),
        )
        seconds = time.perf_counter() - began
        self._check(f"{label}, seed {seed}", method, result.records)
        record = NetworkRecord(
            network=self._case.name,
            calibration=self._calibration,
            method=label,
            configuration=repr(method),
            seed=seed,
            seconds=None if resumed else seconds,
            **self._scores(result, judged_float),
        )
        self._kept.keep(record)
        return record

    def _how_for(self, method: NetworkMethod) -> dict[str, Any]:
        """What `quantise` is told of how to go about it."""
        apart = method.calibration == "independent"
        return {**self._how, "executor": self._how["executor"] if apart else None}

    def _data(self, method: NetworkMethod) -> dict[str, Any]:
        """What `quantise` is told of the images, beside the calibration batches."""
        case = self._case
        if method.calibration == "sequential":
            return {"held_out": case.held_out}
        equalised = method.settings.equalise
        if equalised not in self._grams:
            self._grams[equalised] = self._collected(method.settings)
        return self._grams[equalised]

    def _collected(self, settings: LayerSettings) -> dict[str, Mapping[str, Gram]]:
        batches = self._case.calibrations[self._calibration]
        model, _ = prepared(self._case.model, next(input_batches(iter(batches))), settings)
        grams: dict[str, Mapping[str, Gram]] = {
            "grams": collect_grams(model, batches, progress=self._how["progress"])
        }
        if held_out := list(self._case.held_out):
            grams["held_out"] = collect_grams(model, held_out, progress=self._how["progress"])
        return grams

    def _check(self, label: str, method: NetworkMethod, layers: Sequence[LayerRecord]) -> None:
        """Each on its own bounds, and on those of the others that solve the same problems."""
        same = repr(method.settings) if method.calibration == "independent" else label
        together = self._together.setdefault(same, {})
        together[label] = layers
        check_layer_bounds(self._case.name, together)

    def _scores(self, result: QuantisedNetwork, judged_float: Evaluation) -> dict[str, Any]:
        case, layers = self._case, result.records
        logits = predict(result.model, case.judges)
        judged = evaluate(logits, case.labels, case.float_logits)
        return {
            "fingerprint": self._fingerprint,
            "layers": len(layers),
            "weights": sum(layer.g * layer.r * layer.d for layer in layers),
            "ratio": geometric_mean(layer.ratio for layer in layers),
            "held_out_ratio": geometric_mean(layer.held_out_ratio for layer in layers),
            "rows": sum(layer.g * layer.r for layer in layers),
            "proven_rows": sum(layer.proven_rows for layer in layers),
            "images": judged.images,
            "float_loss": judged_float.loss,
            "loss": judged.loss,
            "float_top1": judged_float.top1,
            "top1": judged.top1,
            "agreement": judged.agreement,
            "kl": judged.kl,
            "solver_seconds": sum(layer.seconds for layer in layers),
            "device": str(device_of(case.model)),
            "time": now(),
            **self._origin,
        }
