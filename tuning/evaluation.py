"""How well a CLIP names masked regions, before and after tuning, and what tuning cost it on natural pictures.

Shapes: R regions of a batch, N of a picture, C classes, S side of the input in pixels, E width of the embedding; H, W
height and width of a picture.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mining.crops import Crop, cut_masks, cut_regions
from mining.devices import open_device
from mining.models.clip import Clip, WholeClip
from mining.vocabulary import Vocabulary
from schemas.errors import InputError
from schemas.settings import Settings
from tuning.labelled_regions import Crops, LabelledPicture, LabelledRegions, Source
from tuning.towers import Tower, Tuned, bare_tower, embed_classes, tuned_tower

UNMASKED, MASKED = "plain CLIP, unmasked", "plain CLIP, masked"
EXAMPLES = 12
"""So many regions that tuning won, and as many that it lost, are kept to be looked at."""

_WHOLE = Crop(fill="none")


class Examination(Settings):
    """What is measured: regions of which one knows what they show, with plain CLIP and with tuned ones by name.

    `crop` says how a masked region is shown. `retention` are whole pictures in a folder for each class; without them,
    regions are shown with what is around them, `context_ratio` times their box. `mined` is the `out` folder of a
    mining run, by whose vocabulary classes are told apart by how often captions say them. Texts are always those of
    the plain CLIP, whose text side tuning leaves as it is.
    """

    clip: Clip
    tuned: Annotated[dict[str, Tuned], Field(default_factory=dict)]
    regions: Source
    crop: Crop = Crop()
    templates: str = "vild"
    retention: Crops | None = None
    context_ratio: Annotated[float, Field(ge=1, le=16)] = 1.5
    mined: str | None = None
    device: str = "auto"

    @model_validator(mode="after")
    def _names_of_their_own(self) -> Examination:
        for name in self.tuned:
            if name in (UNMASKED, MASKED):
                raise ValueError(f"`tuned.{name}`: is the name of a row without tuning; choose another")
        return self


@dataclass(frozen=True, slots=True)
class Hits:
    """Regions of each class [C], and how many of them had their class first, and among the first five."""

    of: tuple[int, ...]
    top1: tuple[int, ...]
    top5: tuple[int, ...]

    @property
    def regions(self) -> int:
        """All regions."""
        return sum(self.of)

    def accuracy(self, *, top: int = 1, classes: Sequence[int] | None = None) -> float | None:
        """The share of regions (of some classes) that are right with `top` 1 or 5 guesses; None where there is none."""
        chosen = range(len(self.of)) if classes is None else classes
        counts = self.top1 if top == 1 else self.top5
        regions = sum(self.of[number] for number in chosen)
        return sum(counts[number] for number in chosen) / regions if regions else None

    def macro(self) -> float | None:
        """The mean of the classes' accuracies with one guess, over classes that have a region."""
        shares = [right / of for right, of in zip(self.top1, self.of, strict=True) if of]
        return sum(shares) / len(shares) if shares else None


@dataclass(frozen=True, slots=True)
class Example:
    """A region that tuning won or lost: RGB [S, S, 3] as CLIP sees it, its class, and the first guesses."""

    rgb_SS3: Any
    class_: str
    plain: str
    tuned: str
    picture: str


@dataclass(frozen=True, slots=True)
class Findings:
    """`masked`: rows of the table by name, plain CLIP first. `whole`: the same on natural pictures, as a tower of
    `retention` sees them; `identical` names the tuned ones whose embeddings of these are the plain ones' to the bit.

    `won` and `lost` are of the first tuned CLIP against plain CLIP on masked regions.
    """

    classes: tuple[str, ...]
    masked: Mapping[str, Hits]
    whole: Mapping[str, Hits]
    identical: frozenset[str]
    left_out: Mapping[str, int]
    won: tuple[Example, ...]
    lost: tuple[Example, ...]


