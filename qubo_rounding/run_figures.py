"""Pictures of one run: its layers by width, and what each layer's rounding changed and took."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from qubo_rounding.figures import PALETTE, STYLE
from qubo_rounding.run_folder import LayerRecord


@matplotlib.rc_context(STYLE)
def width_figure(records: Sequence[LayerRecord]) -> Figure:
    """Energy relative to nearest against the width of a layer's rows, bounds as bars below.

    Args:
        records: of the layers; those that nearest rounds without error are left out.

    Raises:
        ValueError: no layer is left.
    """
    last = max(1, len(records) - 1)
    shown = [
        (record, record.ratio, place / last)
        for place, record in enumerate(records)
        if record.ratio is not None
    ]
    if not shown:
        raise ValueError("no layer has an energy to draw; nearest rounding is without error.")
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for record, ratio, _ in shown:
        if record.bound_ratio is not None:
            ends = [max(0.0, record.bound_ratio), ratio]
            axes.plot([record.d] * 2, ends, color=PALETTE[6], linewidth=1, zorder=1)
    widths, ratios, depths = zip(*((r.d, ratio, depth) for r, ratio, depth in shown), strict=True)
    points = axes.scatter(widths, ratios, c=depths, cmap="cividis", vmin=0, vmax=1, zorder=2)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda width, _: f"{width:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="weights in a row", ylabel="energy / energy of nearest", ylim=(0, None))
    axes.set_title("Wide and narrow layers; a line goes down to the lower bound where there is one")
    axes.grid()
    figure.colorbar(points, label="depth, from first to last layer")
    return figure


@matplotlib.rc_context(STYLE)
def effort_figure(records: Sequence[LayerRecord]) -> Figure:
    """The share of weights flipped against nearest, and the solver's seconds, layer by layer.

    Args:
        records: of the layers, in the order of execution; at least one.
    """
    figure = Figure(figsize=(max(8.0, 2 + 0.2 * len(records)), 5), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    places = range(len(records))
    shares = [100 * record.flipped for record in records]
    upper.bar(places, shares, color=PALETTE[3])
    upper.set_title("weights rounded to the farther level, percent")
    lower.bar(places, [record.seconds for record in records], color=PALETTE[0])
    lower.set_title("seconds in the solver")
    lower.set_xlabel("layer, in the order of execution")
    for axes in (upper, lower):
        axes.grid(axis="y")
    return figure
