"""What a comparison of whole networks comes to, method by method."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from qubo_rounding.evaluation import Evaluation, wilson_interval
from qubo_rounding.means import geometric_mean
from qubo_rounding.records import NetworkRecord


def network_rows(records: Sequence[NetworkRecord]) -> list[dict[str, Any]]:
    """One row for the float network and one a method, each the mean over its seeds.

    `top1 +-` is the standard deviation over the seeds, None where there is one.
    """
    rows: list[dict[str, Any]] = []
    for name, of_network in _grouped(records, "network", "calibration").items():
        of_float = of_network[0]
        start = {"network": " ".join(filter(None, name))}
        rows.append(
            {
                **start,
                "method": "float",
                "top1": of_float.float_top1,
                "loss": of_float.float_loss,
            }
        )
        for (method, _), runs in _grouped(of_network, "method", "configuration").items():
            top1 = [run.top1 for run in runs if run.top1 is not None]
            rows.append(
                {
                    **start,
                    "method": method,
                    "seeds": len(runs),
                    "energy / nearest": geometric_mean(run.ratio for run in runs),
                    "held out / nearest": geometric_mean(run.held_out_ratio for run in runs),
                    "top1": _mean(top1),
                    "top1 +-": statistics.stdev(top1) if len(top1) > 1 else None,
                    "loss": _mean(run.loss for run in runs),
                    "agreement": _mean(run.agreement for run in runs),
                    "kl": _mean(run.kl for run in runs),
                    "solver seconds": _mean(run.solver_seconds for run in runs),
                    "seconds": _mean(run.seconds for run in runs),
                }
            )
    return rows


def network_evaluations(
    records: Sequence[NetworkRecord],
) -> dict[str, tuple[dict[str, Evaluation], float | None]]:
    """Of every network: each method's evaluation, the mean over its runs, and float's top-1."""
    found = {}
    for (network,), of_network in _grouped(records, "network").items():
        evaluations = {}
        for (method,), runs in _grouped(of_network, "method").items():
            top1, images = _mean(run.top1 for run in runs), runs[0].images
            interval = None if top1 is None else wilson_interval(top1 * images, images)
            evaluations[method] = Evaluation(
                images,
                top1=top1,
                top1_interval=interval,
                agreement=_mean(run.agreement for run in runs),
            )
        found[network] = evaluations, of_network[0].float_top1
    return found


def _grouped(
    records: Iterable[NetworkRecord], *names: str
) -> dict[tuple[str, ...], list[NetworkRecord]]:
    found: dict[tuple[str, ...], list[NetworkRecord]] = {}
    for record in records:
        found.setdefault(tuple(getattr(record, name) for name in names), []).append(record)
    return found


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None
