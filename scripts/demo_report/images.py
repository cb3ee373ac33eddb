"""What a page shows of a finished run: scenes with their masks and captions, right and wrong pairs.

Pictures are `data:` URIs, so that the page needs no other file.

Shapes: H, W height and width of a picture in pixels; 3 red, green, blue.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from mining.crops import grow_box
from mining.images import read_image
from mining.judging import JudgedImage, JudgedPair, judge_image
from mining.truth import Naming, Truth, TruthObject
from pipelines.run_folder import RunFolder
from pipelines.status import require_plan
from pipelines.verify import read_manifest
from schemas.errors import InputError
from schemas.mask import Mask, mask_iou
from schemas.rows import CaptionsRow, ImageRow, NounsRow, PairsRow, RegionsRow, Rejection
from schemas.sample import sample_key

Picture = np.ndarray[Any, np.dtype[np.uint8]]

# Okabe and Ito's palette, told apart with any colour vision; black is left out.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#967814")
_MOST_PIXELS = 50_000_000
_SCENE_SCALE, _PAIR_PX = 2, 240
_CROP_GROWTH = 1.25
_VEIL_RGB, _VEIL_SHARE = (123, 117, 104), 0.8  # CLIP's mean colour lies over what is outside the mask
_BROAD_OVERLAP = 0.1


@dataclass(frozen=True, slots=True)
class JudgedScene:
    """An image of a run with the verdicts on its pairs."""

    image: ImageRow
    captions: tuple[str, ...]
    regions: RegionsRow
    objects: tuple[TruthObject, ...]
    judged: JudgedImage


@dataclass(frozen=True, slots=True)
class ShownNoun:
    """A pair in a few words; `colour` is that of its mask's outline."""

    noun: str
    similarity: str
    colour: str
    outcome: str


@dataclass(frozen=True, slots=True)
class ShownScene:
    """A scene with the outlines of its masks; captions are cut into pieces, nouns with the colours of their masks."""

    picture: str
    captions: tuple[tuple[tuple[str, str | None], ...], ...]
    nouns: tuple[ShownNoun, ...]


@dataclass(frozen=True, slots=True)
class ShownPair:
    """A pair with the picture of its mask; `truth` says what the mask truly is."""

    picture: str
    noun: str
    similarity: str
    truth: str
    right: bool


def judge_scenes(run: RunFolder, *, truth: Truth, naming: Naming) -> Iterator[JudgedScene]:
    """The images of a finished run that the truth covers, with those of their pairs that are in the shards."""
    fingerprint = read_manifest(run).fingerprint
    for part in range(require_plan(run).parts):
        name = f"{part:05d}.parquet"
        keys = set(run.read_table("shards", name, fingerprint=fingerprint)["key"].to_pylist())
        rows = zip(
            run.read_rows("images", name, row_type=ImageRow),
            run.read_rows("captions", name, row_type=CaptionsRow),
            run.read_rows("nouns", name, row_type=NounsRow),
            run.read_rows("regions", name, row_type=RegionsRow),
            run.read_rows("pairs", name, row_type=PairsRow),
            strict=True,
        )
        for image, captions, nouns, regions, paired in rows:
            if truth.fit(regions) != "covered":
                continue
            kept = [pair for n, pair in enumerate(paired.pairs) if sample_key(paired.image_id, n) in keys]
            objects = truth.objects(image.image_id)
            judged = judge_image(nouns, regions, kept, objects=objects, naming=naming)
            yield JudgedScene(image, captions.captions, regions, tuple(objects), judged)


def show_scene(scene: JudgedScene) -> ShownScene:
    """A scene with its masks tinted and outlined."""
    picture_HW3 = _read(scene.image)
    height_px, width_px = picture_HW3.shape[:2]
    size = (_SCENE_SCALE * width_px, _SCENE_SCALE * height_px)
    image = Image.fromarray(picture_HW3).resize(size, Image.Resampling.BICUBIC)
    colours = _colours(scene)
    for region, colour in colours.items():
        _outline(image, scene.regions.regions[region].mask, colour)
    pairs = [one.pair for one in scene.judged.pairs]
    captions = tuple(
        _pieces(
            scene.captions[number],
            {(pair.start, pair.end): colours[pair.region] for pair in pairs if pair.caption == number},
        )
        for number in dict.fromkeys(pair.caption for pair in pairs)
    )
    nouns = tuple(
        ShownNoun(one.pair.noun, _score(one.pair.similarity), colours[one.pair.region], one.outcome)
        for one in scene.judged.pairs
    )
    return ShownScene(data_uri(image), captions, nouns)


