"""Reading pictures: every kind of file gives upright RGB or a reason, and nothing makes it raise."""

from __future__ import annotations

import errno
import hashlib
import io
import struct
import warnings
import zlib
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from maskmine.mining.images import read as images
from maskmine.mining.images.decode import DecodedImage, decode_image
from maskmine.mining.images.read import read_bytes
from maskmine.schemas.rows import Rejection
from tests.support.hostile.in_process import image_size, read_image

LIMIT = 1_000_000
# 2 × 3 pixels, each another grey: shows every turn and flip
GREYS_HW = np.array([[0, 40, 80], [120, 160, 255]], dtype=np.uint8)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (23, 31, 3), dtype=np.uint8))
WHITE, RED = [255, 255, 255], [255, 0, 0]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(data: bytes) -> np.ndarray:
    picture = decode_image(data, max_pixels=LIMIT)
    assert isinstance(picture, DecodedImage), picture
    assert picture.rgb_HW3.dtype == np.uint8
    assert image_size(data) == picture.rgb_HW3.shape[:2]
    return picture.rgb_HW3


def exif_with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def decode_detail(data: bytes) -> str:
    rejection = decode_image(data, max_pixels=LIMIT)
    assert isinstance(rejection, Rejection)
    assert rejection.reason == "decode_error"
    return rejection.detail


def test_a_picture_is_its_pixels_and_the_hash_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "noise.png"
    NOISE.save(path)
    picture = read_image(str(path), max_pixels=LIMIT)
    assert isinstance(picture, DecodedImage)
    assert np.array_equal(picture.rgb_HW3, np.asarray(NOISE))
    assert picture.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert picture.orientation == 1
    assert picture.rgb_HW3.flags.writeable
    assert picture.rgb_HW3.flags.c_contiguous


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(kind: str, orientation: int) -> None:
    stored = Image.fromarray(GREYS_HW).convert("RGB")
    data = encoded(stored, kind, exif=exif_with_orientation(orientation), lossless=True)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(pixels(data), np.asarray(expected))
    picture = decode_image(data, max_pixels=LIMIT)
    assert isinstance(picture, DecodedImage)
    assert picture.orientation == orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg_is_what_pillow_turns_it_into(orientation: int) -> None:
    data = encoded(NOISE, "JPEG", exif=exif_with_orientation(orientation))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(pixels(data), np.asarray(expected))


def test_orientation_6_turns_the_picture_clockwise() -> None:
    data = encoded(Image.fromarray(GREYS_HW), "PNG", exif=exif_with_orientation(6))
    assert pixels(data)[..., 0].tolist() == [[120, 0], [160, 40], [255, 80]]


@pytest.mark.parametrize("byte_order", ["II", "MM"])
@pytest.mark.parametrize(("kind", "code"), [(1, "B"), (3, "H"), (4, "L")])
def test_orientation_is_read_in_both_byte_orders_and_every_whole_number_type(
    byte_order: str, kind: int, code: str
) -> None:
    order = "<" if byte_order == "II" else ">"
    value = struct.pack(f"{order}{code}", 6).ljust(4, b"\0")
    other_tag = struct.pack(f"{order}HHLL", 0x0100, 4, 1, 3)
    directory = struct.pack(f"{order}H", 2) + other_tag + struct.pack(f"{order}HHL", 0x0112, kind, 1) + value
    exif = b"Exif\0\0" + byte_order.encode() + struct.pack(f"{order}HL", 42, 8) + directory + b"\0\0\0\0"
    assert pixels(encoded(NOISE, "JPEG", exif=exif)).shape == (31, 23, 3)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",  # the directory lies behind the end
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x0f\0\x02\0\0\0\x63\xff\xff\xff\xff",  # promises 65,535 tags
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0",  # orientation 99
    ],
)
def test_broken_exif_leaves_the_picture_as_stored(exif: bytes) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert pixels(encoded(NOISE, "JPEG", exif=exif)).shape == (23, 31, 3)
    assert said == []


