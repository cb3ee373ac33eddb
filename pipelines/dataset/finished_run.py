"""A finished run as reports, exports and evaluations read it: manifest, plan, and the rows of its parts."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, TypeVar

import pyarrow as pa

from maskmine.mining.storage.bounded.small_files import MAX_YAML_BYTES, parse_yaml
from maskmine.mining.storage.stores import fault_line, fetch
from maskmine.pipelines.dataset.limits import why_not_published
from maskmine.pipelines.planning.plan import Plan, require_plan
from maskmine.pipelines.run_folder.caption_cells import read_captions_table, stored_captioning
from maskmine.pipelines.run_folder.cells import Cells
from maskmine.pipelines.run_folder.folder import FINGERPRINT_FILE, SUCCESS_FILE, RunFolder
from maskmine.pipelines.run_folder.region_cells import read_regions, stored_cells
from maskmine.pipelines.settings.mining import Mining, parse_mining
from maskmine.schemas.errors import IncompleteError, NotPublishedError
from maskmine.schemas.manifest import Manifest, parse_manifest
from maskmine.schemas.rows import (
    CaptioningRow,
    CaptionsRow,
    EmbeddingsRow,
    ImageRow,
    LevelRow,
    NounsRow,
    Pair,
    PairsRow,
    ProposalsRow,
    RegionsRow,
    SampleRow,
)
from maskmine.schemas.sample import StoredSample, cell_name, parse_sample, sample_key
from maskmine.schemas.seal import open_sealed
from maskmine.schemas.tables import check_index, from_table

Row = TypeVar("Row")

# The folder of the cells that hold each type of row; where regions lie follows from the version of a run.
_STEPS: Mapping[type, str] = {
    ImageRow: "images",
    CaptionsRow: "captions",
    NounsRow: "nouns",
    PairsRow: "pairs",
    SampleRow: "shards",
}
_LEVELS = "levels.parquet"


@dataclass(frozen=True, slots=True)
class MinedImage:
    """An image of a run with its row of every step; `pairs` are those of its pairs that are in the shards, or all."""

    image: ImageRow
    captions: CaptionsRow
    nouns: NounsRow
    regions: RegionsRow
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class FinishedRun:
    """A run with a manifest. The cells of one part are in memory at a time.

    A manifest can be that of an earlier run which one of other settings is replacing. Reading the index of a shard
    that was replaced raises IncompleteError; `open_complete` asks before anything is read.
    """

    folder: RunFolder
    manifest: Manifest

    @classmethod
    def open(cls, folder: RunFolder) -> FinishedRun:
        """Raises IncompleteError when there is no manifest yet, InputError when this maskmine cannot read it."""
        stored = folder.read_json("manifest.json")
        if stored is None:
            raise IncompleteError(f"{folder.root}: not finished (no manifest.json); run `maskmine mine` again")
        return cls(folder, parse_manifest(stored, path=folder.path("manifest.json")))

    @classmethod
    def open_published(cls, folder: RunFolder) -> FinishedRun:
        """A run whose set is complete, as `_SUCCESS` says; its other cells may be gone.

        Raises as `open`, and NotPublishedError for a whole run of which too many images were rejected.
        """
        finished = cls.open(folder)
        if not folder.exists(SUCCESS_FILE):
            if (why := why_not_published(folder)) is not None:
                raise NotPublishedError(f"{folder.root}: {why}")
            raise IncompleteError(f"{folder.root}: not finished (no {SUCCESS_FILE}); run `maskmine mine` again")
        return finished

    @classmethod
    def open_complete(cls, folder: RunFolder) -> FinishedRun:
        """A run of which every cell is there and none is being replaced. Raises as `open`."""
        finished = cls.open(folder)
        regions = [cells.folder for cells in stored_cells(folder) if cells is not None]
        captions = [cells.folder for cells in finished.captioning]
        missing = [
            step for step in (*captions, *_STEPS.values(), *regions) if len(folder.done(step)) < len(finished.parts)
        ]
        current = {"fingerprint": finished.manifest.fingerprint}
        if missing or folder.read_json("shards", FINGERPRINT_FILE) != current:
            why = f"cells of {missing[0]} are missing" if missing else "settings or inputs have changed"
            raise IncompleteError(f"{folder.root}: not finished ({why}); run `maskmine mine` again")
        return finished

    @property
    def name(self) -> str:
        """The name of its folder."""
        return posixpath.basename(self.folder.root.rstrip("/"))

    @cached_property
    def plan(self) -> Plan:
        """Raises InputError when there is none."""
        return require_plan(self.folder)

    @property
    def parts(self) -> range:
        """The numbers of its parts."""
        return range(self.plan.parts)

    @cached_property
    def settings(self) -> Mining:
        """The settings that it was mined with, paths included. Raises InputError when they do not hold here."""
        place = self.folder.path("mining.yaml")
        with self.folder.open("mining.yaml") as file:
            _, tree = parse_yaml(file.read(MAX_YAML_BYTES + 1), place=place)
        return parse_mining(tree, place=place)

    def paths(self, row_type: type) -> list[str]:
        """The paths of the cells of one type of row, one a part; of captions also of those that models wrote."""
        written = self.captioning if row_type is CaptionsRow else ()
        more = [cells.path(part) for cells in written for part in self.parts]
        return more + [self.folder.cell_path(self._step(row_type), part) for part in self.parts]

    def table(self, part: int, row_type: type) -> pa.Table:
        """A cell, of regions that of their masks. Raises IncompleteError when it is missing or broken, or an index that
        is not this manifest's."""
        if row_type is CaptionsRow and self.captioning:
            return read_captions_table(Cells(self.folder, "captions", CaptionsRow), self.captioning, part)
        fingerprint = self.manifest.fingerprint if row_type is SampleRow else None
        path = (self._step(row_type), cell_name(part))
        table = self.folder.read_table(*path, fingerprint=fingerprint)
        if row_type is SampleRow:
            check_index(table, shard=self.manifest.shards[part], path=self.folder.path(*path))
        return table

    def columns(self, part: int, row_type: type, names: Sequence[str]) -> pa.Table:
        """Some columns of a cell, without reading the others. Raises IncompleteError when it is missing or broken."""
        if row_type is CaptionsRow and self.captioning:
            return self.table(part, row_type).select(list(names))
        path = (self._step(row_type), cell_name(part))
        try:
            with self.folder.open(*path) as file:
                return open_sealed(file).read(columns=list(names))
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            raise IncompleteError(
                f"{self.folder.path(*path)}: missing or not whole; run `maskmine mine` again"
            ) from error

    def rows(self, part: int, row_type: type[Row]) -> list[Row]:
        """The rows of a cell, regions with their embeddings; raises as `table`."""
        if row_type is RegionsRow:
            return list(chain.from_iterable(read_regions(*self._regions, part)))  # type: ignore[arg-type]
        return from_table(self.table(part, row_type), row_type)

    @cached_property
    def captioning(self) -> tuple[Cells[CaptioningRow], ...]:
        """The cells of the models that wrote captions; none where all captions are from sources."""
        return stored_captioning(self.folder)

    @cached_property
    def _regions(self) -> tuple[Cells[Any], Cells[EmbeddingsRow] | None]:
        return stored_cells(self.folder)

    def _step(self, row_type: type) -> str:
        return self._regions[0].folder if issubclass(row_type, ProposalsRow) else _STEPS[row_type]

    def all_rows(self, row_type: type[Row]) -> Iterator[Row]:
        """The rows of all parts; raises as `table`."""
        for part in self.parts:
            yield from self.rows(part, row_type)

    def written_keys(self, part: int) -> set[str]:
        """The keys of the samples in the shard of a part; raises as `table`."""
        return set(self.table(part, SampleRow)["key"].to_pylist())

    def images(self, part: int, *, every_pair: bool = False) -> Iterator[MinedImage]:
        """The images of a part in the plan's order, with the pairs that are in the shards, or `every_pair` of the rule.

        Raises as `table`.
        """
        keys = None if every_pair else self.written_keys(part)
        steps = (self.rows(part, ImageRow), self.rows(part, CaptionsRow), self.rows(part, NounsRow))
        for image, captions, nouns, regions, matched in zip(
            *steps, self.rows(part, RegionsRow), self.rows(part, PairsRow), strict=True
        ):
            pairs = matched.pairs
            if keys is not None:
                pairs = tuple(pair for n, pair in enumerate(pairs) if sample_key(matched.image_id, n) in keys)
            yield MinedImage(image, captions, nouns, regions, pairs)

    @property
    def levels_path(self) -> str | None:
        """Where the levels of the nouns are; None for a run without them: by labels, or of format version 1 or 2."""
        return self.folder.path(_LEVELS) if self.manifest.format_version >= 3 and self.folder.exists(_LEVELS) else None

    def levels(self) -> Iterator[LevelRow] | None:
        """The levels of the nouns in the order of the vocabulary, a row group in memory; None as `levels_path`."""
        if self.levels_path is None:
            return None
        return (row for block in self.folder.read_blocks(_LEVELS, row_type=LevelRow) for row in block)

    def sample(self, row: SampleRow) -> StoredSample:
        """A sample out of its shard. Raises IncompleteError when it is not where the index has it, or unreadable."""
        path = self.folder.path("shards", row.shard)
        try:
            span = fetch(path, start=row.offset, max_bytes=row.size_bytes)
        except FileNotFoundError as error:
            raise IncompleteError(f"{path}: missing; run `maskmine mine` again") from error
        except OSError as error:
            raise IncompleteError(fault_line(error, path)) from error
        return parse_sample(span, row, path=path)


def read_noun_counts(folder: RunFolder) -> dict[str, int]:
    """In how many images of a run the captions say each noun. Raises IncompleteError before there is a vocabulary."""
    vocabulary = folder.read_table("vocabulary.parquet")
    return dict(zip(vocabulary["noun"].to_pylist(), vocabulary["images"].to_pylist(), strict=True))
