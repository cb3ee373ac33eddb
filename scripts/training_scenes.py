"""Drawn scenes in files, for training: drawn once, read back by memory map as often as an epoch needs them.

A world has a folder of Arrow files, each of the same number of scenes and written whole: a drawing that was cut off
goes on where it stood.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SceneFiles:
    """Where the scenes of a world are kept, and how: `draw` makes the row of the scene with a number."""

    folder: Path
    scenes_a_part: int
    schema: pa.Schema
    draw: Callable[[int], Row]

    def parts(self, scenes: int) -> list[Path]:
        """The files of the first scenes, whether they are there or not."""
        return [self.part(number) for number in range(-(-scenes // self.scenes_a_part))]

    def part(self, number: int) -> Path:
        """The file with a number."""
        return self.folder / f"{number:05d}.arrow"


def draw_scenes(
    files: SceneFiles, *, scenes: int, workers: int, tick: Callable[[int], None] = lambda scenes: None
) -> None:
    """Draw what is lacking of the first scenes; the files do not depend on `workers`, the number of processes.

    Calls `tick` with the number of scenes of the files that are there, then of every further one. Raises InputError
    when the font is missing.
    """
    files.folder.mkdir(parents=True, exist_ok=True)
    parts = files.parts(scenes)
    missing = [number for number, part in enumerate(parts) if not part.exists()]
    draw_part = functools.partial(_draw_part, files)
    tick((len(parts) - len(missing)) * files.scenes_a_part)
    if min(workers, len(missing)) <= 1:
        for number in missing:
            tick(draw_part(number))
        return
    with multiprocessing.get_context("spawn").Pool(min(workers, len(missing))) as pool:
        for drawn in pool.imap_unordered(draw_part, missing):
            tick(drawn)


def open_parts(files: SceneFiles, *, scenes: int) -> tuple[pa.RecordBatch, ...]:
    """The rows of the first scenes, that were drawn, file by file; they are read when they are needed."""
    return tuple(pa.ipc.open_file(pa.memory_map(str(part))).get_batch(0) for part in files.parts(scenes))


def row_at(parts: tuple[pa.RecordBatch, ...], index: int) -> Row:
    """The row of a scene."""
    part, place = divmod(index, parts[0].num_rows)
    row: Row = parts[part].slice(place, 1).to_pylist()[0]
    return row


def _draw_part(files: SceneFiles, number: int) -> int:
    file, count = files.part(number), files.scenes_a_part
    rows = [files.draw(index) for index in range(number * count, (number + 1) * count)]
    partial = file.with_suffix(f".{os.getpid()}.partial")
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, files.schema) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, files.schema))
    partial.rename(file)
    return count
