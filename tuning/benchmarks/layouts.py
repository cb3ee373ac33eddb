"""Where the downloads of the benchmarks have images and maps, and where prepared files go.

The folders are those of detectron2's tools, so either can use what the other prepared.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ijson

from maskmine.mining.storage.bounded.small_files import read_list
from maskmine.schemas.errors import InputError
from maskmine.tuning.benchmarks.ade_index import read_ade_index
from maskmine.tuning.benchmarks.classes import ClassList, context_classes, shipped_classes
from maskmine.tuning.benchmarks.label_maps import (
    IGNORE_8,
    IGNORE_16,
    Numbering,
    Numbers,
    read_ade_map,
    read_index_map,
    read_mat_map,
)

_VOC_2010 = "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar"
_VOC_2012 = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
_ADE_150 = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
_ADE_FULL = "https://groups.csail.mit.edu/vision/datasets/ADE20K/request_data/ (asks for a registration)"
_CONTEXT = "https://www.cs.stanford.edu/~roozbeh/pascal-context/"
_CONTEXT_LIST = "https://codalabuser.blob.core.windows.net/public/trainval_merged.json"
_COCO = "http://images.cocodataset.org/zips/train2017.zip"
_COCO_STUFF = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip"

_ADE_IMAGES = 2_000  # in the validation sets of both ADE20Ks
_CONTEXT_CLASSES = 459
_ADE_OBJECTS_AGREE = 0.5  # share of class names; an index of another release has almost none at their numbers


@dataclass(frozen=True, slots=True)
class Need:
    """A file or folder of a download: its path below the root, or an alternative to it; where to get it."""

    path: str
    url: str
    instead: str | None = None

    def find(self, root: Path) -> Path | None:
        """Its path below a root; None when it does not exist."""
        paths = (root / path for path in (self.path, self.instead) if path)
        return next((path for path in paths if os.path.exists(path)), None)


@dataclass(frozen=True, slots=True)
class Entry:
    """An image and its map in the download; neither needs to exist."""

    image_id: str
    image: Path
    labels: Path


@dataclass(frozen=True)
class Layout:
    """A data set as it is downloaded and as it is prepared. Paths are relative to its root.

    `official` has the valid numbers of images, `entries` lists the official images in order. `classes` is None where
    the package has the class list, `void` and `others` are as in `Numbering`. `maps` is the folder of
    prepared maps, `images` that of the evaluated images, which are resized to `short_side_px` where it is set. Images
    without any class are left out where `skips_void`.
    """

    name: str
    needs: tuple[Need, ...]
    official: frozenset[int]
    entries: Callable[[Path], list[Entry]]
    images: str
    maps: str
    classes: Callable[[Path], ClassList] | None = None
    read: Callable[[Path], Numbers | str] = read_index_map
    ignore: int = IGNORE_8
    void: frozenset[int] = frozenset({0})
    others: int = 0
    short_side_px: int | None = None
    skips_void: bool = False

    @property
    def ending(self) -> str:
        """The suffix of a prepared map."""
        return ".png" if self.ignore == IGNORE_8 else ".tif"

    def class_list(self, root: Path) -> ClassList:
        """The classes. Raises InputError where the list of the download is not the expected one."""
        return self.classes(root) if self.classes else shipped_classes(self.name)

    def numbering(self, root: Path) -> Numbering:
        """How numbers change. Raises InputError as `class_list` does."""
        return Numbering(self.class_list(root), self.ignore, self.void, self.others)


def require_layout(layout: Layout, root: Path) -> None:
    """Raises InputError for the first missing file or folder, or with the root that was probably meant."""
    if not root.is_dir():
        raise InputError(f"--root {root}: there is no such folder; give the folder that has the data set's")
    if layout.needs[0].find(root) is None and (hint := _other_level(layout, root)):
        raise InputError(f"--root {root}: {hint}")
    for need in layout.needs:
        if need.find(root) is None:
            instead = f" (or {need.instead})" if need.instead else ""
            raise InputError(f"{layout.name}: {root / need.path}{instead} is missing; get it at {need.url}")


def _other_level(layout: Layout, root: Path) -> str | None:
    """The remedy where the data set is above or below the root."""
    parts = Path(layout.needs[0].path).parts
    full = root.resolve()
    for depth in range(1, len(parts)):
        if not os.path.exists(root / Path(*parts[depth:])):
            continue
        if full.parts[-depth:] == parts[:depth]:
            return f"is within the data set; give --root {full.parents[depth - 1]}"
        if depth == 1:
            return f"has what belongs into a folder `{parts[0]}`; put it into one, and give the folder that has that"
    deeper = (Path(entry.path) for entry in sorted(os.scandir(root), key=lambda entry: entry.name) if entry.is_dir())
    right = next((folder for folder in deeper if layout.needs[0].find(folder)), None)
    return f"the data set lies one folder deeper; give --root {right}" if right else None


def _ade150_entries(root: Path) -> list[Entry]:
    folder = root / "ADEChallengeData2016"
    names = [f"ADE_val_{number:08d}" for number in range(1, _ADE_IMAGES + 1)]
    return _entries(names, folder / "images/validation", folder / "annotations/validation", ".png")


def _ade847_entries(root: Path) -> list[Entry]:
    path = root / "ADE20K_2021_17_01/index_ade20k.pkl"
    index, classes = read_ade_index(path), shipped_classes("ade847")
    named = zip(classes.stored, classes.names, strict=True)
    agree = sum(number <= len(index.objects) and index.objects[number - 1] == name for number, name in named)
    if agree < _ADE_OBJECTS_AGREE * len(classes.names):
        raise InputError(
            f"{path}: only {agree} of the {len(classes.names)} classes have their number there, so it is of another "
            f"release; get 2021_17_01 at {_ADE_FULL}"
        )
    images = sorted(image for image in index.images if image.name.startswith("ADE_val_"))
    return [Entry(image.stem, root / image, root / image.with_name(f"{image.stem}_seg.png")) for image in images]


def _voc_entries(root: Path) -> list[Entry]:
    folder = root / "VOCdevkit/VOC2012"
    names = _read_list(folder / "ImageSets/Segmentation/val.txt")
    augmented = folder / "SegmentationClassAug"
    maps = augmented if augmented.exists() else folder / "SegmentationClass"
    return _entries(names, folder / "JPEGImages", maps, ".png")


def _context_entries(root: Path) -> list[Entry]:
    folder = root / "VOCdevkit/VOC2010"
    path = folder / "pascalcontext_val.txt"
    names = _read_list(path) if path.exists() else _read_merged(folder / "trainval_merged.json")
    return _entries(names, folder / "JPEGImages", folder / "trainval", ".mat")


def _coco_entries(root: Path) -> list[Entry]:
    images, maps = root / "coco/train2017", root / "coco/stuffthingmaps/train2017"
    names = {path.stem for path in images.iterdir() if path.suffix == ".jpg"}
    names |= {path.stem for path in maps.iterdir() if path.suffix == ".png"}
    return _entries(sorted(names), images, maps, ".png")


def _entries(names: Iterable[str], images: Path, maps: Path, ending: str) -> list[Entry]:
    return [Entry(name, images / f"{name}.jpg", maps / f"{name}{ending}") for name in names]


def _read_list(path: Path) -> list[str]:
    """The ids in a text file, the first word of each line, in its order."""
    try:
        lines = read_list(path, encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__}); give an id a line") from error
    names = [Path(line.split()[0]).stem for line in lines if line.strip()]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}: has {twice} twice; give each picture once")
    return names


def _read_merged(path: Path) -> list[str]:
    """The ids of the validation images in the JSON of the Detail API, which is streamed for its size."""
    try:
        with path.open("rb") as file:
            images = [(one["phase"], one["file_name"]) for one in ijson.items(file, "images.item")]
    except (OSError, ijson.JSONError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__}); get it at {_CONTEXT_LIST}") from error
    return sorted(Path(name).stem for phase, name in images if phase == "val")


# The first need of a set identifies it, also below a wrong root.
_CONTEXT_NEEDS = (
    Need("VOCdevkit/VOC2010/trainval", f"{_CONTEXT}trainval.tar.gz"),
    Need("VOCdevkit/VOC2010/JPEGImages", _VOC_2010),
    Need("VOCdevkit/VOC2010/labels.txt", f"{_CONTEXT}labels.txt"),
    Need(
        "VOCdevkit/VOC2010/pascalcontext_val.txt",
        f"{_CONTEXT_LIST}, or write the ids of the pictures of validation, one a line",
        instead="VOCdevkit/VOC2010/trainval_merged.json",
    ),
)


def _pc459_classes(root: Path) -> ClassList:
    return context_classes(root / "VOCdevkit/VOC2010/labels.txt")


def _pc59_classes(root: Path) -> ClassList:
    _pc459_classes(root)  # checks that the numbers here are those of the download
    return shipped_classes("pc59")


def _pascal_context(name: str, *, classes: Callable[[Path], ClassList], ignore: int, others: int = 0) -> Layout:
    return Layout(
        name=name,
        needs=_CONTEXT_NEEDS,
        official=frozenset({5_104, 5_105}),  # the lists in circulation differ by one image
        entries=_context_entries,
        classes=classes,
        read=read_mat_map,
        images="VOCdevkit/VOC2010/JPEGImages",
        maps=f"VOCdevkit/VOC2010/annotations_detectron2/{name}_val",
        ignore=ignore,
        others=others,
    )


_ALL = (
    Layout(
        name="ade150",
        needs=(
            Need("ADEChallengeData2016/images/validation", _ADE_150),
            Need("ADEChallengeData2016/annotations/validation", _ADE_150),
        ),
        official=frozenset({_ADE_IMAGES}),
        entries=_ade150_entries,
        images="ADEChallengeData2016/images/validation",
        maps="ADEChallengeData2016/annotations_detectron2/validation",
    ),
    Layout(
        name="ade847",
        needs=(
            Need("ADE20K_2021_17_01/index_ade20k.pkl", _ADE_FULL),
            Need("ADE20K_2021_17_01/images/ADE/validation", _ADE_FULL),
        ),
        official=frozenset({_ADE_IMAGES}),
        entries=_ade847_entries,
        read=read_ade_map,
        images="ADE20K_2021_17_01/images_detectron2/validation",
        maps="ADE20K_2021_17_01/annotations_detectron2/validation",
        ignore=IGNORE_16,
        others=25 * 256 + 255,  # any object that is none of the 847
        short_side_px=512,
    ),
    _pascal_context("pc59", classes=_pc59_classes, ignore=IGNORE_8, others=_CONTEXT_CLASSES),
    _pascal_context("pc459", classes=_pc459_classes, ignore=IGNORE_16),
    Layout(
        name="voc20",
        needs=(
            Need("VOCdevkit/VOC2012/JPEGImages", _VOC_2012),
            Need("VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt", _VOC_2012),
            Need("VOCdevkit/VOC2012/SegmentationClassAug", _VOC_2012, instead="VOCdevkit/VOC2012/SegmentationClass"),
        ),
        official=frozenset({1_449}),
        entries=_voc_entries,
        images="VOCdevkit/VOC2012/JPEGImages",
        maps="VOCdevkit/VOC2012/annotations_detectron2/val",
        void=frozenset({0, 255}),  # background, and object boundaries
    ),
    Layout(
        name="coco-stuff-171",
        needs=(Need("coco/train2017", _COCO), Need("coco/stuffthingmaps/train2017", _COCO_STUFF)),
        official=frozenset({118_287}),
        entries=_coco_entries,
        images="coco/train2017",
        maps="coco/stuffthingmaps_detectron2/train2017",
        void=frozenset({255}),
        others=181,  # ids that COCO-Stuff does not use
        skips_void=True,
    ),
)
LAYOUTS: Mapping[str, Layout] = {layout.name: layout for layout in _ALL}
