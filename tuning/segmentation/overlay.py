"""A segmentation as an image: classes as tints with their names on them, and a legend at the right.

Shapes: H, W height and width of the image in pixels, h, w those at which it is drawn; 3 red, green, blue.
"""

from __future__ import annotations

import colorsys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from maskmine.tuning.fonts import dejavu
from maskmine.tuning.segmentation.confusion import IGNORE
from maskmine.tuning.segmentation.segmenter import Labels, Rgb, Segmentation

Colour = tuple[int, int, int]

SHOWN_LONG_PX = (640, 1600)
"""The long side of the drawn image: smaller ones are enlarged to the first, larger ones reduced to the last."""
LEGEND_PX = 300
MAX_ROWS = 40
"""The legend has the classes with the most pixels, up to this number."""

_COUNTED_PX = 1 << 20
_MARGIN_PX, _ROW_PX, _SWATCH_PX, _TEXT_PX = 20, 28, 16, 15
_PAGE, _INK, _FAINT, _WHITE = (250, 249, 246), (40, 42, 48), (125, 128, 136), (255, 255, 255)
_TINT = 0.5  # the opacity of the colours
_SMOOTHED_PX = 9  # the filter's time grows with the square
_WRAPPED_CHARS, _MAX_LINES = 34, 6  # the absent classes in the legend: as wide as it is, and not most of it
# Okabe and Ito's palette for any colour vision, without black. Further classes get other hues.
_COLOURS = ((213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (240, 228, 66))
_GOLDEN = 0.618034  # steps of the golden ratio around the circle keep neighbouring hues apart
_ELLIPSIS = "…"
_EDGE_PX = 3  # between a name and the side of the image


@dataclass(frozen=True, slots=True)
class ClassShare:
    """A class, by its number in the map, and the share of all pixels that have it."""

    number: int
    name: str
    pixels: int
    share: float


@dataclass(frozen=True, slots=True)
class PlacedName:
    """A class name as it stands on a map: the middle as shares of width and height, and its width as it is drawn."""

    text: str
    x: float
    y: float
    width_px: float


def class_shares(segmentation: Segmentation) -> list[ClassShare]:
    """The share of every class, in their order."""
    labels_HW = segmentation.labels_HW
    counts_C = np.zeros(len(segmentation.classes) + 1, np.int64)  # the first is that of IGNORE, which is -1
    rows = max(1, _COUNTED_PX // labels_HW.shape[1])  # NumPy counts copies of eight bytes a pixel
    for top in range(0, len(labels_HW), rows):
        counts_C += np.bincount(labels_HW[top : top + rows].ravel() - IGNORE, minlength=len(counts_C))
    counts = counts_C[1:].tolist()
    return [
        ClassShare(number, name, count, count / labels_HW.size)
        for number, (name, count) in enumerate(zip(segmentation.classes, counts, strict=True))
    ]


def add_legend(tinted: Image.Image, segmentation: Segmentation) -> Image.Image:
    """The result of `draw_map` with a legend at its right."""
    shares = class_shares(segmentation)
    rows = list(_legend_rows(segmentation, _largest_first(shares), [one.name for one in shares if not one.pixels]))
    height = max(tinted.height, len(rows) * _ROW_PX) + 2 * _MARGIN_PX
    page = Image.new("RGB", (tinted.width + LEGEND_PX + 3 * _MARGIN_PX, height), _PAGE)
    page.paste(tinted, (_MARGIN_PX, _MARGIN_PX))
    _write_legend(ImageDraw.Draw(page), rows, left_px=tinted.width + 2 * _MARGIN_PX)
    return page


def draw_map(rgb_HW3: Rgb, segmentation: Segmentation) -> Image.Image:
    """The tinted image with the names of the classes on it, of the size of `draw_photo`. IGNORE has no tint."""
    tinted, names = draw_layers(rgb_HW3, segmentation)
    return write_names(tinted, names)


def draw_layers(rgb_HW3: Rgb, segmentation: Segmentation) -> tuple[Image.Image, tuple[PlacedName, ...]]:
    """The two layers of `draw_map`: the tinted image without names, and where these belong."""
    photo = draw_photo(rgb_HW3)
    labels_hw = _resized(segmentation.labels_HW, size=photo.size, scale=_scale(max(rgb_HW3.shape[:2])))
    names = _place_names(labels_hw, _largest_first(class_shares(segmentation)))
    return _tint(photo, labels_hw), tuple(names)


def write_names(tinted: Image.Image, names: Sequence[PlacedName]) -> Image.Image:
    """A copy of the tinted image with the names on it, white with a dark edge."""
    image = tinted.copy()
    draw, font = ImageDraw.Draw(image), dejavu(_TEXT_PX, bold=True)
    for name in names:
        at = (name.x * image.width, name.y * image.height)
        draw.text(at, name.text, font=font, fill=_WHITE, anchor="mm", stroke_width=2, stroke_fill=_INK)
    return image


def draw_photo(rgb_HW3: Rgb) -> Image.Image:
    """The image at the size at which it is drawn."""
    scale = _scale(max(rgb_HW3.shape[:2]))
    size = (max(1, round(rgb_HW3.shape[1] * scale)), max(1, round(rgb_HW3.shape[0] * scale)))
    return Image.fromarray(rgb_HW3).resize(size, Image.Resampling.LANCZOS)


def class_colour(number: int) -> Colour:
    """The colour of a class: the same in every image."""
    if number < len(_COLOURS):
        return _COLOURS[number]
    step = number - len(_COLOURS)
    red, green, blue = colorsys.hls_to_rgb(step * _GOLDEN % 1, (0.42, 0.58, 0.5)[step % 3], (0.75, 0.6)[step % 2])
    return round(255 * red), round(255 * green), round(255 * blue)


def _largest_first(shares: Sequence[ClassShare]) -> list[ClassShare]:
    """The classes that have a pixel."""
    return sorted((one for one in shares if one.pixels), key=lambda one: (-one.pixels, one.number))


def _scale(long_px: int) -> float:
    least_px, most_px = SHOWN_LONG_PX
    return min(max(long_px, least_px), most_px) / long_px


def _resized(labels_HW: Labels, *, size: tuple[int, int], scale: float) -> Labels:
    """The map at the size at which it is drawn; the edges of an enlarged one are smoothed."""
    labels_hw = np.asarray(Image.fromarray(labels_HW).resize(size, Image.Resampling.NEAREST))
    if scale <= 1 or labels_hw.max() >= 255:
        return labels_hw
    smooth = Image.fromarray((labels_hw + 1).astype(np.uint8)).filter(
        ImageFilter.ModeFilter(min(2 * round(scale) + 1, _SMOOTHED_PX))
    )
    return np.asarray(smooth).astype(np.int32) - 1


def _tint(photo: Image.Image, labels_hw: Labels) -> Image.Image:
    """The photo tinted by class, with an opaque rim of the same colour and a white line between classes."""
    palette_K3 = np.array([class_colour(number) for number in range(int(labels_hw.max()) + 1)] or [_WHITE], np.float32)
    tinted_hw3, inside_hw, edge_hw = np.array(photo, np.float32), labels_hw != IGNORE, _edges(labels_hw)
    tinted_hw3[inside_hw] = (1 - _TINT) * tinted_hw3[inside_hw] + _TINT * palette_K3[labels_hw[inside_hw]]
    rim_hw = inside_hw & np.asarray(
        Image.fromarray(edge_hw.astype(np.uint8)).filter(ImageFilter.MaxFilter(7)), np.bool_
    )
    tinted_hw3[rim_hw] = palette_K3[labels_hw[rim_hw]]
    tinted_hw3[edge_hw] = _WHITE
    return Image.fromarray(tinted_hw3.round().astype(np.uint8))


def _edges(labels_hw: Labels) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The pixels whose right or lower neighbour has another label."""
    edge_hw = np.zeros(labels_hw.shape, np.bool_)
    edge_hw[:, :-1] |= labels_hw[:, 1:] != labels_hw[:, :-1]
    edge_hw[:-1] |= labels_hw[1:] != labels_hw[:-1]
    return edge_hw


def _place_names(labels_hw: Labels, present: Sequence[ClassShare]) -> Iterator[PlacedName]:
    """Each class's name where its region is widest, shortened to four times that; left out without room."""
    from scipy.ndimage import distance_transform_edt

    height_px, width_px = labels_hw.shape
    step = max(1, max(labels_hw.shape) // 320)  # a coarser grid is precise enough, in a tenth of the time
    for share in present[:MAX_ROWS]:
        inside_hw = np.pad(labels_hw[::step, ::step] == share.number, 1)
        room_hw = distance_transform_edt(inside_hw)
        y, x = np.unravel_index(int(room_hw.argmax()), room_hw.shape)
        room_px = float(room_hw.max()) * step
        text = _fitted(share.name, width_px=min(4 * room_px, width_px - 2 * _EDGE_PX), bold=True)
        if room_px >= _TEXT_PX / 2 and text != _ELLIPSIS:
            text_px = dejavu(_TEXT_PX, bold=True).getlength(text)
            half_px = text_px / 2 + _EDGE_PX
            across_px = min(max((float(x) - 1) * step, half_px), width_px - half_px)
            yield PlacedName(text, across_px / width_px, (float(y) - 1) * step / height_px, text_px)


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of the legend: text at the left and at the right, with a swatch where it has a colour."""

    left: str
    right: str = ""
    colour: Colour | None = None
    faint: bool = False


def _legend_rows(segmentation: Segmentation, present: Sequence[ClassShare], absent: Sequence[str]) -> Iterator[_Row]:
    for share in present[:MAX_ROWS]:
        yield _Row(share.name, _percent(share.share), class_colour(share.number))
    if len(present) > MAX_ROWS:
        rest = present[MAX_ROWS:]
        yield _Row(f"{len(rest)} more", _percent(sum(one.share for one in rest)), faint=True)
    blank = 1 - sum(share.share for share in present)
    if blank > 0.5 / segmentation.labels_HW.size:
        yield _Row("no class", _percent(blank), faint=True)
    lines = textwrap.wrap(f"not found: {', '.join(absent)}", _WRAPPED_CHARS) if absent else []
    for line in lines if len(lines) <= _MAX_LINES else [f"not found: {len(absent):,} classes"]:
        yield _Row(line, faint=True)


def _write_legend(draw: ImageDraw.ImageDraw, rows: Sequence[_Row], *, left_px: int) -> None:
    y = _MARGIN_PX
    for row in rows:
        text_left = left_px
        if row.colour:
            draw.rounded_rectangle(
                (left_px, y + 2, left_px + _SWATCH_PX, y + 2 + _SWATCH_PX), radius=4, fill=row.colour
            )
            text_left += _SWATCH_PX + 10
        ink = _FAINT if row.faint else _INK
        right_px = dejavu(_TEXT_PX).getlength(row.right)
        draw.text((left_px + LEGEND_PX - right_px, y), row.right, font=dejavu(_TEXT_PX), fill=_FAINT)
        room_px = left_px + LEGEND_PX - right_px - 12 - text_left
        draw.text((text_left, y), _fitted(row.left, width_px=room_px), font=dejavu(_TEXT_PX), fill=ink)
        y += _ROW_PX


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.0005 else "< 0.1%"


def _fitted(text: str, *, width_px: float, bold: bool = False) -> str:
    """The text, or as much of it as fits with an ellipsis."""
    font = dejavu(_TEXT_PX, bold=bold)
    if font.getlength(text) <= width_px:
        return text
    text = text[:200]
    while text and font.getlength(text + _ELLIPSIS) > width_px:
        text = text[:-1]
    return text.rstrip() + _ELLIPSIS
