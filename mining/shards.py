"""Shards: crops, masks, nouns and scores of a part as one deterministic USTAR tar, with its index and its account."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Annotated, Any, Literal, NamedTuple

from PIL import Image
from pydantic import Field

from maskmine.mining.evaluation.corrections import Decisions, corrected_pair, corrected_region
from maskmine.mining.images.crops import grow_box
from maskmine.mining.images.decode import DecodedImage
from maskmine.mining.images.encode import encode_image, encode_mask
from maskmine.mining.sources.entries import NOTHING_MORE
from maskmine.mining.storage.files import HashingFile
from maskmine.mining.storage.prefetch import map_in_order
from maskmine.schemas.mask import Box, Mask
from maskmine.schemas.rows import (
    FAULTS,
    ImageRow,
    Pair,
    PairCheck,
    PairsRow,
    Proposal,
    ProposalsRow,
    Rejection,
    SampleRow,
)
from maskmine.schemas.sample import (
    CHECKED_VERSION,
    FORMAT_VERSION,
    WHOLE_VERSION,
    ImageFormat,
    Sample,
    Writer,
    sample_key,
    write_end_of_tar,
    write_sample,
)
from maskmine.schemas.settings import AnyPath, ExecutionOnly, Settings

Tick = Callable[[int], None]
KeepPair = Callable[[str, int, Pair, PairCheck | None], bool]
KeepCorrected = Callable[[str, int, str], bool]
ReadImage = Callable[[str | None], DecodedImage | Rejection]
ReadFile = Callable[[str | None], bytes | Rejection]
Cut = list[tuple[Sample, Proposal]]

MOST_IN_PART = 1000
"""Images of a part of a large set, where the settings leave it open."""
_NOTHING_DECIDED = Decisions()
_PARTS, _FEWEST_IN_PART = 16, 20  # of a small set; a part costs a fraction of a second, whatever is in it


class Shards(Settings):
    """How samples are cut and encoded."""

    images_per_part: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Images of a part, the unit of work, of retries and of output: each part becomes one shard. `auto` cuts a set into
    16 parts of 20 to 1,000 images, or more parts of 1,000, so that several workers share a small set and a killed run
    loses little; it depends on the number of images alone."""
    image_format: ImageFormat = "jpg"
    """Format of the crops; png is lossless."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """Quality of jpg and webp, 1–100."""
    expand_ratio: Annotated[float, Field(ge=1.0, le=10.0)] = 1.2
    """Factor by which the tight box of the mask is grown around its centre before the crop is cut, so that training can
    choose how much of the surroundings to use."""
    verdicts: AnyPath | None = None
    """Verdicts of `maskmine review` or `import-verdicts`, their folder or a CSV: pairs whose last verdict is
    `wrong_noun` or `bad_mask` are left out, or written with the noun or mask that the reviewer gave in place of the
    wrong one. Verdicts of other pairs do no harm; null leaves out none."""
    threads: Annotated[int, ExecutionOnly(), Field(ge=1, le=64)] = 2
    """Threads that decode and encode at the same time."""

    def images_in_part(self, images: int | None) -> int:
        """How many images a part has at most, in a set of `images`; None where their number is not known yet."""
        if self.images_per_part != "auto":
            return self.images_per_part
        return MOST_IN_PART if images is None else min(MOST_IN_PART, max(_FEWEST_IN_PART, -(-images // _PARTS)))


@dataclass(frozen=True, slots=True)
class ImageToWrite:
    """Everything about an image that its samples need; rejected images come along, to be counted.

    `sources` and `additional` are those of the captions, see `CaptionsRow`; `checks` those of the pairs, one for each,
    or None where no verifier checks them; `negatives` nouns that the image does not show.
    """

    image: ImageRow
    captions: tuple[str, ...]
    regions: ProposalsRow
    pairs: PairsRow
    rejected: tuple[str, Rejection] | None
    sources: tuple[str, ...] = ()
    additional: tuple[str, ...] = ()
    checks: tuple[PairCheck, ...] | None = None
    negatives: tuple[str, ...] = ()

    def check_of(self, number: int) -> PairCheck | None:
        """The check of a pair by its number."""
        return None if self.checks is None else self.checks[number]


RegionName = tuple[Box, int, float, str | None]
"""What an index says of a sample's region: box, area, score and label. Several regions of an image may share it."""


