"""One scene of the demo world: a place, objects in it, their exact masks and five captions.

A mask marks the pixels that are mostly the object's (demo_sprites.py says how). An object that is mostly hidden is
taken out of the scene before it is drawn, so whatever is drawn is annotated.

Shapes: H, W height and width of the image in pixels; h, w those of an object; N objects; C channels; 3 red, green,
blue.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from maskmine.scripts.demo_world.backdrop import paint_backdrop
from maskmine.scripts.demo_world.captions import Places, Seen, write_captions
from maskmine.scripts.demo_world.environments import ALOFT, ALOFT_PLACES, PORTABLE, Setting, settings_for
from maskmine.scripts.demo_world.nouns import DemoNoun, demo_nouns, glyph, nouns_of_kinds
from maskmine.scripts.demo_world.sprites import Bools, Floats, Sprite, box_of, keep_visible, paint_sprites, whole_mask

SIZES_HW = ((192, 256), (208, 256), (224, 224), (192, 224), (256, 192), (256, 208), (240, 224), (192, 288))
MAX_OBJECTS = 8

_OBJECTS_P = (0.07, 0.15, 0.2, 0.2, 0.16, 0.1, 0.07, 0.05)  # how often 1, 2 … 8 objects are cast
_TWIN_SHARE = 0.16  # how often a further object repeats a noun
_STRANGER_SHARE = 0.08  # how often it is not at home here
_LYING_TILT_DEG = 55.0  # seen from above, things lie in any direction; letters should still be readable
_TILT_DEG = {"bug": 35.0, "sea": 18.0, "aircraft": 18.0, "building": 2.0, "street": 4.0, "sky": 6.0, "vehicle": 4.0}
_KIND_SCALE = {"building": 1.3, "tree": 1.3, "vehicle": 1.15, "bug": 0.7, "boat": 1.1, "fruit": 0.85, "vegetable": 0.85}
_COVERED_SHARE = 0.04  # of an object's pixels: what another covers more of stands in front of it
_GRAIN_PX = 400  # side of the grain tile, larger than any image
_UNTURNED = ("building", "street", "office", "device", "aircraft")  # kinds with letters: never mirrored


@dataclass(frozen=True, slots=True)
class Scene:
    """A drawn scene. The objects are in the order in which they were painted, farthest first.

    `picture_HW3` is uint8; `masks_NHW` is boolean: visible pixels only, disjoint. `captions` has five sentences.
    """

    setting: str
    picture_HW3: np.ndarray[Any, np.dtype[np.uint8]]
    nouns: tuple[DemoNoun, ...]
    masks_NHW: Bools
    captions: tuple[str, ...]


def draw_scene(seed: int, *, index: int, only: frozenset[DemoNoun] | None = None) -> Scene:
    """Scene number `index` of world `seed`; it depends on these alone.

    With `only`, no other nouns are cast. Raises InputError when the OpenMoji font is not installed.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    height_px, width_px = SIZES_HW[int(rng.integers(len(SIZES_HW)))]
    setting, cast = _cast(rng, only)
    backdrop = paint_backdrop(setting, height_px=height_px, width_px=width_px, rng=rng)
    sprites = _placed(cast, setting, backdrop.horizon_px, (height_px, width_px), rng)
    sprites, masks_NHW = keep_visible(sprites, (height_px, width_px))
    image_3HW = paint_sprites(_planes(backdrop.image), sprites, setting.shadow, rng)
    places = Places(setting.places, ALOFT_PLACES if backdrop.horizon_px else setting.places)
    captions = write_captions(_seen(sprites, masks_NHW), places=places, rng=rng)
    nouns = tuple(sprite.noun for sprite in sprites)
    return Scene(setting.name, _graded(image_3HW, rng), nouns, masks_NHW, captions)


def _cast(rng: np.random.Generator, only: frozenset[DemoNoun] | None) -> tuple[Setting, list[DemoNoun]]:
    """A first noun, any of the table with the same chance; a setting where it is at home; further nouns for it."""
    table = _among(None, only)
    first = table[int(rng.integers(len(table)))]
    fitting = settings_for(first.kind)
    setting = fitting[int(rng.integers(len(fitting)))]
    cast = [first]
    for _ in range(_further(rng)):
        twin = cast[int(rng.integers(len(cast)))]
        if twin.number == "count" and rng.random() < _TWIN_SHARE:
            cast.append(twin)
            continue
        stranger = setting.shadow != "none" and rng.random() < _STRANGER_SHARE
        nouns = _among(PORTABLE if stranger else setting.kinds, only)
        noun = nouns[int(rng.integers(len(nouns)))]
        if noun.number == "count" or noun not in cast:
            cast.append(noun)
    return setting, cast


