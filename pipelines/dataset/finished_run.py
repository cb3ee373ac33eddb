"""A finished run as reports, exports and evaluations read it: manifest, plan, and the rows of its parts."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from maskmine.mining.exports.coco import whole_mask
from maskmine.mining.storage.bounded.small_files import MAX_YAML_BYTES, parse_yaml
from maskmine.mining.storage.stores import fault_line, fetch
from maskmine.pipelines.dataset.limits import read_manifest, why_not_published
from maskmine.pipelines.dataset.mined_images import MinedImage, images_of_samples
from maskmine.pipelines.planning.plan import Plan, require_plan
from maskmine.pipelines.planning.versions import VERSIONS, read_appended
from maskmine.pipelines.run_folder.caption_cells import read_captions_table, stored_captioning
from maskmine.pipelines.run_folder.cells import Cells
from maskmine.pipelines.run_folder.folder import FINGERPRINT_FILE, MIX_FILE, SUCCESS_FILE, RunFolder
from maskmine.pipelines.run_folder.region_cells import read_masks, read_regions, stored_cells
from maskmine.pipelines.settings.mining import Mining, parse_mining
from maskmine.schemas.errors import IncompleteError, InputError, NotPublishedError
from maskmine.schemas.manifest import Manifest
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import (
    CaptioningRow,
    CaptionsRow,
    EmbeddingsRow,
    ImageRow,
    LevelRow,
    NounsRow,
    OriginRow,
    Pair,
    PairsRow,
    ProposalsRow,
    RegionsRow,
    SampleRow,
)
from maskmine.schemas.sample import WHOLE_VERSION, StoredSample, cell_name, parse_sample, sample_key
from maskmine.schemas.tables import check_index, from_table, read_columns

Row = TypeVar("Row")

# The folder of the cells that hold each type of row; where regions lie follows from the version of a run.
_STEPS: Mapping[type, str] = {
    ImageRow: "images",
    CaptionsRow: "captions",
    NounsRow: "nouns",
    PairsRow: "pairs",
    SampleRow: "shards",
}
_OF_A_MIX: Mapping[type, str] = {SampleRow: "shards", OriginRow: "origins"}
_LEVELS, VOCABULARY = "levels.parquet", "vocabulary.parquet"


@dataclass(frozen=True)
class FinishedRun:
    """A run with a manifest, or a mix, which has shards alone. The cells of one part are in memory at a time.

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
            raise IncompleteError(f"{folder.root}: not finished (no manifest.json); {_again(folder)}")
        return cls(folder, read_manifest(stored, folder))

    @classmethod
    def open_published(cls, folder: RunFolder) -> FinishedRun:
        """A run whose set is complete, as `_SUCCESS` says; its other cells may be gone.

        Raises as `open`, and NotPublishedError for a whole run of which too many images were rejected.
        """
        finished = cls.open(folder)
        if not folder.exists(SUCCESS_FILE):
            if not finished.is_mix and (why := why_not_published(folder)) is not None:
                raise NotPublishedError(f"{folder.root}: {why}")
            raise IncompleteError(f"{folder.root}: not finished (no {SUCCESS_FILE}); {_again(folder)}")
        return finished

    @classmethod
    def open_complete(cls, folder: RunFolder) -> FinishedRun:
        """A run of which every cell is there and none is being replaced, or a published mix. Raises as `open`."""
        finished = cls.open(folder)
        if finished.is_mix:
            return cls.open_published(folder)
        regions = [cells.folder for cells in stored_cells(folder) if cells is not None]
        parts = finished.parts
        captions = [cells.folder for cells in finished.captioning]
        missing = [step for step in (*captions, *_STEPS.values(), *regions) if folder.done(step).missing(parts)]
        current = {"fingerprint": finished.manifest.shards_fingerprint}
        if missing or folder.read_json("shards", FINGERPRINT_FILE) != current:
            why = f"cells of {missing[0]} are missing" if missing else "settings or inputs have changed"
            raise IncompleteError(f"{folder.root}: not finished ({why}); run `maskmine mine` again")
        return finished

    @property
    def name(self) -> str:
        """The name of its folder."""
        return posixpath.basename(self.folder.root.rstrip("/"))

    @property
    def is_mix(self) -> bool:
        """Whether it was put together from other sets, and has no cells."""
        return bool(self.manifest.mixed_from)

    @property
    def again(self) -> str:
        """What to do where something of it is missing or broken, as the end of a message."""
        return _again(self.folder)

    @cached_property
    def plan(self) -> Plan:
        """The plan of what it was mined of first. Raises InputError when there is none."""
        self._refuse_mix("plan")
        return require_plan(self.folder)

    @property
    def parts(self) -> range:
        """The numbers of its parts, of all versions that its manifest has; of a mix those of its shards."""
        if self.is_mix:
            return range(len(self.manifest.shards))
        return range(sum(version.parts for version in self.manifest.versions) or self.plan.parts)

    def groups_of_parts(self, *, images: int, parts: int) -> Iterator[list[int]]:
        """The numbers of its parts in groups of at most so many parts with so many images, of one part at least.
        Raises IncompleteError where the manifest is that of another cut."""
        if len(self.manifest.shards) != len(self.parts):
            raise self._other_cut()
        group, held = list[int](), 0
        for part, shard in zip(self.parts, self.manifest.shards, strict=True):
            if group and (held + shard.images > images or len(group) == parts):
                yield group
                group, held = [], 0
            group.append(part)
            held += shard.images
        if group:
            yield group

    def _other_cut(self) -> IncompleteError:
        """What to say where manifest and plan have not as many parts, as where files of two runs lie in one folder."""
        shards, parts = len(self.manifest.shards), len(self.parts)
        return IncompleteError(
            f"{self.folder.root}: manifest.json has {shards:,} shards, and the plan {parts:,} parts; delete "
            f"manifest.json and {self.again}"
        )

    @cached_property
    def settings(self) -> Mining:
        """The settings that it was mined with, paths included. Raises InputError when they do not hold here."""
        self._refuse_mix("settings of its own")
        place = self.folder.path("mining.yaml")
        with self.folder.open("mining.yaml") as file:
            _, tree = parse_yaml(file.read(MAX_YAML_BYTES + 1), place=place)
        return parse_mining(tree, place=place)

    def paths(self, row_type: type) -> list[str]:
        """The paths of the cells of one type of row, one a part; of captions also of those that models wrote."""
        written = self.captioning if row_type is CaptionsRow else ()
        more = [cells.path(part) for cells in written for part in self.parts]
        return more + [self.folder.cell_path(self._step(row_type), part) for part in self.parts]

    def cell_path(self, part: int, row_type: type) -> str:
        """The path of a cell; of captions that of the plan's."""
        return self.folder.cell_path(self._step(row_type), part)

    def table(self, part: int, row_type: type) -> pa.Table:
        """A cell, of regions that of their masks. Raises IncompleteError when it is missing or broken, or an index that
        is not this manifest's."""
        if row_type is CaptionsRow and self.captioning:
            return read_captions_table(Cells(self.folder, "captions", CaptionsRow), self.captioning, part)
        fingerprint = self.manifest.shards_fingerprint if row_type is SampleRow else None
        path = (self._step(row_type), cell_name(part))
        table = self.folder.read_table(*path, fingerprint=fingerprint)
        if row_type is SampleRow:
            if part >= len(self.manifest.shards):
                raise self._other_cut()
            check_index(table, shard=self.manifest.shards[part], path=self.folder.path(*path))
        return table

    def columns(self, part: int, row_type: type, names: Sequence[str]) -> pa.Table:
        """Some columns of a cell, without reading the others. Raises IncompleteError when it is missing or broken."""
        if row_type is CaptionsRow and self.captioning:
            return self.table(part, row_type).select(list(names))
        path = (self._step(row_type), cell_name(part))
        try:
            with self.folder.open(*path) as file:
                return read_columns(file, names)
        except FileNotFoundError as error:
            raise IncompleteError(f"{self.folder.path(*path)}: missing; {self.again}") from error
        except (pa.ArrowInvalid, OSError) as error:  # as Arrow answers to damaged pages
            raise IncompleteError(
                f"{self.folder.path(*path)}: not a whole Parquet file; delete it and {self.again}"
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
        if self.is_mix and row_type not in _OF_A_MIX:
            self._refuse_mix(_STEPS.get(row_type, "regions"))
        if row_type in _OF_A_MIX:
            return _OF_A_MIX[row_type]
        return self._regions[0].folder if issubclass(row_type, ProposalsRow) else _STEPS[row_type]

    def _refuse_mix(self, what: str) -> None:
        """Raises InputError where a mix is asked for what only a run has."""
        if self.is_mix:
            runs = ", ".join(source.folder for source in self.manifest.mixed_from)
            raise InputError(
                f"{self.folder.root}: a mix, which has no {what}; give a run that it is made of ({runs}), and mix "
                "again when that has changed"
            )

    def all_rows(self, row_type: type[Row]) -> Iterator[Row]:
        """The rows of all parts; raises as `table`."""
        for part in self.parts:
            yield from self.rows(part, row_type)

    def written_keys(self, part: int) -> set[str]:
        """The keys of the samples in the shard of a part; raises as `table`."""
        return set(self.table(part, SampleRow)["key"].to_pylist())

    def images(self, part: int, *, every_pair: bool = False) -> Iterator[MinedImage]:
        """The images of a part in the plan's order, with the pairs that are in the shards, or `every_pair` of the rule.

        A pair that a reviewer corrected is as it was written: its noun, and its mask as one more region of the image.
        Those of a mix are put together from its samples, and have their written pairs alone. Raises as `table`.
        """
        if self.is_mix:
            if every_pair:
                self._refuse_mix(_STEPS[PairsRow])
            yield from images_of_samples(map(self.sample, self.rows(part, SampleRow)))
        elif every_pair:
            yield from self._mined(part)
        else:
            yield from (written for written, _ in self.written_and_mined(part))

    def written_and_mined(self, part: int, *, bare: bool = False) -> Iterator[tuple[MinedImage, MinedImage]]:
        """Each image of a part of a run twice, of cells that are read once: as `images` has it, and with every pair of
        the rule. `bare`: without captions and embeddings, which are not read. Raises as `table`."""
        self._refuse_mix(_STEPS[PairsRow])
        index = self.table(part, SampleRow)
        keys, corrected = set(index["key"].to_pylist()), self._corrected(index)
        for mined in self._mined(part, bare=bare):
            regions, pairs = mined.regions, list[Pair]()
            for number, pair in enumerate(mined.pairs):
                key = sample_key(mined.image.image_id, number)
                if key not in keys:
                    continue
                if key in corrected:
                    regions, pair = _as_written(regions, pair, corrected[key])
                pairs.append(pair)
            yield replace(mined, regions=regions, pairs=tuple(pairs)), mined

    def _mined(self, part: int, *, bare: bool = False) -> Iterator[MinedImage]:
        """The images of a part with every pair of the rule. Raises IncompleteError for a cell of other images."""
        images = self.rows(part, ImageRow)
        captions = [CaptionsRow(one.image_id, ()) for one in images] if bare else self.rows(part, CaptionsRow)
        regions = list(read_masks(*self._regions, part)) if bare else self.rows(part, RegionsRow)
        nouns, pairs = self.rows(part, NounsRow), self.rows(part, PairsRow)
        read: dict[type, Sequence[Any]] = {ImageRow: images, NounsRow: nouns, RegionsRow: regions, PairsRow: pairs}
        read = read if bare else {**read, CaptionsRow: captions}
        self.refuse_mixed(part, {row_type: [row.image_id for row in rows] for row_type, rows in read.items()})
        for image, said, named, seen, matched in zip(images, captions, nouns, regions, pairs, strict=True):
            yield MinedImage(image, said, named, seen, tuple(matched.pairs))

    def refuse_mixed(self, part: int, found: Mapping[type, Sequence[str]]) -> None:
        """Raises IncompleteError where the cells of a part, given by the images that each has, do not have the same
        ones, as where files changed places."""
        odd = min(found, key=lambda row_type: sum(ids == found[row_type] for ids in found.values()))
        if any(ids != found[odd] for ids in found.values()):
            raise IncompleteError(
                f"{self.cell_path(part, odd)}: has other images than part {part}; delete it and {self.again}"
            )

    def _corrected(self, index: pa.Table) -> dict[str, tuple[SampleRow, Mask | None]]:
        """The samples of an index that reviewers corrected by their keys, with the mask where it is another one."""
        if self.manifest.format_version < WHOLE_VERSION or "corrected" not in index.column_names:
            return {}
        rows = from_table(index.filter(pc.greater(pc.list_value_length(index["corrected"]), 0)), SampleRow)
        return {row.key: (row, whole_mask(self.sample(row)) if "mask" in row.corrected else None) for row in rows}

    @property
    def levels_paths(self) -> list[str]:
        """Where the levels of the nouns are, of each version; a noun has the same in all. Empty for a run without them:
        by labels, or of format version 1 or 2."""
        if self.manifest.format_version < 3 or not self.folder.exists(_LEVELS):
            return []
        return self._of_versions(_LEVELS)

    @property
    def vocabulary_paths(self) -> list[str]:
        """Where the nouns are, of each version; in each are the images of that version that say them."""
        return self._of_versions(VOCABULARY)

    def _of_versions(self, name: str) -> list[str]:
        appended = (self.folder.path(VERSIONS, version.name, name) for version in self.manifest.versions[1:])
        return [self.folder.path(name), *appended]

    def levels(self) -> Iterator[LevelRow] | None:
        """The levels of the nouns of the base in the order of its vocabulary, a row group in memory; None without."""
        if not self.levels_paths:
            return None
        return (row for block in self.folder.read_blocks(_LEVELS, row_type=LevelRow) for row in block)

    def sample(self, row: SampleRow) -> StoredSample:
        """A sample out of its shard. Raises IncompleteError when it is not where the index has it, or unreadable."""
        return parse_sample(self.span(row), row, path=self.folder.path("shards", row.shard))

    def span(self, row: SampleRow) -> bytes:
        """The bytes of a sample in its tar, as they are. Raises IncompleteError when they cannot be read."""
        path = self.folder.path("shards", row.shard)
        try:
            return fetch(path, start=row.offset, max_bytes=row.size_bytes)
        except FileNotFoundError as error:
            raise IncompleteError(f"{path}: missing; {_again(self.folder)}") from error
        except OSError as error:
            raise IncompleteError(fault_line(error, path)) from error


def _again(folder: RunFolder) -> str:
    return f"run {'the same `maskmine mix`' if folder.exists(MIX_FILE) else '`maskmine mine`'} again"


def _as_written(regions: RegionsRow, pair: Pair, sample: tuple[SampleRow, Mask | None]) -> tuple[RegionsRow, Pair]:
    """A pair with the noun and mask of its sample; a corrected mask is a further region, at the end."""
    row, mask = sample
    if mask is not None:
        region = replace(regions.regions[pair.region], mask=mask, box_xyxy=mask.box_xyxy, area_px=mask.area_px)
        regions = replace(regions, regions=(*regions.regions, replace(region, embedding=None)))
        pair = replace(pair, region=len(regions.regions) - 1)
    scores = {name: getattr(row, name) for name in ("similarity", "margin", "lift", "evidence", "confidence")}
    return regions, replace(pair, noun=row.noun, lemma=row.lemma, start=row.start, end=row.end, **scores)


def read_noun_counts(
    folder: RunFolder, *, least: int = 1, only: Callable[[str], bool] = lambda noun: True
) -> dict[str, int]:
    """In how many images of a run the captions say each noun, those appended to it among them; of a mix, which knows
    its pairs alone, in how many a pair names it.

    Nouns of fewer than `least` images are left out: most nouns of a large vocabulary are of one image. So are those for
    which `only` is False. A row group is in memory at a time. Raises IncompleteError before there is a vocabulary.
    """
    counts: Counter[str] = Counter()
    if folder.exists(MIX_FILE):
        mixed = FinishedRun.open(folder)
        for part in mixed.parts:  # an image lies in one shard
            pairs = (
                mixed.table(part, SampleRow).select(["noun", "image_id"]).group_by(["noun", "image_id"]).aggregate([])
            )
            counts.update(filter(only, pairs["noun"].to_pylist()))
        return _of_at_least(counts, least)
    places = ["", *(version.folder for version in read_appended(folder))]
    at_once = least if len(places) == 1 else 1  # what several versions say is added up before a noun is left out
    for place in places:
        names = (place, VOCABULARY) if place else (VOCABULARY,)
        if place and not folder.exists(*names):
            continue  # it is being appended
        for group in folder.read_groups(*names):
            kept = group.filter(pc.greater_equal(group["images"], at_once))
            listed = zip(kept["noun"].to_pylist(), kept["images"].to_pylist(), strict=True)
            counts.update({noun: images for noun, images in listed if only(noun)})
    return counts if at_once == least else _of_at_least(counts, least)


def _of_at_least(counts: Counter[str], least: int) -> dict[str, int]:
    return {noun: images for noun, images in counts.items() if images >= least}
