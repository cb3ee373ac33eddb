"""The turn of a picture is Pillow's `exif_transpose`, wherever a file states it; what stands beside the pixels refuses
none."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from maskmine.mining.images.child_decoder import Decoding
from maskmine.mining.images.decode import DecodedImage, StoredImage, decode_image, decode_stored
from maskmine.tuning.evaluation.labelled_regions import _foreground
from tests.support.hostile.in_process import image_size

LIMIT = 1_000_000
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (23, 31, 3), dtype=np.uint8))
LOSSLESS = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}, "JPEG": {"quality": 95}}
IN_TEXT = "EXIF in PNG text"


def exif(orientation: int | None) -> bytes:
    made = Image.Exif()
    made[0x010E] = "a picture"
    if orientation is not None:
        made[0x0112] = orientation
    return made.tobytes()


def profile(orientation: int | None) -> str:
    """EXIF as ImageMagick writes it into a PNG: a head of three lines, then 72 digits a line."""
    digits = exif(orientation).hex()
    lines = "\n".join(digits[i : i + 72] for i in range(0, len(digits), 72))
    return f"\nexif\n{len(digits) // 2:8d}\n{lines}\n"


def xmp(orientation: int | None, *, element: bool = False) -> str:
    stated = f"<tiff:Orientation>{orientation}</tiff:Orientation>" if element else f'tiff:Orientation="{orientation}"'
    return f"<x:xmpmeta><rdf:Description {stated if orientation is not None else ''}/></x:xmpmeta>"


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def text_chunks(kind: str, key: bytes, text: str) -> bytes:
    data = text.encode()
    if kind == "tEXt":
        return chunk(b"tEXt", key + b"\0" + data)
    if kind == "zTXt":
        return chunk(b"zTXt", key + b"\0\0" + zlib.compress(data))
    packed = kind == "packed iTXt"
    return chunk(b"iTXt", key + (b"\0\1\0\0\0" + zlib.compress(data) if packed else b"\0\0\0\0\0" + data))


def png(*, before: bytes = b"", behind: bytes = b"") -> bytes:
    """The noise as PNG with further chunks before and behind its pixels."""
    data = encoded("PNG")
    start, end = data.index(b"IDAT") - 4, len(data) - 12
    return data[:start] + before + data[start:end] + behind + data[end:]


def encoded(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    NOISE.save(file, kind, **{**LOSSLESS.get(kind, {}), **options})
    return file.getvalue()


def turned_as_pillow_does(data: bytes) -> DecodedImage:
    """The decoded picture, which is Pillow's; its size is known without the pixels."""
    found = decode_image(data, max_pixels=LIMIT)
    assert isinstance(found, DecodedImage), found
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(found.rgb_HW3, np.asarray(expected))
    assert image_size(data) == found.rgb_HW3.shape[:2]
    return found


