"""The writer of shards beside webdataset's, fed with the same images and masks."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskmine.mining.images.child_decoder import Decoding
from maskmine.mining.images.crops import grow_box
from maskmine.mining.shards import ImageToWrite, Shards, write_shard
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import ImageRow, Pair, PairsRow, Region, RegionsRow
from maskmine.schemas.sample import sample_key
from maskmine.scripts.benches.fixtures import drawn_photos
from maskmine.scripts.measures import Measure, at_least, in_turns


def bench_shards(photos: Sequence[Path]) -> list[Measure]:
    """Our writer against webdataset.ShardWriter fed with PIL crops, from the same images and masks, in turns."""
    import webdataset
    from webdataset.writer import default_handlers

    with tempfile.TemporaryDirectory() as scratch:
        paths = list(photos) or drawn_photos(Path(scratch))
        items = [image_to_write(path, number) for number, path in enumerate(paths)]

        def ours() -> int:
            with (Path(scratch) / "ours.tar").open("wb") as file:
                index, _ = write_shard(
                    file,
                    items,
                    shards=Shards(),
                    keep=lambda *_: True,
                    shard="ours.tar",
                    read=partial(Decoding().read, max_pixels=10**8),
                )
            return len(index)

        def plain(**encoders: Any) -> int:
            written = 0
            with webdataset.ShardWriter(f"{scratch}/plain-%05d.tar", verbose=0, **encoders) as writer:
                for item in items:
                    written += _write_plainly(writer, item)
            return written

        def at_our_quality(image: Image.Image) -> bytes:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=Shards().quality)
            return buffer.getvalue()

        def plain_same_quality() -> int:
            return plain(encoder={**default_handlers, "jpg": at_our_quality})

        timings = in_turns(ours, plain, plain_same_quality)
        samples = ours()
    rate, plain_rate, same_rate = (samples / seconds for seconds in timings)
    return [
        Measure("our writer", rate, "samples/s"),
        Measure("webdataset.ShardWriter, PIL images", plain_rate, "samples/s"),
        at_least("ours / ShardWriter", rate / plain_rate, "×", 1.5),
        Measure("ours / ShardWriter at our JPEG quality", rate / same_rate, "×"),
    ]


def image_to_write(path: Path, number: int, *, regions: int = 6) -> ImageToWrite:
    """An image with elliptic masks of sizes as proposals have them, each with a pair."""
    masks = ellipse_masks(path, seed=number, count=regions)
    made = [
        Region(mask=mask, box_xyxy=mask.box_xyxy, area_px=mask.area_px, score=1.0, label=None, embedding=None)
        for mask in masks
    ]
    pairs = [
        Pair(noun="thing", lemma="thing", caption=0, start=0, end=5, region=index, similarity=0.3, margin=0.1, rank=0)
        for index in range(regions)
    ]
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    seen = RegionsRow(
        image_id=str(number),
        sha256=sha256,
        height_px=masks[0].height_px,
        width_px=masks[0].width_px,
        regions=tuple(made),
        rejection=None,
    )
    image_id = str(number)
    return ImageToWrite(ImageRow(image_id, str(path)), ("thing",), seen, PairsRow(image_id, tuple(pairs), None), None)


def ellipse_masks(path: Path, *, seed: int, count: int) -> list[Mask]:
    """Ellipses in an image, of sizes as proposals have them."""
    with Image.open(path) as image:
        size_wh = np.array(image.size)
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: size_wh[1], : size_wh[0]]
    masks = []
    for _ in range(count):
        ry, rx = random.uniform(0.08, 0.35, 2) * size_wh[::-1]
        cy, cx = random.uniform(0.2, 0.8, 2) * size_wh[::-1]
        masks.append(Mask.from_array(((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1))
    return masks


def _write_plainly(writer: Any, item: ImageToWrite) -> int:
    """What a user writes without this project: PIL crops and masks into ShardWriter."""
    image = Image.open(str(item.image.path)).convert("RGB")
    for number, pair in enumerate(item.pairs.pairs):
        region = item.regions.regions[pair.region]
        box = grow_box(region.box_xyxy, ratio=Shards().expand_ratio, height_px=image.height, width_px=image.width)
        mask = Image.fromarray(region.mask.to_array() * 255)
        record = {"image_id": item.image.image_id, "caption": item.captions[0], "box": region.box_xyxy}
        writer.write(
            {
                "__key__": sample_key(item.image.image_id, number),
                "jpg": image.crop(box),
                "mask.png": mask.crop(box),
                "txt": pair.noun,
                "json": record,
            }
        )
    return len(item.pairs.pairs)
