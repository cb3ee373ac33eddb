"""The contact sheet: photographs with the outline of each mask, the noun in the caption, and its similarity."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice, pairwise
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from mining.images import read_image
from pipelines.plan import Plan
from pipelines.report_pictures import read_sample
from pipelines.run_folder import RunFolder
from pipelines.status import require_plan
from pipelines.verify import read_manifest
from schemas.errors import InputError
from schemas.rows import CaptionsRow, ImageRow, Pair, PairsRow, RegionsRow, Rejection, SampleRow

Colour = tuple[int, int, int]

TILE_PX = 380
PHOTO_PX = 285
PADDING_PX = 14
_COLUMNS = 4
_LINE_PX = 21
_MOST_PIXELS = 200_000_000
_MOST_CHARS = 400
_PAGE, _INK, _FAINT, _UNKNOWN = (250, 249, 246), (40, 42, 48), (125, 128, 136), (226, 224, 219)
# Okabe and Ito's palette, told apart with any colour vision; black is left out.
_COLOURS = ((213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (150, 120, 20))


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a contact sheet holds; `pieced` of its images are not at hand and laid together from their crops."""

    images: int
    pairs: int
    pieced: int


@dataclass(frozen=True, slots=True)
class _Photo:
    image: ImageRow
    captions: tuple[str, ...]
    regions: RegionsRow
    pairs: tuple[Pair, ...]
    samples: tuple[SampleRow, ...]


def contact_sheet(run: RunFolder, *, to: Path, images: int = 12, noun: str | None = None) -> Drawn:
    """Write a picture of the run's first `images` photographs with pairs (of `noun`), in the plan's random order.

    Only pairs that passed the filters are drawn. Of a photograph that cannot be read, or is at a URL, which is not
    fetched, the crops are drawn that the shards have of it. Raises InputError when there is no pair, or `to` cannot be
    written.
    """
    read_manifest(run)
    photos = list(islice(_photos(run, require_plan(run), noun), images))
    if not photos:
        what = f"of `{noun}`" if noun else "in this run"
        raise InputError(f"{run.root}: there is no pair {what} to show; see `maskmine errors {run.root}`")
    tiles, pieced = [], 0
    for photo in photos:
        picture = read_image(photo.image.path, max_pixels=_MOST_PIXELS)
        pieced += isinstance(picture, Rejection)
        whole = _piece_together(run, photo) if isinstance(picture, Rejection) else Image.fromarray(picture.rgb_HW3)
        tiles.append(_tile(photo, whole))
    sheet = _arrange(tiles)
    try:
        sheet.save(to)
    except (OSError, ValueError) as error:
        raise InputError(f"{to}: cannot be written ({error}); give --to a path that ends in .png or .jpg") from error
    return Drawn(len(photos), sum(len(photo.pairs) for photo in photos), pieced)


def _photos(run: RunFolder, plan: Plan, noun: str | None) -> Iterator[_Photo]:
    for part in range(plan.parts):
        name = f"{part:05d}.parquet"
        samples = run.read_rows("shards", name, row_type=SampleRow)
        kept = {(row.image_id, row.noun) for row in samples}
        wanted = {image_id for image_id, said in kept if noun in (None, said)}
        if not wanted:
            continue
        rows = zip(
            run.read_rows("images", name, row_type=ImageRow),
            run.read_rows("captions", name, row_type=CaptionsRow),
            run.read_rows("regions", name, row_type=RegionsRow),
            run.read_rows("pairs", name, row_type=PairsRow),
            strict=True,
        )
        for image, captions, regions, pairs in rows:
            if image.image_id in wanted:
                shown = tuple(pair for pair in pairs.pairs if (image.image_id, pair.noun) in kept)
                cut = tuple(row for row in samples if row.image_id == image.image_id)
                yield _Photo(image, captions.captions, regions, shown, cut)


def _piece_together(run: RunFolder, photo: _Photo) -> Image.Image:
    """The crops of a photograph where they were cut; nothing is known of what lies between them."""
    whole = Image.new("RGB", (photo.regions.width_px, photo.regions.height_px), _UNKNOWN)
    for row in photo.samples:
        with Image.open(io.BytesIO(read_sample(run, row).image)) as crop:
            whole.paste(crop.convert("RGB"), row.crop_xyxy[:2])
    return whole


