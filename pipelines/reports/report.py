"""A finished run as one page that needs no server and no network: counts, charts, and pairs to look at and to look up.

The page follows from the run (and the ground truth) alone: the same run gives the same bytes. Its size is bounded by
`most_mb`, memory by the vocabulary and by `memory_limit`, whatever the number of pairs.
"""

from __future__ import annotations

import base64
import hashlib
import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from maskmine.mining.text.caption_quality import CaptionQuality, caption_quality
from maskmine.pipelines.dataset.cards import filters_of
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.render import render
from maskmine.pipelines.evaluate.pairs import Evaluation, evaluate_pairs
from maskmine.pipelines.reports.charts import curve_svg, histogram_svg, series_of, zipf_svg
from maskmine.pipelines.reports.figures import (
    Checked,
    Grid,
    NounCounts,
    Scores,
    Unshown,
    count_checks,
    count_grid,
    count_negatives,
    count_nouns,
    count_scores,
)
from maskmine.pipelines.reports.provenance import Provenance, provenance_of
from maskmine.pipelines.reports.sample_cards import (
    Card,
    Chosen,
    RejectedCard,
    choose_samples,
    make_cards,
    make_rejected_cards,
)
from maskmine.pipelines.reports.sureness import Sureness, count_sureness
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.steps.status import rejected_images
from maskmine.schemas.errors import InputError
from maskmine.schemas.manifest import Manifest
from maskmine.schemas.rows import CaptionsRow, ImageRow, RejectedImage, SampleRow

PAIRS, GALLERY, EXAMPLES = 12, 24, 3  # cards: best and worst pairs, random pairs, images of a reason of rejection
SAMPLES, MOST_MB = 240, 5.0
"""Pairs that can be looked up, and the size of the page in units of 10⁶ bytes, where nothing else is asked for."""

_TEXT_BYTES = 400_000  # of the page without images: charts, nouns, style
_GALLERY_SHARE = 0.5  # of the rest, which galleries may take before pairs to look up do