@functools.cache
def _among(kinds: tuple[str, ...] | None, only: frozenset[DemoNoun] | None) -> tuple[DemoNoun, ...]:
    """The nouns of some kinds, or of all, as far as they may be cast."""
    nouns = demo_nouns() if kinds is None else nouns_of_kinds(kinds)
    return nouns if only is None else tuple(noun for noun in nouns if noun in only)


def _further(rng: np.random.Generator) -> int:
    """How many objects come to the first: 0 to 7."""
    return bisect.bisect_left(tuple(itertools.accumulate(_OBJECTS_P)), rng.random() * sum(_OBJECTS_P))


# ---- where things are


def _placed(
    cast: Sequence[DemoNoun],
    setting: Setting,
    horizon_px: int | None,
    size_hw: tuple[int, int],
    rng: np.random.Generator,
) -> list[Sprite]:
    """Every object of the cast at its place, farthest first; the first of the cast lies wholly in the image."""
    reach_px = min(size_hw) * (3.0 / max(3, len(cast))) ** 0.35
    light_rad = float(rng.uniform(0.0, 2 * np.pi))
    spots: list[tuple[float, float]] = []
    placed: list[tuple[float, Sprite]] = []
    for number, noun in enumerate(cast):
        aloft = horizon_px is not None and noun.kind in ALOFT and (noun.kind != "bird" or rng.random() < 0.4)
        spots.append(_spot(spots, rng))
        near = 1.0 if horizon_px is None or aloft else 0.65 + 0.5 * spots[-1][1]
        colour_3hw, opacity_hw = _shape(noun, setting.shadow, reach_px * near, light_rad, rng)
        corner = _corner(spots[-1], opacity_hw.shape, horizon_px, aloft, size_hw, 0.0 if number == 0 else 0.22)
        sprite = Sprite(noun, colour_3hw, opacity_hw, *corner, aloft)
        depth = float(rng.random()) if horizon_px is None else sprite.foot_px - (1e6 if aloft else 0.0)
        placed.append((depth, sprite))
    return [sprite for _, sprite in sorted(placed, key=lambda item: item[0])]


def _spot(taken: Sequence[tuple[float, float]], rng: np.random.Generator) -> tuple[float, float]:
    """A place as shares of width and depth: mostly where there is room, sometimes close to others."""
    tries = [(float(across), float(down)) for across, down in rng.random((4, 2))]
    room = [min((abs(x - a) + abs(y - b) for a, b in taken), default=0.0) for x, y in tries]
    return tries[room.index(min(room) if rng.random() < 0.3 else max(room))]


def _corner(
    spot: tuple[float, float],
    object_hw: tuple[int, ...],
    horizon_px: int | None,
    aloft: bool,
    size_hw: tuple[int, int],
    outside: float,
) -> tuple[int, int]:
    """Left and top of an object at a spot; up to a share `outside` of its sides may lie beyond the image's edge."""
    (high, wide), (height_px, width_px) = object_hw, size_hw
    left = (0.06 + 0.88 * spot[0]) * width_px - wide / 2
    if horizon_px is None:
        top = (0.08 + 0.84 * spot[1]) * height_px - high / 2
    elif aloft:
        top = (0.1 + 0.7 * spot[1]) * horizon_px - high / 2
    else:
        top = horizon_px + (0.12 + 0.92 * spot[1]) * (height_px - horizon_px) - high
    left = min(max(left, -outside * wide), width_px - (1 - outside) * wide)
    top = min(max(top, -outside * high), height_px - (1 - outside) * high)
    return round(left), round(top)


# ---- how things look


