"""`maskmine segment`: images to label maps, overlays and figures, three files an image."""

from __future__ import annotations

import io
import json
import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

import numpy as np
from PIL import Image

from maskmine.mining.images.decode import DecodedImage
from maskmine.mining.storage.names import alike, utf8_name
from maskmine.pipelines.run_folder.claim import claim_folder
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.run_folder.sweep import sweep
from maskmine.pipelines.segment.images import OURS, decode_batches, image_id_of
from maskmine.pipelines.settings.fingerprints import portable
from maskmine.schemas.rows import Rejection
from maskmine.tuning.benchmarks.label_maps import IGNORE_8, IGNORE_16
from maskmine.tuning.segmentation.overlay import add_legend, class_shares, draw_map
from maskmine.tuning.segmentation.segmenter import Labels, Segmentation, Segmenter, check_classes, class_numbers
from maskmine.tuning.tables import rounded

_SUFFIXES = (*OURS, ".json")
_MAX_NAMED = 6  # classes in the line of an image, which should fit in a terminal


@dataclass(frozen=True, slots=True)
class Segmented:
    """An image whose files are written: label map, overlay, JSON; `figures` is the content of the last."""

    path: str
    figures: dict[str, Any]
    files: tuple[str, ...]

    @property
    def line(self) -> str:
        """The shares of the largest classes, and the overlay."""
        shares = [(one["name"], one["share"]) for one in self.figures["classes"] if one["pixels"]]
        largest = sorted(shares, key=lambda share: -share[1])
        parts = [f"{name} {share:.1%}" for name, share in largest[:_MAX_NAMED]]
        parts += [f"{len(largest) - _MAX_NAMED} more"] * (len(largest) > _MAX_NAMED)
        parts += [f"no class {self.figures['no_class']['share']:.1%}"] * bool(self.figures["no_class"]["pixels"])
        return f"{self.path}: {', '.join(parts)} → {self.files[1]}"


@dataclass(frozen=True, slots=True)
class Failed:
    """An image without a map."""

    path: str
    rejection: Rejection


def segment_images(
    settings: Segmenter, paths: Sequence[str], *, classes: Sequence[str], to: str
) -> Iterator[Segmented | Failed]:
    """Write the files of each image below `to`, which may be on an object store; results come one by one.

    Images of one size are segmented together, so the order is that of their sizes. Raises InputError for faults of
    the settings, the classes or the folder, before any image is read where that is possible.
    """
    check_classes(classes)
    numbers = class_numbers(classes)
    folder = claim_folder(to)
    sweep(folder)
    segment = settings.open()
    made_with = describe(settings)
    names = OutputNames(folder, paths)
    for batch, decoded in decode_batches(paths, settings=settings):
        # Segment the images that could be decoded.
        good = {paths[i]: image for i, image in zip(batch, decoded, strict=True) if isinstance(image, DecodedImage)}
        rgb = [image.rgb_HW3 for image in good.values()]
        maps = dict(zip(good, segment(rgb, classes=classes, image_ids=[*map(image_id_of, good)]), strict=True))

        # Write their files, in the order of the batch.
        for path, image in zip((paths[i] for i in batch), decoded, strict=True):
            answer = image if isinstance(image, Rejection) else maps[path]
            if isinstance(answer, Rejection):
                yield Failed(path, answer)
                continue
            name = names.of(path, sha256=good[path].sha256)
            figures, contents = render_files(path, good[path], answer, name=name, made_with=made_with, numbers=numbers)
            write_files(folder, contents)
            yield Segmented(path, figures, tuple(posixpath.join(to, f"{name}{suffix}") for suffix in _SUFFIXES))


def describe(settings: Segmenter) -> dict[str, Any]:
    """The provenance of maps for their JSON: models with hashes and licences, and the settings."""
    models = [{**record.model_dump(), "name": _portable_name(record.name)} for record in settings.records()]
    return {"models": models, "settings": portable(settings)}


