"""The chart that only the demo report has; the others are in `pipelines/reports/charts.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from maskmine.pipelines.reports.charts import INK, SERIES, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MEAN_OF = 10  # steps


def loss_svg(losses: Sequence[tuple[int, float]]) -> str:
    """The loss of batches against their steps, and its mean over the last ten that are known."""
    steps, values = zip(*losses, strict=True)
    means = [sum(values[max(0, end - _MEAN_OF) : end]) / min(end, _MEAN_OF) for end in range(1, len(values) + 1)]

    def draw(axes: Axes) -> None:
        axes.plot(steps, values, color=SERIES[0], alpha=0.35, linewidth=1)
        axes.plot(steps, means, color=SERIES[0], linewidth=2)
        axes.set(xlim=(0, steps[-1]), ylim=(0, 1.05 * max(values)))
        axes.set_xlabel("step", color=INK)
        axes.set_ylabel("loss", color=INK)

    return svg(draw)
