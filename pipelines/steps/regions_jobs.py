"""The jobs of the regions: proposals, and what CLIP sees in them.

Where a part has neither, one pass over its pictures finds both and writes one cell after the other. Another CLIP, or a
run that ended between the two cells, embeds regions that are known: to the last bit as that pass would have.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from tempfile import SpooledTemporaryFile
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc

from maskmine.mining.region_stages import RegionTables
from maskmine.mining.regions import EmbedRegions, Regions
from maskmine.pipelines.run_folder.cells import Cells
from maskmine.pipelines.run_folder.reused_regions import ReusedRun
from maskmine.pipelines.steps.cells_of_run import RunCells, refuse_mixed
from maskmine.pipelines.steps.jobs import MakeCell, PartReport, Tick, with_gpu_use
from maskmine.pipelines.steps.ties import Input, identities
from maskmine.schemas.columns import arrow_schema
from maskmine.schemas.rows import EmbeddingsRow, ImageRow, ProposalsRow
from maskmine.schemas.tables import PIECE_ROWS, in_groups, in_pieces, row_groups, rows_in_order, to_table

IMAGES_AT_ONCE = 1000
"""Images of a part whose regions are in memory together. Batches of models are cut within them."""
_KEPT_BYTES = 64 << 20  # of a part's embeddings in memory until its proposals are written


@dataclass(frozen=True)
class ProposalsJob:
    """images → proposals, and embeddings of a part that has none. No caption is read, so new captions never make this
    step run again.

    With a reused run no model sees an image that it has; where it has all, none is loaded.
    """

    inputs = ()
    cells: RunCells
    settings: Regions
    parts: int
    reused: ReusedRun | None = None
    first: int = 0

    @property
    def device(self) -> str:
        return self.settings.device

    def open(self) -> MakeCell:
        make = self._open_models() if self.reused is None else self._open_reused(self.reused)
        return with_gpu_use(make, device=self.device)

    def _open_models(self) -> MakeCell:
        embeddings = self.cells.embeddings
        unseen = set(embeddings.missing(self.parts, first=self.first)) if embeddings is not None else set()
        seconds: list[float] = []  # that the embeddings of each batch took
        find = self.settings.open(embed=bool(unseen), embedded=seconds.append)

        def make(part: int, tick: Tick) -> Sequence[PartReport]:
            start_s = time.monotonic()
            seconds.clear()
            found = _find_in_windows(find.tables, self.cells.images.read(part), tick)
            if embeddings is None or part not in unseen:
                pieces = in_pieces(tables.proposals for tables in found)
                return [_write(self.cells.proposals, part, pieces, start_s=start_s)]
            return write_both(found, self.cells.proposals, embeddings, part, start_s=start_s, embedded_s=seconds)

        return make

    def _open_reused(self, reused: ReusedRun) -> MakeCell:
        rows_of = reused.open_proposals()
        open_models = functools.cache(functools.partial(self.settings.open, embed=False))

        def make(part: int, tick: Tick) -> PartReport:
            start_s = time.monotonic()
            images = self.cells.images.read(part)
            # What the reused run has, then what it has not.
            table = rows_of([image.image_id for image in images])
            tick(len(table))
            if new := _not_in(table, images):
                found = _find_in_windows(open_models().tables, new, tick)
                table = pa.concat_tables([table, *in_groups(in_pieces(tables.proposals for tables in found))])
            return _write(self.cells.proposals, part, _in_order(table, images), start_s=start_s)

        return make


@dataclass(frozen=True)
class EmbeddingsJob:
    """images and proposals → embeddings, for the parts whose proposals were there before.

    With a reused run that has the same CLIP, no model sees an image that it has.
    """

    cells: RunCells
    settings: Regions
    output: Cells[EmbeddingsRow]
    reused: ReusedRun | None = None

    @property
    def device(self) -> str:
        return self.settings.device

    @property
    def inputs(self) -> Sequence[Input]:
        return (Input(self.cells.proposals),)

    def open(self) -> MakeCell:
        reused = self.reused if self.reused is not None and self.reused.embeddings is not None else None
        make = self._open_models() if reused is None else self._open_reused(reused)
        return with_gpu_use(make, device=self.device)

    def _open_models(self) -> MakeCell:
        embed = self.settings.open_embedding()

        def make(part: int, tick: Tick) -> PartReport:
            start_s, made_from = time.monotonic(), identities(self.inputs, part)
            rows = self._embed_in_windows(embed, part, self.cells.images.read(part), tick)
            return _write(self.output, part, _pieces(rows, EmbeddingsRow), start_s=start_s, made_from=made_from)

        return make

    def _open_reused(self, reused: ReusedRun) -> MakeCell:
        rows_of = reused.open_embeddings()
        open_clip = functools.cache(self.settings.open_embedding)

        def make(part: int, tick: Tick) -> PartReport:
            start_s, made_from = time.monotonic(), identities(self.inputs, part)
            images = self.cells.images.read(part)
            table = rows_of([image.image_id for image in images])
            tick(len(table))
            if new := _not_in(table, images):
                found = self._embed_in_windows(open_clip(), part, new, tick)
                table = pa.concat_tables([table, *row_groups(found, EmbeddingsRow)])
            return _write(self.output, part, _in_order(table, images), start_s=start_s, made_from=made_from)

        return make

    def _embed_in_windows(
        self, embed: EmbedRegions, part: int, images: Sequence[ImageRow], tick: Tick
    ) -> Iterator[EmbeddingsRow]:
        """The rows of these images of a part; those of one window are in memory at a time, as when they were found."""
        wanted = {image.image_id for image in images}
        proposals = (row for row in self.cells.proposals.read_rows(part) if row.image_id in wanted)
        for start in range(0, len(images), IMAGES_AT_ONCE):
            window = images[start : start + IMAGES_AT_ONCE]
            known = list(islice(proposals, len(window)))
            if [row.image_id for row in known] != [image.image_id for image in window]:
                refuse_mixed(self.cells, part)
            yield from embed(window, known, tick=tick)


def write_both(
    found: Iterable[RegionTables],
    proposals: Cells[ProposalsRow],
    embeddings: Cells[EmbeddingsRow],
    part: int,
    *,
    start_s: float,
    embedded_s: Sequence[float],
) -> Sequence[PartReport]:
    """Write both cells of a part from what is found in its images, and report them; `embedded_s` gets longer with it.

    Embeddings wait in a file that needs no disk where they are few, as their cell names the proposals' identity.
    """
    with SpooledTemporaryFile(max_size=_KEPT_BYTES) as kept:
        proposed = _write(proposals, part, _keep_embeddings(found, kept), start_s=start_s)
        proposed = replace(proposed, seconds=proposed.seconds - sum(embedded_s))
        start_s, made_from = time.monotonic() - sum(embedded_s), identities([Input(proposals)], part)
        embedded = _write(embeddings, part, _kept(kept), start_s=start_s, made_from=made_from)
        return [proposed, replace(embedded, before_s=proposed.seconds)]


def _find_in_windows(
    find: Callable[..., Sequence[RegionTables]], images: Sequence[ImageRow], tick: Tick
) -> Iterator[RegionTables]:
    """What is found in a part's images; that of one window is in memory at a time."""
    for start in range(0, len(images), IMAGES_AT_ONCE):
        yield from find(images[start : start + IMAGES_AT_ONCE], tick=tick)


