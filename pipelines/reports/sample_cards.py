"""The images of a report: pairs as small cards, read from the shards, and rejected images.

Images are `data:` URIs, so the page needs no other file.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from PIL import Image

from maskmine.mining.exports.images import decode
from maskmine.mining.images.child_decoder import Decoding
from maskmine.mining.storage.stores import scheme_of
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.schemas.rows import NOTHING_FOUND, CaptionsRow, ImageRow, RegionsRow, RejectedImage, Rejection, SampleRow

_SIDE_PX, _PHOTO_PX = 168, 200  # of a crop and of a rejected image, as wide as their cards
_VEIL_RGB, _VEIL_SHARE = (123, 117, 104), 0.75  # CLIP's mean colour lies over what is outside the mask
_QUALITY = 78  # JPEG: small, and without visible blocks at this size
_THREADS = 8  # reading and JPEG release Python's lock
_MAX_PIXELS = 50_000_000  # as `regions.max_image_pixels` by default
_CAPTION_CHARS = 160  # about three lines of a card
_CARD_BYTES = 400  # HTML of a card beside its image and caption
# Reasons of rejections whose images can be shown, where they are still those that the run read.
_READABLE = NOTHING_FOUND
_REMOTE = ("http", "https")  # a report fetches nothing


@dataclass(frozen=True, slots=True)
class Card:
    """A pair with its image, veiled outside the mask; `before`, `noun_text` and `after` are parts of the caption."""

    picture: str
    noun: str
    similarity: str
    margin: str
    before: str
    noun_text: str
    after: str
    image_id: str

    @property
    def size_bytes(self) -> int:
        """Roughly what the card takes of a page."""
        return len(self.picture) + 2 * len(self.before + self.noun_text + self.after) + _CARD_BYTES


@dataclass(frozen=True, slots=True)
class RejectedCard:
    """A rejected image; `picture` is empty where it cannot be shown."""

    image_id: str
    detail: str
    caption: str
    picture: str


def make_cards(finished: FinishedRun, rows: Iterable[SampleRow], *, most_bytes: int) -> list[Card]:
    """Cards of the samples in their order, as many as fit into `most_bytes` of a page.

    Raises IncompleteError when a shard does not hold a sample where its index has it.
    """
    cards: list[Card] = []
    taken = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        for card in pool.map(partial(_card, finished), rows):
            taken += card.size_bytes
            if taken > most_bytes:
                break
            cards.append(card)
    return cards


def make_rejected_cards(finished: FinishedRun, images: Sequence[RejectedImage]) -> list[RejectedCard]:
    """Rejected images with their captions, shown where they can be read."""
    cards = []
    for image in images:
        digests = finished.columns(image.part, RegionsRow, ["sha256"])["sha256"].to_pylist()
        of_part = finished.rows(image.part, CaptionsRow), finished.rows(image.part, ImageRow), digests
        rows = zip(*of_part, strict=True)
        captions, planned, sha256 = next(row for row in rows if row[0].image_id == image.image_id)
        caption = captions.captions[0] if captions.captions else ""
        picture = _photo(planned.path, sha256) if image.reason in _READABLE else ""
        cards.append(RejectedCard(image.image_id, image.detail, caption[:_CAPTION_CHARS], picture))
    return cards


def data_uri(image: Image.Image) -> str:
    """An image for `src`, as JPEG."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _card(finished: FinishedRun, row: SampleRow) -> Card:
    cutout = decode(finished.sample(row))
    crop, mask = cutout.image, cutout.mask
    scale = min(1.0, _SIDE_PX / max(crop.size)) if max(crop.size) > _SIDE_PX // 2 else 2.0
    size = (max(1, round(crop.width * scale)), max(1, round(crop.height * scale)))
    picture = crop.resize(size, Image.Resampling.BICUBIC)
    veiled = Image.blend(picture, Image.new("RGB", size, _VEIL_RGB), _VEIL_SHARE)
    shown = Image.composite(picture, veiled, mask.resize(size, Image.Resampling.BILINEAR))
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


def _photo(path: str | None, sha256: str | None) -> str:
    """The image at a path as a URI, empty when it is not the one that the run read; never fetched."""
    if path is None or scheme_of(path) in _REMOTE:
        return ""
    picture = Decoding().read(path, max_pixels=_MAX_PIXELS)
    if isinstance(picture, Rejection) or picture.sha256 != sha256:
        return ""
    image = Image.fromarray(picture.rgb_HW3)
    image.thumbnail((_PHOTO_PX, _PHOTO_PX))
    return data_uri(image)
