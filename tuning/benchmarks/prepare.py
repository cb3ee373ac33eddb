"""The data sets of open-vocabulary segmentation: from their official downloads to label maps.

    prepared = prepare("ade150", "/data")         # writes missing maps, checks the others
    prepared = open_benchmark("ade150", "/data")   # only opens
    prepared.dataset                              # the SemanticSet
    prepared.left_out                             # images that cannot be counted, and why

A map is written atomically, and an existing one is compared, not written again. A record beside the folder of a
finished set lists its images, and later calls open the set by it. Nothing is downloaded.
"""

from __future__ import annotations

import fcntl
import functools
import glob
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskmine.mining.images.child_decoder import Decoding
from maskmine.mining.images.decode import MAX_SIDE_PX
from maskmine.mining.images.orientation import turn_upright_array
from maskmine.mining.images.read import read_bytes
from maskmine.mining.storage.files import write_whole
from maskmine.mining.storage.stores import plain_path, scheme_of
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.rows import Rejection
from maskmine.tuning.benchmarks.classes import ClassList, seen_classes, shipped_classes
from maskmine.tuning.benchmarks.label_maps import (
    Numbering,
    Numbers,
    encode_map,
    read_index_map,
    renumber,
    shrink_image,
    shrink_map,
    shrunk_size,
)
from maskmine.tuning.benchmarks.layouts import LAYOUTS, Entry, Layout, require_layout
from maskmine.tuning.benchmarks.sets import AnnotatedImage, SemanticSet

BENCHMARKS = ("ade150", "ade847", "pc59", "pc459", "voc20")
NAMES = (*BENCHMARKS, "coco-stuff-171")
"""`coco-stuff-171` is the training set of open-vocabulary MaskFormers; the others are benchmarks."""

VOID = "no pixel of any class"
"""The reason for valid images of COCO-Stuff that are left out."""

_RECORD_VERSION = 1  # raised when the record beside the maps changes
_DECODING = Decoding()
_MAX_PIXELS = MAX_SIDE_PX**2
_CHUNK = 16  # images a process gets at a time: fewer messages between processes


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An image of the official list that is not in the prepared set, and the reason."""

    image_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prepared set; of its `official` number of images, some may be left out.

    `written` maps are new, the others existed. `own_classes`: the class list of the download is not that of published
    results.
    """

    dataset: SemanticSet
    official: int
    left_out: tuple[LeftOut, ...] = ()
    own_classes: bool = False
    written: int = 0

    @property
    def complete(self) -> bool:
        """Whether results compare with published ones: all images and all classes are there."""
        return not self.own_classes and len(self.dataset.images) >= self.official

    def line(self) -> str:
        """One line on the completeness of the set, which belongs to every result on it."""
        count = len(self.dataset.images)
        if self.complete:
            return f"{self.dataset.name}: all {count:,} pictures"
        parts = [f"{self.dataset.name}: {count:,} of {self.official:,} pictures, not what published figures are of"]
        reasons = Counter(one.reason for one in self.left_out)
        parts += [f"{number:,} left out: {reason}" for reason, number in reasons.most_common(3)]
        parts += ["labels.txt is not the list of classes that others use"] * self.own_classes
        return "; ".join(parts)

    def faults(self, limit: int) -> list[str]:
        """A line for each of the first images that were left out."""
        lines = [f"{one.image_id}: {one.reason}" for one in self.left_out[:limit]]
        return lines + [f"… and {len(self.left_out) - limit:,} more"] * (len(self.left_out) > limit)


def prepare(
    name: str,
    root: str,
    *,
    partial: bool = False,
    processes: int = 1,
    tick: Callable[[int, int], None] = lambda done, of: None,
) -> Prepared:
    """Write the missing maps of a set, and check the others.

    `root` is the folder that contains the download's folder. `partial` allows an incomplete download. `tick` gets the
    number of finished images and of all. It can be stopped and called again. Raises InputError, which names the first
    missing file and where to get it; IncompleteError when the disk is full, another process prepares the set, or a
    worker process was killed.
    """
    layout, folder = _layout(name), _local(root)
    stored = _read_record(layout, folder)
    if stored and stored.complete and not _missing(stored, layout, folder):
        return _as_prepared(stored, layout, folder)
    require_layout(layout, folder)
    numbering = layout.numbering(folder)
    entries = _official_entries(layout, folder, partial=partial)
    with _lock(folder / layout.maps):
        made = _make_all(entries, layout, numbering, folder, processes=processes, tick=tick)
        record = _Record(
            tuple(one.image_id for one in made if one.left_out is None),
            tuple(LeftOut(one.image_id, one.left_out) for one in made if one.left_out is not None),
            numbering.classes.names,
            len(entries) if len(entries) in layout.official else max(layout.official),
        )
        _write_record(record, layout, folder)
    if not record.image_ids:
        raise InputError(f"{name}: none of its {len(entries):,} pictures can be used ({record.left_out[0].reason})")
    return _as_prepared(record, layout, folder, written=sum(one.written for one in made))


