"""The bottleneck analysis on scenes made by hand, with a CLIP whose every answer is known."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mining.embeddings import pack
from mining.models.clip import ImageTower
from mining.segmentation_scores import NOTHING
from schemas.errors import InputError
from schemas.mask import Mask
from schemas.rows import Region, RegionsRow
from scripts.bottleneck import draw_bars, main, render_bars, verdict
from scripts.demo_nouns import demo_nouns
from scripts.demo_scene import Scene
from scripts.story_maps import CASES, Bar, Case, find_bottleneck, paint

HEIGHT_PX, WIDTH_PX = 8, 12
NOUNS_KD = torch.eye(len(demo_nouns()))
LEFT, RIGHT = slice(0, 4), slice(6, 12)  # columns: 32 and 48 pixels
MASKED, UNMASKED = Case("oracle", "masked crops"), Case("oracle", "unmasked crops")
ORDINARY, CLASSES, BOTH = Case("ordinary", "masked crops"), Case("ordinary", "oracle"), Case("oracle", "oracle")


def columns(span: slice, rows: slice = slice(None)) -> np.ndarray[Any, np.dtype[np.bool_]]:
    mask_HW = np.zeros((HEIGHT_PX, WIDTH_PX), np.bool_)
    mask_HW[rows, span] = True
    return mask_HW


def scene(*nouns: int) -> Scene:
    """An object of the first noun on the left, and one of the second on the right."""
    masks_NHW = np.stack([columns(LEFT), columns(RIGHT)])[: len(nouns)]
    picture_HW3 = np.zeros((HEIGHT_PX, WIDTH_PX, 3), np.uint8)
    return Scene("", picture_HW3, tuple(demo_nouns()[noun] for noun in nouns), masks_NHW, ())


def clip_that_says(*nouns: int) -> ImageTower:
    """A CLIP that names one crop after another."""
    answers: Iterator[int] = iter(nouns)

    def embed(pixels_N3SS: torch.Tensor) -> torch.Tensor:
        return NOUNS_KD[[next(answers) for _ in pixels_N3SS]]

    return ImageTower(8, (0.5,) * 3, (0.5,) * 3, len(NOUNS_KD), 64, torch.device("cpu"), embed)


def region(mask_HW: np.ndarray[Any, np.dtype[np.bool_]], says: int) -> Region:
    mask = Mask.from_array(mask_HW)
    return Region(mask, mask.box_xyxy, mask.area_px, 0.9, None, pack(NOUNS_KD[says].numpy()))


def found(*regions: Region) -> dict[str, RegionsRow]:
    return {"1": RegionsRow("1", "", HEIGHT_PX, WIDTH_PX, regions, None)}


def bars_of(bars: Sequence[Bar]) -> dict[Case, tuple[float | None, int]]:
    return {bar.case: (bar.scores.mean_iou, bar.objects.count) for bar in bars}


def analyse(*says: int, ordinary: dict[str, RegionsRow] | None = None) -> dict[Case, tuple[float | None, int]]:
    """One scene with nouns 0 and 1; CLIP says so and so to the two masked crops, then to the two unmasked ones."""
    image = clip_that_says(*says)
    return bars_of(find_bottleneck([("1", scene(0, 1))], image=image, nouns_KD=NOUNS_KD, ordinary=ordinary))


def test_a_clip_that_is_always_right_reaches_the_upper_bound_with_true_masks() -> None:
    assert analyse(0, 1, 0, 1) == {UNMASKED: (1, 2), MASKED: (1, 2), BOTH: (1, 2)}


def test_masked_and_unmasked_crops_are_told_apart() -> None:
    found = analyse(0, 1, 0, 0)  # without the mask, the right object too is called a 0: 32 of 80 pixels are right
    assert found[MASKED] == (1, 2)
    assert found[UNMASKED] == (pytest.approx((32 / 80 + 0) / 2), 1)


def test_only_unmasked_crops_show_what_is_around_the_object() -> None:
    corner = columns(LEFT) & ~columns(slice(2, 4), slice(0, 4))
    picture_HW3 = np.where(corner[:, :, None], 0, 255).astype(np.uint8).repeat(3, axis=2)
    only = Scene("", picture_HW3, (demo_nouns()[0],), corner[None], ())

    def embed(pixels_N3SS: torch.Tensor) -> torch.Tensor:
        """Says 0, and 1 where it sees white."""
        return NOUNS_KD[(pixels_N3SS.amax((1, 2, 3)) > 0.9).long()]

    image = replace(clip_that_says(), embed=embed)
    bars = bars_of(find_bottleneck([("1", only)], image=image, nouns_KD=NOUNS_KD, ordinary=None))
    assert (bars[MASKED], bars[UNMASKED]) == ((1, 1), (0, 0))


def test_a_class_that_is_not_there_costs_as_ovseg_counts_it() -> None:
    assert analyse(0, 5, 0, 1)[MASKED] == (pytest.approx((1 + 0 + 0) / 3), 1)


def test_ordinary_masks_cost_what_they_miss_whoever_names_them() -> None:
    half = found(region(columns(LEFT), says=0), region(columns(slice(6, 10)), says=7))
    bars = analyse(0, 1, 0, 1, ordinary=half)
    assert bars[CLASSES] == (pytest.approx((1 + 32 / 48) / 2), 2)
    assert bars[ORDINARY] == (pytest.approx((1 + 0 + 0) / 3), 1)
    assert list(bars) == list(CASES)


def test_an_oracle_gives_a_mask_the_noun_that_it_overlaps_most_and_the_better_mask_has_its_way() -> None:
    everything = region(np.ones((HEIGHT_PX, WIDTH_PX), np.bool_), says=0)  # IoU 32/96 on the left, 48/96 on the right
    assert analyse(0, 1, 0, 1, ordinary=found(everything))[CLASSES] == (pytest.approx((0 + 48 / 80) / 2), 1)
    with_left = found(everything, region(columns(LEFT), says=0))
    for nouns in ((0, 1), (1, 0)):  # whichever of the two classes comes first
        image = clip_that_says(0, 1, 0, 1)
        bars = find_bottleneck([("1", scene(*nouns))], image=image, nouns_KD=NOUNS_KD, ordinary=with_left)
        assert bars_of(bars)[CLASSES] == (1, 2)


def test_an_image_without_a_mask_is_missed_whole() -> None:
    bars = analyse(0, 1, 0, 1, ordinary=found())
    assert bars[ORDINARY] == bars[CLASSES] == (0, 0)


def test_a_pixel_takes_the_class_with_most_votes_over_all_masks_there() -> None:
    masks_NP = np.array([[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 0, 0]], np.bool_)
    votes_NK = np.array([[0.6, 0.4, 0.0], [0.0, 0.3, 0.0], [0.0, 0.0, 0.9]])
    assert paint(masks_NP, votes_NK=votes_NK).tolist() == [0, 1, 2, 1, NOTHING]


def test_masks_that_nobody_votes_for_are_no_class() -> None:
    assert paint(np.ones((1, 3), np.bool_), votes_NK=np.zeros((1, 4))).tolist() == [NOTHING] * 3


def test_many_masks_give_the_same_map_as_few() -> None:
    random = np.random.default_rng(0)
    masks_NP, votes_NK = random.random((70, 40)) < 0.1, random.random((70, 5))
    sums_PK = masks_NP.T.astype(float) @ votes_NK
    plain = np.where(masks_NP.any(0), sums_PK.argmax(1), NOTHING)
    assert paint(masks_NP, votes_NK=votes_NK).tolist() == plain.tolist()
    few = np.where(masks_NP[:20].any(0), (masks_NP[:20].T.astype(float) @ votes_NK[:20]).argmax(1), NOTHING)
    assert paint(masks_NP[:20], votes_NK=votes_NK[:20]).tolist() == few.tolist()


def test_the_verdict_names_what_limits() -> None:
    image, half = clip_that_says(0, 1, 0, 0), found(region(columns(LEFT), says=7), region(columns(RIGHT), says=7))
    bars = find_bottleneck([("1", scene(0, 1))], image=image, nouns_KD=NOUNS_KD, ordinary=half)
    assert "true masks would win 100.0 points and true classes 100.0" in verdict(bars)
    oracle_only = [bar for bar in bars if bar.case.masks == "oracle"]
    assert "raises CLIP's mIoU by 80.0 points" in verdict(oracle_only)
    assert "no MaskFormer" in verdict(oracle_only)


def test_the_chart_and_the_table_show_every_bar(tmp_path: Path) -> None:
    image = clip_that_says(0, 1, 0, 0)
    bars = find_bottleneck([("1", scene(0, 1))], image=image, nouns_KD=NOUNS_KD, ordinary=None)
    draw_bars(bars, tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as picture:
        assert picture.format == "PNG"
    assert json.loads(json.dumps([bar.as_json() for bar in bars]))[1]["objects_right"] == {
        "count": 2,
        "of": 2,
        "share": 1.0,
    }
    table = render_bars(bars)
    assert list(table.columns[0].cells) == [case.name for case in (UNMASKED, MASKED, BOTH)]
    assert list(table.columns[1].cells) == ["20.0%", "100.0%", "100.0%"]


def test_a_world_of_training_is_refused() -> None:
    with pytest.raises(InputError, match="may have been seen in training"):
        main(seed=1_000_000)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--clip .*nowhere: no such folder"):
        main(clip=tmp_path / "nowhere", to=tmp_path)
