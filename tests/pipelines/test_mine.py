"""The whole pipeline on the toy world, whose answer is known by hand; and what is made again, and what is not."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from maskmine.mining.shards import Shards
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.mine import find_exceeded, mine
from maskmine.pipelines.planning.plan import make_plan
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.mining import Mining, load_mining, parse_mining
from maskmine.pipelines.steps.status import ranges, rejected_images, run_status
from maskmine.schemas.errors import IncompleteError, InputError, OtherPlanError
from maskmine.schemas.manifest import Totals
from maskmine.schemas.rows import CaptionsRow, ImageRow
from tests.support import toy
from tests.support.runs import FunctionEngine, Recorder, StopsAfter, hashes, run_toy, samples


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy_world(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the toy world; tests copy it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    run_toy(toy.write_config(world), f"out={out}")
    return out


@pytest.fixture
def run_again(world: Path, finished: Path, tmp_path: Path) -> Path:
    """The configuration of a copy of the finished run."""
    shutil.copytree(finished, tmp_path / "run")
    config = toy.write_config(world, out=tmp_path / "run")
    return Path(shutil.copy(config, tmp_path / "mining.yaml"))


def test_the_toy_world_gives_the_pairs_known_by_hand(finished: Path) -> None:
    run = RunFolder(str(finished))
    found = {(row.image_id, row.noun, row.label) for row in samples(run)}
    assert found == toy.PAIRS
    assert {(image.image_id, image.step, image.reason) for image in rejected_images(run)} == toy.REJECTIONS


def test_the_first_caption_is_that_of_the_smallest_annotation_id(finished: Path) -> None:
    (disc,) = {row.caption for row in samples(RunFolder(str(finished))) if row.image_id == "11"}
    assert disc == "A square beside a disc."


def test_all_captions_add_their_nouns_but_no_pair_twice(world: Path, tmp_path: Path) -> None:
    run, outcome, _ = run_toy(toy.write_config(world), f"out={tmp_path / 'run'}", "captions.per_image=all")
    assert {(row.image_id, row.noun, row.label) for row in samples(run)} == toy.PAIRS
    assert outcome.manifest is not None
    assert outcome.manifest.totals.images == len(toy.IMAGES)


def test_parts_are_even_disjoint_and_cover_the_images_in_the_order_of_hashed_ids(finished: Path) -> None:
    run = RunFolder(str(finished))
    parts = [run.read_rows("images", f"{p:05d}.parquet", row_type=ImageRow) for p in range(3)]
    assert [len(part) for part in parts] == [2, 3, 3]
    ids = [row.image_id for part in parts for row in part]
    assert ids == sorted((str(image.id) for image in toy.IMAGES), key=lambda i: hashlib.sha256(i.encode()).hexdigest())


def test_a_finished_run_verifies_and_adds_up(finished: Path) -> None:
    run = RunFolder(str(finished))
    assert [str(problem) for problem in verify_run(run)] == []
    manifest = run.read_json("manifest.json")
    totals = manifest["totals"]
    assert totals["images"] == totals["with_pairs"] + sum(totals["rejected"].values()) == len(toy.IMAGES)
    assert run_status(run).complete


def test_the_published_files_name_no_path_of_the_machine(finished: Path, world: Path) -> None:
    for name in ("manifest.json", "README.md", "SHA256SUMS", "shards/sizes.json"):
        assert str(world.parent) not in (finished / name).read_text()


def test_the_same_command_again_makes_nothing(run_again: Path) -> None:
    _, outcome, recorder = run_toy(run_again)
    assert outcome.manifest is None
    assert recorder.made == []


def test_two_runs_of_the_same_settings_have_the_same_bytes(world: Path, finished: Path, tmp_path: Path) -> None:
    run_toy(toy.write_config(world), f"out={tmp_path / 'other'}")
    assert hashes(str(tmp_path / "other")) == hashes(str(finished))


def test_deleting_any_file_and_running_again_restores_its_bytes(run_again: Path) -> None:
    root = run_again.parent / "run"
    before = hashes(str(root))
    for name in sorted(before):
        (root / name).unlink()
        run_toy(run_again)
        assert hashes(str(root)) == before, name
    for name in ("mining.yaml", "shards/00001.json"):
        (root / name).unlink()
        run_toy(run_again)
        assert (root / name).exists()
    shutil.rmtree(root / "shards")
    run_toy(run_again)
    assert hashes(str(root)) == before


@pytest.mark.parametrize(
    ("override", "steps"),
    [
        ("nouns.compounds=true", ["nouns", "vocabulary", "pairs", "shards"]),
        ("captions.per_image=all", ["nouns", "vocabulary", "pairs", "shards"]),
        ("vocabulary.templates=raw", ["vocabulary", "pairs", "shards"]),
        ("regions.keep.top=1", ["proposals", "pairs", "shards"]),
        ("pairs.take=all", ["pairs", "shards"]),
        ("pairs.min_count=2", ["shards"]),
        ("pairs.max_per_noun=1", ["selection", "shards"]),
        ("shards.quality=60", ["shards"]),
        ("regions.batch_size=1", []),
        ("max_rejected=0.9", []),
    ],
)
def test_a_changed_setting_runs_exactly_the_steps_that_depend_on_it(
    run_again: Path, override: str, steps: list[str]
) -> None:
    run, _, recorder = run_toy(run_again, override)
    assert recorder.steps == steps
    assert [str(problem) for problem in verify_run(run)] == []
    _, outcome, recorder = run_toy(run_again, override)
    assert (outcome.manifest, recorder.made) == (None, [])


def test_new_captions_of_the_same_images_never_run_regions_again(run_again: Path, world: Path) -> None:
    tree = json.loads((world / "captions.json").read_text())
    for annotation in tree["annotations"]:
        annotation["caption"] = "A square, a disc and a bar."
    changed = run_again.parent / "new-captions.json"
    changed.write_text(json.dumps(tree))
    run, _, recorder = run_toy(run_again, f"captions.annotations={changed}")
    assert recorder.steps == ["nouns", "vocabulary", "pairs", "shards"]
    assert {row.caption for row in samples(run)} == {"A square, a disc and a bar."}


def test_settings_changed_and_changed_back_give_the_first_bytes(run_again: Path) -> None:
    root = run_again.parent / "run"
    before = hashes(str(root))
    run_toy(run_again, "nouns.compounds=true", "regions.keep.top=1")
    run_toy(run_again)
    assert hashes(str(root)) == before


@pytest.mark.parametrize(
    ("override", "limit", "said"),
    [
        ("shards.images_per_part=4", None, "shards.images_per_part: 3 there, 4 here"),
        ("max_rejected=1.0", 5, "limit: None there, 5 here"),
    ],
)
def test_a_folder_of_another_plan_is_refused_with_what_differs(
    run_again: Path, override: str, limit: int | None, said: str
) -> None:
    before = hashes(str(run_again.parent / "run"))
    with pytest.raises(OtherPlanError) as caught:
        run_toy(run_again, override, limit=limit)
    assert said in str(caught.value)
    assert hashes(str(run_again.parent / "run")) == before


def test_a_folder_of_images_that_is_none_changes_nothing(run_again: Path) -> None:
    before = hashes(str(run_again.parent / "run"))
    with pytest.raises(InputError, match="elsewhere is no folder; give the folder of the images"):
        run_toy(run_again, "captions.images=elsewhere")
    assert hashes(str(run_again.parent / "run")) == before


def test_captions_of_other_images_belong_to_another_plan(run_again: Path, world: Path) -> None:
    tree = json.loads((world / "captions.json").read_text())
    tree["images"].append({"id": 99, "file_name": "99.png"})
    changed = run_again.parent / "other-images.json"
    changed.write_text(json.dumps(tree))
    before = hashes(str(run_again.parent / "run"))
    with pytest.raises(OtherPlanError, match="has other images"):
        run_toy(run_again, f"captions.annotations={changed}")
    assert hashes(str(run_again.parent / "run")) == before


def test_a_limit_mines_the_first_images_of_the_plan(world: Path, tmp_path: Path) -> None:
    run, outcome, _ = run_toy(toy.write_config(world), f"out={tmp_path / 'run'}", limit=4)
    assert outcome.manifest is not None
    assert outcome.manifest.totals.images == 4
    ids = [r.image_id for p in range(2) for r in run.read_rows("images", f"{p:05d}.parquet", row_type=ImageRow)]
    assert ids == sorted((str(i.id) for i in toy.IMAGES), key=lambda i: hashlib.sha256(i.encode()).hexdigest())[:4]


def test_a_run_that_stops_in_the_middle_goes_on_to_the_same_bytes(world: Path, finished: Path, tmp_path: Path) -> None:
    settings = load_mining(str(toy.write_config(world)), overrides=[f"out={tmp_path / 'run'}"])
    for stop in (1, 2, 2, 2, 1, 3):
        with pytest.raises(KeyboardInterrupt):
            mine(settings, engine=LocalEngine(), observer=StopsAfter(stop))
        assert not (tmp_path / "run" / "_SUCCESS").exists()
    mine(settings, engine=LocalEngine(), observer=Recorder())
    assert hashes(str(tmp_path / "run")) == hashes(str(finished))


def test_a_limit_that_is_exceeded_leaves_no_success_until_it_is_raised(run_again: Path) -> None:
    root = run_again.parent / "run"
    (root / "_SUCCESS").unlink()
    _, outcome, _ = run_toy(run_again, "max_empty=0.4")
    (exceeded,) = outcome.exceeded
    assert (exceeded.setting, exceeded.images, exceeded.of) == ("max_empty", 4, 8)
    assert not (root / "_SUCCESS").exists()
    _, outcome, recorder = run_toy(run_again, "max_empty=0.5")
    assert outcome.exceeded == ()
    assert recorder.made == []
    assert (root / "_SUCCESS").exists()


@pytest.mark.parametrize("command", ["status", "verify", "export"])
def test_a_run_over_its_limit_is_told_which_and_not_to_run_again_for_ever(
    run_again: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    root = str(run_again.parent / "run")
    run_toy(run_again, "max_empty=0.4", "shards.quality=94")
    more = ["--to", "parquet", "--out", f"{root}-exported"] if command == "export" else []
    assert run_app([command, root, *more]) == (0 if command == "status" else 3)
    said = "".join(capsys.readouterr())
    assert "finished, and not published: 50.0% of the images came to nothing (4 of 8), most by `" in said
    assert "and max_empty allows 40.0%" in said
    assert "not complete" not in said


def test_images_in_which_nothing_is_found_are_no_faults(run_again: Path) -> None:
    run, outcome, _ = run_toy(run_again, "pairs.min_count=9", "max_rejected=0.0")
    assert outcome.manifest is not None
    assert outcome.exceeded == ()
    totals = outcome.manifest.totals
    assert totals.faults == {}
    assert totals.empty == totals.rejected
    assert totals.rejected["shards: filtered"] == 4
    assert samples(run) == []


def test_each_limit_counts_its_own_reasons() -> None:
    rejected = {"pairs: no_match": 3, "proposals: missing_file": 2, "shards: filtered": 1, "steps: of_a_later": 3}
    totals = Totals(images=20, with_pairs=11, rejected=rejected, samples=11, nouns=5, size_bytes=0)
    found = {
        (exceeded.setting, exceeded.images, exceeded.reason)
        for exceeded in find_exceeded(totals, toy_settings(max_rejected=0.24, max_empty=0.19))
    }
    assert found == {("max_rejected", 5, "steps: of_a_later"), ("max_empty", 4, "pairs: no_match")}
    assert not list(find_exceeded(totals, toy_settings(max_rejected=0.25, max_empty=0.2)))
    assert not list(find_exceeded(totals, toy_settings(max_rejected=0.25, max_empty=None)))


def toy_settings(**changes: float | None) -> Mining:
    tree = {
        "captions": {"kind": "coco", "annotations": "captions.json", "images": "images"},
        "regions": {"proposals": {"kind": "ground_truth", "annotations": "instances.json"}, "clip": None},
        "pairs": {"rule": "labels"},
        "out": "run",
    }
    return parse_mining(tree | changes, place="here")


def test_a_picture_that_changed_after_its_masks_were_made_is_rejected(world: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(world, tmp_path / "world"))
    config = toy.write_config(moved, out=tmp_path / "run")
    run_toy(config)
    shutil.rmtree(tmp_path / "run" / "shards")
    shutil.copy(moved / "images" / f"{13:012d}.png", moved / "images" / f"{12:012d}.png")
    run, _, _ = run_toy(config)
    assert ("12", "shards", "image_changed") in {(i.image_id, i.step, i.reason) for i in rejected_images(run)}


def test_an_annotation_without_its_image_is_an_image_that_is_missing(world: Path, tmp_path: Path) -> None:
    tree = json.loads((world / "captions.json").read_text())
    tree["annotations"].append({"id": 1, "image_id": 404, "caption": "A square."})
    changed = tmp_path / "captions.json"
    changed.write_text(json.dumps(tree))
    out = f"out={tmp_path / 'run'}"
    run, outcome, _ = run_toy(toy.write_config(world), f"captions.annotations={changed}", out)
    assert ("404", "proposals", "missing_file") in {(i.image_id, i.step, i.reason) for i in rejected_images(run)}
    assert outcome.manifest is not None
    assert outcome.manifest.totals.images == len(toy.IMAGES) + 1


def test_an_image_id_listed_twice_is_refused_before_anything_is_written(world: Path, tmp_path: Path) -> None:
    tree = json.loads((world / "captions.json").read_text())
    tree["images"].append({"id": 11, "file_name": "other.png"})
    changed = tmp_path / "captions.json"
    changed.write_text(json.dumps(tree))
    with pytest.raises(InputError, match="lists image id 11 more than once"):
        run_toy(toy.write_config(world), f"captions.annotations={changed}", f"out={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_an_instances_file_in_the_place_of_the_captions_is_recognised(world: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is this the captions file, and not the instances"):
        run_toy(toy.write_config(world), f"captions.annotations={world / 'instances.json'}", f"out={tmp_path / 'run'}")


def test_a_cell_cut_short_by_someone_else_is_one_line(run_again: Path) -> None:
    root = run_again.parent / "run"
    (root / "nouns" / "00001.parquet").write_bytes(b"PAR1")
    (root / "shards" / "00001.tar").unlink()
    with pytest.raises(IncompleteError, match=r"nouns/00001\.parquet: not a whole Parquet file; delete it"):
        run_toy(run_again)


def test_status_counts_cells_and_names_the_missing(run_again: Path) -> None:
    root = run_again.parent / "run"
    (root / "proposals" / "00001.parquet").unlink()
    (root / "shards" / "00002.tar").unlink()
    state = run_status(RunFolder(str(root)))
    assert {(s.step, s.done, s.cells, tuple(s.missing)) for s in state.steps} == {
        ("nouns", 3, 3, ()),
        ("vocabulary", 1, 1, ()),
        ("proposals", 2, 3, (1,)),
        ("pairs", 3, 3, ()),
        ("shards", 2, 3, (2,)),
    }


def test_status_has_a_row_for_what_a_run_of_clip_has_not_made_yet(run_again: Path) -> None:
    run = RunFolder(str(run_again.parent / "run"))
    identity = run.read_json("identity.json")
    identity["pairs"] |= {"rule": "best_region_per_noun", "max_per_noun": 5}
    run.write_json("identity.json", value=identity)
    missing = {step.step: tuple(step.missing) for step in run_status(run).steps}
    assert list(missing) == ["nouns", "vocabulary", "proposals", "levels", "pairs", "selection", "shards"]
    assert (missing["levels"], missing["selection"], missing["pairs"]) == ((0,), (0,), ())


def test_parts_follow_from_the_number_of_images_where_the_settings_leave_them_open(world: Path, tmp_path: Path) -> None:
    sizes = {images: Shards().images_in_part(images) for images in (8, 300, 1_000, 20_000)}
    assert sizes == {8: 20, 300: 20, 1_000: 63, 20_000: 1_000}
    config, run = str(toy.write_config(world, out=tmp_path / "run")), RunFolder(str(tmp_path / "run"))
    auto = load_mining(config, overrides=["shards.images_per_part=auto"])
    assert make_plan(run, load_mining(config)).parts == 3
    assert make_plan(run, auto).parts == 3, "a plan that is there keeps its number"
    every = load_mining(config, overrides=["shards.images_per_part=auto", "captions.per_image=1"])
    assert make_plan(run, every).parts == 3, "also where new captions are planned"
    assert make_plan(RunFolder(str(tmp_path / "new")), auto).parts == 1


def test_part_numbers_are_shown_as_ranges() -> None:
    assert ranges((0, 1, 2, 5, 7, 8)) == "0-2, 5, 7-8"
    assert ranges(tuple(range(0, 20, 2))) == "0, 2, 4, 6, 8, 10 and 4 more"
    assert ranges((0, 2, 4, 6, 8, 10, 11, 13, 14)) == "0, 2, 4, 6, 8, 10-11 and 2 more"


def test_captions_keep_the_order_of_their_annotation_ids(world: Path, tmp_path: Path) -> None:
    out = f"out={tmp_path / 'run'}"
    run, _, _ = run_toy(toy.write_config(world), "captions.per_image=all", out)
    rows = [r for p in range(3) for r in run.read_rows("captions", f"{p:05d}.parquet", row_type=CaptionsRow)]
    assert {row.image_id: row.captions for row in rows} == {str(i.id): i.captions for i in toy.IMAGES}


def test_a_gpu_is_asked_for_here_only_when_models_run_here(run_again: Path) -> None:
    settings = load_mining(str(run_again), overrides=["regions.device=cuda:7", "regions.keep.top=1"])
    before = hashes(settings.out)
    with pytest.raises(InputError, match="this machine has"):
        mine(settings, engine=LocalEngine(), observer=Recorder())
    assert hashes(settings.out) == before  # nothing was thrown away for a run that cannot be

    def far_away(*_: object) -> None:
        """An engine whose workers made nothing."""

    with pytest.raises(IncompleteError, match=r"cells are still missing \(\{'proposals': 3"):
        mine(settings, engine=FunctionEngine(far_away, models_run_here=False), observer=Recorder())


def test_an_account_that_does_not_add_up_fails_the_run(run_again: Path) -> None:
    root = run_again.parent / "run"
    account = json.loads((root / "shards/00001.json").read_text())
    account["with_pairs"] += 1
    (root / "shards/00001.json").write_text(json.dumps(account))
    (root / "manifest.json").unlink()
    with pytest.raises(AssertionError, match="the run has lost images"):
        run_toy(run_again)
    assert not (root / "_SUCCESS").exists()


def test_a_folder_whose_name_looks_like_a_wildcard_is_a_folder(world: Path, tmp_path: Path) -> None:
    run_toy(toy.write_config(world, out=tmp_path / "run1"), "pairs.min_count=9")  # has no pair, and matches `run[1]`
    run, outcome, _ = run_toy(toy.write_config(world, out=tmp_path / "run[1]"), "pairs.max_per_noun=1")
    assert outcome.manifest is not None
    assert outcome.manifest.totals.nouns == len({noun for _, noun, _ in toy.PAIRS})
    assert [str(problem) for problem in verify_run(run)] == []


def test_a_missing_image_folder_is_refused_and_not_counted_image_by_image(world: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(world, tmp_path / "world"))
    config = toy.write_config(moved, out=tmp_path / "run")
    run_toy(config)
    shutil.rmtree(tmp_path / "run" / "shards")  # work is left, and the photographs have gone since
    before = hashes(str(tmp_path / "run"))
    shutil.rmtree(moved / "images")
    with pytest.raises(InputError, match=r"captions\.images: .*images is no folder"):
        run_toy(config)
    assert hashes(str(tmp_path / "run")) == before
    (moved / "images").write_text("a file")
    with pytest.raises(InputError, match="is no folder"):
        run_toy(config)
