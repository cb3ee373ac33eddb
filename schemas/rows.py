"""One immutable row type for each step: what a cell of the run holds, one row for each image of the part.

Every cell of a part has the same images in the same order, so rows in = rows out holds by construction: an image
that is rejected keeps its row, with a `Rejection` in it. Rows of more than four fields take them by name only.

  ImageRow ─▶ ProposalsRow ─▶ EmbeddingsRow (both: RegionsRow) ─┐
  CaptionsRow ─▶ NounsRow ──────────────────────────────────────┴▶ PairsRow ─▶ SampleRow (a row for each sample)
  (with the captions of a CaptioningRow, where a model writes some)
                    └▶ VocabularyRow, LevelRow (one for each noun)    └▶ ChecksRow, where a verifier checks them
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self, get_args

from maskmine.schemas.mask import Box, Mask

Fault = Literal[
    "missing_file",  # the image is not where the source says
    "decode_error",  # the file is no image, or a broken one
    "image_too_large",  # more pixels than `max_image_pixels`, read from the header
    "image_changed",  # the file is not the one that its masks were made from
    "worker_crash",  # decoding this image ended its process, or asked for too much memory
    "record_timeout",  # decoding this image did not end in time
    "outside_folder",  # the source's record names a file that does not lie where the settings have the images
    "broken_record",  # the source's record of the image is cut off, contradicts itself or cannot be read
    "fetch_failed",  # the image's URL did not give it: no answer, a fault, too slow, too large
    "fetch_refused",  # the image's URL is not to be read: not allowed, a private address, or its owner forbids it
    "caption_failed",  # a model that was to caption the image gave no caption
]
"""Reasons why an image could not be used. `max_rejected` limits their share."""
NothingFound = Literal[
    "no_caption",  # no caption, or none that can be used
    "no_nouns",  # no noun in any caption
    "no_masks",  # no proposal survived the filters
    "no_match",  # no noun found a mask by the matching rule
    "filtered",  # pairs were found, and all fell to the filters of `pairs`
]
"""Reasons why an image that could be used has no pair. `max_empty` limits their share."""
Reason = Literal[Fault, NothingFound]
REASONS: tuple[str, ...] = get_args(Reason)
"""All reasons, for documentation and checks."""
FAULTS: tuple[str, ...] = get_args(Fault)
NOTHING_FOUND: tuple[str, ...] = get_args(NothingFound)


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why an image has no result in a step; `detail` is for people, and is the same in every run."""

    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ImageRow:
    """An image of the plan; `path` is None when the source names the image without saying where it is.

    The path of an image inside a tar or a table says where it lies: see `mining/storage/locations.py`.
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
class CaptioningRow:
    """The captions that a model wrote for an image, and the SHA-256 of the picture's file that it saw.

    `rejection` says why it has none: the picture cannot be had, or the model gave no caption (`caption_failed`).
    """

    image_id: str
    sha256: str | None
    captions: tuple[str, ...]
    rejection: Rejection | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A proposed region: its mask in the frame of the upright image (EXIF orientation applied)."""

    mask: Mask
    box_xyxy: Box
    area_px: int
    score: float
    label: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Region(Proposal):
    """A proposed region and what CLIP sees in it.

    `embedding` is the L2-normalised CLIP image embedding as little-endian float16, None without CLIP.
    """

    embedding: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalsRow:
    """The regions of an image, best score first; sizes in pixels of the upright image, `sha256` of the file's bytes.

    `left_out` says of each annotated mask of the image that could not be read why; empty in runs of format versions 1
    and 2.
    """

    image_id: str
    sha256: str | None
    height_px: int
    width_px: int
    regions: tuple[Proposal, ...]
    rejection: Rejection | None
    left_out: tuple[str, ...] = ()

    @classmethod
    def rejected(
        cls, image_id: str, rejection: Rejection, *, sha256: str | None = None, height_px: int = 0, width_px: int = 0
    ) -> Self:
        """The row of an image without regions; a file that could not be decoded has neither hash nor size."""
        return cls(
            image_id=image_id, sha256=sha256, height_px=height_px, width_px=width_px, regions=(), rejection=rejection
        )


@dataclass(frozen=True, slots=True)
class EmbeddingsRow:
    """The embedding of each region of an image, in their order, as in `Region`; none for an image without regions.

    `rejection` says why an image that has regions could not be looked at again.
    """

    image_id: str
    embeddings: tuple[bytes, ...]
    rejection: Rejection | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionsRow(ProposalsRow):
    """The regions of an image with their embeddings. Earlier versions stored them so, in cells of `regions`."""

    regions: tuple[Region, ...]

    def embeddings(self) -> EmbeddingsRow:
        """The embeddings alone. Raises ValueError when a region has none."""
        found = tuple(region.embedding for region in self.regions if region.embedding is not None)
        if len(found) < len(self.regions):
            raise ValueError(f"image {self.image_id}: {len(self.regions) - len(found)} regions have no embedding")
        return EmbeddingsRow(self.image_id, found)

    def with_embeddings(self, row: EmbeddingsRow) -> RegionsRow:
        """The row with the embeddings of its regions, or rejected as `row` is. Raises ValueError for others'."""
        if row.rejection is not None:
            return replace(self, regions=(), rejection=row.rejection)
        if row.image_id != self.image_id or len(row.embeddings) != len(self.regions):
            raise ValueError(f"image {self.image_id}: embeddings of other regions")
        pairs = zip(self.regions, row.embeddings, strict=True)
        return replace(self, regions=tuple(replace(region, embedding=embedding) for region, embedding in pairs))


