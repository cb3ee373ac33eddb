"""The curves of the page, as `<svg>` in the colours of the page that they stand in (`var(--ink)` …)."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pipelines.evaluate_pairs import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMES = {"#010203": "ink", "#040506": "faint", "#0072b2": "similarity", "#d55e00": "margin"}
_INK, _FAINT, *_SERIES = _NAMES
_MEAN_OF = 10  # steps


def curve_svg(curves: Sequence[Curve]) -> str:
    """Precision against coverage."""

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import PercentFormatter

        for curve, colour in zip(curves, _SERIES, strict=False):
            coverage = [point.coverage for point in curve.points]
            low, high = zip(*(point.precision.interval for point in curve.points), strict=True)
            axes.fill_between(coverage, low, high, color=colour, alpha=0.14, linewidth=0)
            axes.plot(coverage, [point.precision.value or 0 for point in curve.points], color=colour, linewidth=2)
            axes.plot(curve.half.coverage, curve.half.precision.value or 0, "o", color=colour, markersize=7)
        lowest = min(point.precision.value or 0 for curve in curves for point in curve.points)
        axes.set(xlim=(0, 1), ylim=(max(0, lowest - 0.1), 1.01))
        axes.set_xlabel("share of the pairs that is kept", color=_INK)
        axes.set_ylabel("share of these that is right", color=_INK)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    return _svg(draw)


def loss_svg(losses: Sequence[tuple[int, float]]) -> str:
    """The loss of batches against their steps, and its mean over the last ten that are known."""
    steps, values = zip(*losses, strict=True)
    means = [sum(values[max(0, end - _MEAN_OF) : end]) / min(end, _MEAN_OF) for end in range(1, len(values) + 1)]

    def draw(axes: Axes) -> None:
        axes.plot(steps, values, color=_SERIES[0], alpha=0.35, linewidth=1)
        axes.plot(steps, means, color=_SERIES[0], linewidth=2)
        axes.set(xlim=(0, steps[-1]), ylim=(0, 1.05 * max(values)))
        axes.set_xlabel("step", color=_INK)
        axes.set_ylabel("loss", color=_INK)

    return _svg(draw)


def _svg(draw: Callable[[Axes], None]) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.9, 3.3), layout="constrained", facecolor="none")
    axes = figure.subplots()
    axes.set_facecolor("none")
    draw(axes)
    axes.grid(color=_FAINT, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(_FAINT)
    axes.tick_params(colors=_FAINT)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "maskmine"}):
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(r'<g id="[^"]*">', "<g>", text[text.index("<svg") :])  # two charts of a page would share these names
    for colour, name in _NAMES.items():
        text = text.replace(colour, f"var(--{name})")
    return text
