"""Objects of a demo scene as cut-outs with smooth edges: which of them show, their exact masks, and painting them.

The mask of an object marks the pixels that get more than half of their colour from it after everything has been
composited; masks are therefore disjoint. Shadows darken what lies below them and are no part of a mask.

Shapes: H, W height and width of the image in pixels; h, w those of an object; N objects; 3 red, green, blue.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from maskmine.schemas.mask import Box
from maskmine.scripts.demo_world.nouns import DemoNoun

Floats = np.ndarray[Any, np.dtype[np.float32]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]

MIN_VISIBLE_SHARE = 0.35  # of an object's own pixels: what shows less is taken out
MIN_VISIBLE_PX = 60


@dataclass(frozen=True, slots=True)
class Sprite:
    """An object before painting: premultiplied colours 0 to 255 and opacity 0 to 1, and where its corner goes."""

    noun: DemoNoun
    colour_3hw: Floats
    opacity_hw: Floats
    left_px: int
    top_px: int
    aloft: bool

    @property
    def foot_px(self) -> int:
        return self.top_px + len(self.opacity_hw)


def keep_visible(sprites: Sequence[Sprite], size_hw: tuple[int, int]) -> tuple[list[Sprite], Bools]:
    """The objects that show enough of themselves, in their order, and their masks [N, H, W]; never none.

    Goes from the nearest to the farthest: one that is taken out covers nothing.
    """
    open_HW = np.ones(size_hw, np.float32)
    visible: list[tuple[Sprite, Bools]] = []
    for sprite in reversed(sprites):
        mask_HW = _mask(sprite, open_HW)
        whole_px = np.count_nonzero(sprite.opacity_hw > 0.5)
        if np.count_nonzero(mask_HW) >= max(MIN_VISIBLE_PX, MIN_VISIBLE_SHARE * whole_px):
            visible.append((sprite, mask_HW))
            image_part, object_part = _windows(sprite.left_px, sprite.top_px, sprite.opacity_hw.shape, size_hw)
            open_HW[image_part] *= 1.0 - sprite.opacity_hw[object_part]
    if not visible:  # all too small or too hidden: the one of which most lies in the image is left alone
        visible = [
            max(((sprite, whole_mask(sprite, size_hw)) for sprite in sprites), key=lambda pair: int(pair[1].sum()))
        ]
    visible.reverse()
    return [sprite for sprite, _ in visible], np.stack([mask_HW for _, mask_HW in visible])


def whole_mask(sprite: Sprite, size_hw: tuple[int, ...]) -> Bools:
    """The pixels [H, W] that the object would have if it were alone."""
    return _mask(sprite, np.ones(size_hw, np.float32))


def paint_sprites(image_3HW: Floats, sprites: Sequence[Sprite], shadow: str, rng: np.random.Generator) -> Floats:
    """The image, in place, with the objects over it, each with its shadow on what lies below."""
    strength = rng.uniform(0.25, 0.55)
    for sprite in sprites:
        if shadow != "none" and not sprite.aloft:
            _shade(image_3HW, *(_contact_shadow if shadow == "contact" else _drop_shadow)(sprite), strength)
        opacity_hw = sprite.opacity_hw
        (rows, columns), object_part = _windows(sprite.left_px, sprite.top_px, opacity_hw.shape, image_3HW.shape[1:])
        under_3hw = image_3HW[:, rows, columns]
        under_3hw *= 1.0 - opacity_hw[object_part]
        under_3hw += sprite.colour_3hw[:, *object_part]
    return image_3HW


def box_of(mask_HW: Bools) -> Box:
    """The tight box of a mask that is not empty."""
    columns, rows = np.flatnonzero(mask_HW.any(0)), np.flatnonzero(mask_HW.any(1))
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def _mask(sprite: Sprite, open_HW: Floats) -> Bools:
    """Pixels that get more than half of their colour from the object, where nearer ones leave `open_HW` to it."""
    mask_HW = np.zeros(open_HW.shape, np.bool_)
    image_part, object_part = _windows(sprite.left_px, sprite.top_px, sprite.opacity_hw.shape, open_HW.shape)
    mask_HW[image_part] = sprite.opacity_hw[object_part] * open_HW[image_part] > 0.5
    return mask_HW


def _windows(
    left_px: int, top_px: int, object_hw: tuple[int, ...], size_hw: tuple[int, ...]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The part of the image that an object covers, and the part of the object that lies in the image."""
    top, left = max(0, top_px), max(0, left_px)
    bottom, right = max(top, min(size_hw[0], top_px + object_hw[0])), max(left, min(size_hw[1], left_px + object_hw[1]))
    inner = (slice(top - top_px, bottom - top_px), slice(left - left_px, right - left_px))
    return (slice(top, bottom), slice(left, right)), inner


def _shade(image_3HW: Floats, shade_hw: Floats, left_px: int, top_px: int, strength: float) -> None:
    (rows, columns), shade_part = _windows(left_px, top_px, shade_hw.shape, image_3HW.shape[1:])
    image_3HW[:, rows, columns] *= 1.0 - np.float32(strength) * shade_hw[shade_part]


def _contact_shadow(sprite: Sprite) -> tuple[Floats, int, int]:
    """A soft pool of shade around the foot: how dark [h, w], left, top."""
    high, wide = sprite.opacity_hw.shape
    size = (max(4, round(wide * 1.15)), max(4, round(min(high, wide) * 0.3)))
    pool_hw = np.asarray(_pool().resize(size, Image.Resampling.BILINEAR), np.float32) / np.float32(255.0)
    return pool_hw, sprite.left_px - (size[0] - wide) // 2, sprite.foot_px - round(size[1] * 0.6)


def _drop_shadow(sprite: Sprite) -> tuple[Floats, int, int]:
    """The blurred outline, a little below and to the right: how dark [h, w], left, top."""
    blur_px = 4
    padded_hw = np.pad((sprite.opacity_hw * 255.0).astype(np.uint8), 2 * blur_px)
    blurred = Image.fromarray(padded_hw).filter(ImageFilter.BoxBlur(blur_px))
    shade_hw = np.asarray(blurred, np.float32) / np.float32(255.0)
    return shade_hw, sprite.left_px - 2 * blur_px + 3, sprite.top_px - 2 * blur_px + 5


@functools.cache
def _pool() -> Image.Image:
    across = np.linspace(-1.0, 1.0, 64)
    height_HW = np.clip(1.0 - np.hypot(across[None, :], across[:, None]), 0.0, 1.0)
    return Image.fromarray((255.0 * height_HW * (2.0 - height_HW)).astype(np.uint8))