def open_benchmark(name: str, root: str) -> Prepared:
    """Open a prepared set. Raises InputError where it is not prepared, or where files have disappeared since."""
    layout, folder = _layout(name), _local(root)
    again = f"run maskmine benchmark {name} --root {root} --prepare-only"
    record = _read_record(layout, folder)
    if record is None:
        require_layout(layout, folder)
        raise InputError(f"{name}: is not prepared below {folder}; {again}")
    if missing := _missing(record, layout, folder):
        raise InputError(f"{name}: {missing[0]} is missing, and {len(missing) - 1:,} files more; {again}")
    return _as_prepared(record, layout, folder)


def class_names(name: str, root: str | None = None) -> tuple[str, ...]:
    """The classes of a set by number. Raises InputError where the download has them, and `root` has no download."""
    layout = _layout(name)
    if name != "pc459":
        return shipped_classes(name).names
    if root is None:
        raise InputError(f"{name}: its classes come with its download; give --root")
    require_layout(layout, _local(root))
    return layout.class_list(_local(root)).names


def downloaded_images(name: str, root: str) -> list[tuple[str, str]]:
    """The id and the path of each existing image of a download, prepared or not.

    Raises InputError as `prepare` does where the download is not below `root`.
    """
    layout, folder = _layout(name), _local(root)
    require_layout(layout, folder)
    return [(one.image_id, str(one.image)) for one in layout.entries(folder) if one.image.exists()]


@dataclass(frozen=True, slots=True)
class _Record:
    """The file beside the maps of a prepared set."""

    image_ids: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    classes: tuple[str, ...]
    official: int

    @property
    def complete(self) -> bool:
        return len(self.image_ids) + sum(one.reason == VOID for one in self.left_out) >= self.official


@dataclass(frozen=True, slots=True)
class _Made:
    """The result for an image: a map, `written` or already there, or why it is left out.

    `other_map`: the map that is there differs from the download.
    """

    image_id: str
    left_out: str | None = None
    written: bool = False
    other_map: bool = False


def _layout(name: str) -> Layout:
    if name not in LAYOUTS:
        raise InputError(f"{name}: no such data set; there are {', '.join(NAMES)}")
    return LAYOUTS[name]


def _local(root: str) -> Path:
    if scheme_of(root) != "file":
        raise InputError(f"--root {root}: data sets are read from a disk; copy it, and give a plain path")
    return Path(plain_path(root)).expanduser()


def _official_entries(layout: Layout, folder: Path, *, partial: bool) -> list[Entry]:
    """The images of the official list, with `partial` those with a file. Raises InputError where some are missing."""
    entries = layout.entries(folder)
    if partial:
        entries = [one for one in entries if one.labels.exists() or one.image.exists()]
        if not entries:
            raise InputError(f"{layout.name}: none of its pictures is below {folder}; is it the right download?")
        return entries
    url, part = layout.needs[0].url, "or add --partial to use what is there"
    for kind, paths in (("maps", [one.labels for one in entries]), ("pictures", [one.image for one in entries])):
        if missing := [path for path in paths if not path.exists()]:
            raise InputError(
                f"{layout.name}: {len(missing):,} of {len(paths):,} {kind} are missing, the first is {missing[0]}; "
                f"get them at {url}, {part}"
            )
    if len(entries) not in layout.official:
        whole = " or ".join(f"{count:,}" for count in sorted(layout.official))
        raise InputError(f"{layout.name}: has {len(entries):,} pictures, the official set {whole}; see {url}, {part}")
    return entries


