"""A run of a large made-up vocabulary up to the step `nouns`, with something appended: no model, no picture.

Of the nouns three in ten are said by two images, the others by one; those of the sample, which levels are measured on,
are said as in captions: a few often. An earlier run has the text embeddings of all, so that none has to be made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from maskmine.mining.models.clip import RegionClip
from maskmine.mining.negatives import Negatives
from maskmine.mining.pairs import ClipPairs
from maskmine.mining.proposers.ground_truth import GroundTruth
from maskmine.mining.regions import Regions
from maskmine.mining.shards import Shards
from maskmine.mining.vocabulary import Vocabulary
from maskmine.pipelines.run_folder.cells import Cells
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.run_folder.reused_regions import ReusedRun
from maskmine.pipelines.steps.appended_levels import AppendedLevelsJob
from maskmine.pipelines.steps.cells_of_run import RunCells, cells_of_version, run_cells
from maskmine.pipelines.steps.jobs import Job, LevelsJob, PairsJob, VocabularyJob
from maskmine.pipelines.steps.negatives_job import NegativesJob
from maskmine.pipelines.steps.shards_job import ShardsJob
from maskmine.schemas.columns import arrow_schema
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import (
    CaptionsRow,
    EmbeddingsRow,
    ImageRow,
    Noun,
    NounsRow,
    Proposal,
    ProposalsRow,
    VocabularyRow,
)
from maskmine.schemas.sample import FORMAT_VERSION

TEXT = "a text side"
"""What stands for the CLIP and the templates of all text embeddings."""
_PRINTS = {step: step[0] * 64 for step in ("nouns", "vocabulary", "proposals", "embeddings", "levels", "pairs")}
_PRINTS |= {"negatives": "g" * 64, "shards": "s" * 64}
_TEXT_KEY = "maskmine.text"  # as `VocabularyJob` has it
_SAMPLE_PART, _USUAL_PART, _FIRST_BULK = 0, 1, 2
_SAMPLE_IMAGES, _USUAL_IMAGES, _PER_IMAGE, _REGIONS = 100, 1_000, 10, 3
_BULK_NOUNS = 250_000  # of a cell
_AT_ONCE = 4096
_APPENDED = "versions/002"


@dataclass(frozen=True)
class ManyNouns:
    """Such a run of `nouns` nouns, whose embeddings are `dim` wide. A tenth as many are appended, half of them new."""

    folder: Path
    nouns: int
    dim: int

    @property
    def cells(self) -> RunCells:
        """The cells of the base."""
        return run_cells(RunFolder(str(self.folder / "run")), _PRINTS, version=FORMAT_VERSION)

    @property
    def appended(self) -> RunCells:
        """The cells of what is appended."""
        return replace(cells_of_version(self.cells, _APPENDED), negatives=None)

    @property
    def parts(self) -> int:
        """The number of parts of the base; the first one that is appended has this number."""
        return _FIRST_BULK + -(-self.nouns // _BULK_NOUNS)

    def job(self, step: str) -> tuple[Job, int]:
        """The job of a step, and the part to make: a usual one, whose nouns are from all over the vocabulary."""
        cells, appended, regions = self.cells, self.appended, _regions()
        clip, pairs = regions.clip, ClipPairs(min_count=2)
        jobs: dict[str, tuple[Job, int]] = {
            "vocabulary": (
                VocabularyJob(cells, Vocabulary(), regions, clip, self.parts, TEXT, _reused(self.earlier)),
                0,
            ),
            "levels": (LevelsJob(cells, 1), 0),
            "pairs": (PairsJob(cells, pairs, 1), _USUAL_PART),
            "negatives": (
                NegativesJob(cells, self._negatives, Negatives(min_images=2, min_separability=0.4)),
                _USUAL_PART,
            ),
            "shards": (ShardsJob(cells, Shards(), pairs, regions, FORMAT_VERSION), _USUAL_PART),
            "vocabulary, appended": (
                VocabularyJob(
                    appended,
                    Vocabulary(),
                    regions,
                    clip,
                    2,
                    TEXT,
                    _reused(self.earlier),
                    first=self.parts,
                    earlier=(cells.vocabulary,),
                ),
                0,
            ),
            "levels, appended": (AppendedLevelsJob(appended, cells, 1), 0),
            "pairs, appended": (PairsJob(appended, pairs, 0, cells), self.parts),
            "shards, appended": (
                ShardsJob(appended, Shards(), pairs, regions, FORMAT_VERSION, earlier=(cells.vocabulary,)),
                self.parts,
            ),
        }
        return jobs[step]

    @property
    def _negatives(self) -> Cells[Any]:
        negatives = self.cells.negatives
        assert negatives is not None
        return negatives

    @property
    def earlier(self) -> RunFolder:
        """The run whose text embeddings are used again."""
        return RunFolder(str(self.folder / "earlier"))

    def write(self) -> None:
        """Write what the steps read."""
        rng, cells = np.random.default_rng(0), self.cells
        own, new = self.nouns, self.nouns // 20
        self._write_embeddings(own, new)
        chosen = np.minimum(own - 1, (rng.pareto(0.7, (_SAMPLE_IMAGES, 4)) * 3).astype(np.int64))
        self._write_part(_SAMPLE_PART, [[_name(n) for n in sorted(set(row))] for row in chosen.tolist()])
        every = max(1, own // (_USUAL_IMAGES * _PER_IMAGE))
        self._write_part(_USUAL_PART, _images([_name(n) for n in range(0, own, every)]))
        for part in range(_FIRST_BULK, self.parts):
            start = (part - _FIRST_BULK) * _BULK_NOUNS
            numbers = [n for n in range(start, min(own, start + _BULK_NOUNS)) if n % every]
            again = [n for n in numbers if n % 10 < 3]
            cells.nouns.write_pieces(part, _mentions([_name(n) for n in (*numbers, *again)]))
        appended = [_name(n) for n in range(0, own, 20)] + [_name(n, new=True) for n in range(new)]
        usual = appended[:: max(1, len(appended) // (_USUAL_IMAGES * _PER_IMAGE))]
        self._write_part(self.parts, _images(usual))
        cells.nouns.write_pieces(self.parts + 1, _mentions(appended))

    def _write_embeddings(self, own: int, new: int) -> None:
        stored = run_cells(self.earlier, _PRINTS).vocabulary
        names = [(start, count, False) for start, count in _blocks(own)]
        names += [(start, count, True) for start, count in _blocks(new)]
        tables = (_vocabulary(start, count, new=is_new, dim=self.dim) for start, count, is_new in names)
        stored.run.write_pieces(
            *stored.names(),
            pieces=tables,
            row_type=VocabularyRow,
            fingerprint=stored.fingerprint,
            metadata={_TEXT_KEY: TEXT},
        )

    def _write_part(self, part: int, nouns: Sequence[Sequence[str]]) -> None:
        """The cells of a part, with an image for each list of nouns; the file of none of them is there."""
        cells, rng = self.cells, np.random.default_rng(part)
        ids = [f"{part}-{number}" for number in range(len(nouns))]
        region = Proposal(mask=Mask(1, 1, b""), box_xyxy=(0, 0, 1, 1), area_px=1, score=1.0, label=None)
        found = (region,) * _REGIONS
        cells.images.write(part, [ImageRow(name, None) for name in ids])
        cells.captions.write(part, [CaptionsRow(name, ("…",), ("made up",), ("{}",)) for name in ids])
        cells.nouns.write(part, (NounsRow(i, _all(said), (), None) for i, said in zip(ids, nouns, strict=True)))
        cells.proposals.write(part, (_proposals(name, found) for name in ids))
        assert cells.embeddings is not None
        vectors = (rng.normal(size=(_REGIONS, self.dim)).astype("<f2") for _ in ids)
        rows = (EmbeddingsRow(i, tuple(v_D.tobytes() for v_D in v)) for i, v in zip(ids, vectors, strict=True))
        cells.embeddings.write(part, rows)


def _regions() -> Regions:
    """Settings of models that are never loaded."""
    clip = RegionClip(model="ViT-L-14", pretrained="openai")
    return Regions(proposals=GroundTruth(kind="ground_truth", annotations="instances.json"), clip=clip, device="cpu")


def _reused(run: RunFolder) -> ReusedRun:
    return ReusedRun(run, run_cells(run, _PRINTS).proposals, None, 0, 0)


def _name(number: int, *, new: bool = False) -> str:
    return f"{'x' if new else 'n'}{number:08d}"


def _all(nouns: Sequence[str]) -> tuple[Noun, ...]:
    return tuple(Noun(text=noun, lemma=noun, caption=0, start=0, end=1) for noun in nouns)


def _proposals(image_id: str, found: tuple[Proposal, ...]) -> ProposalsRow:
    return ProposalsRow(image_id=image_id, sha256="0" * 64, height_px=1, width_px=1, regions=found, rejection=None)


def _images(nouns: Sequence[str]) -> list[Sequence[str]]:
    """The nouns of images, the same nouns' neighbours in other images."""
    return [nouns[start::_USUAL_IMAGES] for start in range(min(_USUAL_IMAGES, len(nouns)))]