def test_a_corrupt_colour_profile_does_no_harm() -> None:
    assert np.array_equal(pixels(encoded(NOISE, "PNG", icc_profile=b"no profile")), np.asarray(NOISE))
    assert pixels(encoded(NOISE, "JPEG", icc_profile=b"\0" * 200)).shape == (23, 31, 3)


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    values = np.array([[0, 400, 32768, 65535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        rgb = pixels(encoded(Image.fromarray(values), kind))
        assert rgb.tolist() == [[[0] * 3, [2] * 3, [128] * 3, [255] * 3]]


def test_thirty_two_bit_grey_is_refused_because_its_range_is_unknown() -> None:
    data = encoded(Image.fromarray(np.zeros((2, 2), dtype=np.float32)), "TIFF")
    assert decode_detail(data) == "broken TIFF: grey of mode F has no known range"


def test_transparent_pixels_are_white() -> None:
    rgba = np.zeros((1, 2, 4), dtype=np.uint8)
    rgba[0, 0] = [255, 0, 0, 255]
    image = Image.fromarray(rgba)
    assert pixels(encoded(image, "PNG")).tolist() == [[RED, WHITE]]
    assert pixels(encoded(image, "WEBP", lossless=True)).tolist() == [[RED, WHITE]]
    assert pixels(encoded(image.convert("LA"), "PNG"))[0, 1].tolist() == WHITE


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
def test_a_transparent_palette_entry_is_white(transparency: int | bytes) -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode="P")
    image.putpalette([255, 0, 0, 0, 255, 0])
    assert pixels(encoded(image, "PNG", transparency=transparency)).tolist() == [[RED, WHITE]]


def test_of_an_animation_the_first_frame_is_taken() -> None:
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encoded(red, kind, save_all=True, append_images=[blue], lossless=True)
        assert pixels(data)[0, 0].tolist() == RED


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK"])
def test_every_common_mode_becomes_rgb(mode: str) -> None:
    image = NOISE.convert(mode)
    data = encoded(image, "TIFF")
    assert np.array_equal(pixels(data), np.asarray(image.convert("RGB")))


def test_inverted_cmyk_of_adobe_keeps_its_colours() -> None:
    data = encoded(Image.new("RGB", (8, 8), (250, 128, 10)).convert("CMYK"), "JPEG")
    assert b"Adobe" in data
    assert np.abs(pixels(data).astype(int) - [250, 128, 10]).max() <= 4


def test_progressive_and_one_pixel_jpegs_are_read() -> None:
    assert pixels(encoded(NOISE, "JPEG", progressive=True)).shape == (23, 31, 3)
    assert pixels(encoded(Image.new("RGB", (1, 1)), "JPEG")).shape == (1, 1, 3)


def test_size_is_checked_before_anything_is_decoded() -> None:
    header = encoded(Image.new("L", (1, 1)), "PNG")
    ihdr = b"IHDR" + struct.pack(">LL", 60_000, 50_000) + header[24:29]
    huge = header[:12] + ihdr + struct.pack(">L", zlib.crc32(ihdr)) + header[33:]
    assert image_size(huge) == (50_000, 60_000)  # far above Pillow's own limit, and no warning
    assert decode_image(huge, max_pixels=50_000_000) == Rejection(
        "image_too_large", "60000 × 50000 = 3,000,000,000 pixels, more than `max_image_pixels: 50000000`"
    )


def test_a_picture_of_exactly_the_limit_is_read() -> None:
    data = encoded(NOISE, "PNG")
    assert isinstance(decode_image(data, max_pixels=23 * 31), DecodedImage)
    assert isinstance(decode_image(data, max_pixels=23 * 31 - 1), Rejection)


def test_pillows_own_limit_does_not_interfere(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(NOISE, "JPEG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert isinstance(decode_image(data, max_pixels=LIMIT), DecodedImage)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_a_frame_that_reaches_beyond_the_screen_is_measured_too() -> None:
    data = bytearray(encoded(Image.new("L", (4, 4)), "GIF"))
    position = data.index(b"\x2c\0\0\0\0\x04\0\x04\0")
    data[position + 5 : position + 9] = struct.pack("<HH", 4000, 4000)
    rejection = decode_image(bytes(data), max_pixels=LIMIT)
    assert isinstance(rejection, Rejection)
    assert rejection.reason == "image_too_large"


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"", "empty file"),
        (b"<html><body>404</body>", "not a picture: begins with '<html><body>404<'"),
        (b"\x00\x01\x02", r"not a picture: begins with '\x00\x01\x02'"),
        (encoded(NOISE, "PPM"), r"not a picture: begins with 'P6\n31 23\n255\n"),
        (b"BM and so on, a text", "broken BMP: "),
    ],
)
def test_what_is_no_picture_says_what_it_is(data: bytes, detail: str) -> None:
    assert decode_detail(data).startswith(detail)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000"])
def test_a_truncated_file_is_refused_and_not_filled_with_grey(kind: str) -> None:
    data = encoded(NOISE, kind)
    assert decode_detail(data[: len(data) * 2 // 3]).startswith(f"broken {kind}: ")


def test_a_missing_file_is_named_without_its_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert read_image(str(tmp_path / "a.jpg"), max_pixels=LIMIT) == Rejection("missing_file", "a.jpg: no such file")
    assert image_size(str(tmp_path / "a.jpg")) == Rejection("missing_file", "a.jpg: no such file")
    assert read_image(str(tmp_path), max_pixels=LIMIT) == Rejection("missing_file", f"{tmp_path.name}: a folder")
    assert read_bytes(str(tmp_path / "file" / "a.jpg")) == Rejection("missing_file", "a.jpg: no such file")
    assert read_bytes("/dev/null") == Rejection("missing_file", "null: not a regular file")
    assert read_bytes("a\0b") == Rejection("missing_file", "a\0b: no such file")
    assert read_bytes("a" * 300) == Rejection("missing_file", "a" * 80 + ": no such file")


def test_an_image_without_a_path_is_missing() -> None:
    expected = Rejection("missing_file", "the captions name this image, the image list does not")
    assert read_image(None, max_pixels=LIMIT) == expected
    assert image_size(None) == expected


@pytest.mark.parametrize("url", ["http://x/a.jpg", "https://x/a.jpg", "ftp://x/a.jpg", "memory://x::http://x/a.jpg"])
def test_nothing_is_fetched_from_a_url(url: str) -> None:
    expected = Rejection("missing_file", "a.jpg: nothing is fetched from a URL unless the user allows it")
    assert read_image(url, max_pixels=LIMIT) == expected


def test_file_urls_and_object_stores_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    NOISE.save(path)
    assert image_size(f"file://{path}") == (23, 31)
    with fsspec.open("memory://pictures/a.png", "wb") as file:
        file.write(path.read_bytes())
    assert image_size("memory://pictures/a.png") == (23, 31)
    assert read_bytes("memory://pictures/a.png") == path.read_bytes()
    assert read_bytes("memory://pictures/b.png") == Rejection("missing_file", "b.png: no such file")


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENOSPC])
def test_a_fault_of_the_disk_is_raised(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    NOISE.save(tmp_path / "a.png")

    class FailingFile(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if size != 16:  # the signature can be read, then the disk fails
                raise OSError(number, "the disk")
            return super().read(size)

    monkeypatch.setattr(images, "_open_local", lambda path: FailingFile((tmp_path / "a.png").read_bytes()))
    for read in (lambda path: read_image(path, max_pixels=LIMIT), image_size):
        with pytest.raises(OSError, match="the disk"):
            read(str(tmp_path / "a.png"))


def test_a_file_that_may_not_be_read_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(errno.EACCES, "no", path)

    monkeypatch.setattr(images, "_open_local", refuse)
    assert read_bytes(str(tmp_path / "a.jpg")) == Rejection("missing_file", "a.jpg: not readable")


# --- whatever the bytes are -------------------------------------------------------------------------------------------

WHOLE_FILES = [
    encoded(NOISE, "JPEG", exif=exif_with_orientation(6)),
    encoded(NOISE, "JPEG", progressive=True),
    encoded(NOISE, "PNG", exif=exif_with_orientation(6)),
    encoded(NOISE, "PNG", save_all=True, append_images=[NOISE]),
    encoded(NOISE, "GIF"),
    encoded(NOISE, "WEBP"),
    encoded(NOISE, "BMP"),
    encoded(NOISE, "TIFF", exif=exif_with_orientation(6)),
    encoded(NOISE, "AVIF", exif=exif_with_orientation(6)),
    encoded(NOISE, "JPEG2000"),
]


def assert_is_a_value(data: bytes) -> None:
    first, second = decode_image(data, max_pixels=LIMIT), decode_image(data, max_pixels=LIMIT)
    image_size(data)
    if isinstance(first, DecodedImage):
        assert isinstance(second, DecodedImage)
        assert np.array_equal(first.rgb_HW3, second.rgb_HW3)
    else:
        assert first == second
        assert " object at " not in first.detail


@given(st.binary(max_size=200), st.sampled_from([b"", *(data[:16] for data in WHOLE_FILES)]))
def test_any_bytes_give_a_picture_or_a_reason(data: bytes, start: bytes) -> None:
    assert_is_a_value(start + data)


@given(st.sampled_from(WHOLE_FILES), st.data())
def test_any_truncated_or_damaged_picture_gives_a_picture_or_a_reason(whole: bytes, data: st.DataObject) -> None:
    damaged = bytearray(whole)
    for position in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=8)):
        damaged[position] ^= data.draw(st.integers(1, 255))
    assert_is_a_value(bytes(damaged[: data.draw(st.integers(0, len(whole)))]))


def test_the_fate_of_a_picture_does_not_depend_on_the_warning_filters(tmp_path: Path) -> None:
    broken_tag = bytearray(encoded(NOISE, "TIFF"))
    (directory,) = struct.unpack_from("<L", broken_tag, 4)
    struct.pack_into("<HHLL", broken_tag, directory + 2 + 12 * 9, 0x010E, 2, 9999, 2**31)  # a text behind the end
    picture = decode_image(bytes(broken_tag), max_pixels=LIMIT)
    assert isinstance(picture, DecodedImage)
    assert np.array_equal(picture.rgb_HW3, np.asarray(NOISE))
    (tmp_path / "a.tif").write_bytes(broken_tag)
    assert image_size(str(tmp_path / "a.tif")) == (23, 31)


def test_a_file_too_long_for_its_pixels_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_HEADER_BYTES", 1000)
    path = tmp_path / "long.png"
    path.write_bytes(encoded(Image.new("RGB", (4, 4)), "PNG") + b"\0" * 5000)
    assert read_image(str(path), max_pixels=100) == Rejection("image_too_large", "a file of more than 1,800 bytes")


def test_a_side_that_no_crop_could_have_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "long.png"
    path.write_bytes(encoded(Image.new("L", (16_384, 1)), "PNG"))
    found = read_image(str(path), max_pixels=10**6)
    assert isinstance(found, Rejection)
    assert found.reason == "image_too_large"
