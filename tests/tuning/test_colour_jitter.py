"""The colours of proposal training against `colorsys`, one pixel at a time, and their ranges against SSD's."""

from __future__ import annotations

import colorsys
import random

import numpy as np
import pytest
import torch

from maskmine.tuning.open_vocabulary import data
from maskmine.tuning.open_vocabulary.data import brightened, contrasted, hue_turned, saturated

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 3))
IMAGE_3HW = torch.from_numpy(PIXELS.astype(np.uint8).T.reshape(3, 6, 10).copy())


def pixels_of(image_3HW: torch.Tensor) -> np.ndarray:
    return image_3HW.reshape(3, -1).T.numpy().astype(int)


def by_hsv(hue: float = 0.0, saturation: float = 1.0) -> list[list[int]]:
    """`hue` is added in OpenCV's units of 0 to 179, the saturation multiplied."""
    changed = []
    for pixel in PIXELS / 255:
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        changed.append([round(255 * c) for c in colorsys.hsv_to_rgb((h + hue / 180) % 1, min(1.0, s * saturation), v)])
    return changed


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.5])
def test_saturation_is_that_of_hsv(factor: float) -> None:
    np.testing.assert_allclose(pixels_of(saturated(IMAGE_3HW, factor)), by_hsv(saturation=factor), atol=1)


@pytest.mark.parametrize("units", [-18, -5, 18])
def test_hue_is_that_of_hsv(units: int) -> None:
    np.testing.assert_allclose(pixels_of(hue_turned(IMAGE_3HW, 2 * units)), by_hsv(hue=units), atol=2)


@pytest.mark.parametrize("levels", [-32, 32])
def test_brightness_is_added_and_contrast_multiplied(levels: int) -> None:
    assert np.array_equal(pixels_of(brightened(IMAGE_3HW, levels)), (PIXELS + levels).clip(0, 255))
    np.testing.assert_allclose(pixels_of(contrasted(IMAGE_3HW, 1.5)), (PIXELS * 1.5).clip(0, 255), atol=0.5)


def test_every_change_reaches_the_ends_of_its_range_half_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, list[float]] = {}
    for name in ("brightened", "contrasted", "saturated", "hue_turned"):

        def record(image: torch.Tensor, value: float, name: str = name) -> torch.Tensor:
            drawn.setdefault(name, []).append(value)
            return image

        monkeypatch.setattr(data, name, record)
    for seed in range(2_000):
        data._jittered(IMAGE_3HW, random.Random(seed))
    ranges = {"brightened": (-32, 32), "contrasted": (0.5, 1.5), "saturated": (0.5, 1.5), "hue_turned": (-36, 36)}
    for name, (low, high) in ranges.items():
        values, slack = drawn[name], 0.01 * (high - low)
        assert low <= min(values) < low + slack
        assert high - slack < max(values) <= high
        assert np.mean(values) == pytest.approx((low + high) / 2, abs=3 * slack)
        assert len(values) == pytest.approx(1_000, abs=100)
