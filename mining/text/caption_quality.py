"""Caption quality: counts of likely faults, and the most repeated captions.

Nothing is left out because of them; they show what to check before a large run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from maskmine.mining.storage.query import query_cells

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
    captions: Sequence[str], images: Sequence[str], *, most: int = 10, memory_limit: str = "1GB"
) -> CaptionQuality:
    """Count over the cells of `captions` and `images` at these paths, in `memory_limit` and temporary files."""
    counts = ", ".join(f"count(*) FILTER ({test})" for test in _TESTS.values())
    with query_cells([*captions, *images], memory_limit=memory_limit) as (connection, cells):
        connection.execute(
            r"""
            CREATE TEMP TABLE mention AS
            WITH image AS (
                SELECT image_id, lower(regexp_extract(coalesce(path, ''), '([^/\\]*?)(\.[^./\\]*)?$', 1)) AS stem
                FROM read_parquet($images)
            ), caption AS (
                SELECT image_id, lower(trim(unnest(captions))) AS text FROM read_parquet($captions)
            )
            SELECT image_id, text, nullif(stem, '') AS stem,
                   len(regexp_split_to_array(text, '\s+')) AS words
            FROM caption LEFT JOIN image USING (image_id)
            """,
            {"captions": cells[: len(captions)], "images": cells[len(captions) :]},
        )
        total, *counted = connection.execute(f"SELECT count(*), {counts} FROM mention").fetchone()
        grouped = "SELECT text, count(DISTINCT image_id) AS images FROM mention WHERE text <> '' GROUP BY text"
        (repeated,) = connection.execute(
            f"SELECT coalesce(sum(images), 0)::BIGINT FROM ({grouped}) WHERE images > 1"
        ).fetchone()
        commonest = connection.execute(
            f"SELECT text, images FROM ({grouped}) WHERE images > 1 ORDER BY images DESC, text LIMIT $most",
            {"most": most},
        ).fetchall()
    shown = tuple((text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…", count) for text, count in commonest)
    return CaptionQuality(total, dict(zip(_TESTS, counted, strict=True)), repeated, shown)
