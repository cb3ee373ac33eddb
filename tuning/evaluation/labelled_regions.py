"""Regions with a known class, on which CLIP is evaluated.

They come from COCO instances, from label maps, or from folders of cropped regions, one for each class.

Shapes: N regions of an image; H, W its height and width in pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from maskmine.mining.evaluation.annotations import Annotations, read_annotations
from maskmine.mining.images.child_decoder import Decoding
from maskmine.mining.images.orientation import turn_upright_array
from maskmine.mining.images.read import read_bytes
from maskmine.mining.sources.named_files import named_file
from maskmine.mining.storage.names import PICTURE_SUFFIXES, composed, is_leftover, is_picture, utf8_name
from maskmine.mining.text.labels import read_class_names
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import Rejection
from maskmine.schemas.settings import AnyPath, Settings
from maskmine.tuning.benchmarks.label_maps import void_number

if TYPE_CHECKING:
    from torch import Tensor

KEY_RGB = (124, 116, 103)
"""The background colour of the regions that OVSeg's tools write."""

_MAX_PIXELS = 100_000_000  # a limit on memory, beyond any image of the known sets
_MAPS = ("png", "tif", "tiff")
_DECODING = Decoding()

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
ByteArray = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An upright image, uint8 RGB [3, H, W], the masks of its regions, boolean [N, H, W], and the class of each."""

    name: str
    rgb_3HW: Tensor
    masks_NHW: Tensor
    classes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LabelledRegions:
    """The classes by number, and a stream of images; `left_out` counts the rejected ones by reason while it is read.

    `has_background`: whether the surroundings of the regions are in the image.
    """

    classes: tuple[str, ...]
    images: Iterator[LabelledImage]
    left_out: Counter[str]
    has_background: bool = True


class Instances(Settings):
    """COCO instances and the folder of their images; group annotations (`iscrowd`) are left out."""

    kind: Literal["instances"]
    """An instances JSON in COCO's format; its categories are the classes."""
    annotations: AnyPath
    """The instances JSON."""
    images: AnyPath
    """Folder of the images."""

    def open(self) -> LabelledRegions:
        """Read the annotations; images follow. Raises InputError for a file that is absent or of another form."""
        truth = read_annotations(self.annotations)
        if not truth.files:
            raise InputError(f"{self.annotations}: no entry of `images` has a `file_name`; add it")
        _require_folder(self.images, "regions.images")
        left_out: Counter[str] = Counter(truth.truth.left_out.counts)
        return LabelledRegions(truth.categories, _instances(truth, Path(self.images), left_out), left_out)


class Crops(Settings):
    """Images that are regions already: a folder for each class, as torchvision's ImageFolder has it."""

    kind: Literal["crops"]
    """A folder of crops for each class."""
    folder: AnyPath
    """The folder of the classes' folders."""
    names: AnyPath | None = None
    """Text file of class names, a line for each folder in alphabetical order; null uses the folders' names with `_` as
    a blank."""
    key_rgb: tuple[Annotated[int, Field(ge=0, le=255)], ...] | None = Field(default=KEY_RGB, min_length=3, max_length=3)
    """Colour that marks the background, beside pixels whose alpha is 0; null makes every pixel foreground."""

    def open(self) -> LabelledRegions:
        """List the folders; images follow. Raises InputError where folder or names are not as described."""
        root = _require_folder(self.folder, "regions.folder")
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not is_leftover(path.name))
        if not folders:
            raise InputError(f"{root}: has no folders; put the regions of each class into a folder of its own")
        names = (
            read_class_names(self.names, setting="regions.names")
            if self.names
            else tuple(path.name.replace("_", " ") for path in folders)
        )
        if len(names) != len(folders):
            raise InputError(f"{self.names}: {len(names)} names for the {len(folders)} folders of {root}")
        left_out: Counter[str] = Counter()
        return LabelledRegions(names, _crops(folders, self.key_rgb, left_out), left_out, has_background=False)


class Semantic(Settings):
    """Images and label maps of the same names: each class in an image is a region."""

    kind: Literal["semantic"]
    """Label maps, PNG or TIFF of 8 or 16 bits."""
    images: AnyPath
    """Folder of the images."""
    maps: AnyPath
    """Folder of the label maps."""
    names: AnyPath
    """Text file of class names, one a line."""
    first: Annotated[int, Field(ge=0)] = 0
    """Label of the first class in `names`."""
    ignore: Annotated[int, Field(ge=0)] | None = None
    """Label that belongs to no class, as labels beyond `names` do; null is 255, or 65535 where a class has that."""

    def open(self) -> LabelledRegions:
        """List the maps; images follow. Raises InputError where folders or names are not as described."""
        images = _by_stem(_require_folder(self.images, "regions.images"), PICTURE_SUFFIXES)
        maps = _by_stem(_require_folder(self.maps, "regions.maps"), _MAPS)
        both = sorted(images.keys() & maps.keys())
        if not both:
            raise InputError(f"{self.maps}: none of its {len(maps):,} maps has the name of a picture in {self.images}")
        names = read_class_names(self.names, setting="regions.names")
        ignore = void_number(self.ignore, classes=len(names), first=self.first, setting="regions.ignore")
        left_out = Counter({"no picture": len(maps) - len(both)})
        pairs = [(images[stem], maps[stem]) for stem in both]
        return LabelledRegions(names, _semantic(pairs, self.first, ignore, len(names), left_out), left_out)


Source = Annotated[Instances | Crops | Semantic, Field(discriminator="kind")]


