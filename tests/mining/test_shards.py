"""A shard holds what was decided, whatever the number of threads, and its official readers read it."""

from __future__ import annotations

import io
import json
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from maskmine.mining.images.encode import encode_mask
from maskmine.mining.shards import ImageToWrite, ShardAccount, Shards, first_rejection, write_shard
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import ImageRow, Pair, PairsRow, Region, RegionsRow, Rejection, SampleRow
from maskmine.schemas.sample import FORMAT_VERSION, record_keys
from tests.support import toy
from tests.support.hostile.in_process import read_image

READ = partial(read_image, max_pixels=10**6)


def keep_all(*_: object) -> bool:
    return True


def item(folder: Path, image_id: str, shapes: tuple[str, ...], nouns: list[tuple[str, int]]) -> ImageToWrite:
    """An image on the disk, its shapes as regions, and `(noun, region)` pairs."""
    path = folder / f"{image_id}.png"
    Image.fromarray(toy.draw(shapes)).save(path)
    regions = []
    for shape in shapes:
        mask = Mask.from_array(toy.shape_mask(shape))
        regions.append(
            Region(mask=mask, box_xyxy=mask.box_xyxy, area_px=mask.area_px, score=0.75, label=shape, embedding=None)
        )
    picture = read_image(str(path), max_pixels=10**6)
    assert not isinstance(picture, Rejection)
    seen = RegionsRow(
        image_id=image_id,
        sha256=picture.sha256,
        height_px=toy.HEIGHT_PX,
        width_px=toy.WIDTH_PX,
        regions=tuple(regions),
        rejection=None,
    )
    pairs = tuple(
        Pair(
            noun=noun, lemma=noun, caption=0, start=0, end=len(noun), region=region, similarity=0.25, margin=0.5, rank=0
        )
        for noun, region in nouns
    )
    return ImageToWrite(ImageRow(image_id, str(path)), ("a caption",), seen, PairsRow(image_id, pairs, None), None)


def write(
    items: list[ImageToWrite], shards: Shards | None = None, keep: Any = keep_all
) -> tuple[bytes, list[SampleRow], ShardAccount]:
    file = io.BytesIO()
    index, account = write_shard(
        file, items, shards=shards or Shards(image_format="png"), keep=keep, shard="00000.tar", read=READ
    )
    return file.getvalue(), index, account


def members(content: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]


def test_crop_mask_noun_and_record_are_those_of_the_pair(tmp_path: Path) -> None:
    content, (row,), account = write([item(tmp_path, "7", ("square",), [("box", 0)])], Shards(image_format="png"))
    found = members(content)
    assert list(found) == ["7-000.png", "7-000.mask.png", "7-000.txt", "7-000.json"]
    x0, y0, x1, y1 = row.crop_xyxy
    crop = np.asarray(Image.open(io.BytesIO(found["7-000.png"])))
    mask = np.asarray(Image.open(io.BytesIO(found["7-000.mask.png"])))
    np.testing.assert_array_equal(crop, toy.draw(("square",))[y0:y1, x0:x1])  # not blanked: the grey is there
    np.testing.assert_array_equal(mask, toy.shape_mask("square")[y0:y1, x0:x1] * 255)
    assert found["7-000.txt"] == b"box"
    record = json.loads(found["7-000.json"])
    assert record.keys() == record_keys(FORMAT_VERSION)
    assert list(record) == sorted(record)
    assert record["box_xyxy"] == [7, 7, 22, 22]
    assert (x0, y0, x1, y1) == tuple(record["crop_xyxy"])
    assert x0 < 7 < 22 < x1
    assert record["box_crop_xyxy"] == [7 - x0, 7 - y0, 22 - x0, 22 - y0]
    assert (account.images, account.with_pairs, account.samples, account.size_bytes) == (1, 1, 1, len(content))


@pytest.mark.parametrize("version", [3, 4, 5])
def test_a_record_has_the_keys_of_its_sets_version(tmp_path: Path, version: int) -> None:
    file = io.BytesIO()
    one = item(tmp_path, "7", ("square",), [("box", 0)])
    settings = Shards(image_format="png")
    write_shard(file, [one], shards=settings, keep=keep_all, shard="00000.tar", read=READ, version=version)
    assert json.loads(members(file.getvalue())["7-000.json"]).keys() == record_keys(version)


