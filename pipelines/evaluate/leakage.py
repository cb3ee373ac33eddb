"""What a finished run has in common with the benchmarks: nouns that name their classes, and images of both.

A class that was mined is no longer unseen, and an image that was mined is no test. Only pairs in the shards, and images
with such pairs, are counted.
"""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Literal, TypeVar, get_args

from maskmine.mining.images.child_decoder import Decoding
from maskmine.mining.images.perceptual_hash import close_pairs, image_hash
from maskmine.mining.storage.locations import parse_location
from maskmine.mining.text.labels import load_synonyms
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import ImageRow, OriginRow, RegionsRow, Rejection, SampleRow
from maskmine.tuning.benchmarks.classes import seen_classes
from maskmine.tuning.benchmarks.nouns import KINDS, Kind, open_classes
from maskmine.tuning.benchmarks.prepare import BENCHMARKS, class_names, downloaded_images

Way = Literal[
    "file",  # the files have the same bytes
    "look",  # their perceptual hashes are near
    "name",  # they have one name, and that is all
]
WAYS: tuple[Way, ...] = get_args(Way)
"""The most certain first."""

Value = TypeVar("Value")
Hashes = tuple[str | None, int | None]
"""SHA-256 of a file and perceptual hash of its image; None where it cannot be read, or is not to be."""

_MAX_PIXELS = 100_000_000  # above every benchmark image; larger ones in a run count as unreadable
_THREADS = 8  # decoding releases Python's lock
_CHUNK_FILES = 256  # files between two reports of progress


@dataclass(frozen=True, slots=True)
class NamedClass:
    """A class that mined nouns name: each noun with how it names the class, and the number of its pairs.

    `seen`: COCO-Stuff has the class, so a model trained on it has seen it anyway.
    """

    name: str
    seen: bool
    nouns: tuple[tuple[str, Kind, int], ...]

    @property
    def pairs(self) -> int:
        """The pairs of all these nouns."""
        return sum(pairs for _, _, pairs in self.nouns)


@dataclass(frozen=True, slots=True)
class SharedImage:
    """Image `name` of a benchmark that is, or may be, image `image_id` of the run, which has `pairs`.

    `distance` is that of the perceptual hashes in bits, None for other ways.
    """

    name: str
    image_id: str
    way: Way
    distance: int | None
    pairs: int


@dataclass(frozen=True, slots=True)
class SharedImages:
    """The images of a benchmark that the run has too, of `images`; `unreadable` ones were compared by name alone."""

    images: int
    unreadable: int
    shared: tuple[SharedImage, ...]

    def count(self, way: Way) -> int:
        """How many images of the benchmark are shared in this way and in no more certain one."""
        best_ways = {image.name: image.way for image in sorted(self.shared, key=lambda image: -WAYS.index(image.way))}
        return Counter(best_ways.values())[way]


