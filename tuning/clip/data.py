"""Batches from the shards of mining runs: any sample by its place in a tar, so that any order is exact.

The index of each shard says where a sample lies. So shards need not be dealt out to processes and workers, which leaves
some over or gives some twice: batch 17 is the same samples for any number of processes, each takes its part of it, and
whole batches are dealt to the workers that read ahead.

Shapes: B samples of this process in a batch, G those of all processes, S side of the input in pixels.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from schemas.errors import InputError
from schemas.manifest import Manifest, ShardEntry
from schemas.sample import FORMAT_VERSION, READABLE_VERSIONS
from schemas.tables import read_parquet
from tuning.order import Integers, Place, Stream, shares_of_batch
from tuning.samples import View, decode_sample, show_region
from tuning.settings import Data, Source

_COLUMNS = ("key", "noun", "shard", "offset", "size_bytes")
_SCORES = ("similarity", "margin")


@dataclass(frozen=True, slots=True)
class ShardSet:
    """The finished shards of a mining run: a row for each sample that is to be seen, in the order of the shards."""

    folder: Path
    fingerprint: str
    index: pa.Table

    def read(self, row: int) -> tuple[str, bytes, str]:
        """Key, bytes in the tar, and the place for messages. Raises InputError when the tar ends before."""
        key, _, shard, offset, size_bytes = (column[row].as_py() for column in self.index.columns)
        path = self.folder / "shards" / shard
        try:
            with path.open("rb") as file:
                file.seek(offset)
                span = file.read(size_bytes)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); bring it back, or mine again") from error
        return key, span, str(path)


@dataclass(frozen=True, slots=True)
class Batch:
    """What a process sees of a batch. `nouns_G` are the numbers of all its nouns, those of other processes too."""

    step: int
    pixels_B3SS: Tensor
    masks_BSS: Tensor
    nouns_G: Tensor

    def pin_memory(self) -> Batch:
        """The same in memory that a GPU copies from without waiting."""
        return Batch(self.step, self.pixels_B3SS.pin_memory(), self.masks_BSS.pin_memory(), self.nouns_G.pin_memory())


@dataclass(frozen=True)
class Pairs(Dataset["Batch | str"]):
    """All samples, and the order in which they are seen. `numbers` are those of the nouns of each set's samples."""

    sets: tuple[ShardSet, ...]
    numbers: tuple[Integers, ...]
    streams: tuple[Stream, ...]
    view: View
    seed: int
    rank: int = 0
    processes: int = 1

    @property
    def batch_size(self) -> int:
        """G."""
        return sum(stream.per_batch for stream in self.streams)

    def steps(self, epochs: float) -> int:
        """Batches that show all samples of the first stream so many times; the last one may begin the next epoch."""
        return math.ceil(epochs * self.streams[0].size / self.streams[0].per_batch - 1e-9)

    def places(self, step: int) -> list[Place]:
        """The samples of batch `step`, for all processes."""
        return [place for stream in self.streams for place in stream.batch(step)]

    def keys(self, step: int) -> list[str]:
        """Their keys."""
        return [self.sets[place.source].index["key"][place.row].as_py() for place in self.places(step)]

    def __getitem__(self, step: int) -> Batch | str:
        """This process's part of a batch, or what is wrong with a sample, in one line.

        A worker's exception would reach the trainer as a page of text, hence a value.
        """
        places = self.places(step)
        share = len(places) // self.processes
        try:
            shown = [self._show(place) for place in places[self.rank * share : (self.rank + 1) * share]]
        except InputError as error:
            return str(error)
        return Batch(
            step=step,
            pixels_B3SS=torch.stack([pixels_3SS for pixels_3SS, _ in shown]),
            masks_BSS=torch.stack([mask_SS for _, mask_SS in shown]),
            nouns_G=torch.tensor([int(self.numbers[place.source][place.row]) for place in places]),
        )

    def _show(self, place: Place) -> tuple[Tensor, Tensor]:
        key, span, path = self.sets[place.source].read(place.row)
        region = decode_sample(span, key=key, place=path)
        rng = np.random.default_rng([self.seed, place.source, place.row, place.epoch])
        return show_region(region, view=self.view, rng=rng)


