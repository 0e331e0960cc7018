"""The headline: energy over the best lower bound, layer by layer of a real network, five ways.

    python -m analysis.headline                  # 20 minutes, 2 cores; resumes
    python -m analysis.headline --scale demo     # 5 minutes, on the photographs of the extra `demo`

The first 16 rows of every layer of EfficientNet-Lite0, 4 bits per channel, 256 calibration images.
Narrow rows have proven optima, wide ones the semidefinite bound; held-out energies stand beside. A
study: its records lie in runs/headline-SCALE. Writes results/headline.{csv,md,svg}.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from analysis.entry import described, need_kit
from analysis.kit_problems import KitProblem, kit_problems, posed_layers
from analysis.rows import RESULTS, write_markdown
from qubo_rounding import (
    AdaRound,
    Auto,
    Case,
    Certified,
    FirstThatAccepts,
    Gptq,
    LayerSettings,
    Nearest,
    Record,
    TreeSearch,
    collect_grams,
    compare,
    fold_batch_norm,
    load_model,
    reuse_freed_memory,
    write_records,
)
from qubo_rounding.figures import MARKERS, PALETTE, STYLE
from qubo_rounding.imagenet import demo_photographs
from qubo_rounding.means import geometric_mean

ROWS = 16
PROVEN_WIDTH = 80  # rows of so many columns are proven within milliseconds each
SOLVERS = {
    "nearest": Nearest(),
    "gptq": FirstThatAccepts((Gptq(), Nearest())),
    "AdaRound": AdaRound(),
    "auto, fast": Auto("fast"),
    "auto, best": Certified(Auto("best")),
}


def problems(scale: str) -> Iterator[KitProblem]:
    """The layers' problems, in order of execution."""
    if scale == "kit":
        yield from kit_problems("efficientnet_lite0", 4, widest=4608)
        return
    model, preprocessing = load_model("efficientnet_lite0")
    calibration, held_out = demo_photographs(preprocessing)
    model, _ = fold_batch_norm(model, next(iter(calibration))[0])
    grams, judging = (collect_grams(model, images) for images in (calibration, held_out))
    yield from posed_layers(model, grams, judging, LayerSettings())


def measure(scale: str) -> list[Record]:
    """Records of every solver on every layer; narrow layers are proven, too."""
    folder = Path(f"runs/headline-{scale}")
    records = []
    for posed in problems(scale):
        few = posed.rows(ROWS)
        case = Case(few.layer, few.problem, held_out=few.held_out_energy)
        narrow = case.problem.d <= PROVEN_WIDTH
        solvers = {**SOLVERS, "tree search": TreeSearch()} if narrow else SOLVERS
        records += compare([case], solvers, study=folder)
        print(case.name, flush=True)
    return records


@matplotlib.rc_context(STYLE)
def picture(records: Sequence[Record]) -> Figure:
    """Energy over the best bound by layer; filled where the bound is the proven optimum."""
    layers = list(dict.fromkeys(record.problem for record in records))
    place = {layer: number for number, layer in enumerate(layers)}
    figure = Figure(figsize=(14, 6.5), layout="constrained")
    axes = figure.add_subplot()
    for number, solver in enumerate(SOLVERS):
        own = [r for r in records if r.solver == solver and r.over_bound is not None]
        proven = [r for r in own if r.known_rows == r.g * r.r]
        mean = geometric_mean(r.over_bound for r in proven)
        look = {"color": PALETTE[number], "marker": MARKERS[number], "s": 34, "zorder": 3}
        label = f"{solver} ({mean:.3f})" if mean else solver
        rest = [r for r in own if r not in proven]
        axes.scatter(*_points(proven, place), label=label, **look)
        axes.scatter(
            *_points(rest, place),
            facecolors="none",
            edgecolors=PALETTE[number],
            marker=MARKERS[number],
            s=34,
            zorder=3,
        )
    axes.axhline(1, color="#606060", linewidth=1)
    axes.set_yscale("log")
    axes.set_yticks([1, 1.25, 1.5, 2, 3, 5, 10, 20, 50])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(range(len(layers)), [name.strip("_") for name in layers], rotation=90)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlim(-0.7, len(layers) - 0.3)
    axes.grid()
    axes.set_ylabel("energy / best lower bound")
    figure.legend(
        loc="outside upper left",
        ncols=len(SOLVERS),
        title="EfficientNet-Lite0, 4 bits: energy over the proven optimum (filled; geometric mean "
        "in brackets) or over a certified bound (hollow)",
        alignment="left",
    )
    return figure


def _points(records: Sequence[Record], place: dict[str, int]) -> tuple[list[int], list[float]]:
    return [place[r.problem] for r in records], [r.over_bound or 1 for r in records]


def render(records: Sequence[Record], scale: str) -> None:
    """Write the table, the records and the picture; the demo's beside its study."""
    folder = RESULTS if scale == "kit" else Path(f"runs/headline-{scale}")
    with matplotlib.rc_context(STYLE):
        picture(records).savefig(folder / "headline.svg", metadata={"Date": None})
    rows = []
    for kind, chosen in (
        ("proven optimum", [r for r in records if r.known_rows == r.g * r.r]),
        ("certified bound", [r for r in records if r.known_rows < r.g * r.r]),
    ):
        for solver in SOLVERS:
            own = [r for r in chosen if r.solver == solver and r.over_bound is not None]
            rows.append(
                {
                    "layers with a": f"{kind} ({len(own)})",
                    "solver": solver,
                    "energy / bound": geometric_mean(r.over_bound for r in own),
                    "largest": max((r.over_bound or 0 for r in own), default=None),
                    "energy / nearest": geometric_mean(r.ratio for r in own),
                    "held out / nearest": geometric_mean(r.held_out_ratio for r in own),
                    "seconds": sum(r.seconds or 0 for r in own),
                }
            )
    if scale == "kit":
        write_records(RESULTS / "headline.csv", records)
        without = sorted({r.problem for r in records if r.over_bound is None})
        left = f"No bound above 0, and left out: {', '.join(without)}.\n\n" if without else ""
        write_markdown("headline", rows, f"{left}![energy over the best bound](headline.svg)")


if __name__ == "__main__":
    parser = described(__doc__)
    parser.add_argument("--scale", choices=["kit", "demo"], default="kit")
    options = parser.parse_args()
    if options.scale == "kit":
        need_kit(parser)
    reuse_freed_memory()
    render(measure(options.scale), options.scale)