def _blocks(count: int) -> Iterator[tuple[int, int]]:
    return ((start, min(_AT_ONCE, count - start)) for start in range(0, count, _AT_ONCE))


def _vocabulary(start: int, count: int, *, new: bool, dim: int) -> pa.Table:
    """Random embeddings of some nouns."""
    vectors = np.random.default_rng((start, new)).normal(size=(count, dim)).astype("<f2")
    offsets = np.arange(0, 2 * dim * (count + 1), 2 * dim, dtype=np.int32)
    embeddings = pa.Array.from_buffers(
        pa.binary(), count, [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(vectors.tobytes())]
    )
    nouns = pa.array([_name(start + i, new=new) for i in range(count)])
    ones = pa.array(np.ones(count, np.int64))
    return pa.Table.from_arrays([nouns, ones, ones, embeddings, nouns], schema=arrow_schema(VocabularyRow))


def _mentions(nouns: Sequence[str]) -> Iterator[pa.Table]:
    """Cells of nouns by Arrow: images of ten nouns each, the last one of fewer."""
    schema = arrow_schema(NounsRow)
    fields = schema.field("nouns").type.value_type
    for start in range(0, len(nouns), _AT_ONCE * _PER_IMAGE):
        some = nouns[start : start + _AT_ONCE * _PER_IMAGE]
        images, texts = -(-len(some) // _PER_IMAGE), pa.array(some)
        zeros = pa.array(np.zeros(len(some), np.int64))
        structs = pa.StructArray.from_arrays([texts, texts, zeros, zeros, zeros], fields=list(fields))
        ends = np.minimum(np.arange(images + 1) * _PER_IMAGE, len(some)).astype(np.int32)
        lists = pa.ListArray.from_arrays(pa.array(ends), structs, type=schema.field("nouns").type)
        none = np.zeros(images + 1, np.int32)
        skipped = pa.ListArray.from_arrays(pa.array(none), pa.array([], pa.string()), type=schema.field("skipped").type)
        ids = pa.array([f"{some[0]}-{number}" for number in range(images)])
        empty = pa.array([""] * images)
        mask = pa.array(np.ones(images, bool))
        nulls = pa.StructArray.from_arrays([empty, empty], fields=list(schema.field("rejection").type), mask=mask)
        yield pa.Table.from_arrays([ids, lists, skipped, nulls], schema=schema)
