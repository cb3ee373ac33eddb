"""A binary mask as COCO run lengths, with exact conversions.

Shapes: H, W height and width in pixels; N masks. A box is `(x0, y0, x1, y1)` in pixels, half open.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

Box = tuple[int, int, int, int]

_MOST_CHARACTERS = 7  # of a run length, which has 32 bits and a sign
_NO_FORM = "neither polygons of three or more points nor run lengths"


@dataclass(frozen=True, slots=True)
class Mask:
    """Foreground pixels of an image of `height_px` × `width_px`, as compressed COCO run lengths.

    `counts` is the byte string of pycocotools: column-major runs, background first.
    """

    height_px: int
    width_px: int
    counts: bytes

    @staticmethod
    def from_array(array_HW: np.ndarray[Any, Any]) -> Mask:
        """Encode an array of shape [H, W]; every value other than 0 is foreground."""
        if array_HW.ndim != 2:
            raise ValueError(f"a mask has two dimensions, not shape {array_HW.shape}")
        encoded = coco_mask.encode(np.asfortranarray(array_HW != 0, dtype=np.uint8))
        height_px, width_px = encoded["size"]
        return Mask(int(height_px), int(width_px), encoded["counts"])

    @staticmethod
    def from_arrays(arrays_NHW: np.ndarray[Any, Any]) -> list[Mask]:
        """Encode N masks of one size at once; the input has shape [N, H, W], boolean or 0/1."""
        if arrays_NHW.ndim != 3:
            raise ValueError(f"masks have three dimensions, not shape {arrays_NHW.shape}")
        if len(arrays_NHW) == 0:
            return []
        columns_HWN = np.asfortranarray(arrays_NHW.astype(np.uint8, copy=False).transpose(1, 2, 0))
        return [Mask(int(m["size"][0]), int(m["size"][1]), m["counts"]) for m in coco_mask.encode(columns_HWN)]

    @staticmethod
    def from_changes(
        changes: np.ndarray[Any, np.dtype[np.int64]],
        begins_N: np.ndarray[Any, np.dtype[np.bool_]],
        *,
        height_px: int,
        width_px: int,
    ) -> list[Mask]:
        """N masks from the places where their pixels change; equal to `from_arrays` of the pixels, of which each has
        one at least.

        The pixels of all masks are numbered on, down the columns and mask after mask: `changes` has, ascending, the
        numbers of those that differ from the one before in their mask. `begins_N` says whether a mask's first pixel is
        foreground. A few operations on arrays write all masks down at once.
        """
        pixels, masks = height_px * width_px, len(begins_N)
        starts_N = pixels * np.arange(masks)
        # The ends of all runs, mask by mask: of no background before a first pixel that is foreground, each change, and
        # the mask's own.
        runs_N = np.bincount(changes // pixels, minlength=masks) + 1 + begins_N
        first_N = np.cumsum(runs_N) - runs_N
        ends = np.zeros(int(runs_N.sum()), np.int64)
        is_change = np.ones(len(ends), bool)
        for places, values in ((first_N[begins_N], starts_N[begins_N]), (first_N + runs_N - 1, starts_N + pixels)):
            ends[places], is_change[places] = values, False
        ends[is_change] = changes
        runs = np.diff(ends, prepend=0)
        return [Mask(height_px, width_px, counts) for counts in _compressed(runs, first_N)]

    @staticmethod
    def from_coco(segmentation: Any, *, height_px: int, width_px: int) -> Mask:
        """Read a COCO `segmentation`: polygons, uncompressed or compressed run lengths, or a list of run lengths.

        Polygons are lists of `x, y, x, y …`; one of them may stand alone, as supervision writes it, and points may be
        pairs. Raises ValueError when it is none of these or does not fit the image. pycocotools believes what it is
        given: it takes all memory for a point at infinity, and shows whatever lies in memory behind run lengths that
        end too early. So both are checked first.
        """
        if isinstance(segmentation, dict):
            return _from_runs(segmentation, height_px=height_px, width_px=width_px)
        if not isinstance(segmentation, list) or not segmentation:
            raise ValueError(_NO_FORM)
        if all(isinstance(one, dict) for one in segmentation):
            parts = [_from_runs(one, height_px=height_px, width_px=width_px).to_coco() for one in segmentation]
            return Mask(height_px, width_px, coco_mask.merge(parts)["counts"])
        polygons = _polygons(segmentation)
        farthest_px = 2 * max(height_px, width_px)
        if not all(abs(value) <= farthest_px for points in polygons for value in points):
            raise ValueError("a polygon has a point far outside the image, or one that is no number")
        polygons = [points for points in polygons if len(points) >= 6]
        if not polygons:
            raise ValueError(_NO_FORM)
        merged = coco_mask.merge(coco_mask.frPyObjects(polygons, height_px, width_px))
        return Mask(height_px, width_px, merged["counts"])

    def to_coco(self) -> Any:
        """The dictionary that pycocotools takes; `counts` are bytes."""
        return {"size": [self.height_px, self.width_px], "counts": self.counts}

    def as_json(self) -> dict[str, Any]:
        """As `segmentation` of a JSON file of COCO has it, with counts as text."""
        return {"size": [self.height_px, self.width_px], "counts": self.counts.decode("ascii")}

    def to_array(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The mask as uint8 array of shape [H, W] with values 0 and 1."""
        array_HW: np.ndarray[Any, np.dtype[np.uint8]] = coco_mask.decode(self.to_coco())
        return array_HW

    @property
    def digest(self) -> str:
        """16 hex digits by which the mask is known: of the SHA-256 of its size and run lengths."""
        size = f"{self.height_px} {self.width_px} ".encode()
        return hashlib.sha256(size + self.counts).hexdigest()[:16]

    @property
    def area_px(self) -> int:
        """Number of foreground pixels."""
        return int(coco_mask.area(self.to_coco()))

    @property
    def box_xyxy(self) -> Box:
        """The tight box in pixels, half open; `(0, 0, 0, 0)` for an empty mask."""
        x, y, width, height = (int(v) for v in coco_mask.toBbox(self.to_coco()))
        return (x, y, x + width, y + height)


