"""Regions cut out of images as CLIP wants them: tight box, background filled, normalised, then resized to a square.

Shapes: N regions of one image, R regions of a call; H, W height and width of an image; S side of the output;
L lines, the pixel rows of all crops; K the four taps of the kernel.
Boxes are xyxy in pixels, half open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import Field

from maskmine.schemas.mask import Box
from maskmine.schemas.settings import Settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Number = TypeVar("Number", float, Tensor)

# Keys' cubic convolution as `torch.nn.functional.interpolate(mode="bicubic")` has it, without and with antialiasing.
_CUBIC_A, _CUBIC_A_ANTIALIASED = -0.75, -0.5
_LONG_TO_SHORT_SIDE = 4  # of a picture at the most, as in OVSeg's 2560 to 640


class Crop(Settings):
    """What CLIP sees of a region."""

    fill: Literal["mean", "zero", "none"] = "mean"
    """Colour around the mask: CLIP's `mean` colour (0 after normalisation), `zero` (black), or `none` (the image)."""
    expand_ratio: Annotated[float, Field(ge=1.0, le=16.0)] = 1.0
    """Factor by which the tight box of the mask is grown around its centre; more shows more of the surroundings."""
    antialias_above: Annotated[float, Field(ge=1.0)] | None = None
    """Factor above which a side is made smaller with antialiasing, so that grain and fine patterns of a large picture
    do not turn into others. Below it four pixels of a side are weighed for one, as OVSeg does, where the factor is
    about 3 at most. null never antialiases."""

    def antialiases(self, length_px: int, *, size_px: int) -> bool:
        """Whether a side of this length is resized to `size_px` with antialiasing."""
        return self.antialias_above is not None and length_px > self.antialias_above * size_px


class SeenCrop(Crop):
    """What CLIP sees of a region."""

    antialias_above: Annotated[float, Field(ge=1.0)] | None = 3.0
    """Factor above which a side is made smaller with antialiasing, so that grain and fine patterns of a large picture
    do not turn into others. Up to it four pixels of a side are weighed for one, as OVSeg does, where the factor is
    about 3 at most; null never antialiases."""


class PictureCrop(SeenCrop):
    """What CLIP sees of a region in a whole picture."""

    short_side_px: Annotated[int, Field(ge=32)] | None = None
    """Short side to which the picture is brought, with antialiasing, before a region is cut from it, the long side at
    most 4 times that: OVSeg cuts from the picture that its detector saw, of 512 or 640. null cuts from the picture as
    it is."""
    enlarge: bool = False
    """Whether pictures smaller than `short_side_px` are brought to it, too, as OVSeg does."""


def cut_regions(
    images: Sequence[Tensor],
    masks: Sequence[Tensor],
    *,
    size_px: int,
    mean: Sequence[float],
    std: Sequence[float],
    crop: Crop,
) -> Tensor:
    """The masked regions of some images as float32 [R, 3, S, S], image by image, on the device of the tensors.

    `images` are uint8 RGB [3, H, W] of any sizes, `masks` boolean [N, H, W]; `mean` and `std` are for colours 0 to 1.
    Each region is its tight box, grown, filled outside the mask and normalised, then resized bicubically without regard
    for its aspect, as `interpolate(mode="bicubic", align_corners=False)` does it on the crop alone: each side with or
    without antialiasing as `crop` says. A region does not depend on the others. Raises ValueError for a mask without
    pixels or of another size than its image.
    """
    import torch

    _refuse_other_sizes(masks, sizes_px=[tuple(image.shape[-2:]) for image in images])
    images, masks = _resized(images, crop), _resized_masks(masks, crop)
    boxes = _crop_boxes(masks, sizes_px=[tuple(image.shape[-2:]) for image in images], crop=crop)
    if not any(len(boxes_N4) for boxes_N4 in boxes):
        return torch.empty(0, 3, size_px, size_px, device=images[0].device if images else None)
    mean_px, std_px = (255 * torch.tensor(values, device=images[0].device) for values in (mean, std))
    fill_px = torch.zeros_like(mean_px) if crop.fill == "zero" else mean_px
    shown = None if crop.fill == "none" else masks
    lines_LS, first_line_R3 = _squeeze_widths(
        images, shown, boxes=boxes, size_px=size_px, fill_px=fill_px, std_px=std_px, crop=crop
    )
    _, heights_R = _sides(boxes)
    regions_R3SS = _squeeze_heights(lines_LS, first_line_R3, heights_R=heights_R, size_px=size_px, crop=crop)
    if crop.fill == "zero":
        regions_R3SS += ((fill_px - mean_px) / std_px)[:, None, None]
    return regions_R3SS


