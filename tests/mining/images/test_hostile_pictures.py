"""Small pictures on which a decoder falls or hangs: every door to pixels answers with a value, and in good time."""

from __future__ import annotations

import ast
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskmine.mining.exports.images import decode, decode_crop
from maskmine.mining.images.child_decoder import Decoding
from maskmine.mining.images.decode import DecodedImage, StoredImage, decode_image, decode_stored, read_header
from maskmine.mining.images.file_blocks import MAX_SEGMENTS
from maskmine.mining.images.orientation import Orientation, turn_upright, turn_upright_array
from maskmine.mining.proposers.ground_truth import _segment_ids
from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.rows import Rejection
from tests.support import toy, toy_shards
from tests.support.hostile.corrupt_images import HOSTILE, RGB, encoded
from tests.support.paths import ROOT

MAX_PIXELS = 10**7
LAYERS = ("mining", "tuning", "pipelines")
SOON_S = 5.0


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < SOON_S


@pytest.fixture(params=sorted(HOSTILE))
def hostile(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / request.param
    path.write_bytes(HOSTILE[request.param]())
    return path


def test_whatever_the_bytes_are_the_answer_is_a_value(hostile: Path) -> None:
    data = hostile.read_bytes()
    assert isinstance(decode_image(data, max_pixels=MAX_PIXELS), DecodedImage | Rejection)
    assert isinstance(decode_stored(data, max_pixels=MAX_PIXELS), StoredImage | Rejection)
    assert isinstance(decode_stored(data, max_pixels=MAX_PIXELS, mode="RGB"), StoredImage | Rejection)
    read_header(data)


def test_what_stands_beside_the_pixels_of_a_gif_takes_no_time_and_its_picture_is_read() -> None:
    data = HOSTILE["comments.gif"]()
    plain = decode_image(encoded(RGB.convert("P"), "GIF"), max_pixels=MAX_PIXELS)
    answer = decode_image(data, max_pixels=MAX_PIXELS)
    assert isinstance(answer, DecodedImage)
    assert isinstance(plain, DecodedImage)
    assert np.array_equal(answer.rgb_HW3, plain.rgb_HW3)


def test_a_gif_keeps_what_makes_it_transparent() -> None:
    picture = Image.new("P", (4, 2), 1)
    picture.putpalette([0, 0, 0, 255, 0, 0])
    data = encoded(picture, "GIF", transparency=1)
    at = data.index(b"\x21\xf9")
    for blocks in (b"", b"\x21\xfe\x01x\x01x\x00", b"x\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"):
        answer = decode_image(data[:at] + blocks + data[at:], max_pixels=MAX_PIXELS)
        assert isinstance(answer, DecodedImage)
        assert (answer.rgb_HW3 == 255).all()


def test_a_jpeg_may_hold_another_one_and_as_many_scans_and_segments_as_encoders_write() -> None:
    data = encoded(RGB, "JPEG", progressive=True)
    comments = b"\xff\xfe\x00\x03x" * 100
    for good in (data, data + HOSTILE["scans.jpg"](), data[:2] + comments + data[2:]):
        assert isinstance(decode_image(good, max_pixels=MAX_PIXELS), DecodedImage)
    many = data[:2] + b"\xff\xe1\x00\x09Exif\0\0x" * MAX_SEGMENTS + data[2:]
    assert decode_image(many, max_pixels=MAX_PIXELS) == Rejection(
        "decode_error", "broken JPEG: more than 10,000 segments"
    )


def test_stored_pixels_come_out_of_the_child_as_they_are_in_the_file(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.uint16).reshape(2, 3)
    numbers = Image.fromarray(values.astype(np.uint8))
    pictures = {
        "L": numbers,
        "P": numbers.convert("P"),
        "1": Image.fromarray(values > 2),
        "I;16": Image.fromarray(values * 300),
        "RGBA": RGB.convert("RGBA"),
    }
    for mode, picture in pictures.items():
        picture.save(tmp_path / "a.png")
        stored = Decoding().read_stored(str(tmp_path / "a.png"), max_pixels=MAX_PIXELS)
        assert isinstance(stored, StoredImage)
        assert (stored.mode, stored.format) == (mode, "PNG")
        assert np.array_equal(stored.pixels, np.asarray(picture))
    too_large = Decoding().read_stored(str(tmp_path / "a.png"), max_pixels=9)
    assert isinstance(too_large, Rejection)
    assert too_large.reason == "image_too_large"


def test_the_header_says_both_sizes_and_the_turn(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    RGB.save(tmp_path / "a.jpg", exif=exif)
    header = Decoding().header(str(tmp_path / "a.jpg"))
    assert not isinstance(header, Rejection)
    assert (header.stored_px, header.upright_px) == ((RGB.height, RGB.width), (RGB.width, RGB.height))
    assert header.orientation == Orientation(6, "EXIF")


def test_pixels_of_an_array_are_turned_as_pillow_turns_them() -> None:
    for value in range(1, 9):
        expected = np.asarray(turn_upright(RGB, Orientation(value, "EXIF")))
        assert np.array_equal(turn_upright_array(np.asarray(RGB), Orientation(value, "EXIF")), expected)


def test_a_header_that_took_a_decoder_with_it_is_not_tried_again_for_its_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from maskmine.mining.images.batches import decode_batches

    monkeypatch.setattr(Decoding, "read", lambda *_, **__: pytest.fail("it was read"))
    toy.poison(tmp_path / "a.png", ("square",), "header loop")
    decoding = Decoding(timeout_s=0.3, attempts=1)
    batches = decode_batches(
        [str(tmp_path / "a.png")], decoding=decoding, max_pixels=MAX_PIXELS, threads=1, batch_size=1
    )
    assert [answer for _, answers in batches for answer in answers] == [
        Rejection("record_timeout", "decoding took more than 0.3 s, tried once")
    ]


# --- the doors of the commands ----------------------------------------------------------------------------------------


def test_a_panoptic_picture_costs_its_own_image(hostile: Path) -> None:
    answer = _segment_ids(str(hostile), size_px=(1024, 1024))
    assert isinstance(answer, Rejection)
    assert answer.reason == "no_masks"


def test_label_maps_cost_their_own_image(hostile: Path) -> None:
    from maskmine.pipelines.segment.benchmark import read_label_map
    from maskmine.tuning.benchmarks.label_maps import read_index_map
    from maskmine.tuning.evaluation import labelled_regions
    from maskmine.tuning.open_vocabulary import data

    assert isinstance(read_index_map(hostile), np.ndarray | str)
    assert isinstance(labelled_regions._read_map(hostile), np.ndarray | str)
    assert isinstance(read_label_map(str(hostile)), np.ndarray | Rejection)
    assert isinstance(data._read(hostile, hostile, classes=3), tuple | str)
    assert labelled_regions._foreground(hostile.read_bytes(), toy.draw(("square",)), None).all()


def test_pictures_of_an_evaluation_cost_themselves(hostile: Path, tmp_path: Path) -> None:
    from maskmine.tuning.evaluation.labelled_regions import Crops

    (tmp_path / "crops" / "dog").mkdir(parents=True)
    hostile.rename(tmp_path / "crops" / "dog" / hostile.name)
    regions = Crops(kind="crops", folder=str(tmp_path / "crops")).open()
    assert len(list(regions.images)) + regions.left_out.total() == 1
    assert regions.left_out <= Counter({"decode_error": 1})


def test_a_prepared_set_leaves_such_a_picture_out(hostile: Path, tmp_path: Path) -> None:
    from maskmine.tuning.benchmarks import prepare
    from maskmine.tuning.benchmarks.layouts import LAYOUTS, Entry

    entry = Entry("1", hostile, hostile)
    layout = LAYOUTS["voc20"]
    assert isinstance(prepare._labels(entry, layout, layout.numbering(tmp_path)), np.ndarray | str)
    assert isinstance(prepare._write_image(entry, tmp_path / "out.jpg", (2, 2), as_stored=True), str | None)


def test_a_crop_in_a_shard_is_no_more_trusted_than_a_picture_from_outside(hostile: Path) -> None:
    sample = toy_shards.stored_picture(toy.draw(("square",)), toy.shape_mask("square"))
    assert decode(sample).image.size == (toy.WIDTH_PX, toy.HEIGHT_PX)
    changed = replace(sample, image=hostile.read_bytes(), mask_png=hostile.read_bytes())
    if hostile.suffix == ".gif":  # which is of that size, and a crop
        assert decode_crop(changed).size == (toy.WIDTH_PX, toy.HEIGHT_PX)
        return
    with pytest.raises(IncompleteError, match="cannot be read"):
        decode_crop(changed)
    with pytest.raises(IncompleteError, match="cannot be read"):
        decode(changed)


CHILD = {"mining/images/decode.py", "mining/images/decoder_process.py", "mining/images/png_chunks.py"}
DECODERS = {"decode_image", "decode_stored", "read_header", "open_png", "decode_png", "decode_jpeg"}


def test_only_the_child_process_decodes() -> None:
    """A new reader of pictures that forgets the limits is found here."""
    files = {path.relative_to(ROOT).as_posix(): path for layer in LAYERS for path in (ROOT / layer).rglob("*.py")}
    found = {name: sorted(_decoders_in(path)) for name, path in files.items() if name not in CHILD}
    assert {name: used for name, used in found.items() if used} == {}


def _decoders_in(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names if alias.name in DECODERS)
        elif isinstance(node, ast.Attribute):
            named = ast.unparse(node)
            yield from [named] if named == "Image.open" or named.endswith((".imread", ".imdecode")) else []
