"""The difference of two finished runs: pairs kept, gained and lost, nouns new and gone, scores changed.

A pair is the same in both when image, noun and mask are: the mask by its box and its area, as keys differ when an image
has other nouns. Memory is bounded, whatever the number of pairs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Group, RenderableType
from rich.text import Text

from maskmine.mining.storage.query import columns_of, query_cells
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.reports.charts import Histogram, histogram_svg
from maskmine.pipelines.reports.chosen_samples import read_samples
from maskmine.pipelines.reports.report import render_page
from maskmine.pipelines.reports.sample_cards import make_cards
from maskmine.pipelines.reports.spreads import count_bins
from maskmine.pipelines.run_folder.claim import claim_folder, write_page
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.manifest import Manifest
from maskmine.schemas.rows import SampleRow
from maskmine.schemas.wording import counted
from maskmine.tuning.tables import number_table

_SCORES = ("similarity", "margin", "lift", "evidence", "confidence")  # that are compared in kept pairs
_NAMED = 20  # nouns listed in JSON and on the page
_CARDS, _CARD_BYTES = 12, 1_500_000  # pairs shown on the page of either kind, and what their images may take
_SHOWN_NOUNS = 8  # nouns listed on the terminal, about a line


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two runs: the name of its folder and its counts."""

    name: str
    fingerprint: str
    pairs: int
    nouns: int
    images: int


@dataclass(frozen=True, slots=True)
class Shift:
    """How a score moved among the kept pairs: `changed` of them, and quantiles of new minus old."""

    score: str
    changed: int
    low: float
    median: float
    high: float


