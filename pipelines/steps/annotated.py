"""Whether annotated masks are of a run's images: found out before work begins, not by a rejection of each image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from maskmine.mining.storage.coco_truth import CocoTruth
from maskmine.mining.storage.locations import file_name_of
from maskmine.pipelines.run_folder.cells import Cells
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import ImageRow
from maskmine.schemas.wording import counted

_TELLING = 5  # images of which one at least is annotated where the file is the right one


def check_annotated(images: Cells[ImageRow], truth: CocoTruth, *, parts: Iterable[int], where: str) -> Iterator[str]:
    """A note where images were found by the names of their files, as their ids are others; `where` begins each line.

    Raises InputError when the annotations name none of the images, or images of different files by one entry. A few
    images that they do not name are rejected one by one, as among others.
    """
    found: dict[str, tuple[str, str | None]] = {}
    by_name, count, example = 0, 0, ""
    for part in parts:
        table = images.read_table(part)
        for image_id, path in zip(table["image_id"].to_pylist(), table["path"].to_pylist(), strict=True):
            count += 1
            example = example or image_id
            key = truth.key_of(image_id, file_name_of(path))
            if key is None:
                continue
            other, other_path = found.setdefault(key, (image_id, path))
            if other != image_id and (path is None or path != other_path):
                raise InputError(
                    f"{where}: images {other} and {image_id} are both its image {key}, by the names of their files; "
                    "give the images the ids of the annotations"
                )
            by_name += key != image_id
    if count >= _TELLING and not found:
        first = next(iter((*truth.sizes, *truth.unsized)), "none")
        raise InputError(
            f"{where}: names none of the {count:,} images, neither by id (such as {example}; there {first}) nor by "
            "file name; give the annotations of these images"
        )
    if by_name:
        yield f"{where}: {by_name:,} of {counted(count, 'image')} found by file names, as the ids there are others"
