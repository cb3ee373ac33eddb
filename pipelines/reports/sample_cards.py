"""The pictures of a report: pairs as small cards, read out of the shards; rejected photographs.

Pictures are `data:` URIs, so that the page needs no other file.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image

from mining.decoder import Decoding
from mining.exports.stored import StoredSample, parse_sample
from mining.query import query_cells
from mining.stores import fault_line, fetch, scheme_of
from pipelines.run_folder import RunFolder
from schemas.errors import IncompleteError
from schemas.rows import CaptionsRow, ImageRow, RejectedImage, Rejection, SampleRow

_SIDE_PX, _PHOTO_PX = 168, 200
_VEIL_RGB, _VEIL_SHARE = (123, 117, 104), 0.75  # CLIP's mean colour lies over what is outside the mask
_QUALITY = 78
_AT_ONCE = 8
_MOST_PIXELS = 50_000_000
_CAPTION_CHARS = 160
_CARD_BYTES = 400
# Reasons of rejections whose photographs can be shown, unless they turn out to be unreadable.
_READABLE = ("no_caption", "no_nouns", "no_masks", "no_match", "filtered", "image_changed")
_REMOTE = ("http", "https")


@dataclass(frozen=True, slots=True)
class Chosen:
    """Samples to show: the most and the least similar pairs (one of each noun), a gallery, and those to look up."""

    best: tuple[SampleRow, ...]
    worst: tuple[SampleRow, ...]
    gallery: tuple[SampleRow, ...]
    search: tuple[SampleRow, ...]


@dataclass(frozen=True, slots=True)
class Card:
    """A pair with its picture: what is outside the mask is veiled. The caption is cut around the noun."""

    picture: str
    noun: str
    similarity: str
    margin: str
    before: str
    said: str
    after: str
    image_id: str

    @property
    def size_bytes(self) -> int:
        """About so much of a page does it take."""
        return len(self.picture) + 2 * len(self.before + self.said + self.after) + _CARD_BYTES


@dataclass(frozen=True, slots=True)
class RejectedCard:
    """A rejected image; `picture` is empty where it cannot be shown."""

    image_id: str
    detail: str
    caption: str
    picture: str


def choose_samples(
    indexes: Sequence[str], *, pairs: int, gallery: int, search: int, memory_limit: str = "1GB"
) -> Chosen:
    """The samples to show, which follow from the index tables at these paths alone; random ones by their keys' hash.

    For looking up: one of each noun, the commonest nouns first, then a second of each, as far as `search` goes.
    """
    with query_cells(indexes, memory_limit=memory_limit) as (db, cells):

        def rows(query: str) -> tuple[SampleRow, ...]:
            found = db.execute(query, {"cells": cells})
            names = [column[0] for column in found.description]
            return tuple(sample_row(dict(zip(names, values, strict=True))) for values in found.fetchall())

        ends = (
            "SELECT * FROM read_parquet($cells) WHERE similarity IS NOT NULL QUALIFY row_number() OVER"
            " (PARTITION BY noun ORDER BY similarity {0}, key) = 1 ORDER BY similarity {0}, key LIMIT {1}"
        )
        return Chosen(
            best=rows(ends.format("DESC", pairs)),
            worst=rows(ends.format("ASC", pairs)),
            gallery=rows(f"SELECT * FROM read_parquet($cells) ORDER BY sha256(key) LIMIT {gallery}"),
            search=rows(
                "WITH ranked AS (SELECT key, noun, count(*) OVER (PARTITION BY noun) AS pairs, row_number() OVER"
                " (PARTITION BY noun ORDER BY sha256(key)) AS turn FROM read_parquet($cells)), first AS (SELECT key,"
                f" turn, pairs FROM ranked ORDER BY turn, pairs DESC, encode(noun), key LIMIT {search})"
                " SELECT s.* FROM read_parquet($cells) s JOIN first f USING (key)"
                " ORDER BY f.turn, f.pairs DESC, encode(s.noun), key"
            ),
        )


def make_cards(run: RunFolder, rows: Iterable[SampleRow], *, most_bytes: int) -> list[Card]:
    """Cards of as many of the samples, in their order, as fit into so many bytes of a page.

    Raises IncompleteError when a shard does not hold a sample where its index has it.
    """
    cards: list[Card] = []
    taken = 0
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for card in pool.map(partial(_card, run), rows):
            taken += card.size_bytes
            if taken > most_bytes:
                break
            cards.append(card)
    return cards


def make_rejected_cards(run: RunFolder, images: Sequence[RejectedImage]) -> list[RejectedCard]:
    """Rejected images with their captions, and their photographs where these can be read."""
    cards = []
    for image in images:
        name = f"{image.part:05d}.parquet"
        said = next(r for r in run.read_rows("captions", name, row_type=CaptionsRow) if r.image_id == image.image_id)
        picture = ""
        if image.reason in _READABLE:
            rows = run.read_rows("images", name, row_type=ImageRow)
            picture = _photo(next(row.path for row in rows if row.image_id == image.image_id))
        caption = said.captions[0] if said.captions else ""
        cards.append(RejectedCard(image.image_id, image.detail, caption[:_CAPTION_CHARS], picture))
    return cards


def read_sample(run: RunFolder, row: SampleRow) -> StoredSample:
    """A sample out of its shard. Raises IncompleteError when it is not where the index has it, or cannot be read."""
    place = run.path("shards", row.shard)
    try:
        span = fetch(place, start=row.offset, most_bytes=row.size_bytes)
    except FileNotFoundError as error:
        raise IncompleteError(f"{place}: missing; run `maskmine mine` again") from error
    except OSError as error:
        raise IncompleteError(fault_line(error, place)) from error
    return parse_sample(span, row, place=place)


def data_uri(image: Image.Image) -> str:
    """A picture for `src`, as JPEG."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def sample_row(values: dict[str, Any]) -> SampleRow:
    """A row of the index as DuckDB gives it."""
    return SampleRow(**{**values, **{name: tuple(values[name]) for name in ("box_xyxy", "crop_xyxy")}})