def cut_masks(masks: Sequence[Tensor], *, size_px: int, crop: Crop) -> Tensor:
    """The masks of the same regions in the frame of `cut_regions`, boolean [R, S, S], resized to the nearest pixel.

    Raises ValueError for a mask without pixels.
    """
    import torch

    masks = _resized_masks(masks, crop)
    boxes = _crop_boxes(masks, sizes_px=[tuple(masks_NHW.shape[-2:]) for masks_NHW in masks], crop=crop)
    if not any(len(boxes_N4) for boxes_N4 in boxes):
        return torch.empty(0, size_px, size_px, dtype=torch.bool, device=masks[0].device if masks else None)
    device = masks[0].device
    width_R, start_R = (values_R.to(device) for values_R in _crop_corners(masks, boxes))
    column_RS, row_RS = (_nearest(lengths_R.to(device), size_px=size_px) for lengths_R in _sides(boxes))
    index_RSS = (start_R[:, None] + row_RS * width_R[:, None])[:, :, None] + column_RS[:, None, :]
    values = [masks_NHW.reshape(-1) for masks_NHW in masks]
    return (values[0] if len(values) == 1 else torch.cat(values))[index_RSS]


def squeeze_crop(crop_3HW: Tensor, *, size_px: int, crop: Crop) -> Tensor:
    """One crop of normalised pixels, resized as `cut_regions` resizes it, float32 [3, S, S]."""
    from torch.nn.functional import interpolate

    _, height_px, width_px = crop_3HW.shape
    antialiased = [crop.antialiases(side_px, size_px=size_px) for side_px in (height_px, width_px)]
    if not any(antialiased):
        return interpolate(crop_3HW[None], (size_px, size_px), mode="bicubic", align_corners=False)[0]
    for high in antialiased:  # first the height, then, turned, the width
        index_SK, weight_SK = _taps(crop_3HW.shape[1], size_px=size_px, antialias=high, device=crop_3HW.device)
        rows = crop_3HW.transpose(0, 1)
        crop_3HW = _weigh(rows.reshape(len(rows), -1), index_SK, weight_SK).view(size_px, *rows.shape[1:])
        crop_3HW = crop_3HW.permute(1, 2, 0)
    return crop_3HW


def tight_boxes(masks_NHW: Tensor) -> Tensor:
    """The tight boxes of boolean masks, int64 [N, 4]; four zeros for an empty mask, as in `Mask.box_xyxy`."""
    import torch

    if masks_NHW.dtype != torch.bool:
        raise ValueError(f"masks are boolean, not {masks_NHW.dtype}")
    bytes_NHW = masks_NHW.view(torch.uint8)  # the largest byte is found some 30 times faster than any() of booleans
    rows_NH, columns_NW = bytes_NHW.amax(2), bytes_NHW.amax(1)
    x0_N, y0_N = columns_NW.argmax(1), rows_NH.argmax(1)
    x1_N = columns_NW.shape[1] - columns_NW.flip(1).argmax(1)
    y1_N = rows_NH.shape[1] - rows_NH.flip(1).argmax(1)
    return torch.stack([x0_N, y0_N, x1_N, y1_N], dim=1) * rows_NH.amax(1)[:, None]


def grow_boxes(boxes_N4: Tensor, *, ratio: float, height_px: int, width_px: int) -> Tensor:
    """Boxes grown `ratio` times around their centres, outwards to whole pixels, clipped to the image, int64 [N, 4]."""
    import torch

    x0_N, y0_N, x1_N, y1_N = boxes_N4.double().unbind(1)
    (x0_N, x1_N), (y0_N, y1_N) = _grow_side(x0_N, x1_N, ratio=ratio), _grow_side(y0_N, y1_N, ratio=ratio)
    x0_N, x1_N, y0_N, y1_N = (*_clipped(x0_N, x1_N, limit_px=width_px), *_clipped(y0_N, y1_N, limit_px=height_px))
    return torch.stack([x0_N, y0_N, x1_N, y1_N], dim=1).long()


def grow_box(box_xyxy: Box, *, ratio: float, height_px: int, width_px: int) -> Box:
    """`grow_boxes` for one box in plain numbers."""
    x0, y0, x1, y1 = box_xyxy
    (left, right), (top, bottom) = (_grow_side(float(a), float(b), ratio=ratio) for a, b in ((x0, x1), (y0, y1)))
    return (max(0, int(left)), max(0, int(top)), min(width_px, int(right)), min(height_px, int(bottom)))


