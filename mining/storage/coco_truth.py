"""Annotation files in COCO's format, instances and panoptic: one reader for all that use them.

A broken entry costs itself and no other: what cannot be used is counted, with the place of the first of its kind.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maskmine.mining.storage.coco_json import (
    FaultLines,
    LeftOut,
    Need,
    coco_flag,
    coco_id,
    coco_lists,
    coco_number,
    coco_size_px,
    is_unreadable,
    known_id,
    pack,
    size_px_of,
    unpack,
)
from maskmine.mining.storage.names import PICTURE_SUFFIXES, composed
from maskmine.schemas.errors import InputError
from maskmine.schemas.mask import Mask

SizePx = tuple[int, int]

_MOST_DIGITS = 30  # of a number whose zeros do not count


@dataclass(frozen=True, slots=True)
class InstanceEntry:
    """An annotation of an instances JSON: its number in the list, its category's name where it has one."""

    number: int
    category: str | None
    crowd: bool
    segmentation: Any

    def mask(self, size_px: SizePx) -> Mask | str:
        """Its mask in an image of this size, or what is wrong with it; a mask has a pixel at least."""
        if self.segmentation in (None, [], {}):
            return f"entry {self.number} of `annotations` has no `segmentation`"
        try:
            mask = Mask.from_coco(self.segmentation, height_px=size_px[0], width_px=size_px[1])
        except ValueError as error:
            return f"entry {self.number} of `annotations`: {error}"
        return mask if mask.area_px else f"entry {self.number} of `annotations`: no pixel of its mask is in the image"


@dataclass(frozen=True, slots=True)
class PanopticEntry:
    """An annotation of a panoptic JSON: its number in the list, its PNG, and `(id, category, crowd)` of its segments.

    `broken` counts segments without a usable id.
    """

    number: int
    file: str | None
    segments: tuple[tuple[int, str | None, bool], ...]
    broken: int


@dataclass(slots=True)
class CocoTruth:
    """An annotation file. `sizes` are `(height_px, width_px)` by image id, `files` the file names where given.

    `unsized` are the images whose size neither their entry nor run lengths tell, `names` the categories by id. `packed`
    has the annotations of an image compressed, for `instances` and `panoptic`. `left_out` has what no image misses.
    """

    sizes: dict[str, SizePx] = field(default_factory=dict)
    unsized: set[str] = field(default_factory=set)
    files: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    packed: dict[str, list[bytes]] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)
    _names: _Names | None = field(default=None, repr=False, compare=False)

    def key_of(self, image_id: str, file: str | None = None) -> str | None:
        """The id that the annotations have for an image, None where they do not name it.

        It is the image's own, where they have that. Else it is that of the same file name, which only one of theirs
        may have: the end (`.jpg`) does not count, nor do zeros before a number. `file` is the name of the image's file,
        None where it has none of its own; then its id stands for it.
        """
        image_id = composed(image_id)
        if (key := known_id(image_id, self)) in self:
            return key
        if self._names is None:
            self._names = _Names.of(self)
        return self._names.key_of(image_id, file, self.files)

    def __contains__(self, key: object) -> bool:
        """Whether the annotations have this id."""
        return key in self.sizes or key in self.unsized

    def instances(self, image_id: str) -> Iterator[InstanceEntry]:
        """The annotations of an image, of an instances JSON."""
        for packed in self.packed.get(image_id, ()):
            number, category, crowd, segmentation = unpack(packed)
            yield InstanceEntry(number, self._name(category), crowd, segmentation)

    def panoptic(self, image_id: str) -> Iterator[PanopticEntry]:
        """The annotations of an image, of a panoptic JSON: one, as a rule."""
        for packed in self.packed.get(image_id, ()):
            number, file, segments = unpack(packed)
            usable = [(one, self._name(category), crowd) for one, category, crowd in segments if one is not None]
            yield PanopticEntry(number, file, tuple(usable), len(segments) - len(usable))

    def _name(self, category: str | None) -> str | None:
        key = known_id(category, self.names)
        return self.names.get(key) if key is not None else None


@dataclass(frozen=True, slots=True)
class _Names:
    """The ids of annotations by the plain names of their files, and of those without a file by their plain ids; None
    for a name that several have."""

    by_file: dict[str, str | None]
    by_id: dict[str, str | None]

    @classmethod
    def of(cls, truth: CocoTruth) -> _Names:
        names = cls({}, {})
        for key in (*truth.sizes, *truth.unsized):
            index, name = (names.by_file, truth.files[key]) if key in truth.files else (names.by_id, key)
            plain = _plain_name(name)
            index[plain] = None if plain in index else key
        return names

    def key_of(self, image_id: str, file: str | None, files: Mapping[str, str]) -> str | None:
        key = self.by_file.get(_plain_name(image_id if file is None else file))
        if key is not None and _ends_alike(image_id, files[key]):
            return key
        return self.by_id.get(_plain_name(image_id))


def _plain_name(name: str) -> str:
    """The name of a file without folders, without its end where it is that of a picture; a number without zeros."""
    stem, end = posixpath.splitext(posixpath.basename(name.replace("\\", "/").rstrip("/")))
    plain = stem if end[1:].lower() in PICTURE_SUFFIXES else stem + end
    return str(int(plain)) if plain.isascii() and plain.isdecimal() and len(plain) < _MOST_DIGITS else plain


def _ends_alike(image_id: str, file: str) -> bool:
    """Whether the folders of an id that is a path, and of a file name, agree as far as both have some."""
    folders = (posixpath.dirname(name.replace("\\", "/")).split("/")[::-1] for name in (image_id, file))
    return all(one == other for one, other in zip(*folders, strict=False) if one and other)


