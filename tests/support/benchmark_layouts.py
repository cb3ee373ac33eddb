"""The benchmarks in little: a few pictures in the exact layout of each official download, and the maps they come to.

Both sides are written down here by hand: `stored` is what the download has, `numbers` what evaluation has to see.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskmine.tuning.benchmarks.classes import shipped_classes

Maps = dict[str, np.ndarray[Any, Any]]
WIDTH_PX, HEIGHT_PX = 4, 2
ADE_OBJECTS = 3_688


def write_miniature(name: str, root: Path) -> Maps:
    """Write the download of a set below `root`; returns the maps that its preparation has to give, by image id."""
    return _WRITERS[name](root)


def write_ade150(root: Path) -> Maps:
    """Two pictures of 2,000; 0 is no class, 150 the last one."""
    folder = root / "ADEChallengeData2016"
    stored = {
        "ADE_val_00000001": [[0, 1, 2, 150], [0, 0, 75, 149]],
        "ADE_val_00000002": [[0, 0, 0, 0], [1, 1, 1, 1]],
    }
    for name, numbers in stored.items():
        save_picture(folder / f"images/validation/{name}.jpg")
        save_map(folder / f"annotations/validation/{name}.png", numbers)
    return _arrays(
        {
            "ADE_val_00000001": [[255, 0, 1, 149], [255, 255, 74, 148]],
            "ADE_val_00000002": [[255, 255, 255, 255], [0, 0, 0, 0]],
        }
    )


def write_ade847(root: Path) -> Maps:
    """A small picture and a large one, which is shrunk: of its 524 × 655 pixels every row and column 1.02… is kept."""
    folder = root / "ADE20K_2021_17_01"
    place = "ADE20K_2021_17_01/images/ADE/validation/urban/street"
    small = np.array([[0, 2978, 312, 5], [6, 3156, 3157, 2978]])  # 5, 3157: no class of the 847
    large = np.repeat(np.arange(655)[None] % 2, 524, axis=0) * 2978
    for number, objects in ((1, small), (2, large)):
        path = root / place / f"ADE_val_{number:08d}.jpg"
        save_picture(path, width=objects.shape[1], height=objects.shape[0])
        _save_ade_map(path.with_name(f"{path.stem}_seg.png"), objects)
    write_ade_index(folder / "index_ade20k.pkl", place)
    kept = np.arange(640) * 655 // 640
    classes = shipped_classes("ade847")
    return {
        "ADE_val_00000001": np.array(
            [[65535, 0, 1, 65535], [classes.stored.index(6), classes.stored.index(3156), 65535, 0]], np.uint16
        ),
        "ADE_val_00000002": np.repeat(np.where(kept % 2, 0, 65535)[None], 512, axis=0).astype(np.uint16),
    }


def write_ade_index(path: Path, place: str) -> None:
    """The index: a pickle of lists and arrays, with a picture of training between those of validation."""
    objects = [f"thing {number}" for number in range(1, ADE_OBJECTS + 1)]
    classes = shipped_classes("ade847")
    for number, name in zip(classes.stored, classes.names, strict=True):
        objects[number - 1] = name
    index = {
        "filename": ["ADE_val_00000002.jpg", "ADE_train_00000001.jpg", "ADE_val_00000001.jpg"],
        "folder": np.array([place] * 3, dtype=object),
        "objectnames": objects,
        "objectPresence": np.zeros((4, 3), np.uint8),
        "scene": np.array(["/street"] * 3),
        "count": np.float64(3),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(index))


def write_pascal_context(root: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The pictures, maps and lists of both PASCAL Contexts; returns what the files of MATLAB hold."""
    from scipy.io import savemat

    folder = root / "VOCdevkit/VOC2010"
    stored = {
        "2008_000002": np.array([[0, 2, 459, 458], [1, 9, 18, 2]], np.uint16),
        "2008_000003": np.array([[2, 2, 2, 2], [0, 0, 0, 0]], np.uint16),
    }
    (folder / "trainval").mkdir(parents=True)
    for name, numbers in stored.items():
        save_picture(folder / f"JPEGImages/{name}.jpg")
        savemat(folder / f"trainval/{name}.mat", {"LabelMap": numbers}, do_compression=True)
    save_picture(folder / "JPEGImages/2008_000001.jpg")  # of no map
    (folder / "pascalcontext_val.txt").write_text("2008_000003\n2008_000002\n")
    few = dict(zip(shipped_classes("pc59").stored, shipped_classes("pc59").names, strict=True))
    lines = [f"{number}: {few.get(number, f'thing{number}')}" for number in range(1, 460)]
    (folder / "labels.txt").write_text("\n".join(lines) + "\n")
    return stored


