"""One bad record never stops a run and never removes another: a world of faulty pictures and captions, mined whole."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.status import rejected_images
from pipelines.verify import verify_run
from schemas.mask import Mask
from tests import toy
from tests.test_mine import run_toy, samples

SQUARE = toy.draw(("square",))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of 100,000 × 100,000 pixels in its header, and hardly a byte of them."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def with_alpha() -> Image.Image:
    image = Image.fromarray(SQUARE).convert("RGBA")
    image.putalpha(Image.fromarray(toy.shape_mask("square").astype(np.uint8) * 255))
    return image


def turned() -> bytes:
    """The picture stored lying on its side, with the EXIF orientation that sets it upright."""
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned a quarter to the left
    return encoded(RGB.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif)


RGB = Image.fromarray(SQUARE)
GREY_16 = Image.fromarray(SQUARE[:, :, 0].astype(np.uint16) * 257)
PICTURES: dict[str, tuple[Callable[[], bytes] | None, str | None]] = {
    # what is in the file, and the reason of its rejection, None where it must give its pair
    "missing": (None, "missing_file"),
    "empty": (lambda: b"", "decode_error"),
    "truncated": (lambda: encoded(RGB.resize((640, 480)), "JPEG")[:900], "decode_error"),
    "html": (lambda: b"<html><body>404</body></html>", "decode_error"),
    "noise": (lambda: bytes(range(256)) * 4, "decode_error"),
    "bomb": (bomb, "image_too_large"),
    "one_pixel": (lambda: encoded(RGB.resize((1, 1)), "PNG"), "no_masks"),
    "cmyk": (lambda: encoded(RGB.convert("CMYK"), "JPEG"), None),
    "sixteen_bits": (lambda: encoded(GREY_16, "PNG"), None),
    "palette": (lambda: encoded(RGB.convert("P"), "PNG"), None),
    "alpha": (lambda: encoded(with_alpha(), "PNG"), None),
    "grey": (lambda: encoded(RGB.convert("L"), "JPEG"), None),
    "progressive": (lambda: encoded(RGB, "JPEG", progressive=True), None),
    "exif": (turned, None),
    "webp": (lambda: encoded(RGB, "WEBP"), None),
    "good": (lambda: encoded(RGB, "JPEG"), None),
}
CAPTIONS: dict[str, tuple[str, str | None]] = {
    "empty caption": ("", "no_caption"),
    "spaces": (" \n\t ", "no_caption"),
    "huge": ("a square " * 11_112, "no_caption"),
    "right to left": ("مربع أحمر صغير, a square", None),
    "surrogate": ("\ud83d a square", None),
    "null byte": ("a\0 square", None),
    "emoji": ("\N{LARGE RED SQUARE} a square", None),
    "two lines": ("a\nsquare", None),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    (folder / "images").mkdir()
    images, captions, instances = [], [], []
    cases = {**{name: ("A square.", make) for name, (make, _) in PICTURES.items()}}
    cases |= {name: (caption, PICTURES["good"][0]) for name, (caption, _) in CAPTIONS.items()}
    mask = Mask.from_array(toy.shape_mask("square"))
    for number, (name, (caption, make)) in enumerate(cases.items(), start=1):
        if make is not None:
            (folder / "images" / f"{number}.jpg").write_bytes(make())
        images.append({"id": name, "file_name": f"{number}.jpg", "height": toy.HEIGHT_PX, "width": toy.WIDTH_PX})
        captions.append({"id": number, "image_id": name, "caption": caption})
        rle = {"size": [toy.HEIGHT_PX, toy.WIDTH_PX], "counts": mask.counts.decode("ascii")}
        instances.append({"id": number, "image_id": name, "category_id": 1, "segmentation": rle, "iscrowd": 0})
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    categories = [{"id": 1, "name": "square"}]
    instances_json = {"images": images, "annotations": instances, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(instances_json))
    return folder


def test_every_faulty_record_is_rejected_with_its_reason_and_every_other_gives_its_pair(world: Path) -> None:
    run, outcome, _ = run_toy(toy.write_config(world), "shards.images_per_part=8")
    expected = {name: reason for name, (_, reason) in (PICTURES | CAPTIONS).items()}
    found = {image.image_id: image.reason for image in rejected_images(run)}
    assert found == {name: reason for name, reason in expected.items() if reason}
    assert {row.image_id for row in samples(run)} == {name for name, reason in expected.items() if reason is None}
    assert outcome.manifest is not None
    totals = outcome.manifest.totals
    assert totals.images == totals.with_pairs + sum(totals.rejected.values()) == len(expected)
    assert [str(problem) for problem in verify_run(run)] == []


def test_every_rejection_says_what_is_wrong_without_naming_the_machine(world: Path) -> None:
    run, _, _ = run_toy(toy.write_config(world), f"out={world / 'details'}")
    for image in rejected_images(run):
        assert image.detail, image
        assert str(world) not in image.detail
        assert "\n" not in image.detail
