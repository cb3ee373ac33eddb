"""Batches from the shards of mining runs: random access to samples, so that any order is exact.

The index of each shard says where a sample lies in its tar. So shards are not distributed to processes and workers,
which would drop or repeat some: batch 17 has the same samples for any number of processes, each reads its part of it,
and whole batches are assigned to the workers that read ahead.

Shapes: B samples of this process in a batch, G those of all processes, S side of the input in pixels.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import Dataset

from maskmine.mining.images.crops import Crop
from maskmine.schemas.columns import arrow_schema
from maskmine.schemas.errors import InputError
from maskmine.schemas.manifest import Manifest, parse_manifest, refuse_wider_crops
from maskmine.schemas.memory import give_back_memory
from maskmine.schemas.rows import SampleRow
from maskmine.schemas.sample import WHOLE_VERSION, is_damaged, why_no_score
from maskmine.schemas.shard_entries import ShardEntry
from maskmine.schemas.tables import read_verified
from maskmine.tuning.clip.negatives import Columns, Held, Lists, Unshown, columns_of
from maskmine.tuning.clip.settings import Data, Source
from maskmine.tuning.clip.transforms import View, decode_sample, show_region
from maskmine.tuning.training.order import Integers, SampleRef, Stream, shares_of_batch

_COLUMNS = ("key", "noun", "shard", "offset", "size_bytes", "crc32")
_SCORES = ("similarity", "margin", "lift", "evidence", "confidence")
_JOINED_AT_ONCE = 256  # tables of the selected rows of a shard
_OF_IMAGES = ("image_id", "negatives")  # read where negatives are asked for


@dataclass(frozen=True, slots=True)
class ShardSet:
    """The finished shards of a mining run, with an index row for each selected sample, in the order of the shards.

    `unshown` are the nouns that their images do not show, where they were asked for.
    """

    folder: Path
    fingerprint: str
    index: pa.Table
    unshown: Unshown | None = None

    def read(self, row: int) -> tuple[str, bytes, str]:
        """Key, bytes in the tar, and the path for messages. Raises InputError when they are not those of the index."""
        key, _, shard, offset, size_bytes, crc32 = (column[row].as_py() for column in self.index.columns)
        path = self.folder / "shards" / shard
        try:
            with path.open("rb") as file:
                file.seek(offset)
                span = file.read(size_bytes)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); bring it back, or mine again") from error
        if is_damaged(span, crc32):
            raise InputError(
                f"{path}: sample {key} is not what was written there; run `maskmine verify {self.folder}`, and "
                "`maskmine mine` again"
            )
        return key, span, str(path)


@dataclass(frozen=True, slots=True)
class Batch:
    """The part of a batch that a process sees. `nouns_G` are the numbers of all its nouns, for all processes, and
    `negatives` further nouns that they are held against."""

    step: int
    pixels_B3SS: Tensor
    masks_BSS: Tensor
    nouns_G: Tensor
    negatives: Columns | None = None

    def pin_memory(self) -> Batch:
        """The same in memory that a GPU copies from without waiting."""
        return Batch(
            self.step,
            self.pixels_B3SS.pin_memory(),
            self.masks_BSS.pin_memory(),
            self.nouns_G.pin_memory(),
            self.negatives and self.negatives.pin_memory(),
        )


@dataclass(frozen=True)
class Pairs(Dataset["Batch | str"]):
    """All samples, and their order. `numbers` are those of the nouns of each set's samples, `unshown` those of the
    negatives of each sample and of what its image says; regions are held against none where `held` is None."""

    sets: tuple[ShardSet, ...]
    numbers: tuple[Integers, ...]
    streams: tuple[Stream, ...]
    view: View
    seed: int
    rank: int = 0
    processes: int = 1
    unshown: tuple[tuple[Lists, Lists], ...] = ()
    held: Held | None = None

    @property
    def batch_size(self) -> int:
        """G."""
        return sum(stream.per_batch for stream in self.streams)

    def steps(self, epochs: float) -> int:
        """Batches that make this number of epochs of the first stream; the last may begin the next epoch."""
        return math.ceil(epochs * self.streams[0].size / self.streams[0].per_batch - 1e-9)

    def sample_refs(self, step: int) -> list[SampleRef]:
        """The samples of batch `step`, for all processes."""
        return [ref for stream in self.streams for ref in stream.batch(step)]

    def keys(self, step: int) -> list[str]:
        """Their keys."""
        return [self.sets[ref.source].index["key"][ref.row].as_py() for ref in self.sample_refs(step)]

    def __getitem__(self, step: int) -> Batch | str:
        """This process's part of a batch, or one line about what is wrong with a sample."""
        refs = self.sample_refs(step)
        count = len(refs) // self.processes
        try:
            shown = [self._show(ref) for ref in refs[self.rank * count : (self.rank + 1) * count]]
        except InputError as error:
            return str(error)
        return Batch(
            step=step,
            pixels_B3SS=torch.stack([pixels_3SS for pixels_3SS, _ in shown]),
            masks_BSS=torch.stack([mask_SS for _, mask_SS in shown]),
            nouns_G=torch.tensor(self._nouns(refs)),
            negatives=self._columns(refs),
        )

    def _nouns(self, refs: Sequence[SampleRef]) -> list[int]:
        return [int(self.numbers[ref.source][ref.row]) for ref in refs]

    def _columns(self, refs: Sequence[SampleRef]) -> Columns | None:
        """The further columns of a batch, of all its samples."""
        if self.held is None:
            return None
        negatives, said = ([self.unshown[ref.source][which].of(ref.row) for ref in refs] for which in (0, 1))
        return columns_of(self._nouns(refs), negatives, said, held=self.held)

    def _show(self, ref: SampleRef) -> tuple[Tensor, Tensor]:
        key, span, path = self.sets[ref.source].read(ref.row)
        region = decode_sample(span, key=key, path=path)
        rng = np.random.default_rng([self.seed, ref.source, ref.row, ref.epoch])
        return show_region(region, view=self.view, rng=rng)


