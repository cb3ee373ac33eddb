"""Pictures with a map of classes each, as a training sees them: cut and coloured, in an order made from the seed.

What is wrong with a file is a value that travels back from the process that read it.

Shapes: B pictures of a batch, S side of a crop in pixels; H, W height and width of a picture.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mining.segmentation_scores import NOTHING
from schemas.errors import InputError
from schemas.settings import fingerprint
from tuning.data import usable_workers
from tuning.order import Stream
from tuning.proposal_settings import Maps, MapView

_ENDINGS = {".jpg", ".jpeg", ".png"}
_GREY = 128
_TRIES = 10


@dataclass(frozen=True, slots=True)
class MappedPictures:
    """Pictures and their maps by name, and the classes; the fingerprint is that of names and classes."""

    images: tuple[Path, ...]
    maps: tuple[Path, ...]
    classes: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """A hash of the pictures' names and of the classes; not of the pixels, which would take hours."""
        return fingerprint([[path.name for path in self.images], self.classes])


@dataclass(frozen=True, slots=True)
class MapBatch:
    """The crops of batch `step`: uint8 [B, 3, S, S], and the class of each pixel, int32 [B, S, S] or NOTHING."""

    step: int
    pixels_B3SS: Tensor
    labels_BSS: Tensor


def open_maps(maps: Maps) -> MappedPictures:
    """Find the pictures and their maps. Raises InputError for what is missing, naming the first of it."""
    classes = _read_names(maps)
    images = sorted(path for path in _folder(maps.images, "images").iterdir() if path.suffix.lower() in _ENDINGS)
    if not images:
        raise InputError(f"maps.images: `{maps.images}` holds no JPEG or PNG; name the folder with the pictures")
    folder = _folder(maps.maps, "maps")
    known = {path.name for path in folder.iterdir()}
    if missing := [path for path in images if f"{path.stem}.png" not in known]:
        raise InputError(
            f"maps.maps: `{folder}` lacks the maps of {len(missing):,} of {len(images):,} pictures, such as "
            f"{missing[0].stem}.png; check the folder"
        )
    found = tuple(folder / f"{path.stem}.png" for path in images)
    if isinstance(first := _read(images[0], found[0], classes=len(classes)), str):
        raise InputError(first)
    return MappedPictures(tuple(images), found, classes)


def read_map_batches(
    pictures: MappedPictures,
    *,
    view: MapView,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    workers: int,
    rank: int = 0,
    processes: int = 1,
) -> Iterator[MapBatch]:
    """Batches `start` … `stop` − 1 in order: the rows of one process, read ahead by workers.

    Raises InputError for a file that cannot be used.
    """
    number = np.arange(len(pictures.images))
    stream = Stream(0, np.zeros_like(number), number, number, batch_size, seed, None)
    batches = _Batches(pictures, view, stream, seed, rank, processes)
    loader: DataLoader[MapBatch | str] = DataLoader(
        batches,
        batch_size=None,
        sampler=range(start, stop),
        num_workers=usable_workers(workers, batches=stop - start),
    )
    for batch in loader:
        if isinstance(batch, str):
            raise InputError(batch)
        yield batch


def show(rgb_HW3: np.ndarray[Any, Any], labels_HW: np.ndarray[Any, Any], *, view: MapView, seed: Sequence[int]) -> Any:
    """A crop, uint8 [3, S, S], and its classes, int32 [S, S]; both follow from the seed."""
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional as change

    chance = random.Random(repr(list(seed)))
    picture = tv_tensors.Image(torch.from_numpy(rgb_HW3).permute(2, 0, 1))
    labels = torch.from_numpy(labels_HW.astype(np.int32))
    low, high = (round(10 * share) for share in view.scale)
    short_px = max(1, round(chance.randint(low, high) / 10 * view.crop_px))
    size_px = _resized(labels_HW.shape, short_px=short_px, long_px=view.long_side_px)
    picture = change.resize(picture, list(size_px), antialias=True)
    labels = labels[_nearest(labels.shape[0], size_px[0])][:, _nearest(labels.shape[1], size_px[1])]
    picture, labels = _crop(picture, labels, view=view, chance=chance)
    if view.jitter:
        picture = _jittered(picture, chance)
    if view.mirror and chance.random() < 0.5:
        picture, labels = picture.flip(-1), labels.flip(-1)
    return torch.as_tensor(picture).contiguous(), labels.contiguous()


