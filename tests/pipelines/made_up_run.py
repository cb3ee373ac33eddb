"""A finished run of made-up pairs whose evidence is the log odds that they are right, for tests of audits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskmine.mining.evaluation.verdicts import PairId, write_verdicts
from maskmine.pipelines.audit.judge import name_of
from maskmine.pipelines.audit.sample import draw_pairs
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.planning.plan import Plan
from maskmine.pipelines.run_folder.folder import FINGERPRINT_FILE, RunFolder, read_folder
from maskmine.schemas.manifest import Manifest, ModelRecord, SourceEntry, Totals
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import (
    CaptionsRow,
    ImageRow,
    NounsRow,
    Pair,
    PairsRow,
    ProposalsRow,
    Region,
    RegionsRow,
    Rejection,
    SampleRow,
    Verdict,
    VerdictRow,
    VocabularyRow,
)
from maskmine.schemas.sample import cell_name, sample_key

PARTS, PER_PART, PER_IMAGE = 3, 60, 5
NOUNS = [f"noun {number}" for number in range(40)]
FINGERPRINT = "f" * 64
SETTINGS = {
    "regions": {"clip": {"model": "tiny"}, "crop": {"fill": "mean", "expand_ratio": 1.0}},
    "vocabulary": {"templates": "vild"},
    "pairs": {"rule": "best_region_per_noun", "score": "cosine", "proposal_weight": 0.0},
}
MODELS = tuple(ModelRecord(role=role, name=role, sha256=role * 4, licence="MIT") for role in ("proposals", "clip"))
REGIONS = tuple(
    Region(
        mask=(mask := Mask.from_array(np.pad(np.ones((4, 4), np.uint8), ((0, 4), (column, 4 - column))))),
        box_xyxy=mask.box_xyxy,
        area_px=mask.area_px,
        score=0.5 + column / 10,
        label=None,
        embedding=None,
    )
    for column in range(5)
)


@dataclass(frozen=True)
class Audited:
    """A finished run of 900 made-up pairs, and which of them are right; not all are written."""

    folder: Path
    right: dict[PairId, bool]
    written: frozenset[PairId]

    def open(self) -> FinishedRun:
        return FinishedRun.open_complete(read_folder(str(self.folder)))

    @property
    def precision(self) -> float:
        return sum(self.right.values()) / len(self.right)

    def verdicts(self, to: Path, *, size: int = 300, **changes: Any) -> Path:
        """The truth on a sample, as a review would write it."""
        rows = [verdict(name, self.right[name], **changes) for name in sampled(self, size)]
        return write_rows(to, rows)


def sampled(run: Audited, size: int) -> list[PairId]:
    return [name_of(pair) for pair in draw_pairs(run.open(), size=size, seed=0)]


def verdict(name: PairId, right: bool, **changes: Any) -> VerdictRow:
    word: Verdict = "right" if right else "wrong_noun"
    values = {"verdict": word, "reviewer": "ann", "at": "2026-01-31T12:00:00.000000+00:00"}
    return VerdictRow(image_id=name[0], noun=name[1], mask=name[2], **(values | changes))


def write_rows(to: Path, rows: list[VerdictRow]) -> Path:
    with to.open("wb") as file:
        write_verdicts(file, rows)
    return to


def write_run(folder: Path) -> Audited:
    """Write the run; the same every time."""
    rng, right, said, written = np.random.default_rng(0), dict[PairId, bool](), Counter[str](), set[PairId]()
    store = RunFolder(str(folder))
    for part in range(PARTS):
        rows = [list(made_up_pairs(rng)) for _ in range(PER_PART)]
        ids = [f"{part * PER_PART + number}" for number in range(PER_PART)]
        for image_id, pairs in zip(ids, rows, strict=True):
            said.update(pair.noun for pair, _ in pairs)
            names = [(image_id, pair.noun, REGIONS[pair.region].mask.digest) for pair, _ in pairs]
            right |= {name: is_right for name, (_, is_right) in zip(names, pairs, strict=True)}
            written |= {
                name for n, (name, (pair, _)) in enumerate(zip(names, pairs, strict=True)) if is_written(n, pair)
            }
        write_part(store, part, dict(zip(ids, [[pair for pair, _ in pairs] for pairs in rows], strict=True)))
    vocabulary = [VocabularyRow(noun, said[noun], said[noun], None) for noun in NOUNS]
    store.write_rows("vocabulary.parquet", rows=vocabulary, row_type=VocabularyRow, fingerprint="")
    images = PARTS * PER_PART
    store.write_json("plan.json", value=asdict(Plan(images, PARTS, "", "", {}, {})))
    store.write_json("shards", FINGERPRINT_FILE, value={"fingerprint": FINGERPRINT})
    store.write_json("manifest.json", value=manifest().model_dump(mode="json"))
    return Audited(folder, right, frozenset(written))


def made_up_pairs(rng: np.random.Generator) -> Iterator[tuple[Pair, bool]]:
    """Pairs of an image whose evidence is the log odds that they are right."""
    for noun in rng.choice(NOUNS, PER_IMAGE, replace=False, p=np.arange(1, 41) / 820):
        evidence = round(float(rng.normal(1, 3)), 6)
        pair = Pair(
            noun=str(noun),
            lemma=str(noun),
            caption=0,
            start=0,
            end=1,
            region=int(rng.integers(len(REGIONS))),
            similarity=round(0.3 + evidence / 100, 6),
            margin=0.0,
            rank=0,
            lift=round(evidence / 50 + float(rng.normal(0, 0.05)), 6),
            lead=round(float(rng.normal()), 6),
            gap=0.0,
            agreement=round(float(rng.normal()), 6),
            separability=0.8,
            evidence=evidence,
        )
        yield pair, bool(rng.random() < 1 / (1 + np.exp(-evidence)))


def write_part(store: RunFolder, part: int, pairs: dict[str, list[Pair]]) -> None:
    cells: dict[str, tuple[type, list[Any]]] = {
        "images": (ImageRow, [ImageRow(image_id, f"/{image_id}.jpg") for image_id in pairs]),
        "captions": (CaptionsRow, [CaptionsRow(image_id, ("A caption.",)) for image_id in pairs]),
        "nouns": (NounsRow, [NounsRow(image_id, (), (), None) for image_id in pairs]),
        "proposals": (ProposalsRow, [regions_row(image_id) for image_id in pairs]),
        "pairs": (PairsRow, [PairsRow(image_id, tuple(found), None) for image_id, found in pairs.items()]),
        "shards": (
            SampleRow,
            [sample_row(i, n, p) for i, found in pairs.items() for n, p in enumerate(found) if is_written(n, p)],
        ),
    }
    for step, (row_type, rows) in cells.items():
        store.write_rows(step, cell_name(part), rows=rows, row_type=row_type, fingerprint=FINGERPRINT)


@dataclass(frozen=True)
class OldPair:
    """A pair as format version 2 had it."""

    noun: str
    lemma: str
    caption: int
    start: int
    end: int
    region: int
    similarity: float | None
    margin: float | None
    rank: int


@dataclass(frozen=True)
class OldPairsRow:
    image_id: str
    pairs: tuple[OldPair, ...]
    rejection: Rejection | None


def regions_row(image_id: str) -> RegionsRow:
    return RegionsRow(image_id=image_id, sha256="", height_px=8, width_px=8, regions=REGIONS, rejection=None)


def is_written(number: int, pair: Pair) -> bool:
    """What a filter on evidence would write, and some more."""
    return pair.evidence is not None and (number == 0 or pair.evidence > 0)


def sample_row(image_id: str, number: int, pair: Pair) -> SampleRow:
    copied = {name: getattr(pair, name) for name in ("noun", "lemma", "start", "end", "similarity", "margin", "rank")}
    return SampleRow(
        key=sample_key(image_id, number),
        image_id=image_id,
        caption="",
        box_xyxy=(0, 0, 1, 1),
        crop_xyxy=(0, 0, 1, 1),
        area_px=1,
        score=0.5,
        label=None,
        shard="",
        offset=0,
        size_bytes=0,
        **copied,
    )


def manifest(**changes: Any) -> Manifest:
    totals = Totals(images=180, with_pairs=180, rejected={}, samples=600, nouns=40, size_bytes=0)
    values: dict[str, Any] = {
        "format_version": 3,
        "fingerprint": FINGERPRINT,
        "plan_sha256": "",
        "settings": SETTINGS,
        "models": MODELS,
        "libraries": {"maskmine": "0"},
        "shards": (),
        "totals": totals,
        "sources": (SourceEntry(role="captions", name="made up", licence="unknown"),),
    }
    return Manifest(**(values | changes))