def _not_in(table: pa.Table, images: Sequence[ImageRow]) -> list[ImageRow]:
    """The images that a table has no row of."""
    stored = set(table["image_id"].to_pylist())
    return [image for image in images if image.image_id not in stored]


def _in_order(table: pa.Table, images: Sequence[ImageRow]) -> Iterator[pa.Table]:
    """The rows of a table in the order of the plan."""
    order = pc.index_in(pa.array([image.image_id for image in images], pa.string()), table["image_id"])
    return rows_in_order(table, order.to_pylist())


def _pieces(rows: Iterable[Any], row_type: type) -> Iterator[pa.Table]:
    iterator = iter(rows)
    return (to_table(piece, row_type) for piece in iter(lambda: list(islice(iterator, PIECE_ROWS)), []))


def _keep_embeddings(found: Iterable[RegionTables], file: IO[bytes]) -> Iterator[pa.Table]:
    """The proposals in pieces; the embeddings go into a file, as theirs is the cell to be written next."""
    iterator = iter(found)
    with pa.ipc.new_stream(file, arrow_schema(EmbeddingsRow)) as seen:
        while images := list(islice(iterator, PIECE_ROWS)):
            seen.write_table(pa.concat_tables([image.embeddings for image in images]).combine_chunks())
            yield pa.concat_tables([image.proposals for image in images])


def _kept(file: IO[bytes]) -> Iterator[pa.Table]:
    """The pieces that `_keep_embeddings` put into a file."""
    file.seek(0)
    with pa.ipc.open_stream(file) as seen:
        for piece in seen:
            yield pa.Table.from_batches([piece])


def _write(
    cells: Cells[Any],
    part: int,
    pieces: Iterable[pa.Table],
    *,
    start_s: float,
    made_from: Mapping[str, str] | None = None,
) -> PartReport:
    """Write a cell of either step from tables of PIECE_ROWS rows, and report it."""
    images = rejected = made = 0
    made_of = "regions" if cells.row_type is ProposalsRow else "embeddings"

    def counted() -> Iterator[pa.Table]:
        nonlocal images, rejected, made
        for piece in pieces:
            images += len(piece)
            rejected += len(piece) - piece["rejection"].null_count
            made += pc.sum(pc.list_value_length(piece[made_of])).as_py() or 0
            yield piece

    cells.write_pieces(part, counted(), made_from=made_from)
    seconds = time.monotonic() - start_s
    return PartReport(step=cells.step, part=part, images=images, rejected=rejected, made=made, seconds=seconds)