def mask_iou(left: Sequence[Mask], right: Sequence[Mask]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Intersection over union of every pair, shape [len(left), len(right)]; two empty masks have 0."""
    if not left or not right:
        return np.zeros((len(left), len(right)))
    iou_LR = coco_mask.iou([m.to_coco() for m in left], [m.to_coco() for m in right], [0] * len(right))
    return np.nan_to_num(np.asarray(iou_LR, dtype=np.float64))


def _from_runs(segmentation: dict[str, Any], *, height_px: int, width_px: int) -> Mask:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    sides = [_number(side) for side in size] if isinstance(size, list) else []
    if sides != [height_px, width_px]:
        raise ValueError(f"mask size {size} is not that of the image {[height_px, width_px]}")
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    if isinstance(counts, list):
        runs = [int(run) if run == run // 1 else -1 for run in map(_number, counts)]
    else:
        runs = _read_compressed(counts) if isinstance(counts, str) else [-1]
    if not all(run >= 0 for run in runs) or sum(runs) != height_px * width_px:
        raise ValueError("the run lengths do not cover the image")
    if isinstance(counts, list):
        plain = {"size": [height_px, width_px], "counts": runs}
        return Mask(height_px, width_px, coco_mask.frPyObjects(plain, height_px, width_px)["counts"])
    return Mask(height_px, width_px, str(counts).encode("ascii"))


def _polygons(segmentation: list[Any]) -> list[list[float]]:
    """The polygons of a list, each as `x, y, x, y …`; NaN for what is no number. Raises ValueError for other forms."""
    if not any(isinstance(one, list) for one in segmentation):
        return [[_number(value) for value in segmentation]]
    if not all(isinstance(one, list) for one in segmentation):
        raise ValueError(_NO_FORM)
    if all(len(one) == 2 and not any(isinstance(value, list) for value in one) for one in segmentation):
        segmentation = [segmentation]  # the points of one polygon
    return [
        [_number(value) for point in points for value in (point if isinstance(point, list) else [point])]
        for points in segmentation
    ]


def _read_compressed(counts: str) -> list[int]:
    """The run lengths in their compressed form; a negative one where it is broken.

    A character has six bits, from 48 on: five of a number, lowest first, and one that says that more follow; from the
    fourth run on the difference to the last but one is stored (pycocotools, `rleToString`).
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return [-1]
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return [-1] if shift else runs


def _compressed(runs: np.ndarray[Any, np.dtype[np.int64]], first_N: np.ndarray[Any, np.dtype[np.int64]]) -> list[bytes]:
    """The compressed form of the runs of N masks, those of each from its first one on; see `_read_compressed`."""
    rest = runs.copy()
    within = np.arange(len(runs)) - np.repeat(first_N, np.diff(first_N, append=len(runs)))
    rest[within > 2] -= runs[np.flatnonzero(within > 2) - 2]
    characters = np.zeros((len(runs), _MOST_CHARACTERS), np.uint8)
    left = np.arange(len(runs))  # the runs of which something is left to write
    for column in characters.T:
        low = rest[left] & 31
        rest[left] >>= 5
        follows = rest[left] != np.where(low & 16, -1, 0)
        column[left] = 48 + low + 32 * follows
        left = left[follows]
    ends = np.append(0, np.cumsum((characters != 0).sum(axis=1)))[np.append(first_N, len(runs))]
    text = characters[characters != 0].tobytes()
    return [text[start:end] for start, end in pairwise(ends)]


def _number(value: Any) -> float:
    """A finite number, also as text; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan
