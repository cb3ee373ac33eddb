"""A verifier looks at every mined pair: its columns, its filters, and of other pairs only what is new is checked."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from maskmine.mining.verifiers.checks import Check
from maskmine.mining.verifiers.second_clip import SecondClip
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.mine import mine
from maskmine.pipelines.reports.report import make_report, render_report
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.mining import load_mining
from maskmine.pipelines.steps.status import rejected_images, run_status
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import SampleRow
from maskmine.schemas.sample import record_keys
from tests.support import toy
from tests.support.conformance import hashes_of_data
from tests.support.models import save_tiny_clip
from tests.support.runs import Recorder, hashes, run_toy, samples
from tests.support.tiny.verifiers import KINDS, save_owlv2
from tests.support.web.browser import Page

pytestmark = pytest.mark.usefixtures("one_tagger")

PRESENCE = {"square": 0.9, "disc": 0.4, "discs": None, "bar": 0.7}
CHECKED = {("checks", part) for part in range(3)}
FILTERED = {("shards", part) for part in range(3)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = toy.write_toy_world(tmp_path_factory.mktemp("checks"))
    save_tiny_clip(world / "clip", seed=3)
    return world


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The nouns that the verifier was asked for; it knows the answers by heart."""
    nouns_asked: list[str] = []

    def verify(rgb_3HW: Any, *, nouns: Sequence[str], regions: Sequence[Any], chosen: Sequence[int]) -> list[Check]:
        assert tuple(rgb_3HW.shape) == (3, toy.HEIGHT_PX, toy.WIDTH_PX)
        assert max(chosen) < len(regions)
        nouns_asked.extend(nouns)
        return [
            Check(None, None, "text_too_long") if PRESENCE[noun] is None else Check(PRESENCE[noun], 1.0)
            for noun in nouns
        ]

    monkeypatch.setattr(SecondClip, "open", lambda self, *, device: verify)
    return nouns_asked


def config(world: Path, out: Path, **changes: Any) -> Path:
    clip = {"model": str(world / "clip"), "licence": "CC-BY-NC-4.0"}
    checks = {"verifier": {"kind": "clip", "clip": clip, "templates": "raw"}}
    return toy.write_config(world, out=out, **{"checks": checks, **changes})


def written(run: RunFolder) -> dict[tuple[str, str], tuple[float | None, float | None]]:
    return {(row.image_id, row.noun): (row.presence, row.agreement) for row in samples(run)}


def test_the_samples_have_what_the_verifier_says_and_without_one_nothing_is_written(
    world: Path, tmp_path: Path, asked: list[str]
) -> None:
    run, _, recorder = run_toy(config(world, tmp_path / "run"))
    assert set(recorder.made) >= CHECKED
    assert sorted(asked) == ["bar", "bar", "disc", "disc", "discs", "square", "square"]
    assert written(run)["11", "disc"] == (0.4, 1.0)
    assert written(run)["14", "discs"] == (None, None)
    finished = FinishedRun.open_complete(run)
    records = [finished.sample(row).record for row in samples(run)]
    assert {frozenset(record) for record in records} == {record_keys(4)}
    assert {(r["image_id"], r["noun"]): (r["presence"], r["agreement"]) for r in records} == written(run)
    assert [str(problem) for problem in verify_run(run)] == []
    assert "checks" in {step.step for step in run_status(run).steps}
    assert ("verifier", "CC-BY-NC-4.0") in {(model.role, model.licence) for model in finished.manifest.models}

    assert "| `presence` |" in (tmp_path / "run" / "README.md").read_text()

    without, _, recorder = run_toy(config(world, tmp_path / "without", checks=None))
    assert "checks" not in recorder.steps
    finished = FinishedRun.open_complete(without)
    assert {frozenset(finished.sample(row).record) for row in samples(without)} == {record_keys(3)}
    assert not {"presence", "agreement"} & set(finished.table(0, SampleRow).column_names)
    assert set(written(without).values()) == {(None, None)}
    assert finished.manifest.format_version == 3
    assert "checks" not in finished.manifest.settings
    before = hashes(without.root)
    run_toy(config(world, tmp_path / "without"))  # and off again
    run_toy(config(world, tmp_path / "without", checks=None))
    after = {name: digest for name, digest in hashes(without.root).items() if not name.startswith("checks/")}
    assert after == before