def read_truth(
    path: str, *, lines: FaultLines, needs: Mapping[str, Need], panoptic: bool, other_form: str, malformed: str
) -> CocoTruth:
    """Read an instances JSON, or a panoptic one, as a stream; memory holds its annotations compressed.

    `lines` and `needs` are those of `coco_lists`. Raises InputError when the file cannot be used: with `other_form`
    where it is of the other form, and with `malformed`, a template of a `fault`, where no image or no annotation of it
    can be used.
    """
    truth, categories = CocoTruth(), dict[str | None, tuple[int, int]]()
    counts = {"images": 0, "categories": 0, "annotations": 0}
    others = 0
    for name, number, item in coco_lists(path, needs, lines=lines):
        counts[name] = number + 1
        if item is None:
            truth.left_out.add(f"entries of `{name}` that are no objects", f"entry {number}")
        elif name == "images":
            _add_image(truth, number, item)
        elif name == "categories":
            _add_category(truth, number, item)
        elif panoptic != ("segments_info" in item):
            others += 1
            truth.left_out.add(f"annotations {'without' if panoptic else 'with'} `segments_info`", f"entry {number}")
        else:
            used = _add_annotation(truth, number, item, panoptic=panoptic)
            for category in used:
                count, first = categories.get(category, (0, number))
                categories[category] = (count + 1, first)
    if counts["annotations"] and others == counts["annotations"]:
        raise InputError(other_form)
    _find_sizes(truth, panoptic=panoptic)
    _count_others(truth, categories)
    if counts["images"] and not truth.sizes:
        raise InputError(malformed.format(fault="no entry of `images` has a usable `id`, `height` and `width`"))
    if counts["annotations"] and not truth.packed:
        said = "; ".join(truth.left_out.lines())
        raise InputError(malformed.format(fault=f"no entry of `annotations` can be used: {said}"))
    return truth


def _add_image(truth: CocoTruth, number: int, image: Mapping[str, Any]) -> None:
    key, size_px, file = coco_id(image.get("id")), coco_size_px(image), image.get("file_name")
    if key is None:
        truth.left_out.add("entries of `images` without a usable `id`", f"entry {number}")
        return
    if key in truth.sizes or key in truth.unsized:
        if (size_px, file) != (truth.sizes.get(key), truth.files.get(key)):
            truth.left_out.add("entries of `images` with the `id` of another one", f"entry {number}, id {key}")
        return
    if size_px is None:
        truth.unsized.add(key)
    else:
        truth.sizes[key] = size_px
    if isinstance(file, str):
        truth.files[key] = file


def _add_category(truth: CocoTruth, number: int, category: Mapping[str, Any]) -> None:
    key, name = coco_id(category.get("id")), category.get("name")
    if is_unreadable(name):
        name = None
    if isinstance(name, int | float) and not isinstance(name, bool):
        name = str(name)
    if key is None or not isinstance(name, str) or not name.strip():
        truth.left_out.add("entries of `categories` without a usable `id` and `name`", f"entry {number}")
    elif truth.names.setdefault(key, name) != name:
        truth.left_out.add("entries of `categories` with the `id` of another one", f"entry {number}, id {key}")


def _add_annotation(
    truth: CocoTruth, number: int, annotation: Mapping[str, Any], *, panoptic: bool
) -> Sequence[str | None]:
    """Keep an annotation; returns the ids of its categories."""
    image_id = coco_id(annotation.get("image_id"))
    if image_id is None:
        truth.left_out.add("annotations without a usable `image_id`", f"entry {number}")
        return ()
    value: list[Any]
    if panoptic:
        listed = annotation["segments_info"]
        found = [one if isinstance(one, dict) else {} for one in (listed if isinstance(listed, list) else ())]
        segments = [
            (coco_number(one.get("id")), coco_id(one.get("category_id")), coco_flag(one.get("iscrowd")))
            for one in found
        ]
        categories = [category for _, category, _ in segments]
        value = [number, annotation.get("file_name"), segments]
    else:
        categories = [coco_id(annotation.get("category_id"))]
        crowd = coco_flag(annotation.get("iscrowd"))
        value = [number, categories[0], crowd, annotation.get("segmentation")]
    truth.packed.setdefault(image_id, []).append(pack(value))
    return categories


def _find_sizes(truth: CocoTruth, *, panoptic: bool) -> None:
    """Give annotations the ids of their images as `images` writes them, and images the size of their run lengths."""
    listed = truth.sizes.keys() | truth.unsized
    for image_id in [image_id for image_id in truth.packed if image_id not in listed]:
        key, entries = known_id(image_id, listed), truth.packed.pop(image_id)
        if key is not None and key in listed:
            truth.packed.setdefault(key, []).extend(entries)
            continue
        first = f"entry {unpack(entries[0])[0]}, image {image_id}"
        truth.left_out.add("annotations of images that `images` does not have", first, count=len(entries))
    for image_id in [] if panoptic else sorted(truth.unsized & truth.packed.keys()):
        segmentations = [entry.segmentation for entry in truth.instances(image_id)]
        sizes = {size_px_of(one.get("size")) for one in segmentations if isinstance(one, dict)} - {None}
        if len(sizes) == 1:
            truth.sizes[image_id] = sizes.pop()  # type: ignore[assignment]  # not None, which is taken out
            truth.unsized.remove(image_id)


def _count_others(truth: CocoTruth, categories: Mapping[str | None, tuple[int, int]]) -> None:
    """Count the annotations of categories that are not listed: their masks have no name."""
    for category, (count, first) in categories.items():
        key = known_id(category, truth.names)
        if key is None or key not in truth.names:
            truth.left_out.add(
                "names of masks whose category `categories` does not have", f"entry {first}", count=count
            )
