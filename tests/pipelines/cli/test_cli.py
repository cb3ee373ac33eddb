"""The commands: exit codes, and one clear line for whatever is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.reports.contact_sheet import PADDING_PX, TILE_PX
from tests.support import toy
from tests.support.runs import hashes


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy_world(tmp_path_factory.mktemp("cli"))


@pytest.fixture(scope="module")
def finished(world: Path) -> Path:
    assert run_app(["mine", str(toy.write_config(world))]) == 0
    return world / "run"


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said at the end; before it there may be lines about parts that were made."""
    *earlier, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("maskmine: ")
    assert not [said for said in earlier if "Traceback" in said or said.startswith("maskmine: ")]
    return line


def test_mine_prints_the_account_and_again_says_that_there_is_nothing_to_do(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(toy.write_config(world, out=tmp_path / "run"))
    assert run_app(["mine", config]) == 0
    first = capsys.readouterr()
    assert "8 images in 3 parts" in first.err
    assert "empty, nouns: no_nouns" in first.out
    assert run_app(["mine", config]) == 0
    assert "complete; nothing to do" in capsys.readouterr().out


def test_too_many_images_without_pairs_end_with_3_and_name_the_reason_and_the_setting(
    root: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "_SUCCESS").unlink()
    config = str(toy.write_config(world, out=root, max_empty=0.2))
    log = tmp_path / "log.jsonl"
    assert run_app(["mine", config, "--log-json", str(log)]) == 3
    assert json.loads(log.read_text().splitlines()[-1])["reason"] == "too_many_rejected"
    said = capsys.readouterr().err
    assert "50.0% of the images came to nothing (4 of 8), most by `nouns: no_caption`" in said
    assert "max_empty allows 20.0%" in said


@pytest.fixture
def six_images(tmp_path: Path) -> str:
    """A configuration with the default limits, and six sound images; the captions of two name nothing that is there."""
    world = toy.write_toy_world(tmp_path / "world")
    tree = json.loads((world / "captions.json").read_text())
    tree["images"] = [image for image in tree["images"] if image["id"] not in (15, 16)]
    tree["annotations"] = [caption for caption in tree["annotations"] if caption["image_id"] not in (15, 16)]
    tree["annotations"].append({"id": 180, "image_id": 18, "caption": "A giraffe."})
    (world / "captions.json").write_text(json.dumps(tree))
    config = toy.write_config(world, out=tmp_path / "run")
    settings = json.loads(config.read_text())
    del settings["max_rejected"]
    config.write_text(json.dumps(settings))
    return str(config)


def test_a_run_with_a_third_of_images_without_a_match_is_complete(
    six_images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(["mine", six_images]) == 0
    assert (tmp_path / "run" / "_SUCCESS").exists()
    assert re.search(r"empty, pairs: no_match +2\b", capsys.readouterr().out)


def test_a_run_with_a_third_of_missing_files_ends_with_3_until_they_are_there(
    six_images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for image in (11, 12):
        (tmp_path / "world" / "images" / f"{image:012d}.png").unlink()
    assert run_app(["mine", six_images]) == 3
    assert not (tmp_path / "run" / "_SUCCESS").exists()
    said = capsys.readouterr()
    assert re.search(r"rejected, proposals: missing_file +2\b", said.out)
    assert "33.3% of the images were rejected (2 of 6), most by `proposals: missing_file`" in said.err
    assert "max_rejected allows 25.0%" in said.err


def test_a_run_without_any_pair_is_told(six_images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["mine", six_images, "--set", "pairs.min_count=9"]) == 0
    said = capsys.readouterr().err
    assert "no image has a pair, most of them by `shards: filtered` (filters: pairs.min_count: 9); see " in said


def test_another_plan_ends_with_5_and_what_differs(root: Path, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(toy.write_config(world, out=root))
    assert run_app(["mine", config, "--set", "shards.images_per_part=2"]) == 5
    assert "shards.images_per_part: 3 there, 2 here" in one_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mine", "CONFIG", "--set", "regons.device=cpu"], "did you mean `regions`?"),
        (["mine", "CONFIG", "--set", "shards.quality=high"], "shards.quality: input should be a valid integer"),
        (["mine", "CONFIG", "--set", "captions.annotations=none.json"], "none.json: no such file"),
        (["mine", "CONFIG", "--set", "regions.proposals.annotations=none.json"], "none.json"),
        (["mine", "CONFIG", "--set", "nouns.model=xx_none"], "xx_none"),
        (["mine", "CONFIG", "--set", "pairs.synonyms=none.yaml"], "none.yaml"),
        (["mine", "CONFIG", "--set", "regions.device=cuda:7"], "regions.device: `cuda:7` was asked for"),
        (["mine", "CONFIG", "--limit", "0"], "--limit"),
        (["mine", "none.yaml"], "none.yaml: no such file"),
        (["mine", "CONFIG", "--engine", "spark"], "--engine spark: unknown; choose one of local, ray, beam"),
        (["mine", "CONFIG", "--engine-opt", "workers=0"], "--engine-opt workers: "),
        (["mine", "CONFIG", "--engine", "beam", "--engine-opt", "wrokers=2"], "--engine-opt wrokers: "),
        (["mine", "CONFIG", "--engine", "beam", "--engine-opt", "workers"], "expected key=value"),
        (["mine", "CONFIG", "--engine", "beam", "--engine-opt", "workers=many"], "--engine-opt workers: "),
        (["mine", "CONFIG", "--engine", "ray", "--", "--project=x"], "unexpected `--project=x`"),
        (["mine", "CONFIG", "extra"], "unexpected `extra`"),
        (["mine", "CONFIG", "--log-json", "none/log.jsonl"], "--log-json none/log.jsonl: cannot be written"),
        (["mine", "CONFIG", "--metrics", "none/mine.prom"], "--metrics none/mine.prom: cannot be written"),
        (["mine", "CONFIG", "--metrics", "99999"], "--metrics 99999: cannot be served"),
        (["mine", "CONFIG", "--metrics", "mine.txt"], "give a port, HOST:PORT, or a file that ends in .prom"),
        (["mine", "CONFIG", "--stalled-after", "-1"], "--stalled-after"),
        (["mine"], "CONFIG"),
        (["mime", "CONFIG"], "mime"),
        (["status", "none"], "none: not a run folder"),
        (["verify", "none"], "none: not a run folder"),
        (["show", "RUN", "--to", "sheet.txt"], "give --to a path that ends in .png or .jpg"),
        (["show", "RUN", "--noun", "zebra"], "there is no pair of `zebra` to show"),
    ],
)
def test_bad_arguments_end_with_2_and_one_line(
    root: Path, world: Path, tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(toy.write_config(world, out=tmp_path / "new"))
    known = {"CONFIG": config, "RUN": str(root)}
    assert run_app([known.get(argument, argument) for argument in arguments]) == 2
    assert said in one_line(capsys)
    assert not (tmp_path / "new" / "nouns").exists()


def test_an_output_that_cannot_be_a_folder_ends_with_2(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    assert run_app(["mine", str(toy.write_config(world, out=tmp_path / "file"))]) == 2
    assert "a file stands where a folder is needed" in one_line(capsys)


def test_a_full_disk_ends_with_4_and_the_next_run_goes_on(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(toy.write_config(world, out=tmp_path / "run"))
    synced = os.fsync
    left = iter(range(14))  # the plan, and two parts

    def fill_up(handle: int) -> None:
        if next(left, None) is None:
            raise OSError(28, "No space left on device")
        synced(handle)

    monkeypatch.setattr(os, "fsync", fill_up)
    assert run_app(["mine", config]) == 4
    *_, summary, line = capsys.readouterr().err.splitlines()
    assert summary.startswith("in all")
    assert "the disk is full; free some space and run the same command again" in line
    monkeypatch.setattr(os, "fsync", synced)
    assert run_app(["mine", config]) == 0
    assert run_app(["verify", str(tmp_path / "run")]) == 0


def test_status_as_json_is_one_object(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "shards" / "00001.json").unlink()
    assert run_app(["status", str(root), "--json"]) == 0
    state = json.loads(capsys.readouterr().out)
    assert state["parts"] == 3
    assert {s["step"]: s["missing"] for s in state["steps"]}["shards"] == [1]
    assert run_app(["status", str(root)]) == 0
    assert "2/3" in capsys.readouterr().out


def test_verify_names_each_problem_and_ends_with_4(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["verify", str(root)]) == 0
    assert f"{len(toy.PAIRS)} samples verified" in capsys.readouterr().out
    (root / "shards" / "00000.tar").write_bytes(b"")
    assert run_app(["verify", str(root)]) == 4
    assert "shards/00000.tar: its SHA-256 is not the one in SHA256SUMS" in capsys.readouterr().err


def test_errors_lists_every_rejected_image_with_its_reason(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["errors", str(root)]) == 0
    assert "no_caption" in capsys.readouterr().out
    assert run_app(["errors", str(root), "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {(f["image_id"], f["step"], f["reason"]) for f in found} == toy.REJECTIONS


def test_show_draws_the_photographs_that_have_pairs(root: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    assert run_app(["show", str(root), "--to", str(sheet), "--images", "3"]) == 0
    with Image.open(sheet) as image:
        assert image.width > 1000
    assert run_app(["show", str(root), "--to", str(sheet), "--noun", "bar"]) == 0


def test_show_without_the_photographs_draws_their_crops_where_they_were_cut(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = Path(shutil.copytree(world, tmp_path / "world"))
    assert run_app(["mine", str(toy.write_config(moved, out=tmp_path / "new"))]) == 0

    def pixels_of_the_bar_and_far_from_it() -> list[int]:
        assert run_app(["show", str(tmp_path / "new"), "--to", str(tmp_path / "sheet.png"), "--noun", "bar"]) == 0
        with Image.open(tmp_path / "sheet.png") as sheet:
            scale = TILE_PX / toy.WIDTH_PX
            places = [(round(PADDING_PX + x * scale), round(PADDING_PX + y * scale)) for x, y in ((32, 39), (60, 4))]
            return [sheet.convert("L").getpixel(place) for place in places]

    bar, background = pixels_of_the_bar_and_far_from_it()
    assert "cannot be read" not in capsys.readouterr().out
    shutil.rmtree(moved / "images")
    capsys.readouterr()
    same_bar, nothing_known = pixels_of_the_bar_and_far_from_it()
    told = capsys.readouterr()
    assert "the crops of 2 photographs that cannot be read are drawn" in told.out
    assert told.err == f"{tmp_path / 'sheet.png'}: there already, and replaced in the end; another --to keeps it\n"
    assert abs(same_bar - bar) < 5
    assert background == 128
    assert nothing_known > 200


def test_no_argument_shows_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app([]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Usage: maskmine")
    assert any(line.split()[:1] == ["verify"] for line in lines)


def test_a_dry_run_estimates_and_writes_nothing(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(["mine", str(toy.write_config(world, out=tmp_path / "run")), "--dry-run"]) == 0
    assert "8" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_doctor_ends_with_2_when_something_is_missing(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(toy.write_config(world, out=tmp_path / "run"))
    assert run_app(["doctor", config]) == 0
    assert run_app(["doctor", config, "--set", "captions.images=nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().out


def test_a_watched_run_has_the_files_of_any_other(root: Path, world: Path, tmp_path: Path) -> None:
    config = str(toy.write_config(world, out=tmp_path / "watched"))
    log, metrics = tmp_path / "log.jsonl", tmp_path / "mine.prom"
    watching = ["--log-json", str(log), "--metrics", str(metrics), "--stalled-after", "0.5"]
    assert run_app(["mine", config, *watching]) == 0
    parts = [event for event in map(json.loads, log.read_text().splitlines()) if event["event"] == "part"]
    assert len(parts) == 13
    assert sum(event["made"] for event in parts if event["step"] == "shards") == len(toy.PAIRS)
    assert (
        f'maskmine_made_total{{run="{tmp_path / "watched"}",step="shards"}} {len(toy.PAIRS)}.0' in metrics.read_text()
    )
    assert hashes(str(tmp_path / "watched")) == hashes(str(root))


def test_an_interrupt_while_commands_are_loaded_ends_with_130_and_no_traceback() -> None:
    program = """
import sys
class Interrupts:
    def find_spec(self, name, *_):
        if name == "maskmine.pipelines.cli.export":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupts())
from maskmine.pipelines.cli.main import main
main()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (130, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_with_130_and_a_line(world: Path, tmp_path: Path, number: signal.Signals) -> None:
    config = str(toy.write_config(world, out=tmp_path / "run"))
    program = f"""
import os, signal
from maskmine.pipelines.steps import regions_jobs as cells
made = cells.ProposalsJob.open
def open_and_interrupt(self):
    os.kill(os.getpid(), {int(number)})
    return made(self)
cells.ProposalsJob.open = open_and_interrupt
import sys
sys.argv = ["maskmine", "mine", {config!r}]
from maskmine.pipelines.cli.main import main
main()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 130
    *_, summary, line = ended.stderr.strip().splitlines()
    assert summary.startswith("in all")
    assert line.startswith("interrupted; what is finished stays")
    assert run_app(["mine", config]) == 0