@pytest.mark.parametrize("capped", [[], ["pairs.max_per_noun=1"]])
def test_a_filter_of_checks_runs_no_model_and_a_noun_that_was_not_checked_reaches_none(
    world: Path, tmp_path: Path, asked: list[str], capped: list[str]
) -> None:
    path = config(world, tmp_path / "run")
    before = hashes(run_toy(path, *capped)[0].root)
    asked.clear()
    run, _, recorder = run_toy(path, "pairs.min_presence=0.6", *capped)
    kept = [noun for _, noun in written(run)]
    assert set(kept) == {"square", "bar"}
    assert all(kept.count(noun) == (1 if capped else 2) for noun in kept)
    assert set(recorder.made) == FILTERED | ({("selection", 0)} if capped else set())
    assert ("14", "shards", "filtered") in {(i.image_id, i.step, i.reason) for i in rejected_images(run)}
    assert [str(problem) for problem in verify_run(run)] == []
    assert asked == []
    run_toy(path, *capped)
    assert hashes(run.root) == before


def other_captions(world: Path, to: Path) -> str:
    """An override that names captions by which 11 says no disc, and 14 only one."""
    captions = json.loads((world / "captions.json").read_text())
    for one in captions["annotations"]:
        one["caption"] = {11: "A square.", 14: "A disc."}.get(one["image_id"], one["caption"])
    to.write_text(json.dumps(captions))
    return f"captions.annotations={to}"


def test_new_captions_have_only_new_pairs_checked(world: Path, tmp_path: Path, asked: list[str]) -> None:
    path, others = config(world, tmp_path / "run"), other_captions(world, tmp_path / "captions.json")
    run, _, _ = run_toy(path)
    first = hashes(run.root)
    fresh, _, _ = run_toy(path, others, f"out={tmp_path / 'fresh'}")
    asked.clear()

    # in the same folder, and back
    _, _, recorder = run_toy(path, others)
    assert set(recorder.made) >= CHECKED
    assert asked == []
    assert hashes(run.root) == hashes(fresh.root)
    run_toy(path)
    assert sorted(asked) == ["disc", "discs"]
    assert hashes(run.root) == first
    asked.clear()

    # in another, from the regions of this one
    settings = load_mining(str(path), overrides=[others, f"out={tmp_path / 'new'}"])
    mine(settings, engine=LocalEngine(), observer=Recorder(), regions_from=run.root)
    assert asked == []
    assert hashes_of_data(RunFolder(settings.out)) == hashes_of_data(fresh)
    assert [str(problem) for problem in verify_run(RunFolder(settings.out))] == []


def test_a_picture_that_is_another_now_is_rejected_and_one_without_pairs_is_not_looked_at(
    world: Path, tmp_path: Path, asked: list[str]
) -> None:
    images = shutil.copytree(world / "images", tmp_path / "images")
    path = config(world, tmp_path / "run")
    run_toy(path, f"captions.images={images}", "checks=null")
    toy.save_picture(images / f"{12:012d}.png", ("bar", "disc"))
    for image_id in (13, 15, 17):
        (images / f"{image_id:012d}.png").unlink()
    run, _, _ = run_toy(path, f"captions.images={images}")
    rejected = {(i.image_id, i.step, i.reason) for i in rejected_images(run)}
    assert rejected == toy.REJECTIONS | {("12", "checks", "image_changed"), ("13", "checks", "missing_file")}
    assert sorted(asked) == ["disc", "disc", "discs", "square"]


