"""Scenes with their masks, for training the tiny MaskFormer, in files of SCENES_A_PART scenes.

Only nouns are drawn whose masks may be learned (demo_seen.py), so that nothing in a picture is an object that the model
is told to pass over. Some 20 KB a scene.

Shapes: H, W height and width of a picture in pixels; N objects.
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from scripts.demo_nouns import openmoji_version
from scripts.demo_scene import draw_scene
from scripts.demo_seen import SEEN_SHARE, seen_nouns
from scripts.demo_world import jpeg
from scripts.training_scenes import Row, SceneFiles, open_parts, row_at

SCENES_A_PART = 1_000

_SCHEMA = pa.schema(
    [
        pa.field("jpeg", pa.large_binary()),
        pa.field("objects", pa.large_binary()),  # a grey PNG: 0 where nothing is, else the object's number from 1 on
        pa.field("height", pa.int16()),
        pa.field("width", pa.int16()),
    ]
)


@dataclass(frozen=True, slots=True)
class MaskedScene:
    """A scene's picture and its objects' masks, both as files."""

    jpeg: bytes
    png: bytes

    def picture(self) -> Image.Image:
        """The picture, RGB."""
        return Image.open(io.BytesIO(self.jpeg))

    def objects(self) -> Image.Image:
        """Grey: 0 where nothing is, else the object's number from 1 on."""
        return Image.open(io.BytesIO(self.png))


@dataclass(frozen=True, slots=True)
class MaskedScenes:
    """The first `count` scenes of a world, in their order; `places` are the numbers of those of each size."""

    parts: tuple[pa.RecordBatch, ...]
    count: int
    places: dict[tuple[int, int], np.ndarray[Any, np.dtype[np.int64]]]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> MaskedScene:
        row = row_at(self.parts, index)
        return MaskedScene(row["jpeg"], row["objects"])


def masked_files(folder: Path, *, seed: int) -> SceneFiles:
    """The files of world `seed`, in a folder of their own for everything that the pictures depend on."""
    world = folder / f"masks-seed-{seed}-seen-{SEEN_SHARE}-openmoji-{openmoji_version()}"
    return SceneFiles(world, SCENES_A_PART, _SCHEMA, functools.partial(_row, seed=seed))


def open_masked(folder: Path, *, seed: int, scenes: int) -> MaskedScenes:
    """The first `scenes` of a world that was drawn."""
    parts = open_parts(masked_files(folder, seed=seed), scenes=scenes)
    sizes_N2 = np.concatenate(
        [np.stack([part.column(name).to_numpy() for name in ("height", "width")], 1) for part in parts]
    )
    sizes_N2 = sizes_N2[:scenes]
    kinds = sorted({(int(height_px), int(width_px)) for height_px, width_px in sizes_N2})
    places = {size_hw: np.flatnonzero((sizes_N2 == size_hw).all(1)) for size_hw in kinds}
    return MaskedScenes(parts, scenes, places)


def _row(index: int, *, seed: int) -> Row:
    scene = draw_scene(seed, index=index, only=seen_nouns())
    height_px, width_px = scene.picture_HW3.shape[:2]
    objects_HW = np.zeros((height_px, width_px), np.uint8)
    for number, mask_HW in enumerate(scene.masks_NHW, start=1):
        objects_HW[mask_HW] = number
    buffer = io.BytesIO()
    Image.fromarray(objects_HW).save(buffer, "PNG", compress_level=1)
    return {
        "jpeg": jpeg(Image.fromarray(scene.picture_HW3)),
        "objects": buffer.getvalue(),
        "height": height_px,
        "width": width_px,
    }
