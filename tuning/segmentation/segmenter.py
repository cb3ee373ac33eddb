"""Open-vocabulary segmentation in two stages: masks first, then what CLIP, plain or tuned, calls each of them.

    pictures ─▶ proposals ─▶ keep ─▶ crops ─▶ CLIP, with or without prompts ─┐
    classes ──▶ templates ─▶ CLIP's text side ───────────────────────────────┴▶ votes [N, C] ─▶ map [H, W]

```python
segment = load_settings(Segmenter, "configs/segment.yaml").open()
(found,) = segment([rgb_HW3], classes=["Saturn V", "blossom"])
found.labels_HW
```

Shapes: N proposals of one picture, R regions of a batch, C classes that vote, D width of CLIP's embeddings, S side of
its input in pixels; H, W height and width of a picture in pixels. A size is `(height_px, width_px)`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from mining.crops import Crop, cut_masks, cut_regions, tight_boxes
from mining.decoder import Decoding
from mining.devices import fix_threads, open_device
from mining.embeddings import chunk_regions
from mining.models.clip import Clip, embed_in_batches
from mining.models.maskformer import MaskFormer
from mining.proposals import Keep, LoadedImage, Proposals, Proposer, areas_px_of, keep_proposals
from mining.regions import AnyProposals, plan_batches
from mining.segmentation_scores import NOTHING
from mining.vocabulary import Vocabulary
from mining.weights import weights_sha256
from schemas.errors import InputError
from schemas.mask import Box
from schemas.models import ModelRecord
from schemas.rows import Rejection
from schemas.settings import Settings
from tuning.own_classifier import OwnClassifier, open_own
from tuning.segmentation_rules import (
    BACKGROUND,
    best_masks,
    clip_probabilities,
    ensemble,
    paint_hard,
    paint_soft,
)
from tuning.towers import Tuned, bare_tower, embed_classes, tuned_tower

MOST_CLASSES = 65_535
"""So many classes fit in a label map of 16 bits, beside the number for no class."""

_CPU_BATCH = 8

Rgb = np.ndarray[Any, np.dtype[np.uint8]]
Labels = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True, slots=True)
class NamedRegion:
    """A region that was kept: its box, its size, how sure the proposer is of it, and the class that it votes for most.

    `class_` is None where that is the background; `probability` is that vote.
    """

    box_xyxy: Box
    area_px: int
    score: float
    class_: str | None
    probability: float


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """A picture's map: `labels_HW` has the number of a class in `classes`, or NOTHING.

    `scores` has for each class the greatest vote that a region has for it (0 to 1), None where there is no region.
    `proposed` is the number of proposals before some were kept as `regions`.
    """

    classes: tuple[str, ...]
    labels_HW: Labels
    scores: tuple[float | None, ...]
    regions: tuple[NamedRegion, ...]
    proposed: int


class Segment(Protocol):
    """What `Segmenter.open()` returns: pictures to their maps, in order."""

    def __call__(
        self, pictures: Sequence[Rgb], *, classes: Sequence[str], image_ids: Sequence[str] | None = None
    ) -> list[Segmentation | Rejection]:
        """Pictures are upright RGB, uint8 [H, W, 3] of any sizes; `image_ids` are for proposals from annotations.

        On a CPU a picture's map does not depend on the others. A Rejection stands where annotations do not know a
        picture. Raises InputError for classes as `check_classes` does, and where the rule needs a classifier that the
        proposals have not; ValueError for arrays of another kind.
        """
        ...


@dataclass(frozen=True, slots=True)
class Look:
    """CLIP: `regions` embeds those of some pictures, [N, D] for each; `classes` embeds names, [C, D]."""

    regions: Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]]
    classes: Callable[[tuple[str, ...]], Tensor]


@dataclass(frozen=True, slots=True)
class Models:
    """What is loaded once: the proposer, and CLIP where the rule needs it, both on `device`.

    `own` is the proposals' classifier; without it, it is opened with the settings.
    """

    device: torch.device
    propose: Proposer
    look: Look | None
    own: OwnClassifier | None = None


class Segmenter(Settings):
    """Which masks, which CLIP, and how votes become a map. The defaults are the models of configs/coco.yaml.

    `tuned` puts a fine-tuned CLIP, mask prompts or both in the place of `clip`'s image side.
    `rule`: who gives the votes: `clip`, the `proposals`' own classifier, or both as OVSeg's `ensemble`, in which
    `clip_weight` is λ. `paint`: `sum` lets all masks vote, softly where the proposer's masks are soft;
    `best_per_class` lets only those vote that are the best one of some class, and leaves other pixels without a class;
    with a `granularity` g below 1 those as well whose vote for a class is above g × its best.
    `keep`, `batch_size` and what follows are as in `Regions`.
    """

    proposals: AnyProposals = MaskFormer(kind="maskformer", checkpoint="facebook/maskformer-swin-base-coco")
    keep: Keep = Keep(min_area_px=1, max_area_ratio=1.0)
    clip: Clip = Clip(model="ViT-L-14", pretrained="openai")
    tuned: Tuned | None = None
    crop: Crop = Crop()
    templates: str = "vild"
    logit_scale: Annotated[float, Field(gt=0, le=1000)] = 100.0
    rule: Literal["clip", "proposals", "ensemble"] = "clip"
    clip_weight: Annotated[float, Field(gt=0, lt=1)] = 0.7
    paint: Literal["sum", "best_per_class"] = "sum"
    granularity: Annotated[float, Field(ge=0, le=1)] = 1.0
    batch_size: Annotated[int, Field(ge=1)] = 8
    device: str = "auto"
    max_image_pixels: Annotated[int, Field(ge=1)] = 50_000_000
    decode_threads: Annotated[int, Field(ge=1)] = 2
    decoding: Decoding = Decoding()
    cpu_threads: Annotated[int, Field(ge=1)] = 2

    @model_validator(mode="after")
    def _a_classifier_where_the_rule_needs_one(self) -> Segmenter:
        without = {"ground_truth": "annotations have", "sam": "Segment Anything has"}.get(self.proposals.kind)
        if self.rule != "clip" and without:
            raise ValueError(f"`rule: {self.rule}` needs proposals with a classifier, {without} none; use `clip`")
        return self

    @model_validator(mode="after")
    def _a_rule_that_granularity_belongs_to(self) -> Segmenter:
        if self.granularity < 1 and self.paint == "sum":
            raise ValueError(
                f"`granularity: {self.granularity:g}` chooses masks, and `paint: sum` takes them all; "
                "use `paint: best_per_class`"
            )
        return self

    def load(self) -> Models:
        """Load the models; raises InputError when they cannot be had.

        They serve all settings that differ in `keep`, `logit_scale`, `rule`, `clip_weight`, `paint` and `granularity`
        alone; without CLIP, where `rule` is `proposals`, those that leave it so.
        """
        device = open_device(self.device)
        fix_threads(self.device, cpu_threads=self.cpu_threads)
        propose = self.proposals.open(device=self.device)
        look = None if self.rule == "proposals" else open_look(self, device=device)
        return Models(device, propose, look, self._own_classifier())

    def open(self, *, models: Models | None = None) -> Segment:
        """The function from pictures to maps, with `models` that were loaded before, or as `load` loads them."""
        loaded = models or self.load()
        if loaded.look is None and self.rule != "proposals":
            raise ValueError(f"these models were loaded without CLIP, and `rule: {self.rule}` needs it")
        loaded = replace(loaded, own=loaded.own or self._own_classifier())

        def segment(
            pictures: Sequence[Rgb], *, classes: Sequence[str], image_ids: Sequence[str] | None = None
        ) -> list[Segmentation | Rejection]:
            named, ids = check_classes(classes), image_ids or [str(number) for number in range(len(pictures))]
            found: dict[int, Segmentation | Rejection] = {}
            for batch in plan_batches([_size_px(rgb_HW3) for rgb_HW3 in pictures], batch_size=self.batch_size):
                images = [LoadedImage(ids[i], _on_device(pictures[i], loaded.device)) for i in batch]
                with torch.inference_mode():
                    answers = _segment_batch(images, classes=named, settings=self, models=loaded)
                found.update(zip(batch, answers, strict=True))
            return [found[i] for i in range(len(pictures))]

        return segment

    def records(self) -> list[ModelRecord]:
        """The models that make the maps. Raises InputError for settings that name nothing."""
        if self.rule == "proposals":
            texts = [self.clip.record()] if self.proposals.kind == "open_maskformer" else []
            return [self.proposals.record(), *texts]
        return [self.proposals.record(), self.clip.record(), *_tuned_records(self.tuned, self.clip)]

    def _own_classifier(self) -> OwnClassifier:
        return open_own(self.proposals, clip=self.clip, device=self.device, at_once=self.rule != "clip")


def check_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """The classes as they vote: one of the name BACKGROUND last; it joins by itself where there is one class only.

    Raises InputError when there is no class, one without a letter, one twice (case and spaces apart), or too many.
    """
    plain = [" ".join(class_.split()) for class_ in classes]
    if "" in plain:
        raise InputError(f"classes: number {plain.index('') + 1} is empty; give each a name")
    if repeated := _first_repeated([class_.casefold() for class_ in plain]):
        raise InputError(f"classes: `{repeated}` is there twice; name each class once")
    named = [class_ for class_ in plain if class_.casefold() != BACKGROUND]
    if not named:
        raise InputError("classes: none is named; give at least one, such as --classes 'dog, tree'")
    if len(named) > MOST_CLASSES:
        raise InputError(f"classes: {len(named):,} are too many for a map of 16 bits; give at most {MOST_CLASSES:,}")
    return (*named, BACKGROUND) if len(named) == 1 or len(named) < len(plain) else tuple(named)


def open_look(settings: Segmenter, *, device: torch.device) -> Look:
    """CLIP as the settings want it, on `device`. Raises InputError when it cannot be had."""
    clip, tuned = settings.clip, settings.tuned
    if device.type == "cpu":  # which gains nothing from large batches, and the last one is filled up
        clip = clip.model_copy(update={"batch_size": min(clip.batch_size, _CPU_BATCH)})
    plain = clip.open_whole()
    tower = (
        tuned_tower(tuned, plain, device=device, place="tuned") if tuned else bare_tower(plain.model.visual.to(device))
    )
    size_px, dim, mean, std = plain.size_px, plain.dim, plain.mean, plain.std
    batch_size, dtype = clip.batch_size, _dtype(clip.precision, device)
    embed_nouns = Vocabulary(templates=settings.templates).open(clip, settings.device)

    def forward(pixels_and_masks_B4SS: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return tower(pixels_and_masks_B4SS[:, :3], pixels_and_masks_B4SS[:, 3] > 0)

    def embed(pictures: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
        counts = [len(masks_NHW) for masks_NHW in masks]
        parts = [torch.empty(0, dim, device=device)]
        for chunk in chunk_regions(counts, size=batch_size):  # of all pictures: memory is bounded by one batch
            rgb, shown = [pictures[i] for i, _ in chunk], [masks[i][span] for i, span in chunk]
            pixels_R3SS = cut_regions(rgb, shown, size_px=size_px, mean=mean, std=std, crop=settings.crop)
            masks_RSS = cut_masks(shown, size_px=size_px, crop=settings.crop)
            joined_R4SS = torch.cat([pixels_R3SS, masks_RSS[:, None].to(pixels_R3SS.dtype)], dim=1)
            parts.append(embed_in_batches(joined_R4SS, forward=forward, batch_size=batch_size, dim=dim))
        return list(torch.split(torch.cat(parts), counts))

    @functools.lru_cache(maxsize=1)
    def classes(names: tuple[str, ...]) -> Tensor:
        return embed_classes(names, embed=embed_nouns).to(device)

    return Look(embed, classes)


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    name = {"cuda": "float16"}.get(device.type, "float32") if precision == "auto" else precision
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _segment_batch(
    images: Sequence[LoadedImage],
    *,
    classes: tuple[str, ...],
    settings: Segmenter,
    models: Models,
) -> list[Segmentation | Rejection]:
    """The maps of pictures of one size, in order."""
    look = None if settings.rule == "proposals" else models.look
    answers = list(_kept(models.propose(images, min_score=settings.keep.min_score), keep=settings.keep))
    found = {i: answer[0] for i, answer in enumerate(answers) if not isinstance(answer, Rejection)}
    seen: dict[int, Tensor] = {}
    if look:
        pictures = [images[i].rgb_3HW for i in found]
        embedded = look.regions(pictures, [kept.masks_NHW for kept in found.values()])
        seen = dict(zip(found, embedded, strict=True))
    maps: list[Segmentation | Rejection] = []
    for i, answer in enumerate(answers):
        if isinstance(answer, Rejection):
            maps.append(answer)
            continue
        kept, proposed = answer
        clip_NC = None
        if look:
            clip_NC = clip_probabilities(seen[i], look.classes(classes), logit_scale=settings.logit_scale)
        votes_NC = _votes(kept, clip_NC, classes=classes, settings=settings, models=models)
        labels_HW = _paint(kept, votes_NC, classes=classes, settings=settings)
        maps.append(_as_segmentation(kept, votes_NC, labels_HW, classes=classes, proposed=proposed))
    return maps


def _kept(answers: Iterator[Proposals | Rejection], *, keep: Keep) -> Iterator[tuple[Proposals, int] | Rejection]:
    """The proposals to keep of each picture, and how many there were."""
    for answer in answers:
        yield answer if isinstance(answer, Rejection) else (keep_proposals(answer, keep=keep), len(answer))


def _votes(
    kept: Proposals, clip_NC: Tensor | None, *, classes: tuple[str, ...], settings: Segmenter, models: Models
) -> Tensor:
    if settings.rule == "clip":
        assert clip_NC is not None
        return clip_NC
    assert models.own is not None  # `Segmenter.open` sees to it
    own_NC = models.own(kept, classes)
    return own_NC if clip_NC is None else ensemble(own_NC, clip_NC, clip_weight=settings.clip_weight)


def _paint(kept: Proposals, votes_NC: Tensor, *, classes: Sequence[str], settings: Segmenter) -> Tensor:
    height_px, width_px = kept.masks_NHW.shape[1:]
    if settings.paint == "best_per_class":
        chosen = best_masks(votes_NC, classes=classes, granularity=settings.granularity)
        return paint_hard(votes_NC[chosen], kept.masks_NHW[chosen])
    if kept.soft_Nhw is None:
        return paint_hard(votes_NC, kept.masks_NHW)
    return paint_soft(votes_NC, kept.soft_Nhw, size_px=(height_px, width_px))


def _as_segmentation(
    kept: Proposals, votes_NC: Tensor, labels_HW: Tensor, *, classes: Sequence[str], proposed: int
) -> Segmentation:
    named = tuple(class_ for class_ in classes if class_ != BACKGROUND)
    labels: Labels = torch.where(labels_HW < len(named), labels_HW, NOTHING).to(torch.int32).cpu().numpy()
    scores = votes_NC.amax(dim=0).tolist()[: len(named)] if len(kept) else [None] * len(named)
    return Segmentation(named, labels, tuple(scores), tuple(_regions(kept, votes_NC, named)), proposed)


def _regions(kept: Proposals, votes_NC: Tensor, named: Sequence[str]) -> Iterator[NamedRegion]:
    if not len(kept):
        return
    votes_N, class_N = votes_NC.max(dim=1)
    columns = (
        tight_boxes(kept.masks_NHW).tolist(),
        areas_px_of(kept.masks_NHW),
        kept.scores_N.tolist(),
        class_N.tolist(),
        votes_N.tolist(),
    )
    for (x0, y0, x1, y1), area_px, score, number, vote in zip(*columns, strict=True):
        yield NamedRegion((x0, y0, x1, y1), area_px, score, named[number] if number < len(named) else None, vote)


def _size_px(rgb_HW3: Rgb) -> tuple[int, int]:
    if rgb_HW3.dtype != np.uint8 or rgb_HW3.ndim != 3 or rgb_HW3.shape[2] != 3 or not rgb_HW3.size:
        raise ValueError(f"a picture is uint8 [H, W, 3], not {rgb_HW3.dtype} {list(rgb_HW3.shape)}")
    return rgb_HW3.shape[0], rgb_HW3.shape[1]


def _on_device(rgb_HW3: Rgb, device: torch.device) -> Tensor:
    return torch.tensor(rgb_HW3, device=device).permute(2, 0, 1).contiguous()


def _first_repeated(values: Sequence[str]) -> str | None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def _tuned_records(tuned: Tuned | None, plain: Clip) -> Iterator[ModelRecord]:
    if tuned is None:
        return
    if tuned.clip:
        yield tuned.clip.record()
    own_licence = (tuned.clip or plain).record().licence
    files = (("prompts", tuned.prompts, own_licence), ("ovseg", tuned.ovseg, "CC-BY-NC-4.0"))
    for role, path, licence in files:
        if path is not None:
            yield ModelRecord(role, os.path.basename(path), weights_sha256(path), licence)
