"""Pictures of what was measured: functions from numbers to a matplotlib Figure, nothing saved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from torch import Tensor

from qubo_rounding.evaluation import Evaluation
from qubo_rounding.means import geometric_mean
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.solution import Solution

# Okabe and Ito 2008, told apart by every kind of colour vision; their yellow is too pale on white.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#000000")
MARKERS = "osD^vPX*p"  # their number and the colours' have no common divisor: 63 distinct pairs
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.titlesize": 14,
    "grid.color": "#DDDDDD",
    "legend.frameon": False,
    "svg.hashsalt": "qubo_rounding",  # same picture, same bits
}
_UP, _STAY, _DOWN = "#D55E00", "#EDEDED", "#0072B2"
_GREY = "#606060"


@matplotlib.rc_context(STYLE)
def energy_figure(ratios: Mapping[str, Mapping[str, float]]) -> Figure:
    """Energy relative to nearest of every method on every layer, in execution order, log scale.

    Args:
        ratios: method -> layer -> energy / energy of nearest; a method may lack layers. Layers
            stand in the order of their first appearance.

    Raises:
        ValueError: a method without layers, no method, or a ratio that is not positive.
    """
    _check_ratios(ratios)
    layers = list(dict.fromkeys(layer for of_method in ratios.values() for layer in of_method))
    width = max(8.0, 2 + 0.29 * len(layers))
    figure = Figure(figsize=(width, 7.5), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(1, color=_GREY, linewidth=1.5, linestyle="--")
    # Side by side within a layer, so that methods that do alike do not hide each other.
    offsets = min(0.12, 0.7 / len(ratios)) * (np.arange(len(ratios)) - (len(ratios) - 1) / 2)
    for number, (method, of_method) in enumerate(ratios.items()):
        axes.plot(
            np.arange(len(layers)) + offsets[number],
            [of_method.get(layer, math.nan) for layer in layers],
            label=f"{method} ({geometric_mean(of_method.values()):.3g})",
            color=PALETTE[number % len(PALETTE)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
            linewidth=0.6,
        )
    _name_layers(axes, layers)
    _scale_ratios(axes)
    figure.legend(
        loc="outside upper left",
        ncols=max(1, int(width / 2.7)),
        title="Energy of each layer relative to nearest rounding (geometric mean in brackets)",
        title_fontsize=STYLE["figure.titlesize"],
        alignment="left",
    )
    return figure


@matplotlib.rc_context(STYLE)
def accuracy_figure(
    evaluations: Mapping[str, Evaluation], float_top1: float | None = None
) -> Figure:
    """Top-1 of every method as a bar with its 95 % interval; agreement where labels are missing.

    Args:
        evaluations: by method, drawn from top to bottom.
        float_top1: of the float network, drawn as a line beside top-1; None draws none.

    Raises:
        ValueError: no methods, or one without the share to draw.
    """
    if not evaluations:
        raise ValueError("there are no evaluations to draw; give at least one method's.")
    labelled = all(evaluation.top1 is not None for evaluation in evaluations.values())
    figure = Figure(figsize=(9, 2 + 0.45 * len(evaluations)), layout="constrained")
    axes = figure.add_subplot()
    for place, (method, evaluation) in enumerate(evaluations.items()):
        share = evaluation.top1 if labelled else evaluation.agreement
        if share is None:
            raise ValueError(
                f"{method!r} has no agreement and not all methods have top-1; evaluate all with "
                "labels, or all with the float network's logits."
            )
        _draw_bar(axes, place, share, evaluation.top1_interval if labelled else None)
    _name_methods(axes, list(evaluations))
    if labelled and float_top1 is not None:
        axes.axvline(100 * float_top1, color=_GREY, linestyle="--")
        axes.text(100 * float_top1, -0.6, f"float {100 * float_top1:.1f} %", ha="center")
    images = next(iter(evaluations.values())).images
    if labelled:
        axes.set_xlabel(f"top-1 on {images} images in percent, with 95 % interval")
        _title(figure, "How often each rounded network names the right class")
    else:
        axes.set_xlabel(f"agreement with the float network on {images} images in percent")
        _title(figure, "How often each rounded network answers as the float network does")
    return figure


@matplotlib.rc_context(STYLE)
def gram_flips_figure(
    problem: RoundingProblem, levels: Tensor, group: int = 0, rows: int = 16
) -> Figure:
    """Which inputs go together and, below them, which weights were flipped against nearest.

    The heat map is the Gram matrix as a correlation, G_ij / sqrt(G_ii G_jj), grey where nothing
    flows. Both pictures share their columns.

    Args:
        problem: the layer's problem; `meta["layer"]` names it in the title.
        levels: (g, r, d) integers within [low, high].
        group: which group to draw.
        rows: how many of its rows to draw at most.

    Raises:
        ValueError: no such group, no rows, or levels that do not fit the problem.
    """
    if not 0 <= group < problem.g or rows < 1:
        raise ValueError(
            f"group is {group} and rows is {rows}; give a group from 0 to {problem.g - 1} and at "
            "least one row."
        )
    part = problem.part(slice(group, group + 1), slice(0, rows))
    drawn = part.solution(levels[group : group + 1, :rows])
    strip = 0.2 * part.r + 0.1
    figure = Figure(figsize=(9, 9.2 + strip), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(30, 1), height_ratios=(7.6, strip))
    heat = figure.add_subplot(grid[0, 0])
    _draw_correlation(heat, figure.add_subplot(grid[0, 1]), part)
    _draw_flips(figure.add_subplot(grid[1, 0], sharex=heat), part, drawn)
    keys = {"up": _UP, "as nearest": _STAY, "down": _DOWN}
    patches = [Patch(color=color, label=name) for name, color in keys.items()]
    figure.legend(handles=patches, ncols=3, loc="outside lower left")
    where = f", group {group} of {problem.g}" if problem.g > 1 else ""
    _title(figure, f"{problem.meta.get('layer', 'One layer')}{where}: inputs and flipped weights")
    return figure


def _check_ratios(ratios: Mapping[str, Mapping[str, float]]) -> None:
    if not ratios or not all(ratios.values()):
        raise ValueError("there are no energies to draw; give every method at least one layer.")
    for method, of_method in ratios.items():
        for layer, ratio in of_method.items():
            if not 0 < ratio < math.inf:
                raise ValueError(
                    f"{method!r} has energy ratio {ratio} on {layer!r}; a logarithmic axis shows "
                    "positive numbers, so leave that layer out."
                )


def _name_layers(axes: Axes, layers: Sequence[str]) -> None:
    names = [".".join(part.strip("_") for part in layer.split(".")) for layer in layers]
    shortened = [name if len(name) <= 26 else f"{name[:10]}…{name[-15:]}" for name in names]
    axes.set_xticks(range(len(layers)), shortened, rotation=90)
    axes.set_xlim(-0.7, len(layers) - 0.3)
    axes.grid()


def tell_logarithm(axis: Axis) -> None:
    """Plain numbers at 1, 2 and 5 times the powers of ten of a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
    axis.set_minor_formatter(NullFormatter())


