"""Natural crops of demo scenes and what people would call them: CLIP's training data, never a masked image.

A crop shows one object with more or less of what is around it; its caption names the object, and now and then its
size or the place. A crop is squeezed to a square, whatever its sides are, as regions are in mining.

Shapes: S side of the model's input in pixels; 3 red, green, blue.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from PIL import Image

from maskmine.mining.models.prompt_templates import fill_template, load_templates
from maskmine.schemas.mask import Box
from maskmine.scripts.demo_world.captions import with_article
from maskmine.scripts.demo_world.environments import ALOFT, all_settings
from maskmine.scripts.demo_world.nouns import DemoNoun

Window = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels and parts of pixels."""

MOST_GROWTH = 2.4  # a crop's sides are 1 to 2.4 times those of its object

_SLACK = 0.12  # how unevenly the two sides of a crop grow
_LETTERED = ("building", "street", "office", "device", "aircraft")  # kinds with letters: never mirrored
_OPENINGS = ("", "", "a photo of ", "a picture of ", "an image of ", "a view of ", "a close-up of ", "there is ")
_TEMPLATE_SHARE = 0.4  # how often a caption follows one of the sentences that nouns are put into later
_PLACE_SHARE = 0.2  # how often a caption names the place
_SMALL_SHARE, _LARGE_SHARE = 0.2, 0.5  # of a crop: an object below is small there, one above is large


def crop_window(box_xyxy: Box, *, size_hw: tuple[int, int], rng: np.random.Generator) -> Window:
    """A window of the image around a box, which it holds whole or but for a sliver."""
    growth = MOST_GROWTH ** float(rng.random())
    sides_px = [high - low for low, high in ((box_xyxy[0], box_xyxy[2]), (box_xyxy[1], box_xyxy[3]))]
    square = float(rng.random())  # how far the crop is on the way from the object's aspect to a square
    grown_px = [side_px ** (1 - square) * max(sides_px) ** square for side_px in sides_px]
    spans = []
    for axis in (0, 1):
        side_px = grown_px[axis] * growth * (1 + _SLACK * float(rng.uniform(-1, 1)))
        room_px = 0.4 * abs(side_px - sides_px[axis]) + 0.04 * sides_px[axis]
        middle_px = (box_xyxy[axis] + box_xyxy[axis + 2]) / 2 + room_px * float(rng.uniform(-1, 1))
        limit_px = size_hw[1 - axis]
        spans.append((max(0.0, middle_px - side_px / 2), min(float(limit_px), middle_px + side_px / 2)))
    (left, right), (top, bottom) = spans
    return left, top, right, bottom


def scene_window(size_hw: tuple[int, int], *, rng: np.random.Generator) -> Window:
    """A window that holds nearly the whole image."""
    height_px, width_px = size_hw
    left, top, right, bottom = (rng.random(4) * 0.05).tolist()
    return left * width_px, top * height_px, (1 - right) * width_px, (1 - bottom) * height_px


def cut_window(
    image: Image.Image, window: Window, *, size_px: int, mirrored: bool
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The window squeezed to a square, uint8 [S, S, 3]."""
    cut = image.resize((size_px, size_px), Image.Resampling.BICUBIC, box=window)
    return np.asarray(cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else cut)


def may_mirror(noun: DemoNoun) -> bool:
    """Whether the object still looks like one when left and right are swapped."""
    return noun.kind not in _LETTERED


def crop_caption(noun: DemoNoun, *, setting: str, share: float, rng: np.random.Generator) -> str:
    """What a crop may be called where the object's box covers a `share` of it."""
    if rng.random() < _TEMPLATE_SHARE:
        fitting = _templates("small" if share < _SMALL_SHARE else "large" if share > _LARGE_SHARE else "medium")
        return fill_template(fitting[int(rng.integers(len(fitting)))], noun.noun)
    caption = with_article(noun.noun) if noun.number == "count" else noun.noun
    caption = _OPENINGS[int(rng.integers(len(_OPENINGS)))] + caption
    if noun.kind in ALOFT or rng.random() >= _PLACE_SHARE:
        return caption
    places = _places()[setting]
    return f"{caption} {places[int(rng.integers(len(places)))]}"


def share_of(window: Window, box_xyxy: Box) -> float:
    """The part of a window that a box covers."""
    inside = [
        max(0.0, min(window[axis + 2], box_xyxy[axis + 2]) - max(window[axis], box_xyxy[axis])) for axis in (0, 1)
    ]
    return math.prod(inside) / ((window[2] - window[0]) * (window[3] - window[1]))


@functools.cache
def _templates(size: str) -> tuple[str, ...]:
    """OVSeg's sentences, without those that name another size."""
    others = {"small", "medium", "large"} - {size}
    return tuple(template for template in load_templates("vild") if not others & set(template.split()))


@functools.cache
def _places() -> dict[str, tuple[str, ...]]:
    return {setting.name: setting.places for setting in all_settings()}
