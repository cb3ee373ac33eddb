"""What a benchmark came to, for people and programs: tables beside published ones, `benchmark.json`, `classes.csv`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipelines.benchmark import AS_SET, Benchmark, Outcome
from pipelines.bottleneck_report import draw_bars, render_bars
from pipelines.segment import describe
from tuning.bottleneck import bars_of, verdict
from tuning.published_figures import published_on
from tuning.semantic_evaluation import SetScores

FIGURES_FILE, CLASSES_FILE = "benchmark.json", "classes.csv"
BOTTLENECK_FILE, CHART_FILE = "bottleneck.json", "bottleneck.png"


def scores_of(benchmark: Benchmark, outcome: Outcome) -> SetScores | None:
    """The figures of the maps as they were asked for; None where no picture was counted, and for a bottleneck."""
    confusion = outcome.sums.get(AS_SET)
    return None if confusion is None else SetScores(benchmark.of.classes, confusion, benchmark.of.seen)


def write_report(benchmark: Benchmark, outcome: Outcome) -> list[str]:
    """Write the figures, and the table or the chart, beside the cells; returns the names of the files."""
    figures: dict[str, Any] = {
        "set": benchmark.of.name,
        "classes": len(benchmark.of.classes),
        "pictures": outcome.pictures,
        "note": benchmark.found.note,
        "not_counted": [{"image_id": image_id, **asdict(rejection)} for image_id, rejection in outcome.rejected],
        **describe(benchmark.settings),
    }
    published = list(_published_json(benchmark.of.name)) if benchmark.found.official else []
    if benchmark.bottleneck:
        bars = bars_of(outcome.sums)
        cases = [bar.as_json() for bar in bars]
        contents = {BOTTLENECK_FILE: _json({**figures, "cases": cases, "published_percent": published})}
        if bars:
            title = f"What limits segmentation: mIoU of {benchmark.of.name}, {len(benchmark.of.classes)} classes"
            contents[CHART_FILE] = draw_bars(bars, title=title)
    else:
        counted = _as_json(scores_of(benchmark, outcome))
        contents = {FIGURES_FILE: _json({**figures, **counted, "published_percent": published})}
        if (scores := scores_of(benchmark, outcome)) is not None:
            contents[CLASSES_FILE] = class_csv(scores).encode()
    for name, content in contents.items():
        with benchmark.run.write(name) as file:
            file.write(content)
    return list(contents)


def render_report(benchmark: Benchmark, outcome: Outcome, *, by_class: bool) -> RenderableType:
    """The tables for a terminal; published figures stand beside those of a whole official set only."""
    counted = outcome.pictures - len(outcome.rejected)
    lines = [f"{benchmark.of.name}: {counted:,} pictures, {len(benchmark.of.classes):,} classes", benchmark.found.note]
    head = Text("\n".join(filter(None, lines)))
    if not outcome.sums:
        return head
    scores = scores_of(benchmark, outcome)
    if scores is None:
        bars = bars_of(outcome.sums)
        own = [(bar.case.name, "all", bar.scores.mean_iou) for bar in bars]
        blocks: list[RenderableType] = [head, render_bars(bars), Text(verdict(bars))]
    else:
        groups = (("all", scores.scores.mean_iou), ("seen", scores.seen_iou), ("unseen", scores.unseen_iou))
        own = [("this run", classes, share) for classes, share in groups]
        blocks = [head, figure_table(scores)]
    if benchmark.found.official:
        blocks += [Text(), published_table(benchmark.of.name, own=own)]
    if scores is not None and by_class:
        blocks += [Text(), class_table(scores)]
    return Group(*blocks)


def figure_table(scores: SetScores) -> Table:
    """The figures of the set in a line."""
    figures = scores.figures()
    table = Table(*figures, box=None, pad_edge=False)
    table.add_row(*map(_percent, figures.values()))
    return table


def published_table(name: str, *, own: Sequence[tuple[str, str, float | None]]) -> Table:
    """One's own figures among the published ones for a set, by mIoU; below it is said where those can be read.

    `own` has for each figure what it is of, over which classes of the set, and its share, None where there is none.
    """
    rows: list[tuple[float, str, str, str, str]] = [
        (value, row.method, row.trained_on, row.classes, f"published: {row.place}") for row, value in published_on(name)
    ]
    rows += [(100 * share, what, "", classes, "measured") for what, classes, share in own if share is not None]
    named = "; ".join(dict.fromkeys(row.source for row, _ in published_on(name)))
    caption = Text(f"published: {named}")
    table = Table("method", "masks learnt from", "classes", box=None, pad_edge=False, caption=caption)
    table.caption_justify = "left"
    table.add_column("mIoU", justify="right")
    table.add_column("", overflow="fold")
    for value, method, trained_on, classes, source in sorted(rows, key=lambda row: row[0]):
        style = "bold" if source == "measured" else None
        table.add_row(method, trained_on, classes, f"{value:.1f}", source, style=style)
    return table


def class_table(scores: SetScores) -> Table:
    """A row for each class that has a pixel, in truth or in a map."""
    table = Table("class", box=None, pad_edge=False)
    for name in ("IoU", "accuracy", "pixels", *(["seen"] if scores.seen is not None else [])):
        table.add_column(name, justify="right")
    for one in scores.by_class():
        if one.iou is not None:
            seen = [] if one.seen is None else ["yes" if one.seen else "no"]
            table.add_row(one.name, _percent(one.iou), _percent(one.accuracy), f"{one.true_px:,}", *seen)
    return table


def class_csv(scores: SetScores) -> str:
    """All classes as CSV; a figure of no pixel is empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["label", "class", "seen", "iou", "accuracy", "true_pixels", "predicted_pixels"])
    for label, one in enumerate(scores.by_class()):
        seen = "" if one.seen is None else str(one.seen).lower()
        shares = ("" if share is None else f"{share:.6f}" for share in (one.iou, one.accuracy))
        writer.writerow([label, one.name, seen, *shares, one.true_px, one.predicted_px])
    return file.getvalue()


def _as_json(scores: SetScores | None) -> dict[str, Any]:
    return {
        "figures": None if scores is None else {name: _rounded(value) for name, value in scores.figures().items()},
        "by_class": [] if scores is None else [_class_json(one) for one in scores.by_class()],
    }


def _class_json(one: Any) -> dict[str, Any]:
    return {**asdict(one), "iou": _rounded(one.iou), "accuracy": _rounded(one.accuracy)}


def _published_json(name: str) -> Iterator[dict[str, Any]]:
    for row, miou in published_on(name):
        yield {
            "method": row.method,
            "trained_on": row.trained_on,
            "classes": row.classes,
            "miou": miou,
            "source": f"{row.source}, {row.place}",
        }


def _json(figures: dict[str, Any]) -> bytes:
    return (json.dumps(figures, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def names_of_rejected(outcome: Outcome, *, most: int) -> Sequence[str]:
    """A line for each picture that was not counted, up to `most`, and one for them all; none where all were counted."""
    if not outcome.rejected:
        return []
    lines = [f"{image_id}: {one.reason} ({one.detail})" for image_id, one in outcome.rejected[:most]]
    rest = len(outcome.rejected) - most
    lines += [f"… and {rest:,} more, see the JSON"] * (rest > 0)
    return [*lines, f"{len(outcome.rejected):,} of {outcome.pictures:,} pictures are not in these figures"]
