"""What the page of `maskmine serve` offers, and how one picture is answered; nothing here knows of the web.

settings ─▶ open: every model once ─▶ offers ─┐
a picture's bytes, a choice ──────────────────┴▶ answer: the files of `maskmine segment`, and what the page shows
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from pydantic import Field, model_validator

from mining.decoder import Decoding
from mining.devices import fix_threads, open_device
from mining.proposals import LoadedImage, Proposer
from pipelines.segment import describe, render_files
from schemas.errors import InputError
from schemas.rows import Rejection
from schemas.settings import Settings, canonical_json, fingerprint
from tuning.own_classifier import open_own
from tuning.segmentation_overlay import draw_map, draw_photo
from tuning.segmenter import Look, Models, Segmentation, Segmenter, open_look

Rule = Literal["clip", "proposals", "ensemble"]
Paint = Literal["sum", "best_per_class"]
Tower = Literal["plain", "tuned"]

SHOWN_FILES = ("map.png", "photo.jpg")
"""What the page shows beside the files of `maskmine segment`: the tinted picture, and the picture as it came."""

_JPEG_QUALITY = 90
_MOST_NAME = 80
_PROBE_PX = 64


class Example(Settings):
    """A picture to begin with, and names of classes that go with it."""

    picture: str
    classes: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]

    def read(self, decoding: Decoding, *, max_pixels: int) -> ReadyExample:
        """The picture, as it is and as it is shown. Raises InputError when it is none."""
        try:
            with open(self.picture, "rb") as file:
                data = file.read()
        except OSError as error:
            raise InputError(f"examples: {self.picture}: cannot be read ({error.strerror}); check the path") from error
        picture = decoding.decode(data, max_pixels=max_pixels)
        if isinstance(picture, Rejection):
            raise InputError(f"examples: {self.picture}: {picture.reason} ({picture.detail}); give another picture")
        return ReadyExample(os.path.basename(self.picture), data, self.classes, _jpeg(draw_photo(picture.rgb_HW3)))


class Serving(Settings):
    """What the page offers. A segmenter is what `maskmine segment` takes as its configuration, under a name for people.

    Where one has `tuned`, the page lets choose between the plain CLIP and the tuned one; with `tuned_if_there` it does
    so only if the files are there. What segmenters have in common is loaded once. A picture may have `max_upload_mb`
    (10⁶ bytes) and `max_image_pixels`; `max_classes` may be named at once; `max_waiting` may wait for their turn.
    """

    segmenters: Annotated[dict[Annotated[str, Field(min_length=1, max_length=60)], Segmenter], Field(min_length=1)]
    tuned_if_there: bool = False
    examples: Annotated[tuple[Example, ...], Field(strict=False)] = ()
    max_upload_mb: Annotated[float, Field(gt=0, le=1000)] = 20.0
    max_image_pixels: Annotated[int, Field(ge=1)] = 16_000_000
    max_classes: Annotated[int, Field(ge=1, le=65_535)] = 1000
    max_waiting: Annotated[int, Field(ge=0)] = 16

    @model_validator(mode="after")
    def _proposals_of_any_picture(self) -> Serving:
        for name, segmenter in self.segmenters.items():
            if segmenter.proposals.kind == "ground_truth":
                raise ValueError(f"`{name}`: annotations know their own pictures only; give a model that proposes")
        return self

    def open(self) -> Served:
        """Load the models and read the examples. Raises InputError when one of them cannot be had."""
        decoding = next(iter(self.segmenters.values())).decoding
        examples = tuple(example.read(decoding, max_pixels=self.max_image_pixels) for example in self.examples)
        proposers: dict[str, Proposer] = {}
        looks: dict[str, Look] = {}
        offers = {
            name: _open_offer(self._there(segmenter), proposers=proposers, looks=looks)
            for name, segmenter in self.segmenters.items()
        }
        return Served(self, offers, examples)

    def _there(self, segmenter: Segmenter) -> Segmenter:
        tuned = segmenter.tuned
        if tuned is None or not self.tuned_if_there:
            return segmenter
        paths = [path for path in (tuned.prompts, tuned.ovseg, tuned.clip and tuned.clip.model) if path]
        return segmenter if all(map(os.path.exists, paths)) else segmenter.model_copy(update={"tuned": None})


@dataclass(frozen=True, slots=True)
class Offer:
    """A segmenter as the page offers it: with a plain or a tuned CLIP, and by which rules."""

    towers: dict[Tower, _Tower]
    rules: tuple[Rule, ...]

    @property
    def settings(self) -> Segmenter:
        """Those of the plain CLIP, which are the defaults of the page."""
        return self.towers["plain"].settings


@dataclass(frozen=True, slots=True)
class Choice:
    """What a person chose, within what is offered."""

    segmenter: str
    tower: Tower
    rule: Rule
    clip_weight: float
    paint: Paint
    granularity: float
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """A map, its files by their names, which are those of `maskmine segment` and `SHOWN_FILES`, and the time it took.

    `key` is the same for the same picture, name and choice, and cannot be guessed by who has not the picture.
    """

    key: str
    found: Segmentation
    files: dict[str, bytes]
    size_px: tuple[int, int]
    took_s: float


@dataclass(frozen=True, slots=True, eq=False)
class ReadyExample:
    """An example that was read: its file, and the picture as the page shows it, a JPEG."""

    name: str
    data: bytes
    classes: tuple[str, ...]
    shown: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """The models and the examples. One picture at a time: a caller sees to it."""

    settings: Serving
    offers: dict[str, Offer]
    examples: tuple[ReadyExample, ...]

    def answer(self, data: bytes, *, name: str, choice: Choice) -> Answer | Rejection:
        """The map of the picture in the bytes of a file; `name` is that of the file, as its owner calls it.

        Raises InputError for what only the models know: a class that the proposals' own classifier does not have.
        """
        tower = self.offers[choice.segmenter].towers[choice.tower]
        picture = tower.settings.decoding.decode(data, max_pixels=self.settings.max_image_pixels)
        if isinstance(picture, Rejection):
            return picture
        changes = {
            "rule": choice.rule,
            "clip_weight": choice.clip_weight,
            "paint": choice.paint,
            "granularity": choice.granularity,
        }
        start = time.monotonic()
        segment = tower.settings.model_copy(update=changes).open(models=tower.models)
        (found,) = segment([picture.rgb_HW3], classes=choice.classes)
        if isinstance(found, Rejection):
            return found
        took_s = time.monotonic() - start
        described = tower.described[choice.rule]
        made_with = {**described, "settings": {**described["settings"], **changes}}
        tinted = draw_map(picture.rgb_HW3, found)
        _, contents = render_files(name, picture, found, name=stem_of(name), made_with=made_with, tinted=tinted)
        shown = (_quick_png(tinted), _jpeg(draw_photo(picture.rgb_HW3)))
        files = {**contents, **dict(zip(SHOWN_FILES, shown, strict=True))}
        return Answer(key_of(data, name=name, choice=choice), found, files, picture.rgb_HW3.shape[:2], took_s)


def stem_of(name: str) -> str:
    """What the files of a picture begin with: letters, digits and `-_.` of its name, or `picture`."""
    stem = os.path.splitext(name)[0]
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-.")[:_MOST_NAME] or "picture"


def key_of(data: bytes, *, name: str, choice: Choice) -> str:
    """32 hex digits that follow from the picture, its name and the choice."""
    chosen = [getattr(choice, field) for field in Choice.__slots__]
    return fingerprint([hashlib.sha256(data).hexdigest(), name, *chosen[:-1], list(choice.classes)])[:32]


@dataclass(frozen=True, slots=True)
class _Tower:
    """A segmenter with one of its CLIPs; `described` is what the JSON says of it, by rule.

    It is found out once, for that hashes the weights.
    """

    settings: Segmenter
    models: Models
    described: dict[Rule, dict[str, Any]]


def _open_offer(segmenter: Segmenter, *, proposers: dict[str, Proposer], looks: dict[str, Look]) -> Offer:
    variants: dict[Tower, Segmenter] = {"plain": segmenter.model_copy(update={"tuned": None})}
    if segmenter.tuned:
        variants["tuned"] = segmenter
    models = {name: _load(settings, proposers=proposers, looks=looks) for name, settings in variants.items()}
    own: tuple[Rule, ...] = ("proposals", "ensemble") if _names_classes(segmenter, models["plain"]) else ()
    if segmenter.rule not in ("clip", *own):
        raise InputError(f"segmenters: `rule: {segmenter.rule}` needs proposals with a classifier; use `rule: clip`")
    towers = {
        name: _Tower(settings, models[name], {rule: _described(settings, rule) for rule in ("clip", *own)})
        for name, settings in variants.items()
    }
    return Offer(towers, ("clip", *own))


def _described(settings: Segmenter, rule: Rule) -> dict[str, Any]:
    return describe(settings.model_copy(update={"rule": rule}))


def _load(settings: Segmenter, *, proposers: dict[str, Proposer], looks: dict[str, Look]) -> Models:
    """As `Segmenter.load`, but what was loaded for other settings already is not loaded again."""
    device = open_device(settings.device)
    fix_threads(settings.device, cpu_threads=settings.cpu_threads)
    proposer_key = _key(settings, "proposals", "device")
    look_key = _key(settings, "clip", "tuned", "crop", "templates", "device")
    if proposer_key not in proposers:
        proposers[proposer_key] = settings.proposals.open(device=settings.device)
    if look_key not in looks:
        looks[look_key] = open_look(settings, device=device)
    own = open_own(settings.proposals, clip=settings.clip, device=settings.device, at_once=False)
    return Models(device, proposers[proposer_key], looks[look_key], own)


def _key(settings: Segmenter, *fields: str) -> str:
    return canonical_json(settings.model_dump(mode="json", include=set(fields)))


def _names_classes(settings: Segmenter, models: Models) -> bool:
    """Whether the proposals come with a classifier of their own, found out with a blank picture."""
    if settings.proposals.kind == "sam":  # whose grid of points takes a while
        return False
    blank_3HW = torch.zeros(3, _PROBE_PX, _PROBE_PX, dtype=torch.uint8, device=models.device)
    with torch.inference_mode():
        (answer,) = models.propose([LoadedImage("blank", blank_3HW)], min_score=1.0)
    if isinstance(answer, Rejection):
        return False
    return answer.queries_ND is not None or any(name is not None for name in answer.class_names)


def _quick_png(image: Image.Image) -> bytes:
    """Somewhat larger than need be, in a quarter of the time."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()


def named_once(classes: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The classes without repetitions (case and spaces apart), and those that were repeated, each once."""
    first: dict[str, str] = {}
    repeated: dict[str, str] = {}
    for class_ in (" ".join(class_.split()) for class_ in classes):
        if class_.casefold() in first:
            repeated[class_.casefold()] = first[class_.casefold()]
        else:
            first[class_.casefold()] = class_
    return tuple(first.values()), tuple(repeated.values())
