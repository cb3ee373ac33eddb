"""What a reviewer sees of a pair: the photograph with the outline of the mask, and the crop around it."""

from __future__ import annotations

import io
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

from PIL import Image

from maskmine.mining.exports.images import decode_crop
from maskmine.mining.images.child_decoder import Decoding
from maskmine.mining.images.crops import grow_box
from maskmine.mining.images.outline import draw_outline
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.review.queue import Item
from maskmine.schemas.errors import IncompleteError
from maskmine.schemas.rows import Rejection, SampleRow

MAX_KEPT = 64
"""Pictures of recent pairs in memory: those of each reviewer and the ones that come next."""

_MAX_PIXELS = 200_000_000  # one image at a time, decoded in a process of its own
_PHOTO_PX, _CROP_PX = 1000, 480  # the longer sides at most
_LARGEST_SCALE = 3.0  # small images are enlarged up to this
_CONTEXT = 1.6  # the crop is the box of the mask times this
_QUALITY = 88
_OUTLINE, _OUTLINE_WIDTH = (214, 0, 147), 250  # a colour that photographs hardly have; widths in a photograph
_VEIL, _VEIL_SHARE = (238, 238, 238), 0.6  # what lies beside the mask in the crop
_GROUND = (226, 224, 219)  # in place of a photograph that is not at hand


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """The two JPEG files, their sizes `(width_px, height_px)`, and why the photograph is missing, if it is.

    `has_crop`: whether the photograph or its crop in the set is seen, and not a plain ground alone.
    """

    photo: bytes
    photo_px: tuple[int, int]
    crop: bytes
    crop_px: tuple[int, int]
    missing: str
    has_crop: bool = True


class Drawer:
    """Draws the pictures of pairs; recent ones are kept. Used by many threads."""

    def __init__(self, finished: FinishedRun) -> None:
        self._finished = finished
        self._kept: OrderedDict[str, Pictures] = OrderedDict()
        self._lock = Lock()

    def draw(self, item: Item) -> Pictures:
        """The pictures of a pair. A photograph that cannot be read, has changed or is at a URL is not drawn."""
        with self._lock:
            kept = self._kept.get(item.token)
            if kept is not None:
                self._kept.move_to_end(item.token)
                return kept
        drawn = self._draw(item)
        with self._lock:
            self._kept[item.token] = drawn
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return drawn

    def _draw(self, item: Item) -> Pictures:
        mask = Image.fromarray(item.mask.to_array() * 255)
        decoded = Decoding().read(item.path, max_pixels=_MAX_PIXELS)
        missing = ""
        if isinstance(decoded, Rejection):
            missing = decoded.detail
        elif decoded.sha256 != item.sha256 or decoded.rgb_HW3.shape[:2] != item.mask.to_array().shape:
            missing = "the file is not the one that its masks were made from"
        photo = self._from_shard(item, mask.size) if missing else Image.fromarray(decoded.rgb_HW3)  # type: ignore[union-attr]
        has_crop, photo = photo is not None, photo or Image.new("RGB", mask.size, _GROUND)
        shown, crop = _outlined(photo, mask), _cut(photo, mask, item)
        return Pictures(_jpeg(shown), shown.size, _jpeg(crop), crop.size, missing, has_crop)

    def _from_shard(self, item: Item, size: tuple[int, int]) -> Image.Image | None:
        """The crop of the pair's sample where it was cut, on a plain ground; None of a pair without one."""
        try:
            rows = self._finished.rows(item.part, SampleRow)
            row = next((row for row in rows if row.key == item.key), None)
            if row is None:
                return None
            crop = decode_crop(self._finished.sample(row))
        except IncompleteError:  # shards that a run is making anew
            return None
        ground = Image.new("RGB", size, _GROUND)
        ground.paste(crop, row.crop_xyxy[:2])
        return ground


def _outlined(photo: Image.Image, mask: Image.Image) -> Image.Image:
    scale = min(_PHOTO_PX / max(photo.size), _LARGEST_SCALE)
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    shown, scaled = photo.resize(size, Image.Resampling.BICUBIC), mask.resize(size)
    width_px = max(2, max(size) // _OUTLINE_WIDTH)
    x0, y0, x1, y1 = scaled.getbbox() or (0, 0, *size)
    margin = 2 * width_px
    box = (max(0, x0 - margin), max(0, y0 - margin), min(size[0], x1 + margin), min(size[1], y1 + margin))
    around = shown.crop(box)  # drawing takes as long as what it is drawn on is large
    draw_outline(around, scaled.crop(box), _OUTLINE, width_px=width_px, tinted=False)
    shown.paste(around, box)
    return shown


def _cut(photo: Image.Image, mask: Image.Image, item: Item) -> Image.Image:
    """The surroundings of the mask, veiled beside it."""
    box = grow_box(item.mask.box_xyxy, ratio=_CONTEXT, height_px=photo.height, width_px=photo.width)
    crop, inside = photo.crop(box), mask.crop(box)
    scale = min(_CROP_PX / max(crop.size), _LARGEST_SCALE)
    size = (max(1, round(crop.width * scale)), max(1, round(crop.height * scale)))
    crop = crop.resize(size, Image.Resampling.BICUBIC)
    veiled = Image.blend(crop, Image.new("RGB", size, _VEIL), _VEIL_SHARE)
    return Image.composite(crop, veiled, inside.resize(size, Image.Resampling.BILINEAR))


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
