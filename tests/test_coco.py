"""Files in COCO's form: lists come as streams, faults are said in the caller's words, masks wait unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mining.captions import CocoCaptions
from mining.coco import FaultLines, coco_id, coco_items, coco_size_px, open_coco, pack, unpack
from mining.models.ground_truth import GroundTruth
from mining.truth import read_truth
from schemas.errors import InputError

LINES = FaultLines("{path} absent", "{path} folder", "{path} broken ({reason})", "{path} lacks {name}")
INSTANCES = {
    "images": [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 5}],
    "categories": [{"id": 1, "name": "dog"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 3, 0, 3, 3]], "caption": "a"}],
}


def test_items_come_before_the_file_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a{b}.json"
    path.write_text('{"images": [' + '{"id": 1, "note": "' + "x" * 99 + '"},' * 5_000 + " and then nonsense")
    items = coco_items(str(path), "images", lines=LINES, need="items")
    assert coco_id(next(items), "id") == 1
    with pytest.raises(InputError, match=r"a\{b\}\.json broken \(parse error"):
        list(items)


@pytest.mark.parametrize(
    ("content", "fitting"),
    [
        ({"images": [{"id": 1}]}, {"items", "list", "nothing"}),
        ({"images": ["no object"]}, {"items", "list", "nothing"}),
        ({"images": []}, {"list", "nothing"}),
        ({"images": {"id": 1}}, {"nothing"}),
        ([], {"nothing"}),
    ],
)
@pytest.mark.parametrize("need", ["items", "list", "nothing"])
def test_a_file_that_lacks_what_is_needed_is_refused(
    tmp_path: Path, content: Any, fitting: set[str], need: Literal["items", "list", "nothing"]
) -> None:
    path = tmp_path / "some.json"
    path.write_text(json.dumps(content))
    items = coco_items(str(path), "images", lines=LINES, need=need)
    if need in fitting:
        assert all(isinstance(item, dict) for item in items)
    else:
        with pytest.raises(InputError, match=r"some\.json lacks images"):
            list(items)


def test_an_error_of_the_disk_is_told_only_where_there_are_words_for_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    below = str(tmp_path / "file" / "a.json")
    with pytest.raises(NotADirectoryError), open_coco(below, lines=LINES):
        pass
    worded = FaultLines("", "", "", "", unreadable="{path}: {reason}")
    with pytest.raises(InputError, match=r"a\.json: Not a directory"), open_coco(below, lines=worded):
        pass


def test_all_readers_pass_over_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(INSTANCES), encoding="utf-8-sig")
    assert list(CocoCaptions(annotations=str(path), images="i").read_captions()) == [("1", 1, "a")]
    assert [found.category for found in read_truth(str(path)).objects("1")] == ["dog"]
    GroundTruth(kind="ground_truth", annotations=str(path)).open(device="cpu")


@pytest.mark.parametrize(
    ("value", "known"), [(7, 7), (0, 0), ("a", "a"), (True, None), (1.0, None), (None, None), ([1], None)]
)
def test_an_id_is_a_whole_number_or_a_text(value: Any, known: int | str | None) -> None:
    assert coco_id({"id": value}, "id") == known


@pytest.mark.parametrize(
    ("sides", "size_px"),
    [((4, 5), (4, 5)), ((4.0, 5), (4, 5)), ((0, 5), None), ((4, None), None), (("4", 5), None), ((-4, 5), None)],
)
def test_a_size_has_two_sides_of_a_pixel_at_least(sides: tuple[Any, Any], size_px: tuple[int, int] | None) -> None:
    assert coco_size_px({"height": sides[0], "width": sides[1]}) == size_px


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=9))
def test_what_was_packed_comes_out_again(value: Any) -> None:
    assert unpack(pack(value)) == value
