"""Captioned images as their sources give them: which images there are, where, and what is said of them.

One kind of source a class; each reads its files once, as a stream of entries (`mining/caption_entries.py`).
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import Discriminator, Field, Tag

from mining.caption_entries import NOTHING_MORE, Entry, as_tables, clean_text
from mining.coco import FaultLines, coco_id, coco_items
from mining.source_files import SourceFile, check_images, list_files
from mining.source_pictures import EarlierRun, Folder, HuggingFace
from mining.source_tables import TableCaptions
from mining.source_tars import Img2dataset
from schemas.errors import InputError
from schemas.settings import Settings

_LINES = FaultLines(
    absent="{path}: no such file; `captions.annotations` names the COCO captions JSON",
    folder="{path}: a folder; `captions.annotations` names the COCO captions JSON",
    broken="{path}: not valid JSON ({reason}); get the file again",
    lacking="{path}: no list `{name}` at the top; this is not a COCO captions file",
)


class CocoCaptions(Settings):
    """A COCO captions file and the folder of its images.

    `per_image` captions of each image are read, in the order of their annotation ids: 1 as in the paper's main set,
    `all`, or any other number.
    """

    kind: Literal["coco"] = "coco"
    name: str | None = None
    annotations: str
    images: str
    per_image: Annotated[int, Field(ge=1)] | Literal["all"] = 1

    @property
    def place(self) -> str:
        """What messages call the source."""
        return self.annotations

    @property
    def root(self) -> str:
        """The folder that paths of pictures are told from."""
        return self.images

    def list_files(self) -> list[SourceFile]:
        """The captions file."""
        return list_files(self.annotations, suffixes=(".json",))

    def check(self) -> None:
        """Raises InputError when the folder of the images is not there."""
        check_images(self.images)

    def read(self, *, images_per_part: int) -> Iterator[pa.Table]:
        """The entries (`mining/caption_entries.py`). Raises InputError when the file cannot be read."""
        return as_tables(self._entries())

    def _entries(self) -> Iterator[Entry]:
        number = -1
        for number, (image_id, path) in enumerate(self.read_images()):
            yield image_id, path, None, number, None, NOTHING_MORE
        if number < 0:
            raise InputError(f"{self.annotations}: `images` is empty; there is nothing to mine")
        some = False
        for image_id, order, caption in self.read_captions():
            some = some or bool(caption)
            yield image_id, None, None, order, caption, NOTHING_MORE
        if not some:
            raise InputError(
                f"{self.annotations}: no annotation has a `caption`; is this the captions file, and not the instances?"
            )

    def read_images(self) -> Iterator[tuple[str, str]]:
        """`(image id, path)` for every entry of the file's `images`, in the file's order."""
        for number, image in enumerate(self._items("images")):
            image_id, name = _key(image, "id"), _text(image, "file_name")
            if image_id is None or not name:
                raise InputError(
                    f"{self.annotations}: entry {number} of `images` has no usable `id` and `file_name`; "
                    "this is not a COCO captions file"
                )
            yield image_id, posixpath.join(self.images, name)

    def read_captions(self) -> Iterator[tuple[str, int, str]]:
        """`(image id, order, caption)` for every annotation; captions of an image sort by `order`, the annotation's id.

        A caption that is missing or no text is given as the empty string: the image keeps its row, and its reason.
        """
        for number, annotation in enumerate(self._items("annotations")):
            image_id, order = _key(annotation, "image_id"), annotation.get("id")
            if image_id is None:
                raise InputError(
                    f"{self.annotations}: entry {number} of `annotations` has no `image_id`; "
                    "this is not a COCO captions file"
                )
            yield image_id, order if isinstance(order, int) else number, _text(annotation, "caption") or ""

    def _items(self, name: str) -> Iterator[dict[str, Any]]:
        return coco_items(self.annotations, name, lines=_LINES, need="list")


AnySource = Annotated[
    CocoCaptions | Img2dataset | TableCaptions | HuggingFace | Folder | EarlierRun, Field(discriminator="kind")
]
"""Whatever can name images and say something of them."""

SomeSources = Annotated[
    Annotated[AnySource, Tag("one source")]
    | Annotated[tuple[AnySource, ...], Field(min_length=1, strict=False), Tag("sources")],
    Discriminator(lambda value: "sources" if isinstance(value, list | tuple) else "one source"),
]
"""One source or several; an image may be listed by one and have captions from all of them."""


def source_name(source: AnySource) -> str:
    """What the samples call the source of their captions."""
    return source.name or source.kind


def most_captions(source: AnySource) -> int | None:
    """How many captions of an image are read; None for all."""
    return None if source.per_image == "all" else source.per_image


def _key(item: dict[str, Any], name: str) -> str | None:
    """An id as text."""
    value = coco_id(item, name)
    return None if value is None or value == "" else clean_text(str(value))


def _text(item: dict[str, Any], name: str) -> str | None:
    value = item.get(name)
    return clean_text(value) if isinstance(value, str) else None