def _grow_side(low: Number, high: Number, *, ratio: float) -> tuple[Number, Number]:
    """One side of a box, grown outwards to whole numbers; the same arithmetic in 64 bits for numbers and tensors."""
    middle, half = (low + high) / 2, (high - low) * ratio / 2
    return (middle - half) // 1, -(-(middle + half) // 1)


def _clipped(low_N: Tensor, high_N: Tensor, *, limit_px: int) -> tuple[Tensor, Tensor]:
    return low_N.clamp(min=0), high_N.clamp(max=limit_px)


def _refuse_other_sizes(masks: Sequence[Tensor], *, sizes_px: Sequence[tuple[int, ...]]) -> None:
    if len(masks) != len(sizes_px):
        raise ValueError(f"{len(sizes_px)} images and masks for {len(masks)} do not belong together")
    for number, (masks_NHW, size_px) in enumerate(zip(masks, sizes_px, strict=True)):
        if masks_NHW.ndim != 3 or tuple(masks_NHW.shape[1:]) != size_px:
            raise ValueError(f"the masks of image {number} have shape {tuple(masks_NHW.shape)}, its size is {size_px}")


def _new_size(size_px: Sequence[int], crop: Crop) -> tuple[int, int] | None:
    """The size to which a picture is brought before regions are cut from it; None for its own."""
    if not isinstance(crop, PictureCrop) or crop.short_side_px is None:
        return None
    short_px = crop.short_side_px
    if min(size_px) <= short_px and not crop.enlarge:
        return None
    scale = min(short_px / min(size_px), _LONG_TO_SHORT_SIDE * short_px / max(size_px))
    height_px, width_px = (max(1, round(side_px * scale)) for side_px in size_px)
    return None if (height_px, width_px) == tuple(size_px) else (height_px, width_px)


def _resized(images: Sequence[Tensor], crop: Crop) -> list[Tensor]:
    """The pictures from which regions are cut, uint8 [3, H, W]: resized bilinearly with antialiasing."""
    from torch.nn.functional import interpolate

    resized = []
    for image_3HW in images:
        if (size := _new_size(image_3HW.shape[1:], crop)) is not None:
            wide = interpolate(image_3HW[None].float(), size, mode="bilinear", antialias=True, align_corners=False)
            image_3HW = wide[0].round().clamp(0, 255).byte()
        resized.append(image_3HW)
    return resized


def _resized_masks(masks: Sequence[Tensor], crop: Crop) -> list[Tensor]:
    """The masks in the same size: the pixel in the middle of each new one; of a mask without any, all that it touches.

    A mask that had a pixel has one afterwards.
    """
    import torch
    from torch.nn.functional import adaptive_max_pool2d

    resized = []
    for masks_NHW in masks:
        if (size := _new_size(masks_NHW.shape[1:], crop)) is not None:
            rows_H, columns_W = (
                ((torch.arange(new, device=masks_NHW.device) + 0.5) * (old / new)).long().clamp(max=old - 1)
                for old, new in zip(masks_NHW.shape[1:], size, strict=True)
            )
            small_NHW = masks_NHW[:, rows_H][:, :, columns_W]
            for number in (~small_NHW.flatten(1).any(1)).nonzero()[:, 0].tolist():
                small_NHW[number] = adaptive_max_pool2d(masks_NHW[number][None].float(), size)[0] > 0
            masks_NHW = small_NHW
        resized.append(masks_NHW)
    return resized


def _crop_boxes(masks: Sequence[Tensor], *, sizes_px: Sequence[tuple[int, ...]], crop: Crop) -> list[Tensor]:
    """The grown boxes of every image's masks, int64 [N, 4] in host memory."""
    import torch

    _refuse_other_sizes(masks, sizes_px=sizes_px)
    boxes = []
    for masks_NHW, (height_px, width_px) in zip(masks, sizes_px, strict=True):
        tight_N4 = tight_boxes(masks_NHW)
        boxes.append(grow_boxes(tight_N4, ratio=crop.expand_ratio, height_px=height_px, width_px=width_px))
    lengths = [len(boxes_N4) for boxes_N4 in boxes]
    # One copy to the host for all images: on a GPU it is the only wait of a call.
    on_host = list(torch.split(torch.cat(boxes).cpu(), lengths)) if boxes else []
    for number, boxes_N4 in enumerate(on_host):
        if bool((boxes_N4[:, 2] == 0).any()):  # nothing grows to nothing
            raise ValueError(f"image {number} has a mask without pixels")
    return on_host


