"""A run that takes the regions of an earlier one: the same bytes as a full run, and no model sees a known image."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from maskmine.mining import region_stages
from maskmine.mining import vocabulary as vocabulary_step
from maskmine.mining.regions import Regions
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.mine import mine
from maskmine.pipelines.regenerate import differences, open_reused_run
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.run_folder.region_cells import proposals_cells
from maskmine.pipelines.run_folder.reused_regions import ReusedRun
from maskmine.pipelines.settings.mining import Mining, load_mining
from maskmine.pipelines.steps.identity import identify
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.rows import ImageRow, ProposalsRow, RegionsRow, Rejection
from tests.support import toy
from tests.support.conformance import hashes_of_data
from tests.support.models import save_tiny_clip
from tests.support.runs import Recorder, StopsAfter, hashes, run_toy, samples

pytestmark = pytest.mark.usefixtures("one_tagger")

NEW_CAPTIONS = {15: "A disc, very round.", 18: "One square.", 11: "The disc."}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy world, with other captions beside it."""
    world = toy.write_toy_world(tmp_path_factory.mktemp("regenerate"))
    content = json.loads((world / "captions.json").read_text())
    content["annotations"] = [
        {"id": number, "image_id": number, "caption": text} for number, text in NEW_CAPTIONS.items()
    ]
    (world / "others.json").write_text(json.dumps(content))
    return world


@pytest.fixture(scope="module")
def old(world: Path) -> RunFolder:
    return run_toy(toy.write_config(world, out=world / "old"))[0]


@pytest.fixture
def config(world: Path, tmp_path: Path) -> Path:
    """The configuration of a run with the other captions."""
    captions = {"kind": "coco", "annotations": str(world / "others.json"), "images": str(world / "images")}
    written = toy.write_config(world, out=tmp_path / "new", captions=captions)
    return written.rename(tmp_path / "new.yaml")


def opened(root: str, settings: Mining) -> ReusedRun:
    return open_reused_run(root, identify(settings), out=settings.out)


def regenerate(config: Path, old: RunFolder, *overrides: str, recorder: Recorder | None = None) -> RunFolder:
    settings = load_mining(str(config), overrides=overrides)
    mine(settings, engine=LocalEngine(), observer=recorder or Recorder(), regions_from=old.root)
    return RunFolder(settings.out)


def test_new_captions_give_the_bytes_of_a_full_run_and_make_no_regions(
    config: Path, old: RunFolder, tmp_path: Path
) -> None:
    recorder = Recorder()
    new = regenerate(config, old, recorder=recorder)
    assert recorder.steps == ["nouns", "vocabulary", "pairs", "shards"]
    assert {(row.image_id, row.noun) for row in samples(new)} == {("11", "disc"), ("15", "disc"), ("18", "square")}
    assert [str(problem) for problem in verify_run(new)] == []
    full, _, _ = run_toy(config, f"out={tmp_path / 'full'}")
    assert hashes_of_data(new) == hashes_of_data(full)
    assert os.path.samefile(new.path("proposals", "00000.parquet"), old.path("proposals", "00000.parquet"))


def test_the_manifest_says_where_the_regions_are_from(config: Path, old: RunFolder, tmp_path: Path) -> None:
    new = regenerate(config, old)
    derived = FinishedRun.open(new).manifest.derived_from
    assert derived is not None
    assert derived.folder == "old"
    assert derived.manifest_sha256 == hashes(old.root)["manifest.json"]
    assert FinishedRun.open(old).manifest.derived_from is None
    before = hashes(new.root)
    (tmp_path / "new/shards/00001.tar").unlink()
    run_toy(config)  # mended without another look at the old run
    assert hashes(new.root) == before
    run_toy(config, "regions.keep.top=1")
    assert FinishedRun.open(new).manifest.derived_from is None, "these regions are its own"