def _scale_ratios(axes: Axes) -> None:
    axes.set_yscale("log")
    tell_logarithm(axes.yaxis)
    axes.set_ylabel("energy / energy of nearest")


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left")


def _draw_bar(axes: Axes, place: int, share: float, interval: tuple[float, float] | None) -> None:
    axes.barh(place, 100 * share, color=PALETTE[place % len(PALETTE)], height=0.66)
    label = f"{100 * share:.1f} %"
    if interval:
        low, high = (100 * end for end in interval)
        axes.errorbar((low + high) / 2, place, xerr=(high - low) / 2, color="black", capsize=4)
        label += f"  ({low:.1f} to {high:.1f})"
    axes.text(102, place, label, va="center")


def _name_methods(axes: Axes, methods: Sequence[str]) -> None:
    axes.set_yticks(range(len(methods)), methods)
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 100), ylim=(len(methods) - 0.5, -0.5))
    axes.grid(axis="x")


def _draw_correlation(axes: Axes, bar: Axes, part: RoundingProblem) -> None:
    gram = part.gram[0].cpu().numpy()
    deviation = np.sqrt(np.where(gram.diagonal() > 0, gram.diagonal(), np.nan))
    correlation = gram / np.outer(deviation, deviation)
    # The diagonal is 1 everywhere; colours that reach so far would leave the rest pale.
    others = correlation[~np.eye(part.d, dtype=bool) & np.isfinite(correlation)]
    limit = min(1.0, float(np.quantile(np.abs(others), 0.995))) if others.any() else 1.0
    signed = bool((others < 0).any())
    colors = matplotlib.colormaps["RdBu_r" if signed else "Reds"].with_extremes(bad="#BBBBBB")
    least = -limit if signed else 0
    image = axes.imshow(correlation, cmap=colors, vmin=least, vmax=limit, aspect="auto")
    axes.set(title=f"correlation of the {part.d} columns (1 on the diagonal)", ylabel="column")
    axes.tick_params(labelbottom=False)
    _count_in_tens(axes.xaxis, axes.yaxis)
    axes.spines[:].set_visible(False)
    bar.figure.colorbar(image, cax=bar, extend="both" if signed else "max", extendfrac=0.02)


def _draw_flips(axes: Axes, part: RoundingProblem, drawn: Solution) -> None:
    nearest = part.solution(part.nearest())
    flips = (drawn.levels - nearest.levels)[0].sign().cpu().numpy()
    colors = ListedColormap([_DOWN, _STAY, _UP])
    axes.imshow(flips, cmap=colors, vmin=-1, vmax=1, aspect="auto")
    axes.hlines(np.arange(1, part.r) - 0.5, -0.5, part.d - 0.5, color="white", linewidth=1.5)
    energy, energy_nearest = (float(solution.energy.sum()) for solution in (drawn, nearest))
    axes.set_title(
        f"{100 * (flips != 0).mean():.0f} % of these weights flipped, "
        f"energy {energy:.3g} (nearest {energy_nearest:.3g})"
    )
    axes.set(xlabel="column", ylabel="row")
    _count_in_tens(axes.yaxis)
    axes.spines[:].set_visible(False)


def _count_in_tens(*counted: Axis) -> None:
    for axis in counted:
        axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