def _shape(
    noun: DemoNoun, shadow: str, reach_px: float, light_rad: float, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """The glyph in its size, turn and light: premultiplied colours 0 to 255 [3, h, w] and opacity 0 to 1 [h, w]."""
    drawn = _turned(_sized(glyph(noun.codepoint), noun, reach_px, rng), noun, shadow, rng)
    pixels_4hw = _planes(drawn)
    slope = rng.uniform(0.0, 0.24)
    gain_3 = rng.uniform(0.82, 1.12) * rng.uniform(0.94, 1.06, 3)
    gain_hw = _ramp(drawn.height, drawn.width, slope, light_rad)
    lit_3hw = pixels_4hw[:3] * gain_hw * gain_3.astype(np.float32)[:, None, None]
    return np.minimum(lit_3hw, pixels_4hw[3]), pixels_4hw[3] / np.float32(255.0)


def _sized(image: Image.Image, noun: DemoNoun, reach_px: float, rng: np.random.Generator) -> Image.Image:
    """The glyph at its size in the scene; thin ones are drawn larger, for they would hardly show."""
    side_px = reach_px * rng.uniform(0.24, 0.56) * _KIND_SCALE.get(noun.kind, 1.0) * _thinness(noun.codepoint)
    side_px = min(max(side_px, 26.0), reach_px * 0.8)
    stretch = rng.uniform(0.92, 1.08)
    scale = side_px / max(image.size)
    size = (max(4, round(image.width * scale * stretch)), max(4, round(image.height * scale / stretch)))
    return image.resize(size, Image.Resampling.BILINEAR)


def _turned(image: Image.Image, noun: DemoNoun, shadow: str, rng: np.random.Generator) -> Image.Image:
    if noun.kind not in _UNTURNED and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    tilt_deg = _LYING_TILT_DEG if shadow == "drop" else _TILT_DEG.get(noun.kind, 10.0)
    image = image.rotate(rng.uniform(-tilt_deg, tilt_deg), Image.Resampling.BILINEAR, expand=True)
    return image.crop(image.getbbox())


@functools.cache
def _thinness(codepoint: str) -> float:
    """1 for a glyph that fills its box, up to 1.5 for one that is mostly air."""
    opacity_hw = np.asarray(glyph(codepoint))[..., 3]
    longer = max(opacity_hw.shape)
    return float(np.clip((0.45 * longer * longer / (opacity_hw > 127).sum()) ** 0.4, 1.0, 1.5))


# ---- what captions may say


def _seen(sprites: Sequence[Sprite], masks_NHW: Bools) -> list[Seen]:
    """What captions may say of each object."""
    whole_NHW = [whole_mask(sprite, masks_NHW.shape[1:]) for sprite in sprites]
    seen = []
    for number, (sprite, mask_HW) in enumerate(zip(sprites, masks_NHW, strict=True)):
        whole_px = np.count_nonzero(whole_NHW[number])
        nearer = range(number + 1, len(sprites))
        covers = [np.count_nonzero(whole_NHW[number] & masks_NHW[other]) for other in nearer]
        behind = tuple(other for other, px in zip(nearer, covers, strict=True) if px >= _COVERED_SHARE * whole_px)
        share = np.count_nonzero(mask_HW) / mask_HW.size
        seen.append(Seen(sprite.noun, box_of(mask_HW), share, sprite.aloft, behind))
    return seen


# ---- light


def _graded(image_3HW: Floats, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Light that falls off to one side, exposure, tint, contrast and grain, as a camera would have them; [H, W, 3]."""
    height_px, width_px = image_3HW.shape[1:]
    light_HW = _ramp(height_px, width_px, rng.uniform(0.0, 0.16), rng.uniform(0.0, 2 * np.pi))
    gain_3 = (rng.uniform(0.8, 1.16) * rng.uniform(0.93, 1.07, 3)).astype(np.float32)
    contrast = np.float32(rng.uniform(0.85, 1.1))
    top, left = (int(rng.integers(_GRAIN_PX - side)) for side in (height_px, width_px))
    grain_HW = _grain()[top : top + height_px, left : left + width_px] * np.float32(rng.uniform(0.5, 6.0))
    grain_HW += np.float32(128.0) * (1 - contrast)
    light_HW *= contrast
    graded_HW3 = np.empty((height_px, width_px, 3), np.uint8)
    for channel in range(3):
        plane_HW = image_3HW[channel] * (light_HW * gain_3[channel]) + grain_HW
        graded_HW3[..., channel] = np.clip(plane_HW, 0.0, 255.0)
    return graded_HW3


def _ramp(height_px: int, width_px: int, slope: float, angle_rad: float) -> Floats:
    """A slope of light across an area [H, W]: 1 in its middle."""
    across_W = np.linspace(-slope * np.cos(angle_rad), slope * np.cos(angle_rad), width_px, dtype=np.float32)
    down_H = np.linspace(1 - slope * np.sin(angle_rad), 1 + slope * np.sin(angle_rad), height_px, dtype=np.float32)
    ramp_HW: Floats = down_H[:, None] + across_W
    return ramp_HW


def _planes(image: Image.Image) -> Floats:
    """The channels of an image as float32 [C, H, W]: planes are faster to compute with than pixels."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1), np.float32)


@functools.cache
def _grain() -> Floats:
    return np.random.default_rng(0).standard_normal((_GRAIN_PX, _GRAIN_PX), np.float32)
