"""Tuning runs: what learns and what does not, one loss for any cut of the batch, and going on after any stop."""

from __future__ import annotations

import errno
import functools
import io
import json
import math
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import maskmine.tuning.clip.train
from maskmine.mining.models.clip import Clip
from maskmine.mining.models.mask_prompts import weights_sha256_of
from maskmine.mining.models.prompts_file import load_prompts, read_prompts
from maskmine.pipelines.cli.main import run_app
from maskmine.schemas.errors import IncompleteError, InputError, OtherPlanError
from maskmine.scripts.benches.tuning import tuning_command
from maskmine.tuning.clip.settings import Tuning
from maskmine.tuning.clip.step import ClipLearner
from maskmine.tuning.clip.train import tune
from maskmine.tuning.training.optim import warmup_cosine
from tests.support.models import OF_TIMM, save_tiny_clip
from tests.support.paths import ROOT
from tests.support.toy_shards import write_toy_shards
from tests.support.tuning import losses, run, settings_of


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_shards(tmp_path_factory.mktemp("pairs") / "run")


@pytest.fixture(scope="module", autouse=True)
def one_tokenizer() -> Iterator[None]:
    """Loading open_clip's takes longer than a run on toys."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_clip, "get_tokenizer", functools.cache(open_clip.get_tokenizer))
        yield


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "open_clip_model.safetensors")


def test_prompts_learn_and_clip_stays_as_it_was(clip_folder: Path, shards: Path, tmp_path: Path) -> None:
    settings = settings_of(clip_folder, shards, tmp_path / "out", prompts={"steps": 40})
    assert run(settings).files == (tmp_path / "out" / "prompts.safetensors",)
    curve = [loss for _, _, loss in losses(tmp_path / "out")]
    assert sum(curve[-10:]) / 10 < 0.9 * sum(curve[:5]) / 5
    clip = Clip(model=str(clip_folder)).open_whole()
    load_prompts(tmp_path / "out" / "prompts.safetensors", clip.model)  # it would refuse a tower that had changed
    prompts_PND, record = read_prompts(tmp_path / "out" / "prompts.safetensors")
    assert prompts_PND.shape == (2, 16, 64)
    assert record.clip == clip_folder.name
    assert record.shards == (json.loads((shards / "manifest.json").read_text())["fingerprint"],)


@pytest.mark.parametrize("mode", ["prompts", "finetune", "joint"])
def test_only_what_a_mode_trains_moves(
    clip_folder: Path, shards: Path, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes: list[str] = []
    opened: list[Any] = []
    real = maskmine.tuning.clip.train._new_learner

    def watched(run: Any, name: str) -> Any:
        opened.append(run.clip.model)
        hashes.append(weights_sha256_of(run.clip.model.state_dict()))
        return real(run, name)

    monkeypatch.setattr(maskmine.tuning.clip.train, "_new_learner", watched)
    run(settings_of(clip_folder, shards, tmp_path / "out", mode=mode))
    before, after = weights_of(clip_folder), opened[0].state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    if mode == "prompts":
        assert hashes[0] == weights_sha256_of(after)
        assert not moved
    else:
        assert moved == {name for name in before if name.startswith("visual.")}
        assert weights_sha256_of(weights_of(tmp_path / "out" / "clip")) == weights_sha256_of(after)


def test_the_scale_is_trained_only_where_that_is_asked_for(clip_folder: Path, shards: Path, tmp_path: Path) -> None:
    for number, choice in enumerate(("locked", "trained")):
        out = tmp_path / choice
        run(settings_of(clip_folder, shards, out, objective={"logit_scale": choice}))
        scales = {json.loads(line)["logit_scale"] for line in (out / "log.jsonl").read_text().splitlines()}
        assert (len(scales) > 1) == bool(number)
        assert max(scales) <= 100.001


def test_prompts_after_finetuning_belong_to_the_tuned_clip(clip_folder: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    files = run(settings_of(clip_folder, shards, out, mode="finetune_then_prompts")).files
    assert files == (out / "clip", out / "prompts.safetensors")
    load_prompts(out / "prompts.safetensors", Clip(model=str(out / "clip")).open_whole().model)
    with pytest.raises(InputError, match=", tuned`"):
        load_prompts(out / "prompts.safetensors", Clip(model=str(clip_folder)).open_whole().model)


@pytest.mark.parametrize("mode", ["joint", "finetune_then_prompts"])
def test_a_clip_whose_tower_is_one_of_timm_is_tuned_and_used_alike(mode: str, shards: Path, tmp_path: Path) -> None:
    out, plain = tmp_path / "out", save_tiny_clip(tmp_path / "siglip", **OF_TIMM)
    stage = {"steps": 2, "batch_size": 4}
    run(settings_of(plain, shards, out, mode=mode, prompts=stage, finetune=stage, gradient_checkpointing=True))
    before, after = weights_of(plain), weights_of(out / "clip")
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert "visual.trunk.attn_pool.latent" in moved
    assert {name.partition(".")[0] for name in moved} == {"visual"}
    tuned = Clip(model=str(out / "clip")).open_whole()
    tower = load_prompts(out / "prompts.safetensors", tuned.model)
    assert tower.prompts_PND.shape == (2, 100, 96)
    pixels, mask = torch.randn(1, 3, 160, 160), torch.zeros(1, 160, 160, dtype=torch.bool)
    mask[:, :80] = True
    with torch.no_grad():
        assert torch.equal(tower(pixels), tuned.model.encode_image(pixels))
        assert not torch.equal(tower(pixels, mask), tower(pixels))


class Killed(BaseException):
    """As if the process ended there."""


def killed_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """The next run ends after so many steps, without a word."""
    real, taken = ClipLearner.step, []

    def step(*arguments: Any, **named: Any) -> dict[str, float]:
        if len(taken) == steps:
            monkeypatch.setattr(ClipLearner, "step", real)
            raise Killed
        taken.append(1)
        return real(*arguments, **named)

    monkeypatch.setattr(ClipLearner, "step", step)


@pytest.mark.parametrize(
    ("mode", "steps_taken"),
    [("prompts", 3), ("finetune_then_prompts", 0), ("finetune_then_prompts", 5), ("joint", 5)],
)
def test_a_killed_run_goes_on_to_the_same_losses_and_the_same_bytes(
    clip_folder: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, steps_taken: int
) -> None:
    changes = {"mode": mode, "checkpoint_every": 2, "prompts": {"steps": 6}, "objective": {"logit_scale": "trained"}}
    once, twice = (settings_of(clip_folder, shards, tmp_path / name, **changes) for name in ("once", "twice"))
    run(once)
    killed_after(monkeypatch, steps_taken)
    with pytest.raises(Killed):
        run(twice)
    run(twice)
    assert losses(tmp_path / "twice") == losses(tmp_path / "once")
    assert len({loss for _, _, loss in losses(tmp_path / "once")}) > 5
    prompts = [tmp_path / name / "prompts.safetensors" for name in ("once", "twice")]
    assert prompts[0].read_bytes() == prompts[1].read_bytes()


def test_a_checkpoint_has_the_form_of_earlier_versions_whose_runs_go_on(
    clip_folder: Path, shards: Path, tmp_path: Path
) -> None:
    run(settings_of(clip_folder, shards, tmp_path, mode="joint", objective={"logit_scale": "trained"}))
    stored = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert list(stored) == ["fingerprint", "stage", "step", "values"]
    assert (stored["stage"], stored["step"]) == (0, 4)
    assert list(stored["values"]) == ["weights", "optimizer", "scaler"]
    weights = list(stored["values"]["weights"])
    assert (weights[0], weights[-1]) == ("prompts", "logit_scale")
    assert all(name.startswith("visual.") for name in weights[1:-1])
    groups = stored["values"]["optimizer"]["param_groups"]
    assert sum(len(group["params"]) for group in groups) == len(weights)


def test_a_run_whose_tuned_clip_is_gone_says_so(clip_folder: Path, shards: Path, tmp_path: Path) -> None:
    settings = settings_of(clip_folder, shards, tmp_path / "out", mode="finetune_then_prompts")
    run(settings)
    (tmp_path / "out" / "clip" / "open_clip_model.safetensors").unlink()
    with pytest.raises(InputError, match="the CLIP that this run tuned is gone"):
        run(settings)


def test_a_finished_run_has_nothing_left_to_do(clip_folder: Path, shards: Path, tmp_path: Path) -> None:
    settings = settings_of(clip_folder, shards, tmp_path / "out")
    assert run(settings).steps == 4
    before = (tmp_path / "out" / "prompts.safetensors").read_bytes()
    assert run(settings).steps == 0
    assert (tmp_path / "out" / "prompts.safetensors").read_bytes() == before
    assert len(losses(tmp_path / "out")) == 4


def test_the_folder_of_another_run_is_refused(clip_folder: Path, shards: Path, tmp_path: Path) -> None:
    one_step = {"steps": 1}
    run(settings_of(clip_folder, shards, tmp_path / "out", prompts=one_step))
    other_clip, other_shards = save_tiny_clip(tmp_path / "clip", seed=1), write_toy_shards(tmp_path / "other", seed=5)
    others = [
        settings_of(clip_folder, shards, tmp_path / "out", prompts=one_step, seed=1),
        settings_of(clip_folder, shards, tmp_path / "out", prompts={**one_step, "learning_rate": 0.5}),
        settings_of(clip_folder, shards, tmp_path / "out", prompts=one_step, data={"max_per_noun": 3}),
        settings_of(other_clip, shards, tmp_path / "out", prompts=one_step),
        settings_of(clip_folder, other_shards, tmp_path / "out", prompts=one_step),
    ]
    for other in others:
        with pytest.raises(OtherPlanError, match="holds a run of other settings, another CLIP or other shards"):
            run(other)


@pytest.mark.parametrize("mode", ["prompts", "finetune"])
def test_the_loss_is_that_of_the_whole_batch_however_it_is_cut(
    clip_folder: Path, shards: Path, tmp_path: Path, mode: str
) -> None:
    curves = []
    for number, change in enumerate(({}, {"micro_batch_size": 3}, {"gradient_checkpointing": True})):
        out = tmp_path / str(number)
        run(settings_of(clip_folder, shards, out, mode=mode, **change))
        curves.append([loss for _, _, loss in losses(out)])
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], rel=1e-4)
    assert len(set(curves[0])) == 4


def test_torchrun_starts_processes_that_tune_as_one_does(clip_folder: Path, tmp_path: Path) -> None:
    shards = write_toy_shards(tmp_path / "run", negatives={"cherry": ["berry"], "sky": ["sea", "leaf"]})
    objective = {"logit_scale": "trained", "negatives": "batch"}
    one, two = (
        settings_of(clip_folder, shards, tmp_path / name, mode="joint", objective=objective) for name in ("one", "two")
    )
    config = tmp_path / "tune.yaml"
    config.write_text(two.model_dump_json())
    told = subprocess.run(tuning_command(config, processes=2), capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert told.returncode == 0, told.stderr
    assert len(told.stdout.splitlines()) == len(run(one).files)  # one of them speaks for both
    found, expected = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert [loss for _, _, loss in found] == pytest.approx([loss for _, _, loss in expected], rel=1e-5)
    tensors = [weights_of(tmp_path / name / "clip") for name in ("one", "two")]
    for name, value in tensors[0].items():
        torch.testing.assert_close(tensors[1][name], value, rtol=0, atol=1e-4)
    prompts = [read_prompts(tmp_path / name / "prompts.safetensors")[0] for name in ("one", "two")]
    torch.testing.assert_close(prompts[1], prompts[0], rtol=0, atol=1e-4)
    assert float(prompts[0].abs().max()) > 0.1  # they began at 0.02


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_keys(
    clip_folder: Path, shards: Path, tmp_path: Path
) -> None:
    settings = settings_of(clip_folder, shards, tmp_path / "out", prompts={"init_std": 1e39})
    with pytest.raises(InputError, match=r"step \d+: the loss is nan; its batch is \d{4}-000, .*failed-batch") as error:
        run(settings)
    assert "\n" not in str(error.value)
    keys = (tmp_path / "out" / "failed-batch.txt").read_text().splitlines()
    assert len(keys) == 8
    assert keys[0] in str(error.value)


def test_a_full_disk_keeps_the_checkpoint_before(
    clip_folder: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(clip_folder, shards, tmp_path / "full", checkpoint_every=1)
    run(settings_of(clip_folder, shards, tmp_path / "once"))
    real, synced = os.fsync, []

    def fsync(handle: int) -> None:
        synced.append(handle)
        if len(synced) == 5:  # the log at the start, and each checkpoint
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(IncompleteError, match=r"checkpoint\.pt: cannot be written, the disk is full"):
        run(settings)
    assert torch.load(tmp_path / "full" / "checkpoint.pt", weights_only=True)["step"] == 2
    run(settings)
    assert losses(tmp_path / "full") == losses(tmp_path / "once")


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What AdamW was given in each step so far, of all parameters in one row."""
    given: list[torch.Tensor] = []
    real = torch.optim.AdamW.step

    def step(optimizer: torch.optim.AdamW, *arguments: Any, **named: Any) -> Any:
        parameters = [value for group in optimizer.param_groups for value in group["params"]]
        given.append(torch.cat([value.grad.flatten() for value in parameters]))
        return real(optimizer, *arguments, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    return given


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_gradient_longer_than_the_limit_is_cut_to_it_before_adamw_sees_it(
    clip_folder: Path, shards: Path, tmp_path: Path, gradients: list[torch.Tensor], precision: str
) -> None:
    changes: dict[str, Any] = {"mode": "joint", "precision": precision}
    run(settings_of(clip_folder, shards, tmp_path / "free", **changes))
    free, lengths = gradients[0], [float(gradient.norm()) for gradient in gradients]
    gradients.clear()
    limit = min(lengths) / 4
    run(settings_of(clip_folder, shards, tmp_path / "cut", adam={"max_gradient_norm": limit}, **changes))
    assert [float(gradient.norm()) for gradient in gradients] == pytest.approx([limit] * 4, rel=1e-3)
    torch.testing.assert_close(gradients[0], free * (limit / lengths[0]), rtol=1e-3, atol=1e-9)
    gradients.clear()
    far = {"max_gradient_norm": 100 * max(lengths)}
    run(settings_of(clip_folder, shards, tmp_path / "far", adam=far, **changes))
    assert torch.equal(gradients[0], free)
    assert losses(tmp_path / "far") == losses(tmp_path / "free") != losses(tmp_path / "cut")


def test_half_precision_trains_too(clip_folder: Path, shards: Path, tmp_path: Path) -> None:
    curves = {}
    for precision in ("float32", "bfloat16", "float16"):
        run(settings_of(clip_folder, shards, tmp_path / precision, precision=precision))
        curves[precision] = [loss for _, _, loss in losses(tmp_path / precision)]
    for half in ("bfloat16", "float16"):
        assert curves[half] == pytest.approx(curves["float32"], rel=0.1)
        assert curves[half] != curves["float32"]


def test_cuda_that_is_not_there_is_refused(clip_folder: Path, shards: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match=r"`cuda` was asked for, and this machine has no GPU"):
        run(settings_of(clip_folder, shards, tmp_path / "out", device="cuda"))


def test_the_rate_rises_by_equal_steps_and_falls_as_half_a_cosine() -> None:
    shares = [warmup_cosine(step, steps=110, warmup_steps=10) for step in range(110)]
    assert shares[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert shares[10] == 1.0
    assert shares[60] == pytest.approx(0.5)
    assert shares[109] == pytest.approx(0.5 * (1 + math.cos(math.pi * 99 / 100)))
    assert shares[10:] == sorted(shares[10:], reverse=True)


def test_presets_fill_in_what_a_configuration_leaves_open() -> None:
    tree: dict[str, Any] = {"clip": {"model": "ViT-L-14"}, "data": {"sources": [{"folder": "x"}]}, "out": "y"}
    paper = Tuning.model_validate_json(json.dumps(tree))
    released = Tuning.model_validate_json(json.dumps({**tree, "preset": "released", "prompts": {"depth": 6}}))
    found = [(s.prompts.learning_rate, s.prompts.batch_size, s.prompts.depth) for s in (paper, released)]
    assert found == [(0.02, 256, 3), (0.05, 128, 6)]
    assert (paper.finetune.learning_rate, paper.finetune.weight_decay) == (5e-6, 0.2)
    assert Tuning.model_validate_json(paper.model_dump_json()) == paper


def test_the_command_line_tunes_and_says_in_one_line_what_is_wrong(
    clip_folder: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "tune.yaml"
    config.write_text(settings_of(clip_folder, shards, tmp_path / "out").model_dump_json())  # JSON is YAML
    assert run_app(["tune", str(config)]) == 0
    told = capsys.readouterr()
    assert told.out == f"{tmp_path}/out/prompts.safetensors\n"
    assert "prompts: step 4 of 4, loss" in told.err
    for change, code, message in [
        ("seed=1", 5, "holds a run of other settings"),
        ("prompts.depth=9", 2, "prompts.depth: 9 for an image tower of 2 layers; choose 1 to 2"),
        ("prompts.batch_size=25", 2, "an epoch has 24 samples, fewer than the 25 of a batch"),
        ("prompt.depth=1", 2, "prompt: unknown setting; did you mean `prompts`?"),
        ("data.sources.0=x", 2, "`sources` is a value"),
        ("data.sources=[{folder: x, ratio: 0.5}]", 2, "`ratio` of all sources together is 1"),
    ]:
        arguments = ["tune", str(config), "--set", change, "--set", f"out={tmp_path}/{'out' if code == 5 else 'new'}"]
        assert run_app(arguments) == code
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1


def test_that_tensorboard_is_missing_is_one_line(
    clip_folder: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    told = io.StringIO()
    settings = settings_of(clip_folder, shards, tmp_path / "out", prompts={"steps": 1})
    tune(settings, console=Console(file=told, width=200))
    assert told.getvalue().splitlines()[0] == (
        "TensorBoard is not installed, so the curves are in log.jsonl only; pip install -e '.[tuning]' in a checkout, "
        "or pip install 'PATH-OF-THE-WHEEL[tuning]'"
    )


def test_curves_go_to_tensorboard_where_it_is_installed(
    clip_folder: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, int]] = []

    class Curves:
        def __init__(self, folder: str, *, purge_step: int) -> None:
            assert (folder, purge_step) == (str(tmp_path / "out" / "tensorboard" / "prompts"), 1)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            drawn.append((name, step))

        def close(self) -> None:
            drawn.append(("closed", 0))

    module = types.ModuleType("torch.utils.tensorboard")
    monkeypatch.setattr(module, "SummaryWriter", Curves, raising=False)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    run(settings_of(clip_folder, shards, tmp_path / "out", prompts={"steps": 2}))
    assert drawn[-1] == ("closed", 0)
    assert [step for name, step in drawn if name == "loss"] == [1, 2]


def test_curves_go_to_weights_and_biases_where_that_is_asked_for(
    clip_folder: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict[str, Any]] = []
    rows: list[tuple[int, set[str]]] = []

    class Run:
        def log(self, values: dict[str, float], *, step: int) -> None:
            rows.append((step, set(values)))

        def finish(self) -> None:
            rows.append((0, {"finished"}))

    def init(**options: Any) -> Run:
        begun.append(options)
        return Run()

    module = types.ModuleType("wandb")
    monkeypatch.setattr(module, "init", init, raising=False)
    monkeypatch.setitem(sys.modules, "wandb", module)
    settings = settings_of(clip_folder, shards, tmp_path / "out", prompts={"steps": 2}, wandb="masks")
    run(settings)
    assert [step for step, _ in rows] == [1, 2, 0]
    assert {"loss", "learning_rate"} <= rows[0][1]
    assert "step" not in rows[0][1]
    assert (begun[0]["project"], begun[0]["name"], begun[0]["resume"]) == ("masks", "out/prompts", "allow")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"wandb: Weights & Biases is not installed; pip install wandb"):
        run(settings_of(clip_folder, shards, tmp_path / "other", prompts={"steps": 1}, wandb="masks"))