def examine(settings: Examination, *, tick: Callable[[int], None] = lambda regions: None) -> Findings:
    """Measure; `tick` is called with the number of regions of each batch. Raises InputError for faults of settings."""
    device, plain = open_device(settings.device), settings.clip.open_whole()
    source = settings.regions.open()
    towers = {"": bare_tower(plain.model.visual.to(device))}
    for name, tuned in settings.tuned.items():
        towers[name] = tuned_tower(tuned, plain, device=device, place=f"tuned.{name}")
    classes_CE = _embed_classes(source.classes, settings).to(device)

    masked: dict[str, _Counting] = {}
    whole: dict[str, _Counting] = {}
    contrast = _Contrast(source.classes, plain, first=next(iter(settings.tuned), None))
    unlike: set[str] = set()
    with torch.inference_mode():
        for batch in _batches(source.pictures, size=settings.clip.batch_size):
            view = _View(batch, plain, device=device)
            seen_R3SS, masks_RSS = view.pixels(settings.crop), view.masks(settings.crop)
            if source.has_background:
                similarity_RC = towers[""](view.pixels(_unmasked(settings.crop)), None) @ classes_CE.T
                _count(masked, UNMASKED, similarity_RC, view.classes_R)
            before_RC = towers[""](seen_R3SS, None) @ classes_CE.T
            _count(masked, MASKED, before_RC, view.classes_R)
            for name in settings.tuned:
                after_RC = towers[name](seen_R3SS, masks_RSS) @ classes_CE.T
                _count(masked, name, after_RC, view.classes_R)
                contrast.add(name, view, seen_R3SS, before_RC, after_RC)
            if settings.retention is None and source.has_background:
                context = Crop(fill="none", expand_ratio=settings.context_ratio)
                unlike |= _count_whole(whole, towers, view.pixels(context), view.classes_R, classes_CE)
            tick(len(view.classes_R))
    if not masked:
        raise InputError(f"regions: there is none that can be read ({_listed(source.left_out)})")
    if settings.retention is not None:
        unlike |= _examine_whole(settings, plain, towers, device=device, whole=whole)
    return Findings(
        classes=source.classes,
        masked={name: counting.hits(len(source.classes)) for name, counting in masked.items()},
        whole={name: counting.hits(counting.classes) for name, counting in whole.items()},
        identical=frozenset(settings.tuned) - unlike if whole else frozenset(),
        left_out=dict(source.left_out),
        won=contrast.best(won=True),
        lost=contrast.best(won=False),
    )


@dataclass
class _Counting:
    of: Counter[int] = field(default_factory=Counter)
    top1: Counter[int] = field(default_factory=Counter)
    top5: Counter[int] = field(default_factory=Counter)
    classes: int = 0

    def hits(self, classes: int) -> Hits:
        of, top1, top5 = (
            tuple(counted[number] for number in range(classes)) for counted in (self.of, self.top1, self.top5)
        )
        return Hits(of, top1, top5)


def _count(into: dict[str, _Counting], name: str, similarity_RC: Tensor, classes_R: Tensor) -> None:
    counting = into.setdefault(name, _Counting())
    counting.classes = similarity_RC.shape[1]
    own_R1 = similarity_RC.gather(1, classes_R[:, None])
    before_R = (similarity_RC > own_R1).sum(1).tolist()
    for number, before in zip(classes_R.tolist(), before_R, strict=True):
        counting.of[number] += 1
        counting.top1[number] += before < 1
        counting.top5[number] += before < 5


def _count_whole(
    into: dict[str, _Counting],
    towers: Mapping[str, Tower],
    pixels_R3SS: Tensor,
    classes_R: Tensor,
    classes_CE: Tensor,
) -> set[str]:
    """Count natural pictures; returns the towers that do not see them as the plain one does, to the bit."""
    found = {name: tower(pixels_R3SS, None) for name, tower in towers.items()}
    for name, embeddings_RE in found.items():
        _count(into, name or "plain CLIP", embeddings_RE @ classes_CE.T, classes_R)
    return {name for name, embeddings_RE in found.items() if not torch.equal(embeddings_RE, found[""])}


def _examine_whole(
    settings: Examination,
    plain: WholeClip,
    towers: Mapping[str, Tower],
    *,
    device: torch.device,
    whole: dict[str, _Counting],
) -> set[str]:
    assert settings.retention is not None
    source = settings.retention.open()
    classes_CE = _embed_classes(source.classes, settings).to(device)
    unlike: set[str] = set()
    with torch.inference_mode():
        for batch in _batches(_whole_pictures(source), size=settings.clip.batch_size):
            view = _View(batch, plain, device=device)
            unlike |= _count_whole(whole, towers, view.pixels(_WHOLE), view.classes_R, classes_CE)
    if not whole:
        raise InputError(f"retention: there is no picture that can be read ({_listed(source.left_out)})")
    return unlike


