"""Images with a map of classes each, as a training sees them: cut and coloured, in an order made from the seed.

What is wrong with a file is a value that travels back from the process that read it.

Shapes: B images of a batch, S side of a crop in pixels; H, W height and width of an image.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from maskmine.mining.images.child_decoder import Decoding
from maskmine.mining.images.decode import MAX_SIDE_PX
from maskmine.mining.storage.names import is_leftover, is_picture
from maskmine.mining.text.labels import read_class_names
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import Rejection
from maskmine.schemas.settings import fingerprint
from maskmine.tuning.open_vocabulary.settings import Maps, MapView
from maskmine.tuning.segmentation.confusion import IGNORE
from maskmine.tuning.training.order import Stream

_GREY = 128  # of padding: nearly the mean of the normalisation
_TRIES = 10  # to find a crop in which no class is too large, as in MaskFormer


@dataclass(frozen=True, slots=True)
class AnnotatedImages:
    """Images and their maps by name, and the classes; the fingerprint is that of names and classes."""

    images: tuple[Path, ...]
    maps: tuple[Path, ...]
    classes: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """A hash of the images' names and of the classes; not of the pixels, which would take hours."""
        return fingerprint([[path.name for path in self.images], self.classes])


@dataclass(frozen=True, slots=True)
class MapBatch:
    """The crops of batch `step`: uint8 [B, 3, S, S], and the class of each pixel, int32 [B, S, S] or IGNORE."""

    step: int
    pixels_B3SS: Tensor
    labels_BSS: Tensor


def open_maps(maps: Maps) -> AnnotatedImages:
    """Find the images and their maps. Raises InputError for what is missing, naming the first of it."""
    classes = _read_names(maps)
    found = _folder(maps.images, "images").iterdir()
    images = sorted(path for path in found if is_picture(path.name) and not is_leftover(path.name))
    if not images:
        raise InputError(f"maps.images: `{maps.images}` holds no picture; name the folder with the images")
    folder = _folder(maps.maps, "maps")
    known = {path.name for path in folder.iterdir()}
    if missing := [path for path in images if f"{path.stem}.png" not in known]:
        raise InputError(
            f"maps.maps: `{folder}` lacks the maps of {len(missing):,} of {len(images):,} images, such as "
            f"{missing[0].stem}.png; check the folder"
        )
    annotations = tuple(folder / f"{path.stem}.png" for path in images)
    if isinstance(first := _read(images[0], annotations[0], classes=len(classes)), str):
        raise InputError(first)
    return AnnotatedImages(tuple(images), annotations, classes)


@dataclass(frozen=True)
class MapBatches(Dataset["MapBatch | str"]):
    """Batches by number: the rows of one process, or one line about a file that cannot be used."""

    dataset: AnnotatedImages
    view: MapView
    batch_size: int
    seed: int
    rank: int = 0
    processes: int = 1

    def __getitem__(self, step: int) -> MapBatch | str:
        crops = []
        for ref in self._stream.batch(step)[self.rank :: self.processes]:
            paths = self.dataset.images[ref.row], self.dataset.maps[ref.row]
            read = _read(*paths, classes=len(self.dataset.classes))
            if isinstance(read, str):
                return read
            crops.append(show(*read, view=self.view, seed=(self.seed, ref.epoch, ref.row)))
        pixels, labels = zip(*crops, strict=True)
        return MapBatch(step, torch.stack(pixels), torch.stack(labels))

    @cached_property
    def _stream(self) -> Stream:
        rows = np.arange(len(self.dataset.images))
        return Stream(0, np.zeros_like(rows), rows, rows, self.batch_size, self.seed, None)


def show(rgb_HW3: np.ndarray[Any, Any], labels_HW: np.ndarray[Any, Any], *, view: MapView, seed: Sequence[int]) -> Any:
    """A crop, uint8 [3, S, S], and its classes, int32 [S, S]; both follow from the seed."""
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional as change

    chance = random.Random(repr(list(seed)))
    image = tv_tensors.Image(torch.from_numpy(rgb_HW3).permute(2, 0, 1))
    labels = torch.from_numpy(labels_HW.astype(np.int32))
    low, high = (round(10 * share) for share in view.scale)
    short_px = max(1, round(chance.randint(low, high) / 10 * view.crop_px))
    size_px = _resized(labels_HW.shape, short_px=short_px, long_px=view.long_side_px)
    image = change.resize(image, list(size_px), antialias=True)
    labels = labels[_nearest(labels.shape[0], size_px[0])][:, _nearest(labels.shape[1], size_px[1])]
    image, labels = _crop(image, labels, view=view, chance=chance)
    if view.jitter:
        image = _jittered(image, chance)
    if view.mirror and chance.random() < 0.5:
        image, labels = image.flip(-1), labels.flip(-1)
    return torch.as_tensor(image).contiguous(), labels.contiguous()