def open_sets(data: Data, *, negatives: bool = False) -> tuple[ShardSet, ...]:
    """The shards of all sources; with the `negatives` of their images where these are asked for.

    Raises InputError for a folder that holds no finished run that this version reads, whose pairs have no scores where
    some are asked for, without negatives likewise, or whose crops show less than `data.crop` does.
    """
    return tuple(_open_set(source, crop=data.crop, negatives=negatives) for source in data.sources)


def nouns_of(sets: Sequence[ShardSet]) -> tuple[str, ...]:
    """The different nouns of all samples, in the order of their UTF-8 bytes, and after them those that are negatives
    alone."""
    nouns = {noun for shards in sets for noun in shards.index["noun"].unique().to_pylist()}
    unshown = set[str]().union(*(shards.unshown.nouns() for shards in sets if shards.unshown is not None))
    return (*sorted(nouns, key=str.encode), *sorted(unshown - nouns, key=str.encode))


def arrange(
    sets: Sequence[ShardSet],
    *,
    data: Data,
    view: View,
    batch_size: int,
    seed: int,
    rank: int = 0,
    processes: int = 1,
    held: Held | None = None,
) -> Pairs:
    """The batches of a phase. Raises InputError when one holds more than an epoch, or is no whole share a process."""
    if batch_size % processes:
        raise InputError(f"batch_size: {batch_size} cannot be shared by {processes} processes; choose a multiple")
    number_of = {noun: number for number, noun in enumerate(nouns_of(sets))}
    numbers = tuple(_numbers(shards.index["noun"], number_of) for shards in sets)
    groups = [[number] for number in range(len(sets))]
    if data.sources[0].ratio is None:
        groups, shares = [list(range(len(sets)))], [batch_size]
    else:
        shares = shares_of_batch([source.ratio or 0.0 for source in data.sources], batch_size=batch_size)
    streams = tuple(
        Stream(
            number=number,
            sources_S=np.concatenate([np.full(len(numbers[source]), source) for source in group]),
            rows_S=np.concatenate([np.arange(len(numbers[source])) for source in group]),
            nouns_S=np.concatenate([numbers[source] for source in group]),
            per_batch=share,
            seed=seed,
            max_per_noun=data.max_per_noun,
        )
        for number, (group, share) in enumerate(zip(groups, shares, strict=True))
    )
    for stream in streams:
        _refuse_large_batch(stream, data)
    unshown = tuple(shards.unshown.numbered(number_of) for shards in sets if shards.unshown is not None)
    return Pairs(tuple(sets), numbers, streams, view, seed, rank, processes, unshown, held)


def _numbers(nouns: pa.ChunkedArray, number_of: Mapping[str, int]) -> Integers:
    """The numbers of nouns."""
    encoded = nouns.combine_chunks().dictionary_encode()
    numbers = np.array([number_of[noun] for noun in encoded.dictionary.to_pylist()], np.int64)
    return numbers[encoded.indices.to_numpy()] if len(encoded) else numbers


def _refuse_large_batch(stream: Stream, data: Data) -> None:
    if stream.per_batch > stream.size:
        folder = data.sources[int(stream.sources_S[0])].folder if len(stream.sources_S) else data.sources[0].folder
        raise InputError(
            f"{folder}: an epoch has {stream.size} samples, fewer than the {stream.per_batch} of a batch; choose a "
            "smaller batch_size, lower thresholds, or mine more pairs"
        )


