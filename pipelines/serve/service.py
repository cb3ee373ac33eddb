"""The models behind the page of `maskmine serve`, and the segmentation of one image; independent of the web.

settings ─▶ open: every model once ─▶ offers ─┐
the bytes of an image, a choice ──────────────┴▶ answer: the files of `maskmine segment`, and those of the page
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from pydantic import Field, model_validator

from maskmine.mining.images.child_decoder import Decoding
from maskmine.mining.images.decode import DecodedImage
from maskmine.mining.models.devices import fix_threads, open_device
from maskmine.mining.proposers.proposals import LoadedImage, Proposer
from maskmine.mining.regions import AnyProposals
from maskmine.pipelines.segment.segment import as_png, describe, render_files
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import Rejection
from maskmine.schemas.settings import AnyPath, Settings, fingerprint
from maskmine.tuning.segmentation.overlay import PlacedName, draw_layers, draw_photo, write_names
from maskmine.tuning.segmentation.proposal_classifier import open_proposal_classifier
from maskmine.tuning.segmentation.region_classifier import open_region_classifier
from maskmine.tuning.segmentation.segmenter import (
    Models,
    Segmentation,
    Segmenter,
    class_numbers,
)

Rule = Literal["clip", "proposals", "ensemble"]
Paint = Literal["sum", "best_per_class"]
Tower = Literal["plain", "tuned"]

SHOWN_FILES = ("map.png", "photo.jpg")
"""The files of the page beside those of `maskmine segment`: the tinted image without names, and the original one."""

_JPEG_QUALITY = 90  # no visible loss on a screen
_MAX_NAME = 80  # letters in the names of files, within the limits of any file system
_PROBE_PX = 64


class Example(Settings):
    """An image to begin with, and classes that go with it."""

    picture: AnyPath
    """The image file."""
    classes: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    """Names of classes that are filled in with it."""

    def read(self, decoding: Decoding, *, max_pixels: int) -> ReadyExample:
        """The image as a file and as it is shown. Raises InputError when it cannot be decoded."""
        try:
            with open(self.picture, "rb") as file:
                data = file.read()
        except OSError as error:
            raise InputError(f"examples: {self.picture}: cannot be read ({error.strerror}); check the path") from error
        image = decoding.decode(data, max_pixels=max_pixels)
        if isinstance(image, Rejection):
            raise InputError(f"examples: {self.picture}: {image.reason} ({image.detail}); give another picture")
        return ReadyExample(os.path.basename(self.picture), data, self.classes, _jpeg(draw_photo(image.rgb_HW3)))


class Serving(Settings):
    """What the page of `maskmine serve` offers. Models that segmenters have in common are loaded once."""

    segmenters: Annotated[dict[Annotated[str, Field(min_length=1, max_length=60)], Segmenter], Field(min_length=1)]
    """The segmenters by the names that the page shows, each as `maskmine segment --config` takes it. Where one has
    `tuned`, the page offers both the plain and the tuned CLIP."""
    tuned_if_there: bool = False
    """Whether a tuned CLIP whose files are absent is left out, in place of an error."""
    examples: Annotated[tuple[Example, ...], Field(strict=False)] = ()
    """Images that the page offers to begin with."""
    max_upload_mb: Annotated[float, Field(gt=0, le=1000)] = 20.0
    """Largest upload, in units of 10⁶ bytes."""
    max_image_pixels: Annotated[int, Field(ge=1)] = 16_000_000
    """Largest image in pixels."""
    max_classes: Annotated[int, Field(ge=1, le=65_535)] = 1000
    """Classes of a request at most."""
    max_waiting: Annotated[int, Field(ge=0)] = 16
    """Requests that may wait; further ones are refused. Each holds its decoded image, 3 bytes a pixel."""
    max_decode_s: Annotated[float, Field(gt=0, le=600)] = 10.0
    """Seconds of decoding after which an upload is refused; it is decoded before it takes a turn of the models."""

    @model_validator(mode="after")
    def _proposals_of_any_picture(self) -> Serving:
        for name, segmenter in self.segmenters.items():
            if segmenter.proposals.kind == "ground_truth":
                raise ValueError(f"`{name}`: annotations know their own pictures only; give a model that proposes")
        return self

    def open(self) -> Service:
        """Load the models and read the examples. Raises InputError when one of them cannot be loaded or read."""
        decoding = next(iter(self.segmenters.values())).decoding
        examples = tuple(example.read(decoding, max_pixels=self.max_image_pixels) for example in self.examples)
        load = _shared_loader()
        offers = {name: _open_offer(self._existing(segmenter), load) for name, segmenter in self.segmenters.items()}
        return Service(self, offers, examples)

    def _existing(self, segmenter: Segmenter) -> Segmenter:
        tuned = segmenter.tuned
        if tuned is None or not self.tuned_if_there:
            return segmenter
        paths = [path for path in (tuned.prompts, tuned.ovseg, tuned.clip and tuned.clip.model) if path]
        return segmenter if all(map(os.path.exists, paths)) else segmenter.model_copy(update={"tuned": None})


@dataclass(frozen=True, slots=True)
class Offer:
    """A segmenter of the page: its variants with a plain or a tuned CLIP, and its rules."""

    towers: dict[Tower, _Variant]
    rules: tuple[Rule, ...]

    @property
    def settings(self) -> Segmenter:
        """Those of the plain CLIP, which are the defaults of the page."""
        return self.towers["plain"].settings


@dataclass(frozen=True, slots=True)
class Choice:
    """A valid request, within the offers."""

    segmenter: str
    tower: Tower
    rule: Rule
    clip_weight: float
    paint: Paint
    granularity: float
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """A map, its files by name (those of `maskmine segment` and `SHOWN_FILES`), the time that it took, and the names
    that stand on it.

    `key` is a hash of the image, its name and the choice, so it cannot be guessed without the image.
    """

    key: str
    segmentation: Segmentation
    files: dict[str, bytes]
    size_px: tuple[int, int]
    took_s: float
    names: tuple[PlacedName, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ReadyExample:
    """An example: its file, and the image as the page shows it, a JPEG."""

    name: str
    data: bytes
    classes: tuple[str, ...]
    shown: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Upload:
    """The bytes of an image file, and its pixels."""

    data: bytes
    image: DecodedImage


@dataclass(frozen=True, slots=True, eq=False)
class Service:
    """The models and the examples. Callers segment one image at a time."""

    settings: Serving
    offers: dict[str, Offer]
    examples: tuple[ReadyExample, ...]

    def decode(self, data: bytes, *, choice: Choice) -> Upload | Rejection:
        """The image in the bytes of a file. Callers decode several at a time."""
        decoding = self.offers[choice.segmenter].settings.decoding
        timeout_s = min(decoding.timeout_s, self.settings.max_decode_s / decoding.attempts)
        limited = decoding.model_copy(update={"timeout_s": timeout_s})
        image = limited.decode(data, max_pixels=self.settings.max_image_pixels)
        return image if isinstance(image, Rejection) else Upload(data, image)

    def answer(self, upload: Upload, *, name: str, choice: Choice) -> Answer | Rejection:
        """The map of an image, which its owner calls `name`.

        Raises InputError for classes that the classifier of the proposals does not know.
        """
        variant, image = self.offers[choice.segmenter].towers[choice.tower], upload.image

        # The map, by the loaded models with the chosen settings.
        start = time.monotonic()
        changes = {field: getattr(choice, field) for field in ("rule", "clip_weight", "paint", "granularity")}
        segment = variant.settings.model_copy(update=changes).open(models=variant.models)
        (segmentation,) = segment([image.rgb_HW3], classes=choice.classes)
        if isinstance(segmentation, Rejection):
            return segmentation
        took_s = time.monotonic() - start

        # The files of `maskmine segment`, and those that the page shows.
        described = variant.described[choice.rule]
        made_with = {**described, "settings": {**described["settings"], **changes}}
        bare, names = draw_layers(image.rgb_HW3, segmentation)  # the page writes the names itself, sharp at any size
        tinted = write_names(bare, names)
        numbers = class_numbers(choice.classes)
        _, files = render_files(
            name, image, segmentation, name=stem_of(name), made_with=made_with, numbers=numbers, tinted=tinted
        )
        files = dict(sorted(files.items(), key=lambda file: file[0].endswith(".json")))  # pictures first
        shown = (as_png(bare, compress_level=1), _jpeg(draw_photo(image.rgb_HW3)))  # a quarter of the time
        files |= dict(zip(SHOWN_FILES, shown, strict=True))
        key, size_px = key_of(upload.data, name=name, choice=choice), image.rgb_HW3.shape[:2]
        return Answer(key, segmentation, files, size_px, took_s, names)


def stem_of(name: str) -> str:
    """The stem of the files of an image: letters, digits and `-_.` of its name, or `picture`."""
    stem = os.path.splitext(name)[0]
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-.")[:_MAX_NAME] or "picture"


def key_of(data: bytes, *, name: str, choice: Choice) -> str:
    """32 hex digits from the image, its name and the choice."""
    return fingerprint([hashlib.sha256(data).hexdigest(), name, asdict(choice)])[:32]


@dataclass(frozen=True, slots=True)
class _Variant:
    """A segmenter with one of its CLIPs; `described` is its provenance by rule, computed once as it hashes weights."""

    settings: Segmenter
    models: Models
    described: dict[Rule, dict[str, Any]]


def _open_offer(segmenter: Segmenter, load: Callable[[Segmenter], Models]) -> Offer:
    by_tower: dict[Tower, Segmenter] = {"plain": segmenter.model_copy(update={"tuned": None})}
    if segmenter.tuned:
        by_tower["tuned"] = segmenter
    models = {tower: load(settings) for tower, settings in by_tower.items()}
    with_classifier = _has_classifier(segmenter, models["plain"])
    rules: tuple[Rule, ...] = ("clip", "proposals", "ensemble") if with_classifier else ("clip",)
    if segmenter.rule not in rules:
        raise InputError(f"segmenters: `rule: {segmenter.rule}` needs proposals with a classifier; use `rule: clip`")
    described = {
        tower: {rule: describe(settings.model_copy(update={"rule": rule})) for rule in rules}
        for tower, settings in by_tower.items()
    }
    towers = {tower: _Variant(settings, models[tower], described[tower]) for tower, settings in by_tower.items()}
    return Offer(towers, rules)


def _shared_loader() -> Callable[[Segmenter], Models]:
    """Like `Segmenter.load` with CLIP for any rule, but models with equal settings are loaded once."""

    @functools.cache
    def open_proposer(proposals: AnyProposals, device: str) -> Proposer:
        return proposals.open(device=device)

    open_clip = functools.cache(open_region_classifier)

    def load(settings: Segmenter) -> Models:
        device = open_device(settings.device)
        fix_threads(settings.device, cpu_threads=settings.cpu_threads)
        clip = open_clip(settings.clip, settings.tuned, crop=settings.crop, templates=settings.templates, device=device)
        classifier = open_proposal_classifier(
            settings.proposals, clip=settings.clip, device=settings.device, at_once=False
        )
        return Models(device, open_proposer(settings.proposals, settings.device), clip, classifier)

    return load


def _has_classifier(settings: Segmenter, models: Models) -> bool:
    """Whether the proposals come with a classifier, found by proposing on a blank image."""
    if settings.proposals.kind == "sam":  # has none, and is slow
        return False
    blank_3HW = torch.zeros(3, _PROBE_PX, _PROBE_PX, dtype=torch.uint8, device=models.device)
    with torch.inference_mode():
        (answer,) = models.propose([LoadedImage("blank", blank_3HW)], min_score=1.0)
    if isinstance(answer, Rejection):
        return False
    return answer.queries_ND is not None or any(name is not None for name in answer.class_names)


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()
