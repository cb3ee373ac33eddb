"""Painted backdrops: graded colours, textures in perspective, and clutter without a name.

Shapes: H, W height and width of the image in pixels; 3 the channels red, green, blue; T side of a texture tile.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from maskmine.scripts.demo_world.environments import Colour, Setting, Surface

Array = np.ndarray[Any, np.dtype[np.float32]]

TILE_PX = 704  # the perspective below never looks further than this for images up to 288 px wide
_TEXTURE_SEED = 20230417  # the tiles are part of the world's definition, the same for every world seed
_CLUTTER_SHARE = 0.8  # how many images have each kind of clutter
_FAR_SCALE = 0.42  # width of the ground at the horizon: 1 at the lower edge would be no perspective


@dataclass(frozen=True, slots=True)
class Backdrop:
    """The empty place as an RGB image; `horizon_px` is the row where the ground begins, None where there is none."""

    image: Image.Image
    horizon_px: int | None


def paint_backdrop(setting: Setting, *, height_px: int, width_px: int, rng: np.random.Generator) -> Backdrop:
    """Paint a place of the given setting."""
    image = Image.new("RGB", (width_px, height_px))
    near = setting.near[int(rng.integers(len(setting.near)))]
    if setting.horizon is None:
        ground = _graded(near, _flat_texture(near.texture, height_px, width_px, rng), rng)
        horizon_px = None
    else:
        horizon_px = round(height_px * rng.uniform(*setting.horizon))
        far = setting.far[int(rng.integers(len(setting.far)))]
        wall = _graded(far, _flat_texture(far.texture, horizon_px, width_px, rng), rng)
        image.paste(_decorated(wall, [_FAR_DECOR[name] for name in setting.decor if name in _FAR_DECOR], rng))
        ground = _graded(near, _ground_texture(near.texture, height_px - horizon_px, width_px, rng), rng)
    ground = _decorated(ground, [_NEAR_DECOR[name] for name in setting.decor if name in _NEAR_DECOR], rng)
    image.paste(ground, (0, horizon_px or 0))
    clutter = [draw for draw in (_draw_smudges, _draw_marks) if rng.random() < _CLUTTER_SHARE]
    return Backdrop(_decorated(image, clutter, rng), horizon_px)


def _graded(surface: Surface, texture_HW: Array, rng: np.random.Generator) -> Image.Image:
    """The surface's colours from first to last row, each a little off, with the texture as lighter and darker."""
    ends_23 = np.asarray((surface.first, surface.last), np.float32) + rng.normal(0.0, 9.0, (2, 3)).astype(np.float32)
    row_H1 = np.linspace(0.0, 1.0, len(texture_HW), dtype=np.float32)[:, None]
    relief_HW = texture_HW * np.float32(surface.strength * rng.uniform(0.7, 1.3) * 255.0)
    planes = [np.clip(first + row_H1 * (last - first) + relief_HW, 0.0, 255.0) for first, last in ends_23.T]
    return Image.merge("RGB", [Image.fromarray(plane_HW.astype(np.uint8)) for plane_HW in planes])


def _flat_texture(name: str, height_px: int, width_px: int, rng: np.random.Generator) -> Array:
    """A random cut of a tile, values about −1 to 1, seen straight on."""
    scale = rng.uniform(0.8, 1.6)
    cut_w, cut_h = width_px * scale, height_px * scale
    left, top = rng.uniform(0, TILE_PX - cut_w), rng.uniform(0, TILE_PX - cut_h)
    cut = _tile(name).resize(
        (width_px, height_px), Image.Resampling.BILINEAR, box=(left, top, left + cut_w, top + cut_h)
    )
    return _signed(cut)


