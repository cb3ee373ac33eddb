"""The jobs at the end of a run: the cut for nouns with too many pairs, and the shards."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import zip_longest
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from maskmine.mining.evaluation.corrections import Decisions
from maskmine.mining.evaluation.wrong_pairs import find_judged_pairs
from maskmine.mining.pairs import ClipPairs, LabelPairs
from maskmine.mining.regions import Regions
from maskmine.mining.scores.noun_tables import NounValues
from maskmine.mining.selection import cap_nouns, keep_corrected, keep_pair
from maskmine.mining.shards import (
    ImageToWrite,
    KeepCorrected,
    KeepPair,
    Known,
    ShardAccount,
    Shards,
    first_rejection,
    write_shard,
)
from maskmine.pipelines.run_folder.cells import Cells
from maskmine.pipelines.run_folder.reused_regions import ReusedRun
from maskmine.pipelines.run_folder.reused_samples import Readers, ReusedSamples
from maskmine.pipelines.steps.cells_of_run import RunCells, refuse_mixed
from maskmine.pipelines.steps.jobs import MakeCell, PartReport, Tick, report_once
from maskmine.pipelines.steps.ties import Input, identities, remember_once
from maskmine.schemas.rows import Rejection, SelectionRow, VocabularyRow


@dataclass(frozen=True)
class SelectionJob:
    """All pairs → the cut for each noun that has more than `max_per_noun`, once.

    Pairs that reviewers call wrong do not count, and corrected ones by their corrected noun. What is appended has
    `parts` parts from the `first` on; pairs in the shards before them stay, and take their places.
    """

    device = None
    cells: RunCells
    settings: ClipPairs | LabelPairs
    parts: int
    decisions: Decisions = field(default_factory=Decisions)
    first: int = 0

    @property
    def inputs(self) -> Sequence[Input]:
        cells = self.cells
        checks = (cells.checks,) if cells.checks is not None else ()
        masks = (cells.proposals,) if self.decisions else ()
        before = [Input(cells.shards, self.first)] if self.first else []
        return (*(Input(one, self.parts, self.first) for one in (cells.pairs, *checks, *masks)), *before)

    def open(self) -> MakeCell:
        def make(part: int, tick: Tick) -> PartReport:
            start_s, made_from = time.monotonic(), identities(self.inputs, part)
            parts = range(self.first, self.first + self.parts)
            pairs = [self.cells.pairs.path(p) for p in parts]
            masks = [self.cells.proposals.path(p) for p in parts]
            checks = [self.cells.checks.path(p) for p in parts] if self.cells.checks is not None else []
            wrong, corrections = self.decisions.wrong, self.decisions.corrections
            found = find_judged_pairs(pairs, masks, judged={*wrong, *corrections})
            rows = cap_nouns(
                self.settings,
                pairs,
                check_cells=checks,
                left_out=[number for number, pair in found.items() if pair in wrong],
                corrected={n: corrections[pair].noun or pair[1] for n, pair in found.items() if pair in corrections},
                written=[self.cells.shards.path(p) for p in range(self.first)],
            )
            self.cells.selection.write(part, rows, made_from=made_from)
            return report_once("selection", part, len(rows), start_s=start_s)

        return make


@dataclass(frozen=True)
class ShardsJob:
    """images, captions, nouns, proposals, pairs, checks, negatives → a tar, its index, and its account, written last.

    Of embeddings it reads why an image has none.

    Verdicts were read when the run began and travel here as `decisions`: reviewers may go on meanwhile. What is
    appended counts how many images say a noun with those of the `earlier` versions. Crops and masks that the shards of
    a `reused` run have are taken as they are.
    """

    device = None
    cells: RunCells
    settings: Shards
    pairs: ClipPairs | LabelPairs
    regions: Regions
    version: int
    decisions: Decisions = field(default_factory=Decisions)
    earlier: tuple[Cells[VocabularyRow], ...] = ()
    reused: ReusedRun | None = None

    @property
    def inputs(self) -> Sequence[Input]:
        cells = list(self._of_part())
        if self.pairs.min_count > 1:
            cells += (self.cells.vocabulary, *self.earlier)
        if self.pairs.max_per_noun is not None:
            cells.append(self.cells.selection)
        return [Input(one) for one in cells]

    def open(self) -> MakeCell:
        filters_of, remembered = self._filters(), remember_once(self.inputs)
        read = partial(self.regions.decoding.read, max_pixels=self.regions.max_image_pixels)
        shards, open_known = self.cells.shards, self._known()

        def make(part: int, tick: Tick) -> PartReport:
            start_s, made_from = time.monotonic(), identities(self.inputs, part, read=remembered)
            sums = {cells.folder: cells.check(part).sha256 for cells in self._of_part()}
            folder, name = shards.names(part, "tar")
            keep, keep_noun = filters_of(part)
            with shards.run.write(folder, name) as file, open_known(part) as known:
                index, account = write_shard(
                    file,
                    self._images(part),
                    shards=self.settings,
                    keep=keep,
                    shard=name,
                    read=read,
                    version=self.version,
                    decisions=self.decisions,
                    keep_corrected=keep_noun,
                    known=known,
                    tick=tick,
                )
            shards.write(part, index, made_from=made_from)
            seconds = time.monotonic() - start_s
            written = {**self._account(part, account, seconds), "cells": sums}
            shards.run.write_json(*shards.names(part, "json"), value=written)
            return PartReport(
                step="shards",
                part=part,
                images=account.images,
                rejected=len(account.rejections),
                made=account.samples,
                seconds=seconds,
            )

        return make

    def _known(self) -> Callable[[int], AbstractContextManager[Known | None]]:
        """A function that opens what is known of the samples of a part."""
        samples = ReusedSamples.of(self.reused, self.cells.proposals, self.settings)
        if samples is None:
            return lambda part: nullcontext()
        decoding, max_pixels = self.regions.decoding, self.regions.max_image_pixels
        read = Readers(
            partial(decoding.read_file, max_pixels=max_pixels),
            partial(decoding.decode, max_pixels=max_pixels),
            partial(decoding.decode_stored, max_pixels=max_pixels),
        )
        return lambda part: samples.open_part(part, self.cells.images.read(part), read=read)

    def _of_part(self) -> tuple[Cells[Any], ...]:
        """The cells of a part that its shard vouches for in its account."""
        checks = (self.cells.checks,) if self.cells.checks is not None else ()
        negatives = (self.cells.negatives,) if self.cells.negatives is not None else ()
        of_captions = (*self.cells.captioning, self.cells.nouns)
        return *of_captions, *self.cells.regions, self.cells.pairs, *checks, *negatives

    def _filters(self) -> Callable[[int], tuple[KeepPair, KeepCorrected]]:
        """A function from a part to what decides on its pairs, and on corrected ones: of what is known of all nouns,
        only that of the nouns of the part is in memory."""
        capped = (self.cells.selection,) if self.pairs.max_per_noun is not None else ()
        said_in = (self.cells.vocabulary, *self.earlier) if self.pairs.min_count > 1 else ()
        cuts = NounValues[str].open((one.read_groups() for one in capped), SelectionRow, ("noun", "last"))
        counts = NounValues[int].open(
            (one.read_groups(columns=["noun", "images"]) for one in said_in), VocabularyRow, ("noun", "images")
        )
        corrected = [one.noun for one in self.decisions.corrections.values() if one.noun]

        def of_part(part: int) -> tuple[KeepPair, KeepCorrected]:
            if not (capped or said_in):
                return keep_pair(self.pairs, images_of_noun={}, last_kept={}), keep_corrected({})
            said = pc.struct_field(pc.list_flatten(self.cells.nouns.read_table(part)["nouns"]), "text")
            images: Counter[str] = Counter()
            for noun, count in counts.of_nouns(said):
                images[noun] += count
            nouns = pa.chunked_array([*said.chunks, pa.array(corrected, pa.string())])
            last_kept = dict(cuts.of_nouns(nouns))
            keep = keep_pair(self.pairs, images_of_noun=images, last_kept=last_kept)
            return keep, keep_corrected(last_kept)

        return of_part

    def _images(self, part: int) -> Iterator[ImageToWrite]:
        cells, unseen = self.cells, self._unseen(part)
        more = [one for one in (cells.checks, cells.negatives) if one is not None]
        rows: Iterator[tuple[Any, ...]] = zip_longest(
            cells.images.read_rows(part),
            cells.read_captions(part),
            cells.nouns.read_rows(part),
            cells.proposals.read_rows(part),
            cells.pairs.read_rows(part),
            *(one.read_rows(part) for one in more),
        )
        for row in rows:
            if len({one and one.image_id for one in row}) != 1:
                refuse_mixed(cells, part)
            image, captions, nouns, regions, pairs, *others = row
            checks = others.pop(0) if cells.checks is not None else None
            rejected = first_rejection(
                nouns=nouns.rejection,
                proposals=regions.rejection,
                embeddings=unseen.get(image.image_id),
                pairs=pairs.rejection,
                checks=checks and checks.rejection,
            )
            yield ImageToWrite(
                image,
                captions.captions,
                regions,
                pairs,
                rejected,
                captions.sources,
                captions.additional,
                checks and checks.checks,
                others[0].negatives if others else (),
            )

    def _unseen(self, part: int) -> dict[str, Rejection]:
        """Why images with regions have no embeddings. Their cells are not read whole for this."""
        cells = self.cells.embeddings
        if cells is None:
            return {}
        table = cells.run.read_columns(*cells.names(part), columns=["image_id", "rejection"])
        rejected = table.filter(pc.is_valid(table["rejection"]))
        return {row["image_id"]: Rejection(**row["rejection"]) for row in rejected.to_pylist()}

    def _account(self, part: int, account: ShardAccount, seconds: float) -> dict[str, object]:
        index = self.cells.shards.run.read_bytes(*self.cells.shards.names(part))
        return {
            "fingerprint": self.cells.shards.fingerprint,
            "part": part,
            "images": account.images,
            "with_pairs": account.with_pairs,
            "pairs": account.pairs,
            "rejected": account.by_reason,
            "samples": account.samples,
            "bytes": account.size_bytes,
            "sha256": account.sha256,
            "index_sha256": hashlib.sha256(index).hexdigest(),
            "rejections": [
                {"image_id": image_id, "step": step, **asdict(rejection)}
                for image_id, step, rejection in account.rejections
            ],
            "masks_left_out": account.masks_left_out,
            "seconds": round(seconds, 3),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
