"""The set that a user names: a known one by its name and root, or a folder of images and one of label maps."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, replace

from maskmine.mining.storage.stores import describe
from maskmine.mining.text.labels import read_class_names
from maskmine.pipelines.segment.images import find_images, image_id_of, read_names
from maskmine.schemas.errors import InputError
from maskmine.tuning.benchmarks.label_maps import void_number
from maskmine.tuning.benchmarks.prepare import NAMES, open_benchmark
from maskmine.tuning.benchmarks.sets import AnnotatedImage, SemanticSet

_MAX_NAMED = 3  # files in a message
_MAP_SUFFIXES = (".png", ".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class BenchmarkSet:
    """A set, with a note that belongs to every result on it.

    Results on an `official` one compare with published results.
    """

    dataset: SemanticSet
    note: str = ""
    official: bool = False


def find_set(
    name: str,
    *,
    root: str | None = None,
    images: str | None = None,
    maps: str | None = None,
    names: str | None = None,
    ignore: int | None = None,
    seen: str | None = None,
) -> BenchmarkSet:
    """The known set `name` below `root`, or the one that the other arguments describe, under this name.

    Raises InputError for what is missing, and as `open_benchmark` and `set_of_folders`.
    """
    given = {"--images": images, "--maps": maps, "--names": names}
    if not any(given.values()):
        return _prepared(name, root)
    if images is None or maps is None or names is None:
        missing = next(option for option, value in given.items() if value is None)
        raise InputError(f"{missing}: missing; a set of one's own is --images DIR --maps DIR --names FILE")
    if root is not None:
        raise InputError(f"--root {root}: is for the sets that have names; leave it out, or --images, --maps, --names")
    return BenchmarkSet(set_of_folders(name, images=images, maps=maps, names=names, ignore=ignore, seen=seen))


def set_of_folders(
    name: str, *, images: str, maps: str, names: str, ignore: int | None, seen: str | None = None
) -> SemanticSet:
    """A set of folders: every image of one has a map of the same name in the other.

    `names` is a text file with the classes, label 0 first, `seen` one with those that the proposals were trained on;
    `ignore` is as in `void_number`.
    Images are in the order of their names. Raises InputError, which names the first image or map without the other,
    or another fault.
    """
    classes = read_class_names(names, setting="--names")
    void = void_number(ignore, classes=len(classes), setting="--ignore")
    seen_names = None if seen is None else frozenset(read_names(seen, option="--seen"))
    if seen_names is not None and not seen_names & set(classes):
        raise InputError(f"--seen {seen}: names none of the {len(classes)} classes; give names as in --names")
    image_of = _by_id(find_images([_folder(images, "--images")]), "--images")
    map_paths = [path for path in find_images([_folder(maps, "--maps")]) if path.lower().endswith(_MAP_SUFFIXES)]
    map_of = _by_id(map_paths, "--maps")
    _require_pairs(image_of.keys() - map_of.keys(), of=f"--images {images}", other=f"map in {maps}")
    _require_pairs(map_of.keys() - image_of.keys(), of=f"--maps {maps}", other=f"picture in {images}")
    ids = sorted(image_of, key=lambda image_id: posixpath.basename(image_of[image_id]))
    annotated = tuple(AnnotatedImage(image_id, image_of[image_id], map_of[image_id]) for image_id in ids)
    return SemanticSet(name, classes, annotated, void, seen_names)


def first_images(benchmark_set: BenchmarkSet, limit: int | None) -> BenchmarkSet:
    """The set with its first images only; the whole set without a limit."""
    whole = benchmark_set.dataset
    if limit is None or limit >= len(whole.images):
        return benchmark_set
    note = f"only the first {limit:,} of {len(whole.images):,} pictures"
    notes = "; ".join(filter(None, (benchmark_set.note, note)))
    return BenchmarkSet(replace(whole, images=whole.images[:limit]), notes)


def _prepared(name: str, root: str | None) -> BenchmarkSet:
    if name not in NAMES:
        raise InputError(
            f"{name}: unknown; known are {', '.join(NAMES)}, and sets of one's own are --images DIR --maps DIR "
            "--names FILE"
        )
    if root is None:
        raise InputError(f"{name}: where is it? Give --root DIR, the folder of its download")
    prepared = open_benchmark(name, root)
    return BenchmarkSet(prepared.dataset, "" if prepared.complete else prepared.line(), prepared.complete)


def _folder(path: str, option: str) -> str:
    about = describe(path)
    if about is None or about["type"] != "directory":
        raise InputError(f"{option} {path}: no such folder; give the folder of the {option.removeprefix('--')}")
    return path


def _by_id(paths: list[str], option: str) -> dict[str, str]:
    by_id: dict[str, str] = {}
    for path in paths:
        if (other := by_id.setdefault(image_id_of(path), path)) != path:
            raise InputError(f"{option}: {posixpath.basename(other)} and {posixpath.basename(path)} have one name")
    return by_id


def _require_pairs(alone: set[str], *, of: str, other: str) -> None:
    if alone:
        shown = ", ".join(sorted(alone)[:_MAX_NAMED]) + (", …" if len(alone) > _MAX_NAMED else "")
        raise InputError(f"{of}: {len(alone)} without a {other} of the same name ({shown}); add it, or take it away")
