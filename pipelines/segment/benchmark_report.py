"""The result of a benchmark: tables beside published results, `benchmark.json` and `classes.csv`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from maskmine.pipelines.segment.benchmark import AS_SET, Benchmark, BenchmarkResult
from maskmine.pipelines.segment.oracle_report import draw_cases, render_cases
from maskmine.pipelines.segment.segment import describe, write_files
from maskmine.tuning.benchmarks.published_results import published_on
from maskmine.tuning.console import TextTable
from maskmine.tuning.segmentation.evaluation import SetScores, repeated_names
from maskmine.tuning.segmentation.oracle import scores_by_case, verdict
from maskmine.tuning.tables import percent, rounded

FIGURES_FILE, CLASSES_FILE = "benchmark.json", "classes.csv"
ORACLE_FILE, CHART_FILE = "bottleneck.json", "bottleneck.png"


def scores_of(benchmark: Benchmark, result: BenchmarkResult) -> SetScores | None:
    """The scores of the maps as set; None where no image was counted, and for an oracle analysis."""
    confusion = result.sums.get(AS_SET)
    return None if confusion is None else SetScores(benchmark.dataset.classes, confusion, benchmark.dataset.seen)


def write_report(benchmark: Benchmark, result: BenchmarkResult) -> list[str]:
    """Write the figures, and the table or the chart, beside the cells; returns the names of the files."""
    dataset, scores = benchmark.dataset, scores_of(benchmark, result)
    figures: dict[str, Any] = {
        "set": dataset.name,
        "classes": len(dataset.classes),
        "pictures": result.images,
        "note": benchmark.benchmark_set.note,
        "not_counted": [{"image_id": image_id, **asdict(rejection)} for image_id, rejection in result.rejected],
        **describe(benchmark.settings),
    }
    published = list(_published_json(dataset.name)) if benchmark.benchmark_set.official else []
    contents: dict[str, bytes] = {}
    if benchmark.oracle:
        cases = scores_by_case(result.sums)
        figures |= {"cases": [case.as_json() for case in cases], "published_percent": published}
        contents[ORACLE_FILE] = _json(figures)
        if cases:
            title = f"What limits segmentation: mIoU of {dataset.name}, {len(dataset.classes)} classes"
            contents[CHART_FILE] = draw_cases(cases, title=title)
    else:
        contents[FIGURES_FILE] = _json({**figures, **_scores_json(scores), "published_percent": published})
        if scores is not None:
            contents[CLASSES_FILE] = _class_csv(scores).encode()
    write_files(benchmark.run, contents)
    return list(contents)


def render_report(benchmark: Benchmark, result: BenchmarkResult, *, by_class: bool) -> RenderableType:
    """Tables for a terminal; published results are shown beside those of a whole official set only."""
    dataset, scores = benchmark.dataset, scores_of(benchmark, result)
    counted = result.images - len(result.rejected)
    lines = [f"{dataset.name}: {counted:,} pictures, {len(dataset.classes):,} classes", benchmark.benchmark_set.note]
    head = Text("\n".join(filter(None, lines)))
    if not result.sums:
        return head
    if scores is None:
        cases = scores_by_case(result.sums)
        measured = [(one.case.name, "all", one.scores.mean_iou) for one in cases]
        blocks: list[RenderableType] = [head, render_cases(cases), Text(verdict(cases))]
    else:
        groups = (("all", scores.scores.mean_iou), ("seen", scores.seen_iou), ("unseen", scores.unseen_iou))
        measured = [("this run", classes, share) for classes, share in groups]
        blocks = [head, _figure_table(scores), *map(Text, _notes(scores))]
    if benchmark.benchmark_set.official:
        blocks += [Text(), _published_table(dataset.name, measured=measured)]
    if scores is not None and by_class:
        blocks += [Text(), _class_table(scores)]
    return Group(*blocks)


def lines_of_rejected(result: BenchmarkResult, *, limit: int) -> Sequence[str]:
    """A line for each image that was not counted, up to `limit`, and a last one with their number; none without any."""
    if not result.rejected:
        return []
    lines = [f"{image_id}: {one.reason} ({one.detail})" for image_id, one in result.rejected[:limit]]
    rest = len(result.rejected) - limit
    lines += [f"… and {rest:,} more, see the JSON"] * (rest > 0)
    return [*lines, f"{len(result.rejected):,} of {result.images:,} pictures are not in these figures"]


def _figure_table(scores: SetScores) -> TextTable:
    figures = scores.figures()
    table = TextTable(*figures, box=None, pad_edge=False)
    table.add_row(*map(percent, figures.values()))
    return table


def _notes(scores: SetScores) -> Iterator[str]:
    """What the means leave out, and which classes cannot be found."""
    classes, counted = len(scores.classes), scores.classes_in_mean
    if counted < classes:
        yield f"mIoU: the mean of {counted:,} classes; {classes - counted:,} have no pixel, annotated or predicted"
    if repeated := repeated_names(scores.classes):
        yield (
            f"{len(repeated):,} classes have the name of an earlier one, such as {repeated[0]}; they are never found, "
            "and count as wrong"
        )


def _published_table(name: str, *, measured: Sequence[tuple[str, str, float | None]]) -> TextTable:
    """Measured and published results for a set by mIoU, with their sources below.

    `measured` has the method, its classes ("all", "seen", "unseen") and the share, None where there is none.
    """
    published = list(published_on(name))
    rows: list[tuple[float, str, str, str, str]] = [
        (miou, row.method, row.trained_on, row.classes, f"published: {row.location}") for row, miou in published
    ]
    rows += [(100 * share, method, "", classes, "measured") for method, classes, share in measured if share is not None]
    caption = Text(f"published: {'; '.join(dict.fromkeys(row.source for row, _ in published))}")
    table = TextTable("method", "masks learnt from", "classes", box=None, pad_edge=False, caption=caption)
    table.caption_justify = "left"
    table.add_column("mIoU", justify="right")
    table.add_column("", overflow="fold")
    for miou, method, trained_on, classes, source in sorted(rows, key=lambda row: row[0]):
        style = "bold" if source == "measured" else None
        table.add_row(method, trained_on, classes, f"{miou:.1f}", source, style=style)
    return table


def _class_table(scores: SetScores) -> TextTable:
    """A row for each class with a pixel in the annotations or in a map."""
    table = TextTable("class", box=None, pad_edge=False)
    for name in ("IoU", "accuracy", "pixels", *(["seen"] if scores.seen is not None else [])):
        table.add_column(name, justify="right")
    for one in scores.by_class():
        if one.iou is not None:
            seen = [] if one.seen is None else ["yes" if one.seen else "no"]
            table.add_row(one.name, percent(one.iou), percent(one.accuracy), f"{one.true_px:,}", *seen)
    return table


def _class_csv(scores: SetScores) -> str:
    """All classes as CSV; undefined scores are empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["label", "class", "seen", "iou", "accuracy", "true_pixels", "predicted_pixels"])
    for label, one in enumerate(scores.by_class()):
        seen = "" if one.seen is None else str(one.seen).lower()
        shares = ("" if share is None else f"{share:.6f}" for share in (one.iou, one.accuracy))
        writer.writerow([label, one.name, seen, *shares, one.true_px, one.predicted_px])
    return file.getvalue()


def _scores_json(scores: SetScores | None) -> dict[str, Any]:
    if scores is None:
        return {"figures": None, "by_class": []}
    by_class = (
        {**asdict(one), "iou": rounded(one.iou), "accuracy": rounded(one.accuracy)} for one in scores.by_class()
    )
    return {
        "figures": {name: rounded(value) for name, value in scores.figures().items()},
        "classes_in_mean": scores.classes_in_mean,
        "by_class": list(by_class),
    }


def _published_json(name: str) -> Iterator[dict[str, Any]]:
    for row, miou in published_on(name):
        yield {
            "method": row.method,
            "trained_on": row.trained_on,
            "classes": row.classes,
            "miou": miou,
            "source": f"{row.source}, {row.location}",
        }


def _json(figures: dict[str, Any]) -> bytes:
    return (json.dumps(figures, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace")
