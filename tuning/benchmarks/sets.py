"""A data set for semantic segmentation: images with a label map each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """The paths of an image and its label map. `image_id` is unique in its set."""

    image_id: str
    image: str
    labels: str


@dataclass(frozen=True, slots=True)
class SemanticSet:
    """Images in a fixed order, and the classes of the numbers 0, 1 … in their label maps.

    Label maps are PNG or TIFF of 8 or 16 bits and of their image's size; `ignore` is the number of pixels that are not
    counted. `seen` are the classes that the proposals were trained on, None where they are not known.
    """

    name: str
    classes: tuple[str, ...]
    images: tuple[AnnotatedImage, ...]
    ignore: int
    seen: frozenset[str] | None = None
