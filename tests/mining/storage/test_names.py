"""Names of files: pictures, leftovers, other spellings, and names that are no UTF-8."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmine.mining.images.decode import DecodedImage, decode_image
from maskmine.mining.images.read import read_bytes
from maskmine.mining.sources.files import joined, list_files, walk_files
from maskmine.mining.storage.locations import Cell, Slice, file_location, parse_location, relative_location
from maskmine.mining.storage.names import PICTURE_SUFFIXES, is_file, is_leftover, is_picture, path_as_stored, utf8_name
from tests.support.hostile.corrupt_images import RGB, encoded

BYTES = st.binary(min_size=1, max_size=8).filter(lambda raw: b"\0" not in raw)


@settings(max_examples=40)
@given(BYTES, BYTES)
def test_every_name_of_a_disk_survives_its_location_and_no_two_are_alike(one: bytes, other: bytes) -> None:
    paths = [os.fsdecode(b"/d/" + raw) for raw in (one, other)]
    texts = [file_location(path) for path in paths]
    assert [parse_location(text) for text in texts] == paths
    assert all(text.encode() for text in texts)
    for path in paths:
        for place in (Slice(path, 1, 2, "x.jpg"), Slice(path, 1, 2), Cell(path, 0, 1, "image.bytes")):
            assert parse_location(str(place)) == place
            assert relative_location(str(place), "/d").encode()


@settings(max_examples=40)
@given(BYTES)
def test_a_shown_name_is_utf8_and_unchanged_where_it_can_be(raw: bytes) -> None:
    name = os.fsdecode(raw)
    assert utf8_name(name).encode()
    assert (utf8_name(name) == name) == (raw.decode("utf-8", "replace").encode() == raw)


@pytest.mark.parametrize(
    "name",
    [
        *("._a.jpg", "d/._a.jpg", "__MACOSX/d/a.jpg", "d/.DS_Store", "Thumbs.db", "THUMBS.DB", "desktop.ini"),
        *("@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg", ".AppleDouble/a.jpg", "$RECYCLE.BIN/a.jpg", "Icon\r"),
        ".ipynb_checkpoints/a-checkpoint.png",
    ],
)
def test_leftovers_are_known_by_their_names(name: str) -> None:
    assert is_leftover(name)


@pytest.mark.parametrize("name", [".a.jpg", "_a.jpg", "MACOSX/a.jpg", "a._b.jpg", "thumbs.db.jpg", "..jpg"])
def test_other_names_are_no_leftovers(name: str) -> None:
    assert not is_leftover(name)
    assert is_picture(name)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_pictures_of_the_table_are_decoded(kind: str) -> None:
    assert {"JPEG": "jfif", "TIFF": "tif"}.get(kind, kind.lower()) in PICTURE_SUFFIXES
    assert isinstance(decode_image(encoded(RGB, kind), max_pixels=10**6), DecodedImage)


@pytest.mark.parametrize(
    ("stored", "listed"),
    [
        ("a/b.jpg", "a\\b.jpg"),
        ("a/b/c.jpg", "a\\b/c.jpg"),
        (unicodedata.normalize("NFD", "é/ü.jpg"), "é/ü.jpg"),
        ("é/ü.jpg", unicodedata.normalize("NFD", "é/ü.jpg")),
        (unicodedata.normalize("NFD", "é") + "/ü.jpg", "é\\" + unicodedata.normalize("NFD", "ü.jpg")),
        ("odd\\name.jpg", "odd\\name.jpg"),
    ],
)
def test_a_file_is_found_under_another_spelling_of_its_name(tmp_path: Path, stored: str, listed: str) -> None:
    (tmp_path / stored).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / stored).write_bytes(b"here")
    assert path_as_stored(f"{tmp_path}/{listed}") == f"{tmp_path}/{stored}"
    assert read_bytes(f"{tmp_path}/{listed}") == b"here"


def test_a_file_of_the_very_name_comes_before_another_spelling(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/b.jpg", "a\\b.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    assert read_bytes(f"{tmp_path}/a\\b.jpg") == b"a\\b.jpg"


def test_objects_are_found_under_another_spelling_too() -> None:
    fsspec.filesystem("memory").pipe("/names/" + unicodedata.normalize("NFD", "a/é.jpg"), b"here")
    assert read_bytes("memory://names/a\\é.jpg") == b"here"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/1.jpg", "/d/a/1.jpg"),
        ("file:///a/1.jpg", "/a/1.jpg"),
        ("file://1.jpg", "/d/1.jpg"),
        ("http://h/1.jpg", "http://h/1.jpg"),
    ],
)
def test_a_path_or_url_is_joined_to_the_folder_that_it_starts_from(path: str, expected: str) -> None:
    assert joined("/d", path) == expected


def test_leftovers_and_cases_of_suffixes_among_the_files_of_a_source(tmp_path: Path) -> None:
    for name in ("a.tar", "B.TAR", "._a.tar", "c.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [file.name for file in list_files(str(tmp_path), suffixes=(".tar",))] == ["B.TAR", "a.tar"]
    assert [file.name for file in list_files(f"{tmp_path}/*.tar", suffixes=(".tar",))] == ["a.tar"]
    passed_over: Counter[str] = Counter()
    ((_, files),) = walk_files(str(tmp_path), passed_over=passed_over)
    assert [file.name for file in files] == ["B.TAR", "a.tar", "c.txt"]
    assert passed_over == {"._a.tar": 1}


def test_a_file_is_there_under_each_spelling_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / unicodedata.normalize("NFD", "é.jpg")).touch()
    assert is_file(str(tmp_path / "a" / "é.jpg"))
    assert is_file(f"{tmp_path}/a\\é.jpg")
    assert not is_file(str(tmp_path / "a"))
    assert not is_file(str(tmp_path / "a" / "e.jpg"))