def test_the_index_says_where_each_sample_lies(tmp_path: Path) -> None:
    content, index, _ = write([item(tmp_path, "7", ("square", "disc"), [("box", 0), ("ball", 1), ("thing", 1)])])
    for row in index:
        with tarfile.open(fileobj=io.BytesIO(content[row.offset : row.offset + row.size_bytes])) as tar:
            assert {name.partition(".")[0] for name in tar.getnames()} == {row.key}
            assert len(tar.getnames()) == 4


def test_the_bytes_do_not_depend_on_threads(tmp_path: Path) -> None:
    items = [item(tmp_path, str(n), ("square", "bar"), [("box", 0), ("line", 1)]) for n in range(9)]
    assert len({write(items, Shards(threads=threads))[0] for threads in (1, 2, 5)}) == 1


def test_a_filtered_pair_leaves_the_keys_of_the_others(tmp_path: Path) -> None:
    items = [item(tmp_path, "7", ("square", "disc"), [("box", 0), ("ball", 1)])]
    _, index, account = write(items, keep=lambda image_id, number, pair, check: pair.noun == "ball")
    assert [row.key for row in index] == ["7-001"]
    _, index, account = write(items, keep=lambda *_: False)
    assert index == []
    assert account.rejections == (("7", "shards", Rejection("filtered", "2 pairs")),)


def test_images_are_those_with_pairs_and_those_rejected_each_with_its_step(tmp_path: Path) -> None:
    good = item(tmp_path, "7", ("square",), [("box", 0)])
    rejected = ("nouns", Rejection("no_nouns"))
    early = ImageToWrite(ImageRow("8", None), (), good.regions, PairsRow("8", (), None), rejected)
    gone = item(tmp_path, "9", ("square",), [("box", 0)])
    Path(str(gone.image.path)).unlink()
    _, index, account = write([early, good, gone])
    assert account.by_reason == {"nouns: no_nouns": 1, "shards: missing_file": 1}
    assert (account.images, account.with_pairs) == (3, 1)
    assert {row.image_id for row in index} == {"7"}


def test_a_part_without_pairs_is_a_valid_empty_tar() -> None:
    content, index, account = write([])
    assert members(content) == {}
    assert (index, account.images, account.samples) == ([], 0, 0)


@pytest.mark.parametrize(("image_format", "kind"), [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")])
def test_the_crop_has_the_chosen_format(tmp_path: Path, image_format: Any, kind: str) -> None:
    items = [item(tmp_path, "7", ("square",), [("box", 0)])]
    content, _, _ = write(items, Shards(image_format=image_format))
    assert Image.open(io.BytesIO(members(content)[f"7-000.{image_format}"])).format == kind


@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)))
def test_a_mask_survives_its_png(mask_HW: np.ndarray) -> None:
    with Image.open(io.BytesIO(encode_mask(mask_HW))) as image:
        image.load()
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), mask_HW * np.uint8(255))


STEPS = ("nouns", "proposals", "embeddings", "pairs")


@given(st.lists(st.sampled_from(STEPS), unique=True))
def test_the_first_step_that_rejects_an_image_names_its_end(rejecting: list[str]) -> None:
    steps = {name: Rejection("no_match", name) if name in rejecting else None for name in STEPS}
    expected = next(((name, r) for name, r in steps.items() if r), None)
    assert first_rejection(**steps) == expected


@pytest.mark.parametrize(
    ("nouns", "proposals", "told"),
    [
        ("no_caption", "broken_record", ("proposals", "broken_record")),
        ("no_nouns", "missing_file", ("proposals", "missing_file")),
        ("no_caption", "decode_error", ("proposals", "decode_error")),
        ("no_caption", "no_masks", ("nouns", "no_caption")),
        ("no_nouns", None, ("nouns", "no_nouns")),
    ],
)
def test_a_fault_is_told_before_that_nothing_was_found(nouns: Any, proposals: Any, told: tuple[str, str]) -> None:
    steps = {"nouns": nouns, "proposals": proposals, "pairs": None}
    found = first_rejection(**{step: reason and Rejection(reason) for step, reason in steps.items()})
    assert found is not None
    assert (found[0], found[1].reason) == told
