"""Charts of a page, as `<svg>` in the colours of the page that they stand in (`var(--ink)` …)."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.evaluate_pairs import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT, *SERIES = _COLOURS = ("#010203", "#040506", "#0072b2", "#d55e00")
_NAMES = dict(zip(_COLOURS, ("ink", "faint", "similarity", "margin"), strict=True))


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of values between neighbouring `edges`, of which there is one more."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


def curve_svg(curves: Sequence[Curve]) -> str:
    """Precision against coverage."""

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import PercentFormatter

        for curve, colour in zip(curves, SERIES, strict=False):
            coverage = [point.coverage for point in curve.points]
            low, high = zip(*(point.precision.interval for point in curve.points), strict=True)
            axes.fill_between(coverage, low, high, color=colour, alpha=0.14, linewidth=0)
            axes.plot(coverage, [point.precision.value or 0 for point in curve.points], color=colour, linewidth=2)
            axes.plot(curve.half.coverage, curve.half.precision.value or 0, "o", color=colour, markersize=7)
        lowest = min(point.precision.value or 0 for curve in curves for point in curve.points)
        axes.set(xlim=(0, 1), ylim=(max(0, lowest - 0.1), 1.01))
        axes.set_xlabel("share of the pairs that is kept", color=INK)
        axes.set_ylabel("share of these that is right", color=INK)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    return svg(draw)


def zipf_svg(counts: Sequence[tuple[int, int]], *, of: str = "pairs of the noun") -> str:
    """`(rank, count)` of words, the commonest first, on logarithmic axes."""
    ranks, values = zip(*counts, strict=True)

    def draw(axes: Axes) -> None:
        axes.loglog(ranks, values, color=SERIES[0], linewidth=2, marker="o", markersize=2.5)
        axes.set_ylim(bottom=0.8)
        axes.set_xlabel("rank of the noun", color=INK)
        axes.set_ylabel(of, color=INK)
        _plain_numbers(axes, "xy")

    return svg(draw)


def histogram_svg(
    histogram: Histogram, *, of: str, colour: int = 0, logarithmic: bool = False, percent: bool = False
) -> str:
    """Bars. `logarithmic`: of the values; `percent`: they are shares."""
    low, high = histogram.edges[0], histogram.edges[-1]

    def draw(axes: Axes) -> None:
        axes.stairs(histogram.counts, histogram.edges, fill=True, color=SERIES[colour], alpha=0.75)
        if logarithmic:
            axes.set_xscale("log")
        if percent:
            axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        axes.set_xlim(low, high)
        axes.set_xlabel(of, color=INK)
        axes.set_ylabel("pairs", color=INK)
        _plain_numbers(axes, "y")

    return svg(draw)


def svg(draw: Callable[[Axes], None]) -> str:
    """What `draw` draws on the axes, without names that a second chart of the page could have too."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.9, 3.3), layout="constrained", facecolor="none")
    axes = figure.subplots()
    axes.set_facecolor("none")
    draw(axes)
    axes.grid(color=FAINT, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(FAINT)
    axes.tick_params(colors=FAINT, which="both")
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "maskmine"}):
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(r'<g id="[^"]*">', "<g>", text[text.index("<svg") :])
    for colour, name in _NAMES.items():
        text = text.replace(colour, f"var(--{name})")
    return text


def _plain_numbers(axes: Axes, which: str) -> None:
    for name in which:
        axis = axes.xaxis if name == "x" else axes.yaxis
        axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value == round(value) else "")
