"""Annotated masks as proposals: every form COCO has, and what becomes of broken ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskmine.mining.evaluation.annotations import read_annotations
from maskmine.mining.proposers.ground_truth import GroundTruth
from maskmine.mining.proposers.proposals import Proposals
from maskmine.mining.storage.coco_truth import InstanceEntry
from maskmine.schemas.errors import InputError
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import ImageRow, RegionsRow, Rejection
from tests.support.annotations import CATEGORIES, IMAGES, SQUARE, SQUARE_HW, annotated, masks, proposed, shown, write
from tests.support.paths import COCO_MINI as COCO


def uncompressed(mask_HW: np.ndarray) -> dict[str, Any]:
    column = mask_HW.T.reshape(-1).astype(int)
    changes = np.flatnonzero(np.diff(column, prepend=0, append=1 - column[-1]))
    return {"size": list(mask_HW.shape), "counts": np.diff(changes, prepend=0).tolist()}


def compressed(mask_HW: np.ndarray) -> dict[str, Any]:
    return {"size": list(mask_HW.shape), "counts": Mask.from_array(mask_HW).counts.decode()}


@pytest.mark.parametrize("form", [lambda _: SQUARE, uncompressed, compressed])
def test_every_form_of_a_mask_is_the_same_proposal(form: Any, tmp_path: Path) -> None:
    answer = proposed(write(tmp_path, annotated(form(SQUARE_HW))))
    assert [m.tolist() for m in masks(answer)] == [SQUARE_HW.tolist()]
    assert isinstance(answer, Proposals)
    assert answer.scores_N.tolist() == [1.0]
    assert answer.labels == ("cat",)


def test_masks_keep_the_order_of_the_file_and_their_names(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        annotated(SQUARE, category_id=2),
        annotated(SQUARE, image_id=8),
        annotated(SQUARE, category_id=1),
        annotated(SQUARE, category_id=99),
    )
    answer = proposed(path)
    assert isinstance(answer, Proposals)
    assert answer.labels == ("sky", "cat", None)


def test_a_file_without_categories_gives_masks_without_names(tmp_path: Path) -> None:
    answer = proposed(write(tmp_path, annotated(SQUARE), categories=[]))
    assert isinstance(answer, Proposals)
    assert answer.labels == (None,)


def test_image_ids_are_texts(tmp_path: Path) -> None:
    path = write(tmp_path, annotated(SQUARE, image_id="a/b"), images=[{"id": "a/b", "height": 4.0, "width": 6.0}])
    assert len(masks(proposed(path, shown("a/b")))) == 1


@pytest.mark.parametrize(
    ("listed", "image_id", "file"),
    [
        ({"id": 45, "file_name": "000000000045.jpg"}, "000000000045", "000000000045.jpg"),  # a folder of images
        ({"id": 45, "file_name": "val/000000000045.jpg"}, "000000000045", None),  # a tar
        ({"id": 45}, "000000000045", None),
        ({"id": 1, "file_name": "1001.jpg"}, "1001", "1001.jpg"),  # Flickr30k
        ({"id": 1, "file_name": "1001.jpg"}, "flickr30k/1001", "1001.png"),
        ({"id": 1001}, "1001.jpg", "1001.jpg"),
        ({"id": "1001.jpg"}, "1001", None),
        ({"id": "a.b", "file_name": "a.b"}, "7.5", "a.b"),  # the end of no picture
        ({"id": 5, "file_name": "cats\\1.jpg"}, "cats/1", "1.jpg"),
    ],
)
def test_an_image_with_another_id_is_found_by_the_name_of_its_file(
    tmp_path: Path, listed: dict[str, Any], image_id: str, file: str | None
) -> None:
    path = write(tmp_path, annotated(SQUARE, image_id=listed["id"]), images=[{"height": 4, "width": 6} | listed])
    assert len(masks(proposed(path, replace(shown(image_id), file=file)))) == 1


@pytest.mark.parametrize(
    ("listed", "image_id", "file"),
    [
        ([{"id": 45, "file_name": "45.jpg"}], "45x", "46.jpg"),
        ([{"id": 1, "file_name": "45.jpg"}], "45", "46.jpg"),  # an own id that looks like another's file
        ([{"id": 1, "file_name": "a/7.jpg"}, {"id": 2, "file_name": "b/7.jpg"}], "seven", "7.jpg"),  # which?
        ([{"id": 1, "file_name": "dogs/1.jpg"}], "cats/1", "1.jpg"),
    ],
)
def test_an_image_that_only_looks_like_an_annotated_one_is_not_taken_for_it(
    tmp_path: Path, listed: list[dict[str, Any]], image_id: str, file: str | None
) -> None:
    images = [{"height": 4, "width": 6} | one for one in listed]
    path = write(tmp_path, annotated(SQUARE, image_id=listed[0]["id"]), images=images)
    assert proposed(path, replace(shown(image_id), file=file)) == Rejection(
        "no_masks", "the annotations do not name this image"
    )


def test_the_images_own_id_counts_before_any_name(tmp_path: Path) -> None:
    images = [{"height": 4, "width": 6, "id": 7}, {"height": 4, "width": 6, "id": 8, "file_name": "7.jpg"}]
    path = write(tmp_path, annotated(SQUARE), annotated(SQUARE, image_id=8, category_id=2), images=images)
    answer = proposed(path, replace(shown("7"), file="7.jpg"))
    assert isinstance(answer, Proposals)
    assert answer.labels == ("cat",)


def test_crowds_count_only_when_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, annotated(compressed(SQUARE_HW), iscrowd=1))
    answer = proposed(path)
    assert isinstance(answer, Rejection)
    assert answer.detail == (
        "the annotations have nothing of this image but 1 crowds (`iscrowd`), which `proposals.crowds: true` takes"
    )
    assert len(masks(proposed(path, crowds=True))) == 1


def test_the_lists_may_stand_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"categories": CATEGORIES, "annotations": [annotated(SQUARE)], "images": IMAGES}))
    assert len(masks(proposed(str(path)))) == 1


def test_several_images_are_answered_in_order(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        annotated(SQUARE, image_id=8, category_id=2),
        annotated(SQUARE),
        images=[*IMAGES, {"id": 8, "height": 4, "width": 6}],
    )
    propose = GroundTruth(kind="ground_truth", annotations=path).open(device="cpu")
    answers = list(propose([shown("8"), shown("9"), shown("7")], min_score=0.0))
    assert [a.labels if isinstance(a, Proposals) else a.detail for a in answers] == [
        ("sky",),
        "the annotations do not name this image",
        ("cat",),
    ]


# --- frames -----------------------------------------------------------------------------------------------------------


def test_masks_of_another_size_are_refused(tmp_path: Path) -> None:
    size = "masks for 4 × 6 pixels (H × W), and the upright picture has 6 × 4"
    for orientation, detail in ((1, size), (6, f"{size}, turned by its EXIF")):
        found = proposed(write(tmp_path, annotated(SQUARE)), shown("7", 6, 4, orientation=orientation))
        assert found == Rejection("no_masks", detail)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_masks_of_a_turned_picture_are_used_only_when_the_size_shows_their_frame(
    orientation: int, tmp_path: Path
) -> None:
    path = write(tmp_path, annotated(SQUARE), images=[*IMAGES, {"id": 8, "height": 5, "width": 5}])
    upright = proposed(path, shown("7", orientation=orientation))
    assert isinstance(upright, Proposals) == (orientation >= 5)
    square = proposed(path, shown("8", 5, 5, orientation=orientation))
    assert isinstance(square, Rejection)
    assert square.detail.startswith("EXIF turns the picture")


# --- broken masks -----------------------------------------------------------------------------------------------------

BROKEN = [
    None,
    [],
    {},
    "text",
    [[1, 1, 3, 1]],
    [[1, 1, 3, 1, 3, "three"]],
    [[1, 1, 3, 1, 3, None]],
    [[1, 1, 3, 1, 3, 3, True, 3]],
    [[1, 1, 3, 1, 13, 3]],  # more than twice the longer side away
    [[1, 1, 3, 1, 3, 1e300]],  # would take all memory
    [[1, 1, 3, 1, 3, 1e9]],
    [1, 1, 3, 1],
    [1, 1, 3, 1, 3, [3]],
    {"size": [4, 6], "counts": [7, 2]},  # too short: what lies behind them in memory would be shown
    {"size": [4, 6], "counts": [7, 2, 99]},
    {"size": [4, 6], "counts": [-1, 25]},
    {"size": [4, 6], "counts": [1.5, 22.5]},
    {"size": [6, 4], "counts": [24]},
    {"counts": [24]},
    {"size": [4, 6], "counts": "zz"},
    {"size": [4, 6], "counts": "h0P"},  # 24 pixels, and a number that does not end
    {"size": [4, 6], "counts": "HP1"},  # −8 pixels and 32
    {"size": [4, 6], "counts": ""},
    {"size": [4, 6], "counts": "\x00"},
    {"size": [4, 6], "counts": "é"},
    {"size": [4, 6], "counts": None},
]


@pytest.mark.parametrize("broken", BROKEN, ids=repr)
def test_a_broken_mask_is_left_out_and_the_others_stay(broken: Any, tmp_path: Path) -> None:
    path = write(tmp_path, annotated(broken, category_id=2), annotated(SQUARE))
    answer = proposed(path)
    assert isinstance(answer, Proposals)
    assert answer.labels == ("cat",)


def test_an_image_with_broken_masks_only_says_how_many(tmp_path: Path) -> None:
    empty = uncompressed(np.zeros((4, 6), dtype=bool))
    answer = proposed(write(tmp_path, *[annotated(broken) for broken in BROKEN], annotated(empty)))
    assert isinstance(answer, Rejection)
    said = (
        "27 masks are annotated, and none has a pixel that can be read (entry 0 of `annotations` has no `segmentation`)"
    )
    assert answer.detail == said


@given(
    st.lists(
        st.one_of(st.none(), st.integers(-9, 99), st.floats(), st.text(max_size=3), st.lists(st.floats(), max_size=8)),
        max_size=8,
    )
    | st.text(max_size=9)
)
def test_nothing_in_the_place_of_a_mask_raises(garbage: Any) -> None:
    for segmentation in (garbage, [garbage], {"size": [4, 6], "counts": garbage}):
        mask = InstanceEntry(0, None, False, segmentation).mask((4, 6))
        assert isinstance(mask, str) or mask.to_array().shape == (4, 6)


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_run_lengths_cover_the_picture_in_both_forms(height_px: int, width_px: int, data: st.DataObject) -> None:
    pixels = data.draw(st.lists(st.booleans(), min_size=height_px * width_px, max_size=height_px * width_px))
    mask_HW = np.array(pixels).reshape(height_px, width_px)
    for form in (compressed, uncompressed):
        drawn = Mask.from_coco(form(mask_HW), height_px=height_px, width_px=width_px)
        assert np.array_equal(drawn.to_array(), mask_HW)


@pytest.mark.parametrize(
    "form",
    [
        [1, 1, 3, 1, 3, 3, 1, 3],
        [[1, 1], [3, 1], [3, 3], [1, 3]],
        [[[1, 1], [3, 1], [3, 3], [1, 3]]],
        [["1", "1", "3.0", 1, 3, 3, 1, 3]],
        [compressed(SQUARE_HW)],
        uncompressed(SQUARE_HW) | {"size": ["4", 6.0]},
        uncompressed(SQUARE_HW) | {"counts": [float(run) for run in uncompressed(SQUARE_HW)["counts"]]},
    ],
    ids=["flat", "points", "polygon of points", "texts", "list of runs", "size as text", "runs as floats"],
)
def test_a_mask_as_other_tools_write_it_is_the_same_mask(form: Any, tmp_path: Path) -> None:
    assert [m.tolist() for m in masks(proposed(write(tmp_path, annotated(form))))] == [SQUARE_HW.tolist()]


def test_masks_that_cannot_be_read_beside_others_are_named(tmp_path: Path) -> None:
    answer = proposed(write(tmp_path, annotated(None), annotated(SQUARE), annotated([[1, 1, 3, 1, 99, 3]])))
    assert isinstance(answer, Proposals)
    assert answer.left_out == (
        "entry 0 of `annotations` has no `segmentation`",
        "entry 2 of `annotations`: a polygon has a point far outside the image, or one that is no number",
    )


@pytest.mark.parametrize(("crowd", "taken"), [("0", 1), (False, 1), (None, 1), ("1", 0), (True, 0), (1.0, 0)])
def test_a_crowd_may_be_marked_in_any_type(crowd: Any, taken: int, tmp_path: Path) -> None:
    answer = proposed(write(tmp_path, annotated(SQUARE, iscrowd=crowd)))
    assert isinstance(answer, Proposals) == bool(taken)
    if isinstance(answer, Rejection):
        assert "`proposals.crowds: true`" in answer.detail


def test_crowds_are_named_where_the_other_masks_cannot_be_read(tmp_path: Path) -> None:
    answer = proposed(write(tmp_path, annotated(SQUARE, iscrowd=1), annotated(None)))
    assert isinstance(answer, Rejection)
    assert answer.detail.endswith("; 1 crowds (`iscrowd`), which `proposals.crowds: true` takes")


def test_outlines_of_an_image_without_a_size_are_refused_as_such(tmp_path: Path) -> None:
    path = write(
        tmp_path, annotated(SQUARE), annotated(SQUARE, image_id=8), images=[*IMAGES, {"id": 8, "height": None}]
    )
    assert proposed(path, shown("8")) == Rejection(
        "no_masks", "the annotations have masks of this image and not its `height` and `width`"
    )
    assert len(masks(proposed(path))) == 1


@pytest.mark.parametrize("image_id", ["na\u00efve", "nai\u0308ve"])
@pytest.mark.parametrize("annotated_id", ["na\u00efve", "nai\u0308ve"])
def test_accents_of_an_id_may_be_composed_or_not(tmp_path: Path, annotated_id: str, image_id: str) -> None:
    """The ids of folders and tars are composed, those of tables as their paths are written."""
    listed = [{"id": annotated_id, "height": 4, "width": 6}]
    path = write(tmp_path, annotated([[0, 0, 4, 0, 4, 4, 0, 4]], image_id=annotated_id), images=listed)
    assert len(masks(proposed(path, shown(image_id)))) == 1
    known = read_annotations(path)
    key = known.key_of(ImageRow(image_id, None))
    assert known.coverage(key, RegionsRow.rejected(image_id, Rejection("no_masks"))) == "covered"
    assert [one.category for one in known.objects(key)] == ["cat"]


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("", "is not valid JSON"),
        ("[]", "no list `images` at the top, or an empty one; give a COCO instances or panoptic JSON"),
        ({"images": IMAGES}, "no list `annotations` at the top"),
        ({"images": [{"id": 7}], "annotations": [annotated(SQUARE)]}, "no entry of `images` has a usable `id`, `hei"),
        ({"images": ["x"], "annotations": [annotated(SQUARE)]}, "no entry of `images`"),
        ({"images": [{"id": 7, "height": 0, "width": 5}], "annotations": [{}]}, "no entry of `images`"),
        (
            {"images": IMAGES, "annotations": [{"segmentation": SQUARE}]},
            "1 annotations without a usable `image_id` .entry 0",
        ),
        ({"images": IMAGES, "annotations": [{"image_id": 7, "segments_info": []}]}, "is panoptic; give `segments`, "),
    ],
)
def test_a_file_of_another_form_is_refused_in_one_line(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=message) as caught:
        GroundTruth(kind="ground_truth", annotations=str(path)).open(device="cpu")
    assert "\n" not in str(caught.value)


def test_segments_for_instances_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not panoptic; leave `segments` out"):
        proposed(write(tmp_path, annotated(SQUARE)), segments=str(tmp_path))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    for act in (lambda truth: truth.open(device="cpu"), lambda truth: truth.record()):
        with pytest.raises(InputError, match="there is no file"):
            act(GroundTruth(kind="ground_truth", annotations=str(tmp_path / "absent.json")))
        with pytest.raises(InputError, match="is a folder"):
            act(GroundTruth(kind="ground_truth", annotations=str(tmp_path)))


def test_the_record_is_that_of_the_file(tmp_path: Path) -> None:
    path = Path(write(tmp_path, annotated(SQUARE)))
    path.write_text("content")
    record = GroundTruth(kind="ground_truth", annotations=str(path)).record()
    assert (record.role, record.name, record.licence) == ("proposals", "instances.json", "unknown")
    assert record.sha256 == "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
    licensed = GroundTruth(kind="ground_truth", annotations=str(path), licence="CC-BY-4.0")
    assert licensed.record().licence == "CC-BY-4.0"


@pytest.mark.skipif(not COCO.exists(), reason="needs the COCO sample beside the project")
def test_masks_of_coco_have_the_areas_that_coco_states() -> None:
    path = COCO / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    propose = GroundTruth(kind="ground_truth", annotations=str(path)).open(device="cpu")
    names = {category["id"]: category["name"] for category in content["categories"]}
    for image in content["images"][:10]:
        expected = [a for a in content["annotations"] if a["image_id"] == image["id"] and not a["iscrowd"]]
        (answer,) = propose([shown(str(image["id"]), image["height"], image["width"])], min_score=0.0)
        assert isinstance(answer, Proposals)
        assert answer.labels == tuple(names[a["category_id"]] for a in expected)
        areas_px = answer.masks_NHW.sum(dim=(1, 2)).tolist()
        assert areas_px == pytest.approx([a["area"] for a in expected], rel=0.1, abs=20)
