"""Shards: crops, masks, nouns and scores of a part as one deterministic USTAR tar, with its index and its accounts."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import Field

from mining.crops import grow_box
from mining.images import Picture, read_image
from schemas.mask import Box
from schemas.rows import ImageRow, Pair, PairsRow, Region, RegionsRow, Rejection, SampleRow
from schemas.sample import ImageFormat, Sample, Writer, sample_key, write_end_of_tar, write_sample
from schemas.settings import Settings

Tick = Callable[[int], None]
KeepPair = Callable[[str, int, Pair], bool]


class Shards(Settings):
    """How samples are cut and encoded.

    `images_per_part` is the size of the parts of the whole run, and so of a shard. `expand_ratio` grows the tight box
    of the mask around its centre before the crop is cut, so that a training job still has surroundings to choose from.
    `quality` (1–100) is for jpg and webp; png is lossless.
    """

    images_per_part: Annotated[int, Field(ge=1)] = 1000
    image_format: ImageFormat = "jpg"
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    expand_ratio: Annotated[float, Field(ge=1.0, le=10.0)] = 1.2

    def encode(self, rgb_HW3: np.ndarray[Any, Any]) -> bytes:
        """A crop of shape [H, W, 3], uint8, as a file of the chosen format."""
        buffer = io.BytesIO()
        image = Image.fromarray(rgb_HW3)
        if self.image_format == "jpg":
            image.save(buffer, "JPEG", quality=self.quality)
        elif self.image_format == "webp":
            image.save(buffer, "WEBP", quality=self.quality, method=2)
        else:
            image.save(buffer, "PNG", compress_level=3)
        return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class ImageToWrite:
    """Everything about an image that its samples need; rejected images come along, to be counted."""

    image: ImageRow
    captions: tuple[str, ...]
    regions: RegionsRow
    pairs: PairsRow
    rejected: tuple[str, Rejection] | None


@dataclass(frozen=True, slots=True)
class ShardAccount:
    """What became of the images of a part: `images = with_pairs + sum(rejections)`, checked where it is made."""

    images: int
    with_pairs: int
    samples: int
    size_bytes: int
    sha256: str
    rejections: tuple[tuple[str, str, Rejection], ...]
    """`(image id, step, rejection)` for each image without a pair, in the order of the part."""

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
    max_image_pixels: int,
    tick: Tick = lambda _: None,
) -> tuple[list[SampleRow], ShardAccount]:
    """Write the samples of a part to an open file; returns the index and the account.

    `keep` says of `(image id, number, pair)` whether it is written; `shard` is the tar's name in the index. Only one picture is in
    memory at a time. Raises OSError when the file cannot be written.
    """
    out = _HashingFile(file)
    index: list[SampleRow] = []
    rejections: list[tuple[str, str, Rejection]] = []
    total = with_pairs = 0
    for item in images:
        total += 1
        rows = item.rejected or _write_image(out, item, shards, keep, shard, max_image_pixels)
        if isinstance(rows, list):
            with_pairs += 1
            index.extend(rows)
        else:
            step, rejection = rows
            rejections.append((item.image.image_id, step, rejection))
        tick(1)
    write_end_of_tar(out, size_bytes=out.size_bytes)
    if total != with_pairs + len(rejections):
        raise AssertionError(f"{shard}: {total} images, {with_pairs} with pairs, {len(rejections)} rejected")
    account = ShardAccount(total, with_pairs, len(index), out.size_bytes, out.sha256, tuple(rejections))
    return index, account


def first_rejection(**steps: Rejection | None) -> tuple[str, Rejection] | None:
    """The step that stopped an image and its word: the first of the given steps that rejected it."""
    return next(((step, rejection) for step, rejection in steps.items() if rejection), None)


def encode_mask(mask_HW: np.ndarray[Any, Any]) -> bytes:
    """A mask of shape [H, W] as an 8-bit grey PNG of 0 and 255.

    Run-length deflate: on masks it is many times faster than zlib's default and hardly larger.
    """
    buffer = io.BytesIO()
    image = Image.fromarray((mask_HW != 0).astype(np.uint8) * 255)
    image.save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def _write_image(
    out: _HashingFile, item: ImageToWrite, shards: Shards, keep: KeepPair, shard: str, max_image_pixels: int
) -> list[SampleRow] | tuple[str, Rejection]:
    image_id, pairs = item.image.image_id, item.pairs.pairs
    kept = [(sample_key(image_id, n), pair) for n, pair in enumerate(pairs) if keep(image_id, n, pair)]
    if not kept:
        return "shards", Rejection("filtered", f"{len(pairs)} pairs")
    picture = read_image(item.image.path, max_pixels=max_image_pixels)
    if isinstance(picture, Rejection):
        return "shards", picture
    if picture.sha256 != item.regions.sha256:
        return "shards", Rejection("image_changed", "the file is not the one that its masks were made from")
    return list(_write_samples(out, picture, item, kept, shards, shard))


def _write_samples(
    out: _HashingFile,
    picture: Picture,
    item: ImageToWrite,
    pairs: Iterable[tuple[str, Pair]],
    shards: Shards,
    shard: str,
) -> Iterator[SampleRow]:
    height_px, width_px = picture.rgb_HW3.shape[:2]
    encoded: dict[int, tuple[Box, bytes, bytes]] = {}  # a region that several nouns chose is encoded once
    for key, pair in pairs:
        region = item.regions.regions[pair.region]
        if pair.region not in encoded:
            crop = grow_box(region.box_xyxy, ratio=shards.expand_ratio, height_px=height_px, width_px=width_px)
            x0, y0, x1, y1 = crop
            mask_png = encode_mask(region.mask.to_array()[y0:y1, x0:x1])
            encoded[pair.region] = (crop, shards.encode(picture.rgb_HW3[y0:y1, x0:x1]), mask_png)
        crop, image, mask_png = encoded[pair.region]
        caption = item.captions[pair.caption]
        record = _record(item.image.image_id, caption, pair, region, crop, height_px, width_px)
        offset = out.size_bytes
        sample = Sample(key, image, mask_png, pair.noun, record)
        size_bytes = write_sample(out, sample, image_format=shards.image_format)
        yield _sample_row(sample, region, shard=shard, offset=offset, size_bytes=size_bytes)


def _record(
    image_id: str, caption: str, pair: Pair, region: Region, crop: Box, height_px: int, width_px: int
) -> dict[str, object]:
    x0, y0, x1, y1 = region.box_xyxy
    return {
        "image_id": image_id,
        "height_px": height_px,
        "width_px": width_px,
        "caption": caption,
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
    }


def _sample_row(sample: Sample, region: Region, *, shard: str, offset: int, size_bytes: int) -> SampleRow:
    record: Mapping[str, Any] = sample.record
    x0, y0, x1, y1 = record["crop_xyxy"]
    copied = ("image_id", "noun", "lemma", "caption", "start", "end", "similarity", "margin", "rank", "label")
    return SampleRow(
        key=sample.key,
        box_xyxy=region.box_xyxy,
        crop_xyxy=(x0, y0, x1, y1),
        area_px=region.area_px,
        score=region.score,
        shard=shard,
        offset=offset,
        size_bytes=size_bytes,
        **{name: record[name] for name in copied},
    )


class _HashingFile:
    """A file that knows its size and SHA-256 while it is written, so that nothing is read again."""

    def __init__(self, file: Writer) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    def write(self, content: bytes, /) -> int:
        self._file.write(content)
        self._digest.update(content)
        self.size_bytes += len(content)
        return len(content)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()
