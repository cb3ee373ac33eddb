"""The benchmarks' classes, which of them were seen, and the size of their images and label maps."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import maskmine.tuning.benchmarks.prepare as benchmarks
from maskmine.mining.images.decode import DecodedImage
from maskmine.schemas.errors import InputError
from maskmine.tuning.benchmarks.classes import ClassList, seen_classes, shipped_classes
from maskmine.tuning.benchmarks.label_maps import shrink_image, shrink_map, shrunk_size, void_number
from maskmine.tuning.benchmarks.prepare import BENCHMARKS, NAMES, class_names, prepare
from tests.support.benchmark_layouts import read_map, save_map, write_miniature
from tests.support.hostile.in_process import read_image

SHIPPED = [name for name in NAMES if name != "pc459"]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_lists_of_classes_are_those_that_are_pinned(name: str) -> None:
    classes = shipped_classes(name)
    assert classes.is_official(name)
    assert not ClassList(classes.names[::-1], classes.stored).is_official(name)
    assert len(set(classes.names)) == len(set(classes.stored)) == len(classes.names)
    assert class_names(name) == classes.names


def test_a_class_is_seen_that_coco_stuff_names_or_a_synonym_of_one() -> None:
    names = (
        "sofa",
        "diningtable",
        "road, route",
        "wall",
        "tvmonitor",
        "armchair",
        "lamp",
        "andiron, firedog, dog, dog-iron",
    )
    assert seen_classes(names) == {"sofa", "diningtable", "road, route", "wall", "tvmonitor"}
    assert {name: len(seen_classes(class_names(name))) for name in BENCHMARKS if name != "pc459"} == {
        "ade150": 69,
        "ade847": 121,
        "pc59": 53,
        "voc20": 20,
    }


def test_a_large_picture_is_shrunk_to_a_short_side_of_512_and_a_small_one_is_not() -> None:
    assert shrunk_size((2000, 3000), 512) == (512, 768)
    assert shrunk_size((3000, 2000), 512) == (768, 512)
    assert shrunk_size((600, 512), 512) == (600, 512)
    assert shrunk_size((400, 800), 512) == (400, 800)
    assert shrunk_size((513, 513), 512) == (512, 512)


@pytest.mark.parametrize(("old", "new", "at", "kept"), [(22, 18, 9, 10), (26, 10, 5, 12), (744, 512, 320, 464)])
def test_labels_are_shrunk_as_opencv_computes_it(old: int, new: int, at: int, kept: int) -> None:
    assert at * old // new == kept + 1  # in whole numbers; 1 ÷ (new ÷ old) falls short of that by rounding
    assert shrink_map(np.arange(old)[None], (1, new))[0, at] == kept
    assert shrink_map(np.arange(old)[:, None], (new, 1))[at, 0] == kept


@pytest.mark.parametrize(
    ("ignore", "classes", "first", "void"),
    [(None, 255, 0, 255), (None, 256, 0, 65535), (None, 255, 1, 65535), (7, 7, 0, 7)],
)
def test_pixels_that_do_not_count_have_the_number_of_no_class(
    ignore: int | None, classes: int, first: int, void: int
) -> None:
    assert void_number(ignore, classes=classes, first=first, setting="--ignore") == void


def test_the_number_of_a_class_is_not_taken_for_pixels_that_do_not_count() -> None:
    with pytest.raises(InputError, match="--ignore 255: is also the number of one of the 256 classes, 0 to 255"):
        void_number(255, classes=256, setting="--ignore")


def test_labels_are_shrunk_without_new_numbers_and_pictures_linearly() -> None:
    labels_HW = np.arange(6 * 9).reshape(6, 9)
    assert np.array_equal(shrink_map(labels_HW, (4, 6)), labels_HW[[0, 1, 3, 4]][:, [0, 1, 3, 4, 6, 7]])
    rgb_HW3 = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)
    shrunk = np.asarray(shrink_image(Image.fromarray(rgb_HW3), (4, 6))).astype(float)
    at_y, at_x = (np.arange(4) + 0.5) * 1.5 - 0.5, (np.arange(6) + 0.5) * 1.5 - 0.5
    y, x = np.floor(at_y).astype(int), np.floor(at_x).astype(int)
    down, right = (at_y - y)[:, None, None], (at_x - x)[None, :, None]
    corners = [rgb_HW3[np.clip(y + i, 0, 5)][:, np.clip(x + j, 0, 8)] for i in (0, 1) for j in (0, 1)]
    weights = [(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right]
    linear = sum(weight * corner for weight, corner in zip(weights, corners, strict=True))
    assert np.abs(shrunk - linear).max() <= 1


def test_synonyms_are_listed_under_classes_of_coco_stuff_and_stand_for_no_other() -> None:
    table = yaml.safe_load((Path(benchmarks.__file__).with_name("class_lists") / "seen_classes.yaml").read_text())
    coco = class_names("coco-stuff-171")
    assert set(table["synonyms"]) <= set(coco)
    listed = [name for names in table["synonyms"].values() for name in names]
    assert len(set(listed)) == len(listed)
    assert not set(listed) & set(coco)
    assert set(table["other_sense"]) <= {name for one in BENCHMARKS if one != "pc459" for name in class_names(one)}


# --- pictures that EXIF or XMP turns ----------------------------------------------------------------------------------


def turn(path: Path, orientation: int, *, by: str) -> None:
    with Image.open(path) as image:
        image.load()
    exif = Image.Exif()
    exif[0x0112] = orientation
    xmp = f'<rdf:Description tiff:Orientation="{orientation}"/>'.encode()
    if by == "EXIF":
        image.save(path, quality=95, exif=exif)
    else:
        image.save(path, quality=95, xmp=xmp)


@pytest.mark.parametrize("by", ["EXIF", "XMP"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_a_picture_that_is_turned_is_not_left_out_and_lies_as_its_map_does(
    orientation: int, by: str, tmp_path: Path
) -> None:
    expected = write_miniature("ade847", tmp_path)["ADE_val_00000001"]
    picture = next(tmp_path.rglob("ADE_val_00000001.jpg"))
    with Image.open(picture) as image:
        stored_HW3 = np.asarray(image)
    turn(picture, orientation, by=by)
    prepared = prepare("ade847", str(tmp_path), partial=True)
    assert prepared.left_out == ()
    first = prepared.dataset.images[0]
    assert np.array_equal(read_map(first.labels), expected)
    found = read_image(first.image, max_pixels=1_000)  # as it is evaluated
    assert isinstance(found, DecodedImage)
    assert found.rgb_HW3.shape[:2] == expected.shape
    assert np.abs(found.rgb_HW3.astype(int) - stored_HW3).max() < 40


@pytest.mark.parametrize("by", ["EXIF", "XMP"])
def test_the_map_of_a_picture_that_is_evaluated_as_it_is_turns_with_it(by: str, tmp_path: Path) -> None:
    expected = write_miniature("ade150", tmp_path)["ADE_val_00000001"]
    turn(next(tmp_path.rglob("ADE_val_00000001.jpg")), 6, by=by)
    prepared = prepare("ade150", str(tmp_path), partial=True)
    assert prepared.left_out == ()
    turned = read_map(prepared.dataset.images[0].labels)
    assert np.array_equal(turned, np.rot90(expected, -1))
    maps = tmp_path / "ADEChallengeData2016/annotations_detectron2"
    shutil.rmtree(maps)
    save_map(maps / "validation/ADE_val_00000001.png", expected)  # as another tool makes it
    (left_out,) = prepare("ade150", str(tmp_path), partial=True).left_out
    assert left_out.reason == "its picture is turned by EXIF or XMP, and its map, of another tool, is not"
