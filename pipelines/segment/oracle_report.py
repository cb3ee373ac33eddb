"""The oracle analysis of segmentation as a table and as a chart."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from maskmine.tuning.console import TextTable
from maskmine.tuning.segmentation.oracle import CaseScores
from maskmine.tuning.tables import number_table, percent
from maskmine.tuning.ticks import percent_ticks

_INK, _FAINT = "#282a30", "#62656e"
_COLOURS = {  # the palette of Okabe and Ito, for any colour vision
    "CLIP on masked crops": "#0072b2",
    "CLIP on unmasked crops": "#56b4e9",
    "true classes": "#009e73",
    "true classes, softly": "#66c2a5",
}


def render_cases(cases: Sequence[CaseScores]) -> TextTable:
    """The scores of every case as a table."""
    table = number_table("masks and classes", "mIoU", "fwIoU", "mACC", "pACC")
    for one in cases:
        scores = one.scores
        shares = (scores.mean_iou, scores.weighted_iou, scores.mean_accuracy, scores.pixel_accuracy)
        table.add_row(one.case.name, *map(percent, shares))
    return table


def draw_cases(cases: Sequence[CaseScores], *, title: str) -> bytes:
    """The mIoU of every case as a PNG with horizontal bars."""
    from matplotlib.figure import Figure

    # Bars, with their shares at the end.
    figure = Figure(figsize=(8, 0.9 + 0.55 * len(cases)), dpi=150, layout="constrained")
    axes = figure.subplots()
    names, shares = [one.case.name for one in cases], [one.scores.mean_iou or 0.0 for one in cases]
    bars = axes.barh(names, shares, height=0.62, color=[_COLOURS[one.case.classifier] for one in cases])
    axes.bar_label(bars, [f"{share:.1%}" for share in shares], padding=5, color=_INK, fontsize=11)
    axes.invert_yaxis()

    # A quiet frame: a percent axis below, a faint grid, no box.
    axes.set(xlim=(0, 1.12), xticks=np.linspace(0, 1, 6))
    percent_ticks(axes.xaxis)
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