def _tile(photo: _Photo, picture: Image.Image) -> Image.Image:
    scale = min(TILE_PX / picture.width, PHOTO_PX / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    image = picture.resize(size, Image.Resampling.LANCZOS)
    for colour, region in _colours_of_regions(photo):
        _outline(image, Image.fromarray(photo.regions.regions[region].mask.to_array() * 255).resize(size), colour)
    words = Image.new("RGB", (TILE_PX, 2000), _PAGE)
    height = _write_words(ImageDraw.Draw(words), photo)
    tile = Image.new("RGB", (TILE_PX, PHOTO_PX + height), _PAGE)
    tile.paste(image, ((TILE_PX - size[0]) // 2, PHOTO_PX - size[1]))
    tile.paste(words.crop((0, 0, TILE_PX, height)), (0, PHOTO_PX))
    return tile


def _colours_of_regions(photo: _Photo) -> Iterator[tuple[tuple[int, int, int], int]]:
    regions = dict.fromkeys(pair.region for pair in photo.pairs)
    for number, region in enumerate(regions):
        yield _COLOURS[number % len(_COLOURS)], region


def _outline(image: Image.Image, mask: Image.Image, colour: Colour) -> None:
    """Tint the mask and draw its contour with a white edge, which shows on any photograph."""
    tint = mask.point(lambda value: value // 4)
    image.paste(colour, mask=tint)
    inner = np.asarray(mask.filter(ImageFilter.MinFilter(3))) > 127
    middle = np.asarray(mask) > 127
    outer = np.asarray(mask.filter(ImageFilter.MaxFilter(5))) > 127
    image.paste((255, 255, 255), mask=Image.fromarray((outer & ~middle).astype(np.uint8) * 160))
    thick = np.asarray(mask.filter(ImageFilter.MinFilter(5))) > 127
    image.paste(colour, mask=Image.fromarray((middle & ~(inner & thick)).astype(np.uint8) * 255))


def _write_words(draw: ImageDraw.ImageDraw, photo: _Photo) -> int:
    colours = {region: colour for colour, region in _colours_of_regions(photo)}
    y = 10
    for number in dict.fromkeys(pair.caption for pair in photo.pairs):
        spans = {(p.start, p.end): colours[p.region] for p in photo.pairs if p.caption == number}
        y = _write_caption(draw, photo.captions[number], spans, y)
    y += 4
    x = 0.0
    for pair in photo.pairs:
        text = _pair_text(pair, photo)
        width = _font(13).getlength(text) + 32
        if x and x + width > TILE_PX:
            x, y = 0.0, y + _LINE_PX
        draw.rounded_rectangle((x, y + 3, x + 11, y + 14), radius=3, fill=colours[pair.region])
        draw.text((x + 17, y), text, font=_font(13), fill=_FAINT)
        x += width
    return y + _LINE_PX + 8


def _pair_text(pair: Pair, photo: _Photo) -> str:
    if pair.similarity is not None:
        return f"{pair.noun} {pair.similarity:.3f}"
    label = photo.regions.regions[pair.region].label
    return pair.noun if label in (None, pair.noun) else f"{pair.noun} = {label}"


def _write_caption(draw: ImageDraw.ImageDraw, caption: str, spans: dict[tuple[int, int], Colour], y: int) -> int:
    """Write the caption, wrapped, its nouns in the colours of their masks; returns the next free line."""
    x = 0.0
    for word in re.finditer(r"\S+", caption[:_MOST_CHARS]):
        pieces = list(_pieces(word, spans))
        width = sum(font.getlength(text) for text, font, _ in pieces)
        if x and x + width > TILE_PX:
            x, y = 0.0, y + _LINE_PX
        for text, font, colour in pieces:
            draw.text((x, y), text, font=font, fill=colour)
            x += font.getlength(text)
        x += _font(15).getlength(" ")
    return y + _LINE_PX


def _pieces(
    word: re.Match[str], spans: dict[tuple[int, int], Colour]
) -> Iterator[tuple[str, ImageFont.FreeTypeFont, Colour]]:
    """A word cut where a noun begins or ends, so that punctuation keeps the colour of the text."""
    start, end = word.span()
    cuts = sorted({start, end, *(cut for span in spans for cut in span if start < cut < end)})
    for left, right in pairwise(cuts):
        colour = next((c for (first, last), c in spans.items() if first <= left and right <= last), None)
        yield word.string[left:right], _font(15, bold=colour is not None), colour or _INK


def _arrange(tiles: list[Image.Image]) -> Image.Image:
    columns = min(_COLUMNS, len(tiles))
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    width = columns * TILE_PX + (columns + 1) * PADDING_PX
    sheet = Image.new("RGB", (width, sum(heights) + (len(rows) + 1) * PADDING_PX), _PAGE)
    y = PADDING_PX
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            sheet.paste(tile, (PADDING_PX + column * (TILE_PX + PADDING_PX), y))
        y += height + PADDING_PX
    return sheet


@cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    # DejaVu comes with matplotlib and has Latin, Greek, Cyrillic, Arabic and more.
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{name}", size)
