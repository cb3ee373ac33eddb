"""The toy world: shapes of one colour on grey, with captions that name them. The right pairs are known by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from maskmine.schemas.mask import Mask

HEIGHT_PX, WIDTH_PX = 48, 64
COLOURS = {"square": (220, 40, 40), "disc": (40, 60, 220), "bar": (40, 180, 60)}
CATEGORIES = {name: number for number, name in enumerate(COLOURS, start=1)}


@dataclass(frozen=True)
class ToyImage:
    """An image with its shapes and its captions."""

    id: int
    shapes: tuple[str, ...]
    captions: tuple[str, ...]


# (image id, noun, shape) of every pair that the first captions ask for
IMAGES = (
    ToyImage(11, ("square", "disc"), ("A square beside a disc.", "The disc is blue.")),
    ToyImage(12, ("bar",), ("One long bar.", "Just a bar.")),
    ToyImage(13, ("square", "bar"), ("A bar over a square.",)),
    ToyImage(14, ("disc",), ("Two discs, or one disc?",)),
    ToyImage(15, ("disc",), ("It is very round and blue.",)),
    ToyImage(16, (), ("A square in the dark.",)),
    ToyImage(17, ("bar",), ("A zebra and a giraffe.",)),
    ToyImage(18, ("square",), ()),
)
PAIRS = {
    ("11", "square", "square"),
    ("11", "disc", "disc"),
    ("12", "bar", "bar"),
    ("13", "bar", "bar"),
    ("13", "square", "square"),
    ("14", "discs", "disc"),
    ("14", "disc", "disc"),
}
REJECTIONS = {
    ("15", "nouns", "no_nouns"),
    ("16", "proposals", "no_masks"),
    ("17", "pairs", "no_match"),
    ("18", "nouns", "no_caption"),
}


def shape_mask(shape: str) -> np.ndarray[Any, Any]:
    """Where a shape lies in every image that has it, [H, W]; the shapes do not touch."""
    y, x = np.mgrid[:HEIGHT_PX, :WIDTH_PX]
    return {
        "square": (abs(y - 14) < 8) & (abs(x - 14) < 8),
        "disc": (y - 18) ** 2 + (x - 44) ** 2 < 100,
        "bar": (y >= 36) & (y < 42) & (x >= 4) & (x < 60),
    }[shape]


def draw(shapes: tuple[str, ...]) -> np.ndarray[Any, Any]:
    """The picture of some shapes, [H, W, 3]."""
    rgb_HW3 = np.full((HEIGHT_PX, WIDTH_PX, 3), 128, np.uint8)
    for shape in shapes:
        rgb_HW3[shape_mask(shape)] = COLOURS[shape]
    return rgb_HW3


def save_picture(path: Path, shapes: tuple[str, ...]) -> None:
    """Save the picture of some shapes as a PNG."""
    Image.fromarray(draw(shapes)).save(path)


def poison(path: Path, shapes: tuple[str, ...], kind: str) -> None:
    """Save the picture of some shapes so that decoding it does harm; see `tests/support/poison/sitecustomize.py`."""
    marks = PngImagePlugin.PngInfo()
    marks.add(b"PoIS", kind.encode())  # as a chunk of the pixels, since texts are not shown to Pillow
    Image.fromarray(draw(shapes)).save(path, pnginfo=marks)


def write_toy_world(folder: Path) -> Path:
    """Write images/, captions.json and instances.json; returns the folder."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    for toy in IMAGES:
        name = f"{toy.id:012d}.png"
        save_picture(folder / "images" / name, toy.shapes)
        images.append({"id": toy.id, "file_name": name, "height": HEIGHT_PX, "width": WIDTH_PX})
        # written in the wrong order on purpose: the first caption is that of the smallest annotation id
        for number, caption in reversed(list(enumerate(toy.captions))):
            captions.append({"id": toy.id * 10 + number, "image_id": toy.id, "caption": caption})
        for shape in toy.shapes:
            mask = Mask.from_array(shape_mask(shape))
            x0, y0, x1, y1 = mask.box_xyxy
            instances.append(
                {
                    "id": len(instances) + 1,
                    "image_id": toy.id,
                    "category_id": CATEGORIES[shape],
                    "segmentation": {"size": [HEIGHT_PX, WIDTH_PX], "counts": mask.counts.decode("ascii")},
                    "area": mask.area_px,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name} for name, number in CATEGORIES.items()]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    (folder / "instances.json").write_text(
        json.dumps({"images": images, "annotations": instances, "categories": categories})
    )
    return folder


def write_config(folder: Path, *, out: Path | None = None, **changes: Any) -> Path:
    """Write folder/mining.yaml for the toy world there; `changes` replace whole sections."""
    tree: dict[str, Any] = {
        "captions": {
            "kind": "coco",
            "annotations": str(folder / "captions.json"),
            "images": str(folder / "images"),
        },
        "regions": {
            "proposals": {"kind": "ground_truth", "annotations": str(folder / "instances.json")},
            "keep": {"min_area_px": 1},  # the shapes are smaller than anything worth a crop for CLIP
            "clip": None,
            "device": "cpu",
            "decode_threads": 1,  # each thread has a process that decodes, which takes longer to start than this world
        },
        "pairs": {"rule": "labels"},
        "shards": {"images_per_part": 3},
        "max_rejected": 1.0,
        "out": str(out or folder / "run"),
    }
    config = folder / "mining.yaml"
    config.write_text(json.dumps(tree | changes))  # JSON is YAML
    return config