def write_pc59(root: Path) -> Maps:
    """Of the classes 2, 9 and 18 the first is 0, the second 1, the third 2; 458 is the last; 1 and 459 are none."""
    write_pascal_context(root)
    return _arrays(
        {
            "2008_000002": [[255, 0, 255, 58], [255, 1, 2, 0]],
            "2008_000003": [[0, 0, 0, 0], [255, 255, 255, 255]],
        }
    )


def write_pc459(root: Path) -> Maps:
    """Each number less one; 0 is no class."""
    write_pascal_context(root)
    return _arrays(
        {
            "2008_000002": [[65535, 1, 458, 457], [0, 8, 17, 1]],
            "2008_000003": [[1, 1, 1, 1], [65535, 65535, 65535, 65535]],
        },
        np.uint16,
    )


def write_voc20(root: Path) -> Maps:
    """Maps with a palette, where 0 is the background and 255 the rim of an object: neither counts."""
    folder = root / "VOCdevkit/VOC2012"
    stored = {"2007_000033": [[0, 1, 20, 255], [0, 0, 15, 255]], "2007_000042": [[19, 19, 0, 0], [19, 19, 255, 255]]}
    for name, numbers in stored.items():
        save_picture(folder / f"JPEGImages/{name}.jpg")
        save_map(folder / f"SegmentationClassAug/{name}.png", numbers, palette=True)
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    (folder / "ImageSets/Segmentation/val.txt").write_text("2007_000033\n2007_000042\n")
    return _arrays(
        {
            "2007_000033": [[255, 0, 19, 255], [255, 255, 14, 255]],
            "2007_000042": [[18, 18, 255, 255], [18, 18, 255, 255]],
        }
    )


def write_coco_stuff(root: Path) -> Maps:
    """Ids less one, with gaps: 181 is the last class, 10 is a fire hydrant, 12 a stop sign, 11 nothing."""
    folder = root / "coco"
    stored = {
        "000000000009": [[0, 10, 11, 12], [181, 255, 91, 89]],
        "000000000025": [[255, 255, 255, 255], [255, 255, 255, 255]],  # of no class at all
    }
    for name, numbers in stored.items():
        save_picture(folder / f"train2017/{name}.jpg")
        save_map(folder / f"stuffthingmaps/train2017/{name}.png", numbers)
    return _arrays({"000000000009": [[0, 10, 255, 11], [170, 255, 80, 79]]})


def save_picture(path: Path, *, width: int = WIDTH_PX, height: int = HEIGHT_PX) -> None:
    """A JPEG that is bright on the right and below."""
    path.parent.mkdir(parents=True, exist_ok=True)
    right_HW = np.repeat(np.linspace(0, 255, width)[None], height, axis=0)
    below_HW = np.repeat(np.linspace(0, 255, height)[:, None], width, axis=1)
    rgb_HW3 = np.stack([right_HW, below_HW, 255 - right_HW], axis=-1).astype(np.uint8)
    Image.fromarray(rgb_HW3).save(path, quality=95)


def save_map(path: Path, numbers: Any, *, palette: bool = False) -> None:
    """A PNG of 8 bits, grey or with a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(numbers, np.uint8))
    if palette:
        image.putpalette([value for index in range(256) for value in (index, 255 - index, 128)])
    image.save(path)


def read_map(path: str | Path) -> np.ndarray[Any, Any]:
    """The numbers of a prepared map."""
    with Image.open(path) as image:
        return np.asarray(image)


def _save_ade_map(path: Path, objects_HW: np.ndarray[Any, Any]) -> None:
    """Red has ten times the number's 256s and a rest of the annotators' own, green what is left, blue the instance."""
    red_HW = objects_HW // 256 * 10 + 3
    rgb_HW3 = np.stack([red_HW, objects_HW % 256, np.full_like(objects_HW, 7)], axis=-1)
    Image.fromarray(rgb_HW3.astype(np.uint8)).save(path)


def _arrays(numbers: dict[str, list[list[int]]], dtype: Any = np.uint8) -> Maps:
    return {name: np.array(rows, dtype) for name, rows in numbers.items()}


_WRITERS: Mapping[str, Callable[[Path], Maps]] = {
    "ade150": write_ade150,
    "ade847": write_ade847,
    "pc59": write_pc59,
    "pc459": write_pc459,
    "voc20": write_voc20,
    "coco-stuff-171": write_coco_stuff,
}