@dataclass(frozen=True, slots=True)
class Diff:
    """The difference. `moved` of the gained pairs are nouns that took another mask of their image.

    Medians are those of the similarity, None where there is none; `new_nouns` and `gone_nouns` are the first of them
    with their pairs. Images are those with pairs. `appended` are the versions of the new set, with their images, that
    were appended to just this old one.
    """

    old: Side
    new: Side
    kept: int
    gained: int
    lost: int
    moved: int
    images_gained: int
    images_lost: int
    nouns_new: int
    nouns_gone: int
    new_nouns: tuple[tuple[str, int], ...]
    gone_nouns: tuple[tuple[str, int], ...]
    medians: dict[str, float | None]
    shifts: tuple[Shift, ...]
    shift_histogram: Histogram | None
    gained_samples: tuple[SampleRow, ...]
    lost_samples: tuple[SampleRow, ...]
    appended: tuple[tuple[str, int], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain values for `--json`: the same runs, the same values."""
        left_out = ("gained_samples", "lost_samples", "shift_histogram")
        return {name: value for name, value in asdict(self).items() if name not in left_out}


def compare_runs(old: RunFolder, new: RunFolder, *, memory_limit: str = "1GB") -> Diff:
    """Compare two finished runs by their indexes. Raises IncompleteError when one is not finished."""
    runs = [FinishedRun.open_complete(run) for run in (old, new)]
    indexes = [finished.paths(SampleRow) for finished in runs]
    with query_cells([*indexes[0], *indexes[1]], memory_limit=memory_limit) as (db, cells):
        # Join the pairs of both runs, then count by state.
        _join(db, cells[: len(indexes[0])], cells[len(indexes[0]) :])
        kept, gained, lost = db.execute(
            "SELECT count(*) FILTER (state = 'kept'), count(*) FILTER (state = 'gained'), count(*) FILTER"
            " (state = 'lost') FROM pair"
        ).fetchone()
        (moved,) = db.execute(
            "SELECT count(*) FROM (SELECT * FROM pair WHERE state = 'gained') SEMI JOIN"
            " (SELECT * FROM pair WHERE state = 'lost') USING (image_id, noun)"
        ).fetchone()
        images_gained, images_lost = _images(db)
        nouns_new, new_nouns = _nouns(db, "gained")
        nouns_gone, gone_nouns = _nouns(db, "lost")
        return Diff(
            old=_side(runs[0]),
            new=_side(runs[1]),
            kept=kept,
            gained=gained,
            lost=lost,
            moved=moved,
            images_gained=images_gained,
            images_lost=images_lost,
            nouns_new=nouns_new,
            nouns_gone=nouns_gone,
            new_nouns=new_nouns,
            gone_nouns=gone_nouns,
            medians=_medians(db),
            shifts=tuple(shift for score in _SCORES if (shift := _shift(db, score))),
            shift_histogram=_histogram(db),
            gained_samples=_samples(db, "new", "gained"),
            lost_samples=_samples(db, "old", "lost"),
            appended=_appended(runs[0].manifest, runs[1].manifest),
        )


def render_diff(diff: Diff) -> RenderableType:
    """The difference as tables for a terminal."""
    table = number_table("", diff.old.name, diff.new.name, "change")
    for what in ("pairs", "nouns", "images"):
        old, new = getattr(diff.old, what), getattr(diff.new, what)
        named = "images with pairs" if what == "images" else what
        table.add_row(named, f"{old:,}", f"{new:,}", f"{new - old:+,}")
    pairs = number_table("pairs", "count", "median similarity")
    for state, count in (("kept", diff.kept), ("gained", diff.gained), ("lost", diff.lost)):
        median = diff.medians[state]
        pairs.add_row(state, f"{count:,}", "–" if median is None else f"{median:.3f}")
        if state == "gained" and diff.moved:
            pairs.add_row("  another mask for the same noun", f"{diff.moved:,}")
    grown = ", ".join(f"{name} ({counted(images, 'image')})" for name, images in diff.appended)
    lines = [
        *([Text(f"the new set is the old one with what was appended to it: version {grown}")] if grown else []),
        Text(f"{counted(diff.images_gained, 'image')} with pairs now, not before; {diff.images_lost:,} without now"),
        *_noun_line("new", diff.nouns_new, diff.new_nouns),
        *_noun_line("gone", diff.nouns_gone, diff.gone_nouns),
        *(Text(shift_words(shift, diff.kept)) for shift in diff.shifts),
    ]
    return Group(table, Text(), pairs, Text(), *lines)


def write_diff(diff: Diff, old: RunFolder, new: RunFolder, *, to: Path) -> None:
    """Write the difference as a page that needs nothing else. Raises InputError when it cannot be written."""
    for run in (old, new):
        claim_folder(to.parent, run=run)
    histogram = diff.shift_histogram
    page = render_page(
        "diff.html.j2",
        diff=diff,
        shift_words=shift_words,
        shift=Markup(histogram_svg(histogram, of="similarity, new minus old")) if histogram else None,
        gained=make_cards(FinishedRun.open(new), diff.gained_samples, most_bytes=_CARD_BYTES),
        lost=make_cards(FinishedRun.open(old), diff.lost_samples, most_bytes=_CARD_BYTES),
    )
    write_page(to, page)


def shift_words(shift: Shift, kept: int) -> str:
    """A shift in words."""
    if not shift.changed:
        return f"{shift.score}: the same in all {kept:,} kept pairs"
    return (
        f"{shift.score}: changed in {shift.changed:,} of {kept:,} kept pairs; new minus old has the median"
        f" {_signed(shift.median)}, and nine tenths are from {_signed(shift.low)} to {_signed(shift.high)}"
    )


def _signed(value: float) -> str:
    """Four decimals; two figures where these would all be zeros."""
    return f"{value:+.4f}" if abs(value) >= 5e-5 or not value else f"{value:+.1e}"


def _side(finished: FinishedRun) -> Side:
    manifest, totals = finished.manifest, finished.manifest.totals
    return Side(finished.name, manifest.fingerprint, totals.samples, totals.nouns, totals.with_pairs)


def _appended(old: Manifest, new: Manifest) -> tuple[tuple[str, int], ...]:
    """The versions of a set that an earlier state of it did not have; nothing where it is no earlier state."""
    before = [version.fingerprint for version in old.versions] or [old.fingerprint]
    if [version.fingerprint for version in new.versions[: len(before)]] != before:
        return ()
    return tuple((version.name, version.images) for version in new.versions[len(before) :])


def _join(db: Any, old: list[str], new: list[str]) -> None:
    """Views `old` and `new` of the indexes, and a table `pair` with a row for each pair of either."""
    for name, cells in (("old", old), ("new", new)):
        quoted = ", ".join("'" + cell.replace("'", "''") + "'" for cell in cells)
        db.execute(f"CREATE TEMP VIEW {name}_index AS SELECT * FROM read_parquet([{quoted}])")
        # a noun may have several masks with one box and area, which are then told apart by their order
        there = columns_of(db, cells)
        scores = ", ".join(score if score in there else f"NULL::DOUBLE AS {score}" for score in _SCORES)
        db.execute(
            f"CREATE TEMP VIEW {name}_pair AS SELECT key, image_id, noun, box_xyxy, area_px, {scores},"
            " row_number() OVER (PARTITION BY image_id, noun, box_xyxy, area_px ORDER BY key) AS turn"
            f" FROM {name}_index"
        )
    db.execute(
        "CREATE TEMP TABLE pair AS SELECT image_id, noun, o.key AS old_key, n.key AS new_key,"
        + "".join(f" o.{score} AS old_{score}, n.{score} AS new_{score}," for score in _SCORES)
        + " CASE WHEN o.key IS NULL THEN 'gained' WHEN n.key IS NULL THEN 'lost' ELSE 'kept' END AS state"
        " FROM old_pair o FULL JOIN new_pair n USING (image_id, noun, box_xyxy, area_px, turn)"
    )


def _images(db: Any) -> tuple[int, int]:
    gained, lost = db.execute(
        "SELECT count(*) FILTER (before = 0), count(*) FILTER (after = 0) FROM"
        " (SELECT count(old_key) AS before, count(new_key) AS after FROM pair GROUP BY image_id)"
    ).fetchone()
    return gained, lost


def _nouns(db: Any, state: str) -> tuple[int, tuple[tuple[str, int], ...]]:
    """How many nouns one run alone has, and the first of them by pairs."""
    here, there = ("new_key", "old_key") if state == "gained" else ("old_key", "new_key")
    of_side = f"SELECT noun, count({here}) AS pairs FROM pair GROUP BY noun HAVING count({there}) = 0"
    (count,) = db.execute(f"SELECT count(*) FROM ({of_side})").fetchone()
    named = db.execute(f"{of_side} ORDER BY pairs DESC, encode(noun) LIMIT {_NAMED}").fetchall()
    return count, tuple(named)


def _medians(db: Any) -> dict[str, float | None]:
    query = "SELECT state, quantile_disc(coalesce(new_similarity, old_similarity), 0.5) FROM pair GROUP BY state"
    medians = dict(db.execute(query).fetchall())
    return {state: medians.get(state) for state in ("kept", "gained", "lost")}


def _shift(db: Any, score: str) -> Shift | None:
    moved = f"round(new_{score} - old_{score}, 6)"
    changed, quantiles = db.execute(
        f"SELECT count(*) FILTER ({moved} <> 0), quantile_disc({moved}, [0.05, 0.5, 0.95]) FROM pair"
        f" WHERE {moved} IS NOT NULL"
    ).fetchone()
    return None if not quantiles else Shift(score, changed, *quantiles)


def _histogram(db: Any) -> Histogram | None:
    """The shifts of the similarity; None where there is none."""
    shift = "round(new_similarity - old_similarity, 6)"
    (largest,) = db.execute(f"SELECT max(abs({shift})) FROM pair").fetchone()
    return count_bins(db, shift, f"pair WHERE {shift} IS NOT NULL", low=-largest, high=largest) if largest else None


def _samples(db: Any, side: str, state: str) -> tuple[SampleRow, ...]:
    """A random choice by the keys' hash, the same every time."""
    return read_samples(
        db,
        f"SELECT i.* FROM {side}_index i JOIN (SELECT {side}_key AS key FROM pair WHERE state = '{state}'"
        f" ORDER BY sha256({side}_key) LIMIT {_CARDS}) USING (key) ORDER BY sha256(key)",
    )


def _noun_line(word: str, count: int, named: tuple[tuple[str, int], ...]) -> list[Text]:
    shown = ", ".join(f"{noun} ({pairs:,})" for noun, pairs in named[:_SHOWN_NOUNS])
    rest = f" and {count - _SHOWN_NOUNS:,} more" if count > _SHOWN_NOUNS else ""
    return [Text(f"{word} nouns: {count:,}{f', {shown}{rest}' if count else ''}")]
