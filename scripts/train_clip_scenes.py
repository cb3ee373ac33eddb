"""Scenes for training the tiny CLIP: pictures, nouns with their boxes, captions, in files of SCENES_A_PART scenes.

Pictures are kept as the demo world keeps them, as JPEGs (some 17 KB a scene).
"""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from schemas.mask import Box
from scripts.demo_captions import CAPTIONS_PER_SCENE
from scripts.demo_nouns import demo_nouns, openmoji_version
from scripts.demo_scene import draw_scene
from scripts.demo_sprites import box_of
from scripts.demo_world import jpeg
from scripts.training_scenes import Row, SceneFiles, open_parts, row_at

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
        row = row_at(self.parts, index)
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


def captioned_files(folder: Path, *, seed: int) -> SceneFiles:
    """The files of world `seed`, in a folder of their own for everything that the pictures depend on."""
    world = folder / f"seed-{seed}-openmoji-{openmoji_version()}"
    return SceneFiles(world, SCENES_A_PART, _SCHEMA, functools.partial(_row, seed=seed))


def open_cache(folder: Path, *, seed: int, scenes: int) -> CachedScenes:
    """The first `scenes` of a world that was drawn."""
    return CachedScenes(open_parts(captioned_files(folder, seed=seed), scenes=scenes), scenes)


def _row(index: int, *, seed: int) -> Row:
    scene = draw_scene(seed, index=index)
    numbers = {noun: number for number, noun in enumerate(demo_nouns())}
    return {
        "jpeg": jpeg(Image.fromarray(scene.picture_HW3)),
        "setting": scene.setting,
        "nouns": [numbers[noun] for noun in scene.nouns],
        "boxes": [np.array(box_of(mask_HW), np.int16) for mask_HW in scene.masks_NHW],
        "captions": list(scene.captions),
    }
