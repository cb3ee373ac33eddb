"""Captioned images as their sources give them: which images there are, where, and what is said of them."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from mining.coco import FaultLines, coco_id, coco_items
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
    annotations: str
    images: str
    per_image: Annotated[int, Field(ge=1)] | Literal["all"] = 1

    @property
    def most_captions(self) -> int | None:
        """How many captions of an image are read; None for all."""
        return None if self.per_image == "all" else self.per_image

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


def _key(item: dict[str, Any], name: str) -> str | None:
    """An id as text."""
    value = coco_id(item, name)
    return None if value is None or value == "" else _clean(str(value))


def _text(item: dict[str, Any], name: str) -> str | None:
    value = item.get(name)
    return _clean(value) if isinstance(value, str) else None


def _clean(text: str) -> str:
    # A lone surrogate cannot be stored as UTF-8; U+FFFD has the same length, so spans stay true.
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") if not text.isascii() else text