def _whole_pictures(source: LabelledRegions) -> Iterator[LabelledPicture]:
    for picture in source.pictures:
        everywhere_1HW = torch.ones_like(picture.masks_NHW[:1])
        yield LabelledPicture(picture.name, picture.rgb_3HW, everywhere_1HW, picture.classes)


def _embed_classes(classes: Sequence[str], settings: Examination) -> Tensor:
    return embed_classes(classes, embed=Vocabulary(templates=settings.templates).open(settings.clip, settings.device))


class _View:
    """The regions of some pictures, cut out as they are asked for."""

    def __init__(self, batch: Sequence[LabelledPicture], plain: WholeClip, *, device: torch.device) -> None:
        self._rgb = [picture.rgb_3HW.to(device) for picture in batch]
        self._masks = [picture.masks_NHW.to(device) for picture in batch]
        self._plain = plain
        self.classes_R = torch.tensor([number for picture in batch for number in picture.classes], device=device)
        self.names = [picture.name for picture in batch for _ in picture.classes]

    def pixels(self, crop: Crop) -> Tensor:
        plain = self._plain
        return cut_regions(self._rgb, self._masks, size_px=plain.size_px, mean=plain.mean, std=plain.std, crop=crop)

    def masks(self, crop: Crop) -> Tensor:
        return cut_masks(self._masks, size_px=self._plain.size_px, crop=crop)


@dataclass
class _Contrast:
    """The regions on which the first tuned CLIP and the plain one differ most, one right and the other wrong."""

    classes: tuple[str, ...]
    plain: WholeClip
    first: str | None
    _kept: dict[bool, list[tuple[float, int, Example]]] = field(default_factory=lambda: {True: [], False: []})
    _number: int = 0

    def add(self, name: str, view: _View, pixels_R3SS: Tensor, before_RC: Tensor, after_RC: Tensor) -> None:
        if name != self.first:
            return
        own_R1 = view.classes_R[:, None]
        change_R = (after_RC - before_RC).gather(1, own_R1)[:, 0]
        guesses_R2 = torch.stack([before_RC.argmax(1), after_RC.argmax(1)], dim=1)
        right_R2 = guesses_R2 == own_R1
        for row in (right_R2[:, 0] != right_R2[:, 1]).nonzero()[:, 0].tolist():
            won = bool(right_R2[row, 1])
            size = abs(float(change_R[row]))
            self._number += 1
            kept = self._kept[won]
            if len(kept) == EXAMPLES and size <= kept[0][0]:
                continue
            plain, tuned = (self.classes[guess] for guess in guesses_R2[row].tolist())
            own = self.classes[int(view.classes_R[row])]
            example = Example(self._rgb(pixels_R3SS[row]), own, plain, tuned, view.names[row])
            heapq.heappush(kept, (size, -self._number, example))
            if len(kept) > EXAMPLES:
                heapq.heappop(kept)

    def best(self, *, won: bool) -> tuple[Example, ...]:
        return tuple(example for _, _, example in sorted(self._kept[won], key=lambda one: (-one[0], -one[1])))

    def _rgb(self, pixels_3SS: Tensor) -> Any:
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.plain.mean, self.plain.std))
        shown_3SS = (pixels_3SS.cpu() * std + mean).clamp(0, 1) * 255
        return shown_3SS.round().to(torch.uint8).permute(1, 2, 0).numpy()


def _unmasked(crop: Crop) -> Crop:
    return crop.model_copy(update={"fill": "none"})


def _batches(pictures: Iterator[LabelledPicture], *, size: int) -> Iterator[list[LabelledPicture]]:
    """Pictures whose regions make up about a batch; one of more regions is cut into pieces."""
    batch: list[LabelledPicture] = []
    for picture in (piece for whole in pictures for piece in _pieces(whole, size=size)):
        if batch and sum(len(one.classes) for one in batch) + len(picture.classes) > size:
            yield batch
            batch = []
        batch.append(picture)
    if batch:
        yield batch


def _pieces(picture: LabelledPicture, *, size: int) -> Iterator[LabelledPicture]:
    for start in range(0, len(picture.classes), size):
        span = slice(start, start + size)
        yield LabelledPicture(picture.name, picture.rgb_3HW, picture.masks_NHW[span], picture.classes[span])


def _listed(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {why}" for why, count in sorted(left_out.items())) or "no picture"
