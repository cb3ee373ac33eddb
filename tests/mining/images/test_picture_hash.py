"""The perceptual hash: copies of a picture are near it, other pictures are far, and no near pair is overlooked."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskmine.mining.images.perceptual_hash import COPY_BITS, HASH_BITS, close_pairs, image_hash


def blobs(seed: int) -> Image.Image:
    """A picture of a few large blots, unlike that of another seed."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((120, 90), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, *, quality: int) -> Image.Image:
    content = BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(content)


def hashed(image: Image.Image) -> int:
    return image_hash(np.asarray(image))


@pytest.mark.parametrize("seed", range(3))
def test_smaller_and_poorer_copies_are_near_their_picture(seed: int) -> None:
    picture = blobs(seed)
    for copy in (jpeg(picture, quality=40), picture.resize((60, 45)), jpeg(picture.resize((80, 60)), quality=60)):
        assert (hashed(picture) ^ hashed(copy)).bit_count() <= COPY_BITS


def test_other_pictures_are_far() -> None:
    hashes = [hashed(blobs(seed)) for seed in range(8)]
    assert close_pairs(hashes, hashes) == [(place, place, 0) for place in range(8)]


def test_a_hash_is_a_number_of_64_bits_and_the_same_each_time() -> None:
    assert hashed(blobs(1)) == hashed(blobs(1))
    assert 0 <= hashed(blobs(1)) < 2**HASH_BITS


some_hashes = st.lists(st.integers(0, 2**HASH_BITS - 1), max_size=8)


@given(some_hashes, st.lists(st.tuples(st.integers(0, 7), st.sets(st.integers(0, 63), max_size=8))), st.integers(0, 9))
def test_every_near_pair_is_found_and_no_other(
    hashes: list[int], changes: list[tuple[int, set[int]]], most_bits: int
) -> None:
    others = [hashes[n] ^ sum(1 << bit for bit in bits) for n, bits in changes if n < len(hashes)]
    found = close_pairs(hashes, others, most_bits=most_bits)
    all_pairs = ((n, m, (one ^ other).bit_count()) for n, one in enumerate(hashes) for m, other in enumerate(others))
    assert found == [pair for pair in all_pairs if pair[2] <= most_bits]


@pytest.mark.parametrize("most_bits", [-1, 64])
def test_a_distance_that_no_two_hashes_can_have_is_refused(most_bits: int) -> None:
    with pytest.raises(ValueError, match="most_bits"):
        close_pairs([], [], most_bits=most_bits)