def show_pairs(scenes: Sequence[JudgedScene], *, right: bool, most: int) -> list[ShownPair]:
    """At most so many right or wrong pairs, evenly from the most similar to the least."""
    outcomes = ("right",) if right else ("other", "none")
    found = [(scene, one) for scene in scenes for one in scene.judged.pairs if one.outcome in outcomes]
    found.sort(key=lambda item: (-(item[1].pair.similarity or 0.0), item[0].image.image_id, item[1].pair.noun))
    count = min(most, len(found))
    chosen = [found[number * (len(found) - 1) // max(1, count - 1)] for number in range(count)]
    return [_show_pair(scene, one) for scene, one in chosen]


def data_uri(image: Image.Image) -> str:
    """A picture for `src`, as WebP."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=82, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _show_pair(scene: JudgedScene, one: JudgedPair) -> ShownPair:
    region = scene.regions.regions[one.pair.region]
    height_px, width_px = scene.regions.height_px, scene.regions.width_px
    box = grow_box(region.mask.box_xyxy, ratio=_CROP_GROWTH, height_px=height_px, width_px=width_px)
    mask_HW = region.mask.to_array()
    picture_HW3 = _read(scene.image).astype(np.float32)
    veiled_HW3 = picture_HW3 * (1 - _VEIL_SHARE) + np.array(_VEIL_RGB) * _VEIL_SHARE
    shown_HW3 = np.where(mask_HW[:, :, None] > 0, picture_HW3, veiled_HW3)
    image = Image.fromarray(shown_HW3.astype(np.uint8)).crop(box)
    scale = _PAIR_PX / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return ShownPair(
        data_uri(image.resize(size, Image.Resampling.BICUBIC)),
        one.pair.noun,
        _score(one.pair.similarity),
        _truly(region.mask, one, scene.objects),
        one.outcome == "right",
    )


def _truly(mask: Mask, one: JudgedPair, objects: Sequence[TruthObject]) -> str:
    """What a mask truly is, in a few words."""
    if one.outcome == "right":
        return f"right, IoU {one.iou:.2f}"
    iou_N = mask_iou([mask], [there.mask for there in objects])[0]
    if not len(iou_N) or iou_N.max() < _BROAD_OVERLAP:
        return "no object"
    category = objects[int(iou_N.argmax())].category
    return category if one.outcome == "other" else f"not the whole of one: {category}, IoU {iou_N.max():.2f}"


def _read(image: ImageRow) -> Picture:
    picture = read_image(image.path, max_pixels=_MOST_PIXELS)
    if isinstance(picture, Rejection):
        raise InputError(f"{image.path}: {picture.reason} ({picture.detail}); the page needs the pictures of the run")
    return picture.rgb_HW3


def _colours(scene: JudgedScene) -> dict[int, str]:
    """A colour for every region that has a pair."""
    regions = dict.fromkeys(one.pair.region for one in scene.judged.pairs)
    return {region: COLOURS[number % len(COLOURS)] for number, region in enumerate(regions)}


def _outline(image: Image.Image, mask: Mask, colour: str) -> None:
    """Tint a mask and draw its outline, with a white edge outside that shows on any picture."""
    drawn = Image.fromarray(mask.to_array() * 255).resize(image.size, Image.Resampling.BICUBIC)
    drawn = drawn.point(lambda value: 255 if value > 127 else 0)
    rings = [np.asarray(drawn.filter(ImageFilter.MaxFilter(2 * reach + 1))) for reach in (2, 4)]
    inside = np.asarray(drawn)
    image.paste(colour, mask=drawn.point(lambda value: value // 4))
    image.paste("white", mask=Image.fromarray(rings[1] - rings[0]))
    image.paste(colour, mask=Image.fromarray(rings[0] - inside))


def _pieces(caption: str, spans: dict[tuple[int, int], str]) -> tuple[tuple[str, str | None], ...]:
    """A caption cut where a noun begins or ends."""
    cuts = sorted({0, len(caption), *(cut for span in spans for cut in span)})
    colours = ((left, right, spans.get((left, right))) for left, right in pairwise(cuts))
    return tuple((caption[left:right], colour) for left, right, colour in colours)


def _score(similarity: float | None) -> str:
    return "" if similarity is None else f"{similarity:.2f}"
