"""Batches from shards: every sample once an epoch, the same batches for any workers, mask and picture in step."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from maskmine.mining.images.crops import Crop, cut_masks, cut_regions
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.sample import member_names, sample_members, write_members
from maskmine.tuning.clip import data as clip_data
from maskmine.tuning.clip.data import Pairs, arrange, nouns_of, open_sets
from maskmine.tuning.clip.settings import Data, Jitter, Source
from maskmine.tuning.clip.transforms import StoredRegion, View, decode_sample, jittered_part, show_region
from maskmine.tuning.training import batches
from maskmine.tuning.training.batches import load_batches, readers_may_die
from maskmine.tuning.training.order import Stream, epoch_order, shares_of_batch
from tests.support.toy_shards import as_version, write_toy_shards
from tests.support.web.served_page import png

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def view(*, jitter: Jitter | None = None, crop: Crop | None = None) -> View:
    return View(size_px=16, mean=MEAN, std=STD, crop=crop or Crop(), jitter=jitter)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 samples in three shards."""
    return write_toy_shards(tmp_path_factory.mktemp("pairs") / "run")


def data_of(*folders: Path, ratios: tuple[float | None, ...] = (None, None), **changes: object) -> Data:
    sources = tuple(Source(folder=str(f), ratio=ratio) for f, ratio in zip(folders, ratios, strict=False))
    return Data.model_validate({"sources": sources, "workers": 0, **changes})


def pairs_of(data: Data, *, batch_size: int = 5, seed: int = 0, rank: int = 0, processes: int = 1) -> Pairs:
    return arrange(
        open_sets(data),
        data=data,
        view=view(jitter=data.jitter, crop=data.crop),
        batch_size=batch_size,
        seed=seed,
        rank=rank,
        processes=processes,
    )


@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    per_batch=st.integers(1, 7),
    most=st.none() | st.integers(1, 4),
    seed=st.integers(0, 9),
)
@settings(max_examples=60)
def test_an_epoch_shows_every_sample_once_and_of_a_noun_no_more_than_allowed(
    counts: list[int], per_batch: int, most: int | None, seed: int
) -> None:
    nouns_S = np.repeat(np.arange(len(counts)), counts)
    stream = Stream(
        number=0,
        sources_S=np.zeros_like(nouns_S),
        rows_S=np.arange(len(nouns_S)),
        nouns_S=nouns_S,
        per_batch=per_batch,
        seed=seed,
        max_per_noun=most,
    )
    seen = [place for step in range(3 * len(nouns_S)) for place in stream.batch(step)]
    for epoch in range(2):
        rows = [place.row for place in seen if place.epoch == epoch]
        assert len(rows) == len(set(rows)) == stream.size
        assert Counter(nouns_S[rows].tolist()) == {n: min(c, most or c) for n, c in enumerate(counts)}
    assert [place.epoch for place in seen] == sorted(place.epoch for place in seen)


def test_max_per_noun_takes_other_samples_in_another_epoch() -> None:
    nouns_S = np.zeros(50, dtype=np.int64)
    first, again, second = (
        epoch_order(nouns_S, seed=(0,), epoch=epoch, max_per_noun=5).tolist() for epoch in (0, 0, 1)
    )
    assert first == again
    assert set(first) != set(second)


def test_order_follows_from_seed_and_epoch() -> None:
    nouns_S = np.arange(30)
    orders = [
        epoch_order(nouns_S, seed=(seed, 0), epoch=epoch, max_per_noun=None).tolist()
        for seed, epoch in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 3


@given(parts=st.lists(st.integers(1, 9), min_size=1, max_size=4), batch_size=st.integers(40, 300))
@settings(max_examples=60)
def test_a_batch_is_shared_by_the_ratios_in_whole_samples(parts: list[int], batch_size: int) -> None:
    ratios = [part / sum(parts) for part in parts]
    shares = shares_of_batch(ratios, batch_size=batch_size)
    assert sum(shares) == batch_size
    assert all(abs(share - ratio * batch_size) < 1 for share, ratio in zip(shares, ratios, strict=True))


def test_a_batch_is_the_same_for_any_number_of_processes(folder: Path) -> None:
    whole = pairs_of(data_of(folder), batch_size=6)
    parts = [pairs_of(data_of(folder), batch_size=6, rank=rank, processes=3) for rank in range(3)]
    for step in (0, 3, 4):
        expected, found = whole[step], [part[step] for part in parts]
        assert not isinstance(expected, str)
        got = [batch for batch in found if not isinstance(batch, str)]
        assert torch.equal(torch.cat([batch.pixels_B3SS for batch in got]), expected.pixels_B3SS)
        assert torch.equal(torch.cat([batch.masks_BSS for batch in got]), expected.masks_BSS)
        assert all(torch.equal(batch.nouns_G, expected.nouns_G) for batch in got)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # so Python 3.12 comments on any fork
def test_workers_change_nothing_and_more_of_them_than_shards_are_no_fault(tmp_path: Path) -> None:
    pairs = pairs_of(data_of(write_toy_shards(tmp_path / "run", per_shard=24)))
    alone, helped = (
        list(load_batches(pairs, start=2, stop=7, workers=workers, pin_memory=False)) for workers in (0, 2)
    )
    assert [batch.step for batch in helped] == [2, 3, 4, 5, 6]
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one.pixels_B3SS, other.pixels_B3SS)
        assert torch.equal(one.nouns_G, other.nouns_G)


