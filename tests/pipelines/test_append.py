"""Sets that grow: what is appended, what stays as it is, what is refused, and appends that are killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from maskmine.mining import vocabulary
from maskmine.mining.models.embeddings import embed_nouns
from maskmine.pipelines.append import append
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.dataset.finished_run import FinishedRun, read_noun_counts
from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.appended import captions_to_append
from maskmine.pipelines.settings.mining import load_mining
from maskmine.pipelines.steps.status import run_status
from maskmine.schemas.errors import IncompleteError, InputError, OtherPlanError
from maskmine.schemas.rows import LevelRow, PairsRow, SampleRow, VocabularyRow
from tests.support import toy
from tests.support.growing import FIRST, SECOND, THIRD, append_file, base_config, write_captions, write_pieces
from tests.support.killed import program
from tests.support.models import save_tiny_clip
from tests.support.paths import ROOT
from tests.support.runs import Recorder, StopsAfter, hashes, run_toy

pytestmark = pytest.mark.usefixtures("one_tagger")

# What describes the whole set, and is written anew.
DESCRIBING = {"README.md", "SHA256SUMS", "croissant.json", "errors.parquet", "manifest.json", "shards/sizes.json"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pieces(tmp_path_factory.mktemp("growing"))


@pytest.fixture(scope="module")
def mined(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the first images, in two parts; tests copy it."""
    out = tmp_path_factory.mktemp("mined") / "run"
    run_toy(base_config(world, out, shards={"images_per_part": 2}))
    return out


