"""Regions are cut as the plain way cuts them: one mask at a time, crop, fill, normalise, `interpolate`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import interpolate

from maskmine.mining.images.crops import (
    Crop,
    PictureCrop,
    cut_masks,
    cut_regions,
    grow_box,
    grow_boxes,
    squeeze_crop,
    tight_boxes,
)
from maskmine.schemas.mask import Mask

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
FILLS = {"mean": MEAN, "zero": (0.0, 0.0, 0.0), "none": None}


def cut_plainly(image: Tensor, mask: Tensor, *, size_px: int, crop: Crop) -> Tensor:
    height, width = mask.shape
    box = Mask.from_array(mask.numpy()).box_xyxy
    x0, y0, x1, y1 = grow_box(box, ratio=crop.expand_ratio, height_px=height, width_px=width)
    pixels = image[:, y0:y1, x0:x1].float()
    if (fill := FILLS[crop.fill]) is not None:
        pixels = torch.where(mask[y0:y1, x0:x1], pixels, 255 * torch.tensor(fill)[:, None, None])
    pixels = (pixels / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    return interpolate(pixels[None], size=(size_px, size_px), mode="bicubic", align_corners=False)[0]


def picture(height: int, width: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def rectangles(height: int, width: int, *boxes: tuple[int, int, int, int]) -> Tensor:
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def blobs(height: int, width: int, *, count: int, seed: int) -> Tensor:
    """Masks with ragged edges and holes, in boxes of any size."""
    generator = np.random.default_rng(seed)
    masks = np.zeros((count, height, width), dtype=bool)
    for mask in masks:
        x0, y0 = generator.integers(width), generator.integers(height)
        x1, y1 = generator.integers(x0, width) + 1, generator.integers(y0, height) + 1
        mask[y0:y1, x0:x1] = generator.random((y1 - y0, x1 - x0)) < 0.6
        mask[y0, x0] = True
    return torch.from_numpy(masks)


@settings(max_examples=25)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 70), st.integers(1, 70), st.integers(0, 4)), min_size=1, max_size=3),
    size_px=st.sampled_from([1, 7, 32]),
    fill=st.sampled_from(["mean", "zero", "none"]),
    ratio=st.sampled_from([1.0, 1.3, 3.0]),
    seed=st.integers(0, 99),
)
def test_regions_are_those_of_the_plain_way(
    sizes: list[tuple[int, int, int]], size_px: int, fill: str, ratio: float, seed: int
) -> None:
    images = [picture(height, width, seed=seed) for height, width, _ in sizes]
    masks = [blobs(height, width, count=count, seed=seed) for height, width, count in sizes]
    crop = Crop.model_validate({"fill": fill, "expand_ratio": ratio})
    expected = [
        cut_plainly(image, mask, size_px=size_px, crop=crop)
        for image, of_image in zip(images, masks, strict=True)
        for mask in of_image
    ]
    found = cut_regions(images, masks, size_px=size_px, mean=MEAN, std=STD, crop=crop)
    assert found.shape == (len(expected), 3, size_px, size_px)
    assert not expected or (found - torch.stack(expected)).abs().max() < 1e-5


def test_a_large_crop_is_exact_at_sharp_edges() -> None:
    image, masks = picture(900, 1537), rectangles(900, 1537, (0, 0, 1537, 900), (3, 1, 1500, 899))
    found = cut_regions([image], [masks], size_px=224, mean=MEAN, std=STD, crop=Crop())
    expected = [cut_plainly(image, mask, size_px=224, crop=Crop()) for mask in masks]
    assert (found - torch.stack(expected)).abs().max() < 1e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_cuts_what_the_cpu_cuts() -> None:
    images, masks = (
        [picture(333, 200), picture(90, 91)],
        [blobs(333, 200, count=9, seed=1), blobs(90, 91, count=5, seed=2)],
    )
    for crop in (Crop(), Crop(fill="zero", expand_ratio=1.5), Crop(fill="none")):
        on_cpu = cut_regions(images, masks, size_px=224, mean=MEAN, std=STD, crop=crop)
        on_gpu = [[tensor.cuda() for tensor in tensors] for tensors in (images, masks)]
        assert (cut_regions(*on_gpu, size_px=224, mean=MEAN, std=STD, crop=crop).cpu() - on_cpu).abs().max() < 1e-5
        assert torch.equal(cut_masks(on_gpu[1], size_px=224, crop=crop).cpu(), cut_masks(masks, size_px=224, crop=crop))


def test_one_pixel_becomes_one_colour() -> None:
    image, mask = picture(5, 4), rectangles(5, 4, (3, 4, 4, 5))
    (region,) = cut_regions([image], [mask], size_px=8, mean=MEAN, std=STD, crop=Crop())
    colour = (image[:, 4, 3] / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(region, colour[:, None, None].expand(3, 8, 8), rtol=0, atol=2e-6)


def test_outside_the_mask_is_zero_once_normalised() -> None:
    mask = rectangles(40, 40, (0, 0, 40, 40))
    mask[:, :, 10:30] = False
    (region,) = cut_regions([picture(40, 40)], [mask], size_px=40, mean=MEAN, std=STD, crop=Crop())
    assert (region[:, :, 10:30] == 0).all()
    assert (region[:, :, :10] != 0).any()


def test_taps_stop_at_the_crop_and_do_not_read_its_neighbours() -> None:
    image, mask = picture(30, 30), rectangles(30, 30, (10, 10, 20, 20))
    changed = torch.where(mask, image, 255 - image)
    for fill in ("mean", "none"):
        crop = Crop.model_validate({"fill": fill})
        first, second = (cut_regions([i], [mask], size_px=17, mean=MEAN, std=STD, crop=crop) for i in (image, changed))
        assert torch.equal(first, second)


def test_a_region_does_not_depend_on_the_others() -> None:
    images = [picture(33, 47), picture(20, 9), picture(64, 31)]
    masks = [blobs(33, 47, count=3, seed=1), torch.zeros(0, 20, 9, dtype=torch.bool), blobs(64, 31, count=2, seed=2)]
    together = cut_regions(images, masks, size_px=16, mean=MEAN, std=STD, crop=Crop())
    alone = [
        cut_regions([image], [mask[None]], size_px=16, mean=MEAN, std=STD, crop=Crop())
        for image, of_image in zip(images, masks, strict=True)
        for mask in of_image
    ]
    assert torch.equal(together, torch.cat(alone))


def test_no_mask_gives_no_region() -> None:
    none = torch.zeros(0, 6, 5, dtype=torch.bool)
    assert cut_regions([picture(6, 5)], [none], size_px=8, mean=MEAN, std=STD, crop=Crop()).shape == (0, 3, 8, 8)
    assert cut_regions([], [], size_px=8, mean=MEAN, std=STD, crop=Crop()).shape == (0, 3, 8, 8)
    assert cut_masks([none], size_px=8, crop=Crop()).shape == (0, 8, 8)


def test_an_empty_mask_is_refused() -> None:
    masks = rectangles(6, 5, (1, 1, 3, 3), (0, 0, 0, 0))
    with pytest.raises(ValueError, match="image 0 has a mask without pixels"):
        cut_regions([picture(6, 5)], [masks], size_px=8, mean=MEAN, std=STD, crop=Crop(expand_ratio=2.0))
    with pytest.raises(ValueError, match="without pixels"):
        cut_masks([masks], size_px=8, crop=Crop())


def test_masks_of_another_size_than_the_image_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image 0 have shape \(1, 5, 6\), its size is \(6, 5\)"):
        cut_regions([picture(6, 5)], [rectangles(5, 6, (0, 0, 2, 2))], size_px=8, mean=MEAN, std=STD, crop=Crop())
    with pytest.raises(ValueError, match="do not belong together"):
        cut_regions([picture(6, 5)], [], size_px=8, mean=MEAN, std=STD, crop=Crop())


@settings(max_examples=25)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 70), st.integers(1, 70), st.integers(0, 4)), min_size=1, max_size=3),
    size_px=st.sampled_from([1, 7, 32]),
    ratio=st.sampled_from([1.0, 1.5]),
    seed=st.integers(0, 99),
)
def test_cut_masks_are_the_nearest_pixels_of_the_crop(
    sizes: list[tuple[int, int, int]], size_px: int, ratio: float, seed: int
) -> None:
    masks = [blobs(height, width, count=count, seed=seed) for height, width, count in sizes]
    expected = []
    for mask in (mask for of_image in masks for mask in of_image):
        height, width = mask.shape
        box = Mask.from_array(mask.numpy()).box_xyxy
        x0, y0, x1, y1 = grow_box(box, ratio=ratio, height_px=height, width_px=width)
        expected.append(interpolate(mask[None, None, y0:y1, x0:x1].float(), size=(size_px, size_px))[0, 0] > 0)
    found = cut_masks(masks, size_px=size_px, crop=Crop(expand_ratio=ratio))
    assert found.dtype == torch.bool
    assert torch.equal(found, torch.stack(expected) if expected else found[:0])


@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 99))
def test_tight_boxes_are_those_of_the_run_lengths(height: int, width: int, seed: int) -> None:
    masks = torch.cat([blobs(height, width, count=3, seed=seed), torch.zeros(1, height, width, dtype=torch.bool)])
    boxes = tight_boxes(masks)
    assert boxes.dtype == torch.int64
    assert [tuple(box) for box in boxes.tolist()] == [Mask.from_array(mask.numpy()).box_xyxy for mask in masks]


def test_tight_boxes_take_boolean_masks_only() -> None:
    with pytest.raises(ValueError, match="boolean"):
        tight_boxes(torch.ones(1, 2, 2))


@st.composite
def boxes_in_images(draw: st.DrawFn) -> tuple[tuple[int, int, int, int], int, int]:
    height, width = draw(st.integers(1, 2000)), draw(st.integers(1, 2000))
    x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return (x0, y0, draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height))), height, width


@given(case=boxes_in_images(), ratio=st.floats(1.0, 16.0))
def test_a_grown_box_holds_the_box_and_lies_in_the_image(
    case: tuple[tuple[int, int, int, int], int, int], ratio: float
) -> None:
    box, height, width = case
    x0, y0, x1, y1 = grow_box(box, ratio=ratio, height_px=height, width_px=width)
    assert 0 <= x0 <= box[0] < box[2] <= x1 <= width
    assert 0 <= y0 <= box[1] < box[3] <= y1 <= height


@given(case=boxes_in_images(), ratio=st.floats(1.0, 16.0))
def test_one_box_and_many_grow_alike(case: tuple[tuple[int, int, int, int], int, int], ratio: float) -> None:
    box, height, width = case
    (grown,) = grow_boxes(torch.tensor([box]), ratio=ratio, height_px=height, width_px=width).tolist()
    assert tuple(grown) == grow_box(box, ratio=ratio, height_px=height, width_px=width)


@given(case=boxes_in_images())
def test_a_box_grown_once_is_itself(case: tuple[tuple[int, int, int, int], int, int]) -> None:
    box, height, width = case
    assert grow_box(box, ratio=1.0, height_px=height, width_px=width) == box


def test_a_box_grows_around_its_centre() -> None:
    assert grow_box((10, 20, 20, 24), ratio=1.5, height_px=100, width_px=100) == (7, 19, 23, 25)


@pytest.mark.parametrize("settings", [{"expand_ratio": 0.9}, {"expand_ratio": float("nan")}, {"fill": "grey"}])
def test_crops_that_make_no_sense_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="1 validation error"):
        Crop.model_validate(settings)


# ---- large pictures


def by_interpolate(pixels: Tensor, *, size_px: int, high: bool, wide: bool) -> Tensor:
    """One side after the other, with or without antialiasing."""
    for antialias, size in ((high, (size_px, pixels.shape[2])), (wide, (size_px, size_px))):
        pixels = interpolate(pixels[None], size=size, mode="bicubic", align_corners=False, antialias=antialias)[0]
    return pixels


@pytest.mark.parametrize(("height", "width"), [(500, 340), (500, 60), (60, 500), (97, 96), (3, 400)])
def test_a_side_that_becomes_much_smaller_is_antialiased(height: int, width: int) -> None:
    image, mask = picture(height, width), torch.ones(1, height, width, dtype=torch.bool)
    crop = Crop(antialias_above=3.0, fill="none")
    (found,) = cut_regions([image], [mask], size_px=32, mean=MEAN, std=STD, crop=crop)
    normalised = (image / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    expected = by_interpolate(normalised, size_px=32, high=height > 96, wide=width > 96)
    assert (found - expected).abs().max() < 2e-5
    assert (squeeze_crop(normalised, size_px=32, crop=crop) - expected).abs().max() < 2e-5


def test_antialiasing_one_region_leaves_its_neighbours_to_the_bit() -> None:
    image, masks = picture(300, 300), rectangles(300, 300, (0, 0, 300, 299), (5, 5, 60, 50), (200, 3, 220, 290))
    both = [
        cut_regions([image], [masks], size_px=32, mean=MEAN, std=STD, crop=Crop(antialias_above=above))
        for above in (None, 3.0)
    ]
    assert torch.equal(both[0][1], both[1][1])
    assert not torch.allclose(both[0][0], both[1][0], atol=0.1)
    assert not torch.allclose(both[0][2], both[1][2], atol=0.1)


def test_grain_of_a_large_picture_vanishes_only_with_antialiasing() -> None:
    """A checkerboard of single pixels is grey from afar; every sixteenth pixel of it is black or white."""
    y, x = np.mgrid[:512, :512]
    image = torch.from_numpy(255 * ((y + x) % 2).astype(np.uint8)).expand(3, 512, 512)
    mask = torch.ones(1, 512, 512, dtype=torch.bool)
    spread = {
        above: float(
            cut_regions(
                [image], [mask], size_px=33, mean=(0.5,) * 3, std=(0.5,) * 3, crop=Crop(antialias_above=above)
            ).std()
        )
        for above in (None, 3.0)
    }
    assert spread[3.0] < 0.02 < 0.3 < spread[None]


@pytest.mark.parametrize(
    ("height", "width", "settings", "size"),
    [
        (300, 400, {"short_side_px": 64}, (64, 85)),
        (50, 40, {"short_side_px": 64}, None),
        (50, 40, {"short_side_px": 64, "enlarge": True}, (80, 64)),
        (40, 800, {"short_side_px": 32}, (6, 128)),
        (300, 400, {}, None),
    ],
)
def test_regions_are_cut_from_the_picture_that_the_detector_saw(
    height: int, width: int, settings: dict[str, object], size: tuple[int, int] | None
) -> None:
    image, masks = picture(height, width), rectangles(height, width, (0, 0, width, height), (3, 2, width - 2, 38))
    seen, seen_masks = image, masks
    if size is not None:
        wide = interpolate(image[None].float(), size=size, mode="bilinear", antialias=True, align_corners=False)
        seen = wide[0].round().byte()
        seen_masks = interpolate(masks[None].float(), size=size, mode="nearest-exact")[0] > 0
    crop = PictureCrop.model_validate(settings)
    expected = cut_regions([seen], [seen_masks], size_px=16, mean=MEAN, std=STD, crop=Crop())
    found = cut_regions(
        [image], [masks], size_px=16, mean=MEAN, std=STD, crop=crop.model_copy(update={"antialias_above": None})
    )
    assert torch.equal(found, expected)
    assert torch.equal(cut_masks([masks], size_px=16, crop=crop), cut_masks([seen_masks], size_px=16, crop=Crop()))


def test_a_mask_of_one_pixel_survives_a_smaller_picture() -> None:
    mask = torch.zeros(1, 400, 500, dtype=torch.bool)
    mask[0, 397, 3] = True
    crop = PictureCrop(short_side_px=32)
    assert cut_masks([mask], size_px=8, crop=crop).all()
    assert cut_regions([picture(400, 500)], [mask], size_px=8, mean=MEAN, std=STD, crop=crop).shape == (1, 3, 8, 8)
