"""CLIP embeddings of regions and of nouns, and their form in a table: little-endian float16.

Shapes: N regions of one image, or nouns, R regions of a chunk, S side of a crop, T templates, D width of the embedding;
pixels and masks as in `mining/images/crops.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskmine.mining.images.crops import Crop, cut_masks, cut_regions
from maskmine.mining.models.prompt_templates import fill_template

if TYPE_CHECKING:
    from torch import Tensor

    from maskmine.mining.models.clip import ImageTower, TextTower


@dataclass(frozen=True, slots=True)
class Crops:
    """What CLIP sees of R regions: normalised pixels [R, 3, S, S] and, for a tower that is given them, masks
    [R, S, S]."""

    pixels_R3SS: Tensor
    masks_RSS: Tensor | None


def embed_regions(
    images: Sequence[Tensor], masks: Sequence[Tensor], *, tower: ImageTower, crop: Crop
) -> list[np.ndarray[Any, np.dtype[np.float16]]]:
    """CLIP's embeddings of each image's regions: one array [N, D] of unit vectors an image.

    Images are uint8 [3, H, W], masks boolean [N, H, W] without empty ones. Crops of all images are cut and embedded in
    batches of the tower's size, so memory is bounded by one batch; an image's result does not depend on the others.
    """
    counts = [len(masks_NHW) for masks_NHW in masks]
    batches = [np.empty((0, tower.dim), "<f2")]
    for chunk in chunk_regions(counts, size=tower.batch_size):
        batches.append(embed_crops(cut_crops(images, masks, chunk, tower=tower, crop=crop), tower=tower))
    ends = np.cumsum(counts, dtype=np.int64)
    return np.split(np.concatenate(batches), ends[:-1]) if len(masks) else []


def cut_crops(
    images: Sequence[Tensor],
    masks: Sequence[Tensor],
    chunk: Sequence[tuple[int, slice]],
    *,
    tower: ImageTower,
    crop: Crop,
) -> Crops:
    """What the tower sees of a chunk of the regions, see `chunk_regions`; images and masks as in `embed_regions`."""
    of_chunk = [masks[number][span].to(tower.device) for number, span in chunk]
    pixels_R3SS = cut_regions(
        [images[number].to(tower.device) for number, _ in chunk],
        of_chunk,
        size_px=tower.size_px,
        mean=tower.mean,
        std=tower.std,
        crop=crop,
    )
    if tower.embed_masked is None:
        return Crops(pixels_R3SS, None)
    return Crops(pixels_R3SS, cut_masks(of_chunk, size_px=tower.size_px, crop=crop))


def embed_crops(crops: Crops, *, tower: ImageTower) -> np.ndarray[Any, np.dtype[np.float16]]:
    """The tower's unit vectors of a chunk's crops in host memory, [R, D]."""
    if tower.embed_masked is None or crops.masks_RSS is None:
        embeddings_RD = tower.embed(crops.pixels_R3SS)
    else:
        embeddings_RD = tower.embed_masked(crops.pixels_R3SS, crops.masks_RSS)
    return embeddings_RD.cpu().numpy().astype("<f2")


def embed_nouns(nouns: Sequence[str], *, templates: Sequence[str], tower: TextTower) -> Tensor:
    """A unit vector for each noun, the mean of those of its sentences (ViLD; OVSeg appendix A.2), float32 [N, D].

    A noun's vector does not depend on the others. As many nouns at once as fill whole batches with their sentences.
    """
    import torch
    from torch.nn.functional import normalize

    parts = [torch.empty(0, tower.dim)]
    for start in range(0, len(nouns), tower.batch_size):
        group = nouns[start : start + tower.batch_size]
        sentences = [fill_template(template, noun) for noun in group for template in templates]
        embeddings_NTD = tower.embed(sentences).view(len(group), len(templates), tower.dim)
        parts.append(normalize(embeddings_NTD.mean(1), dim=1).cpu())
    return torch.cat(parts)


def chunk_regions(counts: Iterable[int], *, size: int) -> Iterator[list[tuple[int, slice]]]:
    """Spans of regions by image, for images with `counts` regions; `size` regions a chunk, fewer in the last."""
    chunk: list[tuple[int, slice]] = []
    room = size
    for number, count in enumerate(counts):
        start = 0
        while start < count:
            stop = min(count, start + room)
            chunk.append((number, slice(start, stop)))
            room -= stop - start
            start = stop
            if room == 0:
                yield chunk
                chunk, room = [], size
    if chunk:
        yield chunk


def pack(vector_D: np.ndarray[Any, Any]) -> bytes:
    """A vector as little-endian float16, the form of `Region.embedding` and `VocabularyRow.embedding`."""
    return np.asarray(vector_D).astype("<f2").tobytes()


def unpack(packed: Sequence[bytes], *, dim: int | None = None) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Packed vectors as float32 [N, D]; `dim` is D where there may be no vector to tell it.

    Raises ValueError when they are not of one width, or not of `dim`.
    """
    widths = sorted({len(vector) for vector in packed} | ({2 * dim} if dim is not None else set()))
    if len(widths) > 1 or any(width % 2 for width in widths):
        raise ValueError(f"embeddings of one table have one width; these have {widths} bytes")
    flat = np.frombuffer(b"".join(packed), dtype="<f2").astype(np.float32)
    return flat.reshape(len(packed), widths[0] // 2 if widths else 0)
