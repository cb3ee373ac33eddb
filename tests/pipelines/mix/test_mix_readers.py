"""A mix as what reads finished sets takes it: every command, or one line about what a mix has not."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.dataset.finished_run import FinishedRun, read_noun_counts
from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.evaluate.leakage import find_leakage
from maskmine.pipelines.reports.contact_sheet import contact_sheet
from maskmine.pipelines.reports.diff import compare_runs
from maskmine.pipelines.reports.duplicates import find_duplicates
from maskmine.pipelines.run_folder.folder import RunFolder, read_folder
from maskmine.schemas.rows import SampleRow
from maskmine.tuning.clip.data import arrange, open_sets
from maskmine.tuning.clip.settings import Data, Source
from maskmine.tuning.clip.transforms import View
from tests.support import mixes
from tests.support.benchmark_layouts import write_miniature
from tests.support.toy_shards import contents, export

READERS_WARN = pytest.mark.filterwarnings("ignore")  # of much that is not ours


@pytest.fixture(scope="module")
def mixed(sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mixed") / "mix"
    mixes.mix(out, f"{sets['red']}:2", f"{sets['blue']}:1", samples_per_shard=10)
    return out


def said(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


# Readers outside of maskmine.


@READERS_WARN
def test_webdataset_and_open_clips_reader_find_every_pair(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from open_clip_train import data

    # open_clip 3.3 asks for webdataset up to 0.2.86; a newer one ends each tar with a mark that its loader cannot read.
    monkeypatch.setattr(data, "tar_file_expander", partial(data.tar_file_expander, eof_value=None))
    rows = {row["key"]: row["noun"] for row in mixes.index(mixed).to_pylist()}
    tars = sorted(str(path) for path in mixed.glob("shards/*.tar"))
    read = webdataset.WebDataset(tars, shardshuffle=False).decode("pil")
    found = {sample["__key__"]: sample for sample in read}
    assert {key: sample["txt"] for key, sample in found.items()} == rows
    assert all(sample["jpg"].size == sample["mask.png"].size for sample in found.values())
    braces = f"{mixed}/shards/{{00000..{len(tars) - 1:05d}}}.tar"
    assert data.get_dataset_size(braces) == (len(rows), len(tars))  # by sizes.json
    theirs = data.tarfile_to_samples_nothrow(iter([{"url": url} for url in tars]))
    assert sorted(sample["txt"].decode() for sample in theirs) == sorted(rows.values())


@READERS_WARN
def test_the_cards_examples_run_as_they_are_printed(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mixed)
    examples = re.findall(r"```python\n(.*?)```", (mixed / "README.md").read_text(), re.DOTALL)
    ours = [example for example in examples if example.startswith(("import webdataset", "import duckdb"))]
    assert len(ours) == 2
    for example in ours:
        exec(example, {})


@READERS_WARN
def test_catalogues_read_the_records_of_a_mix(mixed: Path) -> None:
    import mlcroissant

    dataset = mlcroissant.Dataset(jsonld=str(mixed / "croissant.json"))
    assert dataset.metadata.ctx.issues.errors == set()
    records = [record["pairs/noun"].decode() for record in dataset.records("pairs")]
    assert sorted(records) == sorted(mixes.index(mixed)["noun"].to_pylist())


@READERS_WARN
def test_hugging_face_reads_the_export(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    out = export(mixed, tmp_path / "hf", "hf")
    pairs = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"), split="train")
    rows = {row["key"]: row["noun"] for row in mixes.index(mixed).to_pylist()}
    assert dict(zip(pairs["key"], pairs["text"], strict=True)) == rows
    assert pairs[0]["image"].size == pairs[0]["mask"].size


# maskmine's own.


def test_exports_name_images_below_the_folders_of_their_sets(
    mixed: Path, sets: dict[str, Path], tmp_path: Path
) -> None:
    out = export(mixed, tmp_path / "coco", "coco")
    (path,) = [path for path in out.rglob("*.json") if path.name != "export.json"]
    names = {image["file_name"] for image in json.loads(path.read_text())["images"]}
    assert names == {row["file"] for row in mixes.origins(mixed)}
    worlds = sets["red"].parent / "worlds"
    assert all((worlds / name.replace("/", "/images/", 1)).exists() for name in names)


@pytest.mark.parametrize("to", ["webdataset", "openclip", "ovseg"])
def test_exports_have_all_pairs_of_a_mix(mixed: Path, to: str, tmp_path: Path) -> None:
    out = export(mixed, tmp_path / "out", to)
    plan = json.loads((out / "export.json").read_text())
    assert plan["splits"]["train"]["samples"] == len(mixes.index(mixed))


def test_an_export_by_licence_never_takes_captions_of_one_name_and_another_licence(
    sets: dict[str, Path], mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both sets call their captions `coco`, under two licences, so neither can be asked for alone."""
    for licences in ("unknown,CC-BY-NC-4.0", "CC-BY-4.0,unknown"):
        command = ["export", str(mixed), "--to", "webdataset", "--out", str(tmp_path / "out"), "--licences", licences]
        assert run_app(command) == 2
        assert "leaves nothing of this run" in said(capsys)
    licences = "unknown,CC-BY-4.0,CC-BY-NC-4.0"
    command = ["export", str(mixed), "--to", "webdataset", "--out", str(tmp_path / "out"), "--licences", licences]
    assert run_app(command) == 0


