"""Scenes with their masks, for training: drawn once into Arrow files, read back by memory map.

Only nouns are drawn whose masks may be learned (demo_seen.py), so that nothing in a picture is an object that the model
is told to pass over. A cache folder holds files of SCENES_A_PART scenes each, written whole: a drawing that was cut off
goes on where it stood. Some 20 KB a scene.

Shapes: H, W height and width of a picture in pixels; N objects.
"""

from __future__ import annotations

import io
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from scripts.demo_nouns import openmoji_version
from scripts.demo_scene import Scene, draw_scene
from scripts.demo_seen import SEEN_SHARE, seen_nouns
from scripts.demo_world import jpeg

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
        row = self.parts[index // SCENES_A_PART].slice(index % SCENES_A_PART, 1).to_pylist()[0]
        return MaskedScene(row["jpeg"], row["objects"])


def draw_masked(
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
    if min(workers, len(missing)) <= 1:
        for job in missing:
            tick(_draw_part(job))
        return
    with multiprocessing.get_context("spawn").Pool(min(workers, len(missing))) as pool:
        for drawn in pool.imap_unordered(_draw_part, missing):
            tick(drawn)


def open_masked(folder: Path, *, seed: int, scenes: int) -> MaskedScenes:
    """The first `scenes` of a world that was drawn; their files are read when they are needed."""
    files = [_file(_world(folder, seed), part) for part in range(_parts(scenes))]
    parts = tuple(pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0) for file in files)
    sizes_N2 = np.concatenate(
        [np.stack([part.column(name).to_numpy() for name in ("height", "width")], 1) for part in parts]
    )
    sizes_N2 = sizes_N2[:scenes]
    kinds = sorted({(int(height_px), int(width_px)) for height_px, width_px in sizes_N2})
    places = {size_hw: np.flatnonzero((sizes_N2 == size_hw).all(1)) for size_hw in kinds}
    return MaskedScenes(parts, scenes, places)


def _parts(scenes: int) -> int:
    return -(-scenes // SCENES_A_PART)


def _world(folder: Path, seed: int) -> Path:
    """A folder of its own for everything that the pictures depend on."""
    return folder / f"masks-seed-{seed}-seen-{SEEN_SHARE}-openmoji-{openmoji_version()}"


def _file(world: Path, part: int) -> Path:
    return world / f"{part:05d}.arrow"


def _draw_part(job: tuple[Path, int, int]) -> int:
    world, seed, part = job
    numbers = range(part * SCENES_A_PART, (part + 1) * SCENES_A_PART)
    rows = [_row(draw_scene(seed, index=index, only=seen_nouns())) for index in numbers]
    file = _file(world, part)
    partial = file.with_suffix(f".{os.getpid()}.partial")
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, _SCHEMA))
    partial.rename(file)
    return len(rows)


def _row(scene: Scene) -> dict[str, Any]:
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
