"""Regions of which one knows what they show: what a CLIP is examined with.

They come from COCO instances, from label maps, or from pictures that are regions already, one folder a class.

Shapes: N regions of a picture; H, W its height and width in pixels.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from mining.images import decode_image, read_bytes, read_image
from mining.truth import Truth, read_truth
from schemas.errors import InputError
from schemas.rows import Rejection
from schemas.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

KEY_RGB = (124, 116, 103)
"""The colour of the background in regions that OVSeg's tools write."""

_MOST_PIXELS = 100_000_000
_PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
_MAPS = frozenset({".png", ".tif", ".tiff"})

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
ByteArray = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, slots=True)
class LabelledPicture:
    """An upright picture, uint8 RGB [3, H, W], the masks of its regions, boolean [N, H, W], and the class of each."""

    name: str
    rgb_3HW: Tensor
    masks_NHW: Tensor
    classes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LabelledRegions:
    """The classes by number, and a stream of pictures; `left_out` counts, as it is read, what came to nothing and why.

    `has_background`: whether the pixels around regions are there.
    """

    classes: tuple[str, ...]
    pictures: Iterator[LabelledPicture]
    left_out: Counter[str]
    has_background: bool = True


class Instances(Settings):
    """COCO instances and the folder of their images; groups that were drawn as one (`iscrowd`) are left out.

    `annotations` may be any file of that form; the demo world writes one. Classes are its categories.
    """

    kind: Literal["instances"]
    annotations: str
    images: str

    def open(self) -> LabelledRegions:
        """Read the annotations; pictures follow. Raises InputError for a file that is absent or of another form."""
        truth = read_truth(self.annotations)
        if unnamed := len(truth.sizes) - len(truth.files):
            raise InputError(f"{self.annotations}: {unnamed:,} of `images` have no `file_name`; add it")
        _require_folder(self.images, "regions.images")
        left_out: Counter[str] = Counter()
        return LabelledRegions(truth.categories, _instances(truth, Path(self.images), left_out), left_out)


class Crops(Settings):
    """Pictures that are regions already: a folder for each class, as torchvision's ImageFolder has it.

    The background is where an alpha channel is 0, or where the colour is exactly `key_rgb` (null: everywhere is
    foreground). `names` is a text file of the classes' names, a line for each folder in the order of their names;
    without it a folder's name is that of its class, `_` for a blank.
    """

    kind: Literal["crops"]
    folder: str
    names: str | None = None
    key_rgb: tuple[Annotated[int, Field(ge=0, le=255)], ...] | None = Field(default=KEY_RGB, min_length=3, max_length=3)

    def open(self) -> LabelledRegions:
        """List the folders; pictures follow. Raises InputError where folder or names are not as described."""
        root = _require_folder(self.folder, "regions.folder")
        folders = sorted(path for path in root.iterdir() if path.is_dir())
        if not folders:
            raise InputError(f"{root}: has no folders; put the regions of each class into a folder of its own")
        names = read_names(self.names) if self.names else tuple(path.name.replace("_", " ") for path in folders)
        if len(names) != len(folders):
            raise InputError(f"{self.names}: {len(names)} names for the {len(folders)} folders of {root}")
        left_out: Counter[str] = Counter()
        return LabelledRegions(names, _crops(folders, self.key_rgb, left_out), left_out, has_background=False)


class Semantic(Settings):
    """Photographs and label maps of the same names (PNG or TIFF, 8 or 16 bits): each class in a picture is a region.

    `names` is a text file of the classes, a line each; the number of a class in the maps is its line, counted from
    `first`. Numbers beyond are no region, and neither is `ignore`.
    """

    kind: Literal["semantic"]
    images: str
    maps: str
    names: str
    first: Annotated[int, Field(ge=0)] = 0
    ignore: Annotated[int, Field(ge=0)] = 255

    def open(self) -> LabelledRegions:
        """List the maps; pictures follow. Raises InputError where folders or names are not as described."""
        images = _by_stem(_require_folder(self.images, "regions.images"), _PICTURES)
        maps = _by_stem(_require_folder(self.maps, "regions.maps"), _MAPS)
        both = sorted(images.keys() & maps.keys())
        if not both:
            raise InputError(f"{self.maps}: none of its {len(maps):,} maps has the name of a picture in {self.images}")
        names, left_out = read_names(self.names), Counter({"no picture": len(maps) - len(both)})
        pictures = _semantic([(images[stem], maps[stem]) for stem in both], self, len(names), left_out)
        return LabelledRegions(names, pictures, left_out)


Source = Annotated[Instances | Crops | Semantic, Field(discriminator="kind")]


