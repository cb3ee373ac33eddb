"""Where the benchmarks' downloads have their pictures and maps, and where what is prepared goes.

Folders are those that the field's tools share, so what is prepared here serves them too, and the other way round.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ijson

from schemas.errors import InputError
from tuning.ade_index import read_ade_index
from tuning.benchmark_classes import ClassList, context_classes, shipped_classes
from tuning.benchmark_maps import (
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

_ADE_PICTURES = 2_000
_CONTEXT_CLASSES = 459
_ADE_OBJECTS_AGREE = 0.5


@dataclass(frozen=True, slots=True)
class Need:
    """A file or folder of a download: its path below the root, or another that serves as well; where to get it."""

    path: str
    url: str
    instead: str | None = None

    def find(self, root: Path) -> Path | None:
        """Where it is below a root; None when it is not there."""
        paths = (root / path for path in (self.path, self.instead) if path)
        return next((path for path in paths if os.path.exists(path)), None)


@dataclass(frozen=True, slots=True)
class Entry:
    """A picture and its map as the download has them; whether they are there is another question."""

    image_id: str
    image: Path
    labels: Path


@dataclass(frozen=True)
class Layout:
    """A data set as it is downloaded and as it is prepared. Paths are relative to its root.

    `official` has the counts of pictures that it may have. `entries` lists the pictures of its official list, in order.
    `maps` is the folder for maps, `images` that of the evaluated pictures; `short_side_px` says that these are shrunk
    ones. Pictures without any class are left out where `skips_void`.
    """

    name: str
    needs: tuple[Need, ...]
    official: frozenset[int]
    entries: Callable[[Path], list[Entry]]
    classes: Callable[[Path], ClassList]
    read: Callable[[Path], Numbers | str]
    images: str
    maps: str
    ignore: int
    void: frozenset[int]
    others: int = 0
    short_side_px: int | None = None
    skips_void: bool = False

    @property
    def ending(self) -> str:
        """The ending of a prepared map."""
        return ".png" if self.ignore == IGNORE_8 else ".tif"

    def numbering(self, root: Path) -> Numbering:
        """How numbers change. Raises InputError where the download's own list of classes is not what it should be."""
        return Numbering(self.classes(root), self.ignore, self.void, self.others)


def require_layout(layout: Layout, root: Path) -> None:
    """Raises InputError for the first thing that is missing, or with the root that was probably meant."""
    if not root.is_dir():
        raise InputError(f"--root {root}: there is no such folder; give the folder that has the data set's")
    if layout.needs[0].find(root) is None and (hint := _other_level(layout, root)):
        raise InputError(f"--root {root}: {hint}")
    for need in layout.needs:
        if need.find(root) is None:
            instead = f" (or {need.instead})" if need.instead else ""
            raise InputError(f"{layout.name}: {root / need.path}{instead} is missing; get it at {need.url}")


def _other_level(layout: Layout, root: Path) -> str | None:
    """What to do where the data set lies above or below the root."""
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
    found = next((folder for folder in deeper if layout.needs[0].find(folder)), None)
    return f"the data set lies one folder deeper; give --root {found}" if found else None


def _ade150_entries(root: Path) -> list[Entry]:
    folder = root / "ADEChallengeData2016"
    names = [f"ADE_val_{number:08d}" for number in range(1, _ADE_PICTURES + 1)]
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
    validation = sorted(one for one in index.pictures if one.name.startswith("ADE_val_"))
    return [Entry(one.stem, root / one, root / one.with_name(f"{one.stem}_seg.png")) for one in validation]


def _voc_entries(root: Path) -> list[Entry]:
    folder = root / "VOCdevkit/VOC2012"
    names = _read_list(folder / "ImageSets/Segmentation/val.txt")
    grown = folder / "SegmentationClassAug"
    maps = grown if grown.exists() else folder / "SegmentationClass"
    return _entries(names, folder / "JPEGImages", maps, ".png")


def _context_entries(root: Path) -> list[Entry]:
    folder = root / "VOCdevkit/VOC2010"
    names = folder / "pascalcontext_val.txt"
    found = _read_list(names) if names.exists() else _read_merged(folder / "trainval_merged.json")
    return _entries(found, folder / "JPEGImages", folder / "trainval", ".mat")