def test_a_run_that_goes_on_sees_the_batches_that_it_would_have_seen(folder: Path) -> None:
    pairs = pairs_of(data_of(folder))
    whole, rest = (list(load_batches(pairs, start=n, stop=9, workers=0, pin_memory=False)) for n in (0, 4))
    assert all(torch.equal(a.pixels_B3SS, b.pixels_B3SS) for a, b in zip(whole[4:], rest, strict=True))


def test_nouns_and_keys_are_those_of_the_samples(folder: Path) -> None:
    data = data_of(folder)
    pairs, nouns = pairs_of(data), nouns_of(open_sets(data))
    assert nouns == ("cherry", "leaf", "lemon", "sky")
    batch = pairs[1]
    assert not isinstance(batch, str)
    named = [nouns[number] for number in batch.nouns_G.tolist()]
    assert named == [("cherry", "sky", "leaf", "lemon")[int(key[:4]) % 4] for key in pairs.keys(1)]


def test_the_rows_of_many_shards_are_in_one_table_in_the_order_of_the_shards(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = open_sets(data_of(folder))
    monkeypatch.setattr(clip_data, "_JOINED_AT_ONCE", 2)  # of three
    (shards,) = open_sets(data_of(folder))
    assert shards.index.equals(whole.index)
    assert [column.num_chunks for column in shards.index.columns] == [1] * shards.index.num_columns
    assert shards.index["shard"].to_pylist() == sorted(shards.index["shard"].to_pylist())


def test_sources_are_mixed_by_their_ratios(folder: Path, tmp_path: Path) -> None:
    other = write_toy_shards(tmp_path / "truth", nouns=("ball",), samples=4, seed=1)
    pairs = pairs_of(data_of(folder, other, ratios=(0.8, 0.2)), batch_size=10)
    for step in range(5):
        assert Counter(place.source for place in pairs.sample_refs(step)) == {0: 8, 1: 2}
    assert pairs.steps(1.0) == 3  # one pass through the first source, 24 samples, eight a batch
    together = pairs_of(data_of(folder, other), batch_size=7)
    assert len({(p.source, p.row) for step in range(4) for p in together.sample_refs(step)}) == 28


def test_without_jitter_a_region_looks_as_mining_shows_it_to_clip(folder: Path) -> None:
    shards = open_sets(data_of(folder))[0]
    for crop in (Crop(), Crop(fill="zero"), Crop(fill="none", expand_ratio=1.3)):
        key, span, path = shards.read(7)
        region = decode_sample(span, key=key, path=path)
        pixels_3SS, mask_SS = show_region(region, view=view(crop=crop), rng=np.random.default_rng(0))
        images = [torch.from_numpy(region.image_HW3).permute(2, 0, 1)]
        masks = [torch.from_numpy(region.mask_HW)[None]]
        expected = cut_regions(images, masks, size_px=16, mean=MEAN, std=STD, crop=crop)[0]
        torch.testing.assert_close(pixels_3SS, expected, rtol=0, atol=1e-4)
        assert torch.equal(mask_SS, cut_masks(masks, size_px=16, crop=crop)[0])


@pytest.mark.parametrize("changed", ["crop", "mask", "box", "no box"])
def test_a_sample_whose_crop_mask_and_box_are_not_of_one_size_is_named(folder: Path, changed: str) -> None:
    key, span, path = open_sets(data_of(folder))[0].read(7)
    image_format, *contents = sample_members(span, key)
    boxes = {"box": [0, 0, 10_000, 9], "no box": [3, 3, 3, 9]}
    if changed in boxes:
        contents[3] = json.dumps({"box_crop_xyxy": boxes[changed]}).encode()
    else:
        contents[changed == "mask"] = png(8, 8)
    file = io.BytesIO()
    write_members(file, zip(member_names(key, image_format), contents, strict=True))
    with pytest.raises(InputError, match=f"sample {key} is not where the index has it"):
        decode_sample(file.getvalue(), key=key, path=path)


def test_jitter_moves_picture_and_mask_together() -> None:
    """A white mask on black: where the filled picture is bright, and only there, the mask is set."""
    y, x = np.mgrid[:64, :64]
    mask_HW = (y // 16 + x // 16) % 2 == 0
    region = StoredRegion((255 * mask_HW[:, :, None].repeat(3, 2)).astype(np.uint8), mask_HW, (0, 0, 64, 64))
    seen = set()
    for seed in range(20):
        shown = View(64, (0.0,) * 3, (1.0,) * 3, Crop(fill="zero"), Jitter())
        pixels_3SS, mask_SS = show_region(region, view=shown, rng=np.random.default_rng(seed))
        assert float(((pixels_3SS[0] > 0.5) != mask_SS).float().mean()) < 0.07  # edges, to half a pixel
        seen.add(mask_SS.numpy().tobytes())
    assert len(seen) > 10


@given(seed=st.integers(0, 10_000))
@settings(max_examples=60)
def test_a_jittered_part_lies_in_the_box_and_has_the_share_and_aspect_asked_for(seed: int) -> None:
    x0, y0, x1, y1 = jittered_part(Jitter(scale=(0.5, 0.7)), np.random.default_rng(seed))
    assert 0 <= x0 < x1 <= 1 + 1e-9
    assert 0 <= y0 < y1 <= 1 + 1e-9
    assert 0.5 - 1e-9 <= (x1 - x0) * (y1 - y0) <= 0.7 + 1e-9
    assert 0.75 - 1e-9 <= (x1 - x0) / (y1 - y0) <= 4 / 3 + 1e-9


def test_a_region_that_jitter_would_lose_is_shown_whole() -> None:
    mask_HW = np.zeros((40, 40), dtype=bool)
    mask_HW[0, 0] = mask_HW[39, 39] = True
    region = StoredRegion(np.zeros((40, 40, 3), np.uint8), mask_HW, (0, 0, 40, 40))
    shown = View(40, MEAN, STD, Crop(), Jitter(scale=(0.5, 0.5)))
    for seed in range(20):
        assert show_region(region, view=shown, rng=np.random.default_rng(seed))[1].any()


def test_jitter_differs_between_epochs_and_is_the_same_again(folder: Path) -> None:
    pairs = pairs_of(data_of(folder), batch_size=24)
    first, again, later = (pairs[step] for step in (0, 0, 1))
    assert not isinstance(first, str) and not isinstance(again, str) and not isinstance(later, str)  # noqa: PT018
    assert torch.equal(first.pixels_B3SS, again.pixels_B3SS)
    turns = [[place.row for place in pairs.sample_refs(step)] for step in (0, 1)]
    same = [torch.equal(first.pixels_B3SS[turns[0].index(n)], later.pixels_B3SS[turns[1].index(n)]) for n in range(24)]
    assert sum(same) < 12  # in a small box, two parts may be the same pixels


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("another version", "format version 9, this maskmine reads 3"),
        ("no manifest", "not a finished mining run"),
        ("broken manifest", "cannot be read as a manifest"),
        ("broken index", r"00001\.parquet: not the index that the manifest names; run `maskmine verify"),
        ("no index", r"00001\.parquet: cannot be read"),
        ("cut tar", r"00001\.parquet: not the index that the manifest names"),
    ],
)
def test_shards_that_are_not_what_they_should_be_are_refused(tmp_path: Path, harm: str, message: str) -> None:
    folder = write_toy_shards(tmp_path / "run")
    manifest, index = folder / "manifest.json", folder / "shards" / "00001.parquet"
    if harm == "another version":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format_version": 9}))
    elif harm == "no manifest":
        manifest.unlink()
    elif harm == "broken manifest":
        manifest.write_text("{")
    elif harm == "broken index":
        index.write_bytes(index.read_bytes()[:-9])
    elif harm == "no index":
        index.unlink()
    else:
        index.with_suffix(".tar").write_bytes(b"")
    with pytest.raises(InputError, match=message) as error:
        open_sets(data_of(folder))
    assert "\n" not in str(error.value)


