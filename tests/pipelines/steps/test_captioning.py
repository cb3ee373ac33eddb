"""Runs in which a model writes captions: beside those of sources, once for each picture, and again only where it must
be."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from maskmine.mining.captioners.endpoint import Endpoint
from maskmine.mining.captioners.florence2 import Florence2
from maskmine.mining.images.encode import encode_reduced
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.doctor import diagnose
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.estimate import estimate
from maskmine.pipelines.mine import mine
from maskmine.pipelines.planning.plan import Plan
from maskmine.pipelines.settings.mining import Mining, load_mining
from maskmine.pipelines.steps.identity import identify, step_fingerprints
from maskmine.pipelines.steps.status import run_status
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import CaptionsRow
from maskmine.scripts.captioner.server import Asked, Captioner, Reply, captioner_on_loopback, completion, picture_key
from tests.support import toy
from tests.support.runs import StopsAfter, hashes, run_toy, samples

STEP = "captioning-endpoint"
SHAPES = {
    picture_key(encode_reduced(toy.draw(one.shapes), max_side_px=1024, quality=90)): one.shapes for one in toy.IMAGES
}


def names_all(asked: Asked) -> str:
    """What the picture of a request shows."""
    shapes = SHAPES[picture_key(asked.jpeg)]
    return f"There is a {' and a '.join(shapes)}." if shapes else "It is dark."


@pytest.fixture
def server() -> Iterator[Captioner]:
    with captioner_on_loopback(names_all) as captioner:
        yield captioner


def config(folder: Path, server: Captioner, *others: dict[str, Any], out: Path | None = None, **changes: Any) -> Path:
    """The toy world with a captioner beside its captions; `changes` are those of the captioner."""
    return toy.write_config(folder, out=out, captions=captions(folder, server, *others, **changes))


def captions(folder: Path, server: Captioner, *others: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
    asked = {"kind": "endpoint", "url": server.url, "model": "m", "attempts": 1, **changes}
    human = {"kind": "coco", "annotations": str(folder / "captions.json"), "images": str(folder / "images")}
    return [human, asked, *others]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return toy.write_toy_world(tmp_path)


def test_captions_of_a_model_stand_behind_those_of_people_and_their_nouns_find_pairs(
    world: Path, server: Captioner
) -> None:
    run, outcome, _ = run_toy(config(world, server))
    found = {(row.image_id, row.noun, row.source) for row in samples(run)}
    assert found >= {("18", "square", "endpoint"), ("17", "bar", "endpoint"), ("15", "disc", "endpoint")}
    assert ("11", "square", "coco") in found
    assert all(row.caption[row.start : row.end].lower() == row.noun for row in samples(run))
    assert len(server.asked) == len(toy.IMAGES)
    finished = FinishedRun.open_complete(run)
    row = next(row for row in finished.all_rows(CaptionsRow) if row.image_id == "11")
    assert row == CaptionsRow(
        "11", ("A square beside a disc.", "There is a square and a disc."), ("coco", "endpoint"), ("{}", "{}")
    )
    assert finished.columns(0, CaptionsRow, ["captions"]).column_names == ["captions"]
    assert outcome.manifest is not None
    assert [source.name for source in outcome.manifest.sources] == ["coco", "endpoint", "all"]
    assert list(verify_run(run)) == []
    assert [step.step for step in run_status(run).steps][:2] == [STEP, "nouns"]


def test_the_card_names_model_prompt_and_licence_and_no_file_names_the_server(
    world: Path, server: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-secret-123")
    path = config(world, server, licence="Apache-2.0", prompt="Name it all.", key_env="SOME_KEY")
    run, outcome, _ = run_toy(path, 'licences.captions={"coco": "CC-BY-4.0", "endpoint": "CC0-1.0"}')
    card = (Path(run.root) / "README.md").read_text()
    assert "| model, captions | m | Apache-2.0 |" in card
    assert "| captions | endpoint | CC0-1.0 |" in card
    assert "Name it all." in card
    assert outcome.manifest is not None
    assert outcome.manifest.models[0].role == "captions"
    for file in Path(run.root).rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert b"sk-secret-123" not in content, file
            assert file.name == "mining.yaml" or server.url.encode() not in content, file


def test_a_run_that_goes_on_asks_for_nothing_that_was_answered(world: Path, server: Captioner) -> None:
    expected = hashes(run_toy(config(world, server, out=world / "whole"))[0].root)
    asked = len(server.asked)
    path = config(world, server, requests_at_once=1)

    settings = load_mining(str(path))
    with pytest.raises(KeyboardInterrupt):
        mine(settings, engine=LocalEngine(), observer=StopsAfter(1))
    assert len(server.asked) == asked + 2, "one part of two images"
    run_toy(path)
    assert len(server.asked) == 2 * asked
    assert hashes(settings.out) == expected
    assert run_toy(path)[2].made == []


def test_answers_of_a_part_that_was_not_finished_are_not_asked_for_again(world: Path) -> None:
    broken = [True]

    def says(asked: Asked) -> Reply | str:
        return Reply(401) if broken[0] and len(server.answered) == 4 else names_all(asked)

    with captioner_on_loopback(says) as server:
        path = config(world, server, requests_at_once=1)
        with pytest.raises(InputError, match="does not take the key"):
            run_toy(path)
        folder = Path(load_mining(str(path)).out) / STEP
        assert len(list(folder.glob("*-answers/00001.*.parquet"))) == 2, "of the second part, one for each answer"
        broken[0] = False
        run_toy(path)
        assert len(server.answered) == len(toy.IMAGES)
        assert list(folder.glob("*-answers/*")) == []


# Every setting of a server: whether another value makes its captions again.
ASKED: list[tuple[str, Any, bool]] = [
    *[("prompt", "Other?", True), ("model", "other", True), ("max_side_px", 32, True), ("temperature", 0.5, True)],
    *[("max_tokens", None, True), ("extra", {"seed": 1}, True), ("per_image", 2, True)],
    *[("url", "https://elsewhere.example/v1", False), ("key_env", "SOME_KEY", False), ("timeout_s", 9.0, False)],
    *[("requests_at_once", 1, False), ("per_minute", 1.0, False), ("attempts", 2, False), ("patience_s", 1.0, False)],
    *[("most_failures", 3, False), ("licence", "MIT", False)],
]


@pytest.mark.parametrize(("setting", "value", "again"), ASKED)
def test_what_the_model_is_asked_decides_its_captions_and_how_it_is_reached_does_not(
    world: Path, setting: str, value: Any, again: bool
) -> None:
    nobody = Captioner("http://localhost:1/v1")
    before, after = (prints(load_mining(str(config(world, nobody, **one)))) for one in ({}, {setting: value}))
    changed = {step for step in before if before[step] != after[step]}
    assert changed == ({STEP, "nouns", "vocabulary", "levels", "pairs", "selection", "shards"} if again else set())


def test_every_setting_of_a_server_is_in_the_table_above() -> None:
    assert {setting for setting, _, _ in ASKED} == Endpoint.model_fields.keys() - {"kind", "name"}


def test_a_renamed_captioner_has_another_folder_and_its_name_is_in_the_shards(world: Path) -> None:
    nobody = Captioner("http://localhost:1/v1")
    before, renamed = (prints(load_mining(str(config(world, nobody, name=name)))) for name in (None, "renamed"))
    assert renamed["captioning-renamed"] == before[STEP]
    assert renamed["shards"] != before["shards"]


FLORENCE2: list[tuple[str, Any, bool]] = [
    *[("checkpoint", "other", True), ("task", "caption", True), ("beams", 1, True), ("max_tokens", 9, True)],
    *[("batch_size", 2, True), ("precision", "bfloat16", True)],
    *[("licence", "MIT", False), ("revision", "main", False)],
]


@pytest.mark.parametrize(("setting", "value", "again"), FLORENCE2)
def test_what_florence_2_is_told_decides_its_captions(world: Path, setting: str, value: Any, again: bool) -> None:
    assert {name for name, _, _ in FLORENCE2} == Florence2.model_fields.keys() - {"kind", "name"}
    for name in ("florence", "other"):
        (world / name).mkdir()
        (world / name / "config.json").write_text("{}")
        (world / name / "model.safetensors").write_text(name)
    human = captions(world, Captioner("http://localhost:1/v1"))[0]
    value = str(world / value) if setting == "checkpoint" else value
    found = []
    for change in ({}, {setting: value}):
        own = {"kind": "florence2", "checkpoint": str(world / "florence"), **change}
        found.append(prints(load_mining(str(toy.write_config(world, captions=[human, own])))))
    step = "captioning-florence2"
    assert (found[0][step] != found[1][step]) == again
    assert (found[0]["nouns"] != found[1]["nouns"]) == again
    assert found[0]["proposals"] == found[1]["proposals"]


def prints(settings: Mining) -> dict[str, str]:
    plan = Plan(100, 2, images_sha256="1", captions_sha256="2", source={}, inputs=None, sources_sha256="3")
    return step_fingerprints(plan, identify(settings))


def test_another_prompt_asks_again_and_going_back_to_the_first_asks_nobody(world: Path, server: Captioner) -> None:
    run, _, _ = run_toy(config(world, server))
    before, asked = hashes(run.root), len(server.asked)
    _, _, recorder = run_toy(config(world, server, prompt="Other?"))
    assert STEP in recorder.steps
    assert "proposals" not in recorder.steps
    _, _, recorder = run_toy(config(world, server))
    assert not {STEP, "proposals"} & set(recorder.steps)
    assert len(server.asked) == 2 * asked
    assert hashes(run.root).items() >= before.items()


def test_another_prompt_of_one_captioner_leaves_those_of_another_alone(world: Path, server: Captioner) -> None:
    other = {"kind": "endpoint", "name": "second", "url": server.url, "model": "n"}
    run_toy(config(world, server, other))
    _, _, recorder = run_toy(config(world, server, other, prompt="Other?"))
    assert [step for step in recorder.steps if step.startswith("captioning")] == [STEP]
    assert len(server.asked) == 3 * len(toy.IMAGES)


def test_captioners_come_and_go_without_another_plan(world: Path, server: Captioner) -> None:
    run, _, _ = run_toy(toy.write_config(world))
    without = hashes(run.root)
    _, _, recorder = run_toy(config(world, server))
    assert "proposals" not in recorder.steps
    _, _, recorder = run_toy(toy.write_config(world))
    assert "proposals" not in recorder.steps
    after = {name: sha256 for name, sha256 in hashes(run.root).items() if not name.startswith("captioning-")}
    assert after == without
    assert list(verify_run(run)) == []


def test_an_image_without_any_caption_is_rejected_with_what_the_server_did(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with captioner_on_loopback(lambda asked: completion(None, refusal="No.")) as server:
        run, outcome, _ = run_toy(config(world, server))
    assert outcome.manifest is not None
    assert outcome.manifest.totals.rejected["nouns: caption_failed"] == 1  # 18 has no caption of people
    assert outcome.manifest.totals.faults == {"nouns: caption_failed": 1}
    assert run_app(["errors", run.root]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "endpoint: the model refuses" in printed
    assert "8 images without a caption by `endpoint`:" in printed


def test_a_run_that_is_killed_keeps_every_answer_that_was_written_and_ends_with_the_same_bytes(world: Path) -> None:
    driver: list[subprocess.Popen[bytes]] = []
    asked: list[str] = []

    def says(request: Asked) -> str:
        asked.append(request.token)
        if driver and len(asked) == 4:
            driver[0].kill()
        return names_all(request)

    with captioner_on_loopback(says) as server:
        run_toy(config(world, server, out=world / "whole"))
        asked.clear()
        path = config(world, server, requests_at_once=1)
        words = [sys.executable, "-m", "maskmine.pipelines.cli.main", "mine", str(path)]
        driver.append(subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        assert driver[0].wait(60) == -signal.SIGKILL
        run, _, _ = run_toy(path)
    assert hashes(run.root) == hashes(str(world / "whole"))
    assert len(asked) == len(toy.IMAGES) + 1
    assert asked[3] == asked[4], "what was on its way is asked for again, and nothing else"


def test_a_lost_cell_of_captions_is_asked_for_again_and_what_depends_on_it_follows(
    world: Path, server: Captioner
) -> None:
    run, _, _ = run_toy(config(world, server))
    before = hashes(run.root)
    next(Path(run.root, STEP).rglob("00001.parquet")).unlink()
    _, _, recorder = run_toy(config(world, server))
    assert (STEP, 1) in recorder.made
    assert (STEP, 0) not in recorder.made
    assert hashes(run.root) == before
    assert len(server.asked) == len(toy.IMAGES) + 3


def test_a_dry_run_counts_the_requests_and_sends_none(world: Path, server: Captioner) -> None:
    path = config(world, server, per_minute=6000.0)
    (requests,) = estimate(load_mining(str(path)), limit=None).requests
    assert (requests.images, requests.answered, requests.per_minute) == (8, 0, 6000.0)
    assert server.asked == []
    with pytest.raises(KeyboardInterrupt):
        mine(load_mining(str(path)), engine=LocalEngine(), observer=StopsAfter(1))
    asked = len(server.asked)
    assert estimate(load_mining(str(path)), limit=None).requests[0].answered == 2
    assert len(server.asked) == asked


def findings(path: Path) -> str:
    found = diagnose(load_mining(str(path)))
    return "\n".join(f"{one.state}: {one.detail}; {one.remedy}" for one in found if one.name == "captions")


def test_the_doctor_asks_for_the_models_and_for_no_caption(
    world: Path, server: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.models = ("m", "n")
    assert f"ok: captions.endpoint: m at {server.url}, answers" in findings(config(world, server, licence="MIT"))
    assert "warning: captions.endpoint: z at" in findings(config(world, server, model="z"))
    assert "which lists m, n" in findings(config(world, server, model="z"))
    monkeypatch.delenv("SOME_KEY", raising=False)
    assert "missing: captions.endpoint.key_env: the environment variable SOME_KEY is not set" in findings(
        config(world, server, key_env="SOME_KEY")
    )
    assert server.asked == []
    server.url = "http://127.0.0.1:9/v1"
    assert "missing: captions.endpoint: no connection at http://127.0.0.1:9/v1; start it" in findings(
        config(world, server)
    )


def test_a_run_of_an_earlier_one_has_the_captions_that_a_model_wrote_for_it(world: Path, server: Captioner) -> None:
    run, _, _ = run_toy(config(world, server))
    earlier = toy.write_config(world, out=world / "new", captions={"kind": "run", "files": run.root})
    asked = len(server.asked)
    new, _, _ = run_toy(earlier)
    texts = {row.image_id: row.captions for row in FinishedRun.open_complete(run).all_rows(CaptionsRow)}
    found = {row.image_id: row.captions for row in FinishedRun.open_complete(new).all_rows(CaptionsRow)}
    assert found == texts
    assert len(server.asked) == asked


def test_a_captioner_alone_names_no_images(world: Path, server: Captioner) -> None:
    alone = captions(world, server)[1]
    with pytest.raises(InputError, match="names no images: `kind: endpoint` writes captions for the images of other"):
        load_mining(str(toy.write_config(world, captions=alone)))


def test_a_key_given_in_place_of_its_variable_is_refused_and_not_shown(world: Path, server: Captioner) -> None:
    for change in ({"key_env": "sk-secret-123"}, {"url": "http://user:sk-secret-123@localhost/v1"}):
        with pytest.raises(InputError) as caught:
            load_mining(str(config(world, server, **change)))
        assert "sk-secret" not in str(caught.value)


def test_a_missing_key_stops_a_run_before_anything_is_deleted(
    world: Path, server: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    run, _, _ = run_toy(config(world, server))
    before = hashes(run.root)
    with pytest.raises(InputError, match="SOME_KEY is not set"):
        run_toy(config(world, server, prompt="Other?", key_env="SOME_KEY"))
    assert hashes(run.root) == before
    assert run_toy(config(world, server, key_env="SOME_KEY"))[2].made == [], "and a whole set needs none"
