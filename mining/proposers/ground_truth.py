"""Masks that people drew, in place of a model's: COCO instances or COCO panoptic segmentation as proposals.

Shapes: N masks of an image; H, W height and width of the image in pixels. A size is `(height_px, width_px)`.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from maskmine.mining.images.read import read_image
from maskmine.mining.models.devices import DeviceKind, open_device
from maskmine.mining.proposers.proposals import LoadedImage, Proposals, Proposer
from maskmine.mining.storage.coco_json import FaultLines, open_coco
from maskmine.mining.storage.coco_truth import CocoTruth, read_truth
from maskmine.mining.storage.content_hash import content_identity, folder_identity
from maskmine.mining.storage.names import composed
from maskmine.schemas.manifest import ModelRecord
from maskmine.schemas.rows import Rejection
from maskmine.schemas.settings import AnyPath, RecordOnly, Settings

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
    """Annotations in COCO's format as proposals: score 1, the label is the category's name."""

    kind: Literal["ground_truth"]
    """Annotated masks in place of a model's."""
    annotations: AnyPath
    """An instances JSON, or a panoptic JSON together with `segments`."""
    segments: AnyPath | None = None
    """Folder of the PNG files of a panoptic JSON."""
    crowds: bool = False
    """Whether masks of whole groups (`iscrowd`) are proposals too."""
    licence: Annotated[str | None, RecordOnly()] = None
    """Licence of the annotations (SPDX)."""

    def open(self, *, device: str) -> Proposer:
        """Read the annotations; returns a function from images to their proposals.

        An image has the rejection `no_masks` when the annotations do not name it, name no mask for it, have it in
        another size, have only crowds of it, or none of its masks can be read; otherwise masks that cannot be read are
        left out, and the proposals say which.
        Raises InputError when the file is absent or not of COCO's form.
        """
        target = open_device(device)
        truth = read_masks(self)

        def propose(images: Sequence[LoadedImage], *, min_score: float) -> Iterator[Proposals | Rejection]:
            for image in images:
                drawn = _propose(self, truth, image)
                yield drawn if isinstance(drawn, Rejection) else _as_proposals(drawn, device=target)

        return propose

    def contents(self) -> dict[str, Any]:
        """The annotations, and the folder of panoptic segments, by their hashes."""
        segments = folder_identity(self.segments) if self.segments is not None else None
        return {"annotations": content_identity(self.annotations), "segments": segments}

    def settled(self, kind: DeviceKind) -> GroundTruth:
        """The same: annotations are the same on every device."""
        return self

    def fetch(self) -> None:
        """There is nothing to fetch."""

    def record(self) -> ModelRecord:
        """The file and its licence; `sha256` is that of the JSON. Raises InputError when there is no such file."""
        with open_coco(self.annotations, lines=_LINES) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        name = posixpath.basename(self.annotations)
        return ModelRecord(role="proposals", name=name, sha256=sha256, licence=self.licence or "unknown")


def read_masks(settings: GroundTruth) -> CocoTruth:
    """The annotations. Raises InputError when the file is absent or not of COCO's form."""
    path, panoptic = settings.annotations, settings.segments is not None
    remedy = "is not panoptic; leave `segments` out"
    if not panoptic:
        remedy = "is panoptic; give `segments`, the folder of its PNG files"
    return read_truth(
        path,
        lines=_LINES,
        needs={"images": "items", "categories": "nothing", "annotations": "items"},
        panoptic=panoptic,
        other_form=f"proposals.segments: `{path}` {remedy}",
        malformed=f"proposals.annotations: `{path}`: {{fault}}; give a COCO instances or panoptic JSON",
    )


def _misfit(truth: CocoTruth, image: LoadedImage) -> tuple[int, int] | Rejection:
    """The size of an image's masks, or why they do not fit the upright image."""
    image_id, picture_px = composed(image.image_id), tuple(image.rgb_3HW.shape[1:])
    annotated_px = truth.sizes.get(image_id)
    if annotated_px is None:
        if image_id not in truth.unsized:
            return Rejection("no_masks", "the annotations do not name this image")
        if image_id not in truth.packed:
            return Rejection("no_masks", "the annotations have no mask of this image")
        return Rejection("no_masks", "the annotations have masks of this image and not its `height` and `width`")
    if annotated_px != picture_px:
        sizes = [f"{height_px} × {width_px}" for height_px, width_px in (annotated_px, picture_px)]
        turned = f", turned by its {image.turned_by}" if image.orientation >= 5 else ""
        return Rejection(
            "no_masks", f"masks for {sizes[0]} pixels (H × W), and the upright picture has {sizes[1]}{turned}"
        )
    # A turn by 90° shows in the sizes, except those of a square; other turns and flips never do.
    if image.orientation != 1 and (image.orientation < 5 or picture_px[0] == picture_px[1]):
        detail = f"{image.turned_by} turns the picture, and the annotations do not say if they are turned too"
        return Rejection("no_masks", detail)
    return annotated_px


