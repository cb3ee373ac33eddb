"""Answers of CVAT in its own form, `CVAT for images 1.1`: masks and polygons with attributes.

The form is that of https://docs.cvat.ai/docs/manual/advanced/xml_format/. The XML is read as a stream by expat, without
document types, so no entity can be defined, and with bounds on depth and on what is read without an element ending.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import IO
from xml.parsers import expat

from maskmine.mining.evaluation.answers.answer import (
    Answer,
    Fault,
    UnfoldMask,
    coco_mask,
    given_verdict,
    mask_of,
    pair_in,
    refuse_other_size,
    time_in,
)
from maskmine.mining.images.mask_codes import decode_box_runs
from maskmine.schemas.annotation_tools import NOUN, PAIR, VERDICT
from maskmine.schemas.errors import InputError
from maskmine.schemas.mask import Mask

_CHUNK_BYTES = 1 << 16
_MOST_DEPTH = 30
_MOST_PENDING_BYTES = 64 << 20  # of one element's attributes, which are a mask's runs at most
_MOST_TEXT_CHARS = 10_000  # of an attribute's value, which is a noun or a pair
_SHAPES = ("mask", "polygon")
_OTHER_SHAPES = ("box", "polyline", "points", "ellipse", "cuboid", "tag", "skeleton")


def cvat_answers(file: IO[bytes], *, path: str) -> Iterator[Answer | Fault]:
    """The answers in an open file, mask by mask. Raises InputError when it is no XML of CVAT."""
    reader = _Reader(path)
    while chunk := file.read(_CHUNK_BYTES):
        reader.feed(chunk)
        yield from reader.take()
    reader.end()
    yield from reader.take()


class _Reader:
    """The elements that are open, and the answers of those that have ended."""

    def __init__(self, path: str) -> None:
        self._path, self._found = path, list[Answer | Fault]()
        self._open: list[str] = []
        self._image: Mapping[str, str] = {}
        self._shape: Mapping[str, str] | None = None
        self._kind = ""
        self._values: dict[str, str] = {}
        self._attribute: str | None = None
        self._text, self._time = "", ""
        self._shapes = self._pending_bytes = 0
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._stop
        self._parser.CharacterDataHandler = self._characters
        self._parser.StartDoctypeDeclHandler = self._refuse_doctype

    def feed(self, chunk: bytes) -> None:
        """Read some more bytes."""
        self._pending_bytes += len(chunk)
        self._parse(chunk, final=False)
        if self._pending_bytes > _MOST_PENDING_BYTES:
            raise InputError(
                f"{self._path}: an element is longer than {_MOST_PENDING_BYTES:,} bytes; get the file again"
            )

    def end(self) -> None:
        """Raises InputError where the file breaks off."""
        self._parse(b"", final=True)

    def take(self) -> Iterator[Answer | Fault]:
        """The answers that were found since the last call."""
        found, self._found = self._found, []
        yield from found

    def _parse(self, chunk: bytes, *, final: bool) -> None:
        try:
            self._parser.Parse(chunk, final)
        except expat.ExpatError as error:
            reason = f"{expat.errors.messages[error.code]}, line {error.lineno}"
            raise InputError(f"{self._path}: not valid XML ({reason}); get the file again") from error

    def _refuse_doctype(self, *_: object) -> None:
        raise InputError(f"{self._path}: has a document type, which CVAT never writes; give what CVAT exported")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._pending_bytes = 0
        if not self._open and name != "annotations":
            raise InputError(f"{self._path}: begins with <{name[:30]}>, not <annotations>; give `CVAT for images 1.1`")
        if len(self._open) >= _MOST_DEPTH:
            raise InputError(
                f"{self._path}: elements in each other deeper than {_MOST_DEPTH} levels; get the file again"
            )
        parent = self._open[-1] if self._open else ""
        self._open.append(name)
        self._text = ""
        if name == "track":
            raise InputError(f"{self._path}: tracks of a video; export the task as `CVAT for images 1.1`")
        if name == "image":
            self._image, self._shapes = attributes, 0
        elif parent == "image" and name in (*_SHAPES, *_OTHER_SHAPES):
            self._shape, self._kind, self._values = attributes, name, {}
            self._shapes += 1
        elif name == "attribute" and self._shape is not None:
            self._attribute = attributes.get("name", "")

    def _stop(self, name: str) -> None:
        self._pending_bytes = 0
        self._open.pop()
        if name == "attribute" and self._attribute is not None:
            self._values[self._attribute] = self._text
            self._attribute = None
        elif name in ("updated", "dumped") and "meta" in self._open:
            self._time = time_in(self._text.strip()) or self._time
        elif self._shape is not None and name == self._kind:
            self._found.append(self._answer(self._shape))
            self._shape = None

    def _characters(self, text: str) -> None:
        if len(self._text) < _MOST_TEXT_CHARS:
            self._text += text[:_MOST_TEXT_CHARS]

    def _answer(self, shape: Mapping[str, str]) -> Answer | Fault:
        place = f"image {self._image.get('name', '')[:80]}, {self._kind} {self._shapes}"
        if self._kind not in _SHAPES:
            return Fault(place, "is no mask; draw masks or polygons")
        try:
            verdict = given_verdict(self._values.get(VERDICT))
        except ValueError as error:
            return Fault(place, str(error))
        mask = _runs_mask(shape, self._image) if self._kind == "mask" else _polygon_mask(shape, self._image)
        return Answer(
            place=place,
            pair=pair_in(self._values.get(PAIR)),
            verdict=verdict,
            noun=self._values.get(NOUN),
            mask=mask,
            at=self._time,
        )


def _size_px(image: Mapping[str, str]) -> tuple[int, int] | None:
    sides = image.get("height", ""), image.get("width", "")
    return (int(sides[0]), int(sides[1])) if all(side.isdecimal() and len(side) < 10 for side in sides) else None


def _runs_mask(shape: Mapping[str, str], image: Mapping[str, str]) -> UnfoldMask:
    def unfold(height_px: int, width_px: int) -> Mask:
        refuse_other_size(_size_px(image), height_px, width_px)
        left, top, width, height = (_whole(shape.get(name, "")) for name in ("left", "top", "width", "height"))
        box = (left, top, left + width, top + height)
        runs = [_whole(run) for run in shape.get("rle", "").split(",")]
        return mask_of(decode_box_runs(runs, box, height_px=height_px, width_px=width_px))

    return unfold


def _polygon_mask(shape: Mapping[str, str], image: Mapping[str, str]) -> UnfoldMask:
    """A mask that somebody turned into a polygon, or drew as one."""
    points = [value for point in shape.get("points", "").split(";") for value in point.split(",")]
    return coco_mask([points], size_px=_size_px(image))


def _whole(text: str) -> int:
    """A number of pixels, also as `7.0`. Raises ValueError."""
    number = text.strip().removesuffix(".0").removesuffix(".00")
    if not number.isdecimal() or len(number) > 10:
        raise ValueError(f"`{text.strip()[:20]}` is no number of pixels")
    return int(number)
