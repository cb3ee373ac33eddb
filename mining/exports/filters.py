"""Which samples of a run go into an export, and into which split: thresholds, lists of nouns, a hash of the image id.

An image lies in one split with all of its pairs, whatever the filters; a run with more images leaves the others where
they were.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from schemas.rows import SampleRow
from schemas.settings import Settings
from schemas.tables import arrow_schema

_HASHED = 2**64
_SPLIT = pa.field("split", pa.string(), nullable=False)


class Split(Settings):
    """A part of the export and its share of the images."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")]
    share: Annotated[float, Field(gt=0, le=1)]


class Selection(Settings):
    """The filters of an export. A noun of a list stands for every noun of that text or lemma.

    `held_out` nouns are in no pair of the first split, so that the others hold nouns that a model has not seen;
    `sources` are the caption sources whose pairs are taken, None for all.
    """

    min_similarity: Annotated[float, Field(ge=-1, le=1)] | None = None
    min_margin: Annotated[float, Field(ge=-2, le=2)] | None = None
    nouns: tuple[str, ...] | None = None
    without_nouns: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    sources: tuple[str, ...] | None = None
    splits: Annotated[tuple[Split, ...], Field(min_length=1)] = (Split(name="train", share=1.0),)
    seed: int = 0

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


def index_schema() -> pa.Schema:
    """The columns of a shard's index, and `split`."""
    return arrow_schema(SampleRow).append(_SPLIT)


def select_rows(index: pa.Table, selection: Selection) -> pa.Table:
    """The samples of a shard's index that are exported, in order, with a column `split`."""
    kept = index.filter(_passes(index, selection))
    image_ids = kept["image_id"].to_pylist()
    by_image = {image_id: split_of(image_id, selection) for image_id in dict.fromkeys(image_ids)}
    splits = pa.array([by_image[image_id] for image_id in image_ids], pa.string())
    kept = kept.append_column(_SPLIT, splits)
    if not selection.held_out:
        return kept
    in_first = pc.equal(kept["split"], selection.splits[0].name)
    return kept.filter(pc.invert(pc.and_(in_first, _is_one_of(kept, selection.held_out))))


def split_of(image_id: str, selection: Selection) -> str:
    """The split of an image: the first one whose share, added to those before it, reaches beyond the id's hash."""
    digest = hashlib.sha256(f"{selection.seed} {image_id}".encode("utf-8", "surrogatepass")).digest()
    place, reached = int.from_bytes(digest[:8]) / _HASHED, 0.0
    for split in selection.splits:
        reached += split.share
        if place < reached:
            return split.name
    return selection.splits[-1].name


def _passes(index: pa.Table, selection: Selection) -> pa.ChunkedArray:
    passes = pa.chunked_array([pa.array([True] * len(index), pa.bool_())])
    for name, least in (("similarity", selection.min_similarity), ("margin", selection.min_margin)):
        if least is not None:  # a pair without a score does not reach a threshold
            passes = pc.and_(passes, pc.fill_null(pc.greater_equal(index[name], least), False))
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
