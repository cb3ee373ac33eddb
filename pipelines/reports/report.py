"""A finished run as one page that needs no server and no network: counts, charts, and pairs to look at and to look up.

The page follows from the run (and the ground truth) alone: the same run gives the same bytes. Its size is bounded by
`most_mb`, memory by the vocabulary and by `memory_limit`, whatever the number of pairs.
"""

from __future__ import annotations

import base64
import hashlib
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from maskmine.mining.text.caption_quality import CaptionQuality
from maskmine.pipelines.dataset.cards import filters_of
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.render import render
from maskmine.pipelines.evaluate.pairs import Evaluation, evaluate_pairs
from maskmine.pipelines.reports.accounts import Rejected, read_accounts
from maskmine.pipelines.reports.charts import curve_svg, histogram_svg, series_of, zipf_svg
from maskmine.pipelines.reports.chosen_samples import Chosen
from maskmine.pipelines.reports.counting import count_all
from maskmine.pipelines.reports.figures import Checked, Grid, NounCounts, Scores, Unshown
from maskmine.pipelines.reports.provenance import Provenance, provenance_of
from maskmine.pipelines.reports.sample_cards import Card, RejectedCard, make_cards, make_rejected_cards
from maskmine.pipelines.reports.sureness import Sureness
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.errors import InputError
from maskmine.schemas.manifest import Manifest

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
    counted = count_all(finished, samples=samples, truth=truth, synonyms=synonyms, memory_limit=memory_limit)
    accounts = read_accounts(finished)
    reasons = [_reason(finished, key, rejected) for key, rejected in accounts.reasons]
    most_bytes = max(0, round(most_mb * 1e6) - _TEXT_BYTES - _size(reasons))
    galleries, search = _cards(finished, counted.chosen, most_bytes=most_bytes)
    return Report(
        name=finished.name,
        manifest=finished.manifest,
        provenance=provenance_of(finished, last=accounts.finished, options=_options(truth, synonyms, samples, most_mb)),
        grid=counted.grid,
        nouns=counted.nouns,
        scores=counted.scores,
        checked=counted.checked,
        negatives=counted.negatives,
        sureness=counted.sureness,
        hygiene=counted.hygiene,
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


def _reason(finished: FinishedRun, key: tuple[str, str], rejected: Rejected) -> Reason:
    return Reason(*key, rejected.images, tuple(make_rejected_cards(finished, rejected.examples)))


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
