"""COCO captions are read as a stream, and each fault of the file is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from maskmine.mining.sources.coco import CocoCaptions
from maskmine.mining.sources.tables import TableCaptions
from maskmine.mining.storage import coco_json
from maskmine.mining.storage.stores import open_input
from maskmine.schemas.errors import InputError

IMAGE = {"id": 1, "file_name": "a.jpg"}


def source(folder: Path, content: bytes | str | dict[str, Any]) -> CocoCaptions:
    path = folder / "captions.json"
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return CocoCaptions(annotations=str(path), images="photos")


def entries(coco: CocoCaptions) -> list[dict[str, Any]]:
    return [entry for table in coco.read(images_per_part=9) for entry in table.to_pylist()]


def captions(coco: CocoCaptions) -> list[tuple[str, str]]:
    """`(image id, caption)`, by image and in the order of an image's captions."""
    found = [entry for entry in entries(coco) if entry["caption"] is not None]
    found.sort(key=lambda entry: (entry["image_id"], entry["position"]))
    return [(entry["image_id"], entry["caption"]) for entry in found]


def test_images_and_captions_are_read_with_integer_and_text_ids(tmp_path: Path) -> None:
    coco = source(
        tmp_path,
        {
            "images": [{"id": 7, "file_name": "7.jpg"}, {"id": "x y", "file_name": "sub/a.png"}],
            "annotations": [{"id": 3, "image_id": 7, "caption": "A cat."}],
        },
    )
    assert list(coco.read_images()) == [("7", "photos/7.jpg"), ("x y", "photos/sub/a.png")]
    assert captions(coco) == [("7", "A cat.")]


def test_the_lists_may_come_in_any_order_and_after_a_byte_order_mark(tmp_path: Path) -> None:
    tree = {"annotations": [{"id": 1, "image_id": 1, "caption": "é"}], "info": {"images": 3}, "images": [IMAGE]}
    coco = source(tmp_path, b"\xef\xbb\xbf" + json.dumps(tree).encode())
    assert captions(coco) == [("1", "é")]
    assert list(coco.read_images()) == [("1", "photos/a.jpg")]


@pytest.mark.parametrize("caption", [None, 7, [], ""])
def test_a_caption_that_is_no_text_is_empty_and_stays(tmp_path: Path, caption: object) -> None:
    said = [{"id": 1, "image_id": 1, "caption": caption}, {"id": 2, "image_id": 1, "caption": "a"}]
    assert captions(source(tmp_path, {"images": [IMAGE], "annotations": said})) == [("1", ""), ("1", "a")]


def test_a_lone_surrogate_is_replaced_one_for_one_and_a_pair_is_a_character(tmp_path: Path) -> None:
    said = r'[{"id": 1, "image_id": 1, "caption": "a \ud83d cat \ud83d\ude00"}]'
    text = f'{{"images": [{json.dumps(IMAGE)}], "annotations": {said}}}'
    ((_, caption),) = captions(source(tmp_path, text))
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
        ('{"images": [{"id": 1}]}', "no entry of `images` has a usable `id` and `file_name`"),
        ('{"images": ["a.jpg"]}', "no entry of `images` has a usable `id` and `file_name`"),
        ('{"images": [{"id": true, "file_name": "a.jpg"}]}', "no entry of `images`"),
        (b'{"images": [{"id": 1, "file_name": "\xff"}]}', "no entry of `images` has a usable `id` and `file_name`"),
    ],
)
def test_a_file_that_is_not_coco_captions_is_named_with_its_fault(
    tmp_path: Path, content: bytes | str, said: str
) -> None:
    with pytest.raises(InputError, match=r"captions\.json") as caught:
        list(source(tmp_path, content).read_images())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_a_missing_file_and_a_folder_name_the_setting(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"captions\.annotations"):
        list(CocoCaptions(annotations=str(tmp_path / name), images="photos").read_images())


def test_captions_of_one_annotation_keep_their_order_before_those_of_the_next(tmp_path: Path) -> None:
    said = [{"id": 2.0, "image_id": 1.0, "caption": "z"}, {"id": "1", "image_id": "1", "caption": ["y", "x"]}]
    assert captions(source(tmp_path, {"images": [IMAGE], "annotations": said})) == [("1", "y"), ("1", "x"), ("1", "z")]


def test_ids_beyond_64_bits_name_their_image(tmp_path: Path) -> None:
    big = 2**63 + 5
    said = [{"id": big, "image_id": big, "caption": "a"}]
    coco = source(tmp_path, {"images": [IMAGE | {"id": big}], "annotations": said})
    assert captions(coco) == [(str(big), "a")]