def render_files(
    path: str,
    image: DecodedImage,
    segmentation: Segmentation,
    *,
    name: str,
    made_with: dict[str, Any],
    numbers: Sequence[int],
    tinted: Image.Image | None = None,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The figures of an image, and its files by their names: label map, overlay, and the figures as JSON.

    `name` is the stem of the file names, `made_with` as `describe` returns it, `numbers` as `class_numbers` does;
    `tinted` is the result of `draw_map` where it exists already.
    """
    files = [name + suffix for suffix in _SUFFIXES]
    figures = {**_figures(path, image, segmentation, files=files, numbers=numbers), **made_with}
    contents = (
        label_png(segmentation.labels_HW, numbers=numbers),
        as_png(add_legend(tinted or draw_map(image.rgb_HW3, segmentation), segmentation)),
        (json.dumps(figures, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace"),
    )
    # The figures come first: they say of which image the other two are.
    return figures, dict(sorted(zip(files, contents, strict=True), key=lambda file: file[0] != files[-1]))


def output_names(paths: Sequence[str]) -> list[str]:
    """The stem of each image's output files: that of its own name; a name that is taken gets a number."""
    taken: set[str] = set()
    names = []
    for path in paths:
        names.append(next(name for name in _numbered(path) if alike(name) not in taken))
        taken.add(alike(names[-1]))
    return names


class OutputNames:
    """The stems of output files in a folder that may hold the results of earlier runs, which are never replaced.

    An image that was segmented before has its own name again; a namesake of another content gets a number.
    """

    def __init__(self, folder: RunFolder, paths: Sequence[str]) -> None:
        self._folder = folder
        self._first = dict(zip(paths, output_names(paths), strict=True))
        self._taken = {alike(name) for name in self._first.values()}  # by images of this run
        self._stored = {alike(name): name for name in folder.names()}

    def of(self, path: str, *, sha256: str) -> str:
        """The stem for an image with this content."""
        first = self._first[path]
        if self._is_free(first, path, sha256):
            return first
        others = (name for name in _numbered(path) if alike(name) not in self._taken)
        name = next(name for name in others if self._is_free(name, path, sha256))
        self._taken.add(alike(name))
        return name

    def _is_free(self, name: str, path: str, sha256: str) -> bool:
        """Whether no file of this stem is there, or those that are there are of this very image."""
        files = [name + suffix for suffix in _SUFFIXES]
        if not any(alike(file) in self._stored for file in files):
            return True
        if self._stored.get(alike(files[-1])) != files[-1]:  # other files, or of a name in other cases
            return False
        try:
            figures = json.loads(self._folder.read_bytes(files[-1]))
        except (ValueError, RecursionError, FileNotFoundError):
            return False
        known = figures if isinstance(figures, dict) else {}
        return (known.get("image"), known.get("image_sha256")) == (_shown_name(path), sha256)


def _numbered(path: str) -> Iterator[str]:
    """The stem of an image's name, then the same with numbers."""
    stem = posixpath.splitext(_shown_name(path))[0]
    return chain([stem], (f"{stem}-{number}" for number in count(2)))


def _shown_name(path: str) -> str:
    """The name of an image's file as UTF-8 can hold it."""
    return utf8_name(posixpath.basename(path))


def label_png(labels_HW: Labels, *, numbers: Sequence[int]) -> bytes:
    """The map as a PNG of one channel: 8 bits and 255 for no class, or 16 bits and 65535 beyond 255 classes.

    `numbers` are those of the classes in the file, in ascending order.
    """
    ignore = _stored_ignore(numbers)
    table = np.array([*numbers, ignore], np.uint8 if ignore == IGNORE_8 else np.uint16)
    return as_png(Image.fromarray(table[labels_HW]))  # IGNORE, which is -1, picks the last


def as_png(image: Image.Image, **options: Any) -> bytes:
    """The image as a PNG file, pixels alone."""
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def write_files(folder: RunFolder, contents: Mapping[str, bytes]) -> None:
    """Write files by their names, each whole or not at all."""
    for name, content in contents.items():
        with folder.write(name) as file:
            file.write(content)


def _stored_ignore(numbers: Sequence[int]) -> int:
    return IGNORE_8 if max(numbers) < IGNORE_8 else IGNORE_16


def _figures(
    path: str, image: DecodedImage, segmentation: Segmentation, *, files: Sequence[str], numbers: Sequence[int]
) -> dict[str, Any]:
    height_px, width_px = segmentation.labels_HW.shape
    shares = class_shares(segmentation)
    pixels = height_px * width_px - sum(share.pixels for share in shares)
    return {
        "image": _shown_name(path),
        "image_sha256": image.sha256,
        "height_px": height_px,
        "width_px": width_px,
        "classes": [
            {
                "label": numbers[one.number],
                "name": one.name,
                "pixels": one.pixels,
                "share": rounded(one.share),
                "score": score,
            }
            for one, score in zip(shares, map(rounded, segmentation.scores), strict=True)
        ],
        "no_class": {
            "label": _stored_ignore(numbers),
            "pixels": pixels,
            "share": rounded(pixels / (height_px * width_px)),
        },
        "label_map": files[0],
        "overlay": files[1],
        "proposed": segmentation.proposed,
        "regions": [
            {
                "box_xyxy": region.box_xyxy,
                "area_px": region.area_px,
                "score": rounded(region.score),
                "class": region.class_,
                "probability": rounded(region.probability),
            }
            for region in segmentation.regions
        ],
    }


def _portable_name(name: str) -> str:
    """A model's name with local paths shortened to their last part; the hash identifies the model."""
    return " ".join(os.path.basename(word) if os.path.isabs(word) else word for word in name.split(" "))
