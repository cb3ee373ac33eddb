"""`maskmine segment`: pictures to label maps, overlays and figures, one set of files a picture."""

from __future__ import annotations

import io
import json
import os
import posixpath
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from mining.images import Picture
from mining.regions import plan_batches, read_ahead
from mining.segmentation_scores import NOTHING
from mining.stores import plain_path, scheme_of
from pipelines.inputs import portable
from pipelines.pictures import OURS, picture_id
from pipelines.run_folder import RunFolder
from schemas.errors import InputError
from schemas.rows import Rejection
from tuning.segmentation_overlay import add_legend, class_shares, draw_map
from tuning.segmenter import Labels, Segment, Segmentation, Segmenter, check_classes

_ENDINGS = (*OURS, ".json")
_SAID = 6
_NOTHING_8, _NOTHING_16 = 255, 65_535


@dataclass(frozen=True, slots=True)
class Segmented:
    """A picture whose files are written: label map, overlay, JSON; `figures` is the content of the last."""

    picture: str
    figures: dict[str, Any]
    files: tuple[str, ...]

    @property
    def line(self) -> str:
        """What the largest classes take of the picture, and where to look at it."""
        shares = [(one["name"], one["share"]) for one in self.figures["classes"] if one["pixels"]]
        largest = sorted(shares, key=lambda one: -one[1])
        said = [f"{name} {share:.1%}" for name, share in largest[:_SAID]]
        said += [f"{len(largest) - _SAID} more"] * (len(largest) > _SAID)
        said += [f"no class {self.figures['no_class']['share']:.1%}"] * bool(self.figures["no_class"]["pixels"])
        return f"{self.picture}: {', '.join(said)} → {self.files[1]}"


@dataclass(frozen=True, slots=True)
class Failed:
    """A picture that came to nothing."""

    picture: str
    rejection: Rejection


def segment_pictures(
    settings: Segmenter, pictures: Sequence[str], *, classes: Sequence[str], to: str
) -> Iterator[Segmented | Failed]:
    """Write the files of each picture below `to`, which may lie on an object store; the answers come as it goes on.

    Pictures of one size go through the models together, so the order is that of their sizes. Raises InputError for
    faults of the settings, the classes or the folder, before any picture is read where that is possible.
    """
    check_classes(classes)
    folder = claim_folder(to)
    segment = settings.open()
    made_with = describe(settings)
    names = dict(zip(pictures, output_names(pictures), strict=True))
    for path, picture, outcome in _outcomes(settings, segment, pictures, classes=classes):
        if isinstance(outcome, Rejection):
            yield Failed(path, outcome)
            continue
        assert isinstance(picture, Picture)  # or there would be no map
        figures, contents = render_files(path, picture, outcome, name=names[path], made_with=made_with)
        _write(folder, contents)
        yield Segmented(path, figures, tuple(posixpath.join(to, file) for file in contents))


def describe(settings: Segmenter) -> dict[str, Any]:
    """What maps are made with, as it stands in their JSON: models with hashes and licences, and the settings."""
    models = [{**asdict(record), "name": _portable_name(record.name)} for record in settings.records()]
    return {"models": models, "settings": portable(settings)}


