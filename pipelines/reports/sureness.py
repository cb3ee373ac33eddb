"""How sure the pairs of a run are: nouns that can be seen and nouns that cannot, the evidence of its pairs, and the
pairs that the rule made beside those that were written.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from maskmine.mining.evaluation.annotations import read_annotations
from maskmine.mining.evaluation.pair_matching import match_image
from maskmine.mining.evaluation.pair_metrics import LABELLED, Share
from maskmine.mining.scores.scale import LevelScale
from maskmine.mining.storage.query import local_cells, query_tables
from maskmine.mining.text.labels import load_synonyms, open_naming
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.reports.blocks import Block, Columns, read_blocks
from maskmine.pipelines.reports.charts import Histogram
from maskmine.pipelines.reports.figures import NounCounter
from maskmine.pipelines.reports.spreads import Spreads
from maskmine.schemas.rows import PairsRow, SampleRow
from maskmine.schemas.sample import sample_key

_SHOWN = 12  # nouns of either end
_LEAST_SAID = 3  # images of the sample that say a noun, below which its separability is mostly its prior
_NAMED = 12  # nouns without a level that are named


@dataclass(frozen=True, slots=True)
class SeenNoun:
    """A noun with its level and separability, the images whose captions say it, and its written pairs."""

    noun: str
    level: float
    separability: float
    images: int
    pairs: int


@dataclass(frozen=True, slots=True)
class Visibility:
    """The nouns of a run by separability, from the most visible and from the least visible one.

    `images` is the sample that levels were measured on, `often` the number of nouns that are said in at least
    `least_said` of them. `without_level` counts the nouns that every image of the sample says, `unlevelled` names some.
    """

    images: int
    nouns: int
    often: int
    least_said: int
    most: tuple[SeenNoun, ...]
    least: tuple[SeenNoun, ...]
    without_level: int
    unlevelled: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PairSet:
    """A set of pairs: how many, the median of their evidence, and by ground truth the share that is right.

    `right` is of all pairs in annotated images, where a noun that names no category is wrong; `known_right` of the
    pairs whose nouns name one.
    """

    pairs: int
    evidence_median: float | None
    right: Share | None
    known_right: Share | None


@dataclass(frozen=True, slots=True)
class Sureness:
    """`visibility` is None for a run without levels; the histograms of evidence are None where no pair has any.

    `every` are the pairs that the rule made, `written` those that passed the filters. Both histograms have the same
    edges; `evidence_every` is None where all pairs were written.
    """

    visibility: Visibility | None
    every: PairSet
    written: PairSet
    evidence: Histogram | None
    evidence_every: Histogram | None


COLUMNS: Columns = {SampleRow: ("noun", "evidence")}
"""What of the index the counts need, beside `columns_of_pairs`."""


class SurenessCounter:
    """Counts how sure the pairs of a run are, a block of parts after the other."""

    def __init__(self, db: Any, finished: FinishedRun, spreads: Spreads) -> None:
        self._db, self._finished, self._spreads = db, finished, spreads
        self._has_evidence = finished.manifest.format_version >= 3
        self._every = self._written = 0

    def add(self, block: Block) -> None:
        """Count a block, of which `sample` is the view of the index."""
        pairs = block[PairsRow]["pairs"]
        self._every += pc.sum(pc.list_value_length(pairs)).as_py() or 0
        self._written += len(block[SampleRow])
        if self._has_evidence:
            evidence = pc.struct_field(pc.list_flatten(pairs), "evidence")
            self._db.register("every_pair", pa.table({"evidence": evidence}))
            for source in ("every_pair", "sample"):
                self._spreads.add(f"evidence of {source}", value="evidence", source=source)

    def result(self, *, truth: str | None, synonyms: str) -> Sureness:
        """The counts; the view `counted` has the written pairs of each noun. `truth` as for `count_sureness`."""
        of_every, of_written = (f"evidence of {source}" for source in ("every_pair", "sample"))
        ends, histograms = self._spreads.ends(of_every), list[Histogram | None]([None, None])
        if ends is not None:
            low, high = ends
            histograms = [self._spreads.histogram(score, low=low, high=high) for score in (of_every, of_written)]
        rights = (None, None) if truth is None else _rights(self._finished, truth=truth, synonyms=synonyms)
        sets = [
            PairSet(count, self._spreads.quantile(score, 0.5), *(right or (None, None)))
            for count, score, right in zip((self._every, self._written), (of_every, of_written), rights, strict=True)
        ]
        every = histograms[0] if self._every > self._written else None
        return Sureness(_visibility(self._db, self._finished), sets[0], sets[1], histograms[1], every)


def columns_of_pairs(finished: FinishedRun) -> Columns:
    """What of the pairs the counts need: one field, so that the others are not read, and whose they are."""
    return {
        PairsRow: (
            "image_id",
            f"pairs.list.element.{'evidence' if finished.manifest.format_version >= 3 else 'region'}",
        )
    }


def count_sureness(
    finished: FinishedRun, *, truth: str | None = None, synonyms: str = "auto", memory_limit: str = "1GB"
) -> Sureness:
    """Count how sure the pairs of a run are; `truth` and `synonyms` are as for `evaluate_pairs`, and raise as there."""
    with query_tables(memory_limit=memory_limit) as db:
        nouns, spreads = NounCounter(db), Spreads(db)
        counter = SurenessCounter(db, finished, spreads)
        for block in read_blocks(finished, {**COLUMNS, **columns_of_pairs(finished)}):
            db.register("sample", block[SampleRow])
            nouns.add()
            counter.add(block)
        nouns.sum_up()
        spreads.sum_up()
        return counter.result(truth=truth, synonyms=synonyms)


def _visibility(db: Any, finished: FinishedRun) -> Visibility | None:
    """Of the nouns that `counted` has the written pairs of, and the others."""
    if not (levels := finished.levels_paths):
        return None
    with local_cells([*levels, *finished.vocabulary_paths]) as cells:  # which refuses damaged ones
        scale = LevelScale.read(finished.folder.read_metadata("levels.parquet"))
        db.execute(
            "CREATE TEMP TABLE seen AS SELECT noun, level, separability, said, v.images AS images,"
            " coalesce(p.n, 0) AS pairs FROM (SELECT DISTINCT ON (noun) noun, level, separability, said"
            " FROM read_parquet($levels) ORDER BY noun, said DESC, level)"
            " JOIN (SELECT noun, sum(images)::BIGINT AS images FROM read_parquet($vocabulary) GROUP BY noun) v"
            " USING (noun) LEFT JOIN counted p USING (noun)",
            {"levels": cells[: len(levels)], "vocabulary": cells[len(levels) :]},
        )
    nouns, often, without = db.execute(
        f"SELECT count(*), count(*) FILTER (said >= {_LEAST_SAID} AND level IS NOT NULL),"
        " count(*) FILTER (level IS NULL) FROM seen"
    ).fetchall()[0]
    ends = (
        "SELECT noun, level, separability, images, pairs FROM seen"
        f" WHERE said >= {_LEAST_SAID} AND separability IS NOT NULL"
        " ORDER BY separability {0}, said DESC, encode(noun) LIMIT {1}"
    )
    # Where there are few nouns, none is in both lists.
    most = db.execute(ends.format("DESC", min(_SHOWN, -(-often // 2)))).fetchall()
    least = db.execute(ends.format("ASC", min(_SHOWN, often // 2))).fetchall()
    unlevelled = db.execute(
        f"SELECT noun FROM seen WHERE level IS NULL ORDER BY images DESC, encode(noun) LIMIT {_NAMED}"
    ).fetchall()
    return Visibility(
        images=scale.images,
        nouns=nouns,
        often=often,
        least_said=_LEAST_SAID,
        most=tuple(SeenNoun(*row) for row in most),
        least=tuple(SeenNoun(*row) for row in least),
        without_level=without,
        unlevelled=tuple(noun for (noun,) in unlevelled),
    )


def _rights(finished: FinishedRun, *, truth: str, synonyms: str) -> tuple[tuple[Share, Share], tuple[Share, Share]]:
    """Of every pair, and of the written ones: the share that is right of all, and of those whose nouns are known."""
    annotations = read_annotations(truth)
    naming = open_naming(annotations.categories, load_synonyms(None if synonyms == "none" else synonyms))
    every, written = Counter[str](), Counter[str]()
    for part in finished.parts:
        keys = finished.written_keys(part)
        for image in finished.images(part, every_pair=True):
            key = annotations.key_of(image.image)
            if annotations.coverage(key, image.regions) != "covered":
                continue
            objects = annotations.objects(key)
            matches = match_image(image.nouns, image.regions, image.pairs, objects=objects, naming=naming)
            for number, match in enumerate(matches.pairs):
                every[match.outcome] += 1
                written[match.outcome] += sample_key(image.image.image_id, number) in keys
    return _shares(every), _shares(written)


def _shares(outcomes: Counter[str]) -> tuple[Share, Share]:
    # A crowd cannot be decided, so its pairs count nowhere.
    decided = outcomes.total() - outcomes["crowd"]
    return (
        Share(outcomes["correct"], decided),
        Share(outcomes["correct"], sum(outcomes[outcome] for outcome in LABELLED)),
    )
