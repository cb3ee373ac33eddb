"""One small job a step: read the cells of a part, do the step's work on them, write one cell.

A job is a value that travels to a worker; `open()` loads what is heavy there and returns the function that makes
cells. Nothing but part numbers and reports passes between a worker and the driver.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from mining.devices import fix_threads
from mining.nouns import Nouns
from mining.pairs import ClipPairs, LabelPairs
from mining.regions import Regions
from mining.selection import cap_nouns, keep_pair
from mining.shards import ImageToWrite, ShardAccount, Shards, first_rejection, write_shard
from mining.vocabulary import Vocabulary, count_nouns
from pipelines.earlier import Earlier
from pipelines.gpu_use import watch_gpu
from pipelines.plan import PLANNED
from pipelines.run_folder import RunFolder
from schemas.rows import (
    CaptionsRow,
    ImageRow,
    NounsRow,
    PairsRow,
    RegionsRow,
    SampleRow,
    SelectionRow,
    VocabularyRow,
)
from schemas.tables import to_table

Tick = Callable[[int], None]

_TEXT_KEY = "maskmine.text"


@dataclass(frozen=True, slots=True)
class PartReport:
    """What a worker says of a finished cell: how many images it saw and rejected, how much it made, in what time.

    `gpu_percent` is the mean use of the worker's GPU meanwhile (0–100), `gpu_peak_bytes` the most memory taken on it;
    None where no GPU worked or nobody can tell.
    """

    step: str
    part: int
    images: int
    rejected: int
    made: int
    seconds: float
    gpu_percent: float | None = None
    gpu_peak_bytes: int | None = None


MakeCell = Callable[[int, Tick], PartReport]


class Job(Protocol):
    """The work of a step on one run folder.

    `device` says where its models run: `auto`, `cpu`, `cuda` or `cuda:N`; None for a step that has none.
    """

    @property
    def device(self) -> str | None: ...

    def open(self) -> MakeCell:
        """Load what is heavy; returns the function that makes the cell of a part."""


@dataclass(frozen=True)
class NounsJob:
    """captions → nouns."""

    device = None
    run: RunFolder
    nouns: Nouns
    fingerprint: str

    def open(self) -> MakeCell:
        find_nouns = self.nouns.open()

        def make(part: int, tick: Tick) -> PartReport:
            start = time.monotonic()
            rows = find_nouns(self.run.read_rows("captions", _name(part), row_type=CaptionsRow, fingerprint=PLANNED))
            self.run.write_rows("nouns", _name(part), rows=rows, row_type=NounsRow, fingerprint=self.fingerprint)
            tick(len(rows))
            return _report("nouns", part, rows, made=sum(len(row.nouns) for row in rows), start=start)

        return make


@dataclass(frozen=True)
class VocabularyJob:
    """All nouns → vocabulary, once. Text embeddings that an earlier vocabulary holds are used again.

    That is one of this folder, or of the run whose regions are taken over.
    """

    run: RunFolder
    settings: Vocabulary
    regions: Regions
    with_text: bool
    parts: int
    fingerprint: str
    text_fingerprint: str
    earlier: Earlier | None = None

    @property
    def device(self) -> str | None:
        return self.regions.device if self.with_text else None

    def open(self) -> MakeCell:
        clip = self.regions.clip if self.with_text else None
        if clip is not None:
            fix_threads(self.regions.device, cpu_threads=self.regions.cpu_threads)
        embed = self.settings.open(clip, self.regions.device)

        def make(part: int, tick: Tick) -> PartReport:
            start = time.monotonic()
            cells = [self.run.cell_path("nouns", p) for p in range(self.parts)]
            rows = []
            for row in embed(count_nouns(cells), known=self._known()):
                rows.append(row)
                tick(1)
            self.run.write_rows(
                "vocabulary.parquet",
                rows=rows,
                row_type=VocabularyRow,
                fingerprint=self.fingerprint,
                metadata={_TEXT_KEY: self.text_fingerprint},
            )
            return PartReport("vocabulary", part, len(rows), 0, len(rows), time.monotonic() - start)

        return make if clip is None else with_gpu_use(make, device=self.regions.device)

    def _known(self) -> dict[str, bytes]:
        """The embeddings of an earlier vocabulary that was made by the same text tower with the same templates."""
        known: dict[str, bytes] = {}
        for run in (self.run, self.earlier.run) if self.earlier else (self.run,):
            if run.read_metadata("vocabulary.parquet").get(_TEXT_KEY) == self.text_fingerprint:
                rows = run.read_rows("vocabulary.parquet", row_type=VocabularyRow)
                known |= {row.noun: row.embedding for row in rows if row.embedding is not None}
        return known


@dataclass(frozen=True)
class RegionsJob:
    """images → regions. No caption is read, so new captions never make this step run again.

    With an earlier run no model sees an image that it has; where it has all, none is loaded.
    """

    run: RunFolder
    regions: Regions
    fingerprint: str
    earlier: Earlier | None = None

    @property
    def device(self) -> str:
        return self.regions.device

    def open(self) -> MakeCell:
        if self.earlier is not None:
            return with_gpu_use(self._take_or_find(self.earlier), device=self.regions.device)
        find_regions = self.regions.open()

        def make(part: int, tick: Tick) -> PartReport:
            start = time.monotonic()
            images = self.run.read_rows("images", _name(part), row_type=ImageRow, fingerprint=PLANNED)
            rows = find_regions(images, tick=tick)
            self.run.write_rows("regions", _name(part), rows=rows, row_type=RegionsRow, fingerprint=self.fingerprint)
            return _report("regions", part, rows, made=sum(len(row.regions) for row in rows), start=start)

        return with_gpu_use(make, device=self.regions.device)

    def _take_or_find(self, earlier: Earlier) -> MakeCell:
        rows_of = earlier.open()
        open_models = functools.cache(self.regions.open)  # a run without new images needs none

        def make(part: int, tick: Tick) -> PartReport:
            start = time.monotonic()
            images = self.run.read_rows("images", _name(part), row_type=ImageRow, fingerprint=PLANNED)
            table = rows_of([image.image_id for image in images])
            tick(len(table))
            known = set(table["image_id"].to_pylist())
            if new := [image for image in images if image.image_id not in known]:
                table = pa.concat_tables([table, to_table(open_models()(new, tick=tick), RegionsRow)])
            order = pc.index_in(pa.array([image.image_id for image in images], pa.string()), table["image_id"])
            table = table.take(order)
            self.run.write_table("regions", _name(part), table=table, row_type=RegionsRow, fingerprint=self.fingerprint)
            rejected = len(table) - table["rejection"].null_count
            made = int(pc.sum(pc.list_value_length(table["regions"])).as_py() or 0)
            return PartReport("regions", part, len(table), rejected, made, time.monotonic() - start)

        return make


@dataclass(frozen=True)
class PairsJob:
    """nouns, regions, vocabulary → pairs."""

    device = None
    run: RunFolder
    pairs: ClipPairs | LabelPairs
    fingerprint: str
    nouns_fingerprint: str
    regions_fingerprint: str
    vocabulary_fingerprint: str

    def open(self) -> MakeCell:
        match = self.pairs.open()
        vocabulary = self.run.read_rows(
            "vocabulary.parquet", row_type=VocabularyRow, fingerprint=self.vocabulary_fingerprint
        )
        text = {row.noun: row.embedding for row in vocabulary if row.embedding is not None}

        def make(part: int, tick: Tick) -> PartReport:
            start = time.monotonic()
            name = _name(part)
            nouns = self.run.read_rows("nouns", name, row_type=NounsRow, fingerprint=self.nouns_fingerprint)
            regions = self.run.read_rows("regions", name, row_type=RegionsRow, fingerprint=self.regions_fingerprint)
            rows = match(nouns, regions, text)
            self.run.write_rows("pairs", name, rows=rows, row_type=PairsRow, fingerprint=self.fingerprint)
            tick(len(rows))
            return _report("pairs", part, rows, made=sum(len(row.pairs) for row in rows), start=start)

        return make


@dataclass(frozen=True)
class SelectionJob:
    """All pairs → the cut for each noun that has more than `max_per_noun`, once."""

    device = None
    run: RunFolder
    pairs: ClipPairs | LabelPairs
    parts: int
    fingerprint: str

    def open(self) -> MakeCell:
        def make(part: int, tick: Tick) -> PartReport:
            start = time.monotonic()
            rows = cap_nouns(self.pairs, [self.run.cell_path("pairs", p) for p in range(self.parts)])
            self.run.write_rows("selection.parquet", rows=rows, row_type=SelectionRow, fingerprint=self.fingerprint)
            return PartReport("selection", part, len(rows), 0, len(rows), time.monotonic() - start)

        return make


@dataclass(frozen=True)
class ShardsJob:
    """images, captions, nouns, regions, pairs → a tar, its index and its account. The account is written last."""

    device = None
    run: RunFolder
    shards: Shards
    pairs: ClipPairs | LabelPairs
    regions: Regions
    fingerprint: str
    nouns_fingerprint: str
    regions_fingerprint: str
    pairs_fingerprint: str

    def open(self) -> MakeCell:
        counts: dict[str, int] = {}
        last_kept: dict[str, str] = {}
        for entry in self.run.read_rows("vocabulary.parquet", row_type=VocabularyRow):
            counts[entry.noun] = entry.images
        if self.pairs.max_per_noun is not None:
            for cut in self.run.read_rows("selection.parquet", row_type=SelectionRow):
                last_kept[cut.noun] = cut.last
        keep = keep_pair(self.pairs, images_of_noun=counts, last_kept=last_kept)
        read = partial(self.regions.decoding.read, max_pixels=self.regions.max_image_pixels)

        def make(part: int, tick: Tick) -> PartReport:
            start = time.monotonic()
            shard = f"{part:05d}.tar"
            with self.run.write("shards", shard) as file:
                index, account = write_shard(
                    file,
                    self._images(part),
                    shards=self.shards,
                    keep=keep,
                    shard=shard,
                    read=read,
                    tick=tick,
                )
            self.run.write_rows("shards", _name(part), rows=index, row_type=SampleRow, fingerprint=self.fingerprint)
            seconds = time.monotonic() - start
            self.run.write_json("shards", f"{part:05d}.json", value=self._account(part, account, seconds))
            return PartReport("shards", part, account.images, len(account.rejections), account.samples, seconds)

        return make

    def _images(self, part: int) -> Iterator[ImageToWrite]:
        name = _name(part)
        run = self.run
        rows = zip(
            run.read_rows("images", name, row_type=ImageRow, fingerprint=PLANNED),
            run.read_rows("captions", name, row_type=CaptionsRow, fingerprint=PLANNED),
            run.read_rows("nouns", name, row_type=NounsRow, fingerprint=self.nouns_fingerprint),
            run.read_rows("regions", name, row_type=RegionsRow, fingerprint=self.regions_fingerprint),
            run.read_rows("pairs", name, row_type=PairsRow, fingerprint=self.pairs_fingerprint),
            strict=True,
        )
        for image, captions, nouns, regions, pairs in rows:
            if len({image.image_id, captions.image_id, nouns.image_id, regions.image_id, pairs.image_id}) != 1:
                raise AssertionError(f"part {part}: the cells' rows are not those of one image: {image.image_id}")
            rejected = first_rejection(nouns=nouns.rejection, regions=regions.rejection, pairs=pairs.rejection)
            said = (captions.sources, captions.additional)
            yield ImageToWrite(image, captions.captions, regions, pairs, rejected, *said)

    def _account(self, part: int, account: ShardAccount, seconds: float) -> dict[str, object]:
        with self.run.open("shards", _name(part)) as file:
            index_sha256 = hashlib.sha256(file.read()).hexdigest()
        return {
            "fingerprint": self.fingerprint,
            "part": part,
            "images": account.images,
            "with_pairs": account.with_pairs,
            "rejected": account.by_reason,
            "samples": account.samples,
            "bytes": account.size_bytes,
            "sha256": account.sha256,
            "index_sha256": index_sha256,
            "rejections": [
                {"image_id": image_id, "step": step, **asdict(rejection)}
                for image_id, step, rejection in account.rejections
            ],
            "seconds": round(seconds, 3),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }


def _name(part: int) -> str:
    return f"{part:05d}.parquet"


def _report(
    step: str, part: int, rows: list[NounsRow] | list[RegionsRow] | list[PairsRow], *, made: int, start: float
) -> PartReport:
    rejected = sum(row.rejection is not None for row in rows)
    return PartReport(step, part, len(rows), rejected, made, time.monotonic() - start)


def with_gpu_use(make: MakeCell, *, device: str) -> MakeCell:
    """The same function, but its reports say how busy the GPU was."""

    def make_and_watch(part: int, tick: Tick) -> PartReport:
        with watch_gpu(device) as use:
            report = make(part, tick)
        return replace(report, gpu_percent=use.percent, gpu_peak_bytes=use.peak_bytes)

    return make_and_watch
