"""CLIP as the classifier of an image's regions, cut while its tower sees those before.

Shapes: N regions of one image, R regions of a batch, C classes, D width of CLIP's embeddings, S side of its input.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from maskmine.mining.images.crops import Crop, cut_masks, cut_regions
from maskmine.mining.models.clip import Clip, embed_in_batches
from maskmine.mining.models.devices import Precision, resolve_precision
from maskmine.mining.models.embeddings import chunk_regions
from maskmine.mining.storage.prefetch import map_in_order
from maskmine.mining.vocabulary import Vocabulary, text_classifier
from maskmine.tuning.clip.towers import Tuned, bare_tower, tuned_tower

_CPU_BATCH, _CPU_BATCH_LARGE = 32, 16  # a CPU is no faster with larger batches, and a large model is slower
_LARGE = 20_000_000  # parameters of an image tower


@dataclass(frozen=True, slots=True)
class RegionClassifier:
    """CLIP: `embed_regions` takes images and their masks and gives [N, D] for each, one after the other as they are
    taken, `embed_classes` gives [C, D]."""

    embed_regions: Callable[[Sequence[Tensor], Sequence[Tensor]], Iterable[Tensor]]
    embed_classes: Callable[[tuple[str, ...]], Tensor]


def open_region_classifier(
    clip: Clip, tuned: Tuned | None, *, crop: Crop, templates: str, device: torch.device
) -> RegionClassifier:
    """The CLIP of a `Segmenter` on `device`. Raises InputError when it cannot be had."""
    plain = clip.open_whole()
    visual = tuned_tower(tuned, plain, device=device, place="tuned") if tuned else None
    tower = visual or bare_tower(plain.model.visual.to(device))
    batches = functools.partial(
        _batches_of_regions, size=_most_at_once(clip, plain.model.visual, device), device=device
    )
    sees_masks = tuned is not None and not (tuned.prompts is None and tuned.ovseg is None)
    size_px, dim, dtype = plain.size_px, plain.dim, _dtype(clip.precision, device)
    embed_nouns = Vocabulary(templates=templates).open_names(clip, str(device))

    def forward(pixels_and_masks_BXSS: Tensor) -> Tensor:
        masks_BSS = pixels_and_masks_BXSS[:, 3] > 0 if sees_masks else None
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return tower(pixels_and_masks_BXSS[:, :3], masks_BSS)

    def embed_regions(images: Sequence[Tensor], masks: Sequence[Tensor]) -> Iterator[Tensor]:
        counts = [len(masks_NHW) for masks_NHW in masks]

        def cut(batch: tuple[list[tuple[int, slice]], int]) -> tuple[Tensor, int]:
            chunk, batch_size = batch
            rgb, masks_of = [images[i] for i, _ in chunk], [masks[i][span] for i, span in chunk]
            with torch.inference_mode():  # of a thread
                seen_RXSS = cut_regions(rgb, masks_of, size_px=size_px, mean=plain.mean, std=plain.std, crop=crop)
                if sees_masks:
                    masks_RSS = cut_masks(masks_of, size_px=size_px, crop=crop)
                    seen_RXSS = torch.cat([seen_RXSS, masks_RSS[:, None].to(seen_RXSS.dtype)], dim=1)
            return seen_RXSS, batch_size

        def embed() -> Iterator[Tensor]:
            # The next crops are cut while the tower sees these.
            for seen_RXSS, batch_size in map_in_order(cut, batches(counts), threads=1, ahead=1):
                yield embed_in_batches(seen_RXSS, forward=forward, batch_size=batch_size, dim=dim)

        yield from _split_as_they_come(embed(), counts, none_ND=torch.empty(0, dim, device=device))

    @functools.lru_cache(maxsize=1)
    def embed_names(names: tuple[str, ...]) -> Tensor:
        return text_classifier(names, embed=embed_nouns).to(device)

    return RegionClassifier(embed_regions, embed_names)


def _split_as_they_come(parts: Iterator[Tensor], counts: Sequence[int], *, none_ND: Tensor) -> Iterator[Tensor]:
    """So many rows at a time, each as soon as they are there."""
    number, rows_RD = 0, none_ND
    for part_RD in parts:
        rows_RD = torch.cat([rows_RD, part_RD])
        while number < len(counts) and counts[number] <= len(rows_RD):
            yield rows_RD[: counts[number]]
            number, rows_RD = number + 1, rows_RD[counts[number] :]
    yield from (none_ND for _ in counts[number:])


def _most_at_once(clip: Clip, tower: torch.nn.Module, device: torch.device) -> int:
    """The regions that CLIP sees at once."""
    if device.type != "cpu":
        return clip.batch_size
    large = sum(weights.numel() for weights in tower.parameters()) > _LARGE
    return min(clip.batch_size, _CPU_BATCH_LARGE if large else _CPU_BATCH)


def _batches_of_regions(
    counts: Sequence[int], *, size: int, device: torch.device
) -> Iterator[tuple[list[tuple[int, slice]], int]]:
    """Spans of regions that CLIP sees at once, at most `size`, and how many rows the model is given.

    On a GPU every batch is a whole one, across images, and the last one is filled up. On a CPU that costs time: there
    an image's regions are shared out evenly among as few batches as they need, which have no row to spare, and so
    their embeddings do not depend on other images.
    """
    if device.type != "cpu":
        yield from ((chunk, size) for chunk in chunk_regions(counts, size=size))
        return
    for number, count in enumerate(counts):
        batches = -(-count // size)
        for first, last in pairwise(count * n // max(1, batches) for n in range(batches + 1)):
            yield [(number, slice(first, last))], last - first


def _dtype(precision: Precision, device: torch.device) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, resolve_precision(precision, device, on_gpu="float16"))
    return dtype