def _read(image: Path, mapped: Path, *, classes: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | str:
    """The upright image and its classes, or one line about what is wrong with them."""
    decoding = Decoding()
    picture = decoding.read(str(image), max_pixels=MAX_SIDE_PX**2)
    if isinstance(picture, Rejection):
        return f"maps: {image.name} or its map cannot be decoded ({picture.detail}); copy both again"
    rgb_HW3 = picture.rgb_HW3
    stored = decoding.read_stored(str(mapped), max_pixels=MAX_SIDE_PX**2)
    if isinstance(stored, Rejection):
        return f"maps: {image.name} or its map cannot be decoded ({stored.detail}); copy both again"
    mode, numbers_HW = stored.mode, stored.pixels
    if mode not in ("L", "P", "I;16", "I"):
        return f"maps: {mapped} has mode {mode}; a map is a PNG of one channel with 8 or 16 bits"
    if numbers_HW.shape != rgb_HW3.shape[:2]:
        return f"maps: {mapped} is {numbers_HW.shape}, its image {rgb_HW3.shape[:2]} (height, width); pair them again"
    nothing = 255 if mode in ("L", "P") else 65_535
    labels_HW = np.where(numbers_HW == nothing, IGNORE, numbers_HW.astype(np.int32))
    if labels_HW.size and labels_HW.max() >= classes:
        return (
            f"maps: {mapped} has class {labels_HW.max()}, and `names` has {classes} (0 to {classes - 1}; {nothing} is "
            "no class); convert the maps, or name the other classes"
        )
    return rgb_HW3, labels_HW


def _read_names(maps: Maps) -> tuple[str, ...]:
    names = read_class_names(maps.names, setting="maps.names")
    if len(set(names)) < len(names):
        raise InputError(f"maps.names: `{maps.names}` has {len(set(names))} different names in {len(names)} lines")
    if maps.classes is not None and len(names) != maps.classes:
        raise InputError(f"maps.names: `{maps.names}` has {len(names)} names, not the {maps.classes} of maps.classes")
    return names


def _folder(path: str, name: str) -> Path:
    if not Path(path).is_dir():
        raise InputError(f"maps.{name}: there is no folder `{path}`; check the path")
    return Path(path)


def _resized(size_px: Sequence[int], *, short_px: int, long_px: int) -> tuple[int, int]:
    scale = min(short_px / min(size_px), long_px / max(size_px))
    height_px, width_px = (max(1, round(side_px * scale)) for side_px in size_px)
    return height_px, width_px


def _nearest(old_px: int, new_px: int) -> Tensor:
    """For every new row (or column) the old one in which its middle lies."""
    return (((torch.arange(new_px) + 0.5) * old_px / new_px).long()).clamp(max=old_px - 1)


def _crop(image: Tensor, labels: Tensor, *, view: MapView, chance: random.Random) -> tuple[Tensor, Tensor]:
    """A square part at a random position, padded where the image ends."""
    side_px = view.crop_px
    height_px, width_px = labels.shape
    for _ in range(_TRIES):
        top, left = (chance.randint(0, max(0, full_px - side_px)) for full_px in (height_px, width_px))
        part = labels[top : top + side_px, left : left + side_px]
        if view.max_class_share >= 1 or _largest_share(part) <= view.max_class_share:
            break
    shown = torch.full((3, side_px, side_px), _GREY, dtype=torch.uint8)
    known = torch.full((side_px, side_px), IGNORE, dtype=torch.int32)
    shown[:, : part.shape[0], : part.shape[1]] = image[:, top : top + side_px, left : left + side_px]
    known[: part.shape[0], : part.shape[1]] = part
    return shown, known


def _largest_share(labels: Tensor) -> float:
    known = labels[labels != IGNORE]
    if not len(known):
        return 1.0
    return int(torch.unique(known, return_counts=True)[1].max()) / len(known)


def _jittered(image: Tensor, chance: random.Random) -> Tensor:
    """The colours of SSD's augmentation: each change half of the time, contrast before or after the others."""
    late = chance.random() < 0.5
    draws = [(chance.random() < 0.5, 2 * chance.random() - 1) for _ in range(4)]  # whether, and −1 … 1 of the way
    (brighter, brightness), (harder, contrast), (richer, saturation), (turned, hue) = draws
    if brighter:
        image = brightened(image, _BRIGHTNESS * brightness)
    if harder and not late:
        image = contrasted(image, 1 + _CONTRAST * contrast)
    if richer:
        image = saturated(image, 1 + _SATURATION * saturation)
    if turned:
        image = hue_turned(image, _HUE_DEGREES * hue)
    if harder and late:
        image = contrasted(image, 1 + _CONTRAST * contrast)
    return image


# SSD's augmentation as MaskFormer trains with it (Liu et al., "SSD", ECCV 2016): brightness ±32 of 255, contrast and
# saturation 0.5 to 1.5, hue ±18 in OpenCV's units of 2 degrees.
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE_DEGREES = 32.0, 0.5, 0.5, 36.0


def brightened(image_3HW: Tensor, levels: float) -> Tensor:
    """A uint8 RGB image [3, H, W] with `levels` (of 255) added to every value."""
    return (image_3HW.float() + levels).round().clamp(0, 255).byte()


def contrasted(image_3HW: Tensor, factor: float) -> Tensor:
    """The image with every value multiplied."""
    return (image_3HW.float() * factor).round().clamp(0, 255).byte()


def saturated(image_3HW: Tensor, factor: float) -> Tensor:
    """The image with S of HSV multiplied, to 1 at most; H and V stay."""
    value_HW, least_HW = image_3HW.float().amax(0), image_3HW.float().amin(0)
    most_HW = value_HW / (value_HW - least_HW).clamp(min=1e-6)  # the factor at which S is 1
    return (value_HW - (value_HW - image_3HW.float()) * most_HW.clamp(max=factor)).round().clamp(0, 255).byte()


def hue_turned(image_3HW: Tensor, degrees: float) -> Tensor:
    """The image with H of HSV turned; S and V stay."""
    from torchvision.transforms.v2 import functional as change

    return torch.as_tensor(change.adjust_hue(image_3HW, degrees / 360))