def _card(run: RunFolder, row: SampleRow) -> Card:
    sample = read_sample(run, row)
    with Image.open(io.BytesIO(sample.image)) as crop, Image.open(io.BytesIO(sample.mask_png)) as mask:
        scale = min(1.0, _SIDE_PX / max(crop.size)) if max(crop.size) > _SIDE_PX // 2 else 2.0
        size = (max(1, round(crop.width * scale)), max(1, round(crop.height * scale)))
        picture = crop.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        veiled = Image.blend(picture, Image.new("RGB", size, _VEIL_RGB), _VEIL_SHARE)
        shown = Image.composite(picture, veiled, mask.convert("L").resize(size, Image.Resampling.BILINEAR))
    start, end = _window(row)
    return Card(
        data_uri(shown),
        row.noun,
        "" if row.similarity is None else f"{row.similarity:.3f}",
        "" if row.margin is None else f"{row.margin:.3f}",
        ("…" if start else "") + row.caption[start : row.start],
        row.caption[row.start : row.end],
        row.caption[row.end : end] + ("…" if end < len(row.caption) else ""),
        row.image_id,
    )


def _window(row: SampleRow) -> tuple[int, int]:
    """Where a long caption is cut, around the noun."""
    room = max(0, _CAPTION_CHARS - (row.end - row.start))
    start = max(0, min(row.start - room // 2, len(row.caption) - _CAPTION_CHARS))
    return start, max(row.end, start + _CAPTION_CHARS)


def _photo(path: str | None) -> str:
    """A photograph, or nothing when it cannot be read. It is decoded in another process, and never fetched."""
    if path is None or scheme_of(path) in _REMOTE:
        return ""
    picture = Decoding().read(path, max_pixels=_MOST_PIXELS)
    if isinstance(picture, Rejection):
        return ""
    image = Image.fromarray(picture.rgb_HW3)
    image.thumbnail((_PHOTO_PX, _PHOTO_PX))
    return data_uri(image)
