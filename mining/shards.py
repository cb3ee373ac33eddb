"""Shards: crops, masks, nouns and scores of a part as one deterministic USTAR tar, with its index and its accounts."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import Field

from mining.caption_entries import NOTHING_MORE
from mining.crops import grow_box
from mining.images import Picture
from schemas.mask import Box
from schemas.rows import ImageRow, Pair, PairsRow, Region, RegionsRow, Rejection, SampleRow
from schemas.sample import ImageFormat, Sample, Writer, sample_key, write_end_of_tar, write_sample
from schemas.settings import Settings

Tick = Callable[[int], None]
KeepPair = Callable[[str, int, Pair], bool]
ReadPicture = Callable[[str | None], Picture | Rejection]
Cut = list[tuple[Sample, Region]]


class Shards(Settings):
    """How samples are cut and encoded.

    `images_per_part` is the size of the parts of the whole run, and so of a shard. `expand_ratio` grows the tight box
    of the mask around its centre before the crop is cut, so that a training job still has surroundings to choose from.
    `quality` (1–100) is for jpg and webp; png is lossless. `threads` decode and encode at the same time.
    """

    images_per_part: Annotated[int, Field(ge=1)] = 1000
    image_format: ImageFormat = "jpg"
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    expand_ratio: Annotated[float, Field(ge=1.0, le=10.0)] = 1.2
    threads: Annotated[int, Field(ge=1, le=64)] = 2

    def encode(self, image: Image.Image) -> bytes:
        """A crop as a file of the chosen format."""
        buffer = io.BytesIO()
        if self.image_format == "jpg":
            image.save(buffer, "JPEG", quality=self.quality)
        elif self.image_format == "webp":
            image.save(buffer, "WEBP", quality=self.quality, method=2)
        else:
            image.save(buffer, "PNG", compress_level=3)
        return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class ImageToWrite:
    """Everything about an image that its samples need; rejected images come along, to be counted.

    `sources` and `additional` are those of the captions, see `CaptionsRow`.
    """

    image: ImageRow
    captions: tuple[str, ...]
    regions: RegionsRow
    pairs: PairsRow
    rejected: tuple[str, Rejection] | None
    sources: tuple[str, ...] = ()
    additional: tuple[str, ...] = ()


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
    read: ReadPicture,
    tick: Tick = lambda _: None,
) -> tuple[list[SampleRow], ShardAccount]:
    """Write the samples of a part to an open file; returns the index and the account.

    `keep` says of `(image id, number, pair)` whether it is written; `shard` is the tar's name in the index. `read`
    gives the picture at a path, and is called in several threads. A few pictures are in memory at a time. Raises
    OSError when the file cannot be written.
    """
    out = HashingFile(file)
    index: list[SampleRow] = []
    rejections: list[tuple[str, str, Rejection]] = []
    total = with_pairs = 0

    def cut(item: ImageToWrite) -> Cut | tuple[str, Rejection]:
        return item.rejected or cut_samples(item, shards=shards, keep=keep, read=read)

    for image_id, found in map_ahead(cut, images, threads=shards.threads):
        total += 1
        if isinstance(found, list):
            with_pairs += 1
            for sample, region in found:
                offset = out.size_bytes
                size_bytes = write_sample(out, sample, image_format=shards.image_format)
                index.append(_sample_row(sample, region, shard=shard, offset=offset, size_bytes=size_bytes))
        else:
            rejections.append((image_id, *found))
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
    """A mask of shape [H, W], values 0 and 1, as an 8-bit grey PNG of 0 and 255.

    Written here and not by Pillow, which tries five filters on every row of a grey picture: on masks that takes three
    quarters of the time and makes the file larger. Rows without a filter, deflated by their runs, are smaller still.
    """
    height_px, width_px = mask_HW.shape
    rows_HW = np.zeros((height_px, 1 + width_px), np.uint8)  # each row begins with its filter type, 0 for none
    rows_HW[:, 1:] = mask_HW
    rows_HW *= 255
    return png_file(rows_HW.tobytes(), height_px=height_px, width_px=width_px, colour_type=0, strategy=zlib.Z_RLE)


def png_file(rows: bytes, *, height_px: int, width_px: int, colour_type: int, strategy: int) -> bytes:
    """A PNG of eight bits from filtered rows, each with its filter's type before it; grey is type 0, RGB type 2."""
    deflate = zlib.compressobj(level=1, strategy=strategy)
    header = struct.pack(">IIBBBBB", width_px, height_px, 8, colour_type, 0, 0, 0)  # not interlaced
    chunks = ((b"IHDR", header), (b"IDAT", deflate.compress(rows) + deflate.flush()), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(name, content) for name, content in chunks)


