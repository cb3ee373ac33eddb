"""What is planned as JSON texts, for its SHA-256: those of `canonical_json`, made of whole columns at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from json.encoder import encode_basestring

import pyarrow as pa
import pyarrow.compute as pc

from mining.places import moved_place

_NO_FILE_OF_ITS_OWN = "^(bytes|cell|fault):"
_ESCAPED = r'["\\\x00-\x1f]'
_AT_ONCE_ROWS = 5_000


def image_lines(images: pa.Table, *, roots: Sequence[str]) -> Iterator[pa.Buffer]:
    """A line `[id, place as told from the root of its source]` for each image."""
    for some in images.to_batches(_AT_ONCE_ROWS):
        places = _quoted(_moved(some["path"], some["listed_by"], roots)).fill_null("null")
        yield _joined(pc.binary_join_element_wise("[", _quoted(some["image_id"]), ",", places, "]\n", ""), "")


def rows_json(rows: pa.Table) -> Iterator[pa.Buffer | bytes]:
    """`[[id, [text, …]], …]` of a column of ids and one of lists of texts; without ids `[[text, …], …]`."""
    yield b"["
    for number, some in enumerate(rows.to_batches(_AT_ONCE_ROWS)):
        yield b"," if number else b""
        *ids, lists = some.columns
        texts = _listed(lists)
        if ids:
            texts = pc.binary_join_element_wise("[", _quoted(ids[0]), ",", texts, "]", "")
        yield _joined(texts, ",")
    yield b"]"


def _joined(texts: pa.Array, between: str) -> pa.Buffer:
    whole = pa.ListArray.from_arrays(pa.array([0, len(texts)], pa.int32()), texts)
    return pc.binary_join(whole, between)[0].as_buffer()


def _listed(lists: pa.ListArray) -> pa.Array:
    """Lists of texts, as JSON."""
    lengths = pc.list_value_length(lists).cast(pa.int32())
    ends = pc.cumulative_sum(lengths)
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), ends])
    quoted = pa.ListArray.from_arrays(offsets, _quoted(lists.flatten()))
    return pc.binary_join_element_wise("[", pc.binary_join(quoted, ","), "]", "")


def _quoted(texts: pa.Array) -> pa.Array:
    """Texts as JSON; null stays null."""
    if pc.any(pc.match_substring_regex(texts, _ESCAPED)).as_py():
        values = [None if text is None else encode_basestring(text) for text in texts.to_pylist()]
        return pa.array(values, pa.string())
    return pc.binary_join_element_wise('"', texts, '"', "")


def _moved(places: pa.Array, listed_by: pa.Array, roots: Sequence[str]) -> pa.Array:
    """`moved_place` of each."""
    if pc.any(pc.match_substring_regex(places, _NO_FILE_OF_ITS_OWN)).as_py():
        pairs = zip(places.to_pylist(), listed_by.to_pylist(), strict=True)
        return pa.array([None if one is None else moved_place(one, roots[by]) for one, by in pairs], pa.string())
    for source, root in enumerate(roots):
        is_below = pc.and_(pc.equal(listed_by, source), pc.starts_with(places, root))
        places = pc.if_else(is_below, pc.utf8_slice_codeunits(places, len(root)), places)
    return pc.utf8_ltrim(places, "/")