def open_sets(data: Data) -> tuple[ShardSet, ...]:
    """The shards of all sources.

    Raises InputError for a folder that holds no finished run that this version reads, or whose pairs have no scores
    where some are asked for.
    """
    return tuple(_open_set(source) for source in data.sources)


def nouns_of(sets: Sequence[ShardSet]) -> tuple[str, ...]:
    """The different nouns of all samples, in the order of their UTF-8 bytes."""
    found = {noun for shards in sets for noun in shards.index["noun"].unique().to_pylist()}
    return tuple(sorted(found, key=str.encode))


def arrange(
    sets: Sequence[ShardSet],
    *,
    data: Data,
    view: View,
    batch_size: int,
    seed: int,
    rank: int = 0,
    processes: int = 1,
) -> Pairs:
    """The batches of a stage. Raises InputError when one holds more than an epoch, or is no whole share a process."""
    if batch_size % processes:
        raise InputError(f"batch_size: {batch_size} cannot be shared by {processes} processes; choose a multiple")
    known = {noun: number for number, noun in enumerate(nouns_of(sets))}
    numbers = tuple(np.array([known[noun] for noun in s.index["noun"].to_pylist()], dtype=np.int64) for s in sets)
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
    return Pairs(tuple(sets), numbers, streams, view, seed, rank, processes)


def read_batches(pairs: Pairs, *, start: int, stop: int, workers: int, pin_memory: bool) -> Iterator[Batch]:
    """Batches `start` … `stop` − 1 in order, read ahead by worker processes, of which each has a processor.

    Raises InputError for a broken sample.
    """
    loader: DataLoader[Batch | str] = DataLoader(
        pairs,
        batch_size=None,
        sampler=range(start, stop),
        num_workers=usable_workers(workers, batches=stop - start),
        pin_memory=pin_memory,
    )
    for batch in loader:
        if isinstance(batch, str):
            raise InputError(batch)
        yield batch


def usable_workers(workers: int, *, batches: int) -> int:
    """So many of the processes that are asked for have a processor and something to do."""
    return min(workers, batches, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


def _refuse_large_batch(stream: Stream, data: Data) -> None:
    if stream.per_batch > stream.size:
        folder = data.sources[int(stream.sources_S[0])].folder if len(stream.sources_S) else data.sources[0].folder
        raise InputError(
            f"{folder}: an epoch has {stream.size} samples, fewer than the {stream.per_batch} of a batch; choose a "
            "smaller batch_size, lower thresholds, or mine more pairs"
        )


def _open_set(source: Source) -> ShardSet:
    folder = Path(source.folder)
    manifest = _read_manifest(folder)
    tables = [_read_index(folder, shard) for shard in manifest.shards]
    index = pa.concat_tables(tables) if tables else pa.table({name: [] for name in (*_COLUMNS, *_SCORES)})
    for name, least in zip(_SCORES, (source.min_similarity, source.min_margin), strict=True):
        if least is None:
            continue
        if index[name].null_count:
            raise InputError(
                f"data.sources: min_{name} {least} for {folder}, whose pairs have no {name}, as no CLIP made them; "
                "leave it out"
            )
        index = index.filter(pc.greater_equal(index[name], least))
    return ShardSet(folder, manifest.fingerprint, index.select(_COLUMNS).combine_chunks())


def _read_manifest(folder: Path) -> Manifest:
    path = folder / "manifest.json"
    try:
        tree = json.loads(path.read_bytes())
        version = tree["format_version"]
    except FileNotFoundError as error:
        raise InputError(
            f"{folder}: not a finished mining run (it has no manifest.json); give the `out` of `maskmine mine`"
        ) from error
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise InputError(f"{path}: cannot be read as a manifest ({type(error).__name__}); mine again") from error
    if version not in READABLE_VERSIONS:
        raise InputError(
            f"{path}: shards of format version {version}, and this version of maskmine reads {FORMAT_VERSION}; mine "
            "again, or use the version that made them"
        )
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(f"{path}: is no manifest ({error.error_count()} faults); mine again") from error


def _read_index(folder: Path, shard: ShardEntry) -> pa.Table:
    """The index of a shard, whose bytes are those that the manifest vouches for."""
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
    return read_parquet(io.BytesIO(content)).select([*_COLUMNS, *_SCORES]).replace_schema_metadata(None)
