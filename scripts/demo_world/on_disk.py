"""A demo world on disk: drawn once and found again, and its scenes read back with the pixels that mining sees.

Shapes: H, W height and width of an image in pixels; N objects; 3 red, green, blue.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from maskmine.mining.evaluation.annotations import read_annotations
from maskmine.schemas.errors import InputError
from maskmine.scripts.demo_world.draw import draw_world, image_name
from maskmine.scripts.demo_world.nouns import demo_nouns
from maskmine.scripts.demo_world.scene import Scene


def find_world(folder: Path, *, scenes: int, seed: int, workers: int = 1) -> Path:
    """The world of a seed in a folder, drawn if it is not there yet.

    Raises InputError when another world is there, or something that is none.
    """
    captions = folder / "captions.json"
    if not captions.is_file():
        draw_world(folder, scenes=scenes, seed=seed, workers=workers)
    described = json.loads(captions.read_text(encoding="utf-8"))["info"]["description"]
    if f" {scenes} scenes of seed {seed}," not in described:
        raise InputError(f"{folder}: holds another world ({described}); name another folder, or delete it")
    return folder


def truth_of(world: Path) -> str:
    """The path of the world's instances JSON."""
    return str(world / "instances.json")


def read_scenes(world: Path) -> Iterator[tuple[str, Scene]]:
    """The image id and the scene of every image, in order: stored pixels, nouns and masks, nothing else of a scene.

    Raises InputError when the world's truth cannot be read.
    """
    nouns = {noun.noun: noun for noun in demo_nouns()}
    truth = read_annotations(truth_of(world))
    for image_id in truth.sizes:
        objects = truth.objects(image_id)
        with Image.open(world / "images" / image_name(int(image_id) - 1)) as image:
            picture_HW3 = np.array(image.convert("RGB"))
        masks_NHW = np.zeros((len(objects), *picture_HW3.shape[:2]), np.bool_)
        for number, one in enumerate(objects):
            masks_NHW[number] = one.mask.to_array()
        yield image_id, Scene("", picture_HW3, tuple(nouns[one.category] for one in objects), masks_NHW, ())
