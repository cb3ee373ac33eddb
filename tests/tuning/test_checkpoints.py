"""Checkpoints and logs of a training that is killed while it writes them: run again, they have the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console

from maskmine.tuning.training import log
from maskmine.tuning.training.checkpoints import CHECKPOINT_FILE, Checkpoint, Checkpoints
from maskmine.tuning.training.log import open_log, read_log
from tests.support.killed import killed_at_each_write
from tests.support.toy_shards import contents


def test_a_state_that_was_loaded_is_stored_in_the_bytes_of_the_one_that_was_not(tmp_path: Path) -> None:
    weights = {name: torch.nn.Parameter(torch.ones(2, 3)) for name in ("prompts", "visual.proj", "visual.bias")}
    groups = [{"params": [value], "lr": 0.1, "full_lr": 0.1} for value in weights.values()]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    for value in weights.values():
        value.grad = torch.ones(2, 3)
    optimizer.step()

    def write(folder: Path) -> Checkpoints:
        checkpoints = Checkpoints(folder, "0" * 64, every=1)
        state = {"weights": {name: value.detach() for name, value in weights.items()}}
        checkpoints.write(Checkpoint(0, 1, {**state, "optimizer": optimizer.state_dict(), "scaler": {}}))
        return checkpoints

    loaded = write(tmp_path / "before").read()
    assert loaded is not None
    assert loaded.state is not None
    optimizer.load_state_dict(loaded.state["optimizer"])
    write(tmp_path / "after")
    before, after = ((tmp_path / name / CHECKPOINT_FILE).read_bytes() for name in ("before", "after"))
    assert before == after


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_open_curves", lambda *_, **__: None)


@pytest.mark.usefixtures("no_curves")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # so Python 3.12 comments on any fork
def test_a_log_that_is_killed_while_it_is_opened_loses_no_row(tmp_path: Path) -> None:
    def prepare(folder: Path) -> None:
        with open_log(folder, phase="prompts", step=0, console=Console(quiet=True)) as write_row:
            for step in (1, 2, 3):
                write_row({"stage": "prompts", "step": step, "loss": 1 / step})

    def go_on(folder: Path) -> None:
        with open_log(folder, phase="prompts", step=2, console=Console(quiet=True)) as write_row:
            write_row({"stage": "prompts", "step": 3, "loss": 0.5})

    prepare(tmp_path / "undisturbed")
    go_on(tmp_path / "undisturbed")
    expected, moments = contents(tmp_path / "undisturbed"), 0
    for moment, found in killed_at_each_write(go_on, tmp_path, prepare=prepare):
        assert found == expected, moment
        moments += 1
    assert moments == 3
    assert [row["step"] for row in read_log(tmp_path / "undisturbed")] == [1, 2, 3]
