"""How sure the pairs of a run are: nouns that can be seen and nouns that cannot, the evidence of its pairs, and the
pairs that the rule made beside those that were written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from maskmine.mining.evaluation.annotations import read_annotations
from maskmine.mining.evaluation.pair_matching import match_image
from maskmine.mining.evaluation.pair_metrics import LABELLED, Share
from maskmine.mining.scores.scale import LevelScale
from maskmine.mining.storage.query import query_cells
from maskmine.mining.text.labels import load_synonyms, open_naming
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.reports.charts import Histogram
from maskmine.pipelines.reports.figures import count_bins
from maskmine.schemas.rows import PairsRow, SampleRow
from maskmine.schemas.sample import sample_key

_SHOWN = 12  # nouns of either end
_LEAST_SAID = 3  # images of the sample that say a noun, below which its separability is mostly its prior
_NAMED = 12  # nouns without a level that are named
_TABLES = ("every_pair", "written_pair")
_CELLS, _NULL = "read_parquet($cells)", "NULL::DOUBLE"


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


def count_sureness(
    finished: FinishedRun, *, truth: str | None = None, synonyms: str = "auto", memory_limit: str = "1GB"
) -> Sureness:
    """Count how sure the pairs of a run are; `truth` and `synonyms` are as for `evaluate_pairs`, and raise as there."""
    indexes, cells = finished.paths(SampleRow), finished.paths(PairsRow)
    visibility = _visibility(finished, indexes, memory_limit=memory_limit)
    of_pair, of_row = ("pair.evidence", "evidence") if finished.manifest.format_version >= 3 else (_NULL, _NULL)
    with query_cells([*cells, *indexes], memory_limit=memory_limit) as (db, paths):
        made, written = paths[: len(cells)], paths[len(cells) :]
        _collect(
            db, "every_pair", f"SELECT {of_pair} AS evidence FROM (SELECT unnest(pairs) AS pair FROM {_CELLS})", made
        )
        _collect(db, "written_pair", f"SELECT {of_row} AS evidence FROM {_CELLS}", written)
        counts, medians = zip(*(_count(db, table) for table in _TABLES), strict=True)
        histograms = _histograms(db)
    rights = (None, None) if truth is None else _rights(finished, truth=truth, synonyms=synonyms)
    sets = [
        PairSet(count, median, *(right or (None, None)))
        for count, median, right in zip(counts, medians, rights, strict=True)
    ]
    every = histograms[0] if counts[0] > counts[1] else None
    return Sureness(visibility, sets[0], sets[1], histograms[1], every)


def _collect(db: Any, table: str, query: str, cells: Sequence[str]) -> None:
    db.execute(f"CREATE TEMP TABLE {table} AS {query}", {"cells": list(cells)})


def _count(db: Any, table: str) -> tuple[int, float | None]:
    """How many pairs there are, and the median of their evidence."""
    pairs, median = db.execute(f"SELECT count(*), quantile_disc(evidence, 0.5) FROM {table}").fetchone()
    return pairs, median


def _histograms(db: Any) -> list[Histogram | None]:
    """The evidence of both sets, in the same bins; None where there is none."""
    low, high = db.execute(f"SELECT min(evidence), max(evidence) FROM {_TABLES[0]}").fetchone()
    if low is None:
        return [None, None]
    low, high = (low, high) if high > low else (low - 0.01, high + 0.01)
    return [count_bins(db, "evidence", f"{name} WHERE evidence IS NOT NULL", low=low, high=high) for name in _TABLES]


def _visibility(finished: FinishedRun, indexes: Sequence[str], *, memory_limit: str) -> Visibility | None:
    if not (levels := finished.levels_paths):
        return None
    scale = LevelScale.read(finished.folder.read_metadata("levels.parquet"))
    vocabulary, ends_at = finished.vocabulary_paths, 2 * len(levels)
    paths = [*levels, *vocabulary, *indexes]
    with query_cells(paths, memory_limit=memory_limit) as (db, cells):
        db.execute(
            "CREATE TEMP TABLE seen AS SELECT noun, level, separability, said, v.images AS images,"
            " coalesce(p.pairs, 0) AS pairs FROM (SELECT DISTINCT ON (noun) noun, level, separability, said"
            " FROM read_parquet($levels) ORDER BY noun, said DESC, level)"
            " JOIN (SELECT noun, sum(images)::BIGINT AS images FROM read_parquet($vocabulary) GROUP BY noun) v"
            " USING (noun)"
            " LEFT JOIN (SELECT noun, count(*) AS pairs FROM read_parquet($cells) GROUP BY noun) p USING (noun)",
            {"levels": cells[: len(levels)], "vocabulary": cells[len(levels) : ends_at], "cells": cells[ends_at:]},
        )
        nouns, often, without = db.execute(
            f"SELECT count(*), count(*) FILTER (said >= {_LEAST_SAID} AND level IS NOT NULL),"
            " count(*) FILTER (level IS NULL) FROM seen"
        ).fetchone()
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
