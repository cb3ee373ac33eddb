"""Images of the demo report: scenes with their masks and captions, correct and wrong pairs.

They are `data:` URIs, so that the page needs no other file.

Shapes: H, W height and width of an image in pixels; 3 red, green, blue.
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

from maskmine.mining.evaluation.annotations import AnnotatedObject, Annotations
from maskmine.mining.evaluation.pair_matching import CORRECT_IOU, ImageMatches, PairMatch, match_image
from maskmine.mining.images.child_decoder import Decoding
from maskmine.mining.images.crops import grow_box
from maskmine.mining.text.labels import Naming
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.schemas.errors import InputError
from maskmine.schemas.mask import Mask, mask_iou
from maskmine.schemas.rows import ImageRow, RegionsRow, Rejection
from maskmine.scripts.demo_world.captions import with_article

Rgb = np.ndarray[Any, np.dtype[np.uint8]]

# Okabe and Ito's palette, which is distinct with any colour vision, without its black.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#967814")
_MAX_PIXELS = 50_000_000
_SCENE_SCALE, _PAIR_PX = 2, 240
_CROP_GROWTH = 1.25
_VEIL_RGB, _VEIL_SHARE = (123, 117, 104), 0.8  # CLIP's mean colour lies over what is outside the mask
_BROAD_OVERLAP = 0.1
# Shares of an object that a mask shows, in words, and how much of the mask lies on it where it shows nothing else.
_PARTS = ((0.9, "{}"), (0.6, "most of {}"), (0.4, "half of {}"), (0.0, "a part of {}"))
_MOSTLY = 0.8


@dataclass(frozen=True, slots=True)
class MatchedScene:
    """An image of a run whose pairs were matched with its annotated objects."""

    image: ImageRow
    captions: tuple[str, ...]
    regions: RegionsRow
    objects: tuple[AnnotatedObject, ...]
    matches: ImageMatches


@dataclass(frozen=True, slots=True)
class ShownNoun:
    """A pair in the caption of a scene; `colour` is that of its mask's outline."""

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
    """A pair with an image of its mask; `shows` says what the mask is of."""

    picture: str
    noun: str
    similarity: str
    shows: str
    correct: bool


def match_scenes(finished: FinishedRun, *, annotations: Annotations, naming: Naming) -> Iterator[MatchedScene]:
    """The annotated images of a finished run, with those of their pairs that are in the shards."""
    for part in finished.parts:
        for mined in finished.images(part):
            key = annotations.key_of(mined.image)
            if annotations.coverage(key, mined.regions) != "covered":
                continue
            objects = annotations.objects(key)
            matches = match_image(mined.nouns, mined.regions, mined.pairs, objects=objects, naming=naming)
            yield MatchedScene(mined.image, mined.captions.captions, mined.regions, tuple(objects), matches)


def show_scene(scene: MatchedScene) -> ShownScene:
    """A scene with its masks tinted and outlined."""
    picture_HW3 = _read(scene.image)
    height_px, width_px = picture_HW3.shape[:2]
    size = (_SCENE_SCALE * width_px, _SCENE_SCALE * height_px)
    image = Image.fromarray(picture_HW3).resize(size, Image.Resampling.BICUBIC)
    colours = _colours(scene)
    for region, colour in colours.items():
        _outline(image, scene.regions.regions[region].mask, colour)
    pairs = [match.pair for match in scene.matches.pairs]
    captions = tuple(
        _pieces(
            scene.captions[number],
            {(pair.start, pair.end): colours[pair.region] for pair in pairs if pair.caption == number},
        )
        for number in dict.fromkeys(pair.caption for pair in pairs)
    )
    nouns = tuple(
        ShownNoun(match.pair.noun, _score(match.pair.similarity), colours[match.pair.region], match.outcome)
        for match in scene.matches.pairs
    )
    return ShownScene(data_uri(image), captions, nouns)


def show_pairs(scenes: Sequence[MatchedScene], *, correct: bool, max_pairs: int) -> list[ShownPair]:
    """At most `max_pairs` correct or wrong pairs, evenly from the most similar to the least."""
    outcomes = ("correct",) if correct else ("wrong_object", "background", "unlabelled")
    pairs = [(scene, match) for scene in scenes for match in scene.matches.pairs if match.outcome in outcomes]
    pairs.sort(key=lambda item: (-(item[1].pair.similarity or 0.0), item[0].image.image_id, item[1].pair.noun))
    count = min(max_pairs, len(pairs))
    chosen = [pairs[number * (len(pairs) - 1) // max(1, count - 1)] for number in range(count)]
    return [_show_pair(scene, match) for scene, match in chosen]


def data_uri(image: Image.Image) -> str:
    """An image for `src`, as WebP."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=82, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _show_pair(scene: MatchedScene, match: PairMatch) -> ShownPair:
    region = scene.regions.regions[match.pair.region]
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
        match.pair.noun,
        _score(match.pair.similarity),
        mask_shows(region.mask, match, scene.objects),
        match.outcome == "correct",
    )


def mask_shows(mask: Mask, match: PairMatch, objects: Sequence[AnnotatedObject]) -> str:
    """What a mask is of, in a few words."""
    if match.outcome == "correct":
        return f"right, IoU {match.iou:.2f}"
    iou_N = mask_iou([mask], [annotated.mask for annotated in objects])[0]
    if not len(iou_N) or iou_N.max() < _BROAD_OVERLAP:
        return "shows no object"
    nearest = objects[int(iou_N.argmax())]
    one = with_article(nearest.category)
    if iou_N.max() >= CORRECT_IOU:
        return f"shows {one}"
    return f"shows {_part_in_words(mask, nearest.mask).format(one)}"


def _part_in_words(mask: Mask, whole: Mask) -> str:
    """How much of an object a mask shows that is not its own, with `{}` for the object."""
    shared_px = int((mask.to_array() & whole.to_array()).sum())
    share = shared_px / whole.area_px
    part = next((words for least, words in _PARTS if share >= least), _PARTS[-1][1])
    return part if shared_px >= _MOSTLY * mask.area_px else f"{part}, and more"


def _read(image: ImageRow) -> Rgb:
    picture = Decoding().read(image.path, max_pixels=_MAX_PIXELS)
    if isinstance(picture, Rejection):
        raise InputError(f"{image.path}: {picture.reason} ({picture.detail}); the page needs the pictures of the run")
    return picture.rgb_HW3


def _colours(scene: MatchedScene) -> dict[int, str]:
    """A colour for every region that has a pair."""
    regions = dict.fromkeys(match.pair.region for match in scene.matches.pairs)
    return {region: COLOURS[number % len(COLOURS)] for number, region in enumerate(regions)}


def _outline(image: Image.Image, mask: Mask, colour: str) -> None:
    """Tint a mask and draw its outline, with a white edge outside that is visible on any image."""
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
