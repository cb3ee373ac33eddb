"""One immutable row type for each step: what a cell of the run holds, one row for each image of the part.

Every cell of a part has the same images in the same order, so rows in = rows out holds by construction: an image
that comes to nothing keeps its row, with a `Rejection` in it.

  ImageRow ─▶ RegionsRow ─┐
  CaptionsRow ─▶ NounsRow ┴▶ PairsRow ─▶ SampleRow (one for each sample in a shard)
                    └▶ VocabularyRow (one for each noun)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from schemas.mask import Box, Mask

Reason = Literal[
    "missing_file",  # the picture is not where the source says
    "decode_error",  # the file is no picture, or a broken one
    "image_too_large",  # more pixels than `max_image_pixels`, read from the header
    "image_changed",  # the picture is not the one that its masks were made from
    "no_caption",  # no caption, or none that can be used
    "no_nouns",  # no noun in any caption
    "no_masks",  # no proposal survived the filters
    "no_match",  # no noun found a mask by the matching rule
    "filtered",  # pairs were found, and all fell to the thresholds of `shards`
    "worker_crash",  # decoding this picture ended its process, or asked for too much memory
    "record_timeout",  # decoding this picture did not end in time
    "broken_record",  # the source's record of the image is cut off, contradicts itself or cannot be read
    "fetch_failed",  # the picture's URL did not give it: no answer, a fault, too slow, too large
    "fetch_refused",  # the picture's URL is not to be read: a private address, or its owner forbids it
]
REASONS: tuple[str, ...] = get_args(Reason)


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why an image came to nothing in a step; `detail` is for people, and is the same in every run."""

    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ImageRow:
    """An image of the plan; `path` is None when the source names the image without saying where it is.

    A picture inside a tar or a table has a path that says where: see `mining/places.py`.
    """

    image_id: str
    path: str | None


@dataclass(frozen=True, slots=True)
class CaptionsRow:
    """The captions that the plan chose for an image: source after source, in each by its order.

    `sources` names the source of each caption, `additional` has what was kept of its record, as JSON. Both are empty
    in runs of format version 1.
    """

    image_id: str
    captions: tuple[str, ...]
    sources: tuple[str, ...] = ()
    additional: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Noun:
    """One mention: `captions[caption][start:end].lower() == text`, in characters; a run of space is one in `text`."""

    text: str
    lemma: str
    caption: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class NounsRow:
    """Every mention of a noun in the image's captions, by caption and position.

    `skipped` has one word for each caption that was not read (`empty`, `too_long`).
    """

    image_id: str
    nouns: tuple[Noun, ...]
    skipped: tuple[str, ...]
    rejection: Rejection | None


@dataclass(frozen=True, slots=True)
class Region:
    """A proposed region: its mask in the frame of the upright image (EXIF orientation applied), what CLIP sees in it.

    `embedding` is the L2-normalised CLIP image embedding as little-endian float16, None without CLIP.
    """

    mask: Mask
    box_xyxy: Box
    area_px: int
    score: float
    label: str | None
    embedding: bytes | None


@dataclass(frozen=True, slots=True)
class RegionsRow:
    """The regions of an image, best score first; sizes in pixels of the upright image, `sha256` of the file's bytes."""

    image_id: str
    sha256: str | None
    height_px: int
    width_px: int
    regions: tuple[Region, ...]
    rejection: Rejection | None


@dataclass(frozen=True, slots=True)
class VocabularyRow:
    """A noun of the run: in how many images and how often it is said; its CLIP text embedding as in `Region`."""

    noun: str
    images: int
    mentions: int
    embedding: bytes | None


@dataclass(frozen=True, slots=True)
class Pair:
    """A noun and the region that it names.

    `similarity` is the cosine of the two embeddings, None without CLIP. `margin` is similarity minus that of the best
    other region of the image for the noun (−1, the least cosine, where there is no other), so it is negative when the
    rule did not choose the noun's best region. `rank` is 0 when, of the image's nouns, this one fits the region best;
    without CLIP it counts the noun's regions, largest first.
    """

    noun: str
    lemma: str
    caption: int
    start: int
    end: int
    region: int
    similarity: float | None
    margin: float | None
    rank: int


@dataclass(frozen=True, slots=True)
class PairsRow:
    """The pairs of an image, in the order of the nouns in its captions."""

    image_id: str
    pairs: tuple[Pair, ...]
    rejection: Rejection | None


@dataclass(frozen=True, slots=True)
class RejectedImage:
    """An image that came to nothing, and why."""

    image_id: str
    part: int
    step: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class SelectionRow:
    """The cut for a noun with more than `max_per_noun` pairs: of its pairs' hashes, `last` is the greatest kept."""

    noun: str
    last: str


@dataclass(frozen=True, slots=True)
class SampleRow:
    """The index of a shard, a row a sample: `offset` and `size_bytes` span its members in the tar and their headers.

    `source` names the caption source; it is None in runs of format version 1.
    """

    key: str
    image_id: str
    noun: str
    lemma: str
    caption: str
    start: int
    end: int
    box_xyxy: Box
    crop_xyxy: Box
    area_px: int
    similarity: float | None
    margin: float | None
    rank: int
    score: float
    label: str | None
    shard: str
    offset: int
    size_bytes: int
    source: str | None = None
