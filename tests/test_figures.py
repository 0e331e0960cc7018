"""Figures hold the numbers they are given, and nothing in them overlaps or is cut off."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.text import Text

from qubo_rounding.evaluation import Evaluation
from qubo_rounding.figures import accuracy_figure, energy_figure, gram_flips_figure
from qubo_rounding.testing import random_problem

METHODS = ["nearest", "nearest + bias refit", "gptq", "descent", "annealing", "adaround"]
LAYERS = [
    f"_blocks.{block}._{kind}_conv" for block in range(17) for kind in ("expand", "depthwise")
]


def drawn_texts(figure: Figure) -> list[Text]:
    """What is really drawn: tick labels beyond the limits exist too."""
    found: dict[Text, None] = {}
    draw = Text.draw

    def noticing(text: Text, renderer: RendererBase) -> None:
        if text.get_visible() and text.get_text():
            found[text] = None
        draw(text, renderer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", noticing)
        figure.draw_without_rendering()
    return list(found)


def assert_tidy(figure: Figure) -> None:
    """All text lies within the figure, is at least 10 points high, and overlaps no other text."""
    texts = drawn_texts(figure)
    boxes = [text.get_window_extent() for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        assert text.get_fontsize() >= 10, text
        assert min(box.x0, box.y0) >= -1, text
        assert box.x1 <= figure.bbox.x1 + 1, text
        assert box.y1 <= figure.bbox.y1 + 1, text
    for one, other in combinations(range(len(texts)), 2):
        assert not boxes[one].overlaps(boxes[other]), (texts[one], texts[other])


def random_ratios(methods: int, layers: int) -> dict[str, dict[str, float]]:
    draw = np.random.default_rng(0)
    return {
        method: dict(zip(LAYERS[:layers], draw.uniform(0.05, 1.5, layers), strict=True))
        for method in METHODS[:methods]
    }


@pytest.mark.parametrize(("methods", "layers"), [(6, 34), (6, 3), (1, 1)])
def test_energies_are_drawn(methods, layers):
    ratios = random_ratios(methods, layers)
    figure = energy_figure(ratios)
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    lines = [line for line in axes.lines if len(line.get_xdata()) == layers and line.get_marker()]
    drawn = {line.get_label().partition(" (")[0]: line for line in lines}
    for method, of_method in ratios.items():
        assert list(drawn[method].get_ydata()) == list(of_method.values())
        assert np.abs(drawn[method].get_xdata() - np.arange(layers)).max() < 0.5
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names[0] == "blocks.0.expand_conv"
    assert_tidy(figure)


def test_the_legend_tells_the_geometric_mean():
    figure = energy_figure({"gptq": {"a": 0.25, "b": 1.0}, "exact": {"b": 0.125}})
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert entries == ["gptq (0.5)", "exact (0.125)"]
    gap = figure.axes[0].lines[-1].get_ydata()
    assert np.isnan(gap[0])
    assert gap[1] == 0.125


def test_methods_look_different():
    many = {f"method {number}": {"stem": 0.5} for number in range(20)}
    lines = energy_figure(many).axes[0].lines[1:]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 20


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ({}, "no energies"),
        ({"gptq": {}}, "no energies"),
        ({"gptq": {"stem": 0.0}}, "'gptq' has energy ratio 0.0 on 'stem'"),
        ({"gptq": {"stem": float("nan")}}, "energy ratio nan"),
    ],
)
def test_energies_that_cannot_be_drawn(ratios, message):
    with pytest.raises(ValueError, match=message):
        energy_figure(ratios)


def test_accuracies_are_drawn():
    evaluations = {
        method: Evaluation(500, top1, top1_interval=(top1 - 0.02, top1 + 0.02), agreement=0.9)
        for method, top1 in zip(METHODS, (0.1, 0.66, 0.82, 0.83, 0.85, 0.84), strict=True)
    }
    figure = accuracy_figure(evaluations, float_top1=0.874)
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([10, 66, 82, 83, 85, 84])
    assert [label.get_text() for label in axes.get_yticklabels()] == METHODS
    words = [text.get_text() for text in axes.texts]
    assert "66.0 %  (64.0 to 68.0)" in words
    assert "float 87.4 %" in words
    assert any(np.allclose(line.get_xdata(), 87.4) for line in axes.lines)
    assert "500 images" in axes.get_xlabel()
    assert axes.get_ylim() == (5.5, -0.5)  # the first method on top
    assert_tidy(figure)


def test_agreement_stands_in_for_missing_labels():
    figure = accuracy_figure({"gptq": Evaluation(20, agreement=0.95)}, float_top1=0.9)
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([95])
    assert "agreement" in axes.get_xlabel()
    assert [text.get_text() for text in axes.texts] == ["95.0 %"]
    assert_tidy(figure)


def test_accuracies_that_cannot_be_drawn():
    with pytest.raises(ValueError, match="no evaluations"):
        accuracy_figure({})
    with pytest.raises(ValueError, match="'gptq' has no agreement"):
        accuracy_figure({"nearest": Evaluation(9, agreement=1.0), "gptq": Evaluation(9, top1=1.0)})


@pytest.mark.parametrize(("g", "r", "d"), [(1, 32, 27), (3, 1, 9), (1, 5, 120), (1, 1, 1)])
def test_flips_are_drawn_under_the_gram(g, r, d):
    problem = replace(random_problem(g, r, d), meta={"layer": "_blocks.1._expand_conv"})
    levels = torch.where(problem.target > 0, problem.high, problem.low)
    figure = gram_flips_figure(problem, levels, group=g - 1)
    heat, _, strip = sorted(figure.axes, key=lambda axes: axes.get_ylabel() == "row")
    gram = problem.gram[g - 1]
    length = gram.diagonal().sqrt()
    assert torch.allclose(
        torch.tensor(heat.images[0].get_array()), gram / length[:, None] / length[None, :]
    )
    flips = (levels - problem.nearest())[g - 1, :16].sign()
    assert np.array_equal(strip.images[0].get_array(), flips.numpy())
    assert_tidy(figure)
    over, under = heat.get_position(), strip.get_position()
    assert (over.x0, over.x1) == pytest.approx((under.x0, under.x1))
    assert heat.get_xlim() == strip.get_xlim()


def test_signs_decide_about_the_colours():
    problem = random_problem(1, 2, 6)
    positive = replace(problem, gram=torch.ones(1, 6, 6) + torch.eye(6))
    mixed = replace(problem, gram=torch.eye(6)[None] - 0.1)
    lowest = [
        gram_flips_figure(posed, posed.nearest()).axes[0].images[0].norm.vmin
        for posed in (positive, mixed)
    ]
    assert lowest[0] == 0
    assert lowest[1] < 0


def test_columns_that_nothing_flows_into_are_blank():
    problem = random_problem(1, 2, 4)
    gram = problem.gram.clone()
    gram[:, 1], gram[:, :, 1] = 0, 0
    figure = gram_flips_figure(replace(problem, gram=gram), problem.low)
    correlation = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    assert np.isnan(correlation[1]).all()
    assert np.isfinite(correlation[[0, 2, 3], 0]).all()
    assert_tidy(figure)


@pytest.mark.parametrize(("group", "rows"), [(1, 4), (-1, 4), (0, 0)])
def test_groups_and_rows_that_do_not_exist(group, rows):
    problem = random_problem(1, 2, 4)
    with pytest.raises(ValueError, match="give a group from 0 to 0 and at least one row"):
        gram_flips_figure(problem, problem.low, group=group, rows=rows)
