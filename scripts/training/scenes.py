"""Drawn scenes in files: drawn once, then read by memory map as often as a training needs them.

A world has a folder of Arrow files, each with the same number of scenes and written whole: drawing goes on where it
stopped. A scene takes about 20 KB.
"""

from __future__ import annotations

import functools
import io
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from maskmine.schemas.mask import Box
from maskmine.scripts.demo_world.captions import CAPTIONS_PER_SCENE
from maskmine.scripts.demo_world.draw import jpeg
from maskmine.scripts.demo_world.nouns import demo_nouns, openmoji_version
from maskmine.scripts.demo_world.scene import draw_scene
from maskmine.scripts.demo_world.splits import SEEN_SHARE, seen_nouns
from maskmine.scripts.demo_world.sprites import box_of

SCENES_A_FILE = 1_000  # some seconds of drawing, which an interruption costs

_SCHEMA = pa.schema(
    [
        pa.field("jpeg", pa.large_binary()),
        pa.field("objects", pa.large_binary()),  # a grey PNG: 0 is background, other values number the objects from 1
        pa.field("height", pa.int16()),
        pa.field("width", pa.int16()),
        pa.field("setting", pa.string()),
        pa.field("nouns", pa.list_(pa.int16())),  # indices in `demo_nouns()`
        pa.field("boxes", pa.list_(pa.list_(pa.int16(), 4))),  # tight boxes of the visible parts, xyxy
        pa.field("captions", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True, slots=True)
class World:
    """The scenes of a seed. With `seen_only`, only nouns are drawn whose masks a model may learn."""

    folder: Path
    seed: int
    seen_only: bool = False

    def file(self, number: int) -> Path:
        """A file of SCENES_A_FILE scenes; the name of its folder has everything that they depend on."""
        nouns = f"seen-{SEEN_SHARE}" if self.seen_only else "all"
        return self.folder / f"scenes-{self.seed}-{nouns}-openmoji-{openmoji_version()}" / f"{number:05d}.arrow"

    def files(self, scenes: int) -> list[Path]:
        """The files of the first scenes."""
        return [self.file(number) for number in range(-(-scenes // SCENES_A_FILE))]


@dataclass(frozen=True, slots=True)
class DrawnScene:
    """A scene as it is stored; `nouns` are indices in `demo_nouns()`, one for each of `boxes_xyxy`."""

    jpeg: bytes
    png: bytes
    setting: str
    nouns: tuple[int, ...]
    boxes_xyxy: tuple[Box, ...]
    captions: tuple[str, ...]

    def image(self) -> Image.Image:
        """The image, RGB; it is decoded when its pixels are read, its size is known at once."""
        return Image.open(io.BytesIO(self.jpeg))

    def objects(self) -> Image.Image:
        """Grey: 0 is background, other values number the objects from 1."""
        return Image.open(io.BytesIO(self.png))


@dataclass(frozen=True)
class DrawnScenes:
    """The first `count` scenes of a world, in their order."""

    batches: tuple[pa.RecordBatch, ...]
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> DrawnScene:
        number, offset = divmod(index, self.batches[0].num_rows)
        (row,) = self.batches[number].slice(offset, 1).to_pylist()
        boxes: tuple[Box, ...] = tuple(tuple(box) for box in row["boxes"])
        return DrawnScene(
            row["jpeg"], row["objects"], row["setting"], tuple(row["nouns"]), boxes, tuple(row["captions"])
        )

    def captions(self) -> Iterator[str]:
        """All captions."""
        texts = (text for row in self._column("captions") for text in row)
        return itertools.islice(texts, CAPTIONS_PER_SCENE * self.count)

    def nouns(self) -> set[int]:
        """All nouns that are drawn, as indices in `demo_nouns()`."""
        return {noun for row in self._column("nouns") for noun in row}

    @functools.cached_property
    def by_size(self) -> dict[tuple[int, int], np.ndarray[Any, np.dtype[np.int64]]]:
        """The indices of the scenes of each size (height, width)."""
        sizes = list(zip(self._column("height"), self._column("width"), strict=True))
        return {
            size_hw: np.array([index for index, other_hw in enumerate(sizes) if other_hw == size_hw])
            for size_hw in sorted(set(sizes))
        }

    def _column(self, name: str) -> Iterator[Any]:
        values = (value for batch in self.batches for value in batch.column(name).to_pylist())
        return itertools.islice(values, self.count)


def draw_scenes(world: World, *, scenes: int, workers: int, tick: Callable[[int], None] = lambda scenes: None) -> None:
    """Draw what is missing of the first scenes; the files do not depend on `workers`, the number of processes.

    Calls `tick` with the number of scenes in files that exist, then with that of each further file. Raises InputError
    when the font is missing.
    """
    files = world.files(scenes)
    files[0].parent.mkdir(parents=True, exist_ok=True)
    missing = [number for number, file in enumerate(files) if not file.exists()]
    tick((len(files) - len(missing)) * SCENES_A_FILE)
    draw = functools.partial(_draw_file, world, count=SCENES_A_FILE)
    for drawn in map_in_processes(draw, missing, workers=workers):
        tick(drawn)


def open_scenes(world: World, *, scenes: int) -> DrawnScenes:
    """The first scenes of a world that was drawn; they are read when they are needed."""
    files = world.files(scenes)
    return DrawnScenes(tuple(pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0) for file in files), scenes)


def map_in_processes(
    draw: Callable[[int], int], numbers: Sequence[int], *, workers: int, at_once: int = 1
) -> Iterator[int]:
    """The results of `draw` as they are ready, from processes; from this one where another would not help."""
    if min(workers, len(numbers)) <= 1:
        yield from map(draw, numbers)
        return
    with multiprocessing.get_context("spawn").Pool(min(workers, len(numbers))) as pool:
        yield from pool.imap_unordered(draw, numbers, chunksize=at_once)


def _draw_file(world: World, number: int, *, count: int) -> int:
    rows = [_row(world, index) for index in range(number * count, (number + 1) * count)]
    file = world.file(number)
    partial = file.with_suffix(f".{os.getpid()}.partial")
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, _SCHEMA))
    partial.rename(file)
    return count


def _row(world: World, index: int) -> dict[str, Any]:
    scene = draw_scene(world.seed, index=index, only=seen_nouns() if world.seen_only else None)
    indices = {noun: number for number, noun in enumerate(demo_nouns())}
    objects_HW = np.zeros(scene.picture_HW3.shape[:2], np.uint8)
    for number, mask_HW in enumerate(scene.masks_NHW, start=1):
        objects_HW[mask_HW] = number
    buffer = io.BytesIO()
    Image.fromarray(objects_HW).save(buffer, "PNG", compress_level=1)
    return {
        "jpeg": jpeg(Image.fromarray(scene.picture_HW3)),
        "objects": buffer.getvalue(),
        "height": objects_HW.shape[0],
        "width": objects_HW.shape[1],
        "setting": scene.setting,
        "nouns": [indices[noun] for noun in scene.nouns],
        "boxes": [np.array(box_of(mask_HW), np.int16) for mask_HW in scene.masks_NHW],
        "captions": list(scene.captions),
    }