def test_entries_that_cannot_be_used_are_broken_records_of_their_own(tmp_path: Path) -> None:
    images = [IMAGE, None, {"file_name": "b.jpg"}, {"id": 2}]
    said = [{"id": 1, "image_id": 1, "caption": "a"}, 7, {"id": 2, "image_id": None, "caption": "b"}]
    coco = source(tmp_path, {"images": images, "annotations": said})
    broken = [
        (entry["image_id"], entry["path"]) for entry in entries(coco) if (entry["path"] or "").startswith("fault")
    ]
    assert broken == [
        ("captions.json#images/1", "fault:broken_record:entry 1 of `images` is no object"),
        ("captions.json#images/2", "fault:broken_record:entry 2 of `images` has no usable `id`"),
        ("2", "fault:missing_file:entry 3 of `images` has no `file_name`"),
        ("captions.json#annotations/1", "fault:broken_record:entry 1 of `annotations` is no object"),
        ("captions.json#annotations/2", "fault:broken_record:entry 2 of `annotations` has no usable `image_id`"),
    ]
    assert captions(coco) == [("1", "a")]
    assert list(coco.read_images()) == [("1", "photos/a.jpg")]


def test_a_file_name_that_is_a_url_is_not_looked_for_in_the_folder(tmp_path: Path) -> None:
    coco = source(tmp_path, {"images": [IMAGE | {"file_name": "https://example.org/a.jpg"}]})
    assert list(coco.read_images()) == [("1", "https://example.org/a.jpg")]


def test_a_source_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coco = source(tmp_path, {"images": [IMAGE], "annotations": [{"id": 1, "image_id": 1, "caption": "a"}]})
    opened: list[str] = []

    def noted(path: str) -> Any:
        opened.append(path)
        return open_input(path)

    monkeypatch.setattr(coco_json, "open_input", noted)
    assert captions(coco) == [("1", "a")]
    assert len(opened) == 1


UNREADABLE = {
    "half a character in a name": ({"file_name": "s\udce9.jpg"}, "a kite", "utf-8"),
    "a name in Latin-1": ({"file_name": "caf\u00e9.jpg"}, "a kite", "latin-1"),
    "a caption in Latin-1": ({"file_name": "b.jpg"}, "a ball caf\u00e9", "latin-1"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_text_that_is_none_costs_its_entry_and_says_so(tmp_path: Path, name: str) -> None:
    image, caption, encoding = UNREADABLE[name]
    said = [{"id": 1, "image_id": 1, "caption": "a ball"}, {"id": 2, "image_id": 2, "caption": caption}]
    content = {"images": [IMAGE, {"id": 2, **image}], "annotations": said}
    coco = source(tmp_path, json.dumps(content, ensure_ascii=encoding == "utf-8").encode(encoding))
    faults = [entry["path"] for entry in entries(coco) if "broken_record" in (entry["path"] or "")]
    assert len(faults) == 1
    assert "is no text in UTF-8" in faults[0]
    assert captions(coco) == [("1", "a ball"), *([("2", caption)] if caption == "a kite" else [])]


def test_half_a_character_in_a_name_costs_its_row_and_in_a_caption_itself_alone(tmp_path: Path) -> None:
    names, said = ["a.jpg", "s\udce9.jpg"], "a ball \ud83d"
    rows = [json.dumps({"id": number, "f": name, "caption": said}) for number, name in enumerate(names)]
    (tmp_path / "c.jsonl").write_text("\n".join(rows))
    files = str(tmp_path / "c.jsonl")
    table = TableCaptions(kind="jsonl", files=files, images=str(tmp_path), id_col="id", path_col="f")
    first, second = [entry for batch in table.read(images_per_part=9) for entry in batch.to_pylist()]
    assert first["caption"] == "a ball \ufffd"
    assert "is no text in utf-8" in second["path"]
    coco = source(tmp_path, {"images": [IMAGE], "annotations": [{"id": 1, "image_id": 1, "caption": said}]})
    assert captions(coco) == [("1", "a ball \ufffd")]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-32-be"])
def test_json_is_read_in_each_of_its_encodings(tmp_path: Path, encoding: str) -> None:
    said = [{"id": 1, "image_id": 1, "caption": "caf\u00e9"}]
    coco = source(tmp_path, json.dumps({"images": [IMAGE], "annotations": said}, ensure_ascii=False).encode(encoding))
    assert captions(coco) == [("1", "caf\u00e9")]
