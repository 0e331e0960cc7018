"""Table 7 on other networks: nearest, what others propose, AdaRound and ours, W4A32 and W4A8.

    python -m analysis.literature     # 45 minutes, 2 cores; resumes

The kit's networks instead of the paper's, 256 of its calibration photographs drawn by the seed, and
a schedule of eq 25 that a CPU can afford. Per tensor is with cross-layer equalisation, which the
depthwise layers of these networks need. Writes results/literature.{csv,md}.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from analysis.entry import begin
from analysis.judged_networks import NETWORKS, SMALL_NETWORKS, JudgedNetwork
from analysis.rows import RESULTS, write_markdown
from qubo_rounding import (
    Auto,
    LayerSettings,
    Nearest,
    NetworkMethod,
    NetworkRecord,
    Reconstruction,
    compare_networks,
    read_records,
    reuse_freed_memory,
    write_records,
)

STUDY, PATH = Path("runs/literature"), RESULTS / "literature.csv"
IMAGES, SEED = 256, 0
ADAROUND = Reconstruction(iterations=300, lr=1e-2, lam=1.0, normalise=True, positions=16)


def _settings(granularity: str, bias: str, act_bits: int | None = None) -> LayerSettings:
    chosen: Any = dict(granularity=granularity, bias=bias, act_bits=act_bits)
    return LayerSettings(equalise=granularity == "tensor", **chosen)


METHODS = {
    "nearest, per tensor": NetworkMethod(Nearest(), settings=_settings("tensor", "keep")),
    "nearest of least MSE, per channel": NetworkMethod(
        Nearest(), settings=_settings("channel", "keep")
    ),
    "AdaRound, per tensor": NetworkMethod(
        reconstruction=ADAROUND, settings=_settings("tensor", "keep")
    ),
    "ours (auto), per channel": NetworkMethod(Auto("fast"), settings=_settings("channel", "refit")),
    "equalised, bias corrected, per tensor, A8": NetworkMethod(
        Nearest(), settings=_settings("tensor", "refit", 8)
    ),
    "bias corrected, per channel, A8": NetworkMethod(
        Nearest(), settings=_settings("channel", "refit", 8)
    ),
    "AdaRound, per tensor, A8": NetworkMethod(
        reconstruction=ADAROUND, settings=_settings("tensor", "keep", 8)
    ),
    "ours (auto), per channel, A8": NetworkMethod(
        Auto("fast"), settings=_settings("channel", "refit", 8)
    ),
}
# What the paper prints for ResNet-18, ResNet-50, InceptionV3 and MobileNetV2 (top-1, percent).
PAPER = {
    "float": "69.68 / 76.07 / 77.40 / 71.72",
    "nearest, per tensor": "23.99 / 35.60 / 1.67 / 8.09",
    "nearest of least MSE, per channel": "67.12 / 74.67 / 73.66 / - (OMSE + opt)",
    "AdaRound, per tensor": "68.71 / 75.23 / 75.76 / 69.78",
    "equalised, bias corrected, per tensor, A8": "38.98 / 52.84 / - / 46.57 (DFQ)",
    "bias corrected, per channel, A8": "67.4 / 74.8 / 59.5 / -",
    "AdaRound, per tensor, A8": "68.55 / 75.01 / 75.72 / 69.25",
}


def measure() -> None:
    """Network after network; the study goes on where it was."""
    records = []
    for name, spec in {**NETWORKS, **SMALL_NETWORKS}.items():
        judged = JudgedNetwork.load(spec)
        drawn = {f"{IMAGES} drawn": list(judged.drawn(IMAGES, SEED))}
        case = judged.case(name, drawn)
        records += compare_networks([case], METHODS, seeds=[SEED], study=STUDY, progress=True)
        write_records(PATH, records, NetworkRecord)


def render() -> None:
    """One line a method, one column a network."""
    records = read_records(PATH, NetworkRecord)
    networks = list(dict.fromkeys(record.network for record in records))
    top1 = {(record.network, record.method): record.top1 for record in records}
    top1 |= {(record.network, "float"): record.float_top1 for record in records}
    rows = []
    for method in ("float", *METHODS):
        row: dict[str, Any] = {"method": method}
        for network in networks:
            share = top1.get((network, method))
            row[network] = None if share is None else f"{100 * share:.1f}"
        rows.append(row | {"paper, R18 / R50 / InceptionV3 / MNv2": PAPER.get(method)})
    closing = (
        "Top-1 in percent on 1,000 photographs (standard error 1 to 1.5 points). mobilenet_v2 is "
        "an 8-bit network's, so that its A8 lines say little."
    )
    write_markdown("literature", rows, closing)


if __name__ == "__main__":
    begin(__doc__)
    reuse_freed_memory()
    measure()
    render()
