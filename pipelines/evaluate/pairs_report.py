"""What a person sees of an evaluation: a table on the terminal, and in a folder its figures and curves as files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mining.precision import GroupFigures, Share
from pipelines.evaluate_pairs import Curve, Evaluation
from pipelines.run_folder import RunFolder
from schemas.errors import InputError

FIGURES_FILE, CURVES_FILE = "evaluation.json", "precision-coverage.png"
_NAMED_NOUNS = 5
_DOTS_PER_INCH = 150
_INK, _FAINT = "#282a30", "#7d8088"
_COLOURS = {"similarity": "#0072b2", "margin": "#d55e00"}  # of Okabe and Ito's palette, as in the contact sheet


def write_evaluation(evaluation: Evaluation, to: Path, *, run: RunFolder) -> list[str]:
    """Write evaluation.json and, where there are curves, precision-coverage.png; returns the names of both.

    Curves of an earlier evaluation are removed where this one has none. Raises InputError as `claim_folder` does.
    """
    claim_folder(to, run=run)
    try:
        text = json.dumps(evaluation.as_json(), indent=2, ensure_ascii=False)
        (to / FIGURES_FILE).write_text(text + "\n", encoding="utf-8")
        if not evaluation.curves:
            (to / CURVES_FILE).unlink(missing_ok=True)
            return [FIGURES_FILE]
        draw_curves(evaluation.curves, to / CURVES_FILE, precision=evaluation.precision, truth=evaluation.truth.name)
    except OSError as error:
        raise InputError(f"--to {to}: cannot be written ({error.strerror}); give another folder") from error
    return [FIGURES_FILE, CURVES_FILE]


def claim_folder(to: Path, *, run: RunFolder) -> None:
    """Make the folder, before the work begins.

    Raises InputError when it cannot be made, or is in that of the run, where it would be taken for a part of the set.
    """
    if to.resolve().is_relative_to(Path(run.root).resolve()):
        raise InputError(f"--to {to}: is in the run's own folder; give another one")
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--to {to}: cannot be written ({error.strerror}); give another folder") from error


def render_evaluation(evaluation: Evaluation) -> RenderableType:
    """The figures as tables, and in words what was left out of them."""
    blocks: list[RenderableType] = [
        _figures(evaluation),
        Text(),
        _groups([*evaluation.frequency, *evaluation.training]),
    ]
    if evaluation.curves:
        blocks += [Text(), _thresholds(evaluation.curves)]
    notes = [Text(note) for note in _notes(evaluation)]
    return Group(*blocks, *([Text(), *notes] if notes else []))


def draw_curves(curves: Sequence[Curve], path: Path, *, precision: Share, truth: str) -> None:
    """Precision against coverage as a PNG, with 95% intervals and a dot where half of the pairs are kept."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(7, 4.6), dpi=_DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    for curve in curves:
        coverage = [point.coverage for point in curve.points]
        low, high = zip(*(point.precision.interval for point in curve.points), strict=True)
        colour = _COLOURS[curve.score]
        axes.fill_between(coverage, low, high, color=colour, alpha=0.1, linewidth=0)
        axes.plot(coverage, [point.precision.value or 0 for point in curve.points], color=colour, linewidth=1.8)
        label = f"{curve.score} ≥ {curve.half.threshold:.4f}: {_percent(curve.half.precision)} right"
        axes.plot(
            curve.half.coverage,
            curve.half.precision.value or 0,
            "o",
            color=colour,
            markeredgecolor="white",
            label=label,
        )
    lowest = min(point.precision.value or 0 for curve in curves for point in curve.points)
    axes.set(xlim=(0, 1), ylim=(max(0, lowest - 0.05), 1.005), xlabel="coverage: share of the pairs that is kept")
    axes.set_ylabel("precision: share of these that is right")
    axes.set_title(f"{_percent(precision)} of {precision.of:,} pairs are right by {truth}", loc="left", color=_INK)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(color=_FAINT, alpha=0.2, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(_FAINT)
    axes.tick_params(colors=_FAINT)
    title = "dots: where half of the pairs are kept; bands: 95% intervals"
    figure.legend(title=title, loc="outside lower left", ncols=len(curves), frameon=False, alignment="left")
    figure.savefig(path, format="png", metadata={"Software": None})


def _figures(evaluation: Evaluation) -> Table:
    tally = evaluation.tally
    table = _table("", "share", "95% interval", "count")
    for name, share in (
        ("precision", evaluation.precision),
        ("  mask of another object", tally.share("other")),
        ("  mask of no object", tally.share("none")),
        ("recall of nameable mentions", tally.recall),
    ):
        table.add_row(name, _percent(share), _interval(share), f"{share.count:,} of {share.of:,}")
    for name, iou in (
        ("mean IoU of the right pairs", tally.mean_iou("right")),
        ("mean IoU of all these pairs", tally.mean_iou("right", "other", "none")),
    ):
        table.add_row(name, "–" if iou is None else f"{iou:.3f}")
    return table


def _groups(groups: Sequence[GroupFigures]) -> Table:
    table = _table("nouns", "pairs", "precision", "95% interval", "mentions", "recall")
    for group in groups:
        precision, recall = group.precision, group.recall
        cells = [f"{precision.of:,}", _percent(precision), _interval(precision), f"{recall.of:,}", _percent(recall)]
        table.add_row(group.name, *cells)
    return table


def _thresholds(curves: Sequence[Curve]) -> Table:
    table = _table("a setting for half of the pairs", "precision", "95% interval", "kept")
    for curve in curves:
        precision = curve.half.precision
        setting = f"{curve.setting}: {curve.half.threshold:.4f}"
        table.add_row(setting, _percent(precision), _interval(precision), f"{curve.half.coverage:.1%}")
    return table


def _notes(evaluation: Evaluation) -> Iterator[str]:
    """What was left out, and why."""
    tally, images = evaluation.tally, evaluation.images
    if tally.absent:
        yield f"{tally.absent:,} pairs could not be right: their image has no object that the noun names"
    if unknown := tally.outcomes["unknown"]:
        named = ", ".join(f"{noun} ({pairs:,})" for noun, pairs in evaluation.unknown_nouns(_NAMED_NOUNS))
        more = len(tally.unknown_nouns) - _NAMED_NOUNS
        rest = f" and {more:,} more" if more > 0 else ""
        yield f"not counted: {unknown:,} pairs of nouns that {evaluation.truth.name} does not know: {named}{rest}"
    if crowd := tally.outcomes["crowd"]:
        yield f"not counted: {crowd:,} pairs in groups that were drawn as one"
    for fit, why in (("missing", "is not in"), ("other_size", "has another size in")):
        if count := images[fit]:  # type: ignore[index]
            yield f"not counted: {count:,} of {images.total():,} images, as each {why} {evaluation.truth.name}"
    if evaluation.pairs_apart:
        yield f"not counted: {evaluation.pairs_apart:,} pairs of these images"
    if evaluation.unreadable:
        yield f"{evaluation.unreadable:,} objects have no mask that can be read in {evaluation.truth.name}"
    if evaluation.no_curves:
        yield evaluation.no_curves


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=bool(number))
    return table


def _percent(share: Share) -> str:
    return "–" if share.value is None else f"{share.value:.1%}"


def _interval(share: Share) -> str:
    low, high = share.interval
    return f"{low:.1%} – {high:.1%}" if share.of else "–"