@dataclass(frozen=True, slots=True)
class BenchmarkLeakage:
    """The overlap of a run and a benchmark. `images` is None where they were not compared, for the reason `why`.

    `classes` are all its classes, `named` those that nouns name, in order; `pairs` of the run name at least one.
    """

    name: str
    classes: tuple[str, ...]
    named: tuple[NamedClass, ...]
    pairs: int
    images: SharedImages | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Leakage:
    """A run against the benchmarks. `hashed` counts the images of the run that have a perceptual hash.

    `unknown` says which benchmarks were left out because their classes are not known here.
    """

    run: str
    pairs: int
    images: int
    hashed: int
    most_bits: int
    benchmarks: tuple[BenchmarkLeakage, ...]
    unknown: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain values for leakage.json and `--json`: the same run and data sets, the same values."""
        return {
            "run": {"fingerprint": self.run, "pairs": self.pairs, "images": self.images, "readable": self.hashed},
            "most_bits": self.most_bits,
            "benchmarks": {benchmark.name: _benchmark_json(benchmark) for benchmark in self.benchmarks},
        }


@dataclass(frozen=True, slots=True)
class _MinedImage:
    """An image of the run that has pairs, with the hashes of its file."""

    image_id: str
    path: str | None
    sha256: str | None
    pairs: int
    look: int | None


def find_leakage(
    run: RunFolder,
    *,
    root: str | None = None,
    names: Sequence[str] = (),
    looks: bool = True,
    most_bits: int,
    tick: Callable[[int], None] = lambda files: None,
) -> Leakage:
    """Compare a finished run with the benchmarks `names`, or with all that can be compared.

    Nouns are always compared, images where there is a `root`: by name, by file and, with `looks`, by perceptual hash.
    `tick` receives the number of files read since the last call. Raises IncompleteError when the run is not finished,
    InputError when a benchmark of `names` is not below `root`.
    """
    finished = FinishedRun.open(run)
    nouns = _count_nouns(finished)

    # Read the images of both sides, if there is a benchmark to compare them with.
    files = _benchmark_files(root, names)
    paths = {path for listed in files.values() if not isinstance(listed, str) for _, path in listed}
    mined = list(_mined_images(finished, looks=looks, tick=tick)) if paths else []
    hashes = _hash_files(paths, looks=looks, tick=tick)

    # Compare with each benchmark whose classes are known.
    synonyms = load_synonyms("coco")
    benchmarks, unknown = [], []
    for name, listed in files.items():
        classes = _or_reason(partial(class_names, name, root), required=bool(names))
        if isinstance(classes, str):
            unknown.append(classes)
            continue
        named, pairs = _name_classes(nouns, classes, synonyms)
        shared, why = None, listed
        if not isinstance(listed, str):
            shared, why = _share(listed, mined, hashes, most_bits=most_bits), ""
        benchmarks.append(BenchmarkLeakage(name, classes, named, pairs, shared, str(why)))
    return Leakage(
        run=finished.manifest.fingerprint,
        pairs=nouns.total(),
        images=finished.manifest.totals.images,
        hashed=sum(image.look is not None for image in mined),
        most_bits=most_bits,
        benchmarks=tuple(benchmarks),
        unknown=tuple(unknown),
    )


def _count_nouns(finished: FinishedRun) -> Counter[tuple[str, str]]:
    """The pairs of each noun and lemma in the shards."""
    counts: Counter[tuple[str, str]] = Counter()
    for part in finished.parts:
        table = finished.table(part, SampleRow)
        counts.update(zip(table["noun"].to_pylist(), table["lemma"].to_pylist(), strict=True))
    return counts


def _benchmark_files(root: str | None, names: Sequence[str]) -> dict[str, list[tuple[str, str]] | str]:
    """Name and path of each benchmark's images, or the reason why they cannot be compared."""
    if root is None:
        return dict.fromkeys(names or BENCHMARKS, "no --root was given")
    files = {
        name: _or_reason(partial(downloaded_images, name, root), required=bool(names)) for name in names or BENCHMARKS
    }
    if all(isinstance(listed, str) for listed in files.values()):
        raise InputError(f"--root {root}: has none of {', '.join(files)}; {files[BENCHMARKS[0]]}")
    return files


def _or_reason(read: Callable[[], Value], *, required: bool) -> Value | str:
    """The result, or the message of an InputError, which is raised when the result is required."""
    try:
        return read()
    except InputError as error:
        if required:
            raise
        return str(error)


def _name_classes(
    nouns: Mapping[tuple[str, str], int], classes: tuple[str, ...], synonyms: Mapping[str, frozenset[str]]
) -> tuple[tuple[NamedClass, ...], int]:
    """The classes that nouns name, and the number of pairs that name at least one."""
    find, seen = open_classes(classes, synonyms), seen_classes(classes)
    by_class: defaultdict[str, Counter[tuple[str, Kind]]] = defaultdict(Counter)
    pairs = 0
    for (noun, lemma), count in nouns.items():
        named = find(noun, lemma)
        pairs += count if named else 0
        for name, kind in named.items():
            by_class[name][noun, kind] += count

    def ordered(name: str) -> tuple[tuple[str, Kind, int], ...]:
        counts = [(noun, kind, count) for (noun, kind), count in by_class[name].items()]
        return tuple(sorted(counts, key=lambda entry: (KINDS.index(entry[1]), -entry[2], entry[0])))

    return tuple(NamedClass(name, name in seen, ordered(name)) for name in classes if name in by_class), pairs


