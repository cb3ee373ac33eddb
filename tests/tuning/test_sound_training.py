"""Trainings that diverge, or that have nothing to learn from, end in one line and keep nothing of it."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from rich.console import Console

from maskmine.schemas.errors import InputError
from maskmine.tuning.clip.settings import Tuning
from maskmine.tuning.clip.train import tune
from maskmine.tuning.training.checkpoints import Checkpoint, Checkpoints
from maskmine.tuning.training.log import Losses, StepLog
from maskmine.tuning.training.loop import train
from maskmine.tuning.training.optim import Trainable, parameter_group
from tests.support.models import save_tiny_clip
from tests.support.toy_shards import write_toy_shards
from tests.support.tuning import run, settings_of

CPU = torch.device("cpu")
QUIET = Console(quiet=True)


@dataclass
class Slope:
    """One weight, which learns to be 1; `gradients` replaces its own at some steps."""

    rate: float
    gradients: dict[int, float] = field(default_factory=dict)
    power: float = 1.0

    def __post_init__(self) -> None:
        self.weight = torch.nn.Parameter(torch.tensor([0.5]))
        group = parameter_group([self.weight], learning_rate=self.rate, weight_decay=0.0)
        self.trainable = Trainable({"weight": self.weight}, torch.optim.AdamW([group]), CPU)

    def _loss(self) -> torch.Tensor:
        return ((self.power * self.weight).exp() - math.e).square().sum()

    def step(self, batch: int, *, rate_share: float) -> Losses:
        self.trainable.start_step(rate_share=rate_share)
        loss = self._loss()
        loss.backward()  # type: ignore[no-untyped-call]
        if batch in self.gradients:
            assert self.weight.grad is not None
            self.weight.grad.fill_(self.gradients[batch])
        self.trainable.apply_gradients()
        return {"loss": loss.item()}

    def loss(self, batch: int) -> float:
        return self._loss().item()

    def state(self) -> dict[str, Any]:
        return self.trainable.state()

    def load(self, state: dict[str, Any]) -> None:
        self.trainable.load(state)


def take_steps(learner: Slope, out: Path, *, steps: int = 4, start: Checkpoint | None = None) -> float | None:
    return train(
        learner,
        lambda step: range(step, steps),
        steps=steps,
        schedule=lambda step: 1.0,
        start=start or Checkpoint(),
        checkpoints=Checkpoints(out, "toy", every=2),
        log=StepLog(out, "toy", 1, 1, lambda step, losses, speed: {"step": step, **losses}, QUIET),
    )


def kept(out: Path) -> int | None:
    """The step of the checkpoint."""
    checkpoint = Checkpoints(out, "toy", every=2).read()
    return None if checkpoint is None else checkpoint.step


def test_a_training_that_learns_is_kept(tmp_path: Path) -> None:
    assert take_steps(Slope(rate=0.1), tmp_path) is not None
    assert kept(tmp_path) == 4


@pytest.mark.parametrize(
    ("learner", "step", "message"),
    [
        (Slope(rate=0.1, gradients={3: math.nan}), 2, r"step 4: \d tensors .* are not finite .* weights.weight"),
        (Slope(rate=0.1, gradients={1: math.inf}), None, "step 2: .* are not finite"),
        (Slope(rate=0.1, gradients={2: math.nan}), 2, "step 4: the loss is nan"),
        (Slope(rate=1e3, gradients={3: -1.0}), 2, "step 4: the loss of its batch is inf after it; lower the learning"),
        (Slope(rate=0.1, power=0.0), None, "step 4: 1 tensors that are trained learned nothing, every gradient was 0"),
    ],
    ids=["last step", "a checkpoint's step", "between", "weights too large", "no gradient"],
)
def test_what_diverged_or_learned_nothing_is_said_and_not_kept(
    tmp_path: Path, learner: Slope, step: int | None, message: str
) -> None:
    if learner.rate == 1e3:
        learner.gradients |= dict.fromkeys(range(3), 0.0)
    with pytest.raises(InputError, match=message) as error:
        take_steps(learner, tmp_path)
    assert "\n" not in str(error.value)
    assert kept(tmp_path) == (2 if learner.power == 0.0 else step)


def test_weights_that_are_damaged_from_the_start_are_not_laid_to_the_learning_rate(tmp_path: Path) -> None:
    learner = Slope(rate=0.1)
    learner.weight.data.fill_(math.nan)
    with pytest.raises(InputError, match=r"^step 1: the loss is nan; the weights that it begins with are damaged"):
        take_steps(learner, tmp_path)


def test_a_checkpoint_that_diverged_before_is_refused(tmp_path: Path) -> None:
    state = Slope(rate=0.1).state()
    state["weights"]["weight"][0] = math.nan
    with pytest.raises(InputError, match=r"step 2: 1 tensors .*; delete .* and train again"):
        take_steps(Slope(rate=0.1), tmp_path, start=Checkpoint(0, 2, state))


# ------------------------------------------------------------------------------------- CLIP


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module", autouse=True)
def one_tokenizer() -> Iterator[None]:
    """Loading open_clip's takes longer than a run on toys."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_clip, "get_tokenizer", functools.cache(open_clip.get_tokenizer))
        yield


@pytest.mark.parametrize(
    ("nouns", "message"),
    [(("ball",), "the only noun of all pairs is `ball`, and"), (("Ball", "ball"), "as CLIP reads 2 nouns alike")],
)
def test_a_single_text_teaches_nothing(clip: Path, tmp_path: Path, nouns: tuple[str, ...], message: str) -> None:
    shards = write_toy_shards(tmp_path / "run", nouns=nouns)
    with pytest.raises(InputError, match=message):
        run(settings_of(clip, shards, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_rate_that_breaks_the_last_step_keeps_no_weights(clip: Path, tmp_path: Path) -> None:
    shards, out = write_toy_shards(tmp_path / "run"), tmp_path / "out"
    stage = {"steps": 1, "learning_rate": 1e30, "warmup_steps": 1}
    with pytest.raises(InputError, match="step 1: "):
        run(settings_of(clip, shards, out, mode="finetune", finetune=stage))
    assert not (out / "clip").exists()


def tuning_of(folder: Path, ratio: float) -> Tuning:
    data = {"sources": [{"folder": str(folder)}], "crop": {"expand_ratio": ratio}}
    return Tuning.model_validate({"clip": {"model": "absent"}, "data": data, "out": "absent"})


@pytest.mark.parametrize(("asked", "cut"), [(1.5, 1.2), (1.01, 1.0), (16.0, 10.0)])
def test_crops_wider_than_the_shards_are_refused(tmp_path: Path, asked: float, cut: float) -> None:
    folder = write_toy_shards(tmp_path / "run")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"settings": {"shards": {"expand_ratio": cut}}}))
    with pytest.raises(InputError, match=rf"data\.crop\.expand_ratio: {asked:g}, and .* end at {cut:g} times"):
        tune(tuning_of(folder, asked), console=QUIET)
    with pytest.raises(InputError, match="absent"):  # the same width is no fault, but this CLIP is
        tune(tuning_of(folder, cut), console=QUIET)