@dataclass(frozen=True, slots=True)
class VocabularyRow:
    """A noun of the run: images whose captions mention it, all mentions; its CLIP text embedding as in `Region`.

    `lemma` is the first of its mentions' lemmas by their bytes; None in runs of format versions 1 and 2.
    """

    noun: str
    images: int
    mentions: int
    embedding: bytes | None
    lemma: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelRow:
    """What a noun's similarities mean, measured on the images of the first parts; see `mining/levels.py`.

    `level` is the mean, over images that do not say the noun, of its best similarity with any of their regions, and
    `spread` the standard deviation of these; `unsaid` counts the images. `separability` is the AUC of that best
    similarity between images that say the noun and images that do not, 0–1; it rests on `said` images that do.
    `prototype` is the sum of the noun's best regions in these images, each a centred unit vector times its lift, as
    little-endian float32, and `weight` the sum of the lifts. None where there is no image to measure it on.
    """

    noun: str
    level: float | None
    spread: float | None
    separability: float | None
    said: int
    unsaid: int
    prototype: bytes | None
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A noun and the region that it names.

    `similarity` is the cosine of the two embeddings, None without CLIP. `margin` is similarity minus that of the best
    other region of the image for the noun (−1, the least cosine, where there is no other), so it is negative when the
    rule did not choose the noun's best region. `rank` is 0 when, of the image's nouns, this one fits the region best;
    without CLIP it counts the noun's regions, largest first.

    `lift` is similarity minus the noun's level (`LevelRow`). `lead`, `gap`, `agreement` and `separability` are further
    evidence, see `mining/scores/features.py`, and `evidence` their weighted sum. `confidence` is the calibrated
    probability that the pair is right, 0–1; None without a calibration. All are None without CLIP, for a noun without a
    level, and in runs of format versions 1 and 2.
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
    lift: float | None = None
    lead: float | None = None
    gap: float | None = None
    agreement: float | None = None
    separability: float | None = None
    evidence: float | None = None
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class PairsRow:
    """The pairs of an image, in the order of the nouns in its captions."""

    image_id: str
    pairs: tuple[Pair, ...]
    rejection: Rejection | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairCheck:
    """What a verifier says of a pair, which is known by noun and `Mask.digest` of its region's mask.

    `presence`, 0–1: whether the noun is in the picture at all; `agreement`, 0–1: the best IoU of the region with what
    the verifier finds for the noun. Both are None where the verifier cannot read the noun, and `reason` says why.
    """

    noun: str
    mask: str
    presence: float | None
    agreement: float | None
    reason: Literal["text_too_long"] | None = None


@dataclass(frozen=True, slots=True)
class ChecksRow:
    """The checks of an image's pairs, one for each and in their order; `sha256` of the picture that was looked at."""

    image_id: str
    sha256: str | None
    checks: tuple[PairCheck, ...]
    rejection: Rejection | None


@dataclass(frozen=True, slots=True)
class NegativesRow:
    """Nouns that an image does not show, those nearest to what it says first; none for a rejected image."""

    image_id: str
    negatives: tuple[str, ...]


Verdict = Literal[
    "right",  # the mask shows what the noun names
    "wrong_noun",  # the noun names nothing that the mask shows, or nothing that can be seen
    "bad_mask",  # the noun is there, but the mask is of nothing or of too little or too much
    "cannot_say",
]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainVerdictRow:
    """What a reviewer says of a pair. A pair is known by image, noun and mask, so a verdict survives regeneration.

    `mask` is `Mask.digest` of the region's mask; `at` the time, ISO 8601 in UTC with microseconds; `seconds` how long
    the pair was looked at, None where that is not known.
    """

    image_id: str
    noun: str
    mask: str
    verdict: Verdict
    reviewer: str
    at: str
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictRow(PlainVerdictRow):
    """A verdict with what the reviewer gives in place of the noun or the mask; None where nothing is replaced.

    A pair that is called wrong stays in the set when what is wrong with it is replaced.
    """

    corrected_noun: str | None = None
    corrected_mask: Mask | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedImage:
    """An image without pairs, and why."""

    image_id: str
    part: int
    step: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginRow:
    """Where an image of a mix is from: image `image_there` of the set that the manifest calls `run`.

    `file` is the name of its file below a folder that is called as that set. `sha256` is that of the file's bytes,
    `look` the perceptual hash in 16 hex digits, and the size that of the upright image; None where they are not known.
    """

    image_id: str
    run: str
    image_there: str
    file: str | None
    sha256: str | None
    look: str | None
    height_px: int | None
    width_px: int | None

    @property
    def look_bits(self) -> int | None:
        """The perceptual hash as a number."""
        return None if self.look is None else int(self.look, 16)


@dataclass(frozen=True, slots=True)
class SelectionRow:
    """The cut for a noun with more than `max_per_noun` pairs: of its pairs' hashes, `last` is the greatest kept."""

    noun: str
    last: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UncheckedSampleRow:
    """The index of a shard whose pairs no verifier checked, a row a sample.

    `offset` and `size_bytes` span its members in the tar and their headers. `source` names the caption source; it is
    None in runs of format version 1. `lift`, `evidence` and `confidence` are those of the pair; None in runs of format
    versions 1 and 2, as is `crc32`, the CRC-32 of all bytes of the span.
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
    lift: float | None = None
    evidence: float | None = None
    confidence: float | None = None
    crc32: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedSampleRow(UncheckedSampleRow):
    """The index of a shard whose pairs a verifier checked; `presence` and `agreement` are those of the pair's check."""

    presence: float | None = None
    agreement: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow(CheckedSampleRow):
    """The index of a shard of a set that has negatives or corrections.

    `negatives` are nouns that the image does not show, `corrected` what of the pair a reviewer replaced, `mask` or
    `noun`; both are empty in other sets, where presence and agreement may be None.
    """

    negatives: tuple[str, ...] = ()
    corrected: tuple[str, ...] = ()