class KnownSamples(NamedTuple):
    """Files of an image's samples that need not be encoded again, as they have the bytes that they would have here:
    crops by their boxes, masks by the crop's box and the region's name."""

    crops: Mapping[Box, bytes]
    masks: Mapping[tuple[Box, RegionName], bytes]


NOTHING_KNOWN = KnownSamples({}, {})


@dataclass(frozen=True, slots=True)
class Known:
    """What need not be encoded again.

    `find` has the samples of `(image id, SHA-256 of its file)`; `read_file` gives the bytes that `read` of
    `write_shard` decodes, for whether a file is still that one.
    """

    find: Callable[[str, str], KnownSamples]
    read_file: ReadFile


@dataclass(frozen=True, slots=True)
class ShardAccount:
    """The outcome of the images of a part: `images = with_pairs + sum(rejections)`, checked where it is made.

    `pairs` are those that the rule made, `samples` those that were written.
    """

    images: int
    with_pairs: int
    pairs: int
    samples: int
    size_bytes: int
    sha256: str
    rejections: tuple[tuple[str, str, Rejection], ...]
    """`(image id, step, rejection)` for each image without a pair, in the order of the part."""
    masks_left_out: tuple[tuple[str, str], ...] = ()
    """`(image id, detail)` for each annotated mask that could not be read, of images that have others."""

    @property
    def by_reason(self) -> dict[str, int]:
        """Number of rejected images for each `step: reason`, in the order of the words."""
        return dict(sorted(Counter(f"{step}: {r.reason}" for _, step, r in self.rejections).items()))


def write_shard(
    file: Writer,
    images: Iterable[ImageToWrite],
    *,
    shards: Shards,
    keep: KeepPair,
    shard: str,
    read: ReadImage,
    version: int = FORMAT_VERSION,
    decisions: Decisions = _NOTHING_DECIDED,
    keep_corrected: KeepCorrected = lambda *_: True,
    known: Known | None = None,
    tick: Tick = lambda _: None,
) -> tuple[list[SampleRow], ShardAccount]:
    """Write the samples of a part to an open file; returns the index and the account.

    `keep` decides for `(image id, number, pair, its check)` whether it is written, `keep_corrected` for `(image id,
    number, noun)` of those that a reviewer corrected; those that `decisions` call wrong never are.
    `shard` is the tar's name in the index. `read` gives the image at a path, and is called in several threads. An image
    whose crops are all `known` is not decoded; only its file is read. A few images are in memory at a time. Raises
    OSError when the file cannot be written.
    """
    out = HashingFile(file)
    index: list[SampleRow] = []
    rejections: list[tuple[str, str, Rejection]] = []
    masks_left_out: list[tuple[str, str]] = []
    image_count = with_pairs = pairs = 0

    def cut(item: ImageToWrite) -> tuple[ImageToWrite, Cut | tuple[str, Rejection]]:
        if item.rejected:
            return item, item.rejected
        chosen = list(_chosen(item, keep, keep_corrected, decisions))
        return item, cut_samples(item, chosen, shards=shards, read=read, version=version, known=known)

    for item, result in map_in_order(cut, images, threads=shards.threads):
        image_count += 1
        pairs += len(item.pairs.pairs)
        masks_left_out += [(item.image.image_id, detail) for detail in item.regions.left_out]
        if isinstance(result, list):
            with_pairs += 1
            for sample, region in result:
                offset, out.crc32 = out.size_bytes, 0
                size_bytes = write_sample(out, sample, image_format=shards.image_format)
                span = (offset, size_bytes, out.crc32)
                index.append(_sample_row(sample, region, shard=shard, span=span))
        else:
            rejections.append((item.image.image_id, *result))
        tick(1)
    write_end_of_tar(out, size_bytes=out.size_bytes)
    if image_count != with_pairs + len(rejections):
        raise AssertionError(f"{shard}: {image_count} images, {with_pairs} with pairs, {len(rejections)} rejected")
    counts = (image_count, with_pairs, pairs, len(index), out.size_bytes)
    return index, ShardAccount(*counts, out.sha256, tuple(rejections), tuple(masks_left_out))