PLACES = {
    "an eXIf chunk before the pixels": (lambda o: png(before=chunk(b"eXIf", exif(o)[6:])), "EXIF"),
    "an eXIf chunk behind the pixels": (lambda o: png(behind=chunk(b"eXIf", exif(o)[6:])), "EXIF"),
    "a packed profile of ImageMagick": (
        lambda o: png(before=text_chunks("zTXt", b"Raw profile type exif", profile(o))),
        IN_TEXT,
    ),
    "a plain profile behind the pixels": (
        lambda o: png(behind=text_chunks("tEXt", b"Raw profile type exif", profile(o))),
        IN_TEXT,
    ),
    "XMP in a PNG": (lambda o: png(before=text_chunks("iTXt", b"XML:com.adobe.xmp", xmp(o))), "XMP"),
    "packed XMP behind the pixels": (
        lambda o: png(behind=text_chunks("packed iTXt", b"XML:com.adobe.xmp", xmp(o, element=True))),
        "XMP",
    ),
    "XMP in a JPEG": (lambda o: encoded("JPEG", xmp=xmp(o).encode()), "XMP"),
    "XMP in a JPEG beside EXIF without it": (lambda o: encoded("JPEG", xmp=xmp(o).encode(), exif=exif(None)), "XMP"),
    "XMP in a WebP": (lambda o: encoded("WEBP", xmp=xmp(o, element=True).encode()), "XMP"),
    "XMP in a TIFF": (lambda o: encoded("TIFF", tiffinfo={700: xmp(o).encode()}), "XMP"),
    "XMP in a packed TIFF": (
        lambda o: encoded("TIFF", tiffinfo={700: xmp(o).encode()}, compression="tiff_lzw"),
        "XMP",
    ),
    "EXIF in a TIFF": (lambda o: encoded("TIFF", exif=exif(o)), "EXIF"),
    "the tags of an AVIF": (lambda o: encoded("AVIF", exif=exif(o)), "EXIF"),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("place", PLACES)
def test_an_orientation_is_followed_wherever_it_stands_and_its_source_is_known(place: str, orientation: int) -> None:
    write, source = PLACES[place]
    found = turned_as_pillow_does(write(orientation))
    assert found.orientation == orientation
    if orientation != 1:
        assert found.turned_by == source


@pytest.mark.parametrize("stated", [0, 9, 99])
def test_an_orientation_that_means_nothing_turns_nothing(stated: int) -> None:
    for data in (png(before=chunk(b"eXIf", exif(stated)[6:])), encoded("JPEG", xmp=xmp(stated).encode())):
        assert turned_as_pillow_does(data).rgb_HW3.shape == (23, 31, 3)


STATED = st.sampled_from([None, *range(1, 9)])


@given(exif_chunk=STATED, raw=STATED, in_xmp=STATED, behind=st.booleans())
def test_of_several_statements_pillows_is_followed(
    exif_chunk: int | None, raw: int | None, in_xmp: int | None, behind: bool
) -> None:
    chunks = b"".join(
        [
            chunk(b"eXIf", exif(exif_chunk)[6:]) if exif_chunk else b"",
            text_chunks("zTXt", b"Raw profile type exif", profile(raw)) if raw else b"",
            text_chunks("iTXt", b"XML:com.adobe.xmp", xmp(in_xmp)),
        ]
    )
    turned_as_pillow_does(png(behind=chunks) if behind else png(before=chunks))


LONG = "x" * 2_000_000
NOT_THE_PIXELS = {
    "a long packed text": png(before=text_chunks("zTXt", b"parameters", LONG)),
    "a long packed text behind the pixels": png(behind=text_chunks("packed iTXt", b"workflow", LONG)),
    "many texts": png(before=chunk(b"tEXt", b"part\0" + bytes(9_000_000)) * 8),  # above Pillow's sum of 64 MiB
    "a large colour profile": encoded("PNG", icc_profile=os.urandom(1_600_000)),
    "a large colour profile of a JPEG": encoded("JPEG", icc_profile=os.urandom(1_600_000)),
    "a text with a wrong sum": png(before=chunk(b"tEXt", b"Title\0photo")[:-4] + b"\0\0\0\0"),
    "a resolution cut off": png(before=chunk(b"pHYs", b"\0\0\1")),
}


@pytest.mark.parametrize("name", NOT_THE_PIXELS)
def test_nothing_beside_the_pixels_refuses_a_picture(name: str) -> None:
    data = NOT_THE_PIXELS[name]
    found = decode_image(data, max_pixels=20_000_000)
    assert isinstance(found, DecodedImage), found
    assert np.abs(found.rgb_HW3.astype(int) - np.asarray(NOISE)).mean() <= 60 * data.startswith(b"\xff\xd8")
    assert image_size(data) == (23, 31)


def test_an_orientation_behind_a_long_text_is_found(tmp_path: Path) -> None:
    data = png(before=text_chunks("zTXt", b"parameters", LONG), behind=chunk(b"eXIf", exif(6)[6:]))
    (tmp_path / "a.png").write_bytes(data)
    found = Decoding().read(str(tmp_path / "a.png"), max_pixels=LIMIT)
    assert isinstance(found, DecodedImage)
    assert (found.rgb_HW3.shape, found.orientation, found.turned_by) == ((31, 23, 3), 6, "EXIF")
    assert Decoding().size(str(tmp_path / "a.png"), max_pixels=LIMIT) == (31, 23)


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_avif_and_jpeg_2000_are_read(kind: str, mode: str) -> None:
    file = io.BytesIO()
    NOISE.convert(mode).save(file, kind, **LOSSLESS.get(kind, {}))
    assert turned_as_pillow_does(file.getvalue()).rgb_HW3.shape == (23, 31, 3)


def test_the_bare_stream_of_a_jpeg_2000_is_read() -> None:
    data = encoded("JPEG2000", no_jp2=True)
    assert data.startswith(b"\xff\x4f")
    assert np.array_equal(turned_as_pillow_does(data).rgb_HW3, np.asarray(NOISE))


def test_a_mask_as_transparency_is_turned_with_its_picture() -> None:
    alpha = Image.fromarray(np.tri(16, dtype=np.uint8) * 255)
    picture = NOISE.crop((0, 0, 16, 16)).convert("RGBA")
    picture.putalpha(alpha)
    for kind, options in (("PNG", {"exif": exif(6)}), ("TIFF", {"exif": exif(6)}), ("WEBP", {"xmp": xmp(6).encode()})):
        file = io.BytesIO()
        picture.save(file, kind, **options, **LOSSLESS.get(kind, {}))
        mask_HW = _foreground(file.getvalue(), np.zeros((16, 16, 3), np.uint8), None)
        assert np.array_equal(mask_HW, np.asarray(alpha.transpose(Image.Transpose.ROTATE_270)) > 0), kind


def test_a_label_map_with_a_long_text_is_read(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", LONG, zip=True)
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(tmp_path / "a.png", pnginfo=info)
    stored = decode_stored((tmp_path / "a.png").read_bytes(), max_pixels=LIMIT)
    assert isinstance(stored, StoredImage)
    assert np.array_equal(stored.pixels, np.eye(4))