def render_files(
    path: str,
    picture: Picture,
    found: Segmentation,
    *,
    name: str,
    made_with: dict[str, Any],
    tinted: Image.Image | None = None,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The figures of a picture, and its files by their names: label map, overlay, and the figures as JSON.

    `name` is what the names of the files begin with, `made_with` as `describe` gives it; `tinted` is the map of
    `draw_map` where it is drawn already.
    """
    files = [name + ending for ending in _ENDINGS]
    figures = {**_figures(path, picture, found, files=files), **made_with}
    contents = (
        label_png(found.labels_HW, classes=len(found.classes)),
        as_png(add_legend(tinted or draw_map(picture.rgb_HW3, found), found)),
        (json.dumps(figures, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace"),
    )
    return figures, dict(zip(files, contents, strict=True))


def output_names(pictures: Sequence[str]) -> list[str]:
    """What the files of each picture begin with: its name without the ending; a name that is taken gets a number."""
    taken: set[str] = set()
    names = []
    for path in pictures:
        stem = posixpath.splitext(posixpath.basename(path))[0]
        free = (name for name in _numbered(stem) if name.casefold() not in taken)
        names.append(next(free))
        taken.add(names[-1].casefold())
    return names


def label_png(labels_HW: Labels, *, classes: int) -> bytes:
    """The map as a PNG of one channel: 8 bits and 255 for no class, or 16 bits and 65535 beyond 255 classes."""
    small = classes <= _NOTHING_8
    nothing = _NOTHING_8 if small else _NOTHING_16
    stored_HW = np.where(labels_HW == NOTHING, nothing, labels_HW).astype(np.uint8 if small else np.uint16)
    return as_png(Image.fromarray(stored_HW))


def as_png(image: Image.Image) -> bytes:
    """The picture as the bytes of a file, pixels alone."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _outcomes(
    settings: Segmenter, segment: Segment, paths: Sequence[str], *, classes: Sequence[str]
) -> Iterator[tuple[str, Picture | Rejection, Segmentation | Rejection]]:
    """Each picture with its map; some are decoded while others are in the models."""
    size = partial(settings.decoding.size, max_pixels=settings.max_image_pixels)
    read = partial(settings.decoding.read, max_pixels=settings.max_image_pixels)
    with ThreadPoolExecutor(settings.decode_threads) as pool:
        batches = plan_batches(list(pool.map(size, paths)), batch_size=settings.batch_size)
        for batch, answers in read_ahead(paths, batches, read=read, pool=pool):
            pictures = {i: answer for i, answer in zip(batch, answers, strict=True) if isinstance(answer, Picture)}
            found = segment(
                [picture.rgb_HW3 for picture in pictures.values()],
                classes=classes,
                image_ids=[picture_id(paths[i]) for i in pictures],
            )
            maps = dict(zip(pictures, found, strict=True))
            for i, answer in zip(batch, answers, strict=True):
                yield paths[i], answer, answer if isinstance(answer, Rejection) else maps[i]


def _numbered(stem: str) -> Iterator[str]:
    yield stem
    number = 2
    while True:
        yield f"{stem}-{number}"
        number += 1


def claim_folder(to: str) -> RunFolder:
    """The folder, in which a file can be written."""
    if scheme_of(to) != "file":
        return RunFolder(to)
    path = os.path.abspath(os.path.expanduser(plain_path(to)))
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"--to {to}: cannot be written ({error.strerror}); give another folder") from error
    return RunFolder(path)


def _write(folder: RunFolder, contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        with folder.write(name) as file:
            file.write(content)


def _figures(path: str, picture: Picture, found: Segmentation, *, files: Sequence[str]) -> dict[str, Any]:
    height_px, width_px = found.labels_HW.shape
    shares = class_shares(found)
    pixels = height_px * width_px - sum(one.pixels for one in shares)
    return {
        "image": posixpath.basename(path),
        "image_sha256": picture.sha256,
        "height_px": height_px,
        "width_px": width_px,
        "classes": [
            {"label": one.number, "name": one.name, "pixels": one.pixels, "share": _rounded(one.share), "score": score}
            for one, score in zip(shares, map(_rounded, found.scores), strict=True)
        ],
        "no_class": {
            "label": _NOTHING_8 if len(found.classes) <= _NOTHING_8 else _NOTHING_16,
            "pixels": pixels,
            "share": _rounded(pixels / (height_px * width_px)),
        },
        "label_map": files[0],
        "overlay": files[1],
        "proposed": found.proposed,
        "regions": [
            {
                "box_xyxy": region.box_xyxy,
                "area_px": region.area_px,
                "score": _rounded(region.score),
                "class": region.class_,
                "probability": _rounded(region.probability),
            }
            for region in found.regions
        ],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _portable_name(name: str) -> str:
    """A model's name, of which paths on this machine keep their last part; the hash says which one it is."""
    return " ".join(os.path.basename(word) if os.path.isabs(word) else word for word in name.split(" "))
