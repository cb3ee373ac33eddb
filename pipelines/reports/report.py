"""A finished run as one page that needs no server and no network: figures, charts, pairs to look at and to look up.

The page follows from the run (and the truth) alone: the same run gives the same bytes. Its size is bounded by
`most_mb`, what it takes in memory by the vocabulary and by `memory_limit`, whatever the number of pairs.
"""

from __future__ import annotations

import base64
import hashlib
import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mining.hygiene import Hygiene, caption_hygiene
from pipelines.charts import curve_svg, histogram_svg, zipf_svg
from pipelines.evaluate_pairs import Evaluation, evaluate_pairs
from pipelines.evaluation_report import claim_folder
from pipelines.report_figures import Grid, NounCounts, Scores, count_grid, count_nouns, count_scores
from pipelines.report_pictures import (
    Card,
    Chosen,
    RejectedCard,
    choose_samples,
    make_cards,
    make_rejected_cards,
)
from pipelines.run_folder import RunFolder
from pipelines.status import rejected_images
from pipelines.verify import read_complete
from schemas.errors import InputError
from schemas.manifest import Manifest
from schemas.rows import RejectedImage

PAIRS, GALLERY, EXAMPLES = 12, 24, 3
_TEXT_BYTES = 400_000  # of the page without pictures: charts, nouns, style
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
    """All that the page says. `evaluation` is there where a truth was given."""

    name: str
    manifest: Manifest
    grid: Grid
    nouns: NounCounts
    scores: Scores | None
    hygiene: Hygiene
    best: Sequence[Card]
    worst: Sequence[Card]
    gallery: Sequence[Card]
    search: Sequence[Card]
    reasons: Sequence[Reason]
    evaluation: Evaluation | None


def write_report(
    run: RunFolder,
    *,
    to: Path,
    truth: str | None = None,
    synonyms: str = "coco",
    samples: int = 240,
    most_mb: float = 5.0,
    memory_limit: str = "1GB",
) -> Report:
    """Make a report and write its page. Raises InputError when `to` cannot be written; else as `make_report`."""
    claim_folder(to.parent, run=run)
    report = make_report(
        run, truth=truth, synonyms=synonyms, samples=samples, most_mb=most_mb, memory_limit=memory_limit
    )
    page = render_report(report)
    try:
        to.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--to {to}: cannot be written ({error.strerror}); give another path") from error
    return report


def make_report(
    run: RunFolder,
    *,
    truth: str | None = None,
    synonyms: str = "coco",
    samples: int = 240,
    most_mb: float = 5.0,
    memory_limit: str = "1GB",
) -> Report:
    """Count, choose and cut. `samples` pairs at most can be looked up; `truth` is as for `evaluate_pairs`.

    Raises IncompleteError when the run is not finished, InputError when it has no pair.
    """
    manifest, plan = read_complete(run)
    if not manifest.totals.samples:
        raise InputError(f"{run.root}: there is no pair to report on; see `maskmine errors {run.root}`")
    indexes = [run.cell_path("shards", part) for part in range(plan.parts)]
    chosen = choose_samples(indexes, pairs=PAIRS, gallery=GALLERY, search=samples, memory_limit=memory_limit)
    reasons = _reasons(run)
    galleries, search = _cards(run, chosen, most_bytes=max(0, round(most_mb * 1e6) - _TEXT_BYTES - _size(reasons)))
    return Report(
        name=posixpath.basename(run.root.rstrip("/")),
        manifest=manifest,
        grid=count_grid(run, parts=plan.parts),
        nouns=count_nouns(indexes, memory_limit=memory_limit),
        scores=count_scores(indexes, memory_limit=memory_limit),
        hygiene=caption_hygiene(
            [run.cell_path("captions", part) for part in range(plan.parts)],
            [run.cell_path("images", part) for part in range(plan.parts)],
            memory_limit=memory_limit,
        ),
        best=galleries[0],
        worst=galleries[1],
        gallery=galleries[2],
        search=search,
        reasons=reasons,
        evaluation=None if truth is None else evaluate_pairs(run, truth=truth, synonyms=synonyms),
    )


def render_report(report: Report) -> str:
    """The page as HTML; whatever it shows is in it."""
    scores, evaluation = report.scores, report.evaluation
    return render_page(
        "report.html.j2",
        script="report.js",
        report=report,
        totals=report.manifest.totals,
        zipf=Markup(zipf_svg(report.nouns.ranks)),
        similarity=Markup(histogram_svg(scores.similarity, of="similarity of noun and region")) if scores else None,
        margin=Markup(histogram_svg(scores.margin, of="margin over the next best region", colour=1))
        if scores and scores.margin
        else None,
        sizes=Markup(
            histogram_svg(report.grid.sizes, of="share of the picture under the mask", logarithmic=True, percent=True)
        ),
        hottest=max(1, *(max(row) for row in report.grid.heat_YX)),
        evaluation=evaluation,
        curve=Markup(curve_svg(evaluation.curves)) if evaluation and evaluation.curves else None,
    )


def render_page(template: str, *, script: str | None = None, **values: Any) -> str:
    """A page from a template of `pipelines/data`, with a script of that folder in it, which alone may run there."""
    environment = Environment(
        loader=PackageLoader("pipelines", "data"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
    )
    environment.filters |= {"percent": _percent, "number": lambda count: f"{count:,}"}
    code = (files("pipelines") / "data" / script).read_text(encoding="utf-8") if script else ""
    allowed = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode("ascii")
    return environment.get_template(template).render(script=Markup(code), script_sha256=allowed, **values)


def _reasons(run: RunFolder) -> list[Reason]:
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], list[RejectedImage]] = {}
    for image in rejected_images(run):
        key = (image.step, image.reason)
        counts[key] += 1
        if counts[key] <= EXAMPLES:
            examples.setdefault(key, []).append(image)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [Reason(*key, count, tuple(make_rejected_cards(run, examples[key]))) for key, count in ordered]


def _cards(run: RunFolder, chosen: Chosen, *, most_bytes: int) -> tuple[list[list[Card]], list[Card]]:
    """The cards of the galleries, then as many to look up as there is room for."""
    galleries, room = [], round(most_bytes * _GALLERY_SHARE)
    for rows in (chosen.best, chosen.worst, chosen.gallery):
        cards = make_cards(run, rows, most_bytes=room)
        taken = sum(card.size_bytes for card in cards)
        galleries.append(cards)
        room, most_bytes = room - taken, most_bytes - taken
    return galleries, make_cards(run, chosen.search, most_bytes=most_bytes)


def _size(reasons: Sequence[Reason]) -> int:
    return sum(len(example.picture) for reason in reasons for example in reason.examples)


def _percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{share:.{digits}%}"
