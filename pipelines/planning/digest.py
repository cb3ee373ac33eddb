"""The plan as JSON, for its SHA-256: the text that `canonical_json` gives, made from whole columns at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from json.encoder import encode_basestring

import pyarrow as pa
import pyarrow.compute as pc

from maskmine.mining.storage.locations import relative_location

_NO_FILE_OF_ITS_OWN = "^(bytes|cell|fault|escaped):"
_ESCAPED = r'["\\\x00-\x1f]'
_AT_ONCE_ROWS = 5_000  # some megabytes of text


def image_lines(images: pa.Table, *, roots: Sequence[Sequence[str]]) -> Iterator[pa.Buffer]:
    """A line `[id, path from the root of its source]` for each image; of a source with several roots, of the one that
    it lies below."""
    for batch in images.to_batches(_AT_ONCE_ROWS):
        paths = _quoted(_moved(batch["path"], batch["listed_by"], roots)).fill_null("null")
        yield _joined(pc.binary_join_element_wise("[", _quoted(batch["image_id"]), ",", paths, "]\n", ""), "")


def rows_json(rows: pa.Table) -> Iterator[pa.Buffer | bytes]:
    """`[[id, [text, …]], …]` of a column of ids and one of lists of texts; without ids `[[text, …], …]`."""
    yield b"["
    for number, batch in enumerate(rows.to_batches(_AT_ONCE_ROWS)):
        yield b"," if number else b""
        *ids, lists = batch.columns
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


def _moved(paths: pa.Array, listed_by: pa.Array, roots: Sequence[Sequence[str]]) -> pa.Array:
    """`relative_location` of each."""
    if pc.any(pc.match_substring_regex(paths, _NO_FILE_OF_ITS_OWN)).as_py() or any(len(of) > 1 for of in roots):
        pairs = zip(paths.to_pylist(), listed_by.to_pylist(), strict=True)
        return pa.array(
            [None if path is None else relative_location(path, *roots[by]) for path, by in pairs], pa.string()
        )
    for source, (root,) in enumerate(roots):
        is_below = pc.and_(pc.equal(listed_by, source), pc.starts_with(paths, root))
        paths = pc.if_else(is_below, pc.utf8_slice_codeunits(paths, len(root)), paths)
    return pc.utf8_ltrim(paths, "/")
