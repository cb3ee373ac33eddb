"""Axes say what their ticks are, on every chart of the tree."""

from __future__ import annotations

import re

import pytest
from matplotlib.figure import Figure

from maskmine.pipelines.reports.charts import Histogram, histogram_svg, zipf_svg
from maskmine.tuning.ticks import log_ticks, percent_ticks
from tests.support.paths import ROOT


@pytest.mark.parametrize(("low", "high"), [(0.85, 0.99), (0.0, 1.0), (0.12, 0.9), (0.99, 0.9991), (0.333, 0.334)])
def test_a_percentage_is_that_of_its_tick(low: float, high: float) -> None:
    axes = Figure().subplots()
    axes.set_ylim(low, high)
    percent_ticks(axes.yaxis)
    ticks, labels = axes.get_yticks(), [label.get_text() for label in axes.get_yticklabels()]
    assert [float(label.removesuffix("%")) / 100 for label in labels] == pytest.approx(list(ticks), abs=1e-9)
    assert len(set(labels)) == len(labels)


def test_two_and_a_half_percent_steps_are_not_rounded() -> None:
    axes = Figure().subplots()
    axes.set_yticks([0.875, 0.9, 0.925, 0.95, 0.975])
    percent_ticks(axes.yaxis)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["87.5%", "90%", "92.5%", "95%", "97.5%"]


@pytest.mark.parametrize(("low", "high"), [(1, 4), (0.8, 30), (3, 9), (1, 10**5), (0.002, 0.05)])
def test_a_logarithmic_axis_has_plain_numbers(low: float, high: float) -> None:
    axes = Figure().subplots()
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    log_ticks(axes.yaxis)
    shown = 0
    for minor in (False, True):
        for tick, label in zip(axes.get_yticks(minor=minor), axes.get_yticklabels(minor=minor), strict=True):
            if label.get_text():
                assert float(label.get_text().replace(",", "")) == pytest.approx(tick)
                shown += low <= tick <= high
    assert shown >= 2


def test_shares_on_a_logarithmic_axis_are_percentages_on_every_tick() -> None:
    axes = Figure().subplots()
    axes.set_xscale("log")
    axes.set_xlim(0.01, 0.3)
    log_ticks(axes.xaxis, shares=True)
    labels = [label.get_text() for minor in (False, True) for label in axes.get_xticklabels(minor=minor)]
    assert {"1%", "10%", "2%"} <= set(labels)
    assert all(label.endswith("%") for label in labels if label)


def test_charts_of_small_sets_have_no_powers_of_ten() -> None:
    charts = [
        zipf_svg([(1, 4), (2, 3), (3, 1)]),
        histogram_svg(Histogram((0.01, 0.02, 0.04), (3, 1)), of="area", logarithmic=True, percent=True),
        histogram_svg(Histogram((20.0, 40.0, 80.0), (3, 1)), of="side", logarithmic=True),
    ]
    for chart in charts:
        assert not re.search(r"\\times|×|mathdefault|10\^", chart)


def test_no_chart_rounds_its_ticks() -> None:
    """matplotlib's own percentages round, and its logarithms are powers of ten: `tuning/ticks.py` is for all."""
    for layer in ("mining", "tuning", "pipelines", "scripts"):
        for path in (ROOT / layer).rglob("*.py"):
            text = path.read_text()
            assert "PercentFormatter" not in text, path
            if re.search(r"\.(loglog|semilog[xy])\(|scale\(\"log\"\)", text):
                assert "log_ticks" in text, path
