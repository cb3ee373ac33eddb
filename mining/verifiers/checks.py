"""What a verifier says of a pair, and what all verifiers do alike: each noun once a picture, each text once a run.

Shapes: M instances that the model finds for a noun; H, W the picture's height and width in pixels.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

import numpy as np

from maskmine.schemas.errors import InputError
from maskmine.schemas.mask import Mask, mask_iou

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Text = TypeVar("Text")
"""What a model makes of a noun, whatever the picture."""
Item = TypeVar("Item")
FloatBox = tuple[float, float, float, float]
"""xyxy in pixels of the picture, as a detector gives it: not of whole pixels."""

_KEPT_TEXTS = 4096  # of SAM 3, whose are the largest, 32 KB each
_CHUNK_VALUES = 1 << 22  # 16 MiB of float32


@dataclass(frozen=True, slots=True)
class Check:
    """What a verifier says of a pair.

    `presence`, 0–1: whether the noun is in the picture at all. `agreement`, 0–1: the best IoU of the pair's region with
    an instance that the verifier finds for the noun; 0 where it finds none. Both are None where the verifier cannot
    read the noun, and `reason` says why.
    """

    presence: float | None
    agreement: float | None
    reason: Literal["text_too_long"] | None = None


class Verify(Protocol):
    """What the `open()` of a verifier returns."""

    def __call__(
        self, rgb_3HW: Tensor, *, nouns: Sequence[str], regions: Sequence[Mask], chosen: Sequence[int]
    ) -> list[Check]:
        """The checks of a picture's pairs, in order: noun i is paired with the region of number `chosen[i]`.

        The picture is upright, uint8, on any device; `regions` are all regions of it, each with a pixel. Without pairs
        no model runs. A check depends on the picture, its noun and its region alone (of `clip`: on all the regions),
        so neighbours change it by no more than rounding; on a CPU by nothing. Raises ValueError for regions of another
        size, and InputError when the model's answers are not finite.
        """
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """What a model finds for a noun: how sure it is of the best instance, and the instances above its threshold.

    These are either masks, in the size of the picture, or boxes, which lie within it.
    """

    presence: float
    masks: tuple[Mask, ...] | None = None
    boxes: tuple[FloatBox, ...] = ()

    def agreement(self, region: Mask) -> float:
        """The best IoU of the region with an instance, by masks or by boxes; 0 without any."""
        if self.masks is not None:
            return float(mask_iou(self.masks, [region]).max(initial=0))
        return max((box_iou(box, region.box_xyxy) for box in self.boxes), default=0.0)


Read = Callable[[Sequence[str]], Sequence[Text | None]]
"""Nouns to what the model makes of them; None for one that it cannot read whole."""
Find = Callable[["Tensor", Sequence[Text], Sequence[Mask]], Iterator[Found]]
"""A picture, different nouns and the picture's regions to what is found for each noun, in order."""


def verify_pairs(read: Read[Text], find: Find[Text]) -> Verify:
    """A verifier that asks for each noun of a picture once, and for no picture whose nouns it cannot read."""

    def verify(rgb_3HW: Tensor, *, nouns: Sequence[str], regions: Sequence[Mask], chosen: Sequence[int]) -> list[Check]:
        _refuse_other_sizes(regions, size_px=(rgb_3HW.shape[1], rgb_3HW.shape[2]))
        different = list(dict.fromkeys(nouns))
        texts = dict(zip(different, read(different), strict=True)) if different else {}
        readable = {noun: text for noun, text in texts.items() if text is not None}
        answers = find(rgb_3HW, list(readable.values()), regions) if readable else iter(())
        checks = [Check(None, None, "text_too_long")] * len(nouns)
        for noun, answer in zip(readable, answers, strict=True):  # what is found for one noun is in memory at a time
            found = _checked(answer)
            for pair, (other, number) in enumerate(zip(nouns, chosen, strict=True)):
                if other == noun:
                    checks[pair] = Check(found.presence, found.agreement(regions[number]))
        return checks

    return verify


class TextCache(Generic[Text]):
    """Remembers what a model makes of the last few thousand nouns, so that it reads each once for all pictures."""

    def __init__(self, read: Read[Text]) -> None:
        self._read = read
        self._known: OrderedDict[str, Text | None] = OrderedDict()

    def __call__(self, nouns: Sequence[str]) -> list[Text | None]:
        """As `Read`."""
        new = [noun for noun in nouns if noun not in self._known]
        self._known.update(zip(new, self._read(new) if new else (), strict=True))
        for noun in nouns:
            self._known.move_to_end(noun)
        texts = [self._known[noun] for noun in nouns]
        while len(self._known) > _KEPT_TEXTS:
            self._known.popitem(last=False)
        return texts


def fixed_batches(items: Sequence[Item], *, batch_size: int, device: torch.device) -> Iterator[tuple[list[Item], int]]:
    """Items in batches of one size, with the number of those in it that are no repetition of the last one.

    As in `embed_in_batches` every batch has the same shape, so that an answer does not depend on the neighbours. A CPU
    gains nothing from batches: there they have one item.
    """
    size = 1 if device.type == "cpu" else batch_size
    for start in range(0, len(items), size):
        batch = list(items[start : start + size])
        yield batch + batch[-1:] * (size - len(batch)), len(batch)


def masks_from(soft_Mhw: Tensor, *, threshold: float, size_px: tuple[int, int]) -> tuple[Mask, ...]:
    """Masks in the picture's size of probabilities on a model's grid: bilinear, then above the threshold.

    A few at a time are floats, so memory does not grow with the instances.
    """
    from torch.nn.functional import interpolate

    masks: list[Mask] = []
    step = max(1, _CHUNK_VALUES // (size_px[0] * size_px[1]))
    for start in range(0, len(soft_Mhw), step):
        part_1mhw = soft_Mhw[None, start : start + step].float()
        soft_mHW = interpolate(part_1mhw, size=size_px, mode="bilinear", align_corners=False)[0]
        masks += Mask.from_arrays((soft_mHW > threshold).cpu().numpy())
    return tuple(masks)


def boxes_from(boxes_M4: Tensor, *, size_px: tuple[int, int]) -> tuple[FloatBox, ...]:
    """Boxes of centre and size in pixels as corners within the picture; one outside of it has no area."""
    from torchvision.ops import box_convert, clip_boxes_to_image  # type: ignore[import-untyped, unused-ignore]

    corners_M4 = clip_boxes_to_image(box_convert(boxes_M4.float(), "cxcywh", "xyxy"), size_px)
    return tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in corners_M4.tolist())


def box_iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes xyxy; two without area have 0."""
    width_px, height_px = (max(0.0, min(one[i + 2], other[i + 2]) - max(one[i], other[i])) for i in (0, 1))
    shared_px = width_px * height_px
    union_px = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - shared_px
    return shared_px / union_px if union_px > 0 else 0.0


def _checked(found: Found) -> Found:
    if not math.isfinite(found.presence) or not np.isfinite(np.asarray(found.boxes, dtype=np.float64)).all():
        raise InputError("verifier.precision: the model's answers are not finite; use bfloat16 or float32")
    return found


def _refuse_other_sizes(regions: Sequence[Mask], *, size_px: tuple[int, int]) -> None:
    others = {(mask.height_px, mask.width_px) for mask in regions} - {size_px}
    if others:
        raise ValueError(f"regions of {sorted(others)} pixels for a picture of {size_px}")