def _ground_texture(name: str, height_px: int, width_px: int, rng: np.random.Generator) -> Array:
    """A random cut of a tile as ground that recedes to its upper edge, fading there.

    The plane is seen through u = (a·x + b·y + c) / (h·y + 1), v = (e·y + f) / (h·y + 1), as Pillow's PERSPECTIVE wants.
    """
    scale = rng.uniform(0.75, 1.0)
    bend = (1.0 - _FAR_SCALE) / (_FAR_SCALE * height_px)
    depth = scale * 1.2 * height_px / (_FAR_SCALE * (1.0 - _FAR_SCALE))
    centre_u = TILE_PX / 2 + rng.uniform(-8.0, 8.0)
    near_v = min(depth * (1.0 - _FAR_SCALE), TILE_PX - 2.0) + rng.uniform(0.0, 1.0)
    start_v = near_v + depth * _FAR_SCALE
    across = scale / _FAR_SCALE
    plane = (across, centre_u * bend, centre_u - width_px / 2 * across, 0.0, start_v * bend, start_v - depth, 0.0, bend)
    seen = _tile(name).transform((width_px, height_px), Image.Transform.PERSPECTIVE, plane, Image.Resampling.BILINEAR)
    fade_H1 = np.linspace(0.25, 1.0, height_px, dtype=np.float32)[:, None]
    return _signed(seen) * fade_H1


def _signed(tile: Image.Image) -> Array:
    return np.asarray(tile, np.float32) / 127.5 - 1.0


# ---- textures: one square grey tile each, 128 is neutral


@functools.cache
def _tile(name: str) -> Image.Image:
    rng = np.random.default_rng(np.random.SeedSequence([_TEXTURE_SEED, *name.encode()]))
    tile_TT = np.clip(_TEXTURES[name](rng), -1.0, 1.0)
    return Image.fromarray(((tile_TT + 1.0) * 127.5).astype(np.uint8))


def _noise(rng: np.random.Generator, rows: int, columns: int, octaves: int) -> Array:
    """Smooth noise of about −1 to 1: grids of random values, each octave twice as fine and half as strong."""
    total_TT = np.zeros((TILE_PX, TILE_PX), np.float32)
    for octave in range(octaves):
        size = (min(columns << octave, TILE_PX), min(rows << octave, TILE_PX))
        grid = Image.fromarray(rng.uniform(-1.0, 1.0, (size[1], size[0])).astype(np.float32))
        total_TT += np.asarray(grid.resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC)) * 0.5**octave
    spread = float(total_TT.std()) * 2.2
    noise_TT: Array = total_TT / np.float32(spread)
    return noise_TT


def _bands(period_px: float, width_px: float, *, axis: int, shift_px: Array | float = 0.0) -> Array:
    """Stripes across an axis: 1 for `width_px` of every `period_px`, else 0."""
    position = np.arange(TILE_PX, dtype=np.float32)
    position_TT = np.broadcast_to(position[:, None] if axis == 0 else position[None, :], (TILE_PX, TILE_PX))
    return (((position_TT + shift_px) % period_px) < width_px).astype(np.float32)


def _courses(rng: np.random.Generator, row_px: float, brick_px: float, joint_px: float) -> Array:
    """Rows of bricks or boards, every other row shifted by half a brick; each brick has its own grey."""
    position = np.arange(TILE_PX, dtype=np.float32)
    row_TT = np.broadcast_to((position // row_px)[:, None], (TILE_PX, TILE_PX))
    along_TT = position[None, :] + row_TT * brick_px * 0.5
    grey = rng.uniform(-0.5, 0.5, (256, 256)).astype(np.float32)
    brick_TT = grey[row_TT.astype(int) % 256, (along_TT // brick_px).astype(int) % 256]
    joint_TT = _bands(row_px, joint_px, axis=0) + ((along_TT % brick_px) < joint_px)
    courses_TT: Array = np.where(joint_TT > 0, np.float32(-0.9), brick_TT)
    return courses_TT


def _planks(rng: np.random.Generator) -> Array:
    return _courses(rng, 30.0, 190.0, 2.0) * 0.8 + _noise(rng, 90, 5, 2) * 0.3


def _tiles(rng: np.random.Generator) -> Array:
    joints_TT = np.maximum(_bands(34.0, 2.5, axis=0), _bands(34.0, 2.5, axis=1))
    return 0.25 - joints_TT + _noise(rng, 8, 8, 3) * 0.2


def _check(rng: np.random.Generator) -> Array:
    crossed_TT = _bands(32.0, 16.0, axis=0) + _bands(32.0, 16.0, axis=1) - 1.0
    return crossed_TT * 0.8 + _noise(rng, 200, 200, 1) * 0.15


def _leaves(rng: np.random.Generator) -> Array:
    leaves_TT: Array = np.clip(_noise(rng, 26, 26, 3) * 1.6, -1.0, 1.0) * 0.7
    return leaves_TT + _noise(rng, 5, 5, 2) * 0.5


_TEXTURES: dict[str, Callable[[np.random.Generator], Array]] = {
    "cloud": lambda rng: _noise(rng, 7, 4, 5),
    "grass": lambda rng: _noise(rng, 50, 150, 2) * 0.7 + _noise(rng, 8, 8, 3) * 0.4,
    "sand": lambda rng: _noise(rng, 350, 350, 2) * 0.6 + _noise(rng, 9, 6, 3) * 0.5,
    "snow": lambda rng: _noise(rng, 10, 5, 4),
    "stone": lambda rng: _noise(rng, 20, 20, 5),
    "plaster": lambda rng: _noise(rng, 3, 3, 2) * 0.8 + _noise(rng, 120, 120, 2) * 0.35,
    "water": lambda rng: _noise(rng, 60, 11, 3),
    "wood": lambda rng: _noise(rng, 60, 3, 3) * 0.8 + _bands(88.0, 1.5, axis=0) * -0.8,
    "carpet": lambda rng: _noise(rng, 330, 330, 2) * 0.7 + _noise(rng, 5, 5, 2) * 0.4,
    "cloth": lambda rng: _noise(rng, 300, 40, 2) * 0.35 + _noise(rng, 40, 300, 2) * 0.35 + _noise(rng, 5, 5, 3) * 0.7,
    "curtain": lambda rng: _noise(rng, 1, 22, 2) + _noise(rng, 6, 6, 2) * 0.2,
    "stripes": lambda rng: _bands(40.0, 20.0, axis=1) * 2.0 - 1.0 + _noise(rng, 6, 6, 2) * 0.3,
    "planks": _planks,
    "bricks": lambda rng: _courses(rng, 17.0, 42.0, 2.0) + _noise(rng, 60, 60, 2) * 0.2,
    "tiles": _tiles,
    "check": _check,
    "leaves": _leaves,
}


# ---- decor of the setting and clutter: shapes on a translucent layer


def _decorated(image: Image.Image, drawers: Sequence[_Drawer], rng: np.random.Generator) -> Image.Image:
    """Lay over the image, in place, what each drawer leaves; a layer smaller than the image is blurred by it."""
    mean_3 = np.asarray(image.resize((1, 1), Image.Resampling.BOX), np.float32)[0, 0]
    for draw in drawers:
        layer = draw(image.width, image.height, mean_3, rng)
        if layer.size != image.size:
            layer = layer.resize(image.size, Image.Resampling.BILINEAR)
        image.paste(layer, mask=layer)
    return image


def _draw_smudges(width_px: int, height_px: int, mean_3: Array, rng: np.random.Generator) -> Image.Image:
    layer, pen = _blank(width_px // 8, height_px // 8, mean_3)
    for _ in range(int(rng.integers(3, 10))):
        x, y = rng.uniform(0, layer.width), rng.uniform(0, layer.height)
        half_w, half_h = rng.uniform(1.0, layer.width / 5), rng.uniform(1.0, layer.height / 5)
        box = (x - half_w, y - half_h, x + half_w, y + half_h)
        fill = (*_near_colour(mean_3, 42.0, rng), int(rng.integers(30, 120)))
        if rng.random() < 0.6:
            pen.ellipse(box, fill=fill)
        else:
            pen.rectangle(box, fill=fill)
    return layer.filter(ImageFilter.BoxBlur(0.7))


def _draw_marks(width_px: int, height_px: int, mean_3: Array, rng: np.random.Generator) -> Image.Image:
    """Faint little shapes with an outline and a stroke in them, as glyphs have, but of nothing."""
    layer, pen = _blank(width_px, height_px, mean_3)
    for _ in range(int(rng.integers(3, 16))):
        radius_px = rng.uniform(2.0, 7.0)
        x, y = rng.uniform(0, width_px), rng.uniform(0, height_px)
        corners = int(rng.integers(3, 8))
        angles = np.sort(rng.uniform(0.0, 2 * np.pi, corners))
        radii = radius_px * rng.uniform(0.5, 1.2, corners)
        outline = [(x + r * float(np.cos(a)), y + r * float(np.sin(a))) for a, r in zip(angles, radii, strict=True)]
        opacity = int(rng.integers(30, 100))
        dark = (*_near_colour(mean_3 * 0.5, 12.0, rng), opacity)
        pen.polygon(outline, fill=(*_near_colour(mean_3, 36.0, rng), opacity), outline=dark)
        pen.line([outline[0], (x, y), outline[corners // 2]], fill=dark)
    return layer


def _draw_hills(width_px: int, height_px: int, mean_3: Array, rng: np.random.Generator) -> Image.Image:
    layer, pen = _blank(width_px // 2, height_px // 2, mean_3)
    base = np.array((110.0, 140.0, 120.0)) * rng.uniform(0.7, 1.1)
    for share in (0.0, 0.5):
        colour = (*_near_colour(base + (mean_3 - base) * (0.55 - share), 8.0, rng), 255)
        for _ in range(3):
            x, half_w = rng.uniform(0, layer.width), rng.uniform(0.25, 0.6) * layer.width
            top = layer.height * rng.uniform(0.35 + share * 0.6, 0.9)
            pen.ellipse((x - half_w, top, x + half_w, 3 * layer.height - top), fill=colour)
    return layer.filter(ImageFilter.BoxBlur(0.8))


def _draw_skyline(width_px: int, height_px: int, mean_3: Array, rng: np.random.Generator) -> Image.Image:
    """Blocks in haze; too plain and too blurred to be called houses."""
    layer, pen = _blank(width_px // 3, height_px // 3, mean_3)
    x = rng.uniform(-6.0, 0.0)
    while x < layer.width:
        wide = rng.uniform(4.0, 13.0)
        top = layer.height * rng.uniform(0.15, 0.8)
        grey = np.full(3, rng.uniform(95.0, 165.0))
        pen.rectangle((x, top, x + wide, layer.height), fill=(*_near_colour((grey + mean_3) / 2, 14.0, rng), 235))
        x += wide + rng.uniform(-1.0, 2.0)
    return layer.filter(ImageFilter.BoxBlur(0.5))


def _draw_trunks(width_px: int, height_px: int, mean_3: Array, rng: np.random.Generator) -> Image.Image:
    layer, pen = _blank(width_px // 2, height_px // 2, mean_3)
    for _ in range(int(rng.integers(4, 10))):
        x, wide = rng.uniform(0, layer.width), rng.uniform(1.5, 6.0)
        lean = rng.uniform(-3.0, 3.0)
        fill = (*_near_colour(mean_3 * 0.6, 12.0, rng), int(rng.integers(120, 210)))
        pen.polygon(
            [(x + lean, -1), (x + lean + wide, -1), (x + wide * 1.3, layer.height), (x, layer.height)], fill=fill
        )
    return layer.filter(ImageFilter.BoxBlur(0.6))


def _draw_panels(width_px: int, height_px: int, mean_3: Array, rng: np.random.Generator) -> Image.Image:
    """A skirting at the foot of a wall and a few soft rectangles of light and shade on it."""
    layer, pen = _blank(width_px // 2, height_px // 2, mean_3)
    for _ in range(int(rng.integers(0, 4))):
        x, y = rng.uniform(-0.1, 0.9) * layer.width, rng.uniform(-0.2, 0.6) * layer.height
        wide, high = rng.uniform(0.1, 0.4) * layer.width, rng.uniform(0.2, 0.7) * layer.height
        pen.rectangle((x, y, x + wide, y + high), fill=(*_near_colour(mean_3, 26.0, rng), int(rng.integers(50, 150))))
    skirt = max(1, round(layer.height * 0.05))
    pen.rectangle(
        (0, layer.height - skirt, layer.width, layer.height), fill=(*_near_colour(mean_3 * 0.75, 8.0, rng), 200)
    )
    return layer


def _draw_lane(width_px: int, height_px: int, mean_3: Array, rng: np.random.Generator) -> Image.Image:
    """Painted lines on the ground that run to a point at its upper edge."""
    layer, pen = _blank(width_px, height_px, mean_3)
    vanish_x = width_px * rng.uniform(0.3, 0.7)
    fill = (*_near_colour(np.full(3, 225.0), 14.0, rng), int(rng.integers(90, 190)))
    for foot in (rng.uniform(-0.6, 0.1), rng.uniform(0.35, 0.65), rng.uniform(0.9, 1.6)):
        foot_x, wide = width_px * foot, width_px * 0.016
        pen.polygon([(vanish_x, 0), (foot_x - wide, height_px), (foot_x + wide, height_px)], fill=fill)
    return layer


def _draw_dots(width_px: int, height_px: int, mean_3: Array, rng: np.random.Generator, *, shade: float) -> Image.Image:
    """Pebbles, crumbs or flakes: small blots, darker or lighter than the ground."""
    layer, pen = _blank(width_px, height_px, mean_3)
    for _ in range(int(rng.integers(8, 36))):
        x, y, radius_px = rng.uniform(0, width_px), rng.uniform(0, height_px), rng.uniform(0.5, 2.2)
        fill = (*_near_colour(mean_3 * shade, 14.0, rng), int(rng.integers(80, 220)))
        pen.ellipse((x - radius_px, y - radius_px * 0.7, x + radius_px, y + radius_px * 0.7), fill=fill)
    return layer


def _draw_tufts(width_px: int, height_px: int, mean_3: Array, rng: np.random.Generator) -> Image.Image:
    layer, pen = _blank(width_px, height_px, mean_3)
    for _ in range(int(rng.integers(10, 30))):
        x, y = rng.uniform(0, width_px), rng.uniform(0.05, 1.0) * height_px
        tall = 2.0 + 7.0 * y / height_px
        fill = (*_near_colour(mean_3 * rng.choice((0.72, 1.22)), 12.0, rng), int(rng.integers(70, 180)))
        for lean in (-0.5, 0.0, 0.5):
            pen.line([(x, y), (x + lean * tall, y - tall)], fill=fill)
    return layer


def _draw_foam(width_px: int, height_px: int, mean_3: Array, rng: np.random.Generator) -> Image.Image:
    layer, pen = _blank(width_px, height_px, mean_3)
    for _ in range(int(rng.integers(6, 22))):
        x, y, half_w = rng.uniform(0, width_px), rng.uniform(0, height_px), rng.uniform(3.0, 14.0)
        fill = (*_near_colour(mean_3 * 0.5 + 120.0, 10.0, rng), int(rng.integers(30, 110)))
        pen.arc((x - half_w, y - half_w / 3, x + half_w, y + half_w / 3), 180, 360, fill=fill)
    return layer


def _draw_bokeh(width_px: int, height_px: int, mean_3: Array, rng: np.random.Generator) -> Image.Image:
    """Discs of light out of focus."""
    layer, pen = _blank(width_px // 2, height_px // 2, mean_3)
    for _ in range(int(rng.integers(4, 14))):
        x, y, radius_px = rng.uniform(0, layer.width), rng.uniform(0, layer.height), rng.uniform(2.0, 11.0)
        fill = (*_near_colour(mean_3 * 1.25 + 25.0, 24.0, rng), int(rng.integers(20, 80)))
        pen.ellipse((x - radius_px, y - radius_px, x + radius_px, y + radius_px), fill=fill)
    return layer.filter(ImageFilter.BoxBlur(0.6))


def _blank(width_px: int, height_px: int, mean_3: Array) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty layer, transparent in the image's mean colour: blurred edges would show a black one as a halo."""
    red, green, blue = mean_3.astype(int).tolist()
    layer = Image.new("RGBA", (max(1, width_px), max(1, height_px)), (red, green, blue, 0))
    return layer, ImageDraw.Draw(layer)


def _near_colour(mean_3: np.ndarray[Any, Any], spread: float, rng: np.random.Generator) -> Colour:
    red, green, blue = (mean_3 + rng.normal(0.0, spread, 3)).tolist()
    return (_byte(red), _byte(green), _byte(blue))


def _byte(value: float) -> int:
    return min(max(int(value), 0), 255)


_Drawer = Callable[[int, int, Array, np.random.Generator], Image.Image]
_FAR_DECOR: dict[str, _Drawer] = {
    "hills": _draw_hills,
    "panels": _draw_panels,
    "skyline": _draw_skyline,
    "trunks": _draw_trunks,
}
_NEAR_DECOR: dict[str, _Drawer] = {
    "bokeh": _draw_bokeh,
    "crumbs": functools.partial(_draw_dots, shade=0.7),
    "foam": _draw_foam,
    "lane": _draw_lane,
    "pebbles": functools.partial(_draw_dots, shade=0.78),
    "specks": functools.partial(_draw_dots, shade=1.25),
    "tufts": _draw_tufts,
}
