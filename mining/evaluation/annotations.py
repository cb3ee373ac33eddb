"""Ground truth for mined pairs: the annotated objects of images, from a COCO instances JSON."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from maskmine.mining.storage.coco_json import FaultLines, open_coco
from maskmine.mining.storage.coco_truth import CocoTruth, read_truth
from maskmine.mining.storage.names import composed
from maskmine.schemas.errors import InputError
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import RegionsRow

Coverage = Literal["covered", "missing", "other_size"]

_REMEDY = "give a COCO instances JSON"  # ends every message about a file of another form
_LINES = FaultLines(
    absent=f"{{path}}: no such file; {_REMEDY}",
    folder=f"{{path}}: is a folder; {_REMEDY}",
    broken=f"{{path}}: not valid JSON ({{reason}}); {_REMEDY}",
    lacking=f"{{path}}: no list `{{name}}` at the top, or an empty one; {_REMEDY}",
    unreadable="{path}: cannot be read ({reason})",
)


@dataclass(frozen=True, slots=True)
class AnnotatedObject:
    """An object in an image. A `crowd` is a group that was annotated as one object (`iscrowd`)."""

    category: str
    mask: Mask
    crowd: bool


@dataclass(frozen=True, slots=True)
class Annotations:
    """An annotation file, of which `truth` has the masks, compressed until `objects` decodes those of an image."""

    name: str
    sha256: str
    categories: tuple[str, ...]
    truth: CocoTruth

    @property
    def sizes(self) -> Mapping[str, tuple[int, int]]:
        """`(height_px, width_px)` by image id."""
        return self.truth.sizes

    @property
    def files(self) -> Mapping[str, str]:
        """The file names by image id, where given."""
        return self.truth.files

    @property
    def left_out(self) -> tuple[str, ...]:
        """A line for each kind of entry that could not be used, beside masks that cannot be read."""
        return self.truth.left_out.lines()

    def coverage(self, regions: RegionsRow) -> Coverage:
        """Whether an image is annotated, in the size that its regions have."""
        image_id = composed(regions.image_id)
        if image_id not in self.sizes:
            return "missing"
        size_px = (regions.height_px, regions.width_px)
        return "other_size" if regions.regions and size_px != self.sizes[image_id] else "covered"

    def objects(self, image_id: str) -> list[AnnotatedObject]:
        """The objects of an image, without those that have no category, no pixel or a mask that cannot be read."""
        objects, image_id = [], composed(image_id)
        for entry in self.truth.instances(image_id):
            mask = entry.mask(self.sizes[image_id])
            if entry.category is not None and not isinstance(mask, str):
                objects.append(AnnotatedObject(entry.category, mask, entry.crowd))
        return objects

    def unreadable(self, image_id: str, objects: Sequence[AnnotatedObject]) -> int:
        """How many annotations of an image are not in `objects`, which came from it."""
        return len(self.truth.packed.get(composed(image_id), ())) - len(objects)


def read_annotations(path: str) -> Annotations:
    """Read a COCO instances JSON as a stream; memory holds its masks compressed.

    Raises InputError when the file is absent, no JSON, or not of that form.
    """
    truth = read_truth(
        path,
        lines=_LINES,
        needs={"categories": "items", "images": "items", "annotations": "items"},
        panoptic=False,
        other_form=f"{path}: is panoptic; give the instances JSON of the same images",
        malformed=f"{path}: {{fault}}; {_REMEDY}",
    )
    if not truth.names:
        raise InputError(f"{path}: no entry of `categories` has a usable `id` and `name`; {_REMEDY}")
    with open_coco(path, lines=_LINES) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Annotations(posixpath.basename(path), sha256, tuple(sorted(set(truth.names.values()))), truth)
