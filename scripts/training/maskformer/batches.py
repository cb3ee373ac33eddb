"""Batches for training the tiny MaskFormer: scenes of one size, and for every query which object is its own.

A query's object is the one that lies at its reference point. Of an object's queries, the one nearest to its middle
learns that there is an object; the others learn its mask as well, so every image teaches many masks.

A batch follows from the seed and its number alone, so a training that was stopped goes on with the same batches.

Shapes: B images of a batch, Q queries of an image, N objects of a batch, P pairs of query and object; H × W the
input's pixels, h × w the grid of the masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from maskmine.scripts.training.maskformer.model import input_size, mask_size
from maskmine.scripts.training.scenes import DrawnScene, DrawnScenes

Floats = np.ndarray[Any, np.dtype[np.float32]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

QUERIES_AN_OBJECT = 6  # learn its mask in a batch, at most: those nearest to its middle


@dataclass(frozen=True, slots=True)
class Batch:
    """Images, uint8 [B, H, W, 3]; the share of each cell that an object covers, [N, h, w]; the objects' middles as
    shares of height and width, [N, 2]; each object's image, [N], and the query that is to say that it is there, [N];
    pairs of a query and the object at its point, [P]. Queries are counted through the batch, from 0 to B × Q − 1.
    """

    pixels_BHW3: np.ndarray[Any, np.dtype[np.uint8]]
    cover_Nhw: Floats
    middle_N2: Floats
    image_N: Ints
    speaker_N: Ints
    query_P: Ints
    object_P: Ints


@dataclass(frozen=True, slots=True)
class Sample:
    """A scene as a batch shows it."""

    scene: DrawnScene
    mirrored: bool


@dataclass(frozen=True, slots=True)
class _Shown:
    pixels_HW3: np.ndarray[Any, np.dtype[np.uint8]]
    cover_Nhw: Floats
    middle_N2: Floats
    speaker_N: Ints
    query_P: Ints
    object_P: Ints


def draw_samples(scenes: DrawnScenes, *, seed: int, number: int, count: int) -> tuple[tuple[int, int], list[Sample]]:
    """The size of the images of batch `number`, and its samples, which are not decoded yet."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, number]))
    by_size = scenes.by_size
    shares = np.array([len(indices) for indices in by_size.values()]) / len(scenes)
    size_hw = list(by_size)[int(rng.choice(len(by_size), p=shares))]
    chosen = rng.choice(by_size[size_hw], count).tolist()
    return size_hw, [Sample(scenes[index], bool(rng.random() < 0.5)) for index in chosen]


def make_batch(
    samples: Sequence[Sample], *, size_hw: tuple[int, int], short_side_px: int, points_Q2: Floats, workers: Executor
) -> Batch:
    """Decode the samples, whose images are all of one size, and give their objects to the queries."""
    input_hw = input_size(size_hw, short_side_px=short_side_px)
    shown = list(workers.map(lambda sample: _show(sample, input_hw, points_Q2), samples))
    counts = [len(one.cover_Nhw) for one in shown]
    firsts = np.cumsum([0, *counts[:-1]])
    queries = [number * len(points_Q2) for number in range(len(shown))]
    return Batch(
        pixels_BHW3=np.stack([one.pixels_HW3 for one in shown]),
        cover_Nhw=np.concatenate([one.cover_Nhw for one in shown]),
        middle_N2=np.concatenate([one.middle_N2 for one in shown]),
        image_N=np.repeat(np.arange(len(shown)), counts),
        speaker_N=np.concatenate([one.speaker_N + first for one, first in zip(shown, queries, strict=True)]),
        query_P=np.concatenate([one.query_P + first for one, first in zip(shown, queries, strict=True)]),
        object_P=np.concatenate([one.object_P + first for one, first in zip(shown, firsts, strict=True)]),
    )


def owners(objects_HW: np.ndarray[Any, Any], middle_N2: Floats, points_Q2: Floats) -> tuple[Ints, Ints]:
    """The object of each query, −1 for none, [Q], and the query that speaks for each object, [N].

    An object that lies at no query's point gets the nearest one that has none. Where there are as many objects as
    queries, the last may get none: then it shares.
    """
    size_2 = np.array(objects_HW.shape)
    rows_Q, columns_Q = (points_Q2 * size_2).astype(np.int64).T
    owner_Q = objects_HW[rows_Q, columns_Q].astype(np.int64) - 1
    speaker_N = np.zeros(len(middle_N2), np.int64)
    for number, middle_2 in enumerate(middle_N2):
        far_Q = (((points_Q2 - middle_2) * size_2) ** 2).sum(1)
        for open_Q in (owner_Q == number, owner_Q < 0):
            if open_Q.any():
                break
        speaker_N[number] = int(np.where(open_Q, far_Q, np.inf).argmin())
        owner_Q[speaker_N[number]] = number
    return owner_Q, speaker_N


def _show(sample: Sample, input_hw: tuple[int, int], points_Q2: Floats) -> _Shown:
    image = sample.scene.image().resize(input_hw[::-1], Image.Resampling.BILINEAR)
    objects = sample.scene.objects().resize(input_hw[::-1], Image.Resampling.NEAREST)
    pixels_HW3, objects_HW = np.asarray(image), np.asarray(objects)
    if sample.mirrored:
        pixels_HW3, objects_HW = pixels_HW3[:, ::-1], objects_HW[:, ::-1]
    objects_HW = np.unique(np.append(objects_HW, 0), return_inverse=True)[1][:-1].reshape(input_hw)  # one may be lost
    cover_Nhw = _cover(objects_HW, mask_size(input_hw))
    middle_N2 = _middles(cover_Nhw)
    owner_Q, speaker_N = owners(objects_HW, middle_N2, points_Q2)
    query_P = np.concatenate([_nearest(owner_Q, n, middle_2, points_Q2) for n, middle_2 in enumerate(middle_N2)])
    return _Shown(pixels_HW3, cover_Nhw, middle_N2, speaker_N, query_P, owner_Q[query_P])


def _cover(objects_HW: np.ndarray[Any, Any], grid_hw: tuple[int, int]) -> Floats:
    """The share of each cell that each object covers, [N, h, w]."""
    high_px, wide_px = objects_HW.shape[0] // grid_hw[0], objects_HW.shape[1] // grid_hw[1]
    cells_hpwp = objects_HW.reshape(grid_hw[0], high_px, grid_hw[1], wide_px)
    numbers = range(1, int(objects_HW.max()) + 1)
    counts = [(cells_hpwp == number).sum((1, 3), dtype=np.float32) for number in numbers]
    cover_Nhw: Floats = (np.stack(counts) / (high_px * wide_px)).astype(np.float32)
    return cover_Nhw


def _middles(cover_Nhw: Floats) -> Floats:
    """The objects' middles as shares of height and width, [N, 2]."""
    high, wide = cover_Nhw.shape[1:]
    area_N = cover_Nhw.sum((1, 2))
    down_N = cover_Nhw.sum(2) @ ((np.arange(high, dtype=np.float32) + 0.5) / high) / area_N
    across_N = cover_Nhw.sum(1) @ ((np.arange(wide, dtype=np.float32) + 0.5) / wide) / area_N
    return np.stack([down_N, across_N], 1)


def _nearest(owner_Q: Ints, number: int, middle_2: Floats, points_Q2: Floats) -> Ints:
    """The queries of an object, if there are too many those nearest to its middle."""
    own = np.flatnonzero(owner_Q == number)
    far = ((points_Q2[own] - middle_2) ** 2).sum(1)
    return own[np.argsort(far, kind="stable")[:QUERIES_AN_OBJECT]]
