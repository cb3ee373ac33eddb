"""Whole columns at a time give what one image at a time would: the rows of a plan, and the texts that are hashed."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmine.mining.sources.entries import ENTRIES
from maskmine.mining.storage.locations import relative_location
from maskmine.pipelines.planning.digest import image_lines, rows_json
from maskmine.pipelines.planning.images import PLANNED_IMAGES, Listed, images_of
from maskmine.schemas.settings import canonical_json

SOURCES = ["first", "second"]
SCHEMA = pa.schema([*ENTRIES, pa.field("source", pa.int64())])
TEXTS = st.text(st.sampled_from('ab/é😀"\\\n\t\x00\x1f\x7f'), max_size=5)
ENTRY = st.tuples(
    st.sampled_from("abc"),
    st.none() | st.sampled_from(["/p", "/q", "fault:missing_file:x"]),
    st.none() | st.integers(0, 2),
    st.integers(0, 9),
    st.none() | st.sampled_from(["", "x", "y", " .", "é"]),
    st.just("{}"),
    st.integers(0, 1),
)


def last_place(image_id: str, places: Listed) -> int:
    """A choice that says of which image and of what places it was asked."""
    assert len({place for _, place in places}) > 1, image_id
    return len(places) - 1


def first_with_text(captions: list[str], limit: int | None) -> list[str]:
    """The first captions with a letter in their order, filled up with the first ones without."""
    by_text = sorted(range(len(captions)), key=lambda n: not captions[n].strip(" ."))
    return [captions[n] for n in sorted(by_text[:limit])]


def one_image(image_id: str, entries: list[tuple[Any, ...]], most: list[int | None]) -> dict[str, Any]:
    """A row of the plan, by the plain way."""
    listed = [(source, path) for _, path, _, _, _, _, source in entries if path is not None]
    parted = [(source << 32 | part, position) for _, _, part, position, _, _, source in entries if part is not None]
    said = [
        (caption, SOURCES[number])
        for number, limit in enumerate(most)
        for caption in first_with_text([row[4] for row in entries if row[6] == number and row[4] is not None], limit)
    ]
    several = len({path for _, path in listed}) > 1
    by, place = (listed[-1] if several else listed[0]) if listed else (None, None)
    return {
        "image_id": image_id,
        "path": place,
        "captions": [caption for caption, _ in said],
        "sources": [source for _, source in said],
        "additional": ["{}" for _ in said],
        "listed_by": by,
        "given": parted[0][0] if parted else None,
        "first": parted[0][1] if parted else 0,
    }


@settings(max_examples=60)
@given(st.lists(ENTRY, min_size=1, max_size=14), st.lists(st.none() | st.integers(1, 2), min_size=2, max_size=2))
def test_an_image_has_of_its_entries_what_it_would_have_alone(
    entries: list[tuple[Any, ...]], most: list[int | None]
) -> None:
    entries = sorted(entries, key=lambda entry: (entry[0], entry[6], entry[3]))
    table = pa.table([list(column) for column in zip(*entries, strict=True)], schema=SCHEMA)
    found = images_of(table, names=SOURCES, max_captions=most, choose_path=last_place)
    ids = sorted({entry[0] for entry in entries})
    assert found.to_pylist() == [one_image(one, [row for row in entries if row[0] == one], most) for one in ids]


@settings(max_examples=60)
@given(st.lists(st.tuples(TEXTS, st.lists(TEXTS, max_size=3)), max_size=5), st.integers(0, 3))
def test_rows_become_the_json_that_is_hashed(rows: list[tuple[str, list[str]]], skipped: int) -> None:
    table = pa.table(
        [[one for one, _ in rows], [texts for _, texts in rows]],
        schema=pa.schema([PLANNED_IMAGES.field("image_id"), PLANNED_IMAGES.field("captions")]),
    ).slice(skipped)
    kept = [[one, texts] for one, texts in rows[skipped:]]
    assert b"".join(map(bytes, rows_json(table))) == canonical_json(kept).encode()
    assert b"".join(map(bytes, rows_json(table.select(["captions"])))) == canonical_json([t for _, t in kept]).encode()


@pytest.mark.parametrize(
    "more", ["", "fault:missing_file:no picture", "bytes:5+6:/web/é/0.tar", "cell:1/2/a:/x.parquet"]
)
def test_places_are_told_from_the_root_of_their_source(more: str) -> None:
    roots = ["/web", "/web/é", "", "s3://bucket/a"]
    places = [
        "/web/1.jpg",
        "/web/é/2.jpg",
        '/o/"3".jpg',
        "s3://bucket/a/4.jpg",
        "/web//5.jpg",
        "/webs/6.jpg",
        more or "/",
    ]
    for by in range(len(roots)):
        table = pa.table(
            {"image_id": ["i", *map(str, range(len(places)))], "path": [None, *places], "listed_by": [None] + [by] * 7}
        )
        expected = ['["i",null]'] + [
            canonical_json([str(n), relative_location(place, roots[by])]) for n, place in enumerate(places)
        ]
        assert (
            b"".join(map(bytes, image_lines(table, roots=[(root,) for root in roots]))).decode().splitlines()
            == expected
        )
