"""The names that an export gives to images: they open them, and no two are alike."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from maskmine.mining.storage.locations import Cell, Slice, file_location
from maskmine.pipelines.export.file_names import FileNames

Images = dict[str, str]
"""The locations of images by their ids."""


def names(images: Images, *roots: str) -> dict[str, str]:
    """The names of all images of a run whose sources have these folders."""
    finished: Any = SimpleNamespace(
        settings=SimpleNamespace(sources=[SimpleNamespace(root=root) for root in roots]),
        parts=range(1),
        columns=lambda part, row_type, names: pa.table({"path": [*images.values()]}),
    )
    file_names = FileNames(finished)
    found = {image_id: file_names.name(image_id, path) for image_id, path in images.items()}
    assert len(set(found.values())) == len(images)
    return found


@pytest.mark.parametrize(
    ("images", "roots", "expected"),
    [
        (
            {"1": "/d/images/train/0001.jpg", "2": "/d/images/val/0001.jpg"},
            ["/d/images/"],
            ["train/0001.jpg", "val/0001.jpg"],
        ),
        (
            {"1": "s3://b/images/train/1.jpg", "2": "s3://b/images/1.jpg"},
            ["s3://b/images"],
            ["train/1.jpg", "1.jpg"],
        ),
        ({"1": "/d/a/1.jpg", "2": "/d/b/1.jpg"}, ["/d/a", "/d/b"], ["a/1.jpg", "b/1.jpg"]),
        ({"1": "/d/a/x/1.jpg", "2": "/d/a/1.jpg"}, ["/d/a", "/d/a/x"], ["x/1.jpg", "1.jpg"]),
        (
            {"a": str(Slice("/d/web/0.tar", 512, 9, "jpg")), "b.v2": str(Slice("/d/web/0.tar", 2048, 9, "JPG"))},
            ["/d/web"],
            ["a.jpg", "b.v2.JPG"],
        ),
        ({"0/a": str(Slice("/d/0.tar", 0, 9, "png")), "1/a": str(Slice("/d/1.tar", 0, 9, "png"))}, ["/d"], None),
        (
            {"a": str(Slice("/d/web/0.tar", 0, 9, "jpg")), "1": "/d/i/a.jpg"},
            ["/d/web", "/d/i"],
            ["web/a.jpg", "i/a.jpg"],
        ),
        ({"a": "bytes:512+9:/d/0.tar", "b": str(Cell("/d/t.parquet", 0, 1, "image.bytes"))}, ["/d"], ["a", "b"]),
        (
            {"1": "https://h/a/1.jpg", "2": "https://h/b/1.jpg?x=1"},
            ["/d"],
            ["https://h/a/1.jpg", "https://h/b/1.jpg?x=1"],
        ),
        ({"1": "/d/images/train/0001.jpg", "2": "/d/images/val/0001.jpg"}, [""], ["train/0001.jpg", "val/0001.jpg"]),
        ({"1": "/d/only.jpg"}, [""], ["only.jpg"]),
        ({"1": file_location("/d/caf\udce9.jpg"), "2": file_location("/d/caf\udce8.jpg")}, ["/d"], None),
    ],
)
def test_names_lead_from_the_folder_of_the_source_to_the_image(
    images: Images, roots: list[str], expected: list[str] | None
) -> None:
    found = names(images, *roots)
    assert expected is None or list(found.values()) == expected


def test_a_name_is_written_as_the_disk_has_it(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    stored = unicodedata.normalize("NFD", "train/café.jpg")
    (tmp_path / stored).write_bytes(b"")
    assert names({"1": f"{tmp_path}/train\\café.jpg"}, str(tmp_path)) == {"1": stored}