def test_exports_have_the_checks_and_are_filtered_by_them(
    world: Path, tmp_path: Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _, _ = run_toy(config(world, tmp_path / "run"))
    said = {f"{image}-{noun}": both for (image, noun), both in written(run).items()}

    def exported(to: str, *options: str) -> Path:
        assert run_app(["export", run.root, "--to", to, "--out", str(tmp_path / to), *options]) == 0
        return tmp_path / to

    tables = {
        "parquet": sorted(exported("parquet", "--split", "train=0.5,val=0.5").rglob("*.parquet")),
        "hf": sorted(exported("hf").rglob("*.parquet")),
    }
    for to, noun in (("parquet", "noun"), ("hf", "text")):
        rows = [row for path in tables[to] for row in pq.read_table(path).to_pylist()]
        assert {f"{row['image_id']}-{row[noun]}": (row["presence"], row["agreement"]) for row in rows} == said
    annotations = json.loads((exported("coco") / "train.json").read_text())["annotations"]
    assert {(one["presence"], one["agreement"]) for one in annotations} == set(said.values())
    with tarfile.open(exported("webdataset", "--min-presence", "0.6") / "train" / "00000.tar") as tar:
        records = [json.load(tar.extractfile(one)) for one in tar if one.name.endswith(".json")]  # type: ignore[arg-type]
    assert {record["noun"]: record["presence"] for record in records} == {"square": 0.9, "bar": 0.7}
    assert "presence at least 0.6" in (tmp_path / "webdataset" / "README.md").read_text()

    without, _, _ = run_toy(config(world, tmp_path / "without", checks=None))
    out = ["--to", "hf", "--out", str(tmp_path / "no")]
    assert run_app(["export", without.root, *out, "--min-agreement", "0.5"]) == 2
    line = "the pairs of .* have no agreement, as no verifier checked them; set `checks.verifier`"
    assert re.search(f"--min-agreement 0.5: {line}", capsys.readouterr().err.replace("\n", " "))
    assert run_app(["export", without.root, *out]) == 0
    (table,) = (tmp_path / "no").rglob("*.parquet")
    assert not {"presence", "agreement"} & set(pq.read_schema(table).names)


def test_the_report_shows_the_checks_and_what_filters_would_leave(
    world: Path, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _, _ = run_toy(config(world, tmp_path / "run"))
    report = make_report(run)
    checked = report.checked
    assert checked is not None
    assert sum(checked.presence.counts) == sum(checked.agreement.counts) == 6
    assert (checked.presence_median, checked.agreement_median, checked.unread) == (0.7, 1.0, 1)
    left = [(one.setting, one.threshold, one.pairs) for one in checked.filtered]
    assert left[:2] == [("min_presence", 0.4, 6), ("min_presence", 0.7, 4)]
    assert [pairs for setting, _, pairs in left if setting == "min_agreement"] == [6, 6, 6, 6]
    words = " ".join(Page(render_report(report)).words.split())
    assert "1 pair of this set has a noun that it cannot read, and no filter on checks leaves it." in words
    assert "pairs.min_presence: 0.7457.1%" in words

    monkeypatch.setitem(PRESENCE, "square", None), monkeypatch.setitem(PRESENCE, "disc", None)
    monkeypatch.setitem(PRESENCE, "bar", None)
    unread, _, _ = run_toy(config(world, tmp_path / "unread"))
    assert make_report(unread).checked is None
    without, _, _ = run_toy(config(world, tmp_path / "without", checks=None))
    assert "What the verifier says" not in render_report(make_report(without))


@pytest.mark.parametrize("kind", KINDS)
def test_a_verifier_of_another_kind_is_found_before_anything_is_written(world: Path, tmp_path: Path, kind: str) -> None:
    other = "owlv2" if kind == "clip" else "clip"
    folder = str(world / "clip") if other == "clip" else str(save_owlv2(tmp_path / "owlv2"))
    section: dict[str, Any] = {"kind": kind}
    section |= {"clip": {"model": folder}} if kind == "clip" else {"checkpoint": folder}
    section |= {"clip": {"model": str(world / "clip")}} if kind == "open_maskformer" else {}
    with pytest.raises(InputError, match=rf"is none for `kind: {kind}`; use `kind: {other}` for it") as caught:
        run_toy(config(world, tmp_path / "run", checks={"verifier": section}))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("clip", "clip.model: `.*empty` holds no open_clip_config.json; give a folder saved for open_clip"),
        ("open_maskformer", "verifier.checkpoint: `.*empty` holds no open_vocabulary.json; give a folder that"),
    ],
)
def test_a_folder_that_holds_no_verifier_is_found_before_anything_is_written(
    world: Path, tmp_path: Path, kind: str, line: str
) -> None:
    (tmp_path / "empty").mkdir()
    section: dict[str, Any] = {"kind": kind, "clip": {"model": str(tmp_path / "empty")}}
    if kind == "open_maskformer":
        section |= {"checkpoint": str(tmp_path / "empty"), "clip": {"model": str(world / "clip")}}
    with pytest.raises(InputError, match=f"^{line}") as caught:
        run_toy(config(world, tmp_path / "run", checks={"verifier": section}))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("setting", ["min_presence", "min_agreement"])
def test_a_filter_of_checks_without_a_verifier_is_refused_in_one_line(
    world: Path, tmp_path: Path, setting: str
) -> None:
    path = config(world, tmp_path / "run", checks=None)
    with pytest.raises(InputError, match=rf"`pairs.{setting}` needs a verifier; set `checks.verifier`") as caught:
        load_mining(str(path), overrides=[f"pairs.{setting}=0.5"])
    assert "\n" not in str(caught.value)
