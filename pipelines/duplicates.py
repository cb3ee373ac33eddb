"""Groups of images in a run that are copies of each other, across all parts: by their bytes, and by their looks.

In memory are the images' ids and 64 bits of each, some 100 bytes an image; pictures are read a few at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from mining.decoder import Decoding
from mining.picture_hash import COPY_BITS, close_pairs, picture_hash
from pipelines.run_folder import RunFolder
from pipelines.verify import read_complete
from schemas.rows import ImageRow, Rejection

_MOST_PIXELS = 50_000_000
_LEAST_CONTRAST = 2.0  # standard deviation of a channel; pictures of one colour all have one hash


@dataclass(frozen=True, slots=True)
class Group:
    """Images that are copies of each other, `(part, image id)`, in the plan's order.

    `bits` is the largest distance that joined two of them; 0 where all look the same. `same_bytes`: the files are.
    """

    images: tuple[tuple[int, str], ...]
    bits: int
    same_bytes: bool


@dataclass(frozen=True, slots=True)
class Duplicates:
    """What was found among `images` pictures that could be looked at; `unread` could not."""

    images: int
    unread: int
    groups: tuple[Group, ...]

    @property
    def copies(self) -> int:
        """How many images could go without a loss: all of a group but one."""
        return sum(len(group.images) - 1 for group in self.groups)


def find_duplicates(
    run: RunFolder,
    *,
    most_bits: int | None = COPY_BITS,
    threads: int = 2,
    tick: Callable[[int], None] = lambda _: None,
) -> Duplicates:
    """Groups of copies, the largest first; `tick` counts images. `most_bits` None: files of the same bytes alone.

    Files of the same bytes are known from the run; for the others each picture is read and hashed. Raises
    IncompleteError when the run is not finished.
    """
    _, plan = read_complete(run)
    places: list[tuple[int, str]] = []
    digests: list[str] = []
    hashes: list[int | None] = []
    unread = 0
    with ThreadPoolExecutor(threads) as pool:
        for part in range(plan.parts):
            for (image, digest), found in _looked_at(run, part, pool=pool, look=most_bits is not None):
                tick(1)
                if digest is None:
                    unread += 1
                    continue
                places.append((part, image.image_id))
                digests.append(digest)
                hashes.append(found)
    joined = list(_same_bytes(digests))
    if most_bits is not None:
        joined += _close(hashes, most_bits=most_bits)
    return Duplicates(len(places), unread, tuple(_groups(places, digests, joined)))


def _looked_at(
    run: RunFolder, part: int, *, pool: ThreadPoolExecutor, look: bool
) -> Iterator[tuple[tuple[ImageRow, str | None], int | None]]:
    """The images of a part with the SHA-256 of their files, None for a picture that could not be read, and hashes."""
    name = f"{part:05d}.parquet"
    images = run.read_rows("images", name, row_type=ImageRow)
    digests = run.read_table("regions", name)["sha256"].to_pylist()
    known = list(zip(images, digests, strict=True))
    hashes = pool.map(_hash, (image.path if digest else None for image, digest in known)) if look else None
    yield from zip(known, hashes if hashes is not None else [None] * len(known), strict=True)


def _hash(path: str | None) -> int | None:
    """The hash of a picture; None where it cannot be read, or has too little in it to tell it from others."""
    if path is None:
        return None
    picture = Decoding().read(path, max_pixels=_MOST_PIXELS)
    if isinstance(picture, Rejection) or picture.rgb_HW3[::4, ::4].std() < _LEAST_CONTRAST:
        return None
    return picture_hash(picture.rgb_HW3)


def _same_bytes(digests: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    first: dict[str, int] = {}
    for place, digest in enumerate(digests):
        if first.setdefault(digest, place) != place:
            yield first[digest], place, 0


def _close(hashes: Sequence[int | None], *, most_bits: int) -> Iterator[tuple[int, int, int]]:
    """Pairs of images whose hashes are near; of equal hashes only the first is compared with others."""
    first: dict[int, int] = {}
    for place, value in enumerate(hashes):
        if value is not None and first.setdefault(value, place) != place:
            yield first[value], place, 0
    different = list(first)
    for one, other, bits in close_pairs(different, different, most_bits=most_bits):
        if one < other:
            yield first[different[one]], first[different[other]], bits


def _groups(
    places: Sequence[tuple[int, str]], digests: Sequence[str], joined: Sequence[tuple[int, int, int]]
) -> list[Group]:
    """Images that are joined, directly or by others, the largest groups first."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not joined:
        return []
    ones, others, bits = (np.array(column) for column in zip(*joined, strict=True))
    graph = coo_array((np.ones(len(joined), bool), (ones, others)), shape=(len(places), len(places)))
    _, label_of = connected_components(graph, directed=False)
    members: dict[int, list[int]] = defaultdict(list)
    most: dict[int, int] = defaultdict(int)
    for place in sorted({*ones.tolist(), *others.tolist()}):
        members[int(label_of[place])].append(place)
    for place, distance in zip(ones.tolist(), bits.tolist(), strict=True):
        most[int(label_of[place])] = max(most[int(label_of[place])], distance)
    groups = [
        Group(
            tuple(places[place] for place in group),
            most[label],
            same_bytes=len({digests[place] for place in group}) == 1,
        )
        for label, group in members.items()
    ]
    return sorted(groups, key=lambda group: (-len(group.images), group.images))
