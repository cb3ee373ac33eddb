"""What an export takes of a run: counted in one pass over the indexes, then read part by part as it is written.

Of each split it is known how many samples every part has, so parts without any are not read again, nor those of shards
that are there already.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import pyarrow as pa

from maskmine.mining.exports.export_shards import Totals
from maskmine.mining.exports.filters import Selection
from maskmine.pipelines.export.reader import RunReader

Unit = Literal["pair", "image", "part", "split"]
"""What is not to be parted: a shard of an export ends with any pair, where those of an image or of a part end, or with
its split."""

# Image ids that can stand as COCO's: whole numbers without leading zeros, below 2**53 as JSON readers need.
_NUMBER = re.compile(r"0|[1-9][0-9]{0,14}")


@dataclass(frozen=True)
class Selected:
    """The samples of a run that pass the filters: `totals`, the samples of each shard of the export by split, and those
    of each part of the run by split. `without_pairs` are nouns that were asked for and none of them has."""

    reader: RunReader
    selection: Selection
    totals: Totals
    shards: dict[str, Sequence[int]]
    of_parts: dict[str, Sequence[int]]
    without_pairs: tuple[str, ...] = ()

    def tables(self, split: str) -> Iterator[pa.Table]:
        """The rows of a split, in order, those of a part at a time. Raises IncompleteError."""
        return SplitRows(self, split).take(self.totals.samples[split])


class SplitRows:
    """The rows of a split, read as they are taken; a part is in memory at a time."""

    def __init__(self, selected: Selected, split: str) -> None:
        self._selected, self._split = selected, split
        self._counts = selected.of_parts[split]
        self._part = self._row = 0  # where the next row is
        self._held: tuple[int, pa.Table] | None = None

    def take(self, rows: int) -> Iterator[pa.Table]:
        """The next so many rows, those of a part at a time. Raises IncompleteError."""
        for part, start, count in self._spans(rows):
            yield self._table(part).slice(start, count)

    def skip(self, rows: int) -> None:
        """Leave the next so many rows out, without reading them."""
        for _ in self._spans(rows):
            pass

    def _spans(self, rows: int) -> Iterator[tuple[int, int, int]]:
        """`(part, row, number)` of the next rows."""
        while rows > 0:
            part, start = self._part, self._row
            count = min(rows, self._counts[part] - start)
            rows -= count
            self._row += count
            if self._row == self._counts[part]:
                self._part, self._row = part + 1, 0
            if count:
                yield part, start, count

    def _table(self, part: int) -> pa.Table:
        if self._held is None or self._held[0] != part:
            table = self._selected.reader.table(part, self._selected.selection, self._split)
            if len(table) != self._counts[part]:
                raise AssertionError(f"part {part}: {self._counts[part]} samples counted, {len(table)} read")
            self._held = part, table
        return self._held[1]


def select_samples(reader: RunReader, selection: Selection, *, unit: Unit, samples_per_shard: int) -> Selected:
    """Count what passes the filters, and cut it into shards, in one pass over the indexes. Raises IncompleteError.

    An empty split is an empty shard, so that readers find a file.
    """
    names = [split.name for split in selection.splits]
    samples, images = Counter[str](), Counter[str]()
    of_parts = {name: array("q") for name in names}
    shards = {name: _Cut(unit, samples_per_shard) for name in names}
    nouns: set[str] = set()
    without_pairs, numbered = set(selection.nouns or ()), True
    for part in reader.selected_columns(selection, ["image_id", "noun", *(["lemma"] if selection.nouns else [])]):
        nouns.update(part["noun"].unique().to_pylist())
        if without_pairs:
            without_pairs.difference_update(*(part[name].unique().to_pylist() for name in ("noun", "lemma")))
        image_ids = part["image_id"].to_pylist()
        split_of = dict(zip(image_ids, part["split"].to_pylist(), strict=True))  # an image lies in one part and split
        in_part = Counter(map(split_of.__getitem__, image_ids))
        samples.update(in_part)
        images.update(split_of.values())
        numbered = numbered and all(map(_NUMBER.fullmatch, split_of))
        for name in names:
            of_parts[name].append(in_part[name])
            if in_part[name]:
                shards[name].add([image_id for image_id in image_ids if split_of[image_id] == name])
    totals = Totals(
        {name: samples[name] for name in names}, {name: images[name] for name in names}, tuple(sorted(nouns)), numbered
    )
    sizes: dict[str, Sequence[int]] = {name: shards[name].sizes for name in names}
    return Selected(reader, selection, totals, sizes, dict(of_parts), tuple(sorted(without_pairs)))


class _Cut:
    """The samples of each shard of a split; there is one at least."""

    def __init__(self, unit: Unit, samples_per_shard: int) -> None:
        self._unit, self._most = unit, samples_per_shard
        self.sizes: array[int] = array("q", [0])

    def add(self, image_ids: Sequence[str]) -> None:
        """Go on with the samples of a part, given by their images."""
        if self._unit == "split":
            self.sizes[-1] += len(image_ids)
        elif self._unit == "pair":
            self._add_pairs(len(image_ids))
        elif self._unit == "part":
            self._add_whole(len(image_ids), most=1)
        else:
            for _, same in groupby(image_ids):
                self._add_whole(len(list(same)), most=self._most)

    def _add_pairs(self, samples: int) -> None:
        while samples:
            fit = min(samples, self._most - self.sizes[-1])
            self.sizes[-1] += fit
            samples -= fit
            if samples:
                self.sizes.append(0)

    def _add_whole(self, samples: int, *, most: int) -> None:
        if self.sizes[-1] >= most:
            self.sizes.append(0)
        self.sizes[-1] += samples