@dataclass(frozen=True, slots=True)
class Reason:
    """Rejected images of a step and a reason, with some of them."""

    step: str
    reason: str
    images: int
    examples: tuple[RejectedCard, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """The content of the page. `evaluation` is there where ground truth was given; a mix has no levels and no captions
    but those of its pairs, so no `sureness` and no `hygiene`."""

    name: str
    manifest: Manifest
    provenance: Provenance
    grid: Grid
    nouns: NounCounts
    scores: Scores | None
    checked: Checked | None
    negatives: Unshown | None
    sureness: Sureness | None
    hygiene: CaptionQuality | None
    best: Sequence[Card]
    worst: Sequence[Card]
    gallery: Sequence[Card]
    search: Sequence[Card]
    reasons: Sequence[Reason]
    evaluation: Evaluation | None


def make_report(
    run: RunFolder,
    *,
    truth: str | None = None,
    synonyms: str = "auto",
    samples: int = SAMPLES,
    most_mb: float = MOST_MB,
    memory_limit: str = "1GB",
) -> Report:
    """Collect the content of the page. At most `samples` pairs can be looked up; `truth` is as for `evaluate_pairs`.

    Raises IncompleteError when the run is not finished, InputError when it has no pair.
    """
    finished = FinishedRun.open_complete(run)
    if not finished.manifest.totals.samples:
        raise InputError(f"{run.root}: there is no pair to report on; see `maskmine errors {run.root}`")
    indexes = finished.paths(SampleRow)
    chosen = choose_samples(indexes, pairs=PAIRS, gallery=GALLERY, search=samples, memory_limit=memory_limit)
    reasons = _reasons(finished)
    galleries, search = _cards(finished, chosen, most_bytes=max(0, round(most_mb * 1e6) - _TEXT_BYTES - _size(reasons)))
    return Report(
        name=finished.name,
        manifest=finished.manifest,
        provenance=provenance_of(finished, options=_options(truth, synonyms, samples, most_mb)),
        grid=count_grid(finished),
        nouns=count_nouns(indexes, memory_limit=memory_limit),
        scores=count_scores(indexes, memory_limit=memory_limit),
        checked=count_checks(indexes, memory_limit=memory_limit) if _has_checks(finished) else None,
        negatives=count_negatives(indexes, memory_limit=memory_limit) if _has_negatives(finished) else None,
        sureness=None
        if finished.is_mix
        else count_sureness(finished, truth=truth, synonyms=synonyms, memory_limit=memory_limit),
        hygiene=None
        if finished.is_mix
        else caption_quality(finished.paths(CaptionsRow), finished.paths(ImageRow), memory_limit=memory_limit),
        best=galleries[0],
        worst=galleries[1],
        gallery=galleries[2],
        search=search,
        reasons=reasons,
        evaluation=None if truth is None else evaluate_pairs(run, truth=truth, synonyms=synonyms),
    )


def render_report(report: Report) -> str:
    """The page as HTML, which needs no other file."""
    scores, evaluation = report.scores, report.evaluation
    similarity = histogram_svg(scores.similarity, of="similarity of noun and region") if scores else None
    margin = None
    if scores and scores.margin:
        margin = histogram_svg(scores.margin, of="margin over the next best region", colour=1)
    sure, evidence = report.sureness, None
    if sure and sure.evidence:
        evidence = histogram_svg(sure.evidence, of="evidence", within=sure.evidence_every)
    checks = {}
    if report.checked:
        checks["presence"] = Markup(histogram_svg(report.checked.presence, of="presence"))
        checks["agreement"] = Markup(histogram_svg(report.checked.agreement, of="agreement, an IoU", colour=1))
    sizes = histogram_svg(report.grid.sizes, of="share of the picture under the mask", logarithmic=True, percent=True)
    return render_page(
        "report.html.j2",
        script="report.js",
        report=report,
        totals=report.manifest.totals,
        zipf=Markup(zipf_svg(report.nouns.ranks)),
        similarity=None if similarity is None else Markup(similarity),
        margin=None if margin is None else Markup(margin),
        evidence=None if evidence is None else Markup(evidence),
        checks=checks,
        filters=filters_of(report.manifest),
        sizes=Markup(sizes),
        hottest=max(1, *(max(row) for row in report.grid.heat_YX)),
        evaluation=evaluation,
        curve=Markup(curve_svg(evaluation.curves_of_all)) if evaluation and evaluation.curves_of_all else None,
        looked_up={card.noun for card in report.search},
        series_of=series_of,
    )


def render_page(template: str, *, script: str | None = None, **values: Any) -> str:
    """A page from a template of `reports/data`, with a script of that folder in it, which alone may run there."""
    code = (files("maskmine.pipelines.reports") / "data" / script).read_text(encoding="utf-8") if script else ""
    allowed = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode("ascii")
    package = "maskmine.pipelines.reports"
    return render(package, template, script=Markup(code), script_sha256=allowed, **values)


def _has_checks(finished: FinishedRun) -> bool:
    return finished.manifest.settings.get("checks") is not None


def _has_negatives(finished: FinishedRun) -> bool:
    return finished.manifest.settings.get("negatives") is not None


def _reasons(finished: FinishedRun) -> list[Reason]:
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], list[RejectedImage]] = {}
    for image in rejected_images(finished.folder):
        key = (image.step, image.reason)
        counts[key] += 1
        if counts[key] <= EXAMPLES:
            examples.setdefault(key, []).append(image)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [Reason(*key, count, tuple(make_rejected_cards(finished, examples[key]))) for key, count in ordered]


def _cards(finished: FinishedRun, chosen: Chosen, *, most_bytes: int) -> tuple[list[list[Card]], list[Card]]:
    """The cards of the galleries, then of the pairs to look up, as far as `most_bytes` go."""
    galleries, room = [], round(most_bytes * _GALLERY_SHARE)
    for rows in (chosen.best, chosen.worst, chosen.gallery):
        cards = make_cards(finished, rows, most_bytes=room)
        taken = sum(card.size_bytes for card in cards)
        galleries.append(cards)
        room, most_bytes = room - taken, most_bytes - taken
    return galleries, make_cards(finished, chosen.search, most_bytes=most_bytes)


def _options(truth: str | None, synonyms: str, samples: int, most_mb: float) -> list[str]:
    """The options of `maskmine report` that differ from its defaults, files by their names."""
    given = {
        "--truth": None if truth is None else posixpath.basename(truth),
        "--synonyms": None if synonyms == "auto" else posixpath.basename(synonyms),
        "--samples": None if samples == SAMPLES else str(samples),
        "--most-mb": None if most_mb == MOST_MB else f"{most_mb:g}",
    }
    return [word for option, value in given.items() if value is not None for word in (option, value)]


def _size(reasons: Sequence[Reason]) -> int:
    return sum(len(example.picture) for reason in reasons for example in reason.examples)