def read_names(path: str) -> tuple[str, ...]:
    """The names of classes, a line each. Raises InputError for a file that is absent or has an empty line."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read; give a UTF-8 text file with a class a line") from error
    names = tuple(line.strip() for line in lines)
    if not names or not all(names):
        raise InputError(f"{path}: has an empty line, or none at all; give a class a line")
    return names


def _instances(truth: Truth, images: Path, left_out: Counter[str]) -> Iterator[LabelledPicture]:
    numbers = {name: number for number, name in enumerate(truth.categories)}
    for image_id in sorted(truth.packed):
        objects = [one for one in truth.objects(image_id) if not one.crowd] if image_id in truth.sizes else []
        if not objects:
            continue
        picture = read_image(str(images / truth.files[image_id]), max_pixels=_MOST_PIXELS)
        if isinstance(picture, Rejection):
            left_out[picture.reason] += 1
        elif picture.rgb_HW3.shape[:2] != truth.sizes[image_id]:
            left_out["another size than its masks"] += 1
        else:
            masks = np.stack([one.mask.to_array() for one in objects])
            yield _picture(image_id, picture.rgb_HW3, masks, [numbers[one.category] for one in objects])


def _crops(
    folders: Sequence[Path], key_rgb: tuple[int, ...] | None, left_out: Counter[str]
) -> Iterator[LabelledPicture]:
    for number, folder in enumerate(folders):
        for path in sorted(one for one in folder.rglob("*") if one.suffix.lower() in _PICTURES):
            data = read_bytes(str(path))
            picture = data if isinstance(data, Rejection) else decode_image(data, max_pixels=_MOST_PIXELS)
            if isinstance(data, Rejection) or isinstance(picture, Rejection):
                assert isinstance(picture, Rejection)
                left_out[picture.reason] += 1
                continue
            mask_HW = _foreground(data, picture.rgb_HW3, key_rgb)
            if not mask_HW.any():
                left_out["no foreground"] += 1
                continue
            yield _picture(f"{folder.name}/{path.name}", picture.rgb_HW3, mask_HW[None], [number])


def _foreground(data: bytes, rgb_HW3: ByteArray, key_rgb: tuple[int, ...] | None) -> BoolArray:
    """Where a region's picture shows the region."""
    with Image.open(io.BytesIO(data)) as image:
        if "A" in image.getbands():
            alpha_HW = np.asarray(image.getchannel("A")) > 0
            if alpha_HW.shape == rgb_HW3.shape[:2]:
                return alpha_HW
    if key_rgb is None:
        return np.ones(rgb_HW3.shape[:2], np.bool_)
    found: BoolArray = (rgb_HW3 != np.array(key_rgb, np.uint8)).any(axis=2)
    return found


def _semantic(
    paths: Sequence[tuple[Path, Path]], settings: Semantic, classes: int, left_out: Counter[str]
) -> Iterator[LabelledPicture]:
    for image, labels in paths:
        picture, map_HW = read_image(str(image), max_pixels=_MOST_PIXELS), _read_map(labels)
        if isinstance(picture, Rejection) or isinstance(map_HW, str):
            left_out[picture.reason if isinstance(picture, Rejection) else str(map_HW)] += 1
            continue
        if picture.rgb_HW3.shape[:2] != map_HW.shape:
            left_out["another size than its map"] += 1
            continue
        found = [int(value) - settings.first for value in np.unique(map_HW) if value != settings.ignore]
        shown = [number for number in found if 0 <= number < classes]
        if shown:
            masks = np.stack([map_HW == number + settings.first for number in shown])
            yield _picture(image.name, picture.rgb_HW3, masks, shown)


def _read_map(path: Path) -> np.ndarray[Any, Any] | str:
    """A label map, whole numbers [H, W], or the reason why not; its size is looked at before its pixels."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > _MOST_PIXELS:
                return "image_too_large"
            if image.mode not in ("L", "P", "I", "I;16", "I;16L", "I;16B"):
                return f"a map of mode {image.mode}"
            return np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "decode_error"


def _picture(name: str, rgb_HW3: ByteArray, masks_NHW: BoolArray, classes: Sequence[int]) -> LabelledPicture:
    import torch

    rgb_3HW = torch.from_numpy(np.ascontiguousarray(rgb_HW3.transpose(2, 0, 1)))
    return LabelledPicture(name, rgb_3HW, torch.from_numpy(masks_NHW.astype(np.bool_)), tuple(classes))


def _require_folder(path: str, setting: str) -> Path:
    if not Path(path).is_dir():
        raise InputError(f"{setting}: there is no folder `{path}`; check the path")
    return Path(path)


def _by_stem(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in suffixes}