def _coco_entries(root: Path) -> list[Entry]:
    images, maps = root / "coco/train2017", root / "coco/stuffthingmaps/train2017"
    names = {path.stem for path in images.iterdir() if path.suffix == ".jpg"}
    names |= {path.stem for path in maps.iterdir() if path.suffix == ".png"}
    return _entries(sorted(names), images, maps, ".png")


def _entries(names: Iterable[str], images: Path, maps: Path, ending: str) -> list[Entry]:
    return [Entry(name, images / f"{name}.jpg", maps / f"{name}{ending}") for name in names]


def _read_list(path: Path) -> list[str]:
    """The ids in a text file, the first word of each line, in the order of the file."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__}); give an id a line") from error
    names = [Path(line.split()[0]).stem for line in lines if line.strip()]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}: has {twice} twice; give each picture once")
    return names


def _read_merged(path: Path) -> list[str]:
    """The ids of the pictures of validation in the JSON of the Detail API, which is too large to be read at once."""
    try:
        with path.open("rb") as file:
            images = [(one["phase"], one["file_name"]) for one in ijson.items(file, "images.item")]
    except (OSError, ijson.JSONError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__}); get it at {_CONTEXT_LIST}") from error
    return sorted(Path(name).stem for phase, name in images if phase == "val")


# The first need of a set is what tells it from others, wherever it lies.
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
    _pc459_classes(root)  # which says that our numbers are those of the download
    return shipped_classes("pc59")


def _pascal_context(name: str, *, classes: Callable[[Path], ClassList], ignore: int, others: int = 0) -> Layout:
    return Layout(
        name=name,
        needs=_CONTEXT_NEEDS,
        official=frozenset({5_104, 5_105}),  # the lists that go around differ by one picture
        entries=_context_entries,
        classes=classes,
        read=read_mat_map,
        images="VOCdevkit/VOC2010/JPEGImages",
        maps=f"VOCdevkit/VOC2010/annotations_detectron2/{name}_val",
        ignore=ignore,
        void=frozenset({0}),
        others=others,
    )


_ALL = (
    Layout(
        name="ade150",
        needs=(
            Need("ADEChallengeData2016/images/validation", _ADE_150),
            Need("ADEChallengeData2016/annotations/validation", _ADE_150),
        ),
        official=frozenset({_ADE_PICTURES}),
        entries=_ade150_entries,
        classes=lambda root: shipped_classes("ade150"),
        read=read_index_map,
        images="ADEChallengeData2016/images/validation",
        maps="ADEChallengeData2016/annotations_detectron2/validation",
        ignore=IGNORE_8,
        void=frozenset({0}),
    ),
    Layout(
        name="ade847",
        needs=(
            Need("ADE20K_2021_17_01/index_ade20k.pkl", _ADE_FULL),
            Need("ADE20K_2021_17_01/images/ADE/validation", _ADE_FULL),
        ),
        official=frozenset({_ADE_PICTURES}),
        entries=_ade847_entries,
        classes=lambda root: shipped_classes("ade847"),
        read=read_ade_map,
        images="ADE20K_2021_17_01/images_detectron2/validation",
        maps="ADE20K_2021_17_01/annotations_detectron2/validation",
        ignore=IGNORE_16,
        void=frozenset({0}),
        others=25 * 256 + 255,  # any of its thousands of things that is none of the 847
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
        classes=lambda root: shipped_classes("voc20"),
        read=read_index_map,
        images="VOCdevkit/VOC2012/JPEGImages",
        maps="VOCdevkit/VOC2012/annotations_detectron2/val",
        ignore=IGNORE_8,
        void=frozenset({0, 255}),  # background, and the rims of objects
    ),
    Layout(
        name="coco-stuff-171",
        needs=(Need("coco/train2017", _COCO), Need("coco/stuffthingmaps/train2017", _COCO_STUFF)),
        official=frozenset({118_287}),
        entries=_coco_entries,
        classes=lambda root: shipped_classes("coco-stuff-171"),
        read=read_index_map,
        images="coco/train2017",
        maps="coco/stuffthingmaps_detectron2/train2017",
        ignore=IGNORE_8,
        void=frozenset({255}),
        others=181,  # the ids that COCO-Stuff left free
        skips_void=True,
    ),
)
LAYOUTS: Mapping[str, Layout] = {layout.name: layout for layout in _ALL}