def test_a_run_that_was_stopped_goes_on(config: Path, old: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        regenerate(config, old, recorder=StopsAfter(2))
    new = regenerate(config, old)
    undisturbed = regenerate(config, old, f"out={tmp_path / 'undisturbed'}")
    assert hashes(new.root) == hashes(undisturbed.root)


@pytest.mark.parametrize("per_part", [2, 8])
def test_only_new_images_are_looked_at_whatever_the_cut(
    config: Path, old: RunFolder, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_part: int
) -> None:
    content = json.loads((world / "others.json").read_text())
    new_image = {**content["images"][0], "id": 99}
    content["images"] = [*(image for image in content["images"] if image["id"] != 12), new_image]
    content["annotations"].append({"id": 99, "image_id": 99, "caption": "A square."})
    (tmp_path / "changed.json").write_text(json.dumps(content))
    changes = [f"captions.annotations={tmp_path / 'changed.json'}", f"shards.images_per_part={per_part}"]
    full, _, _ = run_toy(config, *changes, f"out={tmp_path / 'full'}")

    seen: list[str] = []
    propose_batch = region_stages._propose_batch

    def proposes(batch: Any, **options: Any) -> Any:
        seen.extend(image.image_id for image in batch.images)
        return propose_batch(batch, **options)

    monkeypatch.setattr(region_stages, "_propose_batch", proposes)
    new = regenerate(config, old, *changes)
    assert seen == ["99"]
    assert hashes_of_data(new) == hashes_of_data(full)
    assert "12" not in {row.image_id for row in all_regions(new)}


def all_regions(run: RunFolder) -> list[RegionsRow]:
    return [row for part in sorted(run.done("proposals")) for row in rows_of(run, part)]


def rows_of(run: RunFolder, part: int) -> list[RegionsRow]:
    return run.read_rows("proposals", f"{part:05d}.parquet", row_type=RegionsRow)


def test_a_smaller_run_in_other_parts_loads_no_model(
    config: Path, old: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Regions, "open", refuse)
    settings = load_mining(str(config), overrides=["shards.images_per_part=2"])
    mine(settings, engine=LocalEngine(), observer=Recorder(), limit=5, regions_from=old.root)
    found = {row.image_id: row for row in all_regions(RunFolder(settings.out))}
    assert len(found) == 5
    assert found == {row.image_id: row for row in all_regions(old) if row.image_id in found}
    assert opened(old.root, settings).open_proposals()(["12", "99"])["image_id"].to_pylist() == ["12"]


def test_images_are_found_in_parts_that_a_source_cut_and_in_those_that_the_plan_did(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    by_hash = sorted("cdefghi", key=lambda image_id: hashlib.sha256(image_id.encode()).hexdigest())
    parts = [("z", "b"), ("a",), by_hash[:3], by_hash[3:]]
    for number, image_ids in enumerate(parts):
        name = f"{number:05d}.parquet"
        images = [ImageRow(image_id, None) for image_id in image_ids]
        proposals = [ProposalsRow.rejected(image_id, Rejection("missing_file")) for image_id in image_ids]
        run.write_rows("images", name, rows=images, row_type=ImageRow, fingerprint="")
        run.write_rows("proposals", name, rows=proposals, row_type=ProposalsRow, fingerprint="made")
    rows_of = ReusedRun(run, proposals_cells(run, "made"), None, parts=4, given=2).open_proposals()
    for image_id in "abcdefghiz":
        assert rows_of([image_id])["image_id"].to_pylist() == [image_id]
    assert len(rows_of(["nobody's"])) == 0


def test_known_nouns_keep_their_embeddings(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regions = {
        "proposals": {"kind": "ground_truth", "annotations": str(world / "instances.json")},
        "keep": {"min_area_px": 1},
        "clip": {"model": str(save_tiny_clip(tmp_path / "clip"))},
        "device": "cpu",
    }
    clip = {"regions": regions, "pairs": {"rule": "best_region_per_noun"}, "vocabulary": {"templates": "raw"}}
    old, _, _ = run_toy(toy.write_config(world, out=tmp_path / "old", **clip), "captions.per_image=1")
    config = toy.write_config(world, out=tmp_path / "new", **clip)
    embed = vocabulary_step.embed_nouns
    embedded: list[str] = []

    def embeds(nouns: Sequence[str], **options: Any) -> Any:
        embedded.extend(nouns)
        return embed(nouns, **options)

    monkeypatch.setattr(vocabulary_step, "embed_nouns", embeds)
    regenerate(config, old, "captions.per_image=all", "nouns.compounds=true", "nouns.skip_words=[square]")
    assert embedded == []  # "bar" and "disc" are said again
    regenerate(config, old, f"captions.annotations={world / 'others.json'}", f"out={tmp_path / 'b'}")
    assert embedded == []
    captions = json.loads((world / "others.json").read_text())
    captions["annotations"][0]["caption"] = "A horse and a disc."
    (tmp_path / "horse.json").write_text(json.dumps(captions))
    regenerate(config, old, f"captions.annotations={tmp_path / 'horse.json'}", f"out={tmp_path / 'c'}")
    assert embedded == ["horse"]
    regenerate(config, old, "vocabulary.templates=vild", f"out={tmp_path / 'd'}")
    assert {"bar", "disc", "square"} <= set(embedded), "they were embedded in other sentences"
    save_tiny_clip(tmp_path / "clip", seed=1)
    reused = opened(old.root, load_mining(str(config)))
    assert reused.embeddings is None
    assert reused.difference.startswith("regions.clip.model.sha256: ")


def test_other_settings_of_the_regions_are_named(
    config: Path, old: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(["mine", str(config), "--regions", old.root, "--set", "regions.keep.top=7"]) == 2
    said = capsys.readouterr().err.strip()
    assert "were made by other settings (regions.keep.top: 100 there, 7 here)" in said
    assert "\n" not in said
    assert run_app(["mine", str(config), "--regions", old.root, "--set", "regions.batch_size=3"]) == 0


def test_settings_that_one_side_lacks_are_differences() -> None:
    there, here = {"a": {"b": 1, "c": None}}, {"a": {"b": 1, "d": 2}}
    assert list(differences(there, here, name="x")) == [("x.a.c", "null", "absent"), ("x.a.d", "absent", "2")]
    assert list(differences(there, there, name="x")) == []


def test_a_run_that_cannot_give_regions_is_told_in_one_line(
    config: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load_mining(str(config))
    with pytest.raises(InputError, match="not a run folder"):
        opened(str(tmp_path), settings)
    unfinished, _, _ = run_toy(toy.write_config(world, out=tmp_path / "unfinished"))
    with pytest.raises(InputError, match="is the `out` of this run"):
        opened(unfinished.root, load_mining(str(config), overrides=[f"out={unfinished.root}"]))
    incomplete = "its regions are not complete; run `maskmine mine` there first"
    made = unfinished.read_json("proposals", "_fingerprint.json")
    unfinished.write_json("proposals", "_fingerprint.json", value={"fingerprint": "that of a run which goes on there"})
    with pytest.raises(IncompleteError, match=incomplete):
        opened(unfinished.root, settings)
    unfinished.write_json("proposals", "_fingerprint.json", value=made)
    os.unlink(unfinished.path("proposals", "00001.parquet"))
    with pytest.raises(IncompleteError, match=incomplete):
        opened(unfinished.root, settings)
    os.unlink(unfinished.path("manifest.json"))
    assert run_app(["mine", str(config), "--regions", unfinished.root]) == 4
    assert run_app(["mine", str(config), "--regions", unfinished.root, "--dry-run"]) == 2
    assert "give it without --regions" in capsys.readouterr().err


@pytest.mark.parametrize("step", ["proposals", "embeddings"])
def test_a_damaged_cell_of_the_earlier_run_is_named_there_and_mended_there(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], step: str
) -> None:
    regions = {
        "proposals": {"kind": "ground_truth", "annotations": str(world / "instances.json")},
        "keep": {"min_area_px": 1},
        "clip": {"model": str(save_tiny_clip(tmp_path / "clip"))},
        "device": "cpu",
    }
    earlier = toy.write_config(world, out=tmp_path / "earlier", regions=regions).rename(tmp_path / "earlier.yaml")
    new = toy.write_config(world, out=tmp_path / "new", regions=regions).rename(tmp_path / "new.yaml")
    assert run_app(["mine", str(earlier)]) == 0
    cell = next((tmp_path / "earlier" / step).rglob("00001.parquet"))
    content = bytearray(cell.read_bytes())
    content[len(content) // 2] ^= 1
    cell.write_bytes(content)
    capsys.readouterr()
    again = ["mine", str(new), "--regions", str(tmp_path / "earlier")]
    taken = [tmp_path / "new" / step / "00001.parquet"] if step == "proposals" else []  # linked, and not read
    for damaged in (*taken, cell):
        assert run_app(again) == 4
        assert f"{damaged}: not a whole Parquet file; delete it" in capsys.readouterr().err.splitlines()[-1]
        damaged.unlink()  # as it says
    assert not list((tmp_path / "new" / step).rglob("00001.parquet"))
    assert run_app(again) == 4
    assert "its regions are not complete; run `maskmine mine` there first" in capsys.readouterr().err
    assert [run_app(["mine", str(earlier)]), run_app(again)] == [0, 0]
