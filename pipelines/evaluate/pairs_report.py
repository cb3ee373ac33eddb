"""The evaluation of pairs: tables for a terminal, evaluation.json and a plot of the curves in a folder."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from maskmine.mining.evaluation.pair_metrics import LABELLED, SCORES, Curve, GroupMetrics, Share
from maskmine.mining.storage.files import put_whole
from maskmine.pipelines.evaluate.pairs import Evaluation
from maskmine.pipelines.run_folder.claim import claim_folder, writing
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.wording import counted
from maskmine.tuning.console import TextTable
from maskmine.tuning.tables import number_table, percent
from maskmine.tuning.ticks import percent_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURES_FILE, CURVES_FILE = "evaluation.json", "precision-coverage.png"
_NAMED_NOUNS = 5  # unlabelled nouns listed on the terminal; the JSON has more
_DOTS_PER_INCH = 150  # sharp in a document
_INK, _FAINT = "#282a30", "#62656e"  # text, and axes that step back behind the curves
# Of Okabe and Ito's palette, as in the contact sheet.
_COLOURS = dict(zip(SCORES, ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9"), strict=False))
_PANEL_INCHES, _HEIGHT_INCHES = 5.5, 4.8


def write_evaluation(evaluation: Evaluation, to: Path, *, run: RunFolder) -> list[str]:
    """Write evaluation.json and, where there are curves, precision-coverage.png; returns the names of both.

    Curves of an earlier evaluation are removed where this one has none. Raises InputError as `claim_folder` does.
    """
    claim_folder(to, run=run)
    with writing(to):
        text = json.dumps(evaluation.as_json(), indent=2, ensure_ascii=False)
        put_whole(to / FIGURES_FILE, f"{text}\n".encode())
        if not evaluation.curves_of_all:
            (to / CURVES_FILE).unlink(missing_ok=True)
            return [FIGURES_FILE]
        put_whole(to / CURVES_FILE, draw_curves(evaluation))
    return [FIGURES_FILE, CURVES_FILE]


def render_evaluation(evaluation: Evaluation) -> RenderableType:
    """The metrics as tables, then notes on what they mean and what was left out of them."""
    groups = _groups([*evaluation.frequency, *evaluation.training])
    blocks: list[RenderableType] = [_metrics(evaluation), Text(), groups]
    for name, _, curves in _populations(evaluation):
        blocks += [Text(), _thresholds(curves, of=name)]
    notes = [Text(note) for note in _notes(evaluation)]
    return Group(*blocks, *([Text(), *notes] if notes else []))


def draw_curves(evaluation: Evaluation) -> bytes:
    """Precision against coverage as a PNG, with 95% intervals and a dot where half of the pairs are kept.

    All pairs are in the first panel; those of known nouns in a second one, where they are not the same.
    """
    from matplotlib.figure import Figure

    panels = list(_populations(evaluation))
    size = (_PANEL_INCHES * max(len(panels), 1.25), _HEIGHT_INCHES)
    figure = Figure(figsize=size, dpi=_DOTS_PER_INCH, layout="constrained")
    axes_of_panels = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (name, precision, curves) in zip(axes_of_panels, panels, strict=True):
        _draw_panel(axes, curves)
        title = f"{name}: {percent(precision.value)} of {precision.of:,} right"
        axes.set_title(title, loc="left", color=_INK)
    points = [point for _, _, curves in panels for curve in curves for point in curve.points]
    lowest = min(point.precision.value or 0 for point in points)
    axes_of_panels[0].set(ylim=(max(0, lowest - 0.05), 1.005), ylabel="precision: share of these that is right")
    figure.supxlabel(
        f"judged by {evaluation.annotations.name}; dots: where half of the pairs are kept; bands: 95% intervals",
        fontsize="small",
        color=_FAINT,
    )
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _draw_panel(axes: Axes, curves: Sequence[Curve]) -> None:
    """A line, its interval and a dot for each score, and the legend below."""
    for curve in curves:
        coverage = [point.coverage for point in curve.points]
        low, high = zip(*(point.precision.interval for point in curve.points), strict=True)
        colour = _COLOURS[curve.score]
        axes.fill_between(coverage, low, high, color=colour, alpha=0.1, linewidth=0)
        axes.plot(coverage, [point.precision.value or 0 for point in curve.points], color=colour, linewidth=1.8)
        label = f"{curve.score} ≥ {curve.half.threshold:.4f}: {percent(curve.half.precision.value)} right"
        half = (curve.half.coverage, curve.half.precision.value or 0)
        axes.plot(*half, "o", color=colour, markeredgecolor="white", label=label)
    axes.set(xlim=(0, 1), xlabel="coverage: share of the pairs that is kept")
    percent_ticks(axes.xaxis)
    percent_ticks(axes.yaxis)
    axes.grid(color=_FAINT, alpha=0.2, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(_FAINT)
    axes.tick_params(colors=_FAINT)
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), frameon=False, borderaxespad=0)


def _populations(evaluation: Evaluation) -> Iterator[tuple[str, Share, Sequence[Curve]]]:
    """Name, precision and curves of all pairs and, where these are others, of pairs of known nouns."""
    if evaluation.curves_of_all:
        yield "all pairs", evaluation.precision_of_all, evaluation.curves_of_all
    if evaluation.curves and evaluation.curves != evaluation.curves_of_all:
        yield "pairs of known nouns", evaluation.precision, evaluation.curves


def _metrics(evaluation: Evaluation) -> TextTable:
    metrics = evaluation.metrics
    table = number_table("", "share", "95% interval", "count")
    unknown = Share(metrics.outcomes["unlabelled"], evaluation.precision_of_all.of)
    made, written = evaluation.precision_of_rule, evaluation.precision_of_all
    if made.of != written.of:
        everything = f"{made.count:,} of {made.of:,}"
        table.add_row("precision of every pair that the rule made", percent(made.value), interval(made), everything)
    for name, share in (
        ("precision of all pairs" if made.of == written.of else "precision of the pairs of this set", written),
        ("precision of known nouns", evaluation.precision),
        ("  mask of another object", metrics.share("wrong_object")),
        ("  mask of no object", metrics.share("background")),
        ("not judged: noun unknown to the truth", unknown),
        ("recall of nameable mentions", metrics.recall),
    ):
        table.add_row(name, percent(share.value), interval(share), f"{share.count:,} of {share.of:,}")
    for name, iou in (
        ("mean IoU of the right pairs", metrics.mean_iou("correct")),
        ("mean IoU of all pairs of known nouns", metrics.mean_iou(*LABELLED)),
    ):
        table.add_row(name, "–" if iou is None else f"{iou:.3f}")
    return table


def _groups(groups: Sequence[GroupMetrics]) -> TextTable:
    table = number_table("known nouns", "pairs", "precision", "95% interval", "mentions", "recall")
    for group in groups:
        precision, recall = group.precision, group.recall
        cells = (f"{precision.of:,}", percent(precision.value), interval(precision))
        table.add_row(group.name, *cells, f"{recall.of:,}", percent(recall.value))
    return table


def _thresholds(curves: Sequence[Curve], *, of: str) -> TextTable:
    table = number_table(f"a setting for half of {of}", "precision", "95% interval", "kept")
    for curve in curves:
        precision = curve.half.precision
        setting = f"{curve.setting}: {curve.half.threshold:.4f}"
        table.add_row(setting, percent(precision.value), interval(precision), f"{curve.half.coverage:.1%}")
    return table


def _notes(evaluation: Evaluation) -> Iterator[str]:
    """What the metrics mean, what was left out of them, and why."""
    metrics, images, name = evaluation.metrics, evaluation.images, evaluation.annotations.name
    if unlabelled := metrics.outcomes["unlabelled"]:
        named = ", ".join(f"{noun} ({pairs:,})" for noun, pairs in evaluation.unlabelled_nouns(_NAMED_NOUNS))
        more = len(metrics.unlabelled_nouns) - _NAMED_NOUNS
        rest = f" and {more:,} more" if more > 0 else ""
        yield f"counted as wrong: {counted(unlabelled, 'pair')} of nouns that {name} does not know: {named}{rest}"
        yield (
            f"so the precision of all pairs is a lower bound, unless {name} annotates every object that captions name: "
            "the demo world's truth does, COCO's 80 categories do not"
        )
    if metrics.without_object:
        yield f"{counted(metrics.without_object, 'pair')} of known nouns cannot be right: the image has no such object"
    if crowd := metrics.outcomes["crowd"]:
        yield f"not counted: {counted(crowd, 'pair')} in groups that were drawn as one, which cannot be decided"
    for fit, why in (("missing", "is not in"), ("other_size", "has another size in")):
        if count := images[fit]:  # type: ignore[index]
            yield f"not counted: {count:,} of {counted(images.total(), 'image')}, as each {why} {name}"
    if evaluation.uncovered_pairs:
        yield f"not counted: {counted(evaluation.uncovered_pairs, 'pair')} of these images"
    if evaluation.unreadable:
        yield f"no mask that can be read in {name}: {counted(evaluation.unreadable, 'object')}"
    for line in evaluation.annotations.left_out:
        yield f"not used of {name}: {line}"
    if evaluation.no_curves:
        yield evaluation.no_curves


def interval(share: Share) -> str:
    """The 95 % confidence interval of a share; a dash where there is no sample."""
    low, high = share.interval
    return f"{low:.1%} – {high:.1%}" if share.of else "–"
