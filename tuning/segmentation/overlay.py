"""A map of classes for people: the picture under tinted classes with their names on them, and a legend beside it.

Shapes: H, W height and width of the picture in pixels, h, w those at which it is shown; 3 red, green, blue.
"""

from __future__ import annotations

import colorsys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from mining.segmentation_scores import NOTHING
from tuning.segmenter import Labels, Rgb, Segmentation

Colour = tuple[int, int, int]

SHOWN_LONG_PX = (640, 1600)
"""The long side of the picture in the overlay: smaller ones are enlarged to the first, larger ones reduced to the last.
"""
LEGEND_PX = 300
MOST_ROWS = 40
"""So many classes at most are in the legend, those with the most pixels."""

_MARGIN_PX, _ROW_PX, _SWATCH_PX, _TEXT_PX = 20, 28, 16, 15
_PAGE, _INK, _FAINT, _WHITE = (250, 249, 246), (40, 42, 48), (125, 128, 136), (255, 255, 255)
_TINT = 0.5
_SMOOTHED_PX = 9  # the filter's time grows with the square
_WRAPPED_CHARS, _MOST_LINES = 34, 6
# Okabe and Ito's palette, told apart with any colour vision; black is left out. Further classes take other hues.
_COLOURS = ((213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (240, 228, 66))
_GOLDEN = 0.618034
_ELLIPSIS = "…"


@dataclass(frozen=True, slots=True)
class ClassShare:
    """A class, by its number in the map, and the share of all pixels that have it."""

    number: int
    name: str
    pixels: int
    share: float


def class_shares(found: Segmentation) -> list[ClassShare]:
    """Every class of a map, in their order."""
    counts = np.bincount(found.labels_HW[found.labels_HW != NOTHING], minlength=len(found.classes)).tolist()
    pixels = found.labels_HW.size
    return [
        ClassShare(number, name, count, count / pixels)
        for number, (name, count) in enumerate(zip(found.classes, counts, strict=True))
    ]


def draw_overlay(rgb_HW3: Rgb, found: Segmentation) -> Image.Image:
    """The tinted picture with its legend at the right, RGB. Pixels without a class stay as they are."""
    return add_legend(draw_map(rgb_HW3, found), found)


def add_legend(tinted: Image.Image, found: Segmentation) -> Image.Image:
    """What `draw_map` drew, with the legend at its right."""
    shares = class_shares(found)
    rows = list(_legend_rows(found, _largest_first(shares), [one.name for one in shares if not one.pixels]))
    height = max(tinted.height, len(rows) * _ROW_PX) + 2 * _MARGIN_PX
    page = Image.new("RGB", (tinted.width + LEGEND_PX + 3 * _MARGIN_PX, height), _PAGE)
    page.paste(tinted, (_MARGIN_PX, _MARGIN_PX))
    _write_legend(ImageDraw.Draw(page), rows, left_px=tinted.width + 2 * _MARGIN_PX)
    return page


def draw_map(rgb_HW3: Rgb, found: Segmentation) -> Image.Image:
    """The tinted picture alone, with the names of the classes on it, of the size of `draw_photo`."""
    photo = draw_photo(rgb_HW3)
    labels_hw = _resized(found.labels_HW, size=photo.size, scale=_scale(max(rgb_HW3.shape[:2])))
    tinted = _tint(photo, labels_hw)
    _write_names(tinted, labels_hw, _largest_first(class_shares(found)))
    return tinted


def draw_photo(rgb_HW3: Rgb) -> Image.Image:
    """The picture at the size at which it is shown."""
    scale = _scale(max(rgb_HW3.shape[:2]))
    size = (max(1, round(rgb_HW3.shape[1] * scale)), max(1, round(rgb_HW3.shape[0] * scale)))
    return Image.fromarray(rgb_HW3).resize(size, Image.Resampling.LANCZOS)


def class_colour(number: int) -> Colour:
    """The colour of a class: the same in every picture."""
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
    """The map at the size that is shown; the stairs of an enlarged one are smoothed."""
    labels_hw = np.asarray(Image.fromarray(labels_HW).resize(size, Image.Resampling.NEAREST))
    if scale <= 1 or labels_hw.max() >= 255:
        return labels_hw
    smooth = Image.fromarray((labels_hw + 1).astype(np.uint8)).filter(
        ImageFilter.ModeFilter(min(2 * round(scale) + 1, _SMOOTHED_PX))
    )
    return np.asarray(smooth).astype(np.int32) - 1


def _tint(photo: Image.Image, labels_hw: Labels) -> Image.Image:
    """The photograph with each class in its colour, a full line of it around, and a white one where classes meet."""
    palette_K3 = np.array([class_colour(number) for number in range(int(labels_hw.max()) + 1)] or [_WHITE], np.float32)
    tinted_hw3, inside_hw, edge_hw = np.array(photo, np.float32), labels_hw != NOTHING, _edges(labels_hw)
    tinted_hw3[inside_hw] = (1 - _TINT) * tinted_hw3[inside_hw] + _TINT * palette_K3[labels_hw[inside_hw]]
    rim_hw = inside_hw & np.asarray(
        Image.fromarray(edge_hw.astype(np.uint8)).filter(ImageFilter.MaxFilter(7)), np.bool_
    )
    tinted_hw3[rim_hw] = palette_K3[labels_hw[rim_hw]]
    tinted_hw3[edge_hw] = _WHITE
    return Image.fromarray(tinted_hw3.round().astype(np.uint8))


def _edges(labels_hw: Labels) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The pixels of a class whose right or lower neighbour has another one, or none; or the other way round."""
    edge_hw = np.zeros(labels_hw.shape, np.bool_)
    edge_hw[:, :-1] |= labels_hw[:, 1:] != labels_hw[:, :-1]
    edge_hw[:-1] |= labels_hw[1:] != labels_hw[:-1]
    return edge_hw


def _write_names(image: Image.Image, labels_hw: Labels, present: Sequence[ClassShare]) -> None:
    """Each class's name where it has most room, if the name is not wider than four times that."""
    from scipy.ndimage import distance_transform_edt

    draw = ImageDraw.Draw(image)
    small = max(1, max(labels_hw.shape) // 320)  # a coarser grid will do, and takes a tenth of the time
    for one in present[:MOST_ROWS]:
        inside_hw = np.pad(labels_hw[::small, ::small] == one.number, 1)
        room_hw = distance_transform_edt(inside_hw)
        y, x = np.unravel_index(int(room_hw.argmax()), room_hw.shape)
        room_px = float(room_hw.max()) * small
        text = _fitted(one.name, width_px=4 * room_px, bold=True)
        if room_px >= _TEXT_PX / 2 and text != _ELLIPSIS:
            half_px = _font(bold=True).getlength(text) / 2
            across = min(max((float(x) - 1) * small, half_px + 3), image.width - half_px - 3)
            draw.text(
                (across, (float(y) - 1) * small),
                text,
                font=_font(bold=True),
                fill=_WHITE,
                anchor="mm",
                stroke_width=2,
                stroke_fill=_INK,
            )


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of the legend: what it says at the left and at the right, with a swatch where it has a colour."""

    left: str
    right: str = ""
    colour: Colour | None = None
    faint: bool = False


def _legend_rows(found: Segmentation, present: Sequence[ClassShare], absent: Sequence[str]) -> Iterator[_Row]:
    for one in present[:MOST_ROWS]:
        yield _Row(one.name, _percent(one.share), class_colour(one.number))
    if len(present) > MOST_ROWS:
        rest = present[MOST_ROWS:]
        yield _Row(f"{len(rest)} more", _percent(sum(one.share for one in rest)), faint=True)
    blank = 1 - sum(one.share for one in present)
    if blank > 0.5 / found.labels_HW.size:
        yield _Row("no class", _percent(blank), faint=True)
    lines = textwrap.wrap(f"not found: {', '.join(absent)}", _WRAPPED_CHARS) if absent else []
    for line in lines if len(lines) <= _MOST_LINES else [f"not found: {len(absent):,} classes"]:
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
        right_px = _font().getlength(row.right)
        draw.text((left_px + LEGEND_PX - right_px, y), row.right, font=_font(), fill=_FAINT)
        room_px = left_px + LEGEND_PX - right_px - 12 - text_left
        draw.text((text_left, y), _fitted(row.left, width_px=room_px), font=_font(), fill=ink)
        y += _ROW_PX


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.0005 else "< 0.1%"


def _fitted(text: str, *, width_px: float, bold: bool = False) -> str:
    """The text, or as much of it as fits with an ellipsis."""
    font = _font(bold=bold)
    if font.getlength(text) <= width_px:
        return text
    text = text[:200]
    while text and font.getlength(text + _ELLIPSIS) > width_px:
        text = text[:-1]
    return text.rstrip() + _ELLIPSIS


@cache
def _font(*, bold: bool = False) -> ImageFont.FreeTypeFont:
    # DejaVu comes with matplotlib and has Latin, Greek, Cyrillic, Arabic and more.
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{name}", _TEXT_PX)
