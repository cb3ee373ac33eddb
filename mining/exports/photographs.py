"""The photographs of an export with their pairs, for forms that hold them whole.

Shapes: H, W height and width of a photograph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from PIL import Image

from maskmine.mining.exports.coco import mask_in_photograph
from maskmine.mining.exports.export_shards import ExportShard
from maskmine.mining.exports.images import Pictures, shrink_mask, smaller_size
from maskmine.mining.images.child_decoder import Decoding
from maskmine.mining.storage.prefetch import map_in_order
from maskmine.schemas.rows import Rejection
from maskmine.schemas.sample import ImageFormat, StoredSample, safe_id

_DECODING = Decoding()
_FORMATS: dict[str, ImageFormat] = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_PLAIN_MODES = ("RGB", "L")  # what every reader shows alike


@dataclass(frozen=True, slots=True, eq=False)
class Photograph:
    """A photograph as a file, upright and of `height_px` × `width_px`; the masks of its samples, bool [H, W]."""

    image_id: str
    image_format: ImageFormat
    content: bytes
    height_px: int
    width_px: int
    samples: Sequence[StoredSample]
    masks: Sequence[np.ndarray[Any, np.dtype[np.bool_]]]

    @property
    def name(self) -> str:
        """Its name as a file without the suffix; no two of a run are alike."""
        return safe_id(self.image_id)


def photographs(shard: ExportShard) -> Iterator[Photograph]:
    """The photographs of a shard in order, each with its samples.

    One that cannot be had any more, or is not the one that was mined, is left out with its pairs and counted.
    """

    def make(samples: list[StoredSample]) -> Photograph | tuple[Rejection, int]:
        made = _make(samples, shard)
        return (made, len(samples)) if isinstance(made, Rejection) else made

    grouped = groupby(shard.samples(), key=lambda sample: sample.row.image_id)
    groups = (list(samples) for _, samples in grouped)
    for made in map_in_order(make, groups, threads=shard.pictures.threads):
        if isinstance(made, Photograph):
            yield made
            shard.tick(len(made.samples))
            continue
        rejection, samples = made
        shard.counts[f"images_left_out_{rejection.reason}"] += 1
        shard.counts["pairs_left_out"] += samples
        shard.tick(samples)


def _make(samples: list[StoredSample], shard: ExportShard) -> Photograph | Rejection:
    row, record, pictures = samples[0].row, samples[0].record, shard.pictures
    height_px, width_px = record["height_px"], record["width_px"]
    size = smaller_size((width_px, height_px), max_side_px=pictures.max_side_px)
    data = shard.run.photograph(row, fetch=pictures.fetch)
    file = data if isinstance(data, Rejection) else _file(data, pictures, size, height_px=height_px, width_px=width_px)
    if isinstance(file, Rejection):
        return file
    masks = [mask_in_photograph(sample) for sample in samples]
    if size != (width_px, height_px):
        masks = [shrink_mask(mask_HW, size) for mask_HW in masks]
    image_format, content = file
    return Photograph(row.image_id, image_format, content, size[1], size[0], samples, masks)


def _file(
    data: bytes, pictures: Pictures, size: tuple[int, int], *, height_px: int, width_px: int
) -> tuple[ImageFormat, bytes] | Rejection:
    """The photograph as a file: as it is stored where every reader shows that as it was mined, else encoded again."""
    stored = _DECODING.decode_stored(data, max_pixels=height_px * width_px)
    if isinstance(stored, Rejection):
        return stored
    image_format = _FORMATS.get(stored.format)
    plain = stored.orientation.value == 1 and stored.mode in _PLAIN_MODES and stored.pixels.shape[:2] == size[::-1]
    if plain and image_format and pictures.image_format in (None, image_format):
        return image_format, data
    upright = _DECODING.decode(data, max_pixels=height_px * width_px)
    if isinstance(upright, Rejection):
        return upright
    if upright.rgb_HW3.shape[:2] != (height_px, width_px):
        return Rejection("image_changed", "the image has another size than the one that was mined")
    image = Image.fromarray(upright.rgb_HW3)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    chosen = pictures.image_format or "jpg"
    return chosen, pictures.encode(image, chosen)
