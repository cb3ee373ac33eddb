"""The truth about pictures: which objects are there, where exactly, and which nouns name them.

It comes from a COCO instances JSON, as a data set brings it or as the demo world writes it.
"""

from __future__ import annotations

import functools
import hashlib
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mining.coco import FaultLines, coco_id, coco_items, coco_size_px, open_coco, pack, unpack
from mining.labels import label_names, names_label, plain_words
from schemas.errors import InputError
from schemas.mask import Mask
from schemas.rows import RegionsRow

Naming = Callable[[str, str], frozenset[str]]
Fit = Literal["covered", "missing", "other_size"]

_REMEDY = "give a COCO instances JSON"
_LINES = FaultLines(
    absent=f"{{path}}: no such file; {_REMEDY}",
    folder=f"{{path}}: is a folder; {_REMEDY}",
    broken=f"{{path}}: not valid JSON ({{reason}}); {_REMEDY}",
    lacking=f"{{path}}: no list `{{name}}` at the top, or an empty one; {_REMEDY}",
    unreadable="{path}: cannot be read ({reason})",
)


@dataclass(frozen=True, slots=True)
class TruthObject:
    """An object in a picture. A `crowd` is a group that was drawn as one, its members not one by one."""

    category: str
    mask: Mask
    crowd: bool


@dataclass(frozen=True, slots=True)
class Truth:
    """What a truth file says. `sizes` are `(height_px, width_px)` by image id; masks wait as compressed JSON.

    `files` are the names of the images' files by image id, as far as the truth tells them.
    """

    name: str
    sha256: str
    categories: tuple[str, ...]
    sizes: Mapping[str, tuple[int, int]]
    files: Mapping[str, str]
    packed: Mapping[str, Sequence[bytes]]

    def fit(self, regions: RegionsRow) -> Fit:
        """Whether the truth knows an image, in the size in which its regions were found."""
        if regions.image_id not in self.sizes:
            return "missing"
        found_px = (regions.height_px, regions.width_px)
        return "other_size" if regions.regions and found_px != self.sizes[regions.image_id] else "covered"

    def objects(self, image_id: str) -> list[TruthObject]:
        """The objects of an image, without those whose masks have no pixel or cannot be read."""
        height_px, width_px = self.sizes[image_id]
        found = []
        for packed in self.packed.get(image_id, ()):
            category, crowd, segmentation = unpack(packed)
            try:
                mask = Mask.from_coco(segmentation, height_px=height_px, width_px=width_px)
            except ValueError:
                continue
            if mask.area_px:
                found.append(TruthObject(category, mask, crowd))
        return found

    def unreadable(self, image_id: str, objects: Sequence[TruthObject]) -> int:
        """How many annotations of an image did not come out as `objects`."""
        return len(self.packed.get(image_id, ())) - len(objects)


def read_truth(path: str) -> Truth:
    """Read a COCO instances JSON as a stream; memory holds its masks compressed.

    Raises InputError when the file is absent, no JSON, or not of that form.
    """
    names = _read_names(path)
    with open_coco(path, lines=_LINES) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    categories = tuple(sorted(set(names.values())))
    return Truth(posixpath.basename(path), sha256, categories, *_read_images(path), _read_masks(path, names))


def open_naming(categories: Sequence[str], synonyms: Mapping[str, frozenset[str]]) -> Naming:
    """A function from a noun's text and lemma to the categories that it names; none for a noun the truth cannot judge.

    A noun that is the name of a category, by its text or else by its lemma, names that one alone: where there is a
    category "hot dog", hot dogs are no dogs, and where there is an "ox", oxen are no cows. Others name what
    `names_label` says by the table of synonyms.
    """
    # To the table the names of categories are known nouns, of which the last word does not speak for the whole.
    known = {name: frozenset[str]() for category in categories for name in label_names(category)} | dict(synonyms)

    @functools.lru_cache(maxsize=1 << 16)
    def named(text: str, lemma: str) -> frozenset[str]:
        for form in (plain_words(text), plain_words(lemma)):
            if own := frozenset(category for category in categories if form in label_names(category)):
                return own
        return frozenset(category for category in categories if names_label(text, lemma, category, known))

    return named


def _read_names(path: str) -> dict[int | str, str]:
    names = {}
    for number, category in enumerate(_items(path, "categories")):
        key, name = coco_id(category, "id"), category.get("name")
        if key is None or not isinstance(name, str) or not name:
            raise InputError(f"{path}: entry {number} of `categories` has no usable `id` and `name`; {_REMEDY}")
        names[key] = name
    return names


def _read_images(path: str) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Sizes and names of files."""
    sizes, files = {}, {}
    for number, image in enumerate(_items(path, "images")):
        key, size_px = coco_id(image, "id"), coco_size_px(image)
        if key is None or size_px is None:
            raise InputError(f"{path}: entry {number} of `images` has no usable `id`, `height` and `width`; {_REMEDY}")
        sizes[str(key)] = size_px
        if isinstance(image.get("file_name"), str):
            files[str(key)] = image["file_name"]
    return sizes, files


def _read_masks(path: str, names: Mapping[int | str, str]) -> dict[str, list[bytes]]:
    packed: dict[str, list[bytes]] = {}
    for number, annotation in enumerate(_items(path, "annotations")):
        if "segments_info" in annotation:
            raise InputError(f"{path}: is panoptic; give the instances JSON of the same images")
        image, category = coco_id(annotation, "image_id"), coco_id(annotation, "category_id")
        if image is None or category is None or category not in names or "segmentation" not in annotation:
            raise InputError(
                f"{path}: entry {number} of `annotations` lacks an `image_id`, a `category_id` that `categories` has, "
                f"or a `segmentation`; {_REMEDY}"
            )
        value = [names[category], bool(annotation.get("iscrowd")), annotation["segmentation"]]
        packed.setdefault(str(image), []).append(pack(value))
    return packed


def _items(path: str, name: str) -> Iterator[dict[str, Any]]:
    return coco_items(path, name, lines=_LINES, need="items")
