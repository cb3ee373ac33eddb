"""Captioned images as their sources give them: which images there are, where, and what is said of them."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import IO, Annotated, Any, Literal

import ijson
from pydantic import Field

from mining.stores import open_input
from schemas.errors import InputError
from schemas.settings import Settings

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


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
        for number, image in enumerate(_items(self.annotations, "images")):
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
        for number, annotation in enumerate(_items(self.annotations, "annotations")):
            image_id, order = _key(annotation, "image_id"), annotation.get("id") if isinstance(annotation, dict) else 0
            if image_id is None:
                raise InputError(
                    f"{self.annotations}: entry {number} of `annotations` has no `image_id`; "
                    "this is not a COCO captions file"
                )
            yield image_id, order if isinstance(order, int) else number, _text(annotation, "caption") or ""


def _items(path: str, name: str) -> Iterator[Any]:
    """The items of the list `name` at the top of a JSON file, read as a stream; faults are named with their file."""
    try:
        with open_input(path) as file:
            _skip_byte_order_mark(file)
            if not _has_list(file, name):
                raise InputError(f"{path}: no list `{name}` at the top; this is not a COCO captions file")
            file.seek(0)
            _skip_byte_order_mark(file)
            yield from ijson.items(file, f"{name}.item", use_float=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; `captions.annotations` names the COCO captions JSON") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: a folder; `captions.annotations` names the COCO captions JSON") from error
    except ijson.JSONError as error:
        reason = " ".join(str(error).split())[:80]
        raise InputError(f"{path}: not valid JSON ({reason}); get the file again") from error


def _skip_byte_order_mark(file: IO[bytes]) -> None:
    if file.read(len(_BYTE_ORDER_MARK)) != _BYTE_ORDER_MARK:
        file.seek(0)


def _has_list(file: IO[bytes], name: str) -> bool:
    return any(prefix == name and event == "start_array" for prefix, event, _ in ijson.parse(file))


def _key(item: Any, name: str) -> str | None:
    """An id as text: COCO's are integers, other data sets in COCO's form have strings."""
    value = item.get(name) if isinstance(item, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        return None
    return _clean(str(value))


def _text(item: Any, name: str) -> str | None:
    value = item.get(name) if isinstance(item, dict) else None
    return _clean(value) if isinstance(value, str) else None


def _clean(text: str) -> str:
    # A lone surrogate cannot be stored as UTF-8; U+FFFD has the same length, so spans stay true.
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") if not text.isascii() else text
