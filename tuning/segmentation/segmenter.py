"""Two-stage open-vocabulary segmentation: class-agnostic masks, which a plain or a tuned CLIP classifies.

    images ──▶ proposals ─▶ keep ─▶ crops ─▶ CLIP, with or without prompts ─┐
    classes ─▶ templates ─▶ CLIP's text tower ──────────────────────────────┴▶ votes [N, C] ─▶ map [H, W]

```python
segment = load_settings(Segmenter, "configs/segment.yaml").open()
(found,) = segment([rgb_HW3], classes=["Saturn V", "blossom"])
found.labels_HW
```

Shapes: N proposals of one image, R regions of a batch, C classes, D width of CLIP's embeddings, S side of its input in
pixels; H, W height and width of an image in pixels. A size is `(height_px, width_px)`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from maskmine.mining.images.batches import plan_batches
from maskmine.mining.images.child_decoder import Decoding
from maskmine.mining.images.crops import PictureCrop, tight_boxes
from maskmine.mining.models.clip import Clip
from maskmine.mining.models.devices import DeviceKind, fix_threads, open_device
from maskmine.mining.models.prompt_templates import Templates
from maskmine.mining.proposers.maskformer import MaskFormer
from maskmine.mining.proposers.proposals import Keep, LoadedImage, Proposals, Proposer, areas_px_of, keep_proposals
from maskmine.mining.regions import AnyProposals
from maskmine.mining.storage.content_hash import weights_sha256
from maskmine.mining.storage.prefetch import map_in_order
from maskmine.schemas.errors import InputError
from maskmine.schemas.manifest import ModelRecord
from maskmine.schemas.mask import Box
from maskmine.schemas.rows import Rejection
from maskmine.schemas.settings import ExecutionOnly, Settings
from maskmine.tuning.clip.towers import Tuned
from maskmine.tuning.segmentation.confusion import IGNORE
from maskmine.tuning.segmentation.proposal_classifier import ProposalClassifier, open_proposal_classifier
from maskmine.tuning.segmentation.region_classifier import RegionClassifier, open_region_classifier
from maskmine.tuning.segmentation.semantic_inference import (
    BACKGROUND,
    best_masks,
    clip_probabilities,
    ensemble,
    paint_hard,
    paint_soft,
)
from maskmine.tuning.segmentation.work_size import enlarged, reduced, work_size

MAX_CLASSES = 65_535
"""A label map of 16 bits has room for these, and for the number of no class."""

Rgb = np.ndarray[Any, np.dtype[np.uint8]]
Labels = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True, slots=True)
class NamedRegion:
    """A kept region: its box, its area, the proposer's score, and the class with its greatest vote.

    `class_` is None where that is the background; `probability` is the vote.
    """

    box_xyxy: Box
    area_px: int
    score: float
    class_: str | None
    probability: float


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """The map of an image: `labels_HW` has numbers of `classes`, or IGNORE.

    `scores` has the greatest vote for each class (0 to 1), None without any region. `proposed` is the number of
    proposals before filtering, `regions` are those that were kept.
    """

    classes: tuple[str, ...]
    labels_HW: Labels
    scores: tuple[float | None, ...]
    regions: tuple[NamedRegion, ...]
    proposed: int


class Segment(Protocol):
    """What `Segmenter.open()` returns: images to their maps, in order."""

    def __call__(
        self, images: Sequence[Rgb], /, *, classes: Sequence[str], image_ids: Sequence[str] | None = None
    ) -> list[Segmentation | Rejection]:
        """Images are upright RGB, uint8 [H, W, 3] of any sizes; proposals from annotations need `image_ids`.

        On a CPU the map of an image does not depend on the other images. An image without annotations is a Rejection.
        Raises InputError for classes as `check_classes` does, and where the rule needs a classifier that the
        proposals do not have; ValueError for other arrays.
        """
        ...


@dataclass(frozen=True, slots=True)
class Models:
    """The loaded models, all on `device`: the proposer, and CLIP where the rule needs it.

    `proposal_classifier` is the one that comes with the proposals; without it, `Segmenter.open` opens it.
    """

    device: torch.device
    propose: Proposer
    region_classifier: RegionClassifier | None
    proposal_classifier: ProposalClassifier | None = None


class Segmenter(Settings):
    """Which masks, which CLIP, and how their votes become a label map. The defaults are the models of
    configs/coco.yaml."""

    proposals: AnyProposals = MaskFormer(kind="maskformer", checkpoint="facebook/maskformer-swin-base-coco")
    """What proposes masks; `kind` chooses the model."""
    keep: Keep = Keep(min_area_px=1, max_area_ratio=1.0)
    """Which proposals vote."""
    clip: Clip = Clip(model="ViT-L-14", pretrained="openai")
    """The CLIP that classifies regions."""
    tuned: Tuned | None = None
    """A fine-tuned CLIP, mask prompts, or both, in place of `clip`'s image tower."""
    crop: PictureCrop = PictureCrop()
    """What CLIP sees of a region."""
    templates: Templates = "vild"
    """Prompt templates of classes: `vild`, `imagenet`, `raw`, or a text file."""
    logit_scale: Annotated[float, Field(gt=0, le=1000)] = 100.0
    """Factor of the cosines before the softmax over classes."""
    rule: Literal["clip", "proposals", "ensemble"] = "clip"
    """Which classifier votes: `clip`, the `proposals`' own, or OVSeg's `ensemble` of both."""
    clip_weight: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """Weight λ of CLIP in the ensemble p^(1−λ) · p̂^λ."""
    paint: Literal["sum", "best_per_class"] = "sum"
    """`sum`: all masks vote, softly where the proposer's masks are soft. `best_per_class`: only the best mask of each
    class votes, and other pixels have no class."""
    granularity: Annotated[float, Field(ge=0, le=1)] = 1.0
    """With `best_per_class`, masks whose vote is above this factor × the best vote of a class count too; 1 takes the
    best alone."""
    batch_size: Annotated[int, ExecutionOnly(), Field(ge=1)] = 8
    """Images of one size that the proposer sees at once. Results agree within rounding."""
    device: Annotated[str, ExecutionOnly()] = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:N`. Results agree within rounding."""
    max_image_pixels: Annotated[int, Field(ge=1)] = 50_000_000
    """Larger images are rejected before they are decoded."""
    work_pixels: Annotated[int, Field(ge=1)] = 8_000_000
    """Larger images are segmented reduced to this many pixels, and their maps enlarged: it bounds the memory, see
    docs/segment.md. Images with annotations as proposals keep their size."""
    decode_threads: Annotated[int, ExecutionOnly(), Field(ge=1)] = 2
    """Images that are decoded at the same time, each in a process of its own."""
    decoding: Annotated[Decoding, ExecutionOnly()] = Decoding()
    """Limits of the decoding processes."""
    cpu_threads: Annotated[int, ExecutionOnly(hash_default=True), Field(ge=1)] = 2
    """Threads of the models on a CPU. Results agree within rounding."""

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

    def settled(self, kind: DeviceKind) -> Segmenter:
        """These settings with what `precision: auto` comes to on a kind of device, which is part of the result."""
        return self.model_copy(update={"proposals": self.proposals.settled(kind), "clip": self.clip.settled(kind)})

    def load(self) -> Models:
        """Load the models; raises InputError when they cannot be had.

        They serve all settings that differ only in `keep`, `logit_scale`, `rule`, `clip_weight`, `paint` and
        `granularity`; with `rule: proposals` CLIP is not loaded, so the rule has to stay.
        """
        device = open_device(self.device)
        fix_threads(self.device, cpu_threads=self.cpu_threads)
        propose = self.proposals.open(device=self.device)
        clip = None
        if self.rule != "proposals":
            clip = open_region_classifier(
                self.clip, self.tuned, crop=self.crop, templates=self.templates, device=device
            )
        return Models(device, propose, clip, self._proposal_classifier())

    def open(self, *, models: Models | None = None) -> Segment:
        """The function from images to maps, with `models` that were loaded before, or as `load` loads them."""
        loaded = models or self.load()
        if loaded.region_classifier is None and self.rule != "proposals":
            raise ValueError(f"these models were loaded without CLIP, and `rule: {self.rule}` needs it")
        loaded = replace(loaded, proposal_classifier=loaded.proposal_classifier or self._proposal_classifier())

        def segment(
            images: Sequence[Rgb], /, *, classes: Sequence[str], image_ids: Sequence[str] | None = None
        ) -> list[Segmentation | Rejection]:
            names, ids = check_classes(classes), image_ids or [str(number) for number in range(len(images))]
            maps: dict[int, Segmentation | Rejection] = {}
            whole_px = [_size_px(rgb_HW3) for rgb_HW3 in images]
            sizes_px = [self._work_size(size_px) for size_px in whole_px]
            for batch in plan_batches(sizes_px, batch_size=self.batch_size):
                seen = {i: reduced(images[i], size_px=sizes_px[i]) for i in batch}
                on_device = [LoadedImage(ids[i], _on_device(seen[i], loaded.device)) for i in batch]
                with torch.inference_mode():
                    answers = _segment_batch(on_device, classes=names, settings=self, models=loaded)
                maps.update(zip(batch, answers, strict=True))
            return [
                one if isinstance(one := maps[i], Rejection) else enlarged(one, size_px=whole_px[i])
                for i in range(len(images))
            ]

        return segment

    def records(self) -> list[ModelRecord]:
        """The models that make the maps. Raises InputError for settings that name nothing."""
        if self.rule == "proposals":
            texts = [self.clip.record()] if self.proposals.kind == "open_maskformer" else []
            return [self.proposals.record(), *texts]
        return [self.proposals.record(), self.clip.record(), *_tuned_records(self.tuned, self.clip)]

    def _work_size(self, size_px: tuple[int, int]) -> tuple[int, int]:
        if self.proposals.kind == "ground_truth":  # annotations are in pixels of the image
            return size_px
        return work_size(size_px, most_pixels=self.work_pixels)

    def _proposal_classifier(self) -> ProposalClassifier:
        return open_proposal_classifier(self.proposals, clip=self.clip, device=self.device, at_once=self.rule != "clip")


def check_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """The classes that get votes, BACKGROUND last where it is named; it is added where there is only one class.

    Raises InputError when there is no class, an empty one, one twice (case and spaces apart), or too many.
    """
    plain = [" ".join(class_.split()) for class_ in classes]
    if "" in plain:
        raise InputError(f"classes: number {plain.index('') + 1} is empty; give each a name")
    repeated = next((name for name, count in Counter(map(str.casefold, plain)).items() if count > 1), None)
    if repeated:
        raise InputError(f"classes: `{repeated}` is there twice; name each class once")
    named = [class_ for class_ in plain if class_.casefold() != BACKGROUND]
    if not named:
        raise InputError("classes: none is named; give at least one, such as --classes 'dog, tree'")
    if len(named) > MAX_CLASSES:
        raise InputError(f"classes: {len(named):,} are too many for a map of 16 bits; give at most {MAX_CLASSES:,}")
    return (*named, BACKGROUND) if len(named) == 1 or len(named) < len(plain) else tuple(named)


def class_numbers(classes: Sequence[str]) -> tuple[int, ...]:
    """The number of each class that a map may have: its place in the list as it was given, in which BACKGROUND keeps
    its own though no pixel has it."""
    return tuple(n for n, class_ in enumerate(classes) if " ".join(class_.split()).casefold() != BACKGROUND)


def _segment_batch(
    images: Sequence[LoadedImage], *, classes: tuple[str, ...], settings: Segmenter, models: Models
) -> list[Segmentation | Rejection]:
    """The maps of images of one size, in order."""
    # Filtered one at a time: the masks of one image are a hundred times its size.
    answers = [
        answer if isinstance(answer, Rejection) else (keep_proposals(answer, keep=settings.keep), len(answer))
        for answer in models.propose(images, min_score=settings.keep.min_score)
    ]

    def segment_one(found: tuple[tuple[Proposals, int] | Rejection, Tensor | None]) -> Segmentation | Rejection:
        answer, clip_NC = found
        if isinstance(answer, Rejection):
            return answer
        with torch.inference_mode():  # of a thread
            return _segment_one(*answer, clip_NC, classes=classes, settings=settings, models=models)

    # A map is painted while CLIP sees the regions of the next image; a fault of one ends the other.
    clip = None if settings.rule == "proposals" else models.region_classifier
    good = [(image, answer[0]) for image, answer in zip(images, answers, strict=True) if isinstance(answer, tuple)]
    with closing(_clip_votes(clip, good, classes=classes, logit_scale=settings.logit_scale)) as clip_votes:
        voted = ((answer, None if isinstance(answer, Rejection) else next(clip_votes)) for answer in answers)
        return list(map_in_order(segment_one, voted, threads=1, ahead=1))


def _clip_votes(
    clip: RegionClassifier | None,
    good: Sequence[tuple[LoadedImage, Proposals]],
    *,
    classes: tuple[str, ...],
    logit_scale: float,
) -> Generator[Tensor | None, None, None]:
    """The probabilities that CLIP gives the regions of each image, all embedded together, in batches of its own; None
    for each where no CLIP votes."""
    if clip is None:
        yield from repeat(None)
    elif good:
        classes_CD = clip.embed_classes(classes)
        for regions_ND in clip.embed_regions(
            [image.rgb_3HW for image, _ in good], [kept.masks_NHW for _, kept in good]
        ):
            yield clip_probabilities(regions_ND, classes_CD, logit_scale=logit_scale)


def _segment_one(
    kept: Proposals,
    proposed: int,
    clip_NC: Tensor | None,
    *,
    classes: tuple[str, ...],
    settings: Segmenter,
    models: Models,
) -> Segmentation:
    votes_NC = _votes(kept, clip_NC, classes=classes, settings=settings, models=models)
    labels_HW = _paint(kept, votes_NC, classes=classes, settings=settings)
    names = tuple(class_ for class_ in classes if class_ != BACKGROUND)
    labels: Labels = torch.where(labels_HW < len(names), labels_HW, IGNORE).to(torch.int32).cpu().numpy()
    scores = votes_NC.amax(dim=0).tolist()[: len(names)] if len(kept) else [None] * len(names)
    return Segmentation(names, labels, tuple(scores), tuple(_regions(kept, votes_NC, names)), proposed)


def _votes(
    kept: Proposals, clip_NC: Tensor | None, *, classes: tuple[str, ...], settings: Segmenter, models: Models
) -> Tensor:
    if settings.rule == "clip":
        assert clip_NC is not None
        return clip_NC
    assert models.proposal_classifier is not None  # `Segmenter.open` sees to it
    proposal_NC = models.proposal_classifier(kept, classes)
    return proposal_NC if clip_NC is None else ensemble(proposal_NC, clip_NC, clip_weight=settings.clip_weight)


def _paint(kept: Proposals, votes_NC: Tensor, *, classes: Sequence[str], settings: Segmenter) -> Tensor:
    height_px, width_px = kept.masks_NHW.shape[1:]
    if settings.paint == "best_per_class":
        chosen = best_masks(votes_NC, classes=classes, granularity=settings.granularity)
        return paint_hard(votes_NC[chosen], kept.masks_NHW[chosen])
    if kept.soft_Nhw is None:
        return paint_hard(votes_NC, kept.masks_NHW)
    return paint_soft(votes_NC, kept.soft_Nhw, size_px=(height_px, width_px))


def _regions(kept: Proposals, votes_NC: Tensor, names: Sequence[str]) -> Iterator[NamedRegion]:
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
        yield NamedRegion((x0, y0, x1, y1), area_px, score, names[number] if number < len(names) else None, vote)


def _size_px(rgb_HW3: Rgb) -> tuple[int, int]:
    if rgb_HW3.dtype != np.uint8 or rgb_HW3.ndim != 3 or rgb_HW3.shape[2] != 3 or not rgb_HW3.size:
        raise ValueError(f"an image is uint8 [H, W, 3], not {rgb_HW3.dtype} {list(rgb_HW3.shape)}")
    return rgb_HW3.shape[0], rgb_HW3.shape[1]


def _on_device(rgb_HW3: Rgb, device: torch.device) -> Tensor:
    return torch.tensor(rgb_HW3, device=device).permute(2, 0, 1).contiguous()


def _tuned_records(tuned: Tuned | None, plain: Clip) -> Iterator[ModelRecord]:
    if tuned is None:
        return
    if tuned.clip:
        yield tuned.clip.record()
    own_licence = (tuned.clip or plain).record().licence
    files = (("prompts", tuned.prompts, own_licence), ("ovseg", tuned.ovseg, "CC-BY-NC-4.0"))
    for role, path, licence in files:
        if path is not None:
            yield ModelRecord(role=role, name=os.path.basename(path), sha256=weights_sha256(path), licence=licence)
