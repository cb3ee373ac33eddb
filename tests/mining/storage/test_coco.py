"""Files in COCO's form: lists come as streams, faults are said in the caller's words, masks wait unchanged."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskmine.mining.evaluation.annotations import read_annotations
from maskmine.mining.proposers.ground_truth import GroundTruth, read_masks
from maskmine.mining.sources.coco import CocoCaptions
from maskmine.mining.storage.coco_json import (
    FaultLines,
    coco_flag,
    coco_id,
    coco_items,
    coco_size_px,
    open_coco,
    pack,
    unpack,
)
from maskmine.mining.storage.coco_truth import CocoTruth
from maskmine.mining.storage.json_repair import UNREADABLE, repaired
from maskmine.schemas.errors import InputError

LINES = FaultLines("{path} absent", "{path} folder", "{path} broken ({reason})", "{path} lacks {name}")
INSTANCES: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 5}],
    "categories": [{"id": 1, "name": "dog"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 3, 0, 3, 3]], "caption": "a"}],
}


def test_items_come_before_the_file_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a{b}.json"
    path.write_text('{"images": [' + '{"id": 1, "note": "' + "x" * 99 + '"},' * 5_000 + " and then nonsense")
    items = coco_items(str(path), "images", lines=LINES, need="items")
    assert next(items) == {"id": 1, "note": "x" * 99}
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
        assert all(item is None or isinstance(item, dict) for item in items)
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
    assert list(CocoCaptions(annotations=str(path), images="i").read_images()) == [("1", "i/a.jpg")]
    assert [found.category for found in read_annotations(str(path)).objects("1")] == ["dog"]
    GroundTruth(kind="ground_truth", annotations=str(path)).open(device="cpu")


@pytest.mark.parametrize(
    ("value", "known"),
    [
        *(
            (7, "7"),
            (0, "0"),
            ("a", "a"),
            ("7", "7"),
            (7.0, "7"),
            (-0.0, "0"),
            (1.5, "1.5"),
            (2**63 + 5, str(2**63 + 5)),
        ),
        *((True, None), (None, None), ([1], None), (float("nan"), None), (float("inf"), None), ("", None), (" ", None)),
        *((2.0**53 - 1, str(2**53 - 1)), (2.0**53, None)),  # from there on two whole numbers are one float
    ],
)
def test_an_id_is_one_text_whatever_type_it_has(value: Any, known: str | None) -> None:
    assert coco_id(value) == known


@pytest.mark.parametrize(
    ("sides", "size_px"),
    [
        *(((4, 5), (4, 5)), ((4.0, 5), (4, 5)), (("4", " 5 "), (4, 5)), (("4.0", 5), (4, 5))),
        *(((0, 5), None), ((4, None), None), ((-4, 5), None), ((True, 5), None), ((4.5, 5), None), (("four", 5), None)),
    ],
)
def test_a_size_has_two_sides_of_a_whole_pixel_at_least(
    sides: tuple[Any, Any], size_px: tuple[int, int] | None
) -> None:
    assert coco_size_px({"height": sides[0], "width": sides[1]}) == size_px


@pytest.mark.parametrize("value", [1, True, 1.0, "1", "true", "True", "1.0", " 1"])
def test_a_flag_may_be_set_in_many_types(value: Any) -> None:
    assert coco_flag(value)


@pytest.mark.parametrize("value", [0, False, 0.0, "0", "false", "False", "0.0", None, "", "none", "NaN"])
def test_a_flag_may_be_unset_in_many_types(value: Any) -> None:
    assert not coco_flag(value)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=9))
def test_what_was_packed_comes_out_again(value: Any) -> None:
    assert unpack(pack(value)) == value


# --- what other readers take ------------------------------------------------------------------------------------------

ODD = '{"images": [{"id": NaN, "x": 1e400}, {"id": 9223372036854775813}, null, {"id": 1, "note": "\xff NaN 1e999"}]}'


def read(path: Path, content: bytes) -> list[Any]:
    path.write_bytes(content)
    return list(coco_items(str(path), "images", lines=LINES, need="items"))


def test_numbers_that_json_has_no_word_for_cost_their_field_alone(tmp_path: Path) -> None:
    found = read(tmp_path / "a.json", ODD.encode("latin-1"))
    assert found == [
        {"id": None, "x": None},
        {"id": "9223372036854775813"},
        None,
        {"id": 1, "note": f"{UNREADABLE}\ufffd NaN 1e999"},
    ]
    assert [coco_id((item or {}).get("id")) for item in found] == [None, "9223372036854775813", None, "1"]


@pytest.mark.parametrize("encode", [gzip.compress, lambda text: text.decode().encode("utf-16")], ids=["gzip", "utf-16"])
def test_files_may_be_compressed_or_in_utf_16(encode: Any, tmp_path: Path) -> None:
    assert read(tmp_path / "a.json", encode(b'{"images": [{"id": 1}]}')) == [{"id": 1}]


@given(st.integers(1, 70))
def test_repairs_do_not_depend_on_where_a_chunk_ends(size: int) -> None:
    text = (
        rb'{"": [-Infinity, 1e400, "\"NaN", "a\\", 12345678901234567890,-1234567890123456789, 0.12345678901234567890]}'
    )
    pieces = (text[start : start + size] for start in range(0, len(text), size))
    assert b"".join(repaired(pieces)) == (
        rb'{"": [null, null, "\"NaN", "a\\", "12345678901234567890",-1234567890123456789, 0.12345678901234567890]}'
    )


def test_what_is_broken_stays_broken(tmp_path: Path) -> None:
    for content in (
        b'{"images": [{"id": 1},',
        b'{"images": [{"id": nan}]}',
        b'{"images": [1,]}',
        gzip.compress(b"{")[:-9],
    ):
        with pytest.raises(InputError, match="broken"):
            read(tmp_path / "a.json", content)


def truth_of(path: Path, **lists: Any) -> CocoTruth:
    path.write_text(json.dumps(INSTANCES | lists))
    return read_masks(GroundTruth(kind="ground_truth", annotations=str(path)))


MASK = INSTANCES["annotations"][0]


@pytest.mark.parametrize("turn", [str, float, lambda number: f"{number}.0"], ids=["text", "float", "text of a float"])
def test_ids_of_one_file_may_have_several_types(turn: Any, tmp_path: Path) -> None:
    other = MASK | {"image_id": turn(1), "category_id": turn(1)}
    truth = truth_of(tmp_path / "a.json", annotations=[MASK, other])
    assert [entry.category for entry in truth.instances("1")] == ["dog", "dog"]
    assert truth.left_out.lines() == ()
    found = read_annotations(str(tmp_path / "a.json")).objects("1")
    assert [one.category for one in found] == ["dog", "dog"]


def test_an_entry_that_cannot_be_used_costs_itself_alone_and_is_counted(tmp_path: Path) -> None:
    images = [
        *INSTANCES["images"],
        None,
        {"height": 4, "width": 5},
        {"id": 1, "file_name": "b.jpg", "height": 9, "width": 9},
    ]
    bad = [
        None,
        {"image_id": float("nan")},
        MASK | {"image_id": 7},
        MASK | {"image_id": True},
        MASK | {"category_id": 9},
    ]
    truth = truth_of(
        tmp_path / "a.json", images=images, annotations=[MASK, *bad], categories=[*INSTANCES["categories"], {"id": 2}]
    )
    assert truth.sizes == {"1": (4, 5)}
    assert [entry.number for entry in truth.instances("1")] == [0, 5]
    assert set(truth.left_out.lines()) == {
        "1 entries of `images` that are no objects (entry 1)",
        "1 entries of `images` without a usable `id` (entry 2)",
        "1 entries of `images` with the `id` of another one (entry 3, id 1)",
        "1 entries of `annotations` that are no objects (entry 1)",
        "2 annotations without a usable `image_id` (the first: entry 2)",
        "1 annotations of images that `images` does not have (entry 3, image 7)",
        "1 entries of `categories` without a usable `id` and `name` (entry 1)",
        "1 names of masks whose category `categories` does not have (entry 5)",
    }
    annotations = read_annotations(str(tmp_path / "a.json"))
    assert [one.category for one in annotations.objects("1")] == ["dog"]
    assert sorted(annotations.left_out) == sorted(truth.left_out.lines())


@pytest.mark.parametrize("sides", [("4", "5"), (4.0, "5.0")])
def test_sizes_may_be_texts(sides: tuple[Any, Any], tmp_path: Path) -> None:
    images = [{"id": 1, "height": sides[0], "width": sides[1]}, {"id": 2, "height": None, "width": None}]
    truth = truth_of(tmp_path / "a.json", images=images)
    assert (truth.sizes, truth.unsized) == ({"1": (4, 5)}, {"2"})


def test_run_lengths_tell_the_size_that_an_image_does_not(tmp_path: Path) -> None:
    runs = MASK | {"image_id": 2, "segmentation": {"size": [2, 3], "counts": [1, 5]}}
    outline = MASK | {"image_id": 3}
    truth = truth_of(
        tmp_path / "a.json", images=[*INSTANCES["images"], {"id": 2}, {"id": 3}], annotations=[MASK, runs, outline]
    )
    assert (truth.sizes["2"], truth.unsized) == ((2, 3), {"3"})
