"""The data sets that open-vocabulary segmentation is measured on: from their official downloads to maps of classes.

    prepared = prepare("ade150", "/data")         # writes what is lacking, checks all of it
    prepared = open_benchmark("ade150", "/data")   # only opens
    prepared.pictures                             # the SemanticSet
    prepared.left_out                             # pictures that cannot be counted, and why

A map appears whole or not at all, and one that is there is compared, not written again. When all are there, a record
beside their folder says so, and from then on the set is opened by that. Nothing is ever downloaded.
"""

from __future__ import annotations

import fcntl
import functools
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

from mining.images import image_size
from mining.stores import plain_path, scheme_of
from schemas.errors import IncompleteError, InputError
from schemas.rows import Rejection
from tuning.benchmark_classes import ClassList, seen_classes, shipped_classes
from tuning.benchmark_layouts import LAYOUTS, Entry, Layout, require_layout
from tuning.benchmark_maps import (
    Numbering,
    Numbers,
    encode_map,
    read_index_map,
    renumber,
    shrink_map,
    shrink_picture,
    shrunk_size,
)
from tuning.files import write_whole
from tuning.semantic_sets import MappedPicture, SemanticSet

BENCHMARKS = ("ade150", "ade847", "pc59", "pc459", "voc20")
NAMES = (*BENCHMARKS, "coco-stuff-171")
"""`coco-stuff-171` is what open-vocabulary MaskFormers are trained on; the others are benchmarks."""

VOID = "no pixel of any class"
"""Why a picture of COCO-Stuff is left out that is all right otherwise."""

_FORM = 1
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A picture of the official list that is not in the prepared set, and why in a few words."""

    image_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prepared set, and what of its official list of `official` pictures is not in it.

    `written` maps were made by this call, the others were there. `own_classes`: the download's list of classes is not
    the one that published figures are of.
    """

    pictures: SemanticSet
    official: int
    left_out: tuple[LeftOut, ...] = ()
    own_classes: bool = False
    written: int = 0

    @property
    def complete(self) -> bool:
        """Whether figures on it may stand beside published ones: every picture is there, and so is every class."""
        return not self.own_classes and len(self.pictures.pictures) >= self.official

    def line(self) -> str:
        """How much of the set this is, in one line; every result on it has to say so."""
        count = len(self.pictures.pictures)
        if self.complete:
            return f"{self.pictures.name}: all {count:,} pictures"
        said = [f"{self.pictures.name}: {count:,} of {self.official:,} pictures, not what published figures are of"]
        reasons = Counter(one.reason for one in self.left_out)
        said += [f"{number:,} left out: {reason}" for reason, number in reasons.most_common(3)]
        said += ["labels.txt is not the list of classes that others use"] * self.own_classes
        return "; ".join(said)

    def faults(self, most: int) -> list[str]:
        """A line for each of the first pictures that were left out."""
        lines = [f"{one.image_id}: {one.reason}" for one in self.left_out[:most]]
        return lines + [f"… and {len(self.left_out) - most:,} more"] * (len(self.left_out) > most)


def prepare(
    name: str,
    root: str,
    *,
    partial: bool = False,
    processes: int = 1,
    tick: Callable[[int, int], None] = lambda done, of: None,
) -> Prepared:
    """Make what is lacking of a set's maps, and check all of it.

    `root` is the folder that has the download's folder. `partial` allows a download that is not whole. `tick` gets how
    many pictures are done, and of how many. Stop it at any time and call it again. Raises InputError, which names the
    first thing that is missing and where to get it; IncompleteError when the disk is full, another process prepares
    the set, or one of ours was killed.
    """
    layout, folder = _layout(name), _local(root)
    stored = _read_record(layout, folder)
    if stored and stored.complete and not _gone(stored, layout, folder):
        return _as_prepared(stored, layout, folder)
    require_layout(layout, folder)
    numbering = layout.numbering(folder)
    entries = _official_entries(layout, folder, partial=partial)
    with _alone(folder / layout.maps):
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
    """Open what `prepare` made. Raises InputError where it did not yet, or where files have gone since."""
    layout, folder = _layout(name), _local(root)
    again = f"run maskmine benchmark {name} --root {root} --prepare-only"
    record = _read_record(layout, folder)
    if record is None:
        require_layout(layout, folder)
        raise InputError(f"{name}: is not prepared below {folder}; {again}")
    if gone := _gone(record, layout, folder):
        raise InputError(f"{name}: {gone[0]} is missing, and {len(gone) - 1:,} files more; {again}")
    return _as_prepared(record, layout, folder)


def class_names(name: str, root: str | None = None) -> tuple[str, ...]:
    """The classes of a set by number. Raises InputError where they come with the download and `root` has none."""
    layout = _layout(name)
    if name != "pc459":
        return shipped_classes(name).names
    if root is None:
        raise InputError(f"{name}: its classes come with its download; give --root")
    require_layout(layout, _local(root))
    return layout.classes(_local(root)).names


def downloaded_pictures(name: str, root: str) -> list[tuple[str, str]]:
    """The id and the path of each picture of a set's download that is there, prepared or not.

    Raises InputError as `prepare` does where the download is not below `root`.
    """
    layout, folder = _layout(name), _local(root)
    require_layout(layout, folder)
    return [(one.image_id, str(one.image)) for one in layout.entries(folder) if one.image.exists()]


