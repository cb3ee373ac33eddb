"""Regions cut out of pictures as CLIP wants them: tight box, background filled, normalised, then resized to a square.

Shapes: N regions of one image, R regions of a call; H, W height and width of an image; S side of the output;
P pixels and M mask values of all images, flat; L lines, the pixel rows of all crops; K the four taps of the kernel.
Boxes are xyxy in pixels, half open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import Field

from schemas.mask import Box
from schemas.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

    Number = TypeVar("Number", float, Tensor)

# Keys' cubic convolution as `torch.nn.functional.interpolate(mode="bicubic")` has it.
_CUBIC_A = -0.75


class Crop(Settings):
    """What CLIP sees of a region: the colour around the mask, and how far the box is grown around its centre.

    `mean` fills with CLIP's mean colour (0 once normalised), `zero` with black, `none` keeps what is there.
    """

    fill: Literal["mean", "zero", "none"] = "mean"
    expand_ratio: Annotated[float, Field(ge=1.0, le=16.0)] = 1.0


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
    Each region is its tight box, grown, filled outside the mask and normalised, then resized bicubically without
    antialiasing or regard for its aspect, as `interpolate(mode="bicubic", align_corners=False)` does it on the crop
    alone. A region does not depend on the others. Raises ValueError for a mask without pixels or of another size than
    its image.
    """
    import torch

    boxes = _crop_boxes(masks, sizes_px=[tuple(image.shape[-2:]) for image in images], crop=crop)
    if not any(len(boxes_N4) for boxes_N4 in boxes):
        return torch.empty(0, 3, size_px, size_px, device=images[0].device if images else None)
    mean_px, std_px = (255 * torch.tensor(values, device=images[0].device) for values in (mean, std))
    fill_px = torch.zeros_like(mean_px) if crop.fill == "zero" else mean_px
    squeeze = _squeeze_each if images[0].device.type == "cpu" else _squeeze_together
    shown = None if crop.fill == "none" else masks
    lines_LS, first_line_R3 = squeeze(images, shown, boxes=boxes, size_px=size_px, fill_px=fill_px, std_px=std_px)
    _, heights_R = _sides(boxes)
    regions_R3SS = _squeeze_lines(lines_LS, first_line_R3, heights_R=heights_R.to(lines_LS.device), size_px=size_px)
    if crop.fill == "zero":
        regions_R3SS += ((fill_px - mean_px) / std_px)[:, None, None]
    return regions_R3SS


def cut_masks(masks: Sequence[Tensor], *, size_px: int, crop: Crop) -> Tensor:
    """The masks of the same regions in the frame of `cut_regions`, boolean [R, S, S], resized to the nearest pixel.

    Raises ValueError for a mask without pixels.
    """
    import torch

    boxes = _crop_boxes(masks, sizes_px=[tuple(masks_NHW.shape[-2:]) for masks_NHW in masks], crop=crop)
    if not any(len(boxes_N4) for boxes_N4 in boxes):
        return torch.empty(0, size_px, size_px, dtype=torch.bool, device=masks[0].device if masks else None)
    device = masks[0].device
    width_R, _, start_R = (values_R.to(device) for values_R in _places(masks, boxes))
    column_RS, row_RS = (_nearest(lengths_R.to(device), size_px=size_px) for lengths_R in _sides(boxes))
    place_RSS = (start_R[:, None] + row_RS * width_R[:, None])[:, :, None] + column_RS[:, None, :]
    return torch.cat([masks_NHW.reshape(-1) for masks_NHW in masks])[place_RSS]


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


def _crop_boxes(masks: Sequence[Tensor], *, sizes_px: Sequence[tuple[int, ...]], crop: Crop) -> list[Tensor]:
    """The grown boxes of every image's masks, int64 [N, 4] in host memory."""
    import torch

    if len(masks) != len(sizes_px):
        raise ValueError(f"{len(sizes_px)} images and masks for {len(masks)} do not belong together")
    boxes = []
    for number, (masks_NHW, size_px) in enumerate(zip(masks, sizes_px, strict=True)):
        if masks_NHW.ndim != 3 or tuple(masks_NHW.shape[1:]) != size_px:
            raise ValueError(f"the masks of image {number} have shape {tuple(masks_NHW.shape)}, its size is {size_px}")
        height_px, width_px = size_px
        tight_N4 = tight_boxes(masks_NHW)
        boxes.append(grow_boxes(tight_N4, ratio=crop.expand_ratio, height_px=height_px, width_px=width_px))
    lengths = [len(boxes_N4) for boxes_N4 in boxes]
    # One copy to the host for all images: on a GPU it is the only wait of a call.
    on_host = list(torch.split(torch.cat(boxes).cpu(), lengths)) if boxes else []
    for number, boxes_N4 in enumerate(on_host):
        if bool((boxes_N4[:, 2] == 0).any()):  # nothing grows to nothing
            raise ValueError(f"image {number} has a mask without pixels")
    return on_host


