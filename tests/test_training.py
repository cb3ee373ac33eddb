"""What both trainings share: the rate of each step, the rows and the pictures of the log, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts import training
from scripts.training import Course, learning_rate_share, made_ahead, read_checkpoint, read_rows, take_steps

STEPS = 12


@dataclass
class Toy:
    """A state whose steps note the rate at which they were taken."""

    model: Any
    optimizers: tuple[torch.optim.Optimizer, ...]
    step: int = 0


@pytest.fixture
def toy() -> Toy:
    model = torch.nn.Linear(1, 1)
    return Toy(model, (torch.optim.AdamW(model.parameters(), lr=2.0),))


def run(out: Path, toy: Toy, done: list[Any]) -> None:
    """Take all steps that are left, and note what is called."""

    def learn(batch: int) -> None:
        assert batch == toy.step
        done.append(toy.optimizers[0].param_groups[0]["lr"])
        toy.step += 1

    course: Course[int] = Course(
        learn=learn,
        row=lambda: {"loss": 0.5},
        validate=lambda: {"right": 1.0},
        validations=2,
        warmup_share=0.25,
        draw_curves=lambda path, rows: path.write_text(str(len(rows))),
        say=lambda rows: "said",
        keep=lambda path: training.write_checkpoint(path, toy, more=[1]),
    )
    batches = made_ahead(lambda step, workers: step, first=toy.step, steps=STEPS, threads=1)
    take_steps(toy, out=out, batches=batches, course=course, steps=STEPS, batch_size=4)


def test_each_step_is_taken_at_its_share_of_the_full_rate_and_the_log_says_so(tmp_path: Path, toy: Toy) -> None:
    rates: list[float] = []
    run(tmp_path, toy, rates)
    shares = [learning_rate_share(step, steps=STEPS, warmup_share=0.25) for step in range(STEPS)]
    assert rates == [2.0 * share for share in shares]
    rows = read_rows(tmp_path / "log.jsonl", upto_step=STEPS)
    assert [row["learning_rate_share"] for row in rows] == [round(share, 6) for share in shares]
    assert [(row["step"], row["images"]) for row in rows] == [(step, 4 * step) for step in range(1, STEPS + 1)]
    names = ["step", "images", "loss", "learning_rate_share", "images_per_s"]
    assert [list(row) for row in rows] == [[*names, "right"] if row["step"] in (6, 12) else names for row in rows]
    assert (tmp_path / "curve.png").read_text() == "12"


def test_a_training_that_is_over_takes_no_step_and_keeps_its_log(tmp_path: Path, toy: Toy) -> None:
    run(tmp_path, toy, [])
    log, steps = (tmp_path / "log.jsonl").read_bytes(), list[Any]()
    run(tmp_path, toy, steps)
    assert steps == []
    assert (tmp_path / "log.jsonl").read_bytes() == log


def test_a_checkpoint_brings_back_the_model_the_optimizers_and_the_step(tmp_path: Path, toy: Toy) -> None:
    toy.model(torch.ones(1, 1)).sum().backward()
    toy.optimizers[0].step()
    run(tmp_path, toy, [])
    model = torch.nn.Linear(1, 1)
    other = Toy(model, (torch.optim.AdamW(model.parameters(), lr=7.0),))
    assert read_checkpoint(tmp_path / "none.pt", other) is None
    kept = read_checkpoint(tmp_path / "checkpoint.pt", other)
    assert kept is not None
    assert (kept["more"], other.step) == ([1], STEPS)
    assert torch.equal(other.model.weight, toy.model.weight)
    theirs, own = (one.optimizers[0].state_dict()["state"][0]["exp_avg"] for one in (toy, other))
    assert torch.equal(theirs, own)
