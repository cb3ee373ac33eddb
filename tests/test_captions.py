"""COCO captions are read as a stream, and each fault of the file is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mining.captions import CocoCaptions
from schemas.errors import InputError


def source(folder: Path, content: bytes | str | dict[str, Any]) -> CocoCaptions:
    path = folder / "captions.json"
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return CocoCaptions(annotations=str(path), images="photos")


def test_images_and_captions_are_read_with_integer_and_text_ids(tmp_path: Path) -> None:
    coco = source(
        tmp_path,
        {
            "images": [{"id": 7, "file_name": "7.jpg"}, {"id": "x y", "file_name": "sub/a.png"}],
            "annotations": [{"id": 3, "image_id": 7, "caption": "A cat."}],
        },
    )
    assert list(coco.read_images()) == [("7", "photos/7.jpg"), ("x y", "photos/sub/a.png")]
    assert list(coco.read_captions()) == [("7", 3, "A cat.")]


def test_the_lists_may_come_in_any_order_and_after_a_byte_order_mark(tmp_path: Path) -> None:
    tree = {"annotations": [{"id": 1, "image_id": 1, "caption": "é"}], "info": {"images": 3}, "images": []}
    coco = source(tmp_path, b"\xef\xbb\xbf" + json.dumps(tree).encode())
    assert list(coco.read_captions()) == [("1", 1, "é")]
    assert list(coco.read_images()) == []


@pytest.mark.parametrize("caption", [None, 7, ["a"], ""])
def test_a_caption_that_is_no_text_is_empty_and_stays(tmp_path: Path, caption: object) -> None:
    coco = source(tmp_path, {"images": [], "annotations": [{"id": 1, "image_id": 1, "caption": caption}]})
    assert list(coco.read_captions()) == [("1", 1, "")]


def test_a_lone_surrogate_is_replaced_one_for_one_and_a_pair_is_a_character(tmp_path: Path) -> None:
    text = r'{"images": [], "annotations": [{"id": 1, "image_id": 1, "caption": "a \ud83d cat \ud83d\ude00"}]}'
    ((_, _, caption),) = source(tmp_path, text).read_captions()
    caption.encode()
    assert len(caption) == len("a x cat x")
    assert caption.endswith("cat \N{GRINNING FACE}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("<html>", "not valid JSON"),
        ('{"images": [{"id": 1, "file_name": "a.jpg"},', "not valid JSON"),
        ("", "not valid JSON"),
        ("[1, 2]", "no list `images` at the top"),
        ('{"images": {"1": "a.jpg"}}', "no list `images` at the top"),
        ('{"images": [{"id": 1}]}', "entry 0 of `images` has no usable `id` and `file_name`"),
        ('{"images": ["a.jpg"]}', "entry 0 of `images` has no usable `id` and `file_name`"),
        ('{"images": [{"id": true, "file_name": "a.jpg"}]}', "entry 0 of `images`"),
        (b'{"images": [{"id": 1, "file_name": "\xff"}]}', "not valid JSON"),
    ],
)
def test_a_file_that_is_not_coco_captions_is_named_with_its_fault(
    tmp_path: Path, content: bytes | str, said: str
) -> None:
    with pytest.raises(InputError, match=r"captions\.json") as caught:
        list(source(tmp_path, content).read_images())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_annotation_without_an_image_id_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="entry 1 of `annotations` has no `image_id`"):
        list(source(tmp_path, {"annotations": [{"image_id": 1, "caption": "a"}, {"caption": "b"}]}).read_captions())


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_a_missing_file_and_a_folder_name_the_setting(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"captions\.annotations"):
        list(CocoCaptions(annotations=str(tmp_path / name), images="photos").read_images())