@pytest.fixture(scope="module")
def grown(world: Path, mined: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after two appends, undisturbed."""
    out = Path(shutil.copytree(mined, tmp_path_factory.mktemp("grown") / "run"))
    for name in ("second", "third"):
        append_file(out, world / f"{name}.json")
    return out


@pytest.fixture
def run(mined: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(mined, tmp_path / "run"))


def faults(out: Path) -> list[str]:
    return [str(problem) for problem in verify_run(RunFolder(str(out)))]


def keys(out: Path) -> set[str]:
    return {row.key for row in FinishedRun.open(RunFolder(str(out))).all_rows(SampleRow)}


# What is appended, and what stays.


def test_what_is_there_stays_and_what_is_new_lies_behind_it(world: Path, mined: Path, grown: Path) -> None:
    before, after = hashes(str(mined)), hashes(str(grown))
    assert {name for name in before if before[name] != after.get(name)} == DESCRIBING
    new = {name.rpartition(".")[0] for name in after.keys() - before.keys()}
    parts = {
        f"{step}/0000{part}"
        for step in ("images", "captions", "nouns", "proposals", "pairs", "shards")
        for part in (2, 3)
    }
    assert new == parts | {f"versions/00{n}/{name}" for n in (1, 2) for name in ("plan", "vocabulary")}
    assert faults(grown) == []


def test_a_set_that_grew_has_the_pairs_of_one_that_was_mined_at_once(world: Path, grown: Path, tmp_path: Path) -> None:
    whole = run_toy(toy.write_config(world, out=tmp_path / "whole"))[0]
    assert keys(grown) == keys(Path(whole.root))
    totals, at_once = (FinishedRun.open(RunFolder(str(f))).manifest.totals for f in (grown, Path(whole.root)))
    assert (totals.images, totals.rejected) == (at_once.images, at_once.rejected)
    assert read_noun_counts(RunFolder(str(grown))) == read_noun_counts(whole)
    of_several = {noun: images for noun, images in read_noun_counts(whole).items() if images >= 2}
    assert read_noun_counts(RunFolder(str(grown)), least=2) == read_noun_counts(whole, least=2) == of_several


def test_the_manifest_names_the_versions_and_its_fingerprint_covers_them(world: Path, mined: Path, grown: Path) -> None:
    base, manifest = (FinishedRun.open(RunFolder(str(folder))).manifest for folder in (mined, grown))
    assert base.versions == ()
    assert "versions" not in json.loads((mined / "manifest.json").read_text())
    found = [
        (version.name, version.first, version.parts, version.images, version.samples) for version in manifest.versions
    ]
    assert found == [("000", 0, 2, len(FIRST), 3), ("001", 2, 1, len(SECOND), 2), ("002", 3, 1, len(THIRD), 2)]
    assert manifest.versions[0].fingerprint == manifest.shards_fingerprint == base.fingerprint
    assert len({manifest.fingerprint, *(version.fingerprint for version in manifest.versions)}) == 4


def test_the_card_says_of_what_the_set_grew(grown: Path) -> None:
    assert "| 001 | 00002–00002 | 2 | 2 | coco |" in (grown / "README.md").read_text()


def test_the_same_append_again_has_nothing_to_do(world: Path, grown: Path) -> None:
    before = hashes(str(grown))
    outcome, recorder = append_file(grown, world / "second.json")
    assert (outcome.version.name, outcome.manifest, recorder.made) == ("001", None, [])
    assert hashes(str(grown)) == before


def test_mining_a_grown_set_again_finds_it_complete_and_makes_what_is_lost(
    world: Path, grown: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(grown, tmp_path / "run"))
    config = base_config(world, run, shards={"images_per_part": 2})
    assert run_toy(config)[1].manifest is None
    for lost in (
        "pairs/00002.parquet",
        "versions/002/vocabulary.parquet",
        "captions/00003.parquet",
        "shards/00000.tar",
    ):
        (run / lost).unlink()
    run_toy(config)
    assert hashes(str(run)) == hashes(str(grown))
    assert faults(run) == []


def test_a_changed_filter_remakes_the_shards_of_all_versions(world: Path, grown: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(grown, tmp_path / "run"))
    config = base_config(world, run, shards={"images_per_part": 2, "expand_ratio": 2.0})
    _, outcome, recorder = run_toy(config)
    assert sorted(recorder.made) == [("shards", part) for part in range(4)]
    assert outcome.manifest is not None
    assert [version.name for version in outcome.manifest.versions] == ["000", "001", "002"]
    assert keys(run) == keys(grown)
    assert faults(run) == []


def test_the_same_append_from_another_place_moves_its_images_and_makes_nothing(
    world: Path, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "there" / "images").mkdir(parents=True), (tmp_path / "here").mkdir()
    for toy_id in SECOND:
        name = f"images/{toy_id:012d}.png"
        shutil.copy(world / name, tmp_path / "there" / name)
    shutil.copy(world / "second.json", tmp_path / "there")
    append_file(run, tmp_path / "there" / "second.json")
    before = hashes(str(run))
    here = Path(shutil.move(tmp_path / "there", tmp_path / "here"))
    outcome, recorder = append_file(run, here / "second.json")
    assert (outcome.version.name, recorder.made) == ("001", [])
    changed = {name for name, digest in hashes(str(run)).items() if before[name] != digest}
    assert changed == {"images/00002.parquet", "versions/001/plan.json"}
    assert faults(run) == []
    run_toy(base_config(world, run, shards={"images_per_part": 2, "expand_ratio": 2.0}))  # its images are read again
    assert len(keys(run)) == 5
    (here / "images" / f"{SECOND[0]:012d}.png").write_bytes((world / "images" / f"{FIRST[0]:012d}.png").read_bytes())
    other = Path(shutil.move(here, tmp_path / "other"))
    with pytest.raises(OtherPlanError, match="belongs to other pictures"):
        append_file(run, other / "second.json")


def test_a_file_that_grew_is_appended_and_the_run_goes_on_with_it(world: Path, run: Path) -> None:
    captions, before = world / "first.json", (world / "first.json").read_text()
    config = base_config(world, run, shards={"images_per_part": 2})
    try:
        write_captions(world, "first", (*FIRST, *THIRD))
        with pytest.raises(OtherPlanError, match="`maskmine append` takes them"):
            run_toy(config)
        outcome, _ = append_file(run, captions)
        assert (outcome.version.plan.images, outcome.version.known) == (len(THIRD), len(FIRST))
        run_toy(config)
        assert faults(run) == []
        assert run_toy(config)[1].manifest is None
    finally:
        captions.write_text(before)


# What is known of nouns.


def mine_scored(world: Path, out: Path) -> Path:
    """Mine the first images with a tiny CLIP, so with levels."""
    masks = {"kind": "ground_truth", "annotations": str(world / "instances.json")}
    regions = {"proposals": masks, "keep": {"min_area_px": 1}, "device": "cpu", "decode_threads": 1}
    clip = {"model": str(save_tiny_clip(world / "clip")), "batch_size": 4}
    changes = {"regions": {**regions, "clip": clip}, "pairs": {"rule": "best_region_per_noun"}}
    (world / "scored.json").write_text(json.dumps(changes))
    run_toy(base_config(world, out, **changes))
    return out


def test_nouns_that_are_known_keep_embedding_and_level_and_only_new_ones_are_embedded(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, embedded = RunFolder(str(mine_scored(world, tmp_path / "run"))), list[str]()

    def embed(names: Sequence[str], **named: Any) -> Any:
        embedded.extend(names)
        return embed_nouns(names, **named)

    monkeypatch.setattr(vocabulary, "embed_nouns", embed)
    append_file(tmp_path / "run", world / "second.json")
    append_file(tmp_path / "run", world / "third.json")
    assert embedded == ["giraffe", "zebra", "discs"]
    base, own = (
        (
            {row.noun: row.embedding for row in run.read_rows(*place, "vocabulary.parquet", row_type=VocabularyRow)},
            {row.noun: row for row in run.read_rows(*place, "levels.parquet", row_type=LevelRow)},
        )
        for place in ((), ("versions", "001"))
    )
    assert list(own[0]) == list(own[1]) == ["bar", "giraffe", "square", "zebra"]
    for noun in ("bar", "square"):
        assert (own[0][noun], own[1][noun]) == (base[0][noun], base[1][noun])
    assert own[1]["zebra"].unsaid == own[1]["giraffe"].unsaid > 0 == own[1]["zebra"].said
    assert faults(tmp_path / "run") == []
    before = hashes(run.root)
    config = base_config(world, tmp_path / "run", **json.loads((world / "scored.json").read_text()))
    run_toy(config, "vocabulary.templates=raw")
    assert set(embedded[3:]) == {"bar", "dark", "disc", "discs", "giraffe", "square", "zebra"}
    run_toy(config)  # and back again: no model runs
    assert len(embedded) == 10
    assert {name for name in before if before[name] != hashes(run.root)[name]} == set()


def test_the_same_picture_and_caption_have_the_same_scores_when_they_are_appended(tmp_path: Path) -> None:
    world = write_pieces(tmp_path / "world")
    whole = {name: json.loads((world / f"{name}.json").read_text()) for name in ("first", "instances")}
    for content in whole.values():
        for image in [image for image in content["images"] if image["id"] in FIRST]:
            content["images"].append({**image, "id": image["id"] + 100, "file_name": f"again-{image['id']}.png"})
            shutil.copy(world / "images" / image["file_name"], world / "images" / f"again-{image['id']}.png")
        copied = [one for one in content["annotations"] if one["image_id"] in FIRST]
        content["annotations"] += [{**one, "id": one["id"] + 1000, "image_id": one["image_id"] + 100} for one in copied]
    for name, content in whole.items():
        (world / f"{'again' if name == 'first' else name}.json").write_text(json.dumps(content))
    run = RunFolder(str(mine_scored(world, tmp_path / "run")))
    assert append_file(tmp_path / "run", world / "again.json")[0].version.known == len(FIRST)
    scores = {
        row.image_id: [
            (pair.noun, pair.similarity, pair.lift, pair.lead, pair.gap, pair.separability) for pair in row.pairs
        ]
        for row in FinishedRun.open(run).all_rows(PairsRow)
    }
    assert [noun for noun, *_ in scores["11"]] == ["square", "disc"]
    assert all(None not in pair for pair in scores["11"])
    assert [scores[f"1{image_id}"] for image_id in ("11", "12")] == [scores[image_id] for image_id in ("11", "12")]


# Filters that look at the whole set.


def test_a_cap_counts_pairs_that_are_there_and_these_stay(world: Path, tmp_path: Path) -> None:
    labels = {"rule": "labels", "max_per_noun": 1}
    run_toy(base_config(world, tmp_path / "run", pairs=labels))
    before = keys(tmp_path / "run")
    append_file(tmp_path / "run", world / "second.json")
    append_file(tmp_path / "run", world / "third.json")
    finished = FinishedRun.open(RunFolder(str(tmp_path / "run")))
    nouns = [row.noun for row in finished.all_rows(SampleRow)]
    assert before <= keys(tmp_path / "run")
    assert sorted(nouns) == ["bar", "disc", "discs", "square"]


def test_a_noun_counts_in_all_versions_and_pairs_that_were_left_out_stay_so(world: Path, tmp_path: Path) -> None:
    run_toy(base_config(world, tmp_path / "run", pairs={"rule": "labels", "min_count": 2}))
    assert keys(tmp_path / "run") == {"11-000"}  # two images say "square", one shows it; "disc" and "bar" are said once
    append_file(tmp_path / "run", world / "second.json")
    assert keys(tmp_path / "run") == {"11-000", "13-000", "13-001"}  # "bar" in 12 and 13: that of 12 stays left out


# Bad input.


def test_images_that_are_there_are_left_out_and_counted(world: Path, run: Path) -> None:
    outcome, _ = append_file(run, write_captions(world, "some", (*FIRST[:2], *SECOND)))
    assert (outcome.version.plan.images, outcome.version.known) == (len(SECOND), 2)
    assert outcome.manifest is not None
    assert outcome.manifest.versions[-1].known == 2
    assert faults(run) == []


def test_nothing_new_is_refused_and_nothing_is_written(world: Path, run: Path) -> None:
    before = hashes(str(run))
    with pytest.raises(InputError, match=r"all 2 images of it are in .*run already; there is nothing to append"):
        append_file(run, write_captions(world, "twice", FIRST[:2]))
    assert hashes(str(run)) == before


def test_an_id_that_means_another_picture_there_is_refused(world: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for toy_id in SECOND:  # other pictures, numbered from 11 as those of the set
        shutil.copy(world / "images" / f"{toy_id:012d}.png", tmp_path / "images" / f"{toy_id - 2:012d}.png")
    images = [{"id": n, "file_name": f"{n:012d}.png", "height": 48, "width": 64} for n in (11, 15)]
    captions = [{"id": n, "image_id": n, "caption": "A bar."} for n in (11, 15)]
    (tmp_path / "other.json").write_text(json.dumps({"images": images, "annotations": captions}))
    with pytest.raises(InputError, match=r"image id 1[15] is that of another picture"):
        append_file(run, tmp_path / "other.json")
    assert not (run / "versions").exists()


def test_a_run_that_is_not_finished_is_refused(world: Path, run: Path) -> None:
    (run / "_SUCCESS").unlink()
    with pytest.raises(IncompleteError, match="not finished"):
        append_file(run, world / "second.json")
    (run / "_SUCCESS").touch()
    (run / "pairs" / "00001.parquet").unlink()
    with pytest.raises(IncompleteError, match=r"cells are missing \(\{'pairs': 1\}\); run `maskmine mine`"):
        append_file(run, world / "second.json")
    (run / "manifest.json").unlink()
    with pytest.raises(IncompleteError, match="not finished"):
        append_file(run, world / "second.json")


def test_another_append_waits_for_one_that_was_stopped(world: Path, run: Path, grown: Path) -> None:
    settings = load_mining(str(run / "mining.yaml"))
    sources = captions_to_append(settings, captions=str(world / "second.json"), images=str(world / "images"))
    with pytest.raises(KeyboardInterrupt):
        append(RunFolder(str(run)), sources, engine=LocalEngine(), observer=StopsAfter(2))
    assert FinishedRun.open_published(RunFolder(str(run))).parts == range(2)  # what was there can be used meanwhile
    status = run_status(RunFolder(str(run)))
    assert (status.complete, status.begun, status.images) == (False, "001", len(FIRST) + len(SECOND))
    assert faults(run) == [
        "captions/00002.parquet: of an append that is not finished; run that, or `maskmine mine`, again"
    ]
    with pytest.raises(IncompleteError, match="version 001, of coco"):
        append_file(run, world / "third.json")
    run_toy(base_config(world, run, shards={"images_per_part": 2}))
    append_file(run, world / "third.json")
    assert hashes(str(run)) == hashes(str(grown))


def test_what_the_set_was_made_by_must_be_there_unchanged(world: Path, run: Path) -> None:
    truth, before = world / "instances.json", (world / "instances.json").read_text()
    try:
        truth.write_text(before + " ")
        with pytest.raises(IncompleteError, match=r"`regions.proposals.annotations` is not what the set was made by"):
            append_file(run, world / "second.json")
    finally:
        truth.write_text(before)
    assert not (run / "versions").exists()


def test_masks_that_are_of_none_of_the_new_images_are_refused_and_nothing_stays(
    world: Path, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    for n in range(5):
        toy.save_picture(tmp_path / "images" / f"new-{n}.png", ("bar",))
        (tmp_path / "images" / f"new-{n}.txt").write_text("A bar.")
    before = hashes(str(run))
    with pytest.raises(InputError, match="names none of the 5 images"):
        append(
            RunFolder(str(run)),
            captions_to_append(load_mining(str(run / "mining.yaml")), captions=str(tmp_path / "images")),
            engine=LocalEngine(),
            observer=Recorder(),
        )
    assert hashes(str(run)) == before


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("notes.txt", "A bar.", "no kind of source is known by this name; give --kind, one of coco, folder, "),
        ("data.json", "{}", " (if it is of another kind than its name says, give --kind)"),
        ("data.csv", "a,b\n1,2\n", " (if it is of another kind than its name says, give --kind)"),
    ],
)
def test_a_file_of_another_kind_than_it_looks_is_refused_with_the_option_that_says_so(
    run: Path, tmp_path: Path, name: str, content: str, words: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as refused:
        captions_to_append(load_mining(str(run / "mining.yaml")), captions=str(tmp_path / name))
    assert words in str(refused.value)
    with pytest.raises(InputError) as refused:
        captions_to_append(load_mining(str(run / "mining.yaml")), captions=str(tmp_path / name), kind="coco")
    assert "--kind)" not in str(refused.value)


def test_a_configuration_with_other_settings_is_refused(
    world: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = world / "other.yaml"
    captions = {"kind": "coco", "annotations": str(world / "second.json"), "images": str(world / "images")}

    def code(**tree: object) -> int:
        config.write_text(json.dumps(tree))
        return run_app(["append", str(run), "--config", str(config)])

    assert code(captions=captions, vocabulary={"templates": "raw"}) == 2
    assert "`vocabulary` is not that of the run" in capsys.readouterr().err
    assert code(vocabulary={}) == 2
    assert "has no `captions`" in capsys.readouterr().err
    assert run_app(["append", str(run)]) == 2
    assert run_app(["append", str(run), "--config", str(config), "--captions", "x"]) == 2
    assert run_app(["append", str(run), "--captions", str(world / "none.csv")]) == 2
    assert "none.csv" in capsys.readouterr().err
    assert not (run / "versions").exists()
    assert code(captions=captions) == 0
    assert "version 001 has 2 images and 2 pairs; the set has 6 images and 5 pairs now" in capsys.readouterr().out


# Processes that are killed.


def test_appends_that_are_killed_at_every_few_writes_come_to_the_same_bytes(
    world: Path, run: Path, mined: Path, tmp_path: Path
) -> None:
    undisturbed = Path(shutil.copytree(mined, tmp_path / "undisturbed"))
    append_file(undisturbed, world / "second.json")
    (tmp_path / "temporary").mkdir()
    ended = subprocess.run(
        program("append_and_die", str(run), str(world / "second.json")),
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(ended.stdout) > 6
    assert hashes(str(run)) == hashes(str(undisturbed))
    assert faults(run) == []
    assert os.listdir(tmp_path / "temporary") == []


# Whoever reads a run.


@pytest.mark.parametrize(
    "words",
    [
        ["status", "RUN"],
        ["verify", "RUN"],
        ["errors", "RUN"],
        ["show", "RUN", "--to", "OUT.png"],
        ["report", "RUN", "--to", "OUT.html"],
        ["duplicates", "RUN"],
        ["evaluate-pairs", "RUN", "--truth", "TRUTH", "--to", "OUT"],
        ["export", "RUN", "--to", "coco", "--out", "OUT"],
        ["export", "RUN", "--to", "hf", "--out", "OUT"],
        ["diff", "BASE", "RUN"],
    ],
    ids=lambda words: " ".join(words[:1] + words[3:4]),
)
def test_every_reader_takes_a_grown_set(
    words: list[str], world: Path, mined: Path, grown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"RUN": str(grown), "BASE": str(mined), "TRUTH": str(world / "instances.json")}
    typed = [places.get(word, word.replace("OUT", str(tmp_path / "out"))) for word in words]
    assert run_app(typed) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    expected = {"status": "8 images in 4 parts, 3 versions: complete", "verify": "7 samples verified"}
    expected["diff"] = "the new set is the old one with what was appended to it: version 001 (2 images), 002 (2 images)"
    assert expected.get(words[0], "") in " ".join(shown.split())
