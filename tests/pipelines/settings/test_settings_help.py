"""Help at each setting: descriptions, the table of a section, the JSON schemas, and the configuration of `init`."""

from __future__ import annotations

import csv
import gzip
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from maskmine.mining.models.prompts_file import PromptsRecord
from maskmine.pipelines.cli.configurations import CONFIGURATIONS, Configuration, settings_of
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.engines.beam import BeamEngine
from maskmine.pipelines.engines.ray import RayEngine
from maskmine.pipelines.export.export import Export
from maskmine.pipelines.settings.faults import settings_among, union_members
from maskmine.pipelines.settings.help import json_schema, schema_text, section_help
from maskmine.pipelines.settings.mining import Mining, load_mining
from maskmine.schemas.manifest import Manifest
from maskmine.schemas.settings import ExecutionOnly, IsPath, Settings, marker_of, plain_values
from tests.support import toy
from tests.support.paths import ROOT

PRESETS = sorted((ROOT / "configs").glob("*.yaml"))
# The toy world in place of models that would have to be downloaded.
TOY = (
    "regions.clip=null",
    "pairs.rule=labels",
    "regions.keep.min_area_px=1",
    "max_rejected=1.0",
)


def classes(of: Any) -> Iterator[type[Settings]]:
    """A settings class and all that are within it."""
    for model in settings_among(inner_types(of)):
        yield model
        for field in model.model_fields.values():
            if model not in inner_types(field.annotation):  # a mix is made of sets, which may be mixes
                yield from classes(field.annotation)


def inner_types(annotation: Any) -> list[Any]:
    members = union_members(annotation)
    inner = [argument for kind in members for argument in getattr(kind, "__args__", ())]
    return [*members, *(kind for argument in inner for kind in inner_types(argument))]


def all_settings() -> list[type[Settings]]:
    roots = [*map(settings_of, CONFIGURATIONS), RayEngine, BeamEngine, Export, Manifest, PromptsRecord]
    return sorted({model for root in roots for model in classes(root)}, key=lambda model: model.__qualname__)


@pytest.mark.parametrize("model", all_settings(), ids=lambda model: model.__name__)
def test_every_setting_has_a_description_of_its_own(model: type[Settings]) -> None:
    lacking = [name for name, field in model.model_fields.items() if not (field.description or "").strip()]
    assert lacking == []
    assert model.__doc__


def test_what_only_says_how_is_left_out_and_a_setting_that_once_counted_counts_by_its_default(tmp_path: Path) -> None:
    config = str(toy.write_config(toy.write_toy_world(tmp_path)))
    regions = load_mining(config).regions
    assert plain_values(regions)["cpu_threads"] == 2
    for change in ("batch_size=3", "device=cpu", "cpu_threads=7", "decode_threads=1", "decoding.attempts=9"):
        changed = load_mining(config, overrides=[f"regions.{change}"]).regions
        assert plain_values(changed) == plain_values(regions), change
    assert plain_values(load_mining(config, overrides=["regions.keep.top=3"]).regions) != plain_values(regions)


