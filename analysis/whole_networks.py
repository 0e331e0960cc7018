"""Whole networks at 4 bits: every solver, sequential and independent, bias kept and refitted.

    python -m analysis.whole_networks            # about 70 minutes on 2 cores; resumes

Needs the evaluation kit (see README.md in this folder). Writes results/whole_networks.csv, one row
a run, and the table results/whole_networks.md.
"""

from __future__ import annotations

import itertools

from analysis.entry import begin
from analysis.judged_networks import NETWORKS, JudgedNetwork
from analysis.rows import RESULTS, append_row, read_rows, write_markdown
from qubo_rounding import (
    LayerSettings,
    collect_grams,
    make_solver,
    quantise,
)

PATH = RESULTS / "whole_networks.csv"
SOLVERS = [
    "nearest",
    "gptq",
    "descent",
    "annealing:reads=1",
    "adaround:iterations=1000",
    "stochastic",
]
CALIBRATION_IMAGES = 256
KEYS = ("network", "calibration", "bias", "solver")


def measure() -> None:
    """Run what is not in the CSV yet, and append it row by row."""
    done = {tuple(row[key] for key in KEYS) for row in read_rows(PATH)}
    for network, spec in NETWORKS.items():
        judged = JudgedNetwork.load(spec)
        calibration = list(judged.spread(CALIBRATION_IMAGES))
        grams = collect_grams(judged.model, calibration, progress=True)
        modes = itertools.product(("independent", "sequential"), ("refit", "keep"), SOLVERS)
        for mode, bias, solver in modes:
            if (network, mode, bias, solver) in done:
                continue
            result = quantise(
                judged.model,
                calibration,
                solver=make_solver(solver),
                settings=LayerSettings(bias=bias),
                calibration=mode,
                grams=grams if mode == "independent" else None,
                progress=True,
            )
            row = dict(network=network, calibration=mode, bias=bias, solver=solver)
            row |= judged.judge(result.model)
            row |= dict(solver_seconds=sum(r.seconds for r in result.records))
            append_row(PATH, row)
            print(row, flush=True)


def render() -> None:
    """Write the table in Markdown."""
    numbers = ("float_top1", "top1", "agreement", "kl", "solver_seconds")
    rows = [{**row, **{key: float(row[key]) for key in numbers}} for row in read_rows(PATH)]
    write_markdown("whole_networks", rows)


if __name__ == "__main__":
    begin(__doc__)
    measure()
    render()
