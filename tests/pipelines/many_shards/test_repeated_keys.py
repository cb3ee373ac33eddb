"""Keys that a set has twice are found, whatever they look like and however many files they are in."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskmine.pipelines.dataset import repeated_keys
from maskmine.pipelines.dataset.repeated_keys import RepeatedKeys

SHARDS = st.lists(
    st.lists(st.sampled_from(["a-0", "b-0", "line\nbreak", 'quo"te', "nöun", ""]), max_size=4), max_size=5
)


@given(SHARDS)
def test_each_key_is_found_as_often_as_it_is_there_once_more(shards: list[list[str]]) -> None:
    with pytest.MonkeyPatch.context() as patch, RepeatedKeys() as keys:
        patch.setattr(repeated_keys, "_HELD", 3)
        patch.setattr(repeated_keys, "_FILES", 4)
        for number, of_shard in enumerate(shards):
            keys.add(of_shard, shard=number)
        found = list(keys.found())
    places = {key: sorted(n for n, of in enumerate(shards) for one in of if one == key) for of in shards for key in of}
    assert Counter(found) == Counter((key, shard) for key, at in places.items() for shard in at[1:])


def test_a_key_in_many_shards_is_told_in_the_order_of_shards() -> None:
    with RepeatedKeys() as keys:
        for number in range(12):
            keys.add(["a-0", f"{number}-0"], shard=number)
        assert list(keys.found()) == [("a-0", number) for number in range(1, 12)]