def test_tuning_reads_a_mix(mixed: Path) -> None:
    data = Data(sources=(Source(folder=str(mixed)),))
    (opened,) = open_sets(data)
    assert len(opened.index) == len(mixes.index(mixed))
    pairs = arrange(
        (opened,), data=data, view=View(32, (0.0,) * 3, (1.0,) * 3, data.crop, data.jitter), batch_size=8, seed=0
    )
    batch = pairs[0]
    assert not isinstance(batch, str), batch
    assert batch.pixels_B3SS.shape == (8, 3, 32, 32)
    assert batch.masks_BSS.any()


def test_show_draws_the_crops_of_a_mix_with_their_masks(mixed: Path, tmp_path: Path) -> None:
    drawn = contact_sheet(read_folder(str(mixed)), to=tmp_path / "sheet.png", images=4)
    assert drawn.images == drawn.pieced == 4
    finished = FinishedRun.open(RunFolder(str(mixed)))
    images = list(finished.images(0))
    rows = finished.rows(0, SampleRow)
    assert [(i.image.image_id, pair.noun) for i in images for pair in i.pairs] == [(r.image_id, r.noun) for r in rows]
    for image in images:
        of_image = [row for row in rows if row.image_id == image.image.image_id]
        for pair, row in zip(image.pairs, of_image, strict=True):
            region = image.regions.regions[pair.region]
            assert (region.mask.box_xyxy, region.mask.area_px) == (row.box_xyxy, row.area_px)
            assert image.captions.captions[pair.caption][pair.start : pair.end].lower() == row.noun.lower()


