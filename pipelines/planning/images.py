"""From entries to images, a table at a time: the entries of an image lie together, and become one row.

E entries, I images; `row_I` is the entry that an image has something from, -1 where it has that from none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maskmine.schemas.columns import arrow_schema
from maskmine.schemas.rows import CaptionsRow, ImageRow

Listed = list[tuple[int, str]]
"""`(source, path)` for each entry that says where an image is."""

PLANNED_IMAGES = pa.schema(
    [
        arrow_schema(ImageRow).field("image_id"),
        arrow_schema(ImageRow).field("path"),
        *[arrow_schema(CaptionsRow).field(name) for name in ("captions", "sources", "additional")],
        pa.field("listed_by", pa.int64()),
        pa.field("given", pa.int64()),
        pa.field("first", pa.int64()),
    ]
)
"""`listed_by`: the source of the path. `given`: the first part that a source gave, with the source's number in the
upper bits; `first`: the position of the first entry there."""

_TEXT = r"[\pL\pN]"  # a letter or a digit, in the syntax of RE2
_PART_BITS = 32  # a source has fewer parts than this many bits count


def images_of(
    entries: pa.Table,
    *,
    names: Sequence[str],
    max_captions: Sequence[int | None],
    choose_path: Callable[[str, Listed], int],
) -> pa.Table:
    """A row for each image of sorted entries, in their order.

    `names` are those of the sources, `max_captions` how many captions each may give to an image. `choose_path` chooses
    among several paths of an image.
    """
    column = {name: entries[name].combine_chunks() for name in entries.column_names}
    ids = column["image_id"]
    starts_I = np.flatnonzero(_begins(ids))
    image_E = np.repeat(np.arange(len(starts_I)), np.diff(starts_I, append=len(ids)))
    source_E = column["source"].to_numpy()
    kept_C = _kept_captions(column["caption"], source_E, image_E, max_captions)
    offsets = pa.array(np.append(0, np.cumsum(np.bincount(image_E[kept_C], minlength=len(starts_I)))), pa.int32())
    texts = [column[name].take(pa.array(kept_C)) for name in ("caption", "source", "additional")]
    texts[1] = pa.array(names, pa.string()).take(texts[1])
    lists = [
        pa.ListArray.from_arrays(offsets, values, type=PLANNED_IMAGES.field(name).type)
        for name, values in zip(("captions", "sources", "additional"), texts, strict=True)
    ]
    path_I = _path_rows(column["path"], ids, source_E, image_E, choose_path)
    part_I = _first_rows(column["part"], image_E)
    part, source, position = (_taken(column[name], part_I) for name in ("part", "source", "position"))
    given = pc.add(pc.shift_left(source, _PART_BITS), part)
    return pa.table(
        [
            ids.take(pa.array(starts_I)),
            _taken(column["path"], path_I),
            *lists,
            _taken(column["source"], path_I),
            given,
            position.fill_null(0),
        ],
        schema=PLANNED_IMAGES,
    )


def _begins(values: pa.Array) -> np.ndarray:
    """Where a value differs from the one before it."""
    differs = pc.not_equal(values[1:], values[:-1])
    return np.append(True, differs.to_numpy(zero_copy_only=False))


def _valid_rows(values: pa.Array) -> np.ndarray:
    return np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False))


def _first_rows(values: pa.Array, image_E: np.ndarray) -> np.ndarray:
    """The first entry of each image that has a value."""
    rows = _valid_rows(values)
    row_I = np.full(image_E[-1] + 1, -1)
    row_I[image_E[rows[::-1]]] = rows[::-1]  # of several the last to be set stays, which is the first entry
    return row_I


def _taken(values: pa.Array, row_I: np.ndarray) -> pa.Array:
    return values.take(pa.array(row_I, mask=row_I < 0))


def _kept_captions(
    captions: pa.Array, source_E: np.ndarray, image_E: np.ndarray, max_captions: Sequence[int | None]
) -> np.ndarray:
    """The entries whose captions are read: the first with text of each image and source, as many as it may give.

    Where there are not as many with text, the first of those without fill up, so that their image keeps its reason.
    """
    rows_C = _valid_rows(captions)
    group_C = image_E[rows_C] * len(max_captions) + source_E[rows_C]
    has_text_C = pc.match_substring_regex(captions.take(pa.array(rows_C)), _TEXT).to_numpy(zero_copy_only=False)
    by_text_C = np.lexsort((~has_text_C, group_C))  # within each group those with text first, else as they were
    starts = np.flatnonzero(np.append(True, group_C[1:] != group_C[:-1]))[: len(rows_C)]
    rank_C = np.empty(len(rows_C), np.int64)
    rank_C[by_text_C] = np.arange(len(rows_C)) - np.repeat(starts, np.diff(starts, append=len(rows_C)))
    max_S = np.array([np.iinfo(np.int64).max if limit is None else limit for limit in max_captions])
    kept_C: np.ndarray = rows_C[rank_C < max_S[source_E[rows_C]]]
    return kept_C


def _path_rows(
    paths: pa.Array,
    ids: pa.Array,
    source_E: np.ndarray,
    image_E: np.ndarray,
    choose_path: Callable[[str, Listed], int],
) -> np.ndarray:
    """The entry with the path of each image; of several `choose_path` chooses."""
    row_I = _first_rows(paths, image_E)
    rows = _valid_rows(paths)
    image_P = image_E[rows]
    is_other_P = (image_P[1:] == image_P[:-1]) & _begins(paths.take(pa.array(rows)))[1:]
    for image in np.unique(image_P[1:][is_other_P]).tolist():
        start, end = np.searchsorted(image_P, [image, image + 1])
        its = rows[start:end]
        listed = list(zip(source_E[its].tolist(), paths.take(pa.array(its)).to_pylist(), strict=True))
        row_I[image] = its[choose_path(ids[int(its[0])].as_py(), listed)]
    return row_I
