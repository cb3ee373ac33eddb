"""A set of pictures with a map of classes each: what segmentation is measured on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MappedPicture:
    """A picture and its label map: paths of files. `image_id` is unique in its set."""

    image_id: str
    image: str
    labels: str


@dataclass(frozen=True, slots=True)
class SemanticSet:
    """Pictures in a fixed order, and the classes that the numbers 0, 1 … in their label maps stand for.

    Label maps are PNG or TIFF of 8 or 16 bits and of their picture's size; `ignore` is the number for pixels that are
    not counted. `seen` has the classes that the training of the proposals knew; None where nobody said.
    """

    name: str
    classes: tuple[str, ...]
    pictures: tuple[MappedPicture, ...]
    ignore: int
    seen: frozenset[str] | None = None
