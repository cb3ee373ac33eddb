"""What a finished run has in common with the benchmarks: nouns that name their classes, and their very pictures.

A class that was mined is no longer one that a model has never been told of, and a picture that was mined is no test at
all. Counted are pairs that are in the shards, and the images that have any.
"""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, get_args

from mining.images import read_image
from mining.labels import load_synonyms
from mining.picture_hash import close_pairs, picture_hash
from mining.places import parse_place
from pipelines.run_folder import RunFolder
from pipelines.status import require_plan
from pipelines.verify import read_manifest
from schemas.errors import InputError
from schemas.rows import ImageRow, RegionsRow, Rejection
from tuning.benchmark_classes import seen_classes
from tuning.benchmark_nouns import KINDS, Kind, open_classes
from tuning.benchmarks import BENCHMARKS, class_names, downloaded_pictures

Way = Literal[
    "file",  # the files have the same bytes
    "look",  # their perceptual hashes are near
    "name",  # they have one name, and that is all
]
WAYS: tuple[Way, ...] = get_args(Way)
"""The surest first."""

_MOST_PIXELS = 100_000_000
_READ_AT_ONCE = 8
_AHEAD = 256


@dataclass(frozen=True, slots=True)
class NamedClass:
    """A class that mined nouns name: how many pairs each noun has, and in which way it names the class.

    `seen`: COCO-Stuff has the class, so a training on it knew it anyway.
    """

    name: str
    seen: bool
    nouns: tuple[tuple[str, Kind, int], ...]

    @property
    def pairs(self) -> int:
        """The pairs of all these nouns."""
        return sum(pairs for _, _, pairs in self.nouns)


@dataclass(frozen=True, slots=True)
class SharedPicture:
    """A picture of a benchmark that an image of the run is, or may be. `distance` in bits, where they look alike."""

    picture: str
    image_id: str
    way: Way
    distance: int | None
    pairs: int


@dataclass(frozen=True, slots=True)
class SharedPictures:
    """Of a benchmark's `pictures` those that the run has; `unreadable` ones could only be compared by name."""

    pictures: int
    unreadable: int
    shared: tuple[SharedPicture, ...]

    def count(self, way: Way) -> int:
        """How many of the benchmark's pictures are shared in this way and in no surer one."""
        surest = {one.picture: one.way for one in sorted(self.shared, key=lambda one: -WAYS.index(one.way))}
        return sum(found == way for found in surest.values())