def test_a_sample_that_is_not_where_the_index_has_it_is_named_by_a_worker_in_one_line(tmp_path: Path) -> None:
    folder = write_toy_shards(tmp_path / "run", samples=6, per_shard=6)
    pairs, tar = pairs_of(data_of(folder)), folder / "shards" / "00000.tar"
    tar.write_bytes(tar.read_bytes()[512:])
    with pytest.raises(InputError, match=r"00000\.tar: sample 000\d-000 is not where the index has it") as error:
        list(load_batches(pairs, start=0, stop=1, workers=0, pin_memory=False))
    assert "\n" not in str(error.value)


def test_of_a_source_only_pairs_are_seen_that_reach_its_thresholds(tmp_path: Path, folder: Path) -> None:
    scored = write_toy_shards(tmp_path / "scored", scores=True)
    sources = [{"folder": str(scored), "min_similarity": 0.05, "min_margin": 0.8}, {"folder": str(folder)}]
    some, all_of_the_other = open_sets(Data.model_validate({"sources": sources}))
    assert some.index["key"].to_pylist() == [f"{number:04d}-000" for number in range(5, 21)]
    assert len(all_of_the_other.index) == 24
    assert some.read(0)[1] == open_sets(data_of(scored))[0].read(5)[1]


def test_a_pair_without_a_lift_reaches_no_threshold_and_the_others_do(tmp_path: Path) -> None:
    folder = write_toy_shards(tmp_path / "run", scores=True, confident=True)
    for least, first in (
        ({"min_lift": -1.0}, 1),
        ({"min_lift": 0.05}, 15),
        ({"min_evidence": 0}, 12),
        ({"min_confidence": 0.2}, 20),
        ({"min_lift": 0.05, "min_evidence": 9.5}, 22),
    ):
        (shards,) = open_sets(Data.model_validate({"sources": [{"folder": str(folder)} | least]}))
        assert shards.index["key"].to_pylist() == [f"{number:04d}-000" for number in range(first, 24)]


