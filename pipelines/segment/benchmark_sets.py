"""Which set a person means: one of the five by its name and root, or a folder of pictures beside one of label maps."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, replace

from mining.stores import describe
from pipelines.pictures import find_pictures, picture_id, read_names
from schemas.errors import InputError
from tuning.benchmarks import NAMES, open_benchmark
from tuning.semantic_sets import MappedPicture, SemanticSet

_SAID = 3
_MAP_ENDINGS = (".png", ".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class FoundSet:
    """A set, and what has to be said of figures on it, if anything.

    Figures on an `official` one may stand beside those that others published.
    """

    pictures: SemanticSet
    note: str = ""
    official: bool = False


def find_set(
    name: str,
    *,
    root: str | None = None,
    images: str | None = None,
    maps: str | None = None,
    names: str | None = None,
    ignore: int = 255,
    seen: str | None = None,
) -> FoundSet:
    """The set of a name below `root`, or the one that the other arguments describe, which then has this name.

    Raises InputError for what is missing, and as the function does that reads the set.
    """
    given = {"--images": images, "--maps": maps, "--names": names}
    if not any(given.values()):
        return _prepared(name, root)
    if images is None or maps is None or names is None:
        missing = next(option for option, value in given.items() if value is None)
        raise InputError(f"{missing}: missing; a set of one's own is --images DIR --maps DIR --names FILE")
    if root is not None:
        raise InputError(f"--root {root}: is for the sets that have names; leave it out, or --images, --maps, --names")
    return FoundSet(set_of_folders(name, images=images, maps=maps, names=names, ignore=ignore, seen=seen))


def set_of_folders(
    name: str, *, images: str, maps: str, names: str, ignore: int, seen: str | None = None
) -> SemanticSet:
    """A set in evaluation form: every picture of a folder has a map of the same name in another.

    `names` is a text file with the classes, the first of them 0; `seen` one with those that the training of the
    proposals knew. Pictures are in the order of their names. Raises InputError, which names the first picture or map
    that stands alone, or what else is wrong.
    """
    classes = _read_classes(names)
    known = None if seen is None else frozenset(read_names(seen, option="--seen"))
    if known is not None and not known & set(classes):
        raise InputError(f"--seen {seen}: names none of the {len(classes)} classes; give names as in --names")
    pictures = _by_stem(find_pictures([_folder(images, "--images")]), "--images")
    found = [path for path in find_pictures([_folder(maps, "--maps")]) if path.lower().endswith(_MAP_ENDINGS)]
    labels = _by_stem(found, "--maps")
    _refuse_lonely(pictures.keys() - labels.keys(), of=f"--images {images}", other=f"map in {maps}")
    _refuse_lonely(labels.keys() - pictures.keys(), of=f"--maps {maps}", other=f"picture in {images}")
    ordered = sorted(pictures, key=lambda stem: posixpath.basename(pictures[stem]))
    return SemanticSet(
        name, classes, tuple(MappedPicture(stem, pictures[stem], labels[stem]) for stem in ordered), ignore, known
    )


def first_pictures(found: FoundSet, limit: int | None) -> FoundSet:
    """The set with its first pictures only; the whole set without a limit."""
    whole = found.pictures
    if limit is None or limit >= len(whole.pictures):
        return found
    note = f"only the first {limit:,} of {len(whole.pictures):,} pictures"
    return FoundSet(replace(whole, pictures=whole.pictures[:limit]), "; ".join(filter(None, (found.note, note))))


def _prepared(name: str, root: str | None) -> FoundSet:
    if name not in NAMES:
        raise InputError(
            f"{name}: unknown; known are {', '.join(NAMES)}, and sets of one's own are --images DIR --maps DIR "
            "--names FILE"
        )
    if root is None:
        raise InputError(f"{name}: where is it? Give --root DIR, the folder of its download")
    prepared = open_benchmark(name, root)
    return FoundSet(prepared.pictures, "" if prepared.complete else prepared.line(), prepared.complete)


def _read_classes(file: str) -> tuple[str, ...]:
    """The names in a file. The label of a class is the number of its line, so none may be empty."""
    lines = read_names(file, option="--names")
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise InputError(f"--names {file}: has no names; give a text file, a class a line, the first one for label 0")
    if "" in lines:
        raise InputError(f"--names {file}: line {lines.index('') + 1} is empty; each line is a class, by its label")
    return tuple(lines)


def _folder(path: str, option: str) -> str:
    about = describe(path)
    if about is None or about["type"] != "directory":
        raise InputError(f"{option} {path}: no such folder; give the folder of the {option.removeprefix('--')}")
    return path


def _by_stem(paths: list[str], option: str) -> dict[str, str]:
    by_stem: dict[str, str] = {}
    for path in paths:
        if (other := by_stem.setdefault(picture_id(path), path)) != path:
            raise InputError(f"{option}: {posixpath.basename(other)} and {posixpath.basename(path)} have one name")
    return by_stem


def _refuse_lonely(stems: set[str], *, of: str, other: str) -> None:
    if stems:
        shown = ", ".join(sorted(stems)[:_SAID]) + (", …" if len(stems) > _SAID else "")
        raise InputError(f"{of}: {len(stems)} without a {other} of the same name ({shown}); add it, or take it away")
