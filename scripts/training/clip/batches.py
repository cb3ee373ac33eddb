"""Batches for training a CLIP on the demo world: crops of single objects, and now and then whole scenes.

A batch follows from the seed and its number alone, so a training that was cut off goes on with the batches that it
would have seen. No two crops of a batch show the same noun: each is a true negative of the others.

Shapes: B pictures of a batch, S side in pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from scripts.demo_crops import Window, crop_caption, crop_window, cut_window, may_mirror, scene_window, share_of
from scripts.demo_nouns import demo_nouns
from scripts.train_clip_scenes import CachedScene, CachedScenes

SCENES_EVERY = 4
"""One batch in so many is of whole scenes."""

_MOST_OF_ONE_SCENE = 3  # crops that one scene gives to a batch; among them the place tells nothing


@dataclass(frozen=True, slots=True)
class Sample:
    """What a batch shows of a picture, and what it says of it."""

    picture: Image.Image
    window: Window
    mirrored: bool
    caption: str


def shows_crops(number: int) -> bool:
    """Whether batch `number` is one of crops."""
    return (number + 1) % SCENES_EVERY != 0


def draw_samples(scenes: CachedScenes, *, seed: int, number: int, count: int) -> list[Sample]:
    """The samples of batch `number`; their pictures are not decoded yet."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, number]))
    draw = _crop_samples if shows_crops(number) else _scene_samples
    return draw(scenes, count, rng)


def cut_samples(samples: Sequence[Sample], *, size_px: int, workers: Executor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Their pictures, uint8 [B, S, S, 3]."""

    def cut(same: Sequence[Sample]) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
        return [cut_window(s.picture, s.window, size_px=size_px, mirrored=s.mirrored) for s in same]

    # Samples of one picture are neighbours: one worker decodes it, once.
    pieces = [list(same) for _, same in itertools.groupby(samples, key=lambda sample: id(sample.picture))]
    return np.stack([pixels_SS3 for piece in workers.map(cut, pieces) for pixels_SS3 in piece])


def _crop_samples(scenes: CachedScenes, count: int, rng: np.random.Generator) -> list[Sample]:
    """Crops of `count` objects with different nouns, from scenes chosen at random."""
    samples: list[Sample] = []
    taken: set[int] = set()
    while len(samples) < count:
        scene = scenes[int(rng.integers(len(scenes)))]
        picture = scene.picture()
        order = rng.permutation(len(scene.nouns)).tolist()
        fresh = {scene.nouns[place]: place for place in order if scene.nouns[place] not in taken}
        for noun, place in list(fresh.items())[: min(_MOST_OF_ONE_SCENE, count - len(samples))]:
            taken.add(noun)
            samples.append(_crop_sample(scene, picture, place, rng))
    return samples


def _crop_sample(scene: CachedScene, picture: Image.Image, place: int, rng: np.random.Generator) -> Sample:
    noun, box_xyxy = demo_nouns()[scene.nouns[place]], scene.boxes_xyxy[place]
    window = crop_window(box_xyxy, size_hw=(picture.height, picture.width), rng=rng)
    mirrored = may_mirror(noun) and bool(rng.random() < 0.5)
    caption = crop_caption(noun, setting=scene.setting, share=share_of(window, box_xyxy), rng=rng)
    return Sample(picture, window, mirrored, caption)


def _scene_samples(scenes: CachedScenes, count: int, rng: np.random.Generator) -> list[Sample]:
    """Whole scenes, chosen at random, each with a caption; captions know left from right: none is mirrored."""
    samples = []
    for index in rng.integers(len(scenes), size=count).tolist():
        scene = scenes[index]
        picture = scene.picture()
        caption = scene.captions[int(rng.integers(len(scene.captions)))]
        window = scene_window((picture.height, picture.width), rng=rng)
        samples.append(Sample(picture, window, False, caption))
    return samples