def _instances(truth: Annotations, images: Path, left_out: Counter[str]) -> Iterator[LabelledImage]:
    numbers = {name: number for number, name in enumerate(truth.categories)}
    for image_id in sorted(truth.truth.packed):
        if image_id not in truth.sizes:
            left_out["no size"] += 1
            continue
        every = truth.objects(image_id)
        objects = [one for one in every if not one.crowd]
        if unreadable := truth.unreadable(image_id, every):
            left_out["masks that cannot be read"] += unreadable
        if not objects:
            continue
        if image_id not in truth.files:
            left_out["no `file_name`"] += 1
            continue
        path = named_file(str(images), truth.files[image_id], setting="regions.images")
        image = path if isinstance(path, Rejection) else _DECODING.read(path, max_pixels=_MAX_PIXELS)
        if isinstance(image, Rejection):
            left_out[image.reason] += 1
        elif image.rgb_HW3.shape[:2] != truth.sizes[image_id]:
            left_out["another size than its masks"] += 1
        else:
            masks_NHW = np.stack([one.mask.to_array() for one in objects])
            yield _labelled(image_id, image.rgb_HW3, masks_NHW, [numbers[one.category] for one in objects])


def _crops(folders: Sequence[Path], key_rgb: tuple[int, ...] | None, left_out: Counter[str]) -> Iterator[LabelledImage]:
    paths = ((number, folder, path) for number, folder in enumerate(folders) for path in sorted(folder.rglob("*")))
    for number, folder, path in paths:
        name = path.relative_to(folder).as_posix()
        if not is_picture(name) or is_leftover(name):
            continue
        data = read_bytes(str(path))
        image = data if isinstance(data, Rejection) else _DECODING.decode(data, max_pixels=_MAX_PIXELS)
        if isinstance(data, Rejection) or isinstance(image, Rejection):
            assert isinstance(image, Rejection)
            left_out[image.reason] += 1
            continue
        mask_HW = _foreground(data, image.rgb_HW3, key_rgb)
        if mask_HW.any():
            yield _labelled(utf8_name(f"{folder.name}/{name}"), image.rgb_HW3, mask_HW[None], [number])
        else:
            left_out["no foreground"] += 1


def _foreground(data: bytes, rgb_HW3: ByteArray, key_rgb: tuple[int, ...] | None) -> BoolArray:
    """The mask of a cropped region."""
    stored = _DECODING.decode_stored(data, max_pixels=_MAX_PIXELS)
    if not isinstance(stored, Rejection) and stored.mode in ("RGBA", "LA", "PA"):
        alpha_HW = stored.pixels[..., -1]
        if stored.format != "TIFF":
            alpha_HW = turn_upright_array(alpha_HW, stored.orientation)
        if alpha_HW.shape == rgb_HW3.shape[:2]:
            return alpha_HW > 0
    if key_rgb is None:
        return np.ones(rgb_HW3.shape[:2], np.bool_)
    mask_HW: BoolArray = (rgb_HW3 != np.array(key_rgb, np.uint8)).any(axis=2)
    return mask_HW


def _semantic(
    paths: Sequence[tuple[Path, Path]], first: int, ignore: int, classes: int, left_out: Counter[str]
) -> Iterator[LabelledImage]:
    for path, map_path in paths:
        image, map_HW = _DECODING.read(str(path), max_pixels=_MAX_PIXELS), _read_map(map_path)
        if isinstance(image, Rejection) or isinstance(map_HW, str):
            left_out[image.reason if isinstance(image, Rejection) else str(map_HW)] += 1
            continue
        if image.rgb_HW3.shape[:2] != map_HW.shape:
            left_out["another size than its map"] += 1
            continue
        numbers = [int(value) - first for value in np.unique(map_HW) if value != ignore]
        present = [number for number in numbers if 0 <= number < classes]
        if present:
            masks_NHW = np.stack([map_HW == number + first for number in present])
            yield _labelled(path.name, image.rgb_HW3, masks_NHW, present)


def _read_map(path: Path) -> np.ndarray[Any, Any] | str:
    """A label map, integers [H, W], or the reason why not; its size is checked before it is decoded."""
    stored = _DECODING.read_stored(str(path), max_pixels=_MAX_PIXELS)
    if isinstance(stored, Rejection):
        return stored.reason
    if stored.mode not in ("L", "P", "I", "I;16", "I;16L", "I;16B"):
        return f"a map of mode {stored.mode}"
    return stored.pixels


def _labelled(name: str, rgb_HW3: ByteArray, masks_NHW: BoolArray, classes: Sequence[int]) -> LabelledImage:
    import torch

    rgb_3HW = torch.from_numpy(np.ascontiguousarray(rgb_HW3.transpose(2, 0, 1)))
    return LabelledImage(name, rgb_3HW, torch.from_numpy(masks_NHW.astype(np.bool_)), tuple(classes))


def _require_folder(path: str, setting: str) -> Path:
    if not Path(path).is_dir():
        raise InputError(f"{setting}: there is no folder `{path}`; check the path")
    return Path(path)


def _by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """The files by their stems; of several of one stem that with the first of `suffixes`, a photograph before a map."""
    files = [path for path in sorted(folder.iterdir()) if not is_leftover(path.name)]
    known = [(suffixes.index(suffix), path) for path in files if (suffix := path.suffix.lower()[1:]) in suffixes]
    return {composed(path.stem): path for _, path in sorted(known, reverse=True)}