def _make_all(
    entries: Sequence[Entry],
    layout: Layout,
    numbering: Numbering,
    folder: Path,
    *,
    processes: int,
    tick: Callable[[int, int], None],
) -> list[_Made]:
    """Make each map, in the order of the entries. Raises InputError at the end where existing maps differ."""
    make = functools.partial(_make, name=layout.name, numbering=numbering, folder=folder)
    made = []
    for one in _map(make, entries, processes=processes):
        made.append(one)
        tick(len(made), len(entries))
    if others := [one.image_id for one in made if one.other_map]:
        raise InputError(
            f"{folder / layout.maps / (others[0] + layout.ending)}: has other numbers than the download gives, and so "
            f"have {len(others) - 1:,} more; another tool made them: move that folder away"
        )
    return made


def _map(make: Callable[[Entry], _Made], entries: Sequence[Entry], *, processes: int) -> Iterator[_Made]:
    if processes == 1:
        yield from map(make, entries)
        return
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield from pool.map(make, entries, chunksize=_CHUNK)
    except BrokenProcessPool as error:
        raise IncompleteError(
            "a process that prepared maps was killed, perhaps for want of memory; run the same command again, "
            "with fewer processes"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _make(entry: Entry, *, name: str, numbering: Numbering, folder: Path) -> _Made:
    """Write the map of an image, and the resized image where the set has resized ones, unless they exist."""
    layout = LAYOUTS[name]
    as_stored_HW = _labels(entry, layout, numbering)
    if isinstance(as_stored_HW, str):
        return _Made(entry.image_id, as_stored_HW)
    labels_HW = as_stored_HW if layout.short_side_px is not None else _with_picture(as_stored_HW, entry)
    turned = labels_HW is not as_stored_HW
    if layout.short_side_px is not None:
        labels_HW = shrink_map(labels_HW, shrunk_size(labels_HW.shape, layout.short_side_px))
        picture = folder / layout.images / f"{entry.image_id}.jpg"
        as_stored = as_stored_HW.shape == _stored_size(entry.image)
        if fault := _write_image(entry, picture, labels_HW.shape, as_stored=as_stored):
            return _Made(entry.image_id, fault)
    void = layout.skips_void and bool((labels_HW == layout.ignore).all())
    path = folder / layout.maps / f"{entry.image_id}{layout.ending}"
    existing_HW = read_index_map(path) if path.exists() else "absent"
    if turned and np.array_equal(existing_HW, as_stored_HW):
        return _Made(entry.image_id, "its picture is turned by EXIF or XMP, and its map, of another tool, is not")
    if isinstance(existing_HW, str):
        write_whole(path, encode_map(labels_HW))
        return _Made(entry.image_id, VOID if void else None, written=True)
    return _Made(entry.image_id, VOID if void else None, other_map=not np.array_equal(existing_HW, labels_HW))


def _labels(entry: Entry, layout: Layout, numbering: Numbering) -> Numbers | str:
    """The renumbered map as the download has it, or the fault of it or its image.

    Its size is that of the image as it is stored or, where that is turned by 90°, as it is seen.
    """
    if not entry.labels.exists():
        return "no map"
    header = _DECODING.header(str(entry.image))
    if isinstance(header, Rejection):
        return "no picture" if header.reason == "missing_file" else f"its picture cannot be read ({header.reason})"
    stored_HW = layout.read(entry.labels)
    if isinstance(stored_HW, str):
        return stored_HW
    if stored_HW.shape not in (header.upright_px, header.stored_px):
        (image_height, image_width), (height, width) = header.upright_px, stored_HW.shape
        return f"its picture has {image_width} × {image_height} pixels, its map {width} × {height}"
    return renumber(stored_HW, numbering)


def _stored_size(path: Path) -> tuple[int, int] | None:
    """The height and width of an image before it is turned upright; None for one that cannot be opened."""
    header = _DECODING.header(str(path))
    return None if isinstance(header, Rejection) else header.stored_px


def _with_picture(labels_HW: Numbers, entry: Entry) -> Numbers:
    """The map as its image is seen. Maps are of the pixels as they are stored, as every tool of these sets reads them,
    except those that have the upright image's size alone."""
    header = _DECODING.header(str(entry.image))
    if isinstance(header, Rejection) or labels_HW.shape != header.stored_px:
        return labels_HW
    return turn_upright_array(labels_HW, header.orientation)


def _write_image(entry: Entry, path: Path, size: tuple[int, ...], *, as_stored: bool) -> str | None:
    """Write the image at its new size unless it exists at that size; returns its fault.

    What states its orientation is not kept: its pixels lie as those of its map do, `as_stored` or turned upright.
    """
    existing = _DECODING.header(str(path)) if path.exists() else None
    if existing is not None and not isinstance(existing, Rejection) and existing.upright_px == size:
        return None
    data = read_bytes(str(entry.image))
    stored = data if isinstance(data, Rejection) else _DECODING.decode_stored(data, max_pixels=_MAX_PIXELS, mode="RGB")
    if isinstance(stored, Rejection):
        return f"its picture cannot be read ({stored.reason})"
    image = Image.fromarray(stored.pixels if as_stored else turn_upright_array(stored.pixels, stored.orientation))
    if (image.height, image.width) != size:
        image = shrink_image(image, (size[0], size[1]))
    content = BytesIO()
    image.save(content, "JPEG")  # at Pillow's default quality, as for published results
    write_whole(path, content.getvalue())
    return None


@contextmanager
def _lock(maps: Path) -> Iterator[None]:
    """Lock the folder of maps for this process; the lock ends with the process, even a killed one."""
    try:
        maps.mkdir(parents=True, exist_ok=True)
        folder = os.open(maps, os.O_RDONLY)
    except OSError as error:
        raise InputError(
            f"{maps}: cannot be made ({error.strerror}); where a download may not be written to, make another root "
            "that has links to its folders"
        ) from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise IncompleteError(f"{maps}: another process prepares it; wait for it, then run this again") from error
    finally:
        os.close(folder)


def _record_path(layout: Layout, folder: Path) -> Path:
    maps = folder / layout.maps
    return maps.with_name(f"{maps.name}.maskmine.json")


def _write_record(record: _Record, layout: Layout, folder: Path) -> None:
    """Write the record, and the names of the classes as a text file, unless they exist."""
    content = {
        "form": _RECORD_VERSION,
        "name": layout.name,
        "official": record.official,
        "classes": record.classes,
        "left_out": {one.image_id: one.reason for one in record.left_out},
        "pictures": record.image_ids,
    }
    maps = folder / layout.maps
    files = {
        maps.with_name(f"{maps.name}.names.txt"): "".join(f"{name}\n" for name in record.classes),
        _record_path(layout, folder): json.dumps(content, ensure_ascii=False, indent=0) + "\n",
    }
    for path, text in files.items():
        if not path.exists() or path.read_bytes() != text.encode():
            write_whole(path, text.encode())


def _read_record(layout: Layout, folder: Path) -> _Record | None:
    """The record of a set; None without one, or where its version or classes differ."""
    try:
        stored: Any = json.loads(_record_path(layout, folder).read_text(encoding="utf-8"))
        left_out = tuple(LeftOut(image_id, reason) for image_id, reason in stored["left_out"].items())
        record = _Record(tuple(stored["pictures"]), left_out, tuple(stored["classes"]), stored["official"])
        same = (stored["form"], stored["name"]) == (_RECORD_VERSION, layout.name)
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return None
    if any(not one or "/" in one or one.startswith(".") for one in record.image_ids):  # not of a list that we wrote
        return None
    if not same or (layout.name != "pc459" and record.classes != shipped_classes(layout.name).names):
        return None
    return record


def _missing(record: _Record, layout: Layout, folder: Path) -> list[str]:
    """The images and maps of a record that do not exist. Each folder is listed once: there may be 100,000 files."""
    paths = [path for one in _images(record, layout, folder) for path in (one.labels, one.image)]
    folders = {os.path.dirname(path) for path in paths}
    existing = {path for folder in folders for path in glob.iglob(f"{glob.escape(folder)}/*")}
    return [path for path in paths if path not in existing]


def _images(record: _Record, layout: Layout, folder: Path) -> tuple[AnnotatedImage, ...]:
    images, maps = folder / layout.images, folder / layout.maps
    return tuple(
        AnnotatedImage(one, str(images / f"{one}.jpg"), str(maps / f"{one}{layout.ending}")) for one in record.image_ids
    )


def _as_prepared(record: _Record, layout: Layout, folder: Path, *, written: int = 0) -> Prepared:
    images = _images(record, layout, folder)
    dataset = SemanticSet(layout.name, record.classes, images, layout.ignore, seen_classes(record.classes))
    own_classes = not ClassList(record.classes, ()).is_official(layout.name)
    return Prepared(dataset, record.official, record.left_out, own_classes, written)
