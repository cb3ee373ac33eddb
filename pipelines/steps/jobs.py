"""One small job a step: read the cells of a part, do the step's work on them, write one cell.

A job is a value that travels to a worker; `open()` loads what is heavy there and returns the function that makes
cells. Nothing but part numbers and reports passes between a worker and the driver.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, zip_longest
from typing import Protocol, TypeVar, runtime_checkable

import pyarrow as pa
import pyarrow.compute as pc

from maskmine.mining.levels import Sampled, measure_levels
from maskmine.mining.models.clip import Clip
from maskmine.mining.models.devices import fix_threads
from maskmine.mining.nouns import Nouns
from maskmine.mining.pairs import ClipPairs, LabelPairs, TextSide
from maskmine.mining.regions import Regions
from maskmine.mining.scores.noun_tables import NounTables
from maskmine.mining.scores.scale import LevelScale
from maskmine.mining.vocabulary import Count, Vocabulary, count_nouns
from maskmine.pipelines.run_folder.caption_cells import read_failures
from maskmine.pipelines.run_folder.cells import Cells
from maskmine.pipelines.run_folder.region_cells import embeddings_cells
from maskmine.pipelines.run_folder.reused_regions import ReusedRun
from maskmine.pipelines.steps.cells_of_run import RunCells, refuse_mixed
from maskmine.pipelines.steps.gpu_use import watch_gpu
from maskmine.pipelines.steps.in_order import known_embeddings
from maskmine.pipelines.steps.ties import Input, identities, remember_once
from maskmine.schemas.rows import (
    CaptioningRow,
    ChecksRow,
    EmbeddingsRow,
    LevelRow,
    NounsRow,
    PairsRow,
    RegionsRow,
    Rejection,
    VocabularyRow,
)
from maskmine.schemas.tables import from_pieces

Tick = Callable[[int], None]  # takes how many more records of a cell are finished

Counted = TypeVar("Counted", CaptioningRow, NounsRow, RegionsRow, PairsRow, ChecksRow)  # rows that may be rejected

_TEXT_KEY = "maskmine.text"  # in the footer of a vocabulary: the fingerprint of what its embeddings were made by


@dataclass(frozen=True, slots=True, kw_only=True)
class PartReport:
    """The report of a finished cell: how many images it saw and rejected, how much it made, in what time.

    `gpu_percent` is the mean use of the worker's GPU meanwhile (0–100), `gpu_peak_bytes` the most memory taken on it;
    None where no GPU worked or its use is not known. `before_s` is what the same pass took for cells of steps before.
    """

    step: str
    part: int
    images: int
    rejected: int
    made: int
    seconds: float
    before_s: float = 0.0
    gpu_percent: float | None = None
    gpu_peak_bytes: int | None = None


MakeCell = Callable[[int, Tick], "PartReport | Sequence[PartReport]"]
"""Makes the cell of a part. A pass that writes cells of two steps has a report of each, in the order of the steps."""


@runtime_checkable
class Expects(Protocol):
    """A tick that can also be told how many records there will be."""

    def expect(self, records: int) -> None: ...


def _ignore(records: int) -> None:
    pass


class Job(Protocol):
    """The work of a step on one run folder.

    `device` says where its models run: `auto`, `cpu`, `cuda` or `cuda:N`; None for a step that has none.
    """

    @property
    def device(self) -> str | None: ...

    @property
    def inputs(self) -> Sequence[Input]:
        """The cells that a cell is made from, which its footer names; those that the plan wrote are not among them."""

    def open(self) -> MakeCell:
        """Load what is heavy; returns the function that makes the cell of a part."""


def each_report(made: PartReport | Sequence[PartReport]) -> Sequence[PartReport]:
    """The reports of one pass."""
    return (made,) if isinstance(made, PartReport) else made


def no_tick(records: int) -> None:
    """Ignore single records: workers elsewhere report whole cells only."""


@dataclass(frozen=True)
class NounsJob:
    """captions, those that models wrote included → nouns."""

    device = None
    cells: RunCells
    settings: Nouns

    @property
    def inputs(self) -> Sequence[Input]:
        return tuple(map(Input, self.cells.captioning))

    def open(self) -> MakeCell:
        find_nouns = self.settings.open()

        def make(part: int, tick: Tick) -> PartReport:
            start_s, counts = time.monotonic(), Counts()
            made_from = identities(self.inputs, part) if self.inputs else None
            rows = self._with_failures(part, find_nouns(list(self.cells.read_captions(part))))
            self.cells.nouns.write(part, counts.of(rows, lambda row: len(row.nouns)), made_from=made_from)
            tick(len(rows))
            return counts.report("nouns", part, start_s=start_s)

        return make

    def _with_failures(self, part: int, rows: list[NounsRow]) -> list[NounsRow]:
        """Where an image has no caption because a model failed to write one, that is the reason."""
        failed = {
            image_id: Rejection(why.reason, f"{name}: {why.detail}")
            for image_id, name, why in read_failures(self.cells.captioning, part)
            if why.reason == "caption_failed"
        }
        return [
            replace(row, rejection=failed[row.image_id])
            if row.image_id in failed and row.rejection is not None and row.rejection.reason == "no_caption"
            else row
            for row in rows
        ]


@dataclass(frozen=True)
class VocabularyJob:
    """The nouns of `parts` parts from the `first` on → vocabulary, once. `clip` is None where the pairs need no text
    embeddings.

    Text embeddings that a vocabulary of this folder or of the reused run holds are used again, also those of the
    `earlier` versions of a set that something is appended to; a few thousand of each are in memory. A vocabulary by
    another text side is kept beside the embeddings of regions before it is replaced, so that one can go back to its
    CLIP.
    """

    cells: RunCells
    settings: Vocabulary
    regions: Regions
    clip: Clip | None
    parts: int
    text_fingerprint: str
    reused: ReusedRun | None = None
    first: int = 0
    earlier: tuple[Cells[VocabularyRow], ...] = ()

    @property
    def device(self) -> str | None:
        return self.regions.device if self.clip is not None else None

    @property
    def inputs(self) -> Sequence[Input]:
        return (Input(self.cells.nouns, self.parts, self.first),)

    def open(self) -> MakeCell:
        if self.clip is not None:
            fix_threads(self.regions.device, cpu_threads=self.regions.cpu_threads)
        embed = self.settings.open(self.clip, self.regions.device)

        def make(part: int, tick: Tick) -> PartReport:
            start_s = time.monotonic()
            made_from, nouns = identities(self.inputs, part), 0
            known = known_embeddings(self._stored())
            self._keep_other()

            def rows() -> Iterator[VocabularyRow]:
                nonlocal nouns
                for row in embed(self._count(tick), known=known):
                    yield row
                    nouns += 1
                    tick(1)

            footer = {_TEXT_KEY: self.text_fingerprint}
            self.cells.vocabulary.write(part, rows(), metadata=footer, made_from=made_from)
            return report_once("vocabulary", part, nouns, start_s=start_s)

        return make if self.clip is None else with_gpu_use(make, device=self.regions.device)

    def _count(self, tick: Tick) -> Iterator[Count]:
        paths = [self.cells.nouns.path(part) for part in range(self.first, self.first + self.parts)]
        return count_nouns(paths, expect=tick.expect if isinstance(tick, Expects) else _ignore)

    def _stored(self) -> list[Cells[VocabularyRow]]:
        """The stored vocabularies whose embeddings were made by the same text tower with the same templates."""
        own = replace(self.cells.vocabulary, fingerprint="")
        reused = [replace(own, run=self.reused.run, within="")] if self.reused else []
        stored = (own, self._kept(self.text_fingerprint), *self.earlier, *reused)
        made_so = (one for one in stored if one.read_metadata().get(_TEXT_KEY) == self.text_fingerprint)
        return [replace(one, fingerprint="") for one in made_so]

    def _keep_other(self) -> None:
        own = self.cells.vocabulary
        stored = own.read_metadata().get(_TEXT_KEY)
        if self.clip is not None and stored not in (None, self.text_fingerprint):
            own.run.copy(own.names(), to=self._kept(stored).names())

    def _kept(self, text_fingerprint: str) -> Cells[VocabularyRow]:
        own = self.cells.vocabulary
        name = "-".join(["vocabulary", *own.within.split("/")[1:]])  # of a version also its number
        folder = embeddings_cells(own.run, text_fingerprint).folder
        return replace(own, step=f"{folder}/{name}", fingerprint="", within="")


@dataclass(frozen=True)
class LevelsJob:
    """nouns and regions (proposals with embeddings) of the first parts, vocabulary → levels, once."""

    device = None
    cells: RunCells
    first_parts: int

    @property
    def inputs(self) -> Sequence[Input]:
        cells = self.cells
        of_parts = [Input(one, self.first_parts) for one in (cells.nouns, *cells.regions)]
        return (*of_parts, Input(cells.vocabulary))

    def open(self) -> MakeCell:
        def make(part: int, tick: Tick) -> PartReport:
            start_s = time.monotonic()
            made_from, cells, nouns = identities(self.inputs, part), self.cells, 0
            scale, measured = measure_levels(sampled(cells, self.first_parts), cells.vocabulary.read_blocks)

            def rows() -> Iterator[LevelRow]:
                nonlocal nouns
                for block in measured:
                    yield from block
                    nouns += len(block)
                    tick(len(block))

            cells.levels.write(part, rows(), metadata=scale.metadata(), made_from=made_from)
            return report_once("levels", part, nouns, start_s=start_s)

        return make


def sampled(cells: RunCells, first_parts: int) -> Iterator[Sampled]:
    """The nouns and regions of the images that levels are measured on. Masks are not read where embeddings have cells
    of their own."""
    for part in range(first_parts):
        seen: Iterator[RegionsRow | EmbeddingsRow] = (
            chain.from_iterable(cells.read_regions(part))
            if cells.embeddings is None
            else cells.embeddings.read_rows(part)
        )
        for nouns, regions in zip_longest(cells.nouns.read_rows(part), seen):
            if nouns is None or regions is None or nouns.image_id != regions.image_id:
                refuse_mixed(cells, part)
            yield nouns, regions


@dataclass(frozen=True)
class PairsJob:
    """nouns, regions, vocabulary, levels → pairs. Levels were measured on the `first_parts`.

    Where something is appended to a set, nouns compete with those of the set's `base`, as there.
    """

    device = None
    cells: RunCells
    settings: ClipPairs | LabelPairs
    first_parts: int
    base: RunCells | None = None

    @property
    def inputs(self) -> Sequence[Input]:
        cells = self.cells
        if not isinstance(self.settings, ClipPairs):
            return tuple(map(Input, (cells.nouns, *cells.regions)))
        of_base = (self.base.vocabulary, self.base.levels) if self.base is not None else ()
        return tuple(map(Input, (cells.nouns, *cells.regions, cells.vocabulary, cells.levels, *of_base)))

    def open(self) -> MakeCell:
        match, read = self.settings.open(), remember_once(self.inputs)
        known = self._open_tables() if isinstance(self.settings, ClipPairs) else None

        def make(part: int, tick: Tick) -> PartReport:
            start_s, counts = time.monotonic(), Counts()
            made_from = identities(self.inputs, part, read=read)
            nouns = self.cells.nouns.read_table(part)
            text = _text_side(known, nouns, measured=part < self.first_parts)
            rows_left = iter(from_pieces(nouns, NounsRow))

            def rows() -> Iterator[PairsRow]:
                for regions in self.cells.read_regions(part):
                    block = list(islice(rows_left, len(regions)))
                    if [row.image_id for row in block] != [row.image_id for row in regions]:
                        refuse_mixed(self.cells, part)
                    yield from match(block, regions, text)
                if next(rows_left, None) is not None:
                    refuse_mixed(self.cells, part)

            self.cells.pairs.write(part, counts.of(rows(), lambda row: len(row.pairs)), made_from=made_from)
            tick(counts.images)
            return counts.report("pairs", part, start_s=start_s)

        return make

    def _open_tables(self) -> NounTables:
        cells, of = self.cells, self.base
        scale = LevelScale.read(cells.levels.read_metadata())
        among = (of.levels.read_groups(), of.vocabulary.read_groups()) if of is not None else None
        return NounTables.open(scale, cells.levels.read_groups(), cells.vocabulary.read_groups(), among=among)


def with_gpu_use(make: MakeCell, *, device: str) -> MakeCell:
    """The same function, with the use of the GPU in its reports."""

    def make_and_watch(part: int, tick: Tick) -> Sequence[PartReport]:
        with watch_gpu(device) as use:
            reports = each_report(make(part, tick))
        return [replace(report, gpu_percent=use.percent, gpu_peak_bytes=use.peak_bytes) for report in reports]

    return make_and_watch


@dataclass
class Counts:
    """What goes into a cell, counted as it passes."""

    images: int = 0
    rejected: int = 0
    made: int = 0

    def of(self, rows: Iterable[Counted], made: Callable[[Counted], int]) -> Iterator[Counted]:
        """The rows as they come; `made` says how much is in one."""
        for row in rows:
            self.images += 1
            self.rejected += row.rejection is not None
            self.made += made(row)
            yield row

    def report(self, step: str, part: int, *, start_s: float) -> PartReport:
        """The report of the cell."""
        seconds = time.monotonic() - start_s
        return PartReport(
            step=step, part=part, images=self.images, rejected=self.rejected, made=self.made, seconds=seconds
        )


def report_once(step: str, part: int, nouns: int, *, start_s: float) -> PartReport:
    """The report of a step that goes through nouns, not images."""
    seconds = time.monotonic() - start_s
    return PartReport(step=step, part=part, images=nouns, rejected=0, made=nouns, seconds=seconds)


def _text_side(known: NounTables | None, nouns: pa.Table, *, measured: bool) -> TextSide:
    """What is known of the nouns of a part."""
    if known is None:
        return TextSide({})
    embeddings, scorer = known.of_nouns(pc.struct_field(pc.list_flatten(nouns["nouns"]), "text"))
    return TextSide(embeddings, scorer, measured)
