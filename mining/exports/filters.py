"""Which samples of a run go into an export, and into which split: thresholds, lists of nouns, a hash of the image id.

All pairs of an image are in one split, whatever the filters. More images in a run do not move the others.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from maskmine.schemas.columns import arrow_schema
from maskmine.schemas.sample import index_type
from maskmine.schemas.settings import AddedLater, Settings

SCORES = ("similarity", "margin", "lift", "evidence", "confidence", "presence", "agreement")
"""The columns of the index that have a threshold."""

_HASHED = 2**64  # values of the 8 bytes that a split is chosen by
_SPLIT = pa.field("split", pa.string(), nullable=False)  # the column that an export adds to the index


class Split(Settings):
    """One split of an export."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")]
    """Name of the split, such as `train`."""
    share: Annotated[float, Field(gt=0, le=1)]
    """Share of the images, 0–1; the shares of all splits add up to 1."""


class Selection(Settings):
    """The filters of an export. A listed noun stands for every noun of that text or lemma."""

    min_similarity: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Lowest cosine similarity of a pair that is exported; null exports all."""
    min_margin: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Lowest margin of a pair that is exported; null exports all."""
    min_lift: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Lowest lift of a pair that is exported; null exports all."""
    min_evidence: float | None = None
    """Lowest evidence of a pair that is exported; null exports all."""
    min_confidence: Annotated[float, Field(ge=0, le=1)] | None = None
    """Lowest confidence of a pair that is exported, 0–1; null exports all."""
    min_presence: Annotated[float | None, AddedLater(), Field(ge=0, le=1)] = None
    """Lowest presence of a pair that is exported, 0–1, by the run's verifier; null exports all."""
    min_agreement: Annotated[float | None, AddedLater(), Field(ge=0, le=1)] = None
    """Lowest agreement of a pair that is exported, 0–1, by the run's verifier; null exports all."""
    nouns: tuple[str, ...] | None = None
    """Only pairs of these nouns; null exports all."""
    without_nouns: tuple[str, ...] = ()
    """No pairs of these nouns."""
    held_out: tuple[str, ...] = ()
    """Nouns that are in no pair of the first split, so that the other splits hold nouns unseen in training."""
    sources: tuple[str, ...] | None = None
    """Caption sources whose pairs are exported; null exports all."""
    splits: Annotated[tuple[Split, ...], Field(min_length=1)] = (Split(name="train", share=1.0),)
    """The splits and their shares of the images."""
    seed: int = 0
    """Seed of the assignment of images to splits."""

    @property
    def thresholds(self) -> dict[str, float]:
        """The least value of each score that has one."""
        least = {score: getattr(self, f"min_{score}") for score in SCORES}
        return {score: value for score, value in least.items() if value is not None}

    @model_validator(mode="after")
    def _splits_are_whole(self) -> Selection:
        names = [split.name for split in self.splits]
        if len(set(names)) < len(names):
            raise ValueError(f"two splits are named alike ({', '.join(names)}); give each its own name")
        total = sum(split.share for split in self.splits)
        if abs(total - 1) > 1e-9:
            raise ValueError(f"the shares of the splits add up to {total:g}; they must add up to 1")
        if self.held_out and len(names) == 1:
            raise ValueError("held-out nouns need a second split to lie in; to drop nouns, exclude them")
        return self


def index_schema(version: int) -> pa.Schema:
    """The columns of the index of a set of a format version, and `split`."""
    return arrow_schema(index_type(version)).append(_SPLIT)


def columns_that_decide(selection: Selection) -> tuple[str, ...]:
    """The columns of the index that say whether a sample is exported, and into which split."""
    listed = selection.nouns is not None or selection.without_nouns or selection.held_out
    return (
        "image_id",
        *(("noun", "lemma") if listed else ()),
        *(("source",) if selection.sources is not None else ()),
        *((*selection.thresholds, "corrected") if selection.thresholds else ()),
    )


def select_rows(index: pa.Table, selection: Selection) -> pa.Table:
    """The samples of a shard's index that are exported, in order, with a column `split`.

    The index has all columns, or those `columns_that_decide` at least.
    """
    rows = index.filter(_passes(index, selection))
    image_ids = rows["image_id"].to_pylist()
    by_image = {image_id: split_of(image_id, selection) for image_id in dict.fromkeys(image_ids)}
    splits = pa.array([by_image[image_id] for image_id in image_ids], pa.string())
    rows = rows.append_column(_SPLIT, splits)
    if not selection.held_out:
        return rows
    in_first = pc.equal(rows["split"], selection.splits[0].name)
    return rows.filter(pc.invert(pc.and_(in_first, _is_one_of(rows, selection.held_out))))


def split_of(image_id: str, selection: Selection) -> str:
    """The split of an image: the first one whose share, added to those before it, reaches beyond the id's hash."""
    digest = hashlib.sha256(f"{selection.seed} {image_id}".encode("utf-8", "surrogatepass")).digest()
    position, upper = int.from_bytes(digest[:8]) / _HASHED, 0.0
    for split in selection.splits:
        upper += split.share
        if position < upper:
            return split.name
    return selection.splits[-1].name


def _passes(index: pa.Table, selection: Selection) -> pa.ChunkedArray:
    passes = pa.chunked_array([pa.array([True] * len(index), pa.bool_())])
    for name, least in selection.thresholds.items():  # a pair without a score does not reach a threshold
        score = index[name] if name in index.column_names else pa.nulls(len(index), pa.float64())
        passes = pc.and_(passes, pc.fill_null(pc.greater_equal(score, least), False))
    if "corrected" in index.column_names:  # a person has seen them, and what they replaced has no score
        is_corrected = pc.fill_null(pc.greater(pc.list_value_length(index["corrected"]), 0), False)
        passes = pc.or_(passes, is_corrected)
    if selection.nouns is not None:
        passes = pc.and_(passes, _is_one_of(index, selection.nouns))
    if selection.without_nouns:
        passes = pc.and_(passes, pc.invert(_is_one_of(index, selection.without_nouns)))
    if selection.sources is not None:
        passes = pc.and_(passes, pc.is_in(index["source"], pa.array(selection.sources, pa.string())))
    return passes


def _is_one_of(index: pa.Table, nouns: tuple[str, ...]) -> pa.ChunkedArray:
    listed = pa.array(nouns, pa.string())
    return pc.or_(pc.is_in(index["noun"], listed), pc.is_in(index["lemma"], listed))
