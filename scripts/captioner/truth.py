"""What a stand-in says of the scenes of a demo world: what is there and their captions leave out."""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from maskmine.mining.captioners.endpoint import JPEG_QUALITY
from maskmine.mining.evaluation.annotations import read_annotations
from maskmine.mining.images.decode import DecodedImage, decode_image
from maskmine.mining.images.encode import encode_reduced
from maskmine.schemas.errors import InputError
from maskmine.scripts.captioner.server import Asked, picture_key
from maskmine.scripts.demo_world.captions import with_article
from maskmine.scripts.demo_world.draw import image_name
from maskmine.scripts.demo_world.nouns import DemoNoun, demo_nouns
from maskmine.scripts.demo_world.on_disk import truth_of

_MOST_PIXELS = 100_000_000


def picture_ids(world: Path, *, max_side_px: int = 1024) -> dict[str, str]:
    """The image id of every picture of a world, by what a server knows it by. Raises InputError for a broken one."""
    found = {}
    for image_id in read_annotations(truth_of(world)).sizes:
        path = world / "images" / image_name(int(image_id) - 1)
        picture = decode_image(path.read_bytes(), max_pixels=_MOST_PIXELS)
        if not isinstance(picture, DecodedImage):
            raise InputError(f"{path}: {picture.reason}; delete the world and run this again")
        found[picture_key(encode_reduced(picture.rgb_HW3, max_side_px=max_side_px, quality=JPEG_QUALITY))] = image_id
    return found


def says_what_is_left_out(world: Path, *, invents: float = 0.0) -> Callable[[Asked], str]:
    """The function of a server that names the objects which the first caption of a scene does not name.

    With `invents`, such a share of the answers (0–1) names one thing more, which is not there.
    """
    ids = picture_ids(world)
    sentences = dict(_sentences(world, invents=invents))
    return lambda asked: sentences[ids[picture_key(asked.jpeg)]]


def _sentences(world: Path, *, invents: float) -> Iterator[tuple[str, str]]:
    nouns: Mapping[str, DemoNoun] = {noun.noun: noun for noun in demo_nouns()}
    truth, captions = read_annotations(truth_of(world)), _first_captions(world)
    for image_id in truth.sizes:
        there = list(dict.fromkeys(one.category for one in truth.objects(image_id)))
        left_out = [name for name in there if not _is_named(nouns[name], captions.get(image_id, ""))]
        chance = random.Random(f"invents {image_id}")
        if chance.random() < invents:
            left_out.append(chance.choice(sorted(nouns.keys() - set(there))))
        phrases = [_phrase(nouns[name]) for name in left_out]
        yield image_id, f"There is also {' and '.join(phrases)}." if phrases else "There is nothing else."


def _first_captions(world: Path) -> dict[str, str]:
    listed = json.loads((world / "captions.json").read_text(encoding="utf-8"))["annotations"]
    by_id = sorted(listed, key=lambda one: one["id"], reverse=True)
    return {str(one["image_id"]): one["caption"] for one in by_id}  # the smallest id is set last


@functools.cache
def _pattern(noun: DemoNoun) -> re.Pattern[str]:
    return re.compile(rf"\b({re.escape(noun.noun)}|{re.escape(noun.plural)})\b", re.IGNORECASE)


def _is_named(noun: DemoNoun, caption: str) -> bool:
    return _pattern(noun).search(caption) is not None


def _phrase(noun: DemoNoun) -> str:
    return with_article(noun.noun) if noun.number == "count" else f"some {noun.noun}"
