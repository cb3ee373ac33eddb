"""Caption quality: counts of likely faults, and the most repeated captions.

Nothing is left out because of them; they show what to check before a large run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from maskmine.mining.storage.query import query_tables
from maskmine.mining.storage.tally import Tally

FEW_WORDS, MANY_WORDS = 3, 50  # beyond these, a caption names little, or is no caption
SHOWN_CHARS = 200  # of a caption in a report, about three lines

_TESTS = {
    "empty": "text = ''",
    f"fewer than {FEW_WORDS} words": f"text <> '' AND words < {FEW_WORDS}",
    f"more than {MANY_WORDS} words": f"words > {MANY_WORDS}",
    "only a file name": r"regexp_full_match(text, '\S+\.(jpe?g|png|gif|webp|bmp|tiff?|heic)') OR text = stem",
    "with a web address": r"regexp_matches(text, 'https?://|\bwww\.')",
    "with HTML": r"regexp_matches(text, '</?[a-z][^<>]*>|&(#[0-9]+|[a-z]+[0-9]*);')",
    "with words of picture agencies": (
        r"regexp_matches(text, '\b(stock (photo|image|picture|vector|illustration)s?|royalty[ -]free|shutterstock|"
        r"getty images|all rights reserved|copyright|image may contain|click (here|to))\b|©')"
    ),
    "with characters beyond ASCII": r"regexp_matches(text, '[^\x00-\x7F]')",
}


@dataclass(frozen=True, slots=True)
class CaptionQuality:
    """Counts of captions. `faults` has a count for each kind of fault, of which a caption may have several.

    `repeated` captions belong to more than one image; `commonest` are the first of them with the number of their
    images, cut after 200 characters, upper and lower case as one.
    """

    captions: int
    faults: dict[str, int]
    repeated: int
    commonest: tuple[tuple[str, int], ...]


def caption_quality(
    blocks: Iterable[tuple[pa.Table, pa.Table]], *, most: int = 10, memory_limit: str = "1GB"
) -> CaptionQuality:
    """Count over blocks of captions and of their images, the columns `image_id` and `captions`, and `image_id` and
    `path`; in `memory_limit` and temporary files. All captions of an image are in one block."""
    with query_tables(memory_limit=memory_limit) as db:
        counter = CaptionCounter(db)
        for captions, images in blocks:
            counter.add(captions, images)
        return counter.result(most=most)


class CaptionCounter:
    """`caption_quality` over a connection to DuckDB, a block after the other."""

    def __init__(self, db: Any) -> None:
        self._db, self._total, self._faults = db, 0, Counter[str]()
        self._said = Tally(db, "said", "text VARCHAR")  # with the number of their images

    def add(self, captions: pa.Table, images: pa.Table) -> None:
        """Count a block."""
        db = self._db
        for name, table in (("caption_rows", captions), ("image_rows", images)):
            db.register(name, table)
        db.execute(
            r"""
            CREATE OR REPLACE TEMP TABLE mention AS
            WITH image AS (
                SELECT image_id, lower(regexp_extract(coalesce(path, ''), '([^/\\]*?)(\.[^./\\]*)?$', 1)) AS stem
                FROM image_rows
            ), caption AS (
                SELECT image_id, lower(trim(unnest(captions))) AS text FROM caption_rows
            )
            SELECT image_id, text, nullif(stem, '') AS stem,
                   len(regexp_split_to_array(text, '\s+')) AS words
            FROM caption LEFT JOIN image USING (image_id)
            """
        )
        counts = ", ".join(f"count(*) FILTER ({test})" for test in _TESTS.values())
        total, *counted = db.execute(f"SELECT count(*), {counts} FROM mention").fetchall()[0]
        self._total += total
        self._faults.update(dict(zip(_TESTS, counted, strict=True)))
        self._said.add("SELECT text, count(DISTINCT image_id) FROM mention WHERE text <> '' GROUP BY text")

    def result(self, *, most: int = 10) -> CaptionQuality:
        """The counts, and the `most` most repeated captions."""
        said = self._said.sum_up()
        (repeated,) = self._db.execute(f"SELECT coalesce(sum(n), 0)::BIGINT FROM {said} WHERE n > 1").fetchall()[0]
        commonest = self._db.execute(
            f"SELECT text, n FROM {said} WHERE n > 1 ORDER BY n DESC, text LIMIT $most", {"most": most}
        ).fetchall()
        shown = ((text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…", count) for text, count in commonest)
        return CaptionQuality(self._total, {name: self._faults[name] for name in _TESTS}, repeated, tuple(shown))