@dataclass(frozen=True, slots=True)
class _Drawn:
    """The masks of an image and their names, how many crowds were passed over, and what is wrong with other masks."""

    masks: list[MaskArray]
    labels: list[str | None]
    crowds: int
    faults: tuple[str, ...]


def _propose(settings: GroundTruth, truth: CocoTruth, image: LoadedImage) -> _Drawn | Rejection:
    """The masks of an image."""
    size_px = _misfit(truth, image)
    if isinstance(size_px, Rejection):
        return size_px
    image_id = composed(image.image_id)
    if image_id not in truth.packed:
        return Rejection("no_masks", "the annotations have no mask of this image")
    draw = _draw_instances if settings.segments is None else _draw_segments
    drawn = draw(settings, truth, image_id, size_px)
    if isinstance(drawn, Rejection) or drawn.masks:
        return drawn
    crowds = f"{drawn.crowds} crowds (`iscrowd`), which `proposals.crowds: true` takes" if drawn.crowds else ""
    if not drawn.faults and not drawn.crowds:
        return Rejection("no_masks", "the annotations have no mask of this image")
    if not drawn.faults:
        return Rejection("no_masks", f"the annotations have nothing of this image but {crowds}")
    unread = f"{len(drawn.faults)} masks are annotated, and none has a pixel that can be read ({drawn.faults[0]})"
    return Rejection("no_masks", f"{unread}; {crowds}" if crowds else unread)


def _draw_instances(
    settings: GroundTruth, truth: CocoTruth, image_id: str, size_px: tuple[int, int]
) -> _Drawn | Rejection:
    entries = list(truth.instances(image_id))
    wanted = [entry for entry in entries if settings.crowds or not entry.crowd]
    found = [(entry.mask(size_px), entry.category) for entry in wanted]
    masks = [(mask.to_array().astype(np.bool_), label) for mask, label in found if not isinstance(mask, str)]
    faults = tuple(mask for mask, _ in found if isinstance(mask, str))
    return _Drawn([mask for mask, _ in masks], [label for _, label in masks], len(entries) - len(wanted), faults)


def _draw_segments(
    settings: GroundTruth, truth: CocoTruth, image_id: str, size_px: tuple[int, int]
) -> _Drawn | Rejection:
    entry, *more = truth.panoptic(image_id)
    place = f"entry {entry.number} of `annotations`"
    wanted = [(segment, label) for segment, label, crowd in entry.segments if settings.crowds or not crowd]
    crowds = len(entry.segments) - len(wanted)
    faults = [f"{place}: a segment has no usable `id`"] * entry.broken
    faults += [f"entry {other.number} of `annotations`: another one of this image" for other in more]
    if not wanted:
        return _Drawn([], [], crowds, tuple(faults))
    if not isinstance(entry.file, str) or not entry.file.strip():
        return Rejection("no_masks", f"{place} has no `file_name` of its PNG")
    picture = _segment_ids(posixpath.join(settings.segments or "", entry.file), size_px=size_px)
    if isinstance(picture, Rejection):
        return picture
    masks, labels = list[MaskArray](), list[str | None]()
    for segment, label in wanted:
        mask_HW = np.equal(picture, segment)
        if mask_HW.any():
            masks.append(mask_HW)
            labels.append(label)
        else:
            faults.append(f"{place}: no pixel of its PNG has the segment {segment}")
    return _Drawn(masks, labels, crowds, tuple(faults))


def _as_proposals(drawn: _Drawn, *, device: torch.device) -> Proposals:
    import torch

    masks_NHW = torch.from_numpy(np.stack(drawn.masks)).to(device)
    scores_N = torch.ones(len(drawn.masks), device=device)
    return Proposals(masks_NHW, scores_N, tuple(drawn.labels), left_out=drawn.faults)


def _segment_ids(path: str, *, size_px: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.int32]] | Rejection:
    """The segment of every pixel, [H, W], which a panoptic PNG stores as R + 256 G + 65536 B."""
    picture = read_image(path, max_pixels=size_px[0] * size_px[1])
    if isinstance(picture, Rejection):
        return Rejection("no_masks", f"panoptic segments: {picture.reason} ({picture.detail})")
    if picture.rgb_HW3.shape[:2] != size_px:
        return Rejection("no_masks", "panoptic segments: another size than the annotations say")
    ids_HW: np.ndarray[Any, np.dtype[np.int32]] = picture.rgb_HW3.astype(np.int32) @ np.array([1, 256, 65536], np.int32)
    return ids_HW
