"""Top-k accuracy of CLIP on masked regions, before and after tuning, and on whole images, which tuning may cost.

Shapes: R regions of a batch, N of an image, C classes, S side of the input in pixels, E width of the embedding; H, W
height and width of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from maskmine.mining.images.crops import Crop, PictureCrop, cut_masks, cut_regions
from maskmine.mining.models.clip import Clip, WholeClip
from maskmine.mining.models.devices import open_device
from maskmine.mining.models.prompt_templates import Templates
from maskmine.mining.vocabulary import Vocabulary, equal_texts, text_classifier
from maskmine.schemas.errors import InputError
from maskmine.schemas.settings import AnyPath, ExecutionOnly, Settings
from maskmine.tuning.clip.towers import Tower, Tuned, bare_tower, tuned_tower
from maskmine.tuning.evaluation.labelled_regions import Crops, LabelledImage, LabelledRegions, Source

UNMASKED, MASKED = "plain CLIP, unmasked", "plain CLIP, masked"
EXAMPLES = 12
"""Two rows of six in the image of the regions that tuning won, and in that of those it lost."""

_WHOLE = PictureCrop(fill="none")


class RegionEvaluation(Settings):
    """What `maskmine evaluate` measures: regions of known class, by the plain CLIP and by tuned ones.

    Texts are always embedded by the plain CLIP, whose text tower tuning leaves unchanged.
    """

    clip: Clip
    """The plain CLIP."""
    tuned: Annotated[dict[str, Tuned], Field(default_factory=dict)]
    """Tuned CLIPs by the names that the report uses."""
    regions: Source
    """The regions of known class; `kind` chooses the format."""
    crop: PictureCrop = PictureCrop()
    """What CLIP sees of a region."""
    templates: Templates = "vild"
    """Prompt templates of classes: `vild`, `imagenet`, `raw`, or a text file."""
    retention: Crops | None = None
    """Whole images in a folder for each class, which show what tuning forgot; null uses regions with their
    surroundings."""
    context_ratio: Annotated[float, Field(ge=1, le=16)] = 1.5
    """Factor by which a region's box is grown to show it with its surroundings."""
    mined: AnyPath | None = None
    """The `out` folder of a mining run, by whose vocabulary classes are grouped by how often captions mention them."""
    device: Annotated[str, ExecutionOnly()] = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:N`."""

    @model_validator(mode="after")
    def _names_of_their_own(self) -> RegionEvaluation:
        for name in self.tuned:
            if name in (UNMASKED, MASKED):
                raise ValueError(f"`tuned.{name}`: is the name of a row without tuning; choose another")
        return self


@dataclass(frozen=True, slots=True)
class TopK:
    """By class [C]: the number of regions, and of those whose class is the first guess, or among the first five."""

    counts: tuple[int, ...]
    top1: tuple[int, ...]
    top5: tuple[int, ...]

    @property
    def regions(self) -> int:
        """All regions."""
        return sum(self.counts)

    def accuracy(self, *, top: int = 1, classes: Sequence[int] | None = None) -> float | None:
        """The share of regions (of some classes) that are correct with `top` 1 or 5 guesses; None without any.

        None also for as many guesses as there are classes, which are always right.
        """
        if top >= len(self.counts):
            return None
        chosen = range(len(self.counts)) if classes is None else classes
        correct = self.top1 if top == 1 else self.top5
        regions = sum(self.counts[number] for number in chosen)
        return sum(correct[number] for number in chosen) / regions if regions else None

    @property
    def classes(self) -> int:
        """The classes that have regions."""
        return sum(count > 0 for count in self.counts)

    def macro(self) -> float | None:
        """The mean top-1 accuracy of the classes that have regions."""
        shares = [correct / count for correct, count in zip(self.top1, self.counts, strict=True) if count]
        return sum(shares) / len(shares) if shares else None


@dataclass(frozen=True, slots=True)
class Example:
    """A region that tuning won or lost: RGB [S, S, 3] as CLIP sees it, its class, and the first guesses."""

    rgb_SS3: Any
    class_: str
    plain: str
    tuned: str
    image: str


@dataclass(frozen=True, slots=True)
class RegionResults:
    """`masked` has the rows of the table by name, plain CLIP first; `whole` those on whole images.

    `identical` are the tuned CLIPs whose embeddings of whole images equal the plain ones to the bit. `won` and `lost`
    compare the first tuned CLIP with plain CLIP on masked regions.
    """

    classes: tuple[str, ...]
    masked: Mapping[str, TopK]
    whole: Mapping[str, TopK]
    identical: frozenset[str]
    left_out: Mapping[str, int]
    won: tuple[Example, ...]
    lost: tuple[Example, ...]


def evaluate_regions(
    settings: RegionEvaluation, *, tick: Callable[[int], None] = lambda regions: None
) -> RegionResults:
    """Evaluate; `tick` gets the number of regions of each batch. Raises InputError for faults of the settings."""
    # Models, and the source of regions.
    device, plain = open_device(settings.device), settings.clip.open_whole()
    source = settings.regions.open()
    bare = bare_tower(plain.model.visual.to(device))
    tuned = {
        name: tuned_tower(one, plain, device=device, place=f"tuned.{name}") for name, one in settings.tuned.items()
    }
    classes_CE = _embed_classes(source.classes, settings, place="regions").to(device)
    unmasked = settings.crop.model_copy(update={"fill": "none"})
    context = unmasked.model_copy(update={"expand_ratio": settings.context_ratio})

    masked: dict[str, Tensor] = {}
    whole, contrast = _WholeImages(bare, tuned), _Contrast(source.classes, plain)
    with torch.inference_mode():
        for view in _views(source.images, plain, device=device, size=settings.clip.batch_size):
            # Plain CLIP, without and with masking.
            pixels_R3SS, masks_RSS = view.pixels(settings.crop), view.masks(settings.crop)
            if source.has_background:
                _count(masked, UNMASKED, bare(view.pixels(unmasked), None) @ classes_CE.T, view.classes_R)
            before_RC = bare(pixels_R3SS, None) @ classes_CE.T
            _count(masked, MASKED, before_RC, view.classes_R)

            # Tuned CLIPs; the first one is compared with plain CLIP.
            after = {name: tower(pixels_R3SS, masks_RSS) @ classes_CE.T for name, tower in tuned.items()}
            for name, after_RC in after.items():
                _count(masked, name, after_RC, view.classes_R)
            for after_RC in [*after.values()][:1]:
                contrast.add(view, pixels_R3SS, before_RC, after_RC)

            # Regions with their surroundings stand in for whole images, unless there are some.
            if settings.retention is None and source.has_background:
                whole.add(view.pixels(context), view.classes_R, classes_CE)
            tick(len(view.classes_R))
        if not masked:
            raise InputError(f"regions: there is none that can be read ({_listed(source.left_out)})")
        if settings.retention is not None:
            _add_retention(whole, settings.retention.open(), settings, plain, device=device)
    return RegionResults(
        classes=source.classes,
        masked=_top_k(masked),
        whole=_top_k(whole.counts),
        identical=frozenset(tuned) - whole.changed if whole.counts else frozenset(),
        left_out=dict(source.left_out),
        won=contrast.examples(won=True),
        lost=contrast.examples(won=False),
    )


def _embed_classes(classes: Sequence[str], settings: RegionEvaluation, *, place: str) -> Tensor:
    """The classifier [C, E]. Raises InputError for classes between which there is nothing to tell."""
    if len(classes) < 2:
        raise InputError(f"{place}: has {len(classes)} class, and with fewer than two every guess is right; add others")
    embed = Vocabulary(templates=settings.templates).open_names(settings.clip, settings.device)
    classes_CE = text_classifier(classes, embed=embed)
    if same := equal_texts(classes, classes_CE):
        one, other = (f"`{classes[number]}` ({number + 1})" for number in same)
        raise InputError(
            f"{place}: classes {one} and {other} of {len(classes)} are one text to CLIP, which cannot tell them apart; "
            "make them one class, or give each a name of its own"
        )
    return classes_CE


def _count(into: dict[str, Tensor], name: str, similarity_RC: Tensor, classes_R: Tensor) -> None:
    """Add a batch to the counts of a row, int64 [3, C]: regions, top-1, top-5."""
    classes = similarity_RC.shape[1]
    rank_R = ranks_of(similarity_RC, classes_R)
    counts = [torch.bincount(classes_R[rank_R < top], minlength=classes) for top in (classes, 1, 5)]
    into[name] = torch.stack(counts).cpu() + into.get(name, 0)


def ranks_of(similarity_RC: Tensor, classes_R: Tensor) -> Tensor:
    """How many classes come before each region's own, int64 [R]: those more similar, and equal ones with lower numbers.

    So it is the place of the class in a stable sort, and a region that is equally similar to all classes counts as one
    of the first. Raises ValueError for similarities that are not finite, among which there is no order.
    """
    if not bool(similarity_RC.isfinite().all()):
        raise ValueError("similarities that are not finite have no order")
    own_R1 = similarity_RC.gather(1, classes_R[:, None])
    earlier_RC = torch.arange(similarity_RC.shape[1], device=classes_R.device) < classes_R[:, None]
    return ((similarity_RC > own_R1) | ((similarity_RC == own_R1) & earlier_RC)).sum(1)


def _top_k(counts: Mapping[str, Tensor]) -> dict[str, TopK]:
    return {name: TopK(*map(tuple, counts_3C.tolist())) for name, counts_3C in counts.items()}


@dataclass
class _WholeImages:
    """Whole images: counts by row, and the tuned CLIPs that embed any of them otherwise than the plain one."""

    bare: Tower
    tuned: Mapping[str, Tower]
    counts: dict[str, Tensor] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)

    def add(self, pixels_R3SS: Tensor, classes_R: Tensor, classes_CE: Tensor) -> None:
        plain_RE = self.bare(pixels_R3SS, None)
        _count(self.counts, "plain CLIP", plain_RE @ classes_CE.T, classes_R)
        for name, tower in self.tuned.items():
            tuned_RE = tower(pixels_R3SS, None)
            _count(self.counts, name, tuned_RE @ classes_CE.T, classes_R)
            if not torch.equal(tuned_RE, plain_RE):
                self.changed.add(name)


def _add_retention(
    whole: _WholeImages, source: LabelledRegions, settings: RegionEvaluation, plain: WholeClip, *, device: torch.device
) -> None:
    classes_CE = _embed_classes(source.classes, settings, place="retention").to(device)
    images = (
        LabelledImage(image.name, image.rgb_3HW, torch.ones_like(image.masks_NHW[:1]), image.classes)
        for image in source.images
    )
    for view in _views(images, plain, device=device, size=settings.clip.batch_size):
        whole.add(view.pixels(_WHOLE), view.classes_R, classes_CE)
    if not whole.counts:
        raise InputError(f"retention: there is no picture that can be read ({_listed(source.left_out)})")


class _View:
    """The regions of a batch of images, cropped on demand."""

    def __init__(self, batch: Sequence[LabelledImage], plain: WholeClip, *, device: torch.device) -> None:
        self._rgb = [image.rgb_3HW.to(device) for image in batch]
        self._masks = [image.masks_NHW.to(device) for image in batch]
        self._plain = plain
        self.classes_R = torch.tensor([number for image in batch for number in image.classes], device=device)
        self.names = [image.name for image in batch for _ in image.classes]

    def pixels(self, crop: Crop) -> Tensor:
        plain = self._plain
        return cut_regions(self._rgb, self._masks, size_px=plain.size_px, mean=plain.mean, std=plain.std, crop=crop)

    def masks(self, crop: Crop) -> Tensor:
        return cut_masks(self._masks, size_px=self._plain.size_px, crop=crop)


def _views(images: Iterator[LabelledImage], plain: WholeClip, *, device: torch.device, size: int) -> Iterator[_View]:
    """Images whose regions fill a batch; one with more regions is split."""
    batch: list[LabelledImage] = []
    for image in (part for whole in images for part in _split(whole, size=size)):
        if batch and sum(len(one.classes) for one in batch) + len(image.classes) > size:
            yield _View(batch, plain, device=device)
            batch = []
        batch.append(image)
    if batch:
        yield _View(batch, plain, device=device)


def _split(image: LabelledImage, *, size: int) -> Iterator[LabelledImage]:
    for start in range(0, len(image.classes), size):
        span = slice(start, start + size)
        yield LabelledImage(image.name, image.rgb_3HW, image.masks_NHW[span], image.classes[span])


@dataclass
class _Contrast:
    """The regions on which a tuned and the plain CLIP differ most, one right and the other wrong."""

    classes: tuple[str, ...]
    plain: WholeClip
    _found: dict[bool, list[tuple[float, Example]]] = field(default_factory=lambda: {True: [], False: []})

    def add(self, view: _View, pixels_R3SS: Tensor, before_RC: Tensor, after_RC: Tensor) -> None:
        own_R1 = view.classes_R[:, None]
        change_R = (after_RC - before_RC).gather(1, own_R1)[:, 0].abs()
        guesses_R2 = torch.stack([before_RC.argmax(1), after_RC.argmax(1)], dim=1)
        right_R2 = guesses_R2 == own_R1
        for won, found in self._found.items():
            rows = (right_R2[:, int(won)] & ~right_R2[:, int(not won)]).nonzero()[:, 0]
            for row in rows[change_R[rows].argsort(descending=True, stable=True)][:EXAMPLES].tolist():
                plain, tuned = (self.classes[guess] for guess in guesses_R2[row].tolist())
                own = self.classes[int(view.classes_R[row])]
                example = Example(self._rgb(pixels_R3SS[row]), own, plain, tuned, view.names[row])
                found.append((float(change_R[row]), example))
            found.sort(key=lambda scored: -scored[0])  # stable: of equal changes the first regions stay
            del found[EXAMPLES:]

    def examples(self, *, won: bool) -> tuple[Example, ...]:
        return tuple(example for _, example in self._found[won])

    def _rgb(self, pixels_3SS: Tensor) -> Any:
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.plain.mean, self.plain.std))
        shown_3SS = (pixels_3SS.cpu() * std + mean).clamp(0, 1) * 255
        return shown_3SS.round().to(torch.uint8).permute(1, 2, 0).numpy()


def _listed(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(left_out.items())) or "no picture"