def _open_set(source: Source, *, crop: Crop, negatives: bool) -> ShardSet:
    folder = Path(source.folder)
    manifest = _read_manifest(folder)
    refuse_wider_crops(manifest, crop.expand_ratio, name="data.crop.expand_ratio", folder=source.folder)
    if negatives and manifest.format_version < WHOLE_VERSION:
        raise InputError(
            f"objective.negatives: the pairs of {folder} have none; mine them with `negatives: {{}}`, which makes only "
            "the shards again, or leave it out"
        )
    scored = dict.fromkeys(_SCORES, False)
    index = _joined(_selected(folder, manifest, source, scored, negatives=negatives), negatives=negatives)
    for name, has in scored.items():
        least = getattr(source, f"min_{name}")
        if least is not None and not has and manifest.totals.samples:
            why = why_no_score(name, manifest.format_version)
            raise InputError(f"data.sources: min_{name} {least} for {folder}, whose pairs have no {name}, {why}")
    unshown = Unshown(*(index[name].combine_chunks() for name in ("negatives", "said"))) if negatives else None
    return ShardSet(folder, manifest.fingerprint, index.select(_COLUMNS), unshown)


def _selected(
    folder: Path, manifest: Manifest, source: Source, scored: dict[str, bool], *, negatives: bool
) -> Iterator[pa.Table]:
    """The selected rows of each shard, with what their images do not show and what they say where that is asked for.
    It is noted which scores any pair has."""
    columns = [*_COLUMNS, *_SCORES, "corrected", *(_OF_IMAGES if negatives else ())]
    for shard in manifest.shards:
        rows = _read_index(folder, shard, columns)
        for name in scored:
            scored[name] = scored[name] or rows[name].null_count < len(rows)
        kept = [*_COLUMNS, *(("negatives", "said") if negatives else ())]
        if negatives:  # an image lies in one shard
            rows = rows.append_column("said", Unshown.of(rows).said_N)
        yield rows.filter(_passes(rows, source)).select(kept)


def _passes(rows: pa.Table, source: Source) -> pa.ChunkedArray:
    """Which rows reach all thresholds. One without the score, as of a noun that every image says, does not; one that a
    person corrected has no scores, and needs none."""
    passes = pa.chunked_array([pa.array([True] * len(rows), pa.bool_())])
    for name in _SCORES:
        least = getattr(source, f"min_{name}")
        if least is not None:
            passes = pc.and_(passes, pc.fill_null(pc.greater_equal(rows[name], least), False))
    return pc.or_(passes, pc.fill_null(pc.greater(pc.list_value_length(rows["corrected"]), 0), False))


def _joined(tables: Iterator[pa.Table], *, negatives: bool) -> pa.Table:
    """Tables of selected rows as one. Small ones are joined as they come: each takes more than its few rows do."""
    nouns = pa.list_(pa.string())
    more = [pa.field(name, nouns) for name in (("negatives", "said") if negatives else ())]
    schema = pa.schema([*(arrow_schema(SampleRow).field(name) for name in _COLUMNS), *more])
    joined = schema.empty_table()
    larger: list[pa.Table] = []
    while held := list(islice(tables, _JOINED_AT_ONCE)):
        larger.append(pa.concat_tables([table.cast(schema) for table in held]).combine_chunks())
        give_back_memory()
    return pa.concat_tables([joined, *larger]).combine_chunks()


def _read_manifest(folder: Path) -> Manifest:
    path = folder / "manifest.json"
    try:
        stored = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(
            f"{folder}: not a finished mining run (it has no manifest.json); give the `out` of `maskmine mine`"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as a manifest ({type(error).__name__}); mine again") from error
    return parse_manifest(stored, path=str(path), open_file=partial(_open_in, folder))


def _open_in(folder: Path, name: str) -> IO[bytes]:
    return (folder / name).open("rb")


def _read_index(folder: Path, shard: ShardEntry, columns: Sequence[str]) -> pa.Table:
    """Some columns of the index of a shard, whose bytes are those that the manifest vouches for. Those that its format
    version does not have are null."""
    tar = folder / "shards" / shard.name
    path = tar.with_suffix(".parquet")
    try:
        content, size_bytes = path.read_bytes(), tar.stat().st_size
    except OSError as error:
        raise InputError(
            f"{error.filename}: cannot be read ({error.strerror}); bring it back, or mine again"
        ) from error
    if hashlib.sha256(content).hexdigest() != shard.index_sha256 or size_bytes != shard.size_bytes:
        raise InputError(f"{path}: not the index that the manifest names; run `maskmine verify {folder}`")
    table = read_verified(content, columns)
    for name in (name for name in columns if name not in table.column_names):
        field = arrow_schema(SampleRow).field(name)
        table = table.append_column(field.with_nullable(True), pa.nulls(len(table), field.type))
    return table.select(list(columns))
