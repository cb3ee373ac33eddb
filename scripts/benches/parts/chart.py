"""The picture of docs/performance.md: shares of the stages in the time of a part, from what `bench part` measured.

bash scripts/bench part --json part.json
.venv/bin/python -m maskmine.scripts.benches.parts.chart part.json docs/images/part-time.png
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from maskmine.schemas.errors import InputError
from maskmine.scripts.benches.gates.alone import read_measures
from maskmine.scripts.benches.parts.part_time import DEMO, PAPER
from maskmine.scripts.benches.parts.stages import CUT, NOUNS, ON_DEVICE, PROPOSE, STAGES, WRITE_DECODE
from maskmine.scripts.command import run_command
from maskmine.scripts.measures import Measure

_COLOURS = (
    *("#56b4e9", "#0072b2", "#7d5ba6", "#cc79a7", "#e69f00", "#f3d08a"),  # the regions
    *("#009e73", "#5fc3a5", "#a9dfcd"),  # nouns, vocabulary, pairs
    *("#a33b00", "#d55e00", "#e98b4e", "#f3b48b", "#f9d7c0"),  # the shards
    "#bbbbbb",
)
_DARK = (PROPOSE, CUT, NOUNS, WRITE_DECODE)
_NAMED_FROM = 0.06
"""The share of a bar from which a stage is named in it; the others are in the legend."""


@dataclass(frozen=True, slots=True)
class Bar:
    """Core seconds of stages for a part."""

    title: str
    seconds: Mapping[str, float]

    @property
    def total_s(self) -> float:
        """Of all stages."""
        return sum(self.seconds.values())


def main(
    measures: Annotated[Path, typer.Argument(help="What `bash scripts/bench part --json FILE` wrote.")],
    to: Annotated[Path, typer.Argument(help="The picture, .png or .svg.")],
) -> None:
    """Draw the picture of where the time of a part goes."""
    try:
        measured = read_measures(measures)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{measures}: no measures of `bench part --json` ({error})") from error
    draw_bars(bars_of(measured), to)


def bars_of(measures: Sequence[Measure]) -> list[Bar]:
    """A bar for each of the models, and what is left of the larger ones for the CPU beside a GPU.

    Raises InputError for the measures of something else.
    """
    values = {measure.name: measure.value for measure in measures}
    try:
        demo, paper = ({stage: values[f"{name}: {stage}"] for stage in STAGES} for name in (DEMO, PAPER))
    except KeyError as error:
        raise InputError(f"no measure {error} among these; is it all of `bench part`?") from error
    beside = {stage: taken_s for stage, taken_s in paper.items() if stage not in ON_DEVICE}
    return [Bar("tiny models, CPU", demo), Bar(f"{PAPER}, CPU", paper), Bar("the same, CPU beside a GPU", beside)]


def draw_bars(bars: Sequence[Bar], to: Path) -> None:
    """The stages of each bar as shares of its length, with core seconds beside it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained", facecolor="white")
    axes = figure.subplots()
    colours = dict(zip(STAGES, _COLOURS, strict=True))
    for row, bar in enumerate(bars):
        left = 0.0
        for stage, taken_s in bar.seconds.items():
            share = max(0.0, taken_s / bar.total_s)
            axes.barh(row, share, left=left, height=0.62, color=colours[stage], edgecolor="white", linewidth=0.6)
            if share >= _NAMED_FROM:
                text = stage.replace(": ", ":\n").replace(" ", "\n", 1) if share < 2 * _NAMED_FROM else stage
                ink = "white" if stage in _DARK else "black"
                axes.text(left + share / 2, row, text, ha="center", va="center", fontsize=7.5, color=ink)
            left += share
        axes.text(1.01, row, f"{float(f'{bar.total_s:.3g}'):,g} core s", va="center")
    for stage in STAGES:
        axes.barh(0, 0, color=colours[stage], label=stage)
    axes.set(xlim=(0, 1), yticks=range(len(bars)), yticklabels=[bar.title for bar in bars])
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.set_title("A part of 1,000 images: shares of its core seconds", loc="left", fontsize=10)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.savefig(to, dpi=110, metadata={"Software": None} if to.suffix == ".png" else None)


if __name__ == "__main__":
    run_command(main, name="chart")
