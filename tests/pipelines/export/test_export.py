"""Exports: the same bytes again, what goes into them, and what happens when it cannot."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskmine.mining.exports import export_shards as pieces
from maskmine.mining.exports.filters import Selection, Split, select_rows, split_of
from maskmine.mining.exports.images import Cutout, Pictures, shrink
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.export.export import Export, export_run
from maskmine.pipelines.export.forms import FORMATS
from maskmine.pipelines.export.reader import RunReader
from maskmine.pipelines.run_folder.folder import RunFolder, read_folder
from maskmine.schemas.errors import IncompleteError, InputError, OtherPlanError
from maskmine.schemas.rows import SampleRow
from maskmine.schemas.sample import parse_sample, write_members
from maskmine.schemas.tables import from_table
from maskmine.schemas.wording import counted
from maskmine.scripts.demo_world.draw import draw_world
from tests.support import toy
from tests.support.paths import COCO_MINI
from tests.support.runs import run_toy
from tests.support.toy_shards import (
    contents,
    export,
    halves,
    members,
    samples,
    stored_picture,
    write_toy_shards,
)

WITHOUT_MDS = [name for name in FORMATS if name != "mds"]  # its writer is installed by hand, see docs/exports.md


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small runs of the demo world and, where it is at hand, of real photographs."""
    folder = tmp_path_factory.mktemp("worlds")
    draw_world(folder / "demo", scenes=4, seed=3)
    demo = {"annotations": folder / "demo/captions.json", "images": folder / "demo/images"}
    coco = {"annotations": COCO_MINI / "annotations/captions_train2017.json", "images": COCO_MINI / "train2017"}
    made = {"demo": mine(folder / "of-demo", demo, folder / "demo/instances.json")}
    if COCO_MINI.exists():
        instances = COCO_MINI / "annotations/instances_train2017.json"
        made["coco-mini"] = mine(folder / "of-coco", coco, instances, limit=6)
    return made


def mine(folder: Path, captions: dict[str, Path], instances: Path, *, limit: int | None = None) -> Path:
    """Mine a world with its own masks, by label."""
    folder.mkdir()
    tree = {
        "captions": {"kind": "coco"} | {name: str(path) for name, path in captions.items()},
        "regions": {"proposals": {"kind": "ground_truth", "annotations": str(instances)}, "clip": None},
        "pairs": {"rule": "labels", "synonyms": "coco"},
        "shards": {"images_per_part": 4},
        "out": str(folder / "run"),
    }
    (folder / "mining.yaml").write_text(json.dumps(tree))
    run_toy(folder / "mining.yaml", limit=limit)
    return folder / "run"


# All of them.


@pytest.mark.parametrize("world", ["demo", "coco-mini"])
@pytest.mark.parametrize("to", WITHOUT_MDS)
def test_every_world_goes_through_every_export_and_the_checksums_hold(
    worlds: dict[str, Path], world: str, to: str, tmp_path: Path
) -> None:
    if world not in worlds:
        pytest.skip(f"{COCO_MINI} is not here")
    out = export(worlds[world], tmp_path / "out", to, selection=halves(), samples_per_piece=3)
    sums = dict(reversed(line.split("  ")) for line in (out / "SHA256SUMS").read_text().splitlines())
    found = {name: hashlib.sha256(content).hexdigest() for name, content in contents(out).items()}
    assert sums == {name: digest for name, digest in found.items() if name not in ("SHA256SUMS", "_SUCCESS")}
    plan = json.loads((out / "export.json").read_text())
    assert sum(split["samples"] for split in plan["splits"].values()) == len(list(samples(worlds[world]))) > 5


