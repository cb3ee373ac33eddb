"""An image of a finished set with all that was mined from it, out of cells or, where there are none, out of samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from maskmine.mining.exports.images import decode_mask
from maskmine.mining.images.decode import MAX_SIDE_PX
from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import CaptionsRow, ImageRow, NounsRow, Pair, Region, RegionsRow
from maskmine.schemas.sample import StoredSample

# What a pair has as its row of the index has it.
_OF_PAIR = ("noun", "lemma", "start", "end", "similarity", "margin", "rank", "lift", "evidence", "confidence")


@dataclass(frozen=True, slots=True)
class MinedImage:
    """An image of a run with its row of every step; `pairs` are those of its pairs that are in the shards, or all."""

    image: ImageRow
    captions: CaptionsRow
    nouns: NounsRow
    regions: RegionsRow
    pairs: tuple[Pair, ...]


def images_of_samples(samples: Iterable[StoredSample]) -> Iterator[MinedImage]:
    """The images that samples are of, of which those of one image follow each other.

    They have no path and no nouns but those of the pairs. Raises IncompleteError for a sample that cannot be read.
    """
    for image_id, of_image in groupby(samples, key=lambda sample: sample.row.image_id):
        yield _image(image_id, list(of_image))


def _image(image_id: str, samples: Sequence[StoredSample]) -> MinedImage:
    records = [sample.record for sample in samples]
    height_px, width_px = _size(samples[0], records[0])
    captions = tuple(dict.fromkeys(sample.row.caption for sample in samples))
    shapes = [(sample.row.crop_xyxy, sample.mask_png) for sample in samples]
    first = {shape: number for number, shape in reversed(list(enumerate(shapes)))}
    numbers = {number: place for place, number in enumerate(sorted(first.values()))}
    regions = tuple(_region(samples[number], height_px, width_px) for number in numbers)
    pairs = tuple(
        Pair(
            **{name: getattr(sample.row, name) for name in _OF_PAIR},
            caption=captions.index(sample.row.caption),
            region=numbers[first[shape]],
        )
        for sample, shape in zip(samples, shapes, strict=True)
    )
    return MinedImage(
        ImageRow(image_id, None),
        CaptionsRow(image_id, captions),
        NounsRow(image_id, (), ("",) * len(captions), None),
        RegionsRow(
            image_id=image_id, sha256=None, height_px=height_px, width_px=width_px, regions=regions, rejection=None
        ),
        pairs,
    )


def _size(sample: StoredSample, record: dict[str, Any]) -> tuple[int, int]:
    """Height and width of an image as the record of a sample has them."""
    x1, y1 = sample.row.crop_xyxy[2:]
    sizes = (record.get("height_px"), record.get("width_px"))
    for size_px, end_px in zip(sizes, (y1, x1), strict=True):
        if not isinstance(size_px, int) or not end_px <= size_px <= MAX_SIDE_PX:
            raise IncompleteError(
                f"{sample.row.shard}: sample {sample.row.key}: no size of its image in the .json; see `maskmine verify`"
            )
    return sizes  # type: ignore[return-value]


def _region(sample: StoredSample, height_px: int, width_px: int) -> Region:
    """The mask of a sample in the frame of its image."""
    row, mask_HW = sample.row, np.zeros((height_px, width_px), np.uint8)
    x0, y0, x1, y1 = row.crop_xyxy
    mask_HW[y0:y1, x0:x1] = decode_mask(sample)
    mask = Mask.from_array(mask_HW)
    return Region(mask=mask, box_xyxy=row.box_xyxy, area_px=row.area_px, score=row.score, label=row.label)
