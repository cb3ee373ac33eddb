"""All that a report counts and chooses, in one pass over the parts: each cell is read once, a block in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from maskmine.mining.storage.query import query_tables
from maskmine.mining.text.caption_quality import CaptionCounter, CaptionQuality
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.reports.blocks import Block, Columns, read_blocks
from maskmine.pipelines.reports.chosen_samples import Chosen, SampleChooser
from maskmine.pipelines.reports.figures import (
    CheckCounter,
    Checked,
    Grid,
    GridCounter,
    NegativeCounter,
    NounCounter,
    NounCounts,
    ScoreCounter,
    Scores,
    Unshown,
)
from maskmine.pipelines.reports.spreads import Spreads
from maskmine.pipelines.reports.sureness import Sureness, SurenessCounter, columns_of_pairs
from maskmine.schemas.rows import CaptionsRow, ImageRow, NounsRow, OriginRow, RegionsRow, SampleRow

PAIRS, GALLERY = 12, 24  # cards: best and worst pairs, random pairs

_OF_INDEX = (
    *("key", "shard", "image_id", "noun", "box_xyxy", "area_px"),
    *("similarity", "margin", "evidence", "presence", "agreement", "negatives"),
)
_OF_MIX: Columns = {SampleRow: _OF_INDEX, OriginRow: ("image_id", "height_px", "width_px")}
_OF_RUN: Columns = {
    SampleRow: _OF_INDEX,
    NounsRow: (
        "image_id",
        "nouns.list.element.start",
    ),
    RegionsRow: ("image_id", "height_px", "width_px", "regions.list.element.area_px"),
    CaptionsRow: ("image_id", "captions"),
    ImageRow: ("image_id", "path"),
}


@dataclass(frozen=True, slots=True)
class Counted:
    """The counts of a run; those that a set of its kind does not have are None."""

    chosen: Chosen
    grid: Grid
    nouns: NounCounts
    scores: Scores | None
    checked: Checked | None
    negatives: Unshown | None
    sureness: Sureness | None
    hygiene: CaptionQuality | None


def count_all(
    finished: FinishedRun, *, samples: int, truth: str | None, synonyms: str, memory_limit: str = "1GB"
) -> Counted:
    """Count, and choose at most `samples` pairs to look up; `truth` and `synonyms` are as for `evaluate_pairs`.

    Raises IncompleteError when a cell is missing or broken.
    """
    columns = _OF_MIX if finished.is_mix else {**_OF_RUN, **columns_of_pairs(finished)}
    with query_tables(memory_limit=memory_limit) as db:
        counters = _Counters(db, finished, samples=samples)
        for block in read_blocks(finished, columns):
            counters.add(block)
        return counters.result(truth=truth, synonyms=synonyms)


class _Counters:
    """One of each, over a connection to DuckDB."""

    def __init__(self, db: Any, finished: FinishedRun, *, samples: int) -> None:
        self._db, self._finished = db, finished
        settings = finished.manifest.settings
        self._spreads, self._grid, self._nouns = Spreads(db), GridCounter(), NounCounter(db)
        self._chooser = SampleChooser(db, self._nouns, pairs=PAIRS, gallery=GALLERY, search=samples)
        self._scores = ScoreCounter(db, self._spreads)
        self._checks = CheckCounter(db, self._spreads) if settings.get("checks") is not None else None
        self._negatives = NegativeCounter(db) if settings.get("negatives") is not None else None
        self._sureness = None if finished.is_mix else SurenessCounter(db, finished, self._spreads)
        self._captions = None if finished.is_mix else CaptionCounter(db)

    def add(self, block: Block) -> None:
        self._db.register("sample", block[SampleRow])
        self._nouns.add()
        self._chooser.add()
        for counter in (self._scores, self._checks, self._negatives):
            if counter is not None:
                counter.add()
        if self._finished.is_mix:
            self._grid.add_of_mix(block)
        else:
            self._grid.add(block)
        if self._sureness is not None:
            self._sureness.add(block)
        if self._captions is not None:
            self._captions.add(block[CaptionsRow], block[ImageRow])

    def result(self, *, truth: str | None, synonyms: str) -> Counted:
        self._spreads.sum_up()
        return Counted(
            chosen=self._chooser.result(self._finished),
            grid=self._grid.result(mix=self._finished.manifest.totals if self._finished.is_mix else None),
            nouns=self._nouns.result(),
            scores=self._scores.result(),
            checked=self._checks.result() if self._checks is not None else None,
            negatives=self._negatives.result() if self._negatives is not None else None,
            sureness=None if self._sureness is None else self._sureness.result(truth=truth, synonyms=synonyms),
            hygiene=None if self._captions is None else self._captions.result(),
        )
