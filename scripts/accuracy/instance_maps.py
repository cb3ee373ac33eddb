"""Label maps of pictures whose objects are known one by one: a set that segmentation can be measured on.

    python -m maskmine.scripts.accuracy.instance_maps world/instances.json world/images world-set
    maskmine benchmark demo --images world/images --maps world-set/maps --names world-set/names.txt --ignore 65535

Classes are the categories of a COCO instances JSON, sorted. Pixels of no object are not counted; where objects overlap,
the smallest lies on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from maskmine.mining.evaluation.annotations import AnnotatedObject, read_annotations
from maskmine.pipelines.segment.benchmark_sets import set_of_folders
from maskmine.scripts.command import run_command
from maskmine.tuning.benchmarks.sets import SemanticSet
from maskmine.tuning.segmentation.confusion import IGNORE, Labels

IGNORE_LABEL = 65_535
_NAMES_FILE, _SEEN_FILE, _MAPS = "names.txt", "seen.txt", "maps"


def find_instance_set(
    to: Path, *, instances: str, images: Path, name: str, seen: frozenset[str] | None = None
) -> SemanticSet:
    """The set in a folder; missing maps are written. Raises InputError as `read_annotations` does."""
    if not (to / _NAMES_FILE).is_file():
        _write_maps(to, instances=instances)  # the names come last
    if seen is not None:
        (to / _SEEN_FILE).write_text("".join(f"{one}\n" for one in sorted(seen)), encoding="utf-8")
    return set_of_folders(
        name,
        images=str(images),
        maps=str(to / _MAPS),
        names=str(to / _NAMES_FILE),
        ignore=IGNORE_LABEL,
        seen=None if seen is None else str(to / _SEEN_FILE),
    )


def labels_of(objects: Sequence[AnnotatedObject], *, classes: Sequence[str], size_px: tuple[int, int]) -> Labels:
    """The map of a picture's objects, int32 [H, W]; IGNORE where there is none."""
    labels_HW = np.full(size_px, IGNORE, np.int32)
    for one in sorted(objects, key=lambda one: -one.mask.area_px):
        labels_HW[one.mask.to_array().astype(bool)] = classes.index(one.category)
    return labels_HW


def _write_maps(to: Path, *, instances: str) -> None:
    truth = read_annotations(instances)
    (to / _MAPS).mkdir(parents=True, exist_ok=True)
    for image_id, size_px in truth.sizes.items():
        labels_HW = labels_of(truth.objects(image_id), classes=truth.categories, size_px=size_px)
        stored_HW = np.where(labels_HW == IGNORE, IGNORE_LABEL, labels_HW).astype(np.uint16)
        stem = Path(truth.files.get(image_id, image_id)).stem
        Image.fromarray(stored_HW).save(to / _MAPS / f"{stem}.png")
    (to / _NAMES_FILE).write_text("".join(f"{category}\n" for category in truth.categories), encoding="utf-8")


def main(
    instances: Annotated[str, typer.Argument(help="COCO instances JSON.")],
    images: Annotated[Path, typer.Argument(help="The folder of its pictures.")],
    to: Annotated[Path, typer.Argument(help="Folder for maps/ and names.txt.")],
) -> None:
    """Write label maps of the objects in a COCO instances JSON."""
    found = find_instance_set(to, instances=instances, images=images, name=to.name)
    typer.echo(f"{to}: {len(found.images)} maps of {len(found.classes)} classes; --ignore {IGNORE_LABEL}")


if __name__ == "__main__":
    run_command(main, name="instance_maps")