@pytest.mark.parametrize("to", WITHOUT_MDS)
def test_the_example_of_an_exports_card_runs_as_it_is_printed(
    mined: Path, to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import warnings

    if to == "lvis":
        pytest.importorskip("lvis", reason="lvis needs OpenGL's library (libgl1)", exc_type=ImportError)
    out = export(mined, tmp_path / "out", to)
    monkeypatch.chdir(out)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    (example,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    scope: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(example, scope)
        pairs = scope["pairs"]
        counted = sum(row[1] for row in pairs.fetchall()) if to == "parquet" else None
        counted = len(pairs.getAnnIds()) if to in ("coco", "sa-co") else counted
        counted = len(pairs.anns) if to == "lvis" else counted
        counted = len(pairs) if to in ("ovseg", "hf", "lance") else counted
        assert (len(list(pairs)) if counted is None else counted) == len(toy.PAIRS)


@pytest.mark.parametrize("to", ["openclip", "ovseg", "hf", "webdataset"])
def test_the_same_run_gives_the_same_bytes_and_a_second_call_does_nothing(
    scored: Path, tmp_path: Path, to: str
) -> None:
    settings: dict[str, Any] = {"selection": halves(), "samples_per_piece": 5}
    one, two = (
        export(scored, tmp_path / str(n), to, pictures=Pictures(threads=n, max_side_px=12), **settings) for n in (1, 3)
    )
    assert contents(one) == contents(two)
    asked = Export(format=to, pictures=Pictures(max_side_px=12), **settings)
    assert export_run(read_folder(str(scored)), asked, out=str(one)).size_bytes is None


def test_an_interrupted_export_goes_on_with_what_is_missing(scored: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"samples_per_piece": 4}
    whole = export(scored, tmp_path / "whole", "ovseg-shards", **settings)
    begun, ticks = tmp_path / "begun", 0

    def stop_at_ten(more: int) -> None:
        nonlocal ticks
        ticks += more
        if ticks >= 10:
            raise KeyboardInterrupt

    stopped = Export(format="ovseg-shards", **settings)
    with pytest.raises(KeyboardInterrupt):
        export_run(read_folder(str(scored)), stopped, out=str(begun), begin=lambda _: stop_at_ten)
    first = begun / "train" / "00000.tar"
    made_at = first.stat().st_mtime_ns
    assert not (begun / "_SUCCESS").exists()
    assert not (begun / "train" / "00002.tar").exists()
    export(scored, begun, "ovseg-shards", **settings)
    assert contents(begun) == contents(whole)
    assert first.stat().st_mtime_ns == made_at


def test_run_and_export_may_both_lie_on_an_object_store(scored: Path, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(scored), "/mined/run", recursive=True)
    asked = Export(format="openclip", selection=halves(), samples_per_piece=5)
    here = export_run(read_folder(str(scored)), asked, out=str(tmp_path / "here"))
    assert export_run(read_folder("memory://mined/run"), asked, out="memory://exports/there") == here
    found = {path.removeprefix("/exports/there/"): store.cat(path) for path in store.find("/exports/there")}
    assert found == contents(tmp_path / "here")


# The form of what is written.


def test_webdataset_is_the_runs_samples_as_they_lie_there(scored: Path, tmp_path: Path) -> None:
    out = export(scored, tmp_path / "out", "webdataset", samples_per_piece=7)
    stored = members(*sorted((scored / "shards").glob("*.tar")))
    assert members(*sorted((out / "train").glob("*.tar"))) == stored
    assert json.loads((out / "train" / "sizes.json").read_text()) == {
        "00000.tar": 7,
        "00001.tar": 7,
        "00002.tar": 7,
        "00003.tar": 3,
    }


def test_samples_that_do_not_lie_side_by_side_are_copied_without_what_is_between_them(
    scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {s.row.key: s.image for s in samples(scored) if s.row.noun != "leaf" and int(s.row.image_id) >= 3}
    selection = Selection(without_nouns=("leaf",), min_similarity=0.03)
    for at_once_bytes in (1, 1 << 20):
        monkeypatch.setattr(pieces, "_BLOCK_BYTES", at_once_bytes)
        out = export(scored, tmp_path / str(at_once_bytes), "webdataset", selection=selection, samples_per_piece=8)
        found = members(*sorted((out / "train").glob("*.tar")))
        assert {key: found.get(f"{key}.png") for key in kept} == kept
        assert len(found) == 4 * len(kept)


def test_a_shard_that_became_shorter_is_no_export(scored: Path, tmp_path: Path) -> None:
    folder = RunFolder(str(shutil.copytree(scored, tmp_path / "run")))
    with RunReader(FinishedRun.open_published(folder)) as reader:
        row = from_table(next(reader.tables(Selection())).drop_columns(["split"]), SampleRow)[1]
        reader.read(row)
        os.truncate(folder.path("shards", row.shard), row.offset + 100)
        with pytest.raises(IncompleteError, match=rf"shards/{row.shard}: its SHA-256 is not the one"):
            reader.read_bytes(row.shard, row.offset, row.size_bytes)


def test_smaller_pictures_keep_their_masks_and_say_where_the_box_is(mined: Path, tmp_path: Path) -> None:
    pictures = Pictures(image_format="webp", max_side_px=16)
    found = members(*(export(mined, tmp_path / "out", "webdataset", pictures=pictures) / "train").glob("*.tar"))
    for sample in samples(mined):
        key = sample.row.key
        mask_HW = np.asarray(Image.open(BytesIO(found[f"{key}.mask.png"]))) > 0
        x0, y0, x1, y1 = json.loads(found[f"{key}.json"])["box_crop_xyxy"]
        assert max(mask_HW.shape) == 16
        assert Image.open(BytesIO(found[f"{key}.webp"])).size == mask_HW.shape[::-1]
        assert mask_HW[y0:y1, x0:x1].sum() == mask_HW.sum() > 0


def test_a_mask_that_is_made_smaller_covers_the_same_part_and_does_not_vanish_when_it_is_thin() -> None:
    left_HW, thin_HW = np.zeros((2, 60, 90), bool)
    left_HW[:, :45], thin_HW[40] = True, True
    image = Image.new("RGB", (90, 60))
    left, thin = (
        shrink(Cutout(image, Image.fromarray(mask_HW), (0, 0, 90, 60)), max_side_px=30).mask_array()
        for mask_HW in (left_HW, thin_HW)
    )
    assert left.shape == (20, 30)
    assert left[:, :15].all()
    assert not left[:, 15:].any()
    assert thin.sum() == 30


# What goes in, and where.


def numbers(run: Path, **selection: Any) -> dict[str, list[int]]:
    """The images of each split, by their numbers in the scored run."""
    folder, chosen = RunFolder(str(run)), Selection(**selection)
    found: dict[str, list[int]] = {split.name: [] for split in chosen.splits}
    with RunReader(FinishedRun.open_published(folder)) as reader:
        for table in reader.tables(chosen):
            for split, image_id in zip(table["split"].to_pylist(), table["image_id"].to_pylist(), strict=True):
                found[split].append(int(image_id))
    return found


def test_thresholds_keep_what_reaches_them(scored: Path) -> None:
    assert numbers(scored, min_similarity=0.2) == {"train": [20, 21, 22, 23]}
    assert numbers(scored, min_similarity=0.1, min_margin=0.88) == {"train": [10, 11, 12]}


def test_thresholds_of_lift_evidence_and_confidence_keep_what_reaches_them(tmp_path: Path) -> None:
    run = write_toy_shards(tmp_path / "run", scores=True, confident=True)
    (run / "_SUCCESS").touch()
    assert numbers(run, min_lift=0.12) == {"train": [22, 23]}
    assert numbers(run, min_lift=-1.0) == numbers(run, min_evidence=-99.0) == {"train": list(range(1, 24))}
    assert numbers(run, min_evidence=8.5, min_confidence=0.22) == {"train": [22, 23]}
    assert numbers(run, min_confidence=0.0) == {"train": list(range(24))}


def test_a_pair_without_a_score_reaches_no_threshold(mined: Path) -> None:
    assert numbers(mined, min_similarity=-1.0) == {"train": []}


def test_listed_nouns_are_kept_or_dropped_by_their_text_or_lemma(scored: Path, mined: Path) -> None:
    assert numbers(scored, nouns=("leaf", "sky"), without_nouns=("sky",)) == {"train": list(range(2, 24, 4))}
    assert len(numbers(mined, nouns=("disc",))["train"]) == len(numbers(mined, nouns=("disc", "discs"))["train"]) == 3


def test_held_out_nouns_are_only_in_later_splits_and_no_image_changes_its_split(scored: Path) -> None:
    splits = halves().splits
    plain, held = numbers(scored, splits=splits), numbers(scored, splits=splits, held_out=("leaf",))
    assert held["val"] == plain["val"]
    assert any(number % 4 == 2 for number in held["val"])
    assert held["train"] == [number for number in plain["train"] if number % 4 != 2]


@given(st.lists(st.text(max_size=8), max_size=20), st.integers(0, 9))
def test_the_split_of_an_image_depends_on_its_id_alone_and_grows_with_its_share(ids: list[str], seed: int) -> None:
    small, large = (
        Selection(splits=(Split(name="train", share=share), Split(name="val", share=1 - share)), seed=seed)
        for share in (0.3, 0.6)
    )
    for image_id in ids:
        assert split_of(image_id, small) == split_of(image_id, small)
        assert split_of(image_id, small) == "val" or split_of(image_id, large) == "train"


def test_splits_get_their_shares_of_many_images() -> None:
    found = [split_of(str(number), halves()) for number in range(2000)]
    assert abs(found.count("train") / 2000 - 0.5) < 0.05


def test_another_seed_deals_the_images_anew() -> None:
    ids = [str(number) for number in range(200)]
    one, two = (
        {image_id for image_id in ids if split_of(image_id, halves().model_copy(update={"seed": seed})) == "train"}
        for seed in (0, 1)
    )
    assert 60 < len(one ^ two) < 140


def test_all_pairs_of_an_image_are_in_one_split(worlds: dict[str, Path], tmp_path: Path) -> None:
    out = export(worlds["demo"], tmp_path / "out", "parquet", selection=halves())
    crossed = duckdb.sql(f"SELECT image_id FROM '{out}/*/*.parquet' GROUP BY ALL HAVING count(DISTINCT split) > 1")
    assert crossed.fetchall() == []


def test_a_caption_source_that_is_not_asked_for_is_left_out(mined: Path) -> None:
    folder = RunFolder(str(mined))
    with RunReader(FinishedRun.open_published(folder)) as reader:
        table = next(reader.tables(Selection())).drop_columns(["split"])
    sources = ["mine", *(["theirs"] * (len(table) - 1))]
    named = table.set_column(table.column_names.index("source"), "source", [sources])
    assert len(select_rows(named, Selection(sources=("mine",)))) == 1


def test_captions_under_licences_that_are_not_asked_for_are_left_out(scored: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(scored, tmp_path / "run"))
    manifest = json.loads((run / "manifest.json").read_text())
    for shard in manifest["shards"]:
        path = run / "shards" / shard["name"].replace(".tar", ".parquet")
        table = pq.read_table(path)
        named = ["closed" if int(image_id) % 3 else "free" for image_id in table["image_id"].to_pylist()]
        place = table.column_names.index("source")
        pq.write_table(table.set_column(place, table.schema.field("source"), [named]), path)
        shard["index_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    licences = [("captions", "free", "MIT"), ("captions", "closed", "unknown"), ("images", "all", "MIT")]
    manifest["sources"] = [dict(zip(("role", "name", "licence"), source, strict=True)) for source in licences]
    (run / "manifest.json").write_text(json.dumps(manifest))
    kept = pq.read_table(export(run, tmp_path / "out", "parquet", licences=("MIT",)) / "train" / "00000.parquet")
    assert [int(image_id) for image_id in kept["image_id"].to_pylist()] == list(range(0, 24, 3))


# What cannot be done.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--to", "tfrecord"], "--to tfrecord: unknown; choose one of webdataset"),
        (["--to", "ovseg", "--image-format", "jpg"], "png alone"),
        (["--to", "hf", "--image-format", "gif"], "--image-format: input should be 'jpg', 'png' or 'webp', not 'gif'"),
        (["--to", "hf", "--split", "train=0.5,val=0.4"], "--split: the shares of the splits add up to 0.9"),
        (["--to", "hf", "--split", "train"], "--split train: expected shares such as train=0.9,val=0.1"),
        (["--to", "hf", "--split", "train=0.5,../x=0.5"], "--split: string should match pattern"),
        (["--to", "hf", "--held-out", "sky"], "--held-out: held-out nouns need a second split"),
        (["--to", "hf", "--nouns", "@/nowhere"], "--nouns @/nowhere: cannot be read as a text file"),
        (["--to", "hf", "--nouns", ","], "--nouns ,: names no noun"),
        (["--to", "hf", "--min-similarity", "2"], "--min-similarity: input should be less than or equal to 1, not 2"),
        (["--to", "hf", "--min-lift", "3"], "--min-lift: input should be less than or equal to 2, not 3"),
        (["--to", "hf", "--min-confidence", "95"], "--min-confidence: input should be less than or equal to 1, not 95"),
        (["--to", "hf", "--min-confidence", "0.9"], "have no confidence, as they were mined without a calibration"),
        (["--to", "hf", "--min-evidence", "12"], "the filters leave none of 24 pairs; widen them"),
        (["--to", "hf", "--nouns", "unicorn"], "the filters leave none of 24 pairs; widen them"),
        (["--to", "hf", "--licence-policy", "free"], "--licence-policy: input should be 'any' or 'commercial'"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert run_app(["export", str(scored), *options, "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("maskmine: ")
    assert said in line
    assert not (tmp_path / "out").exists()


def test_crops_wider_than_those_of_the_run_are_refused(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(scored, tmp_path / "run"))
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "settings": {"shards": {"expand_ratio": 1.2}}}))
    out = ["--to", "ovseg", "--out", str(tmp_path / "out")]
    assert run_app(["export", str(run), *out, "--expand", "1.5"]) == 2
    assert "--expand: 1.5, and the crops of" in capsys.readouterr().err
    assert run_app(["export", str(run), *out, "--expand", "1.2"]) == 0


def test_the_command_line_exports_and_says_what_it_wrote(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nouns.txt").write_text("Sky\n\n leaf \n")
    options = ["--nouns", f"@{tmp_path}/nouns.txt", "--split", "train=0.5,val=0.5", "--out", str(tmp_path / "out")]
    options += ["--min-lift", "-0.05", "--min-evidence", "-3"]
    assert run_app(["export", str(scored), "--to", "parquet", *options]) == 0
    said = capsys.readouterr()
    plan = json.loads((tmp_path / "out" / "export.json").read_text())
    assert plan["settings"]["selection"]["nouns"] == ["leaf", "sky"]
    counts = ", ".join(f"{name} {counted(split['samples'], 'pair')}" for name, split in plan["splits"].items())
    assert f"out: {counts}, " in said.out
    assert (tmp_path / "out" / "README.md").read_text().count("lift at least -0.05; evidence at least -3; only 2") == 1
    assert "8/8" in said.err  # 9, 10, 13, 14, …, 22
    assert run_app(["export", str(scored), "--to", "parquet", *options]) == 0
    assert "is complete; nothing to do" in capsys.readouterr().out


def test_what_is_no_run_or_not_finished_is_said(scored: Path, tmp_path: Path) -> None:
    assert run_app(["export", str(tmp_path), "--to", "hf", "--out", str(tmp_path / "out")]) == 2
    begun = Path(shutil.copytree(scored, tmp_path / "run"))
    (begun / "_SUCCESS").unlink()
    with pytest.raises(IncompleteError, match="not finished"):
        export(begun, tmp_path / "out", "hf")
    (begun / "manifest.json").unlink()
    assert run_app(["export", str(begun), "--to", "hf", "--out", str(tmp_path / "out")]) == 4


@pytest.mark.parametrize("name", ["00001.tar", "00001.parquet"])
@pytest.mark.parametrize("fault", ["changed", "missing"])
def test_a_broken_shard_is_named_with_what_to_do(scored: Path, tmp_path: Path, name: str, fault: str) -> None:
    broken = Path(shutil.copytree(scored, tmp_path / "run")) / "shards" / name
    content = bytearray(broken.read_bytes())
    content[len(content) // 2] ^= 1
    broken.write_bytes(content) if fault == "changed" else broken.unlink()
    with pytest.raises(IncompleteError, match=rf"shards/{name}: .*run `maskmine mine` again"):
        export(tmp_path / "run", tmp_path / "out", "webdataset")
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_a_sample_that_is_not_where_the_index_has_it_is_not_read_as_another() -> None:
    row = stored_picture(np.zeros((2, 2, 3), np.uint8), np.ones((2, 2), bool)).row
    tar = BytesIO()
    write_members(tar, [(f"other.{suffix}", b"content") for suffix in ("jpg", "mask.png", "txt", "json")])
    for span in (tar.getvalue(), tar.getvalue()[:700], b"\0" * 2048, b""):
        with pytest.raises(IncompleteError, match=r"a\.tar: sample k-000 is not where the index has it"):
            parse_sample(span, row, path="a.tar")


def test_a_folder_of_something_else_is_left_alone(scored: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"not empty \(thesis.txt lies there\)"):
        export(scored, tmp_path / "out", "hf")
    with pytest.raises(InputError, match="a file; give a folder"):
        export(scored, tmp_path / "out" / "thesis.txt", "hf")
    assert contents(tmp_path / "out") == {"thesis.txt": b"mine"}


def test_a_folder_of_another_export_is_exit_code_5_with_what_differs(scored: Path, tmp_path: Path) -> None:
    out = export(scored, tmp_path / "out", "webdataset")
    with pytest.raises(OtherPlanError, match=r"selection\.min_margin: None there, 0\.5 here"):
        export(scored, out, "webdataset", selection=Selection(min_margin=0.5))
    assert run_app(["export", str(scored), "--to", "openclip", "--out", str(out)]) == 5
