"""Masks that people drew, in place of a model's: COCO instances or COCO panoptic segmentation as proposals.

Shapes: N masks of an image; H, W height and width of the picture in pixels. A size is `(height_px, width_px)`.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mining.coco import FaultLines, coco_id, coco_items, coco_size_px, open_coco, pack, unpack
from mining.devices import open_device
from mining.images import read_image
from mining.proposals import LoadedImage, Proposals, Proposer
from schemas.errors import InputError
from schemas.mask import Mask
from schemas.models import ModelRecord
from schemas.rows import Rejection
from schemas.settings import Settings

if TYPE_CHECKING:
    import torch

MaskArray = np.ndarray[Any, np.dtype[np.bool_]]

_LINES = FaultLines(
    absent="proposals.annotations: there is no file `{path}`; check the path",
    folder="proposals.annotations: `{path}` is a folder; give the JSON file in it",
    broken="proposals.annotations: `{path}` is not valid JSON ({reason}); get the file again",
    lacking="proposals.annotations: `{path}`: no list `{name}` at the top, or an empty one; "
    "give a COCO instances or panoptic JSON",
)


class GroundTruth(Settings):
    """Annotations in COCO's form as proposals: score 1, the label is the category's name.

    `annotations`: an instances JSON, or a panoptic one together with `segments`, the folder of its PNG files.
    `crowds`: whether masks of whole groups (`iscrowd`) count. `licence`: that of the annotations.
    """

    kind: Literal["ground_truth"]
    annotations: str
    segments: str | None = None
    crowds: bool = False
    licence: str | None = None

    def open(self, *, device: str) -> Proposer:
        """Read the annotations; returns a function from images to their proposals.

        An image has the rejection `no_masks` when the annotations do not name it, name no mask for it, have it in
        another size, or none of its masks can be read; otherwise masks that cannot be read are left out.
        Raises InputError when the file is absent or not of COCO's form.
        """
        target = open_device(device)
        index = _read_index(self)

        def propose(images: Sequence[LoadedImage], *, min_score: float) -> Iterator[Proposals | Rejection]:
            for image in images:
                height_px, width_px = image.rgb_3HW.shape[1:]
                fault = _misfit(index.sizes.get(image.image_id), (height_px, width_px), orientation=image.orientation)
                drawn = fault or _masks_of(image.image_id, index=index, segments=self.segments)
                yield drawn if isinstance(drawn, Rejection) else _as_proposals(drawn, device=target)

        return propose

    def record(self) -> ModelRecord:
        """The file and its licence; `sha256` is that of the JSON. Raises InputError when there is no such file."""
        with open_coco(self.annotations, lines=_LINES) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        name = posixpath.basename(self.annotations)
        return ModelRecord(role="proposals", name=name, sha256=sha256, licence=self.licence or "unknown")


@dataclass(frozen=True, slots=True)
class _Index:
    """Sizes and masks by image id, category names by id.

    A mask waits packed, as `[category, segmentation]`, for panoptic annotations `[file, [[segment, category], …]]`.
    """

    sizes: dict[str, tuple[int, int]]
    packed: dict[str, list[bytes]]
    names: dict[int | str, str]


def _read_index(settings: GroundTruth) -> _Index:
    path = settings.annotations
    categories = ((coco_id(item, "id"), item.get("name")) for item in _items(path, "categories", need="nothing"))
    names = {number: str(name) for number, name in categories if number is not None and name is not None}
    return _Index(_read_sizes(path), _read_masks(settings), names)


def _read_sizes(path: str) -> dict[str, tuple[int, int]]:
    sizes = {}
    for number, image in enumerate(_items(path, "images", need="items")):
        image_id, size_px = _image_id(image, "id"), coco_size_px(image)
        if image_id is None or size_px is None:
            raise InputError(_malformed(path, f"entry {number} of `images` has no usable `id`, `height` and `width`"))
        sizes[image_id] = size_px
    return sizes


def _read_masks(settings: GroundTruth) -> dict[str, list[bytes]]:
    path, panoptic = settings.annotations, settings.segments is not None
    packed: dict[str, list[bytes]] = {}
    for number, annotation in enumerate(_items(path, "annotations", need="items")):
        image_id = _image_id(annotation, "image_id")
        if image_id is None:
            raise InputError(_malformed(path, f"entry {number} of `annotations` has no `image_id`"))
        if panoptic != ("segments_info" in annotation):
            remedy = "is not panoptic; leave `segments` out"
            if not panoptic:
                remedy = "is panoptic; give `segments`, the folder of its PNG files"
            raise InputError(f"proposals.segments: `{path}` {remedy}")
        value = _panoptic_entry(annotation, settings) if panoptic else _instance_entry(annotation, settings)
        if value is not None:
            packed.setdefault(image_id, []).append(pack(value))
    return packed


def _instance_entry(annotation: dict[str, Any], settings: GroundTruth) -> Any:
    if annotation.get("iscrowd") and not settings.crowds:
        return None
    return [coco_id(annotation, "category_id"), annotation.get("segmentation")]


def _panoptic_entry(annotation: dict[str, Any], settings: GroundTruth) -> Any:
    listed = annotation["segments_info"]
    segments = [
        [coco_id(segment, "id"), coco_id(segment, "category_id")]
        for segment in (listed if isinstance(listed, list) else ())
        if isinstance(segment, dict) and (settings.crowds or not segment.get("iscrowd"))
    ]
    return [annotation.get("file_name"), segments] if segments else None


def _misfit(annotated_px: tuple[int, int] | None, picture_px: tuple[int, int], *, orientation: int) -> Rejection | None:
    """Why masks of one size do not fit the upright picture, None when they do."""
    if annotated_px is None:
        return Rejection("no_masks", "the annotations do not name this image")
    if annotated_px != picture_px:
        sizes = [f"{height_px} × {width_px}" for height_px, width_px in (annotated_px, picture_px)]
        return Rejection("no_masks", f"masks for {sizes[0]} pixels (H × W), and the upright picture has {sizes[1]}")
    # A turn by 90° shows in the sizes, except those of a square; other turns and flips never do.
    if orientation != 1 and (orientation < 5 or picture_px[0] == picture_px[1]):
        return Rejection("no_masks", "EXIF turns the picture, and the annotations do not say if they are turned too")
    return None


def _masks_of(
    image_id: str, *, index: _Index, segments: str | None
) -> tuple[list[MaskArray], list[str | None]] | Rejection:
    """The masks of an image and their names."""
    entries = [unpack(packed) for packed in index.packed.get(image_id, ())]
    if not entries:
        return Rejection("no_masks", "the annotations have no mask of this image")
    size_px = index.sizes[image_id]
    if segments is None:
        found = [(category, _draw(segmentation, size_px=size_px)) for category, segmentation in entries]
    else:
        picture = _segment_ids(posixpath.join(segments, str(entries[0][0])), size_px=size_px)
        if isinstance(picture, Rejection):
            return picture
        found = [(category, np.equal(picture, segment)) for segment, category in entries[0][1] if type(segment) is int]
    drawn = [(category, mask_HW) for category, mask_HW in found if mask_HW is not None and mask_HW.any()]
    if not drawn:
        return Rejection("no_masks", f"{len(found)} masks are annotated, and none has a pixel that can be read")
    return [mask_HW for _, mask_HW in drawn], [index.names.get(category) for category, _ in drawn]


def _as_proposals(drawn: tuple[list[MaskArray], list[str | None]], *, device: torch.device) -> Proposals:
    import torch

    masks, labels = drawn
    return Proposals(torch.from_numpy(np.stack(masks)).to(device), torch.ones(len(masks), device=device), tuple(labels))


def _draw(segmentation: Any, *, size_px: tuple[int, int]) -> MaskArray | None:
    """A COCO `segmentation` as [H, W], None when it cannot be drawn."""
    height_px, width_px = size_px
    try:
        return Mask.from_coco(segmentation, height_px=height_px, width_px=width_px).to_array().astype(np.bool_)
    except ValueError:
        return None


def _segment_ids(path: str, *, size_px: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.int32]] | Rejection:
    """The segment of every pixel, [H, W], which a panoptic PNG stores as R + 256 G + 65536 B."""
    picture = read_image(path, max_pixels=size_px[0] * size_px[1])
    if isinstance(picture, Rejection):
        return Rejection("no_masks", f"panoptic segments: {picture.reason} ({picture.detail})")
    if picture.rgb_HW3.shape[:2] != size_px:
        return Rejection("no_masks", "panoptic segments: another size than the annotations say")
    ids_HW: np.ndarray[Any, np.dtype[np.int32]] = picture.rgb_HW3.astype(np.int32) @ np.array([1, 256, 65536], np.int32)
    return ids_HW


def _items(path: str, name: str, *, need: Literal["items", "nothing"]) -> Iterator[dict[str, Any]]:
    return coco_items(path, name, lines=_LINES, need=need)


def _malformed(path: str, fault: str) -> str:
    return f"proposals.annotations: `{path}`: {fault}; give a COCO instances or panoptic JSON"


def _image_id(item: dict[str, Any], key: str) -> str | None:
    value = coco_id(item, key)
    return None if value is None else str(value)