@dataclass(frozen=True, slots=True)
class BenchmarkLeakage:
    """What a run and a benchmark have in common; no `pictures` where they were not compared, and `why` not.

    `classes` are all of its classes, and `named` those that nouns name, by number. `pairs` of the run name any of them.
    """

    name: str
    classes: tuple[str, ...]
    named: tuple[NamedClass, ...]
    pairs: int
    pictures: SharedPictures | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Leakage:
    """A run against the benchmarks. `looks`: of how many images the picture could be read, to see what it looks like.

    `unknown` says of which benchmarks not even the classes are known here, and why.
    """

    run: str
    pairs: int
    images: int
    looks: int
    most_bits: int
    benchmarks: tuple[BenchmarkLeakage, ...]
    unknown: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain values for leakage.json and `--json`: the same run and data sets, the same values."""
        return {
            "run": {"fingerprint": self.run, "pairs": self.pairs, "images": self.images, "readable": self.looks},
            "most_bits": self.most_bits,
            "benchmarks": {one.name: _benchmark(one) for one in self.benchmarks},
        }


@dataclass(frozen=True, slots=True)
class _Mined:
    """An image of the run that has pairs, and what its picture is; `look` None where it could not be read."""

    image_id: str
    path: str | None
    sha256: str | None
    pairs: int
    look: int | None = None


def find_leakage(
    run: RunFolder,
    *,
    root: str | None = None,
    names: Sequence[str] = (),
    looks: bool = True,
    most_bits: int,
    tick: Callable[[int], None] = lambda more: None,
) -> Leakage:
    """Compare a finished run with some benchmarks, or with all of which there is something to compare.

    Without `root` only nouns are compared, and pictures by name, file and, where `looks`, by perceptual hash with it.
    `tick` gets how many pictures more were read. Raises IncompleteError when the run is not finished, InputError where
    a benchmark is asked for by name and is not below `root`.
    """
    manifest = read_manifest(run)
    nouns = _count_nouns(run)
    pictures = _open_pictures(root, names)
    compared = any(isinstance(found, list) for found in pictures.values())
    mined = list(_mined_images(run, looks=looks, tick=tick)) if compared else []
    paths = {path for found in pictures.values() if isinstance(found, list) for _, path in found}
    theirs = _read_all(paths, looks=looks, tick=tick)
    table = load_synonyms("coco")
    benchmarks, unknown = [], []
    for name, found in pictures.items():
        classes = _classes(name, root, asked=bool(names))
        if isinstance(classes, str):
            unknown.append(classes)
            continue
        named, pairs = _name_classes(nouns, classes, table)
        shared = _share(found, mined, theirs, most_bits=most_bits) if isinstance(found, list) else None
        why = "" if isinstance(found, list) else found
        benchmarks.append(BenchmarkLeakage(name, classes, named, pairs, shared, why))
    return Leakage(
        manifest.fingerprint,
        sum(nouns.values()),
        manifest.totals.images,
        sum(one.look is not None for one in mined),
        most_bits,
        tuple(benchmarks),
        tuple(unknown),
    )


def _count_nouns(run: RunFolder) -> Counter[tuple[str, str]]:
    """The pairs of each noun and lemma in the shards."""
    counts: Counter[tuple[str, str]] = Counter()
    for part in range(require_plan(run).parts):
        table = run.read_table("shards", f"{part:05d}.parquet")
        counts.update(zip(table["noun"].to_pylist(), table["lemma"].to_pylist(), strict=True))
    return counts


def _open_pictures(root: str | None, names: Sequence[str]) -> dict[str, list[tuple[str, str]] | str]:
    """The pictures of each benchmark that can be compared, or why they cannot."""
    found: dict[str, list[tuple[str, str]] | str] = {}
    for name in names or BENCHMARKS:
        if root is None:
            found[name] = "no --root was given"
            continue
        try:
            found[name] = downloaded_pictures(name, root)
        except InputError as error:
            if names:
                raise
            found[name] = str(error)
    if root is not None and not any(isinstance(one, list) for one in found.values()):
        raise InputError(f"--root {root}: has none of {', '.join(found)}; {found[BENCHMARKS[0]]}")
    return found


def _classes(name: str, root: str | None, *, asked: bool) -> tuple[str, ...] | str:
    """The classes of a benchmark; where they come with a download that is not there a line that says so."""
    try:
        return class_names(name, root)
    except InputError as error:
        if asked:
            raise
        return str(error)


def _name_classes(
    nouns: Mapping[tuple[str, str], int], classes: tuple[str, ...], table: Mapping[str, frozenset[str]]
) -> tuple[tuple[NamedClass, ...], int]:
    """The classes that nouns name, and how many pairs name any."""
    find, seen = open_classes(classes, table), seen_classes(classes)
    by_class: defaultdict[str, Counter[tuple[str, Kind]]] = defaultdict(Counter)
    pairs = 0
    for (noun, lemma), count in nouns.items():
        named = find(noun, lemma)
        pairs += count if named else 0
        for name, kind in named.items():
            by_class[name][noun, kind] += count
    found = []
    for name in classes:
        if name in by_class:
            ordered = sorted(by_class[name].items(), key=lambda item: (KINDS.index(item[0][1]), -item[1], item[0][0]))
            found.append(NamedClass(name, name in seen, tuple((noun, kind, count) for (noun, kind), count in ordered)))
    return tuple(found), pairs


def _mined_images(run: RunFolder, *, looks: bool, tick: Callable[[int], None]) -> Iterator[_Mined]:
    for part in range(require_plan(run).parts):
        file = f"{part:05d}.parquet"
        pairs = Counter(run.read_table("shards", file)["image_id"].to_pylist())
        images = run.read_rows("images", file, row_type=ImageRow)
        regions = run.read_rows("regions", file, row_type=RegionsRow)
        mined = [
            _Mined(image.image_id, image.path, row.sha256, pairs[image.image_id])
            for image, row in zip(images, regions, strict=True)
            if image.image_id in pairs
        ]
        seen = _read_all({one.path for one in mined if one.path}, looks=True, tick=tick) if looks else {}
        for one in mined:
            look = seen.get(one.path or "", (None, None))[1]
            yield _Mined(one.image_id, one.path, one.sha256, one.pairs, look)


def _read_all(
    paths: Iterable[str], *, looks: bool, tick: Callable[[int], None]
) -> dict[str, tuple[str | None, int | None]]:
    """The SHA-256 of each file and the hash of its picture; None for both where it cannot be read."""

    def read(path: str) -> tuple[str | None, int | None]:
        picture = read_image(path, max_pixels=_MOST_PIXELS)
        if isinstance(picture, Rejection):
            return None, None
        return picture.sha256, picture_hash(picture.rgb_HW3) if looks else None

    found: dict[str, tuple[str | None, int | None]] = {}
    ordered = iter(sorted(set(paths)))
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        while some := list(islice(ordered, _AHEAD)):
            found.update(zip(some, pool.map(read, some), strict=True))
            tick(len(some))
    return found


def _share(
    pictures: Sequence[tuple[str, str]],
    mined: Sequence[_Mined],
    theirs: Mapping[str, tuple[str | None, int | None]],
    *,
    most_bits: int,
) -> SharedPictures:
    """The pairs of a picture and an image that agree in any way, by picture and image; the surest way of each."""
    by_name, by_file = defaultdict(list), defaultdict(list)
    for place, one in enumerate(mined):
        for name in {one.image_id, _stem(one.path)} - {""}:
            by_name[name].append(place)
        if one.sha256:
            by_file[one.sha256].append(place)
    found: dict[tuple[str, int], tuple[Way, int | None]] = {}
    readable = [(name, *theirs[path]) for name, path in pictures]
    hashed = [(name, look) for name, _, look in readable if look is not None]
    for name, sha256, _ in readable:
        found |= {(name, place): ("file", None) for place in by_file.get(sha256 or "", ())}
    looks = [(place, one.look) for place, one in enumerate(mined) if one.look is not None]
    near = close_pairs([look for _, look in hashed], [look for _, look in looks], most_bits=most_bits)
    for one_place, other_place, distance in near:
        found.setdefault((hashed[one_place][0], looks[other_place][0]), ("look", distance))
    for name, _ in pictures:
        for place in by_name.get(name, ()):
            found.setdefault((name, place), ("name", None))
    shared = sorted(
        (SharedPicture(name, mined[place].image_id, *way, mined[place].pairs) for (name, place), way in found.items()),
        key=lambda one: (one.picture, one.image_id),
    )
    return SharedPictures(len(pictures), sum(sha256 is None for _, sha256, _ in readable), tuple(shared))


def _stem(path: str | None) -> str:
    """The name of a picture's file without the ending; empty where the picture is no file of its own."""
    place = parse_place(path or "")
    return posixpath.splitext(posixpath.basename(place))[0] if isinstance(place, str) else ""


def _benchmark(one: BenchmarkLeakage) -> dict[str, Any]:
    unseen = [named for named in one.named if not named.seen]
    return {
        "classes": len(one.classes),
        "named": len(one.named),
        "named_unseen": len(unseen),
        "pairs": one.pairs,
        "by_class": {
            named.name: {
                "seen": named.seen,
                "pairs": named.pairs,
                "nouns": [{"noun": noun, "kind": kind, "pairs": pairs} for noun, kind, pairs in named.nouns],
            }
            for named in one.named
        },
        "pictures": None if one.pictures is None else _pictures(one.pictures),
        "pictures_not_compared": one.why or None,
    }


def _pictures(shared: SharedPictures) -> dict[str, Any]:
    return {
        "pictures": shared.pictures,
        "unreadable": shared.unreadable,
        "shared": {way: shared.count(way) for way in WAYS},
        "pairs": [
            {
                "picture": one.picture,
                "image_id": one.image_id,
                "way": one.way,
                "distance_bits": one.distance,
                "pairs": one.pairs,
            }
            for one in shared.shared
        ],
    }