def first_rejection(**steps: Rejection | None) -> tuple[str, Rejection] | None:
    """The first of the given steps that rejected an image, with its rejection; a fault before that nothing was found.

    So a record that is broken, or whose picture is missing, is never told as one without a caption.
    """
    rejected = [(step, rejection) for step, rejection in steps.items() if rejection]
    return next((one for one in rejected if one[1].reason in FAULTS), next(iter(rejected), None))


@dataclass(frozen=True, slots=True)
class ChosenPair:
    """A pair that is written, with its number among the image's, as a reviewer corrected it where one did."""

    number: int
    pair: Pair
    region: Proposal
    check: PairCheck | None
    corrected: tuple[str, ...] = ()


def _chosen(
    item: ImageToWrite, keep: KeepPair, keep_corrected: KeepCorrected, decisions: Decisions
) -> Iterator[ChosenPair]:
    """The pairs of an image that are written. One with a corrected mask of another size than the image is not."""
    image_id, regions = item.image.image_id, item.regions
    for number, pair in enumerate(item.pairs.pairs):
        region, check = regions.regions[pair.region], item.check_of(number)
        name = (image_id, pair.noun, region.mask.digest) if decisions else ("", "", "")
        if name in decisions.wrong:
            continue
        correction = decisions.corrections.get(name)
        if correction is None:
            if keep(image_id, number, pair, check):
                yield ChosenPair(number, pair, region, check)
            continue
        mask, pair = correction.mask, corrected_pair(pair, correction, caption=item.captions[pair.caption])
        fits = mask is None or (mask.height_px, mask.width_px) == (regions.height_px, regions.width_px)
        if fits and keep_corrected(image_id, number, pair.noun):
            yield ChosenPair(number, pair, corrected_region(region, correction), None, correction.names)


def cut_samples(
    item: ImageToWrite,
    chosen: Sequence[ChosenPair],
    *,
    shards: Shards,
    read: ReadImage,
    version: int = FORMAT_VERSION,
    known: Known | None = None,
) -> Cut | tuple[str, Rejection]:
    """The encoded samples of an image with their regions, or the step's name and the reason why there is none."""
    if not chosen:
        return "shards", Rejection("filtered", f"{len(item.pairs.pairs)} pairs")
    found = known.find(item.image.image_id, item.regions.sha256 or "") if known is not None else NOTHING_KNOWN
    needs_none = known is not None and _needs_no_picture(item, chosen, found.crops, known, shards)
    image = None if needs_none else _picture(item, read)
    if isinstance(image, Rejection):
        return "shards", image
    size = (item.regions.width_px, item.regions.height_px) if image is None else image.size
    # A region that several nouns chose is encoded once.
    encode = cache(partial(_encode_region, image, found, _named_once(item.regions.regions), size=size, shards=shards))
    return [(_sample(one, item, size, *encode(one.region), version=version), one.region) for one in chosen]


def _named_once(regions: Sequence[Proposal]) -> dict[Mask, RegionName]:
    """The names of masks that no other mask of the image has."""
    names = Counter(map(region_name, regions))
    return {region.mask: name for region in regions if names[name := region_name(region)] == 1}


def region_name(region: Proposal) -> RegionName:
    """The name of a region."""
    return region.box_xyxy, region.area_px, region.score, region.label


def _picture(item: ImageToWrite, read: ReadImage) -> Image.Image | Rejection:
    """The pixels that the masks of an image were made from."""
    decoded = read(item.image.path)
    if isinstance(decoded, Rejection):
        return decoded
    if decoded.sha256 != item.regions.sha256:
        return Rejection("image_changed", "the file is not the one that its masks were made from")
    return Image.fromarray(decoded.rgb_HW3)


def _needs_no_picture(
    item: ImageToWrite, chosen: Sequence[ChosenPair], crops: Mapping[Box, bytes], known: Known, shards: Shards
) -> bool:
    """Whether all crops of an image are known and its file is the one that they were cut from.

    Of another file, or of none, `_picture` says what is wrong.
    """
    size = item.regions.width_px, item.regions.height_px
    if not all(_crop_box(one.region, size, shards=shards) in crops for one in chosen):
        return False
    data = known.read_file(item.image.path)
    return isinstance(data, bytes) and hashlib.sha256(data).hexdigest() == item.regions.sha256