def test_a_report_of_a_mix_has_its_sets_and_the_command_that_makes_it_again(
    mixed: Path, sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(["report", str(mixed), "--to", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    count = Counter(row["run"] for row in mixes.origins(mixed))
    words = re.sub(r"<[^>]+>", " ", page).split()
    row = words[words.index("red", words.index("asked")) :][:7]
    assert row[:2] == ["red", "66.7%"]
    assert row[4] == str(count["red"])
    assert f"{len(mixes.index(mixed))} pairs of a mask and the noun that names it, mixed from" in " ".join(page.split())
    (command,) = re.findall(r"<code>(maskmine mix [^<]+)</code>", page)
    assert command == "maskmine mix red:2/3 blue:1/3 --out mix --shard-size 10 --bits 6"
    command = command.replace("red:", f"{sets['red']}:").replace("blue:", f"{sets['blue']}:")
    again = [*command.replace("--out mix", f"--out {tmp_path}/again").split()[1:]]
    assert run_app(again) == 0
    assert contents(tmp_path / "again") == contents(mixed)


def test_diff_compares_a_mix_with_a_set_of_it(mixed: Path, sets: dict[str, Path]) -> None:
    difference = compare_runs(read_folder(str(sets["red"])), read_folder(str(mixed)))
    red = sum(row["run"] == "red" for row in mixes.origins(mixed))
    assert difference.new.pairs == len(mixes.index(mixed)) == difference.kept + difference.gained
    assert difference.new.images == red + difference.images_gained
    assert difference.kept == sum(key in mixes.spans(sets["red"]) for key in kept_keys(mixed))


def kept_keys(mixed: Path) -> list[str]:
    red = {row["image_id"] for row in mixes.origins(mixed) if row["run"] == "red"}
    return [row["key"] for row in mixes.index(mixed).to_pylist() if row["image_id"] in red]


def test_duplicates_and_leakage_use_the_hashes_that_a_mix_has(sets: dict[str, Path], tmp_path: Path) -> None:
    mixes.mix(tmp_path / "one", f"{sets['red']}:1")
    mixes.mix(tmp_path / "twice", f"{tmp_path / 'one'}:1", f"{sets['again']}:1", copy_bits=None)
    found = find_duplicates(read_folder(str(tmp_path / "twice")))
    digests = Counter(row["sha256"] for row in mixes.origins(tmp_path / "twice"))
    assert found.copies == sum(count - 1 for count in digests.values()) > 0
    assert all(group.same_bytes for group in found.groups)
    write_miniature("voc20", tmp_path)
    scene = next(row for row in mixes.origins(tmp_path / "one"))
    picture = sets["red"].parent / "worlds" / scene["file"].replace("/", "/images/", 1)
    smaller = Image.open(picture)
    smaller.resize((smaller.width // 2, smaller.height // 2)).save(
        tmp_path / "VOCdevkit/VOC2012/JPEGImages/2007_000042.jpg"
    )
    leakage = find_leakage(read_folder(str(tmp_path / "one")), root=str(tmp_path), names=["voc20"], most_bits=6)
    (shared,) = leakage.benchmarks[0].images.shared  # type: ignore[union-attr]
    assert (shared.name, shared.image_id, shared.way) == ("2007_000042", scene["image_id"], "look")


def test_nouns_of_a_mix_are_counted_by_the_images_that_have_them(mixed: Path) -> None:
    rows = mixes.index(mixed).to_pylist()
    wanted = Counter(noun for noun, _ in {(row["noun"], row["image_id"]) for row in rows})
    assert read_noun_counts(read_folder(str(mixed))) == wanted


def test_status_and_verify_know_a_mix(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["status", str(mixed)]) == 0
    shards = len(list(mixed.glob("shards/*.tar")))
    assert f"in {shards} parts: complete" in said(capsys)
    assert run_app(["errors", str(mixed)]) == 0
    assert "no image was rejected" in said(capsys)
    assert run_app(["verify", str(mixed)]) == 0
    assert f"{len(mixes.index(mixed))} samples verified" in said(capsys)


def test_status_of_a_mix_that_was_stopped_says_what_to_run(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = tmp_path / "mix"
    stopped.mkdir()
    (stopped / "mix.json").write_bytes((mixed / "mix.json").read_bytes())
    assert run_app(["status", str(stopped)]) == 0
    assert "0 images in 0 parts: not complete, run `maskmine mix` again" in said(capsys)
    shutil.copytree(mixed / "shards", stopped / "shards")
    (stopped / "shards/00001.json").unlink()
    assert run_app(["status", str(stopped), "--json"]) == 0
    (step,) = json.loads(said(capsys))["steps"]
    assert step["done"] == len(list(mixed.glob("shards/*.tar"))) - 1


def test_status_counts_the_shards_of_a_mix_that_stand_in_a_table(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = tmp_path / "mix"
    shutil.copytree(mixed, large)
    manifest = json.loads((large / "manifest.json").read_text())
    manifest["shards"] = {"table": "shards.parquet", "rows": 2_000, "sha256": "0" * 64}
    (large / "manifest.json").write_text(json.dumps(manifest))
    there = len(list(mixed.glob("shards/*.tar")))
    assert run_app(["status", str(large), "--json"]) == 0
    (step,) = json.loads(said(capsys))["steps"]
    assert (step["done"], step["cells"], step["missing"]) == (there, 2_000, [*range(there, 2_000)])


@pytest.mark.parametrize(
    ("command", "lacks"),
    [
        ("report {mix} --to {out}/report.html --truth {truth}", "no pairs"),
        ("evaluate-pairs {mix} --truth {truth} --to {out}/evaluation", "no pairs"),
        ("audit {mix}", "no pairs"),
        ("review {mix} --port 0", "no pairs"),
        ("mine {config} --set out={out}/run --regions {mix}", "no plan"),
    ],
)
def test_what_needs_cells_says_in_one_line_that_a_mix_has_none(
    mixed: Path,
    sets: dict[str, Path],
    command: str,
    lacks: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    truth = sets["red"].parent / "worlds/red/instances.json"
    names = {"mix": mixed, "out": tmp_path, "truth": truth, "config": sets["red"].with_suffix(".json")}
    assert run_app([word.format(**names) for word in command.split()]) == 2
    assert f"a mix, which has {lacks}; give a run that it is made of (red, blue)" in said(capsys)


def test_no_run_is_mined_into_a_mix(mixed: Path, sets: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in mixed.rglob("*")}
    assert run_app(["mine", str(sets["red"].with_suffix(".json")), "--set", f"out={mixed}"]) == 5
    assert "belongs to a mix of other sets" in said(capsys)
    assert {path: path.stat().st_mtime_ns for path in mixed.rglob("*")} == before


def test_verify_names_what_is_wrong_with_a_mix_and_sends_to_mix(sets: dict[str, Path], tmp_path: Path) -> None:
    mix = tmp_path / "mix"
    mixes.mix(mix, f"{sets['red']}:2", f"{sets['blue']}:1", samples_per_shard=10)
    origins = mix / "origins/00000.parquet"
    origins.write_bytes((mix / "origins/00001.parquet").read_bytes())
    (mix / "notes.txt").write_text("mine")
    found = [str(problem) for problem in verify_run(RunFolder(str(mix)))]
    again = "delete it and run the same `maskmine mix` again"
    assert found == [
        f"origins/00000.parquet: its SHA-256 is not the one in SHA256SUMS; {again}",
        "notes.txt: is no file of this run; move it away",
        f"origins/00000.parquet: not of the images in the index; {again}",
    ]
    origins.unlink()
    (mix / "notes.txt").unlink()
    mixes.mix(mix, f"{sets['red']}:2", f"{sets['blue']}:1", samples_per_shard=10)
    assert list(verify_run(RunFolder(str(mix)))) == []
