"""A COCO captions file and the folder of its images."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field

from maskmine.mining.sources.entries import NOTHING_MORE, Entry, as_tables, broken, captions_of, clean_text
from maskmine.mining.sources.files import SourceFile, check_images, list_files
from maskmine.mining.sources.named_files import named_file
from maskmine.mining.storage.bounded.limits import USUAL, Limits
from maskmine.mining.storage.coco_json import (
    FaultLines,
    Need,
    coco_id,
    coco_items,
    coco_lists,
    coco_number,
    is_unreadable,
    too_much,
)
from maskmine.mining.storage.locations import rejected_location
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import Rejection
from maskmine.schemas.settings import AnyPath, Settings

_LINES = FaultLines(
    absent="{path}: no such file; `captions.annotations` names the COCO captions JSON",
    folder="{path}: a folder; `captions.annotations` names the COCO captions JSON",
    broken="{path}: not valid JSON ({reason}); get the file again",
    lacking="{path}: no list `{name}` at the top; this is not a COCO captions file",
)

# Positions in a list of captions are the last bits of an order; ids that leave no room for them, which are hashes more
# than numbers, give no order, and the file's holds.
_CAPTIONS_OF_ONE = 1 << 10
_LARGEST_ORDER = 1 << 52
_NAMELESS = "has no `file_name`"


class CocoCaptions(Settings):
    """A COCO captions file and the folder of its images."""

    kind: Literal["coco"] = "coco"
    """A captions JSON in COCO's format."""
    name: str | None = None
    """Name of the source in samples and in `licences.captions`; its `kind` when null. Two sources of one kind
    need one each."""
    annotations: AnyPath
    """The captions JSON, such as `annotations/captions_train2017.json`; a path or an object store URL."""
    images: AnyPath
    """Folder of the images that the file names; a path or an object store URL."""
    outside: bool = False
    """Whether the file may name images outside of `images`: by absolute paths, `..` or other buckets."""
    per_image: Annotated[int, Field(ge=1)] | Literal["all"] = 1
    """Captions read of each image, in the order of their annotation ids: 1 as in the paper's main set, a number, or
    `all`."""

    @property
    def location(self) -> str:
        """What messages call the source."""
        return self.annotations

    @property
    def root(self) -> str:
        """The folder that paths of images start from."""
        return self.images

    @property
    def roots(self) -> tuple[str, ...]:
        """The folders that paths of images start from."""
        return (self.root,)

    def list_files(self) -> list[SourceFile]:
        """The captions file."""
        return list_files(self.annotations, suffixes=(".json",))

    def check(self) -> None:
        """Raises InputError when the folder of the images is not there."""
        check_images(self.images)

    def read(self, *, images_per_part: int, limits: Limits = USUAL) -> Iterator[pa.Table]:
        """The entries (`mining/sources/entries.py`). Raises InputError when the file cannot be read."""
        return as_tables(self._entries(limits))

    def _entries(self, limits: Limits) -> Iterator[Entry]:
        """The entries of both lists in one pass. An entry that cannot be used is one of its own, a broken record."""
        images = usable = some = 0
        fault = ""
        needs: dict[str, Need] = {"images": "list", "annotations": "list"}
        for name, number, item in coco_lists(self.annotations, needs, lines=_LINES, limits=limits):
            place = f"entry {number} of `{name}`"
            nameless = f"{posixpath.basename(self.annotations)}#{name}/{number}"
            image_id = coco_id((item or {}).get("id" if name == "images" else "image_id"))
            images += name == "images"
            if item is None or image_id is None:
                key = "id" if name == "images" else "image_id"
                said = f"{place} is no object" if item is None else f"{place} has no usable `{key}`"
                said = f"{place} is {too_much(item)}" if too_much(item) else said
                fault = fault or said
                yield broken(nameless, number, said)
            elif name == "images" and is_unreadable(item.get("file_name")):
                fault_of_name = Rejection("broken_record", f"{place}: its `file_name` is no text in UTF-8")
                yield clean_text(image_id), rejected_location(fault_of_name), None, number, None, NOTHING_MORE
            elif name == "images":
                path = self._path(item)
                if isinstance(path, Rejection):
                    detail = f"{place} {path.detail}" if path.reason == "missing_file" else path.detail
                    fault = fault or detail
                    usable += path.reason == "outside_folder"
                    path = rejected_location(Rejection(path.reason, detail))
                else:
                    usable += 1
                yield clean_text(image_id), path, None, number, None, NOTHING_MORE
            else:
                try:
                    captions = list(_captions(item, number))
                except UnicodeDecodeError:
                    yield broken(nameless, number, f"{place}: its `caption` is no text in UTF-8")
                    continue
                for position, caption in captions:
                    some += bool(caption)
                    yield clean_text(image_id), None, None, position, caption, NOTHING_MORE
        if not images:
            raise InputError(f"{self.annotations}: `images` is empty; there is nothing to mine")
        if not usable:
            raise InputError(f"{self.annotations}: no image can be used ({fault}); this is not a COCO captions file")
        if not some:
            raise InputError(
                f"{self.annotations}: no annotation has a `caption`; is this the captions file, and not the instances?"
            )

    def read_images(self) -> Iterator[tuple[str, str]]:
        """`(image id, path)` for every entry of the file's `images` that has both, in the file's order.

        Raises InputError where none has.
        """
        some = listed = False
        for image in coco_items(self.annotations, "images", lines=_LINES, need="list"):
            listed = True
            image_id, path = coco_id((image or {}).get("id")), self._path(image or {})
            some = some or (isinstance(path, Rejection) and path.reason == "outside_folder")  # which the plan refuses
            if image_id is not None and isinstance(path, str):
                some = True
                yield clean_text(image_id), path
        if listed and not some:
            raise InputError(
                f"{self.annotations}: no entry of `images` has a usable `id` and `file_name`; "
                "this is not a COCO captions file"
            )

    def _path(self, image: Mapping[str, Any]) -> str | Rejection:
        name = image.get("file_name")
        if not isinstance(name, str) or not name.strip() or "\0" in name or is_unreadable(name):
            return Rejection("missing_file", _NAMELESS)
        return named_file(self.images, clean_text(name), outside=self.outside)


def _captions(annotation: Mapping[str, Any], number: int) -> Iterator[tuple[int, str]]:
    """`(position, caption)` for the captions of an annotation: one, a list of them, or records that have them.

    Captions of an image sort by the annotation's id, and within it as they are listed. A caption that is missing or no
    text is empty: the image keeps its row, and its reason.
    """
    order = coco_number(annotation.get("id"))
    if order is None or abs(order) >= _LARGEST_ORDER:
        order = number
    for n, caption in enumerate(captions_of(annotation.get("caption"))):
        yield order * _CAPTIONS_OF_ONE + min(n, _CAPTIONS_OF_ONE - 1), caption