def _encode_region(
    image: Image.Image | None,
    found: KnownSamples,
    names: Mapping[Mask, RegionName],
    region: Proposal,
    *,
    size: tuple[int, int],
    shards: Shards,
) -> tuple[Box, bytes, bytes]:
    crop = _crop_box(region, size, shards=shards)
    x0, y0, x1, y1 = crop
    encoded = found.crops.get(crop)
    if encoded is None:
        assert image is not None, "only an image whose crops are all known is not decoded"
        encoded = encode_crop(image, crop, shards=shards)
    mask_png = found.masks.get((crop, name)) if (name := names.get(region.mask)) is not None else None
    if mask_png is None:
        mask_png = encode_mask(region.mask.to_array()[y0:y1, x0:x1])
    return crop, encoded, mask_png


def encode_crop(image: Image.Image, crop: Box, *, shards: Shards) -> bytes:
    """The file of a crop: of a box in an image."""
    return encode_image(image.crop(crop), shards.image_format, quality=shards.quality)


def _crop_box(region: Proposal, size: tuple[int, int], *, shards: Shards) -> Box:
    width_px, height_px = size
    return grow_box(region.box_xyxy, ratio=shards.expand_ratio, height_px=height_px, width_px=width_px)


def _sample(
    chosen: ChosenPair,
    item: ImageToWrite,
    size: tuple[int, int],
    crop: Box,
    image: bytes,
    mask_png: bytes,
    *,
    version: int,
) -> Sample:
    width_px, height_px = size
    record = _record(item, chosen.pair, chosen.region, crop, height_px, width_px)
    if version >= CHECKED_VERSION:
        record |= {name: getattr(chosen.check, name, None) for name in ("presence", "agreement")}
    if version >= WHOLE_VERSION:
        record |= {"negatives": list(item.negatives), "corrected": list(chosen.corrected)}
    return Sample(sample_key(item.image.image_id, chosen.number), image, mask_png, chosen.pair.noun, record)


def _record(
    item: ImageToWrite, pair: Pair, region: Proposal, crop: Box, height_px: int, width_px: int
) -> dict[str, object]:
    x0, y0, x1, y1 = region.box_xyxy
    return {
        "image_id": item.image.image_id,
        "height_px": height_px,
        "width_px": width_px,
        "caption": item.captions[pair.caption],
        "source": item.sources[pair.caption] if item.sources else None,
        "additional": item.additional[pair.caption] if item.additional else NOTHING_MORE,
        "noun": pair.noun,
        "lemma": pair.lemma,
        "start": pair.start,
        "end": pair.end,
        "box_xyxy": list(region.box_xyxy),
        "crop_xyxy": list(crop),
        "box_crop_xyxy": [x0 - crop[0], y0 - crop[1], x1 - crop[0], y1 - crop[1]],
        "area_px": region.area_px,
        "similarity": pair.similarity,
        "margin": pair.margin,
        "rank": pair.rank,
        "score": region.score,
        "label": region.label,
        "lift": pair.lift,
        "evidence": pair.evidence,
        "confidence": pair.confidence,
    }


def _sample_row(sample: Sample, region: Proposal, *, shard: str, span: tuple[int, int, int]) -> SampleRow:
    record: Mapping[str, Any] = sample.record
    offset, size_bytes, crc32 = span
    x0, y0, x1, y1 = record["crop_xyxy"]
    copied = (
        *("image_id", "noun", "lemma", "caption", "start", "end", "similarity", "margin", "rank", "label", "source"),
        *("lift", "evidence", "confidence"),
    )
    return SampleRow(
        key=sample.key,
        box_xyxy=region.box_xyxy,
        crop_xyxy=(x0, y0, x1, y1),
        area_px=region.area_px,
        score=region.score,
        shard=shard,
        offset=offset,
        size_bytes=size_bytes,
        crc32=crc32,
        **{name: record[name] for name in copied},
        presence=record.get("presence"),
        agreement=record.get("agreement"),
        negatives=tuple(record.get("negatives", ())),
        corrected=tuple(record.get("corrected", ())),
    )