def test_a_threshold_on_a_score_that_no_pair_has_is_refused_with_the_reason(tmp_path: Path) -> None:
    new = write_toy_shards(tmp_path / "run", scores=True)
    old = as_version(new, tmp_path / "old", 2)
    for folder, score, why in (
        (new, "confidence", "as they were mined without a calibration; give one as `pairs.calibration`"),
        (old, "confidence", "as format version 2 has none; mine again, or leave it out"),
        (old, "lift", "as format version 2 has none; mine again, or leave it out"),
    ):
        source = {"folder": str(folder), f"min_{score}": 0.0}
        with pytest.raises(InputError, match=rf"min_{score} 0.0 for .*, whose pairs have no {score}, {why}"):
            open_sets(Data.model_validate({"sources": [source]}))
    (shards,) = open_sets(Data.model_validate({"sources": [{"folder": str(old), "min_similarity": 0.2}]}))
    assert len(shards.index) == 4


@pytest.mark.parametrize("score", ["similarity", "margin", "lift"])
def test_thresholds_for_pairs_without_scores_are_refused(folder: Path, score: str) -> None:
    source = {"folder": str(folder), f"min_{score}": 0.2}
    with pytest.raises(InputError, match=rf"min_{score} 0.2 for .*, whose pairs have no {score}"):
        open_sets(Data.model_validate({"sources": [source]}))


def test_thresholds_that_leave_too_little_for_a_batch_are_refused(tmp_path: Path) -> None:
    source = {"folder": str(write_toy_shards(tmp_path / "run", scores=True)), "min_similarity": 0.9}
    with pytest.raises(InputError, match="an epoch has 0 samples, fewer than the 5 of a batch"):
        pairs_of(Data.model_validate({"sources": [source]}))


def test_a_batch_larger_than_the_data_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="an epoch has 24 samples, fewer than the 25 of a batch"):
        pairs_of(data_of(folder), batch_size=25)
    with pytest.raises(InputError, match="an epoch has 8 samples, fewer than the 9 of a batch"):
        pairs_of(data_of(folder, max_per_noun=2), batch_size=9)


def test_a_batch_that_processes_cannot_share_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="5 cannot be shared by 2 processes"):
        pairs_of(data_of(folder), batch_size=5, processes=2)


def test_a_ratio_too_small_for_the_batch_is_refused() -> None:
    with pytest.raises(InputError, match=r"a ratio of 0\.01 is less than one sample in a batch of 10"):
        shares_of_batch([0.99, 0.01], batch_size=10)


class KillsItsReader(Dataset["int | str"]):
    """Batch 2 kills the process that reads it, as the kernel does where memory is short."""

    def __getitem__(self, step: int) -> int:
        if step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return step


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # so Python 3.12 comments on any fork
def test_a_reader_that_is_killed_ends_the_training_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "usable_workers", lambda workers, *, batches: workers)

    def use() -> None:
        with readers_may_die():
            for _ in load_batches(KillsItsReader(), start=0, stop=9, workers=2):
                time.sleep(0.1)

    with pytest.raises(IncompleteError) as error:
        use()
    line = str(error.value)
    assert line.startswith("a process that reads samples died (DataLoader worker (pid")
    assert line.endswith("run the same command again, which goes on from its checkpoint")
    assert "\n" not in line
    with pytest.raises(RuntimeError, match="something else"), readers_may_die():
        raise RuntimeError("something else")