def _mined_images(finished: FinishedRun, *, looks: bool, tick: Callable[[int], None]) -> Iterator[_MinedImage]:
    for part in finished.parts:
        pairs = Counter(finished.table(part, SampleRow)["image_id"].to_pylist())
        if finished.is_mix:  # which remembers the hashes, not where the images are
            for origin in finished.rows(part, OriginRow):
                known = (origin.file, origin.sha256, pairs[origin.image_id])
                yield _MinedImage(origin.image_id, *known, origin.look_bits if looks else None)
            continue
        digests = finished.columns(part, RegionsRow, ["sha256"])["sha256"].to_pylist()
        rows = [row for row in zip(finished.rows(part, ImageRow), digests, strict=True) if row[0].image_id in pairs]
        paths = {image.path for image, _ in rows if image.path} if looks else set()
        hashes = _hash_files(paths, looks=True, tick=tick)
        for image, sha256 in rows:
            found, look = hashes.get(image.path or "", (None, None))
            look = look if found == sha256 else None  # a picture that the run never read says nothing of it
            yield _MinedImage(image.image_id, image.path, sha256, pairs[image.image_id], look)


def _hash_files(paths: Iterable[str], *, looks: bool, tick: Callable[[int], None]) -> dict[str, Hashes]:
    """The hashes of each file."""

    def read(path: str) -> Hashes:
        image = Decoding().read(path, max_pixels=_MAX_PIXELS)
        if isinstance(image, Rejection):
            return None, None
        return image.sha256, image_hash(image.rgb_HW3) if looks else None

    hashes: dict[str, Hashes] = {}
    remaining = iter(sorted(paths))
    with ThreadPoolExecutor(_THREADS) as pool:
        while chunk := list(islice(remaining, _CHUNK_FILES)):
            hashes.update(zip(chunk, pool.map(read, chunk), strict=True))
            tick(len(chunk))
    return hashes


def _share(
    files: Sequence[tuple[str, str]], mined: Sequence[_MinedImage], hashes: Mapping[str, Hashes], *, most_bits: int
) -> SharedImages:
    """Every benchmark image and mined image that agree in any way, by name and image id, with the most certain way."""
    # Index the mined images by name and by file.
    by_name, by_sha256 = defaultdict(list), defaultdict(list)
    for index, image in enumerate(mined):
        for name in {image.image_id, _stem(image.path)} - {""}:
            by_name[name].append(index)
        if image.sha256:
            by_sha256[image.sha256].append(index)

    # Match by file, then by look, then by name: the first match of two images stays.
    matches: dict[tuple[str, int], tuple[Way, int | None]] = {}
    unreadable = 0
    for name, path in files:
        sha256, _ = hashes[path]
        unreadable += sha256 is None
        matches |= {(name, index): ("file", None) for index in by_sha256.get(sha256 or "", ())}
    theirs = [(name, look) for name, path in files if (look := hashes[path][1]) is not None]
    ours = [(index, image.look) for index, image in enumerate(mined) if image.look is not None]
    near = close_pairs([look for _, look in theirs], [look for _, look in ours], most_bits=most_bits)
    for left, right, distance in near:
        matches.setdefault((theirs[left][0], ours[right][0]), ("look", distance))
    for name, _ in files:
        for index in by_name.get(name, ()):
            matches.setdefault((name, index), ("name", None))

    shared = (
        SharedImage(name, mined[index].image_id, *way, mined[index].pairs) for (name, index), way in matches.items()
    )
    ordered = sorted(shared, key=lambda image: (image.name, image.image_id))
    return SharedImages(len(files), unreadable, tuple(ordered))


def _stem(path: str | None) -> str:
    """The name of an image's file without its suffix; empty for an image inside a tar or table."""
    location = parse_location(path or "")
    return posixpath.splitext(posixpath.basename(location))[0] if isinstance(location, str) else ""


def _benchmark_json(benchmark: BenchmarkLeakage) -> dict[str, Any]:
    return {
        "classes": len(benchmark.classes),
        "named": len(benchmark.named),
        "named_unseen": sum(not named.seen for named in benchmark.named),
        "pairs": benchmark.pairs,
        "by_class": {
            named.name: {
                "seen": named.seen,
                "pairs": named.pairs,
                "nouns": [{"noun": noun, "kind": kind, "pairs": pairs} for noun, kind, pairs in named.nouns],
            }
            for named in benchmark.named
        },
        "pictures": None if benchmark.images is None else _images_json(benchmark.images),
        "pictures_not_compared": benchmark.why or None,
    }


def _images_json(images: SharedImages) -> dict[str, Any]:
    pairs = [
        {"picture": i.name, "image_id": i.image_id, "way": i.way, "distance_bits": i.distance, "pairs": i.pairs}
        for i in images.shared
    ]
    return {
        "pictures": images.images,
        "unreadable": images.unreadable,
        "shared": {way: images.count(way) for way in WAYS},
        "pairs": pairs,
    }
