"""Regions to vectors: the same in any company, and the same again after a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor
from torch.nn.functional import normalize

from maskmine.mining.images.crops import Crop, cut_masks, cut_regions
from maskmine.mining.models.clip import Clip, ImageTower, RegionClip
from maskmine.mining.models.embeddings import embed_regions, pack, unpack
from maskmine.mining.models.mask_prompts import new_prompts, tower_sha256
from maskmine.mining.models.prompts_file import PromptsRecord, load_prompts, save_prompts
from maskmine.schemas.errors import InputError
from tests.support.models import OF_TIMM, save_tiny_clip


def scenes() -> tuple[list[Tensor], list[Tensor]]:
    """Five pictures of different sizes with 7, 0, 3, 1 and 9 masks."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(40, 50, 7), (9, 9, 0), (64, 31, 3), (8, 120, 1), (33, 33, 9)]
    images = [torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator) for h, w, _ in sizes]
    masks = [torch.rand(n, h, w, generator=generator) < 0.3 for h, w, n in sizes]
    return images, masks


def corners(height: int, width: int) -> Tensor:
    """Two masks of a corner each, with a pixel in the one across, so that much of their boxes is blank."""
    masks_2HW = torch.zeros(2, height, width, dtype=torch.bool)
    masks_2HW[0, : height // 2, : width // 2] = masks_2HW[1, height // 2 :, width // 3 :] = True
    masks_2HW[0, -1, -1] = masks_2HW[1, 0, 0] = True
    return masks_2HW


def counting_tower(calls: list[int]) -> ImageTower:
    """A double that embeds a region as the means of its three colours, and notes how many come at once."""

    def embed(pixels_N3SS: Tensor) -> Tensor:
        calls.append(len(pixels_N3SS))
        return torch.nn.functional.normalize(pixels_N3SS.mean((2, 3)), dim=1)

    zeros, ones = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return ImageTower(8, zeros, ones, dim=3, batch_size=4, device=torch.device("cpu"), embed=embed)


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> ImageTower:
    folder: Path = save_tiny_clip(tmp_path_factory.mktemp("clip"))
    return Clip(model=str(folder), batch_size=4).open_image(device="cpu")


def test_each_image_gets_the_vectors_of_its_own_regions() -> None:
    images, masks = scenes()
    double = counting_tower([])
    found = embed_regions(images, masks, tower=double, crop=Crop(fill="zero"))
    assert [vectors.shape for vectors in found] == [(7, 3), (0, 3), (3, 3), (1, 3), (9, 3)]
    assert {vectors.dtype for vectors in found} == {np.dtype("<f2")}
    for image, of_image, vectors in zip(images, masks, found, strict=True):
        regions = cut_regions([image], [of_image], size_px=8, mean=double.mean, std=double.std, crop=Crop(fill="zero"))
        np.testing.assert_array_equal(vectors, double.embed(regions).numpy().astype(np.float16))


def test_regions_of_several_images_fill_whole_batches() -> None:
    calls: list[int] = []
    embed_regions(*scenes(), tower=counting_tower(calls), crop=Crop())
    assert calls == [4, 4, 4, 4, 4]


def test_an_image_has_the_same_bits_in_any_company(tower: ImageTower) -> None:
    images, masks = scenes()
    together = embed_regions(images, masks, tower=tower, crop=Crop())
    alone = [embed_regions([i], [m], tower=tower, crop=Crop())[0] for i, m in zip(images, masks, strict=True)]
    backwards = embed_regions(images[::-1], masks[::-1], tower=tower, crop=Crop())[::-1]
    for one, two, three in zip(together, alone, backwards, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)


@pytest.mark.parametrize("changes", [{}, OF_TIMM], ids=["open_clip", "timm"])
def test_with_mask_prompts_a_region_is_seen_with_its_mask(changes: dict[str, Any], tmp_path: Path) -> None:
    """The vectors are those of the tower and its prompts as a loop over single regions gives them."""
    folder, prompts = save_tiny_clip(tmp_path / "clip", **changes), tmp_path / "prompts.safetensors"
    whole = Clip(model=str(folder)).open_whole()
    record = PromptsRecord(clip="tiny", tower_sha256=tower_sha256(whole.model.visual), settings={}, shards=())
    save_prompts(prompts, new_prompts(whole.model.visual, depth=2, std=1.0, seed=0), record=record)
    tower = RegionClip(model=str(folder), prompts=str(prompts), batch_size=4).open_image(device="cpu")
    images, _ = scenes()
    masks = [corners(*image.shape[1:]) for image in images]
    found = embed_regions(images, masks, tower=tower, crop=Crop())
    seen = load_prompts(prompts, whole.model)
    for image, of_image, vectors in zip(images, masks, found, strict=True):
        for number, vector_D in enumerate(vectors):
            one = [of_image[number : number + 1]]
            cut = cut_regions([image], one, size_px=tower.size_px, mean=tower.mean, std=tower.std, crop=Crop())
            with torch.no_grad():
                expected_D = normalize(seen(cut, cut_masks(one, size_px=tower.size_px, crop=Crop())), dim=1)[0]
            np.testing.assert_allclose(vector_D, expected_D, atol=2e-3)
    plain = embed_regions(images, masks, tower=Clip(model=str(folder)).open_image(device="cpu"), crop=Crop())
    assert np.abs(found[0] - plain[0]).max() > 0.05


def test_prompts_of_another_clip_are_refused(tmp_path: Path) -> None:
    folder, prompts = save_tiny_clip(tmp_path / "clip"), tmp_path / "prompts.safetensors"
    record = PromptsRecord(clip="other", tower_sha256="f" * 64, settings={}, shards=())
    save_prompts(prompts, torch.zeros(1, 16, 64), record=record)
    with pytest.raises(InputError, match="prompts for the image tower of `other`"):
        RegionClip(model=str(folder), prompts=str(prompts)).open_image(device="cpu")


def test_nothing_has_no_embedding(tower: ImageTower) -> None:
    assert embed_regions([], [], tower=tower, crop=Crop()) == []
    (none,) = embed_regions(
        [torch.zeros(3, 4, 4, dtype=torch.uint8)], [torch.zeros(0, 4, 4) > 0], tower=tower, crop=Crop()
    )
    assert none.shape == (0, 32)


@given(vectors=arrays.arrays(np.float16, st.tuples(st.integers(0, 4), st.integers(0, 5))))
def test_vectors_survive_their_packing(vectors: np.ndarray) -> None:
    found = unpack([pack(vector) for vector in vectors], dim=vectors.shape[1])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, vectors.astype(np.float32))


def test_a_packed_vector_is_little_endian_halves() -> None:
    assert pack(np.array([1.0, -2.0])) == bytes.fromhex("003c00c0")


def test_the_width_comes_from_the_vectors_or_is_told() -> None:
    assert unpack([pack(np.ones(3))]).shape == (1, 3)
    assert unpack([]).shape == (0, 0)
    assert unpack([], dim=5).shape == (0, 5)


@pytest.mark.parametrize(
    ("packed", "dim"), [([b"0000", b"00"], None), ([b"0000"], 3), ([b"000"], None), ([b"0000", b"00000000"], 2)]
)
def test_vectors_of_different_widths_are_refused(packed: list[bytes], dim: int | None) -> None:
    with pytest.raises(ValueError, match="one width"):
        unpack(packed, dim=dim)