def test_paths_and_names_are_marked_where_they_stand() -> None:
    fields = Mining.model_fields
    assert marker_of(fields["out"], IsPath) == IsPath()
    assert marker_of(fields["out"], ExecutionOnly) == ExecutionOnly()
    assert marker_of(fields["captions"], IsPath) is None
    segmenter = settings_of("segment").model_fields
    assert marker_of(segmenter["templates"], IsPath) == IsPath(or_name=True, known=("imagenet", "raw", "vild"))
    assert marker_of(segmenter["decoding"], ExecutionOnly) == ExecutionOnly()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_stored_schemas_are_current(name: Configuration) -> None:
    stored = (ROOT / "configs" / "schema" / f"{name}.json").read_text("utf-8")
    command = f"maskmine settings --for {name} --json-schema > configs/schema/{name}.json"
    assert stored == schema_text(settings_of(name), name=name), f"run {command}"


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.name)
def test_a_preset_names_its_schema_and_is_valid_by_it(preset: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    first, *_ = preset.read_text("utf-8").splitlines()
    named = re.fullmatch(r"# yaml-language-server: \$schema=(schema/[\w-]+\.json)", first)
    assert named is not None
    schema = json.loads((preset.parent / named[1]).read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(preset.read_text("utf-8")), schema, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("change", "said"),
    [("regions: {proposals: {kind: magic}, clip: null}", "magic"), ("out: 7", "7 is not of type"), ("zzz: 1", "zzz")],
)
def test_the_schema_refuses_what_a_run_refuses(change: str, said: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    tree = yaml.safe_load((ROOT / "configs" / "coco.yaml").read_text("utf-8")) | yaml.safe_load(change)
    validator = jsonschema.Draft202012Validator(json_schema(Mining, name="mine"))
    assert any(said in error.message for error in validator.iter_errors(tree))


def test_a_section_is_shown_with_type_default_and_description() -> None:
    schema = json_schema(Mining, name="mine")
    rows = {row.key: row for row in section_help(schema, "regions.proposals.sam")}
    assert (rows["points_per_side"].type, rows["points_per_side"].default) == ("integer 1–256", "32")
    assert rows["precision"].type == "auto | float32 | bfloat16 | float16"
    assert (rows["checkpoint"].type, rows["checkpoint"].required) == ("name or path", True)
    assert [row.key for row in section_help(schema, "pairs")] == [
        "best_region_per_noun | mutual_best | one_to_one",
        "labels",
    ]
    (top,) = section_help(schema, "regions.keep.top")
    assert (top.key, top.default) == ("top", "100")
    (workers,) = section_help(json_schema(settings_of("tune"), name="tune"), "prompts.learning_rate")
    assert (workers.default, workers.required) == ("preset", False)


def test_settings_prints_a_table_for_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["settings", "regions.keep"]) == 0
    assert "max_iou" in capsys.readouterr().out
    for name in CONFIGURATIONS:
        assert run_app(["settings", "--for", name]) == 0
        assert "setting" in capsys.readouterr().out
    assert run_app(["settings", "--for", "tune", "--json-schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Configuration of `maskmine tune`"


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("sam", "did you mean `regions.proposals.sam`?"),
        ("regoins", "did you mean `regions`"),
        ("regions.proposals.samm", "`regions.proposals.sam`"),
        ("qqqqqq", "known here: captions, nouns, regions"),
    ],
)
def test_an_unknown_section_is_answered_with_the_nearest(
    section: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(["settings", section]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_the_version_and_the_completion_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["--version"]) == 0
    assert re.fullmatch(r"maskmine \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)
    assert run_app(["--help"]) == 0
    assert "--install-completion" in capsys.readouterr().out


def source_of(kind: str, folder: Path) -> list[str]:
    """The toy world as a source of a kind; the arguments of `init` for it."""
    if kind == "coco":
        toy.write_toy_world(folder)
        return ["coco", "--from", str(folder)]
    toy_images = toy.write_toy_world(folder / "world")
    images = [(toy_images / "images" / f"{image.id:012d}.png", list(image.captions)) for image in toy.IMAGES]
    rows = [{"path": str(path), "caption": captions[0] if captions else None} for path, captions in images]
    table = folder / "table"
    match kind:
        case "folder":
            for path, captions in images:
                path.with_suffix(".txt").write_text("\n".join(captions), "utf-8")
            return ["folder", "--from", str(toy_images / "images")]
        case "jsonl":
            table.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        case "csv":
            with gzip.open(f"{table}.csv.gz", "wt", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, ["path", "caption"])
                writer.writeheader()
                writer.writerows(rows)
            return ["csv", "--from", f"{table}.csv.gz"]
        case "parquet":
            pq.write_table(pa.Table.from_pylist(rows), f"{table}.parquet")
        case "hugging_face":
            stored = [{"image": {"bytes": path.read_bytes(), "path": path.name}, "text": c} for path, c in images]
            pq.write_table(pa.Table.from_pylist(stored), f"{table}.parquet")
        case _:
            raise ValueError(kind)
    return [kind, "--from", f"{table}.{'parquet' if kind == 'hugging_face' else kind}"]


@pytest.mark.parametrize("guessed", [False, True], ids=["named", "guessed"])
@pytest.mark.parametrize("kind", ["coco", "folder", "parquet", "jsonl", "csv", "hugging_face"])
def test_what_init_writes_can_be_mined(
    kind: str, guessed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = source_of(kind, tmp_path / "own")
    assert run_app(["init", *(arguments[1:] if guessed else arguments)]) == 0
    assert "next: maskmine doctor mining.yaml" in capsys.readouterr().out
    settings = load_mining("mining.yaml")
    assert settings.sources[0].kind == {"hugging_face": "hf"}.get(kind, kind)
    if guessed or kind in ("hugging_face", "parquet"):
        return  # the same file as when it is named; images of these have other ids than the annotations
    instances = next((tmp_path / "own").rglob("instances.json"))
    options = [*TOY, f"regions.proposals={{kind: ground_truth, annotations: {instances}}}", "captions.per_image=all"]
    assert run_app(["mine", "mining.yaml", *(word for option in options for word in ("--set", option))]) == 0
    assert (Path(settings.out) / "_SUCCESS").is_file()


def test_init_of_tars_finds_the_captions_beside_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images = toy.write_toy_world(tmp_path / "world") / "images"
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for image in toy.IMAGES[:3]:
            (tmp_path / f"{image.id}.txt").write_text(image.captions[0] if image.captions else "", "utf-8")
            tar.add(images / f"{image.id:012d}.png", f"{image.id}.png")
            tar.add(tmp_path / f"{image.id}.txt", f"{image.id}.txt")
    assert run_app(["init", "--from", "00000.tar"]) == 0
    settings = load_mining("mining.yaml")
    assert (settings.sources[0].kind, settings.nouns.skip_words) == ("img2dataset", "not_visual")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_columns_of_any_name_are_taken_by_their_options(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    toy.save_picture(tmp_path / "bild 1.png", ("square",))
    lines = {
        "csv": "Nr;Bild;Text?\n1;bild 1.png;A square.\n",
        "jsonl": '{"Bild": "bild 1.png", "Text?": "A square."}\n',
    }
    (tmp_path / f"own.{kind}").write_text(lines[kind])
    assert run_app(["init", "--from", f"own.{kind}", "--caption-col", "Text?", "--path-col", "Bild"]) == 0
    (source,) = load_mining("mining.yaml").sources
    stated = plain_values(source)
    assert [stated[name] for name in ("kind", "path_col", "caption_col")] == [kind, "Bild", "Text?"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["folder", "--from", "empty"], "empty: no image in it"),
        (["folder", "--from", "world/images"], "no .txt with captions beside any of them"),
        (["folder", "--from", "nothing"], "nothing: no such file or folder"),
        (["folder", "--from", "world/captions.json"], "not a folder"),
        (["coco", "--from", "world/instances.json"], "no annotation has a `caption`"),
        (["coco", "--from", "world/captions.json", "--images", "empty"], "are not in empty; give --images DIR"),
        (["parquet", "--from", "world/captions.json"], "not of the kind `parquet`"),
        (["parquet", "--from", "broken.parquet"], "cannot be read as parquet"),
        (
            ["csv", "--from", "other.csv"],
            "no column looks like captions among a, b; give --caption-col NAME; "
            "no column names the images among a, b; give --path-col NAME",
        ),
        (
            ["csv", "--from", "other.csv", "--caption-col", "a", "--path-col", "c"],
            "no column `c` among a, b; give --path-",
        ),
        (
            ["folder", "--from", "world", "--path-col", "a"],
            "--path-col: a source of kind `folder` has no column of paths",
        ),
        (["csv", "--from", "lost.csv"], "none of its first images is there"),
        (["csv", "--from", "lost.csv", "--caption-col", "zzz"], "no column `zzz` among path, caption"),
        (["jsonl", "--from", "list.jsonl"], "list.jsonl: entry 0 is no JSON object"),
        (["jsonl", "--from", "nothing.jsonl"], "nothing.jsonl: empty"),
        (["csv", "--from", "nothing.csv"], "nothing.csv: empty"),
        (["csv", "--from", "latin.csv"], "latin.csv: line 2 is no text in utf-8; name the encoding"),
        (["csv", "--from", "unsaid.csv"], "none of its first 1 records has a caption in `caption`; give --caption-col"),
        (["coco", "--from", "elsewhere.json"], "such as lost.png, are not in a folder beside it; give --images DIR"),
        (["coco", "--from", "none.json"], "none.json: `images` is empty"),
        (["parquet", "--from", "bytes.parquet"], "its column `image` holds the images; give the kind `hugging_face`"),
        (["parquet", "--from", "numbers.parquet"], "the record's `path` names no file"),
        (["folder", "--from", "world", "--images", "world"], "--images: a source of kind `folder` holds its images"),
        (
            ["folder", "--from", "world", "--caption-col", "a"],
            "--caption-col: a source of kind `folder` has no columns",
        ),
        (["folder", "--from", "s3://bucket/x"], "--from: `s3://bucket/x` is no path on a disk"),
        (["--from", ""], "--from: `` is no path"),
        (["--from", "mixed"], "(taken for `csv`; if it is another kind, give that)"),
        (["--from", "notes.txt"], "give one of coco, folder"),
        (["magic", "--from", "world"], "magic"),
        (["coco", "--from", "world", "--to", "there.yaml"], "there.yaml: exists; give --force to write over it"),
        (["--from", "nothere.csv", "--to", "there.yaml"], "nothere.csv: no such file or folder"),
    ],
)
def test_init_refuses_what_it_cannot_use_in_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    toy.write_toy_world(tmp_path / "world")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    for name, text in {
        "there.yaml": "out: mine\n",
        "other.csv": "a,b\n1,2\n",
        "lost.csv": "path,caption\nlost.png,A lost dog.\n",
        "list.jsonl": "[1, 2]\n",
        "nothing.jsonl": "\n",
        "nothing.csv": "",
        "unsaid.csv": "path,caption\nthere.yaml,\n",
        "none.json": '{"images": [], "annotations": []}',
        "elsewhere.json": '{"images": [{"id": 1, "file_name": "lost.png"}], "annotations": []}',
        "mixed/notes.csv": "a,b\n",
        "broken.parquet": "PAR1",
        "notes.txt": "notes",
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.csv").write_bytes("path,caption\nthere.yaml,Café\n".encode("latin-1"))
    pq.write_table(pa.table({"image": [b"PNG"], "text": ["A dog."]}), tmp_path / "bytes.parquet")
    pq.write_table(pa.table({"path": [1], "text": ["A dog."]}), tmp_path / "numbers.parquet")
    assert run_app(["init", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "mining.yaml").exists()
    assert (tmp_path / "there.yaml").read_text() == "out: mine\n"


def test_init_passes_over_blank_lines_and_names_the_run_after_the_folder_of_a_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.jsonl").write_text('\n{"path": "a.jsonl", "caption": "A dog."}\n')
    assert run_app(["init", "--from", "web/*.jsonl", "--to", "my web.yaml"]) == 0
    assert "maskmine doctor 'my web.yaml'" in capsys.readouterr().out
    assert load_mining("my web.yaml").out == str(tmp_path / "runs" / "web")


def test_init_says_that_one_of_several_captions_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    toy.write_toy_world(tmp_path / "world")
    image = next(path.relative_to(tmp_path) for path in sorted((tmp_path / "world").rglob("*.png")))
    for captions, said in ((["A disc.", "A bar."], True), (["A disc."], False)):
        rows = (f"{image};{caption}" for caption in captions)
        (tmp_path / "table.csv").write_text("\n".join(["file;caption", *rows]) + "\n")
        assert run_app(["init", "--from", "table.csv", "--force"]) == 0
        assert ("2.0 captions an image, of which the first is read" in capsys.readouterr().err) == said


def test_init_writes_over_a_file_with_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    toy.write_toy_world(tmp_path / "world")
    Path("mining.yaml").write_text("old")
    assert run_app(["init", "coco", "--from", "world", "--force", "--out", "runs/mine"]) == 0
    assert load_mining("mining.yaml").out == str(tmp_path / "runs" / "mine")


def test_init_with_the_demos_models_needs_no_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    toy.write_toy_world(tmp_path / "world")
    assert run_app(["init", "--from", "world", "--models", "demo"]) == 0
    assert "the demo world's models know drawn objects only" in capsys.readouterr().err
    records = load_mining("mining.yaml").regions.records()
    assert [(record.licence, record.sha256 is None) for record in records] == [("CC-BY-SA-4.0", False)] * 2


def test_a_preset_is_found_by_name_and_brings_the_packaged_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = load_mining("coco")
    assert load_mining("configs/coco.yaml") == load_mining("coco.yaml") == expected
    assert expected.out == str(tmp_path / "runs" / "coco")
    demo = load_mining("demo-models")
    assert demo.regions.clip is not None
    assert Path(demo.regions.clip.model, "open_clip_config.json").is_file()
    Path("coco").mkdir()
    assert load_mining("coco") == expected
    Path("coco.yaml").write_text("out: mine\n")  # a file of the user's own comes first
    assert run_app(["mine", "coco.yaml"]) == 2
    assert run_app(["mine", "elsewhere/coco.yaml"]) == 2