@dataclass(frozen=True)
class _Batches(Dataset["MapBatch | str"]):
    """Batches by their number."""

    pictures: MappedPictures
    view: MapView
    stream: Stream
    seed: int
    rank: int
    processes: int

    def __getitem__(self, step: int) -> MapBatch | str:
        crops = []
        for place in self.stream.batch(step)[self.rank :: self.processes]:
            paths = self.pictures.images[place.row], self.pictures.maps[place.row]
            read = _read(*paths, classes=len(self.pictures.classes))
            if isinstance(read, str):
                return read
            crops.append(show(*read, view=self.view, seed=(self.seed, place.epoch, place.row)))
        pixels, labels = zip(*crops, strict=True)
        return MapBatch(step, torch.stack(pixels), torch.stack(labels))


def _read(image: Path, mapped: Path, *, classes: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | str:
    """The upright picture and its classes, or one line about what is wrong with them."""
    try:
        with Image.open(image) as opened:
            rgb_HW3 = np.array(ImageOps.exif_transpose(opened).convert("RGB"))
        with Image.open(mapped) as opened:
            mode, numbers_HW = opened.mode, np.array(opened)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        return f"maps: {image.name} or its map cannot be decoded ({type(error).__name__}); copy both again"
    if mode not in ("L", "P", "I;16", "I"):
        return f"maps: {mapped} has mode {mode}; a map is a PNG of one channel with 8 or 16 bits"
    if numbers_HW.shape != rgb_HW3.shape[:2]:
        return f"maps: {mapped} is {numbers_HW.shape}, its picture {rgb_HW3.shape[:2]} (height, width); pair them again"
    nothing = 255 if mode in ("L", "P") else 65_535
    labels_HW = np.where(numbers_HW == nothing, NOTHING, numbers_HW.astype(np.int32))
    if labels_HW.size and labels_HW.max() >= classes:
        return (
            f"maps: {mapped} has class {labels_HW.max()}, and `names` has {classes} (0 to {classes - 1}; {nothing} is "
            "no class); convert the maps, or name the other classes"
        )
    return rgb_HW3, labels_HW


def _read_names(maps: Maps) -> tuple[str, ...]:
    try:
        lines = Path(maps.names).read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(
            f"maps.names: `{maps.names}` cannot be read ({type(error).__name__}); one name a line"
        ) from error
    names = tuple(line.strip() for line in lines if line.strip())
    if len(set(names)) < len(names) or not names:
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


def _crop(picture: Tensor, labels: Tensor, *, view: MapView, chance: random.Random) -> tuple[Tensor, Tensor]:
    """A square part at a random place, filled up where the picture ends."""
    side_px = view.crop_px
    height_px, width_px = labels.shape
    for _ in range(_TRIES):
        top, left = (chance.randint(0, max(0, full_px - side_px)) for full_px in (height_px, width_px))
        part = labels[top : top + side_px, left : left + side_px]
        if view.max_class_share >= 1 or _largest_share(part) <= view.max_class_share:
            break
    shown = torch.full((3, side_px, side_px), _GREY, dtype=torch.uint8)
    known = torch.full((side_px, side_px), NOTHING, dtype=torch.int32)
    shown[:, : part.shape[0], : part.shape[1]] = picture[:, top : top + side_px, left : left + side_px]
    known[: part.shape[0], : part.shape[1]] = part
    return shown, known


def _largest_share(labels: Tensor) -> float:
    known = labels[labels != NOTHING]
    if not len(known):
        return 1.0
    return int(torch.unique(known, return_counts=True)[1].max()) / len(known)


def _jittered(picture: Tensor, chance: random.Random) -> Tensor:
    """The colours of SSD's augmentation: each change half of the time, contrast before or after the others."""
    from torchvision.transforms.v2 import functional as change

    late = chance.random() < 0.5
    draws = [(chance.random() < 0.5, chance.random()) for _ in range(4)]
    (brighter, brightness), (harder, contrast), (richer, saturation), (turned, hue) = draws
    if brighter:
        picture = change.adjust_brightness(picture, 0.875 + 0.25 * brightness)
    if harder and not late:
        picture = change.adjust_contrast(picture, 0.5 + contrast)
    if richer:
        picture = change.adjust_saturation(picture, 0.5 + saturation)
    if turned:
        picture = change.adjust_hue(picture, -0.05 + 0.1 * hue)
    if harder and late:
        picture = change.adjust_contrast(picture, 0.5 + contrast)
    return picture
