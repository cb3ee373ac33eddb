"""Regions are held against nouns that their image does not show: which ones, in one loss however the batch is cut."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskmine.schemas.errors import InputError
from maskmine.tuning.clip.data import arrange, nouns_of, open_sets
from maskmine.tuning.clip.negatives import Held, Unshown, columns_of
from maskmine.tuning.clip.settings import Data
from maskmine.tuning.clip.transforms import View
from tests.support.models import save_tiny_clip
from tests.support.toy_shards import write_toy_shards
from tests.support.tuning import losses, run, settings_of

NEGATIVES = {"cherry": ("berry", "sky"), "sky": ("sea",), "leaf": ("berry",)}  # of lemons there are none


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_shards(tmp_path_factory.mktemp("pairs") / "run", negatives=NEGATIVES)


@pytest.fixture(scope="module", autouse=True)
def one_tokenizer() -> Iterator[None]:
    """Loading open_clip's takes longer than a run on toys."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_clip, "get_tokenizer", functools.cache(open_clip.get_tokenizer))
        yield


def data_of(folder: Path) -> Data:
    return Data.model_validate({"sources": [{"folder": str(folder)}], "workers": 0})


numbers = st.lists(st.integers(0, 9), max_size=5)


@given(
    pairs=st.lists(st.tuples(st.integers(0, 9), numbers, numbers), min_size=1, max_size=6),
    held=st.sampled_from(["own", "batch"]),
)
def test_a_negative_has_one_column_and_none_where_a_pair_of_the_batch_has_it(
    pairs: list[tuple[int, list[int], list[int]]], held: Held
) -> None:
    nouns = [noun for noun, _, _ in pairs]
    negatives, said = ([np.array(pair[which], np.int64) for pair in pairs] for which in (1, 2))
    found = columns_of(nouns, negatives, said, held=held)
    columns = found.nouns_K.tolist()
    assert columns == sorted({n for _, of_pair, _ in pairs for n in of_pair} - set(nouns))
    assert tuple(found.hidden_GK.shape) == (len(pairs), len(columns))
    for hidden_K, (_, own, spoken) in zip(found.hidden_GK.tolist(), pairs, strict=True):
        expected = [column not in own if held == "own" else column in spoken for column in columns]
        assert hidden_K == expected


def test_what_an_image_says_are_the_nouns_of_all_of_its_pairs() -> None:
    table = pa.table(
        {
            "image_id": ["b", "a", "b", "c"],
            "noun": ["dog", "cat", "ball", "hat"],
            "negatives": pa.array([["wolf"], [], ["wolf"], ["cap", "dog"]], pa.list_(pa.string())),
        }
    )
    unshown = Unshown.of(table).filter(pa.chunked_array([[True, True, False, True]]))
    assert unshown.nouns() == {"wolf", "cap", "dog"}
    negatives, said = unshown.numbered({"dog": 0, "cat": 1, "hat": 2, "cap": 3, "wolf": 4})
    assert [negatives.of(row).tolist() for row in range(3)] == [[4], [], [3, 0]]
    assert [said.of(row).tolist() for row in range(3)] == [[0, -1], [1], [2]]  # no pair of "ball" is left


def test_negatives_follow_the_nouns_of_the_pairs_in_the_vocabulary(shards: Path) -> None:
    pairs = nouns_of(open_sets(data_of(shards)))
    assert pairs == ("cherry", "leaf", "lemon", "sky")
    assert nouns_of(open_sets(data_of(shards), negatives=True)) == (*pairs, "berry", "sea")


@pytest.mark.parametrize("held", ["own", "batch"])
def test_the_loss_is_that_of_the_whole_batch_however_it_is_cut(
    clip_folder: Path, shards: Path, tmp_path: Path, held: str
) -> None:
    found = []
    for number, change in enumerate(({}, {"micro_batch_size": 3}, {"data": {"workers": 1}})):
        out = tmp_path / str(number)
        run(settings_of(clip_folder, shards, out, mode="joint", objective={"negatives": held}, **change))
        found.append([loss for _, _, loss in losses(out)])
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert found[2] == found[0]
    without = tmp_path / "without"
    run(settings_of(clip_folder, shards, without, mode="joint"))
    first = losses(without)[0][2]
    assert found[0][0] > first + 1e-3  # the same batch, with more to be told from


def test_every_process_has_the_columns_of_the_whole_batch(shards: Path) -> None:
    data = data_of(shards)
    view = View(size_px=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop=data.crop, jitter=None)
    sets = open_sets(data, negatives=True)
    one, *parts = (
        arrange(sets, data=data, view=view, batch_size=6, seed=0, rank=rank, processes=processes, held="batch")
        for rank, processes in ((0, 1), (0, 2), (1, 2))
    )
    for step in range(4):
        expected, *found = (pairs[step] for pairs in (one, *parts))
        assert not isinstance(expected, str)
        assert expected.negatives is not None
        assert len(expected.negatives.nouns_K) > 0
        for batch in found:
            assert not isinstance(batch, str)
            assert batch.negatives is not None
            assert torch.equal(batch.negatives.nouns_K, expected.negatives.nouns_K)
            assert torch.equal(batch.negatives.hidden_GK, expected.negatives.hidden_GK)


def test_a_set_without_negatives_is_refused_in_one_line(clip_folder: Path, tmp_path: Path) -> None:
    folder = write_toy_shards(tmp_path / "run")
    settings = settings_of(clip_folder, folder, tmp_path / "out", objective={"negatives": "own"})
    with pytest.raises(
        InputError, match=r"objective\.negatives: the pairs of .*/run have none; mine them with"
    ) as told:
        run(settings)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()


def test_without_them_a_tuning_is_what_it_was(clip_folder: Path, shards: Path, tmp_path: Path) -> None:
    plain = write_toy_shards(tmp_path / "run")
    for name, folder in (("with", shards), ("without", plain)):
        run(settings_of(clip_folder, folder, tmp_path / name))
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    decisive = settings_of(clip_folder, plain, tmp_path / "out").decisive()
    assert "negatives" not in json.dumps(decisive)
