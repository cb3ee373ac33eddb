"""`shards.verdicts`: pairs that reviewers called wrong are left out of the set, and no other step is made again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from maskmine.mining.evaluation.verdicts import PairId
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.mine import mine
from maskmine.pipelines.review.store import FOLDER, Store, read_stored
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.mining import load_mining
from maskmine.schemas.errors import Exit
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import Verdict
from tests.support import toy
from tests.support.runs import Recorder, hashes, run_toy, samples

pytestmark = pytest.mark.usefixtures("one_tagger")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return toy.write_config(toy.write_toy_world(tmp_path))


def pair(image_id: str, noun: str, shape: str) -> PairId:
    return image_id, noun, Mask.from_array(toy.shape_mask(shape)).digest


def judge(run: RunFolder, verdict: Verdict, pair: PairId) -> str:
    """As a reviewer would; returns the setting."""
    Store(run, read_stored(run)).add(pair, verdict, reviewer="ann", seconds=None)
    return f"shards.verdicts={run.path(FOLDER)}"


def written(run: RunFolder) -> set[tuple[str, str]]:
    return {(row.image_id, row.noun) for row in samples(run)}


ALL = {(image, noun) for image, noun, _ in toy.PAIRS}


def test_new_verdicts_make_the_shards_anew_and_nothing_else(config: Path) -> None:
    run, _, _ = run_toy(config)
    assert written(run) == ALL
    judge(run, "right", pair("11", "square", "square"))
    judge(run, "wrong_noun", pair("11", "disc", "disc"))
    setting = judge(run, "bad_mask", pair("12", "bar", "bar"))
    _, _, recorder = run_toy(config, setting)
    assert recorder.steps == ["shards"]
    assert written(run) == ALL - {("11", "disc"), ("12", "bar")}
    assert list(verify_run(run)) == []
    assert len(read_stored(run)[0].rows) == 1, "a run leaves verdicts alone"

    # A verdict that changes no decision makes nothing anew; one of another mask leaves nothing out.
    judge(run, "cannot_say", pair("14", "disc", "disc"))
    before = hashes(run.path("shards"))
    assert run_toy(config, setting)[2].steps == []
    assert hashes(run.path("shards")) == before
    judge(run, "bad_mask", pair("14", "disc", "square"))
    assert run_toy(config, setting)[2].steps == ["shards"]
    assert ("14", "disc") in written(run)

    # Taken back, the pair is there again.
    judge(run, "right", pair("12", "bar", "bar"))
    run_toy(config, setting)
    assert written(run) == ALL - {("11", "disc")}


def test_the_manifest_says_which_verdicts_but_not_where_they_lay(config: Path, tmp_path: Path) -> None:
    run, _, _ = run_toy(config)
    setting = judge(run, "bad_mask", pair("12", "bar", "bar"))
    run_toy(config, setting)
    stored = FinishedRun.open(run).manifest.settings["shards"]["verdicts"]
    assert (stored["name"], stored["wrong"]) == (FOLDER, 1)
    assert str(tmp_path) not in json.dumps(stored)
    with run.open("README.md") as card:
        assert "1 pairs that reviewers called wrong are left out" in " ".join(card.read().decode().split())


def test_a_pair_that_is_left_out_takes_no_place_of_the_most_per_noun(config: Path) -> None:
    capped = "pairs.max_per_noun=1"
    run, _, _ = run_toy(config, capped)
    (kept,) = [image for image, noun in written(run) if noun == "bar"]
    (other,) = {"12", "13"} - {kept}
    setting = judge(run, "bad_mask", pair(kept, "bar", "bar"))
    recorder = run_toy(config, capped, setting)[2]
    assert recorder.steps == ["selection", "shards"]
    assert [image for image, noun in written(run) if noun == "bar"] == [other]


def test_verdicts_survive_other_captions_where_noun_and_mask_are_the_same(config: Path, tmp_path: Path) -> None:
    old, _, _ = run_toy(config)
    judge(old, "wrong_noun", pair("14", "discs", "disc"))
    setting = judge(old, "bad_mask", pair("11", "disc", "disc"))
    content = json.loads((tmp_path / "captions.json").read_text())
    new_captions = {11: "See: the disc.", 14: "A disc.", 12: "A bar."}
    content["annotations"] = [{"id": n, "image_id": n, "caption": text} for n, text in new_captions.items()]
    (tmp_path / "captions.json").write_text(json.dumps(content))
    settings = load_mining(str(config), overrides=[setting, f"out={tmp_path / 'new'}"])
    mine(settings, engine=LocalEngine(), observer=Recorder(), regions_from=old.root)
    assert written(RunFolder(settings.out)) == {("14", "disc"), ("12", "bar")}, "the disc of 11 is still a bad mask"


def test_a_run_leaves_out_what_was_decided_when_it_began(config: Path) -> None:
    run, _, _ = run_toy(config)
    setting = judge(run, "bad_mask", pair("12", "bar", "bar"))

    class JudgesMeanwhile(Recorder):
        def on_part_done(self, report: Any) -> None:
            super().on_part_done(report)
            if report.part == 0:
                judge(run, "bad_mask", pair("11", "disc", "disc"))
                judge(run, "bad_mask", pair("13", "bar", "bar"))

    settings = load_mining(str(config), overrides=[setting])
    mine(settings, engine=LocalEngine(), observer=JudgesMeanwhile())
    assert written(run) == ALL - {("12", "bar")}


@pytest.mark.parametrize(
    ("verdicts", "words"),
    [
        ("nowhere", "nowhere: no such file or folder"),
        ("captions.json", "captions.json: no column `image_id`"),
        ("broken.parquet", "broken.parquet: not a whole Parquet file"),
    ],
)
def test_verdicts_that_cannot_be_read_are_told_before_anything_is_written(
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    verdicts: str,
    words: str,
) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    monkeypatch.chdir(tmp_path)
    assert run_app(["mine", str(config), "--set", f"shards.verdicts={verdicts}"]) == Exit.BAD_INPUT
    told = capsys.readouterr().err.strip()
    assert words in told
    assert "\n" not in told
    assert not (tmp_path / "run" / "plan.json").exists()
