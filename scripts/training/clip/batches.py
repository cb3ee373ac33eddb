"""Batches for training a CLIP on the demo world: crops of single objects, and now and then whole scenes.

A batch follows from the seed and its number alone, so a training that was stopped goes on with the same
batches. No two crops of a batch show the same noun: each is a true negative of the others.

Shapes: B images of a batch, S side in pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from maskmine.scripts.demo_world.crops import (
    Window,
    crop_caption,
    crop_window,
    cut_window,
    may_mirror,
    scene_window,
    share_of,
)
from maskmine.scripts.demo_world.nouns import demo_nouns
from maskmine.scripts.training.scenes import DrawnScene, DrawnScenes

SCENES_EVERY = 4  # batches: one of whole scenes among those of crops, which teaches where captions say things are
_MAX_CROPS_A_SCENE = 3  # in a batch: they share a background, so that it says nothing about the noun


@dataclass(frozen=True, slots=True)
class Sample:
    """What a batch shows of an image, and what it says of it."""

    image: Image.Image
    window: Window
    mirrored: bool
    caption: str


def shows_crops(number: int) -> bool:
    """Whether batch `number` shows crops, not whole scenes."""
    return (number + 1) % SCENES_EVERY != 0


def draw_samples(scenes: DrawnScenes, *, seed: int, number: int, count: int) -> list[Sample]:
    """The samples of batch `number`; their images are not decoded yet."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, number]))
    draw = _crop_samples if shows_crops(number) else _scene_samples
    return draw(scenes, count, rng)


def cut_samples(samples: Sequence[Sample], *, size_px: int, workers: Executor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Their images, uint8 [B, S, S, 3]."""

    def cut(same: Sequence[Sample]) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
        return [cut_window(s.image, s.window, size_px=size_px, mirrored=s.mirrored) for s in same]

    # Samples of one image are neighbours: one worker decodes it, once.
    pieces = [list(same) for _, same in itertools.groupby(samples, key=lambda sample: id(sample.image))]
    return np.stack([pixels_SS3 for piece in workers.map(cut, pieces) for pixels_SS3 in piece])


def _crop_samples(scenes: DrawnScenes, count: int, rng: np.random.Generator) -> list[Sample]:
    """Crops of `count` objects with different nouns, from scenes chosen at random."""
    samples: list[Sample] = []
    taken: set[int] = set()
    while len(samples) < count:
        scene = scenes[int(rng.integers(len(scenes)))]
        image = scene.image()
        order = rng.permutation(len(scene.nouns)).tolist()
        fresh = {scene.nouns[index]: index for index in order if scene.nouns[index] not in taken}
        for noun, index in list(fresh.items())[: min(_MAX_CROPS_A_SCENE, count - len(samples))]:
            taken.add(noun)
            samples.append(_crop_sample(scene, image, index, rng))
    return samples


def _crop_sample(scene: DrawnScene, image: Image.Image, index: int, rng: np.random.Generator) -> Sample:
    noun, box_xyxy = demo_nouns()[scene.nouns[index]], scene.boxes_xyxy[index]
    window = crop_window(box_xyxy, size_hw=(image.height, image.width), rng=rng)
    mirrored = may_mirror(noun) and bool(rng.random() < 0.5)
    caption = crop_caption(noun, setting=scene.setting, share=share_of(window, box_xyxy), rng=rng)
    return Sample(image, window, mirrored, caption)


def _scene_samples(scenes: DrawnScenes, count: int, rng: np.random.Generator) -> list[Sample]:
    """Whole scenes, chosen at random, each with a caption; captions know left from right: none is mirrored."""
    samples = []
    for index in rng.integers(len(scenes), size=count).tolist():
        scene = scenes[index]
        image = scene.image()
        caption = scene.captions[int(rng.integers(len(scene.captions)))]
        window = scene_window((image.height, image.width), rng=rng)
        samples.append(Sample(image, window, False, caption))
    return samples
