"""Scenes for training: drawn once into Arrow files, read back by memory map as often as an epoch needs them.

A cache folder holds files of SCENES_A_PART scenes each, written whole: a drawing that was cut off goes on where it
stood. Pictures are kept as the demo world keeps them, as JPEGs (some 17 KB a scene).
"""

from __future__ import annotations

import io
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from schemas.mask import Box
from scripts.demo_captions import CAPTIONS_PER_SCENE
from scripts.demo_nouns import demo_nouns, openmoji_version
from scripts.demo_scene import Scene, draw_scene
from scripts.demo_sprites import box_of
from scripts.demo_world import jpeg

SCENES_A_PART = 2_000

_SCHEMA = pa.schema(
    [
        pa.field("jpeg", pa.large_binary()),
        pa.field("setting", pa.string()),
        pa.field("nouns", pa.list_(pa.int16())),  # places in `demo_nouns()`
        pa.field("boxes", pa.list_(pa.list_(pa.int16(), 4))),  # tight boxes of what shows, xyxy
        pa.field("captions", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True, slots=True)
class CachedScene:
    """A scene without its masks; `nouns` are places in `demo_nouns()`, one for each of `boxes_xyxy`."""

    jpeg: bytes
    setting: str
    nouns: tuple[int, ...]
    boxes_xyxy: tuple[Box, ...]
    captions: tuple[str, ...]

    def picture(self) -> Image.Image:
        """The picture, RGB; its pixels are decoded when they are asked for, its size is known at once."""
        return Image.open(io.BytesIO(self.jpeg))


@dataclass(frozen=True, slots=True)
class CachedScenes:
    """The first `count` scenes of a world, in their order."""

    parts: tuple[pa.RecordBatch, ...]
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> CachedScene:
        row = self.parts[index // SCENES_A_PART].slice(index % SCENES_A_PART, 1).to_pylist()[0]
        boxes: tuple[Box, ...] = tuple(tuple(box) for box in row["boxes"])
        return CachedScene(row["jpeg"], row["setting"], tuple(row["nouns"]), boxes, tuple(row["captions"]))

    def captions(self) -> Iterator[str]:
        """All captions, without a look at the pictures."""
        return itertools.islice(
            (text for row in self._column("captions") for text in row), CAPTIONS_PER_SCENE * self.count
        )

    def nouns(self) -> set[int]:
        """All nouns that are shown, as places in `demo_nouns()`."""
        return {noun for row in itertools.islice(self._column("nouns"), self.count) for noun in row}

    def _column(self, name: str) -> Iterator[list[Any]]:
        return (row for part in self.parts for row in part.column(name).to_pylist())


def draw_cache(
    folder: Path, *, seed: int, scenes: int, workers: int, tick: Callable[[int], None] = lambda scenes: None
) -> None:
    """Draw what the folder lacks of the first `scenes` of world `seed`; the files do not depend on `workers`.

    Calls `tick` with the number of scenes of the files that are there, then of every further one. Raises InputError
    when the font is missing.
    """
    world = _world(folder, seed)
    world.mkdir(parents=True, exist_ok=True)
    parts = range(_parts(scenes))
    missing = [(world, seed, part) for part in parts if not _file(world, part).exists()]
    tick((len(parts) - len(missing)) * SCENES_A_PART)
    with _pool(min(workers, len(missing))) as drawn:
        for _ in drawn(_draw_part, missing):
            tick(SCENES_A_PART)


def open_cache(folder: Path, *, seed: int, scenes: int) -> CachedScenes:
    """The first `scenes` of a world that was drawn; their files are read when they are needed."""
    files = [_file(_world(folder, seed), part) for part in range(_parts(scenes))]
    return CachedScenes(tuple(pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0) for file in files), scenes)


def _parts(scenes: int) -> int:
    return -(-scenes // SCENES_A_PART)


def _world(folder: Path, seed: int) -> Path:
    """A folder of its own for everything that the pictures depend on."""
    return folder / f"seed-{seed}-openmoji-{openmoji_version()}"


def _file(world: Path, part: int) -> Path:
    return world / f"{part:05d}.arrow"


def _pool(workers: int) -> AbstractContextManager[Callable[..., Iterator[Any]]]:
    if workers <= 1:
        return nullcontext(map)
    return _Pool(workers)


class _Pool(AbstractContextManager[Callable[..., Iterator[Any]]]):
    def __init__(self, workers: int) -> None:
        self._pool = multiprocessing.get_context("spawn").Pool(workers)

    def __enter__(self) -> Callable[..., Iterator[Any]]:
        return self._pool.imap_unordered

    def __exit__(self, *_: object) -> None:
        self._pool.terminate()
        self._pool.join()


def _draw_part(job: tuple[Path, int, int]) -> None:
    world, seed, part = job
    rows = [_row(draw_scene(seed, index=index)) for index in range(part * SCENES_A_PART, (part + 1) * SCENES_A_PART)]
    file = _file(world, part)
    partial = file.with_suffix(f".{os.getpid()}.partial")
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, _SCHEMA))
    partial.rename(file)


def _row(scene: Scene) -> dict[str, Any]:
    numbers = {noun: number for number, noun in enumerate(demo_nouns())}
    return {
        "jpeg": jpeg(Image.fromarray(scene.picture_HW3)),
        "setting": scene.setting,
        "nouns": [numbers[noun] for noun in scene.nouns],
        "boxes": [np.array(box_of(mask_HW), np.int16) for mask_HW in scene.masks_NHW],
        "captions": list(scene.captions),
    }
