"""The pairs of a run that answers from elsewhere may be about: as they were mined, and as they were shown.

A tool shows a pair as the set has it: where a reviewer has corrected it before, with the corrected noun and mask.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from maskmine.mining.evaluation.corrections import NOTHING_CORRECTED, Correction
from maskmine.mining.exports.coco import whole_mask
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.schemas.annotation_tools import PairId
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import PairsRow, RegionsRow, SampleRow
from maskmine.schemas.sample import WHOLE_VERSION, safe_id, sample_key


@dataclass(frozen=True, slots=True)
class KnownPair:
    """A pair as it was mined, the size of its image, and how it was shown; `drawn` is the digest of the mined mask's
    pixels, which is that of the mask where its run lengths are those of pycocotools."""

    pair: PairId
    drawn: str
    height_px: int
    width_px: int
    shown: Correction = NOTHING_CORRECTED


@dataclass(frozen=True, slots=True)
class KnownPairs:
    """By how answers name them, and by the keys of their samples."""

    by_pair: Mapping[PairId, KnownPair]
    by_key: Mapping[str, KnownPair]


def find_known_pairs(finished: FinishedRun, *, image_ids: Collection[str], keys: Collection[str]) -> KnownPairs:
    """The pairs of some images, and of the images that some keys of samples are of.

    Memory is bounded by what is asked for. Raises IncompleteError when cells are missing.
    """
    stems = {key.rpartition("-")[0] for key in keys}
    by_pair: dict[PairId, KnownPair] = {}
    by_key: dict[str, KnownPair] = {}
    for part in finished.parts:
        names = finished.columns(part, PairsRow, ["image_id"])["image_id"].to_pylist()
        asked = [row for row, name in enumerate(names) if name in image_ids or (stems and safe_id(name) in stems)]
        if not asked:
            continue
        corrected = dict(_corrected(finished, part))
        for key, known in _pairs_of(finished, part, asked, corrected):
            by_key[key] = known
            image_id, noun, digest = known.pair
            for named in ((image_id, noun, digest), (image_id, noun, known.drawn)):
                by_pair.setdefault(named, known)
            if key in corrected:
                mask = known.shown.mask
                by_pair[image_id, known.shown.noun or noun, known.drawn if mask is None else mask.digest] = known
    return KnownPairs(by_pair, by_key)


def _pairs_of(
    finished: FinishedRun, part: int, asked: Collection[int], corrected: Mapping[str, Correction]
) -> Iterator[tuple[str, KnownPair]]:
    """The pairs of some images of a part with the keys of their samples."""
    rows = finished.columns(part, PairsRow, ["image_id", "pairs"])
    regions = finished.columns(part, RegionsRow, ["height_px", "width_px", "regions.list.element.mask"])
    for row in asked:
        image_id = rows["image_id"][row].as_py()
        height_px, width_px = (regions[name][row].as_py() for name in ("height_px", "width_px"))
        for number, values in enumerate(rows["pairs"][row].as_py()):
            mask = Mask(**regions["regions"][row][values["region"]].as_py()["mask"])
            pair = (image_id, values["noun"], mask.digest)
            key = sample_key(image_id, number)
            shown = corrected.get(key, NOTHING_CORRECTED)
            shown = Correction(None if shown.noun == pair[1] else shown.noun, shown.mask)
            yield key, KnownPair(pair, Mask.from_array(mask.to_array()).digest, height_px, width_px, shown)


def _corrected(finished: FinishedRun, part: int) -> Iterator[tuple[str, Correction]]:
    """The samples of a part's shard that reviewers corrected, by their keys, with noun and mask as they are there."""
    if finished.manifest.format_version < WHOLE_VERSION:
        return
    for row in finished.rows(part, SampleRow):
        if row.corrected:
            mask = whole_mask(finished.sample(row)) if "mask" in row.corrected else None
            yield row.key, Correction(row.noun if "noun" in row.corrected else None, mask)
