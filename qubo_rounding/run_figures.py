"""Pictures of one run: layers by width, what rounding changed and took, how learning went."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qubo_rounding.figures import PALETTE, STYLE, tell_logarithm
from qubo_rounding.run_folder import LayerRecord

_MANY = 0.45  # opacity of one of many curves


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
    tell_logarithm(axes.xaxis)
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
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (upper, lower):
        axes.grid(axis="y")
    return figure


@matplotlib.rc_context(STYLE)
def course_figure(records: Sequence[LayerRecord], layer: str | None = None) -> Figure:
    """Loss, relative to its first value, and share of unsettled weights while layers were learned.

    Args:
        records: of layers with a course; others are left out.
        layer: which curve to draw strongly; None draws none so.

    Raises:
        ValueError: no layer has a course.
    """
    courses = {r.name: r.stats["course"] for r in records if "course" in r.stats}
    if not courses:
        raise ValueError("no layer was learned; the relaxation alone has a course to draw.")
    figure = Figure(figsize=(9, 6), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    for name, course in courses.items():
        strong = name == layer or len(courses) == 1
        look = {"color": PALETTE[4] if strong else PALETTE[3], "alpha": 1 if strong else _MANY}
        look |= {"zorder": 3 if strong else 2, "linewidth": 2 if strong else 1}
        first = course["loss"][0] or 1.0
        upper.plot(course["iteration"], [loss / first for loss in course["loss"]], **look)
        lower.plot(course["iteration"], [100 * share for share in course["unsettled"]], **look)
    upper.set_yscale("log")
    tell_logarithm(upper.yaxis)
    which = f"; {layer} drawn strongly" if layer in courses and len(courses) > 1 else ""
    upper.set_title(f"loss of the soft levels, relative to its first value{which}")
    lower.set_title("weights whose h(V) is not yet 0 or 1, percent")
    lower.set(xlabel="iteration", ylim=(0, None))
    for axes in (upper, lower):
        axes.grid()
    return figure


@matplotlib.rc_context(STYLE)
def settling_figure(record: LayerRecord) -> Figure:
    """The histogram of h(V) before and after a layer was learned.

    Raises:
        ValueError: the layer was not learned.
    """
    if "h_before" not in record.stats:
        raise ValueError(f"{record.name!r} was not learned; it has no h(V) to draw.")
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    before, after = figure.subplots(1, 2)
    for axes, key, title in (
        (before, "h_before", "before: where the weights lie between their two levels"),
        (after, "h_after", "after"),
    ):
        shares = [100 * share for share in record.stats[key]]
        width = 1 / len(shares)
        places = [width * (bin + 0.5) for bin in range(len(shares))]
        axes.bar(places, shares, width=0.9 * width, color=PALETTE[0])
        axes.set(xlabel="h(V)", xlim=(0, 1))
        axes.set_title(title, fontsize=STYLE["font.size"])
        axes.grid(axis="y")
    before.set_ylabel("weights, percent")
    return figure
