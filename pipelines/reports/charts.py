"""Charts of a page, as `<svg>` in the colours of that page (`var(--ink)` …)."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maskmine.mining.evaluation.pair_metrics import SCORES, Curve
from maskmine.tuning.ticks import log_ticks, percent_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Text and axes have placeholder colours, which become CSS variables of the page; the series are Okabe and Ito's.
INK, FAINT, *SERIES = _COLOURS = ("#010203", "#040506", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")
# The CSS variables that replace the colours.
_NAMES = dict(zip(_COLOURS, ("ink", "faint", "series-1", "series-2", "series-3", "series-4", "series-5"), strict=True))


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of values between neighbouring `edges`, of which there is one more."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


def series_of(curve: Curve) -> int:
    """The place of a curve's score among all scores, from 1: it has the colour `var(--series-…)` on every page."""
    return SCORES.index(curve.score) + 1


def curve_svg(curves: Sequence[Curve]) -> str:
    """Precision against coverage."""

    def draw(axes: Axes) -> None:
        for curve in curves:
            colour = SERIES[series_of(curve) - 1]
            coverage = [point.coverage for point in curve.points]
            low, high = zip(*(point.precision.interval for point in curve.points), strict=True)
            axes.fill_between(coverage, low, high, color=colour, alpha=0.14, linewidth=0)
            axes.plot(coverage, [point.precision.value or 0 for point in curve.points], color=colour, linewidth=2)
            axes.plot(curve.half.coverage, curve.half.precision.value or 0, "o", color=colour, markersize=7)
        lowest = min(point.precision.value or 0 for curve in curves for point in curve.points)
        axes.set(xlim=(0, 1), ylim=(max(0, lowest - 0.1), 1.01))
        axes.set_xlabel("share of the pairs that is kept", color=INK)
        axes.set_ylabel("share of these that is right", color=INK)
        percent_ticks(axes.xaxis)
        percent_ticks(axes.yaxis)

    return svg(draw)


def zipf_svg(counts: Sequence[tuple[int, int]], *, of: str = "pairs of the noun") -> str:
    """`(rank, count)` of words, the most frequent first, on logarithmic axes."""
    ranks, values = zip(*counts, strict=True)

    def draw(axes: Axes) -> None:
        axes.loglog(ranks, values, color=SERIES[0], linewidth=2, marker="o", markersize=2.5)
        axes.set_ylim(bottom=0.8)
        axes.set_xlabel("rank of the noun", color=INK)
        axes.set_ylabel(of, color=INK)
        log_ticks(axes.xaxis)
        log_ticks(axes.yaxis)

    return svg(draw)


def histogram_svg(
    histogram: Histogram,
    *,
    of: str,
    colour: int = 0,
    logarithmic: bool = False,
    percent: bool = False,
    within: Histogram | None = None,
) -> str:
    """Bars. `logarithmic`: of the values; `percent`: they are shares; `within`: a larger set, drawn as an outline."""
    low, high = histogram.edges[0], histogram.edges[-1]

    def draw(axes: Axes) -> None:
        axes.stairs(histogram.counts, histogram.edges, fill=True, color=SERIES[colour], alpha=0.75)
        if within is not None:
            axes.stairs(within.counts, within.edges, color=FAINT, linewidth=1.4)
        if logarithmic:
            axes.set_xscale("log")
            log_ticks(axes.xaxis, shares=percent)
        elif percent:
            percent_ticks(axes.xaxis)
        axes.set_xlim(low, high)
        axes.set_xlabel(of, color=INK)
        axes.set_ylabel("pairs", color=INK)
        axes.yaxis.set_major_formatter(lambda count, _: f"{count:,.0f}" if count == round(count) else "")

    return svg(draw)


def svg(draw: Callable[[Axes], None]) -> str:
    """A chart as `<svg>`, without ids, which another chart of the page could have too."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.3, 2.95), layout="constrained", facecolor="none")
    axes = figure.subplots()
    axes.set_facecolor("none")
    draw(axes)
    axes.grid(color=FAINT, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(FAINT)
    axes.tick_params(colors=FAINT, which="both")
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "maskmine"}):
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    text = buffer.getvalue()
    text = re.sub(r'<g id="[^"]*">', "<g>", text[text.index("<svg") :])
    for colour, name in _NAMES.items():
        text = text.replace(colour, f"var(--{name})")
    return text