@dataclass(frozen=True, slots=True)
class _Record:
    """What the file beside a prepared set's maps says of it."""

    image_ids: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    classes: tuple[str, ...]
    official: int

    @property
    def complete(self) -> bool:
        return len(self.image_ids) + sum(one.reason == VOID for one in self.left_out) >= self.official


@dataclass(frozen=True, slots=True)
class _Made:
    """What became of a picture: a map that was made or was there, or why it is left out. `other_map`: it differs."""

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
    """The pictures of the official list, or those of which there is anything. Raises InputError where some lack."""
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
    """Make each map, in the order of the entries. Raises InputError at the end where other maps were there."""
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
        yield from pool.map(make, entries, chunksize=_AT_ONCE)
    except BrokenProcessPool as error:
        raise IncompleteError(
            "a process that prepared maps was killed, perhaps for want of memory; run the same command again, "
            "with fewer processes"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _make(entry: Entry, *, name: str, numbering: Numbering, folder: Path) -> _Made:
    """Make the map of a picture, and the picture itself where the set has its own ones, unless they are there."""
    layout = LAYOUTS[name]
    found = _labels(entry, layout, numbering)
    if isinstance(found, str):
        return _Made(entry.image_id, found)
    labels_HW = found
    if layout.short_side_px is not None:
        labels_HW = shrink_map(found, shrunk_size(found.shape, layout.short_side_px))
        if fault := _write_picture(entry, folder / layout.images / f"{entry.image_id}.jpg", labels_HW.shape):
            return _Made(entry.image_id, fault)
    void = layout.skips_void and bool((labels_HW == layout.ignore).all())
    path = folder / layout.maps / f"{entry.image_id}{layout.ending}"
    there = read_index_map(path) if path.exists() else "absent"
    if isinstance(there, str):
        write_whole(path, encode_map(labels_HW))
    return _Made(
        entry.image_id,
        VOID if void else None,
        written=isinstance(there, str),
        other_map=not isinstance(there, str) and not np.array_equal(there, labels_HW),
    )


def _labels(entry: Entry, layout: Layout, numbering: Numbering) -> Numbers | str:
    """The renumbered map in the size of its picture, or what is wrong with one of both."""
    if not entry.labels.exists():
        return "no map"
    size = image_size(str(entry.image))
    if isinstance(size, Rejection):
        return "no picture" if size.reason == "missing_file" else f"its picture cannot be read ({size.reason})"
    stored_HW = layout.read(entry.labels)
    if isinstance(stored_HW, str):
        return stored_HW
    if stored_HW.shape != size:
        height, width = stored_HW.shape
        return f"its picture has {size[1]} × {size[0]} pixels, its map {width} × {height}"
    return renumber(stored_HW, numbering)


def _write_picture(entry: Entry, path: Path, size: tuple[int, ...]) -> str | None:
    """Write the picture in its new size unless it is there in it; returns what is wrong with it."""
    if path.exists() and image_size(str(path)) == size:
        return None
    try:
        with Image.open(entry.image) as image:
            picture = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return "its picture cannot be read (decode_error)"
    if (picture.height, picture.width) != size:
        picture = shrink_picture(picture, (size[0], size[1]))
    content = BytesIO()
    picture.save(content, "JPEG")  # in Pillow's own quality, as the pictures that published figures are of
    write_whole(path, content.getvalue())
    return None


@contextmanager
def _alone(maps: Path) -> Iterator[None]:
    """Hold the folder of maps for this process; the system lets go of it when the process ends, however it does."""
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
    """Write the record, and the names of the classes as a text file, unless they are there."""
    content = {
        "form": _FORM,
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
    """The record of a set; None where there is none, or one of another version or of other classes."""
    try:
        stored: Any = json.loads(_record_path(layout, folder).read_text(encoding="utf-8"))
        left_out = tuple(LeftOut(image_id, reason) for image_id, reason in stored["left_out"].items())
        record = _Record(tuple(stored["pictures"]), left_out, tuple(stored["classes"]), stored["official"])
        same = (stored["form"], stored["name"]) == (_FORM, layout.name)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    if not same or (layout.name != "pc459" and record.classes != shipped_classes(layout.name).names):
        return None
    return record


def _gone(record: _Record, layout: Layout, folder: Path) -> list[str]:
    """The pictures and maps that a record names and that are not there."""
    pictures = _pictures(record, layout, folder)
    paths = [path for one in pictures for path in (one.labels, one.image)]
    there = {folder: _names_in(folder) for folder in {os.path.dirname(path) for path in paths}}
    return [path for path in paths if os.path.basename(path) not in there[os.path.dirname(path)]]


def _names_in(folder: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()


def _pictures(record: _Record, layout: Layout, folder: Path) -> tuple[MappedPicture, ...]:
    images, maps = folder / layout.images, folder / layout.maps
    return tuple(
        MappedPicture(one, str(images / f"{one}.jpg"), str(maps / f"{one}{layout.ending}")) for one in record.image_ids
    )


def _as_prepared(record: _Record, layout: Layout, folder: Path, *, written: int = 0) -> Prepared:
    pictures = _pictures(record, layout, folder)
    found = SemanticSet(layout.name, record.classes, pictures, layout.ignore, seen_classes(record.classes))
    own = not ClassList(record.classes, ()).is_official(layout.name)
    return Prepared(found, record.official, record.left_out, own, written)
