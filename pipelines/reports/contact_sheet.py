"""The contact sheet: images with the outline of each mask, the noun in the caption, and its similarity."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from maskmine.mining.exports.images import decode_crop
from maskmine.mining.images.child_decoder import Decoding
from maskmine.mining.images.outline import Colour, draw_outline
from maskmine.mining.storage.files import put_whole
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.mined_images import MinedImage
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import Pair, Rejection, SampleRow
from maskmine.tuning.fonts import dejavu

# Layout: four tiles of 4:3 make a sheet that fits a screen, with text of 13 and 15 pixels.
TILE_PX, PHOTO_PX, PADDING_PX, _COLUMNS, _LINE_PX = 380, 285, 14, 4, 21
_MAX_PIXELS = 200_000_000  # a few images are drawn, one at a time
_MAX_CHARS = 400  # of a caption, about ten lines
# Ground, captions, scores, and what lies between crops of an unreadable image.
_PAGE, _INK, _FAINT, _UNKNOWN = (250, 249, 246), (40, 42, 48), (98, 101, 110), (226, 224, 219)
# Okabe and Ito's palette, for any colour vision; black is left out.
_COLOURS = ((213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (150, 120, 20))


@dataclass(frozen=True, slots=True)
class Drawn:
    """Counts of a contact sheet; `pieced` of its images cannot be read and are put together from their crops."""

    images: int
    pairs: int
    pieced: int


@dataclass(frozen=True, slots=True)
class _Photo:
    """An image with its row of every step, and its samples in the shards."""

    mined: MinedImage
    samples: tuple[SampleRow, ...]

    @property
    def pairs(self) -> tuple[Pair, ...]:
        return self.mined.pairs


def contact_sheet(run: RunFolder, *, to: Path, images: int = 12, noun: str | None = None) -> Drawn:
    """Write a sheet of the run's first `images` images with pairs (of `noun`), in the plan's random order.

    Only pairs that passed the filters are drawn. Of an image that cannot be read, is another one than the run had, or
    is at a URL, which is not fetched, the crops in the shards are drawn. Raises InputError when there is no pair, or
    `to` cannot be written.
    """
    finished = FinishedRun.open(run)
    photos = list(islice(_photos(finished, noun), images))
    if not photos:
        what = f"of `{noun}`" if noun else "in this run"
        raise InputError(f"{run.root}: there is no pair {what} to show; see `maskmine errors {run.root}`")
    tiles, pieced = [], 0
    for photo in photos:
        decoded = Decoding().read(photo.mined.image.path, max_pixels=_MAX_PIXELS)
        is_there = not isinstance(decoded, Rejection) and decoded.sha256 == photo.mined.regions.sha256
        pieced += not is_there
        whole = Image.fromarray(decoded.rgb_HW3) if is_there else _piece_together(finished, photo)  # type: ignore[union-attr]
        tiles.append(_tile(photo, whole))
    sheet = _arrange(tiles)
    try:
        put_whole(to, _encoded(sheet, suffix=to.suffix))
    except (OSError, ValueError) as error:
        raise InputError(f"{to}: cannot be written ({error}); give --to a path that ends in .png or .jpg") from error
    return Drawn(len(photos), sum(len(photo.pairs) for photo in photos), pieced)


def _encoded(sheet: Image.Image, *, suffix: str) -> bytes:
    """The sheet as a file of the format that the end of its name says. Raises ValueError for an unknown one."""
    file_format = Image.registered_extensions().get(suffix.lower())
    if file_format is None:
        raise ValueError(f"unknown file extension: {suffix}")
    file = io.BytesIO()
    sheet.save(file, file_format)
    return file.getvalue()


def _photos(finished: FinishedRun, noun: str | None) -> Iterator[_Photo]:
    for part in finished.parts:
        samples = finished.rows(part, SampleRow)
        wanted = {row.image_id for row in samples if noun in (None, row.noun)}
        for mined in finished.images(part) if wanted else ():
            if mined.image.image_id in wanted:
                yield _Photo(mined, tuple(row for row in samples if row.image_id == mined.image.image_id))


def _piece_together(finished: FinishedRun, photo: _Photo) -> Image.Image:
    """The crops of an image where they were cut, on a plain ground."""
    whole = Image.new("RGB", (photo.mined.regions.width_px, photo.mined.regions.height_px), _UNKNOWN)
    for row in photo.samples:
        whole.paste(decode_crop(finished.sample(row)), row.crop_xyxy[:2])
    return whole


def _tile(photo: _Photo, picture: Image.Image) -> Image.Image:
    scale = min(TILE_PX / picture.width, PHOTO_PX / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    image = picture.resize(size, Image.Resampling.LANCZOS)
    for colour, region in _colours_of_regions(photo):
        mask = Image.fromarray(photo.mined.regions.regions[region].mask.to_array() * 255).resize(size)
        draw_outline(image, mask, colour)
    words = Image.new("RGB", (TILE_PX, 2000), _PAGE)
    height = _write_words(ImageDraw.Draw(words), photo)
    tile = Image.new("RGB", (TILE_PX, PHOTO_PX + height), _PAGE)
    tile.paste(image, ((TILE_PX - size[0]) // 2, PHOTO_PX - size[1]))
    tile.paste(words.crop((0, 0, TILE_PX, height)), (0, PHOTO_PX))
    return tile


def _colours_of_regions(photo: _Photo) -> Iterator[tuple[Colour, int]]:
    regions = dict.fromkeys(pair.region for pair in photo.pairs)
    for number, region in enumerate(regions):
        yield _COLOURS[number % len(_COLOURS)], region


def _write_words(draw: ImageDraw.ImageDraw, photo: _Photo) -> int:
    colours = {region: colour for colour, region in _colours_of_regions(photo)}
    y = 10
    for number in dict.fromkeys(pair.caption for pair in photo.pairs):
        spans = {(p.start, p.end): colours[p.region] for p in photo.pairs if p.caption == number}
        y = _write_caption(draw, photo.mined.captions.captions[number], spans, y)
    y += 4
    x = 0.0
    for pair in photo.pairs:
        text = _pair_text(pair, photo)
        width = dejavu(13).getlength(text) + 32
        if x and x + width > TILE_PX:
            x, y = 0.0, y + _LINE_PX
        draw.rounded_rectangle((x, y + 3, x + 11, y + 14), radius=3, fill=colours[pair.region])
        draw.text((x + 17, y), text, font=dejavu(13), fill=_FAINT)
        x += width
    return y + _LINE_PX + 8


def _pair_text(pair: Pair, photo: _Photo) -> str:
    if pair.similarity is not None:
        return f"{pair.noun} {pair.similarity:.3f}"
    label = photo.mined.regions.regions[pair.region].label
    return pair.noun if label in (None, pair.noun) else f"{pair.noun} = {label}"


def _write_caption(draw: ImageDraw.ImageDraw, caption: str, spans: dict[tuple[int, int], Colour], y: int) -> int:
    """Write the caption, wrapped, its nouns in the colours of their masks; returns the next free line."""
    x = 0.0
    for word in re.finditer(r"\S+", caption[:_MAX_CHARS]):
        runs = list(_coloured(word, spans))
        width = sum(font.getlength(text) for text, font, _ in runs)
        if x and x + width > TILE_PX:
            x, y = 0.0, y + _LINE_PX
        for text, font, colour in runs:
            draw.text((x, y), text, font=font, fill=colour)
            x += font.getlength(text)
        x += dejavu(15).getlength(" ")
    return y + _LINE_PX


def _coloured(
    word: re.Match[str], spans: dict[tuple[int, int], Colour]
) -> Iterator[tuple[str, ImageFont.FreeTypeFont, Colour]]:
    """A word cut where a noun begins or ends, so that punctuation keeps the colour of the text."""
    start, end = word.span()
    cuts = sorted({start, end, *(cut for span in spans for cut in span if start < cut < end)})
    for left, right in pairwise(cuts):
        colour = next((c for (first, last), c in spans.items() if first <= left and right <= last), None)
        yield word.string[left:right], dejavu(15, bold=colour is not None), colour or _INK


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