def _squeeze_each(
    images: Sequence[Tensor],
    masks: Sequence[Tensor] | None,
    *,
    boxes: Sequence[Tensor],
    size_px: int,
    fill_px: Tensor,
    std_px: Tensor,
) -> tuple[Tensor, Tensor]:
    """Resize the width of every crop, one after the other: the way of a CPU, where small pieces stay in the cache.

    The colour `fill_px` becomes 0. Returns the lines of all crops and channels, float32 [3L, S], and where those of
    each region and channel begin, int64 [R, 3].
    """
    import torch

    widths_R, heights_R = _sides(boxes)
    index_RSK, weight_RSK = _cubic_taps(widths_R, size_px=size_px)
    lines_LS = torch.empty(3 * int(heights_R.sum()), size_px)
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
            squeezed_SL = _weigh(crop_W3H.reshape(x1 - x0, -1), index_RSK[region], weight_RSK[region])
            lines_LS[line : line + squeezed_SL.shape[1]] = squeezed_SL.t()
            region, line = region + 1, line + squeezed_SL.shape[1]
    first_R = 3 * (heights_R.cumsum(0) - heights_R)
    return lines_LS, first_R[:, None] + heights_R[:, None] * torch.arange(3)


def _squeeze_together(
    images: Sequence[Tensor],
    masks: Sequence[Tensor] | None,
    *,
    boxes: Sequence[Tensor],
    size_px: int,
    fill_px: Tensor,
    std_px: Tensor,
) -> tuple[Tensor, Tensor]:
    """`_squeeze_each` for all crops of all images at once, without a loop over regions: the way of a GPU.

    Pixels of images of different sizes lie in one flat array and are gathered tap by tap; the mask is applied at each
    tap, and taps beyond the crop (not the image) repeat its edge.
    """
    import torch

    device = images[0].device
    pixels_3P = torch.cat([image_3HW.reshape(3, -1) for image_3HW in images], dim=1).float()
    pixels_3P.sub_(fill_px[:, None]).div_(std_px[:, None])
    masks_M = None if masks is None else torch.cat([masks_NHW.reshape(-1) for masks_NHW in masks])
    widths_R, heights_R = _sides(boxes)
    index_RSK, weight_RSK = _cubic_taps(widths_R.to(device), size_px=size_px)
    lines = int(heights_R.sum())
    numbers = (*_places(images, boxes), heights_R.cumsum(0) - heights_R, heights_R)
    width_R, pixel_R, value_R, first_R, heights_R = torch.stack(numbers).to(device)
    region_L = torch.repeat_interleave(heights_R, output_size=lines)
    offset_L = (torch.arange(lines, device=device) - first_R[region_L]) * width_R[region_L]
    lines_3LS = torch.zeros(3, lines, size_px, device=device)
    for index_RS, weight_RS in zip(index_RSK.unbind(2), weight_RSK.unbind(2), strict=True):
        place_LS = index_RS[region_L] + offset_L[:, None]
        weight_LS = weight_RS[region_L]
        if masks_M is not None:
            weight_LS = weight_LS * masks_M[place_LS + value_R[region_L, None]]
        lines_3LS.addcmul_(pixels_3P[:, place_LS + pixel_R[region_L, None]], weight_LS)
    return lines_3LS.view(-1, size_px), first_R[:, None] + lines * torch.arange(3, device=device)


def _squeeze_lines(lines_LS: Tensor, first_line_R3: Tensor, *, heights_R: Tensor, size_px: int) -> Tensor:
    """Resize the height of all crops at once: each line of the result is a weighted sum of four, [R, 3, S, S]."""
    index_RSK, weight_RSK = _cubic_taps(heights_R, size_px=size_px)
    index_R3SK = first_line_R3[:, :, None, None] + index_RSK[:, None]
    weight_R3SK = weight_RSK[:, None].expand(index_R3SK.shape)
    return _weigh(lines_LS, index_R3SK.reshape(-1, 4), weight_R3SK.reshape(-1, 4)).view(-1, 3, size_px, size_px)


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
    weight_RSK = torch.stack(
        [_far(1 + part_RS), _near(part_RS), _near(1 - part_RS), _far(2 - part_RS)],
        dim=2,
    )
    index_RSK = base_RS.long()[:, :, None] + torch.arange(-1, 3, device=lengths_R.device)
    return index_RSK.clamp_(min=0).minimum(lengths_R[:, None, None] - 1), weight_RSK


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

    image_W3H = image_3HW.permute(2, 0, 1)
    return torch.empty(image_W3H.shape).copy_(image_W3H)


def _sides(boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Widths and heights of all boxes, int64 [R]."""
    import torch

    boxes_R4 = torch.cat(list(boxes))
    return boxes_R4[:, 2] - boxes_R4[:, 0], boxes_R4[:, 3] - boxes_R4[:, 1]


def _places(arrays: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Width of each region's image, and the corner of its crop in the flat pixels and in the flat masks of a call.

    `arrays` are the images or the masks, of which only height and width are read. All are int64 [R] in host memory.
    """
    import torch

    widths, pixels, values = [], [], []
    pixels_before = values_before = 0
    for array, boxes_N4 in zip(arrays, boxes, strict=True):
        height_px, width_px = array.shape[-2:]
        corner_N = boxes_N4[:, 1] * width_px + boxes_N4[:, 0]
        widths.append(torch.full_like(corner_N, width_px))
        pixels.append(pixels_before + corner_N)
        values.append(values_before + torch.arange(len(boxes_N4)) * (height_px * width_px) + corner_N)
        pixels_before += height_px * width_px
        values_before += len(boxes_N4) * height_px * width_px
    return torch.cat(widths), torch.cat(pixels), torch.cat(values)