def _png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def cut_samples(
    item: ImageToWrite, *, shards: Shards, keep: KeepPair, read: ReadPicture
) -> Cut | tuple[str, Rejection]:
    """The encoded samples of an image with their regions, or the step's name and the reason why there is none."""
    image_id, pairs = item.image.image_id, item.pairs.pairs
    kept = [(sample_key(image_id, n), pair) for n, pair in enumerate(pairs) if keep(image_id, n, pair)]
    if not kept:
        return "shards", Rejection("filtered", f"{len(pairs)} pairs")
    picture = read(item.image.path)
    if isinstance(picture, Rejection):
        return "shards", picture
    if picture.sha256 != item.regions.sha256:
        return "shards", Rejection("image_changed", "the file is not the one that its masks were made from")
    image = Image.fromarray(picture.rgb_HW3)
    encode = cache(partial(_encode_region, image, shards=shards))  # a region that several nouns chose is encoded once
    samples: Cut = []
    for key, pair in kept:
        region = item.regions.regions[pair.region]
        samples.append((_sample(key, pair, item, image.size, *encode(region)), region))
    return samples


def map_ahead(
    work: Callable[[ImageToWrite], Cut | tuple[str, Rejection]], items: Iterable[ImageToWrite], *, threads: int
) -> Iterator[tuple[str, Cut | tuple[str, Rejection]]]:
    """`(image id, work(item))` in the order of the items, computed in threads a few items ahead.

    Decoding and encoding release Python's lock, so threads do them side by side; memory holds only the items ahead.
    """
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[tuple[str, Future[Cut | tuple[str, Rejection]]]] = deque()
        for item in items:
            ahead.append((item.image.image_id, pool.submit(work, item)))
            if len(ahead) > 2 * threads:
                image_id, future = ahead.popleft()
                yield image_id, future.result()
        for image_id, future in ahead:
            yield image_id, future.result()


def _encode_region(image: Image.Image, region: Region, *, shards: Shards) -> tuple[Box, bytes, bytes]:
    width_px, height_px = image.size
    crop = grow_box(region.box_xyxy, ratio=shards.expand_ratio, height_px=height_px, width_px=width_px)
    x0, y0, x1, y1 = crop
    return crop, shards.encode(image.crop(crop)), encode_mask(region.mask.to_array()[y0:y1, x0:x1])


def _sample(
    key: str, pair: Pair, item: ImageToWrite, size: tuple[int, int], crop: Box, image: bytes, mask_png: bytes
) -> Sample:
    width_px, height_px = size
    region = item.regions.regions[pair.region]
    record = _record(item, pair, region, crop, height_px, width_px)
    return Sample(key, image, mask_png, pair.noun, record)


def _record(
    item: ImageToWrite, pair: Pair, region: Region, crop: Box, height_px: int, width_px: int
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
    }


def _sample_row(sample: Sample, region: Region, *, shard: str, offset: int, size_bytes: int) -> SampleRow:
    record: Mapping[str, Any] = sample.record
    x0, y0, x1, y1 = record["crop_xyxy"]
    copied = ("image_id", "noun", "lemma", "caption", "start", "end", "similarity", "margin", "rank", "label", "source")
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


class HashingFile:
    """A file that knows its size and SHA-256 while it is written, so that nothing is read again."""

    closed = False  # what Arrow asks of a file in Python, with `tell` and `flush`

    def __init__(self, file: Writer) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    def write(self, content: bytes, /) -> int:
        self._file.write(content)
        self._digest.update(content)
        self.size_bytes += len(content)
        return len(content)

    def tell(self) -> int:
        return self.size_bytes

    def flush(self) -> None:
        pass  # whoever opened the file will

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()