def _squeeze_widths(
    images: Sequence[Tensor],
    masks: Sequence[Tensor] | None,
    *,
    boxes: Sequence[Tensor],
    size_px: int,
    fill_px: Tensor,
    std_px: Tensor,
    crop: Crop,
) -> tuple[Tensor, Tensor]:
    """Resize the width of every crop, one after the other, as small arrays stay in the cache of a CPU.

    The colour `fill_px` becomes 0. Returns the lines of all crops and channels, float32 [3L, S], and where those of
    each region and channel begin, int64 [R, 3].
    """
    import torch

    widths_R, heights_R = _sides(boxes)
    device = images[0].device
    index_RSK, weight_RSK = _cubic_taps(widths_R.to(device), size_px=size_px)
    lines_LS = torch.empty(3 * int(heights_R.sum()), size_px, device=device)
    region = line = 0
    for number, boxes_N4 in enumerate(boxes):
        if not len(boxes_N4):
            continue
        # Stored by columns: the taps along x then weigh whole contiguous rows of a table, and so do those along y after
        # one transposition.
        image_W3H = _by_columns(images[number]).sub_(fill_px[:, None]).div_(std_px[:, None])
        for mask_number, (x0, y0, x1, y1) in enumerate(boxes_N4.tolist()):
            crop_W3H = image_W3H[x0:x1, :, y0:y1]
            if masks is not None:
                crop_W3H = crop_W3H * masks[number][mask_number, y0:y1, x0:x1].t().contiguous()[:, None, :]
            index_SK, weight_SK = index_RSK[region], weight_RSK[region]
            if crop.antialiases(x1 - x0, size_px=size_px):
                index_SK, weight_SK = _taps(x1 - x0, size_px=size_px, antialias=True, device=device)
            squeezed_SL = _weigh(crop_W3H.reshape(x1 - x0, -1), index_SK, weight_SK)
            lines_LS[line : line + squeezed_SL.shape[1]] = squeezed_SL.t()
            region, line = region + 1, line + squeezed_SL.shape[1]
    first_R = 3 * (heights_R.cumsum(0) - heights_R)
    return lines_LS, (first_R[:, None] + heights_R[:, None] * torch.arange(3)).to(device)


def _squeeze_heights(lines_LS: Tensor, first_line_R3: Tensor, *, heights_R: Tensor, size_px: int, crop: Crop) -> Tensor:
    """Resize the height of all crops at once: each line of the result is a weighted sum of four, [R, 3, S, S].

    Those with antialiasing follow one by one; they have more lines to weigh, each its own number.
    """
    index_RSK, weight_RSK = _cubic_taps(heights_R.to(lines_LS.device), size_px=size_px)
    index_R3SK = first_line_R3[:, :, None, None] + index_RSK[:, None]
    weight_R3SK = weight_RSK[:, None].expand(index_R3SK.shape)
    regions_R3SS = _weigh(lines_LS, index_R3SK.reshape(-1, 4), weight_R3SK.reshape(-1, 4))
    regions_R3SS = regions_R3SS.view(-1, 3, size_px, size_px)
    for region, height_px in enumerate(heights_R.tolist()):
        if crop.antialiases(height_px, size_px=size_px):
            index_SK, weight_SK = _taps(height_px, size_px=size_px, antialias=True, device=lines_LS.device)
            index_3SK = first_line_R3[region, :, None, None] + index_SK
            weight_3SK = weight_SK.expand(index_3SK.shape).reshape(-1, weight_SK.shape[1])
            squeezed = _weigh(lines_LS, index_3SK.reshape(weight_3SK.shape), weight_3SK)
            regions_R3SS[region] = squeezed.view(3, size_px, size_px)
    return regions_R3SS


def _weigh(table: Tensor, index_BK: Tensor, weight_BK: Tensor) -> Tensor:
    """Row b of the result is the sum of rows `index_BK[b]` of the table, weighted; one fused pass on CPU and GPU."""
    from torch.nn.functional import embedding_bag

    return embedding_bag(index_BK, table, per_sample_weights=weight_BK, mode="sum")


