"""The demo world in the form of COCO-Stuff: images, and a map of classes for each, of some of its nouns alone.

```
FOLDER/images/000000.jpg …   scenes on which only taught nouns are drawn
FOLDER/maps/000000.png …     16 bits: the noun's line in names.txt, counted from 0, or 65535 where there is none
FOLDER/names.txt             the taught nouns, one a line
```

Taught are about as many nouns as COCO-Stuff has classes. They are chosen by the hash that says whose masks may be
learned (demo_world/splits.py), and are among these.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from maskmine.mining.storage.files import write_whole
from maskmine.scripts.demo_world.draw import jpeg
from maskmine.scripts.demo_world.nouns import DemoNoun, demo_nouns
from maskmine.scripts.demo_world.scene import draw_scene
from maskmine.scripts.demo_world.splits import noun_share
from maskmine.scripts.training.scenes import map_in_processes

NO_CLASS = 65_535
TAUGHT_SHARE = 0.235
_SCENES_AT_ONCE = 50


def write_mapped(
    folder: Path, *, seed: int, scenes: int, workers: int, tick: Callable[[int], None] = lambda scenes: None
) -> None:
    """Draw what is missing of the first scenes of a world; the files do not depend on `workers`.

    Calls `tick` with how many more are there. Raises InputError when the font is missing.
    """
    for name in ("images", "maps"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "names.txt").write_text("".join(f"{noun.noun}\n" for noun in taught_nouns()), encoding="utf-8")
    missing = [index for index in range(scenes) if not _files(folder, index)[1].exists()]
    tick(scenes - len(missing))
    draw = functools.partial(_draw, folder, seed)
    for drawn in map_in_processes(draw, missing, workers=workers, at_once=_SCENES_AT_ONCE):
        tick(drawn)


def is_taught(noun: str) -> bool:
    """Whether the open-vocabulary MaskFormer is trained on masks and name of this noun."""
    return noun_share(noun) < TAUGHT_SHARE


@functools.cache
def taught_nouns() -> tuple[DemoNoun, ...]:
    """The taught nouns in the order of the demo world's table: their indices are the numbers in the maps."""
    return tuple(noun for noun in demo_nouns() if is_taught(noun.noun))


def _files(folder: Path, index: int) -> tuple[Path, Path]:
    return folder / "images" / f"{index:06d}.jpg", folder / "maps" / f"{index:06d}.png"


def _draw(folder: Path, seed: int, index: int) -> int:
    """One scene; its map is written last and whole, so that a scene with a map is there."""
    scene = draw_scene(seed, index=index, only=frozenset(taught_nouns()))
    numbers_HW = np.full(scene.picture_HW3.shape[:2], NO_CLASS, np.uint16)
    for noun, mask_HW in zip(scene.nouns, scene.masks_NHW, strict=True):
        numbers_HW[mask_HW] = taught_nouns().index(noun)
    image, mapped = _files(folder, index)
    image.write_bytes(jpeg(Image.fromarray(scene.picture_HW3)))
    buffer = io.BytesIO()
    Image.fromarray(numbers_HW).save(buffer, "PNG", compress_level=1)
    write_whole(mapped, buffer.getbuffer())
    return 1
