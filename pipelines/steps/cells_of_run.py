"""Which files each step of a run writes, as typed handles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn

from maskmine.pipelines.planning.plan import PLANNED
from maskmine.pipelines.run_folder.caption_cells import CAPTIONING, captioning_cells, read_captions, stored_captioning
from maskmine.pipelines.run_folder.cells import Cells
from maskmine.pipelines.run_folder.folder import FINGERPRINT_FILE, RunFolder
from maskmine.pipelines.run_folder.region_cells import (
    checks_cells,
    embeddings_cells,
    proposals_cells,
    read_regions,
    stored_cells,
    stored_checks,
)
from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.rows import (
    CaptioningRow,
    CaptionsRow,
    ChecksRow,
    EmbeddingsRow,
    ImageRow,
    LevelRow,
    NegativesRow,
    NounsRow,
    PairsRow,
    ProposalsRow,
    RegionsRow,
    SampleRow,
    SelectionRow,
    VocabularyRow,
)
from maskmine.schemas.sample import READABLE_VERSIONS, index_type

NEGATIVES = "negatives"
SHARD_SUFFIXES = ("tar", "parquet", "json")  # the tar, its index, and the account, which is written last


@dataclass(frozen=True)
class RunCells:
    """The cells of a run: what the plan wrote, then the steps in the order of their work; no embeddings without CLIP,
    no checks without a verifier, no negatives where none are asked for, and nothing of `captioning` where no model
    writes captions.

    Of a run of an earlier version that is read, `proposals` are its cells of `regions`, which have both.
    """

    images: Cells[ImageRow]
    captions: Cells[CaptionsRow]
    nouns: Cells[NounsRow]
    vocabulary: Cells[VocabularyRow]
    proposals: Cells[ProposalsRow]
    embeddings: Cells[EmbeddingsRow] | None
    levels: Cells[LevelRow]
    pairs: Cells[PairsRow]
    checks: Cells[ChecksRow] | None
    selection: Cells[SelectionRow]
    negatives: Cells[NegativesRow] | None
    shards: Cells[SampleRow]
    captioning: tuple[Cells[CaptioningRow], ...] = ()

    @property
    def regions(self) -> tuple[Cells[Any], ...]:
        """Those of the regions: proposals, and embeddings where there are any."""
        return (self.proposals,) if self.embeddings is None else (self.proposals, self.embeddings)

    def read_regions(self, part: int) -> Iterator[list[RegionsRow]]:
        """The regions of a part with their embeddings, one row group in memory at a time."""
        return read_regions(self.proposals, self.embeddings, part)

    def read_captions(self, part: int) -> Iterator[CaptionsRow]:
        """The captions of a part, those that models wrote behind those of the plan."""
        return read_captions(self.captions, self.captioning, part)


def refuse_mixed(cells: RunCells, part: int) -> NoReturn:
    """Name the cell of a part that has other images than the others, as where files changed places.

    Raises IncompleteError.
    """
    planned: tuple[Cells[Any], ...] = (cells.images, cells.captions, *cells.captioning)
    compared: tuple[Cells[Any], ...] = (*planned, cells.nouns, *cells.regions)
    found = {one.path(part): one.read_table(part)["image_id"].to_pylist() for one in compared if one.exists(part)}
    odd = min(found, key=lambda path: sum(images == found[path] for images in found.values()))
    raise IncompleteError(f"{odd}: has other images than part {part}; delete it and run the same command again")


def run_cells(
    run: RunFolder, fingerprints: Mapping[str, str] | None = None, *, version: int = max(READABLE_VERSIONS)
) -> RunCells:
    """Handles of all cells of a run, with the fingerprint of each step; without them they read whatever is there.

    The index of a shard is written with the columns of that format version.
    """
    of, prints = partial(Cells, run), fingerprints or {}
    if fingerprints is None:
        proposals, embeddings = stored_cells(run)
        checks, captioning = stored_checks(run), stored_captioning(run)
        negatives = run.read_json(NEGATIVES, FINGERPRINT_FILE) is not None
    else:
        proposals = proposals_cells(run, prints["proposals"])
        embeddings = embeddings_cells(run, prints["embeddings"]) if "embeddings" in prints else None
        checks = checks_cells(run, prints["checks"]) if "checks" in prints else None
        negatives = NEGATIVES in prints
        steps = (step for step in prints if step.startswith(CAPTIONING))
        captioning = tuple(captioning_cells(run, step, prints[step]) for step in steps)
    return RunCells(
        images=of("images", ImageRow, PLANNED),
        captions=of("captions", CaptionsRow, PLANNED),
        nouns=of("nouns", NounsRow, prints.get("nouns", "")),
        vocabulary=of("vocabulary", VocabularyRow, prints.get("vocabulary", ""), once=True),
        proposals=proposals,
        embeddings=embeddings,
        levels=of("levels", LevelRow, prints.get("levels", ""), once=True),
        pairs=of("pairs", PairsRow, prints.get("pairs", "")),
        checks=checks,
        selection=of("selection", SelectionRow, prints.get("selection", ""), once=True),
        negatives=of(NEGATIVES, NegativesRow, prints.get(NEGATIVES, "")) if negatives else None,
        shards=of("shards", index_type(version), prints.get("shards", ""), suffixes=SHARD_SUFFIXES),
        captioning=captioning,
    )


def cells_of_version(cells: RunCells, folder: str) -> RunCells:
    """The same cells, with the files that a version of the set has of steps that run once; its `folder` is empty for
    the base."""
    names = ("vocabulary", "levels", "selection")
    return replace(cells, **{name: replace(getattr(cells, name), within=folder) for name in names})