def _cubic_taps(lengths_R: Tensor, *, size_px: int) -> tuple[Tensor, Tensor]:
    """For each output pixel of a side resized from `lengths_R` to S: four input pixels and weights, both [R, S, K].

    Follows `interpolate` to the last bit of the source coordinate, which it has in float32 with one rounding (a fused
    multiply-add): coordinates near 500 px would otherwise be off by 3e-5 px, and sharp edges by as much.
    """
    import torch

    scale_R = lengths_R.float() / size_px
    middle_S = torch.arange(size_px, device=lengths_R.device, dtype=torch.float64) + 0.5
    source_RS = (scale_R.double()[:, None] * middle_S - 0.5).float()
    base_RS = source_RS.floor()
    part_RS = source_RS - base_RS
    weight_RSK = torch.stack([_far(1 + part_RS), _near(part_RS), _near(1 - part_RS), _far(2 - part_RS)], dim=2)
    index_RSK = base_RS.long()[:, :, None] + torch.arange(-1, 3, device=lengths_R.device)
    return index_RSK.clamp_(min=0).minimum(lengths_R[:, None, None] - 1), weight_RSK


def _taps(length_px: int, *, size_px: int, antialias: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """The input pixels and weights of each output pixel of one side, both [S, K].

    With antialiasing the kernel is stretched over as many pixels as become one, cut at the ends, and its weights add up
    to 1, as `interpolate(antialias=True)` and Pillow have it.
    """
    import torch

    if not antialias:
        index_RSK, weight_RSK = _cubic_taps(torch.tensor([length_px], device=device), size_px=size_px)
        return index_RSK[0], weight_RSK[0]
    scale = length_px / size_px
    middle_S = (torch.arange(size_px, dtype=torch.float64, device=device) + 0.5) * scale
    first_S = (middle_S - 2 * scale).floor()
    index_SK = first_S[:, None] + torch.arange(math.ceil(4 * scale) + 2, device=device)
    x_SK = ((index_SK + 0.5 - middle_S[:, None]) / scale).abs()
    a = _CUBIC_A_ANTIALIASED
    near_SK, far_SK = ((a + 2) * x_SK - (a + 3)) * x_SK * x_SK + 1, ((a * x_SK - 5 * a) * x_SK + 8 * a) * x_SK - 4 * a
    weight_SK = torch.where(x_SK <= 1, near_SK, torch.where(x_SK < 2, far_SK, 0.0))
    weight_SK = weight_SK * ((index_SK >= 0) & (index_SK < length_px))
    return index_SK.long().clamp(0, length_px - 1), (weight_SK / weight_SK.sum(1, keepdim=True)).float()


def _near(x: Tensor) -> Tensor:
    """Keys' kernel for distances up to one pixel."""
    return ((_CUBIC_A + 2) * x - (_CUBIC_A + 3)) * x * x + 1


def _far(x: Tensor) -> Tensor:
    """Keys' kernel for distances of one to two pixels."""
    return ((_CUBIC_A * x - 5 * _CUBIC_A) * x + 8 * _CUBIC_A) * x - 4 * _CUBIC_A


def _nearest(lengths_R: Tensor, *, size_px: int) -> Tensor:
    """The input pixel of each output pixel as `interpolate(mode="nearest")` chooses it, int64 [R, S]."""
    import torch

    source_RS = (lengths_R.float() / size_px)[:, None] * torch.arange(size_px, device=lengths_R.device)
    return source_RS.floor().long()


def _by_columns(image_3HW: Tensor) -> Tensor:
    """The image as float32 [W, 3, H], contiguous."""
    import torch

    image_W3H = image_3HW.transpose(1, 2).contiguous().permute(1, 0, 2)  # turned as bytes, a quarter of the work
    return torch.empty(image_W3H.shape, device=image_3HW.device).copy_(image_W3H)


def _sides(boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Widths and heights of all boxes, int64 [R]."""
    import torch

    boxes_R4 = torch.cat(list(boxes))
    return boxes_R4[:, 2] - boxes_R4[:, 0], boxes_R4[:, 3] - boxes_R4[:, 1]


def _crop_corners(masks: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The width of each region's image, and the first corner of its crop in the values of all masks, int64 [R].

    Both in host memory; of the masks only height and width are read.
    """
    import torch

    widths, corners = [], []
    values_before = 0
    for masks_NHW, boxes_N4 in zip(masks, boxes, strict=True):
        height_px, width_px = masks_NHW.shape[-2:]
        corner_N = boxes_N4[:, 1] * width_px + boxes_N4[:, 0]
        widths.append(torch.full_like(corner_N, width_px))
        corners.append(values_before + torch.arange(len(boxes_N4)) * (height_px * width_px) + corner_N)
        values_before += len(boxes_N4) * height_px * width_px
    return torch.cat(widths), torch.cat(corners)
