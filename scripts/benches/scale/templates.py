"""A few small parts that were really mined, of which the parts of a simulated run are copies.

Drawn shapes with captions, their true masks as proposals, and the demo world's CLIP. Every third image says nothing
that can be paired, so that there are rejections too.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskmine.pipelines.engines.engine import RunObserver
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.mine import mine
from maskmine.pipelines.settings.mining import Mining, parse_mining
from maskmine.schemas.mask import Mask
from maskmine.scripts.demo_world.draw import coco_object

PARTS, IMAGES = 16, 3
"""Parts that are mined, and images of each."""
_SIDE_PX, _SHAPE_PX = 64, 22
_NOUNS = (
    *("apple", "ball", "bell", "boat", "book", "bottle", "bowl", "box", "bus", "cake", "car", "cat", "chair", "clock"),
    *("cup", "dog", "door", "drum", "fish", "flag", "fork", "hat", "horse", "key", "kite", "lamp", "leaf", "lemon"),
)
_CLIP = Path(__file__).resolve().parents[2] / "models" / "clip"


def mine_templates(folder: Path) -> Mining:
    """Draw the images into `world/` and mine them into `templates/`, where they are not there yet; returns the settings
    of that run."""
    world = folder / "world"
    if not (world / "instances.json").exists():
        _draw(world)
    settings = template_settings(folder, out=str(folder / "templates"))
    mine(settings, engine=LocalEngine(), observer=RunObserver())
    return settings


def template_settings(folder: Path, *, out: str) -> Mining:
    """The settings of a run of the drawn images."""
    world = folder / "world"
    tree: dict[str, Any] = {
        "captions": {"kind": "coco", "annotations": f"{world}/captions.json", "images": f"{world}/images"},
        "regions": {
            "proposals": {"kind": "ground_truth", "annotations": f"{world}/instances.json"},
            "keep": {"min_area_px": 1},
            "clip": {"model": str(_CLIP), "licence": "CC-BY-SA-4.0"},
            "device": "cpu",
            "decode_threads": 1,
        },
        "pairs": {"rule": "best_region_per_noun"},
        "shards": {"images_per_part": IMAGES},
        "max_rejected": 1.0,
        "max_empty": 1.0,
        "out": out,
    }
    return parse_mining(tree, place="bench")


def _draw(world: Path) -> None:
    """Write images/, captions.json, and instances.json last."""
    rng = random.Random(7)
    (world / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for number in range(1, 1 + PARTS * IMAGES):
        name, nouns = f"{number:06d}.png", rng.sample(range(len(_NOUNS)), 2)
        picture_HW3 = np.full((_SIDE_PX, _SIDE_PX, 3), 128, np.uint8)
        for place, noun in enumerate(nouns):
            mask_HW = np.zeros((_SIDE_PX, _SIDE_PX), np.bool_)
            x, y = 5 + 30 * place, rng.randrange(4, 36)
            mask_HW[y : y + _SHAPE_PX, x : x + _SHAPE_PX - noun % 7] = True
            picture_HW3[mask_HW] = (noun * 9, 255 - noun * 7, noun * 37 % 256)
            objects.append(coco_object(len(objects) + 1, number, noun, Mask.from_array(mask_HW)))
        Image.fromarray(picture_HW3).save(world / "images" / name)
        images.append({"id": number, "file_name": name, "height": _SIDE_PX, "width": _SIDE_PX})
        said = " beside ".join(f"a {_NOUNS[noun]}" for noun in nouns) if number % 3 else "It is there."
        captions.append({"id": number, "image_id": number, "caption": said.capitalize()})
    categories = [{"id": number, "name": noun} for number, noun in enumerate(_NOUNS)]
    (world / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    (world / "instances.json").write_text(
        json.dumps({"images": images, "annotations": objects, "categories": categories})
    )
