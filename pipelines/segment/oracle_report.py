"""The bottleneck of segmentation as a table and as a chart."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from rich.table import Table

from tuning.bottleneck import Bar

_INK, _FAINT = "#282a30", "#7d8088"
_COLOURS = {  # Okabe and Ito's
    "CLIP on masked crops": "#0072b2",
    "CLIP on unmasked crops": "#56b4e9",
    "true classes": "#009e73",
    "true classes, softly": "#66c2a5",
}


def render_bars(bars: Sequence[Bar]) -> Table:
    """The figures as a table."""
    table = Table("masks and classes", box=None, pad_edge=False)
    for name in ("mIoU", "fwIoU", "mACC", "pACC"):
        table.add_column(name, justify="right")
    for bar in bars:
        scores = bar.scores
        shares = (scores.mean_iou, scores.weighted_iou, scores.mean_accuracy, scores.pixel_accuracy)
        table.add_row(bar.case.name, *("–" if share is None else f"{share:.1%}" for share in shares))
    return table


def draw_bars(bars: Sequence[Bar], *, title: str) -> bytes:
    """The mIoU of every case as a PNG with horizontal bars."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(8, 0.9 + 0.55 * len(bars)), dpi=150, layout="constrained")
    axes = figure.subplots()
    shares = [bar.scores.mean_iou or 0.0 for bar in bars]
    drawn = axes.barh(
        [bar.case.name for bar in bars],
        shares,
        height=0.62,
        color=[_COLOURS[bar.case.classifier] for bar in bars],
        alpha=1.0,
    )
    axes.bar_label(drawn, [f"{share:.1%}" for share in shares], padding=5, color=_INK, fontsize=11)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.12), xticks=np.linspace(0, 1, 6))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="x", color=_FAINT, alpha=0.2, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set(color=_FAINT, bounds=(0, 1))
    axes.tick_params(axis="x", colors=_FAINT, labelsize=9)
    axes.tick_params(axis="y", length=0, labelcolor=_INK, labelsize=11)
    figure.suptitle(title, x=0.01, ha="left", color=_INK, fontsize=13)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
