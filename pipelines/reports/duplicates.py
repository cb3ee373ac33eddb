"""Groups of images of a run that are copies of each other, across all parts: by their bytes, or by how they look.

Memory holds the id, the SHA-256 and a hash of 64 bits of every image, whatever is a copy of what; files are read a few
at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np

from maskmine.mining.images.looks import look_of
from maskmine.mining.images.perceptual_hash import COPY_BITS, near_pairs
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.rows import ImageRow, OriginRow, RegionsRow
from maskmine.tuning.console import TextTable

_NAMED = 8  # image ids of a group that are printed
Links = np.ndarray[Any, np.dtype[np.int64]]
"""The numbers of two images that are copies, and the distance of their hashes in bits: [L, 3]."""


@dataclass(frozen=True, slots=True)
class Group:
    """Images that are copies of each other, `(part, image id)`, in the plan's order.

    `bits` is the largest distance that joined two of them, 0 where all look the same; `same_bytes`: of the files.
    """

    images: tuple[tuple[int, str], ...]
    bits: int
    same_bytes: bool


@dataclass(frozen=True, slots=True)
class Duplicates:
    """The groups among `images` readable images; `unread` others could not be read."""

    images: int
    unread: int
    groups: tuple[Group, ...]

    @property
    def copies(self) -> int:
        """How many images are redundant: all of a group but one."""
        return sum(len(group.images) - 1 for group in self.groups)


def render_duplicates(duplicates: Duplicates, *, most: int) -> TextTable:
    """A line for each of the `most` largest groups."""
    table = TextTable(box=None, pad_edge=False)
    for name in ("images", "bits", "files", "image ids (part)"):
        table.add_column(name, justify="right" if name in ("images", "bits") else "left", overflow="fold")
    for group in duplicates.groups[:most]:
        named = ", ".join(f"{image_id} ({part})" for part, image_id in group.images[:_NAMED])
        more = f" and {len(group.images) - _NAMED:,} more" if len(group.images) > _NAMED else ""
        same = "same bytes" if group.same_bytes else "look alike"
        table.add_row(f"{len(group.images):,}", str(group.bits), same, named + more)
    return table


def find_duplicates(
    run: RunFolder, *, most_bits: int | None = COPY_BITS, threads: int = 2, tick: Callable[[int], None] = lambda _: None
) -> Duplicates:
    """Groups of copies, the largest first; `tick` counts images. `most_bits` None: files of the same bytes alone.

    Files of the same bytes are known from the run; for the others each image is read and hashed. A mix knows both of
    its images, and nothing is read. Raises IncompleteError when the run is not finished.
    """
    finished = FinishedRun.open_complete(run)
    names: list[tuple[int, str]] = []
    digests: list[str] = []
    hashes: list[int | None] = []
    unread = 0
    with ThreadPoolExecutor(threads) as pool:
        for part in finished.parts:
            for image_id, digest, look in _images(finished, part, pool, looks=most_bits is not None):
                tick(1)
                if digest is None:
                    unread += 1
                    continue
                names.append((part, image_id))
                digests.append(digest)
                hashes.append(look)
    linked = _Linked(len(names))
    linked.add(_repeated(digests))
    if most_bits is not None:
        linked.add(_repeated(hashes))
        for links in _close(hashes, most_bits=most_bits):
            linked.add(links)
    return Duplicates(len(names), unread, tuple(_groups(names, digests, linked)))


def _images(
    finished: FinishedRun, part: int, pool: ThreadPoolExecutor, *, looks: bool
) -> Iterator[tuple[str, str | None, int | None]]:
    """Id, SHA-256 and hash of the images of a part, those of a mix as it remembers them."""
    if finished.is_mix:
        yield from (
            (row.image_id, row.sha256, row.look_bits if looks else None) for row in finished.rows(part, OriginRow)
        )
        return
    digests = finished.columns(part, RegionsRow, ["sha256"])["sha256"].to_pylist()
    images = finished.rows(part, ImageRow)
    hashes = pool.map(look_of, [image.path for image in images], digests) if looks else repeat(None)
    for image, digest, look in zip(images, digests, hashes, strict=False):
        yield image.image_id, digest, look


class _Linked:
    """Which images are linked, directly or through others; links are forgotten, so memory holds the images alone."""

    def __init__(self, images: int) -> None:
        self.label_of = np.arange(images)
        self.bits_of = np.full(images, -1)  # the largest distance of an image's own links; -1 without any

    def add(self, links: Links) -> None:
        """Join the images of some links."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        if not len(links):
            return
        left, right, bits = links.T
        np.maximum.at(self.bits_of, left, bits)
        np.maximum.at(self.bits_of, right, bits)
        ends = self.label_of[left], self.label_of[right]
        size = len(self.label_of)
        graph = coo_array((np.ones(len(links), bool), ends), shape=(size, size))
        self.label_of = connected_components(graph, directed=False)[1][self.label_of]


def _repeated(values: Sequence[Hashable]) -> Links:
    """A link from each value that occurred before to its first occurrence; None links nothing."""
    first: dict[Hashable, int] = {}
    links = [
        (first[value], index, 0)
        for index, value in enumerate(values)
        if value is not None and first.setdefault(value, index) != index
    ]
    return np.array(links, np.int64).reshape(-1, 3)


def _close(hashes: Sequence[int | None], *, most_bits: int) -> Iterator[Links]:
    """Links of images whose hashes are near; of equal hashes only the first is compared with others."""
    first = {value: index for index, value in reversed(list(enumerate(hashes))) if value is not None}
    different, places = list(first), np.array(list(first.values()), np.int64)
    for pairs in near_pairs(different, different, most_bits=most_bits):
        left, right, bits = pairs[pairs[:, 0] < pairs[:, 1]].T
        yield np.stack([places[left], places[right], bits], axis=1)


def _groups(names: Sequence[tuple[int, str]], digests: Sequence[str], linked: _Linked) -> list[Group]:
    """The groups of linked images, the largest first."""
    members: dict[int, list[int]] = defaultdict(list)
    for index in np.flatnonzero(linked.bits_of >= 0).tolist():
        members[int(linked.label_of[index])].append(index)
    groups = [
        Group(
            tuple(names[i] for i in group),
            int(linked.bits_of[group].max()),
            same_bytes=len({digests[i] for i in group}) == 1,
        )
        for group in members.values()
    ]
    return sorted(groups, key=lambda group: (-len(group.images), group.images))
