"""Every fault of a configuration is one line with its place and what was expected there."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import yaml

from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.engines.choose import choose_engine
from maskmine.pipelines.planning.plan import Plan
from maskmine.pipelines.serve.service import Serving
from maskmine.pipelines.settings.faults import SettingsError, locate, nearest
from maskmine.pipelines.settings.fingerprints import portable
from maskmine.pipelines.settings.mining import Mining, dump_yaml, load_mining, load_settings
from maskmine.pipelines.steps.identity import Identity, region_fingerprints, step_fingerprints
from maskmine.schemas.errors import InputError
from maskmine.schemas.settings import Settings
from maskmine.tuning.clip.settings import Tuning
from maskmine.tuning.evaluation.region_accuracy import RegionEvaluation
from maskmine.tuning.open_vocabulary.settings import ProposalTraining
from maskmine.tuning.segmentation.segmenter import Segmenter
from tests.support.paths import ROOT

KINDS: dict[str, type[Settings]] = {
    "tune": Tuning,
    "train": ProposalTraining,
    "evaluate": RegionEvaluation,
    "segment": Segmenter,
    "serve": Serving,
}
GOOD = """\
captions: {kind: coco, annotations: captions.json, images: photos}
regions:
  proposals: {kind: ground_truth, annotations: instances.json}
  clip: null
pairs:
  rule: labels
out: run
"""


def load(folder: Path, text: str = GOOD, *overrides: str) -> Mining:
    config = folder / "mining.yaml"
    config.write_text(text)
    return load_mining(str(config), overrides=overrides)


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_preset_loads_and_survives_its_own_resolved_form(config: Path) -> None:
    of = KINDS.get(config.name.partition("-")[0].removesuffix(".yaml"), Mining)
    settings = load_mining(str(config)) if of is Mining else load_settings(of, str(config))
    assert of.model_validate(yaml.safe_load(dump_yaml(settings)), strict=False) == settings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace("images:", "imagse:"), "line 1: captions.imagse: unknown setting; did you mean `images`?"),
        (GOOD + "shards: {zzz: 1}\n", "line 8: shards.zzz: unknown setting; known here: expand_ratio, image_format"),
        (GOOD + "nouns: {model: 7}\n", "line 8: nouns.model: input should be a valid string, not 7"),
        (GOOD + "shards: {quality: '95'}\n", "shards.quality: input should be a valid integer, not '95'"),
        (GOOD + "shards: {quality: 101}\n", "shards.quality: input should be less than or equal to 100, not 101"),
        (GOOD.replace("out: run\n", ""), "out: missing; add it"),
        (
            GOOD.replace("rule: labels", "rule: best"),
            "line 5: pairs: rule `best` is unknown; choose one of best_region_per_noun",
        ),
        (
            GOOD.replace("kind: ground_truth", "kind: magic"),
            "kind `magic` is unknown; choose one of maskformer, open_maskformer, eomt, rf_detr, sam, detectron2, "
            "ground_truth",
        ),
        (GOOD.replace("clip: null", "clip: {model: ViT-B-16, pretained: openai}"), "did you mean `pretrained`?"),
        (GOOD.replace("rule: labels", "rule: best_region_per_noun"), "regions.clip"),
        (
            GOOD.replace("rule: labels", "rule: labels\n  min_margin: 0.1"),
            "line 7: pairs.min_margin: a setting of `rule: best_region_per_noun | mutual_best | one_to_one`, "
            "which `rule: labels` does not have",
        ),
        (
            GOOD + "nouns: {skip_words: [no, ball]}\n",
            "line 8: nouns.skip_words.0: a text is expected, and YAML reads no",
        ),
        ("- a\n", "has no settings"),
        ("a: [\n", "not valid YAML, line 2, column 1: while parsing a flow node"),
        ("a: b\n\tc: d\n", "look there and in the line above for spaces at the beginning (no tabs)"),
        (GOOD + "shards:\n  quality: 80\n  quality: 90\n", "line 10: `quality` is set in line 9 too; remove one"),
        ("a: &a [*a]\n", "an alias that holds itself"),
        ("captions: [[1]]\n", "line 1: captions.0: a section, with settings as `key: value` below it, not [1]; /"),
        ("", "has no settings"),
    ],
)
def test_a_fault_is_named_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=r"mining\.yaml") as caught:
        load(tmp_path, text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_faults_are_told_at_once_a_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = GOOD.replace("images: photos", "imagse: photos").replace("out: run\n", "shards: {quality: 101, zzz: 1}\n")
    text = text.replace("kind: coco, ", "kind: coco, per_image: some, ")
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text)
    config = tmp_path / "mining.yaml"
    assert set(caught.value.args) == {
        f"{config}, line 1: captions.imagse: unknown setting; did you mean `images`?",
        f"{config}, line 1: captions.per_image: input should be a valid integer or 'all', not 'some'",
        f"{config}, line 7: shards.quality: input should be less than or equal to 100, not 101",
        f"{config}, line 7: shards.zzz: unknown setting; known here: "
        "expand_ratio, image_format, images_per_part, quality, threads, verdicts",
        f"{config}: out: missing; add it",
    }
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args
    assert run_app(["mine", str(config)]) == 2
    assert [line for line in capsys.readouterr().err.splitlines() if not line.startswith("maskmine: ")] == []


@pytest.mark.parametrize(
    ("location", "path"),
    [
        (("captions", "sources", 1, "folder", "files"), "captions.1.files"),
        (("captions", "one source", "parquet", "per_image", "literal['all']"), "captions.per_image"),
        (("regions", "proposals", "sam", "zzz"), "regions.proposals.zzz"),
        (("pairs", "labels", "take"), "pairs.take"),
        (("licences", "captions", "dict[str,str]", "web"), "licences.captions.web"),
        (("nouns", "skip_words", "tuple[str, ...]", 2), "nouns.skip_words.2"),
    ],
)
def test_the_choice_of_a_union_is_no_part_of_the_place_of_a_fault(location: tuple[int | str, ...], path: str) -> None:
    assert ".".join(locate(Mining, location)[0]) == path


def test_a_kind_that_is_missing_is_named_with_its_choices(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"proposals\.kind: missing, choose one of maskformer, open_maskformer"):
        load(tmp_path, GOOD.replace("kind: ground_truth, ", ""))


def test_all_that_is_missing_is_told_in_one_answer(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, "nouns: {}\n")
    sources = "coco, img2dataset, parquet, jsonl, csv, tsv, hf, folder, run, endpoint, florence2"
    config = tmp_path / "mining.yaml"
    assert caught.value.args == (
        f"{config}: captions.kind: missing, choose one of {sources}",
        f"{config}: regions.proposals.kind: missing, choose one of maskformer, open_maskformer, eomt, rf_detr, sam, "
        "detectron2, ground_truth",
        f"{config}: regions.clip: missing; add it",
        f"{config}: out: missing; add it",
    )
    with pytest.raises(SettingsError, match=f"captions.1.kind: missing, choose one of {sources}"):
        load(tmp_path, GOOD.replace("captions: {", "captions: [{").replace("images: photos}", "images: photos}, {}]"))
    with pytest.raises(SettingsError, match=f"captions.kind: missing, choose one of {sources}"):
        load(tmp_path, GOOD.replace("kind: coco, annotations: captions.json, ", ""))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["gpu_worker=1"], "--engine-opt gpu_worker: unknown setting; did you mean `gpu_workers`?"),
        (["cpu_workers=many"], "--engine-opt cpu_workers: input should be a valid integer, not 'many'"),
    ],
)
def test_an_engines_option_that_is_misspelt_is_told_its_near_name(options: list[str], line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        choose_engine("ray", options=options)
    assert caught.value.args == (line,)
    with pytest.raises(InputError, match=r"--engine rya: unknown; did you mean `ray`\?"):
        choose_engine("rya")


@pytest.mark.parametrize("known", [["min_similarity"], ["min_similarity", "min_similarities"]])
def test_the_word_that_was_given_is_never_the_one_that_may_be_meant(known: list[str]) -> None:
    assert "`min_similarity`" not in nearest("min_similarity", known)


REGIONS = {
    "proposals": {"kind": "maskformer", "checkpoint": {"name": "m", "sha256": "a"}},
    "keep": {"top": 100},
    "clip": {"model": {"name": "c", "sha256": "b"}, "tokenizer": {"sha256": "t"}, "licence": None},
    "crop": {"fill": "mean"},
    "device": "cpu",
    "batch_size": None,
    "cpu_threads": 2,
    "max_image_pixels": 9,
}


def test_the_fingerprint_of_each_step_is_that_of_earlier_versions() -> None:
    steps = ("nouns", "vocabulary", "levels", "pairs", "selection", "shards")
    by_step = {step: ({"of": step},) for step in steps}
    identity = Identity({"regions": REGIONS, "pairs": {}}, by_step, text="text", fetching=("limits",))
    plan = Plan(2000, 2, images_sha256="1", captions_sha256="2", source={}, inputs=None, sources_sha256="3")
    prints = step_fingerprints(plan, identity)
    assert list(prints) == ["proposals", "embeddings", *steps]
    assert {step: whole[:16] for step, whole in prints.items()} == {
        "nouns": "9a2825a36dc5ea7e",
        "vocabulary": "bf81561fecde2588",
        "proposals": "473136e06f8f5e7c",
        "embeddings": "a9bcc74350af8522",
        "levels": "0030ee0398b4b4b3",
        "pairs": "ad59e9598b188fde",
        "selection": "8c2b9d7780c140af",
        "shards": "14695e1277bac457",
    }


@pytest.mark.parametrize(("urls", "expected"), [(False, "356580c7bca83ea4"), (True, "8c40e66ed7ddd5fd")])
def test_the_regions_of_earlier_versions_are_known_by_their_fingerprint(urls: bool, expected: str) -> None:
    plan = Plan(2000, 2, images_sha256="1", captions_sha256="2", source={}, inputs=None, sources_sha256="3", urls=urls)
    assert region_fingerprints(plan, REGIONS, fetching=("limits",))["regions"][:16] == expected


def test_a_bare_name_is_a_path_where_something_of_that_name_lies_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("weights", "vild", "dog", "openai"):
        (tmp_path / name).mkdir()
    (tmp_path / "t.txt").write_text("a {}.")
    text = GOOD.replace("clip: null", "clip: {model: weights, pretrained: openai}")
    changes = ("nouns.skip_words=[dog]", "vocabulary.templates=t.txt")
    settings = load(tmp_path, text, *changes)
    assert settings.regions.clip is not None
    assert settings.regions.clip.model == str(tmp_path / "weights")
    assert settings.regions.clip.pretrained == "openai", "a tag, whatever folder is called so"
    assert settings.vocabulary.templates == str(tmp_path / "t.txt")
    assert settings.nouns.skip_words == ("dog",)
    assert load(tmp_path, text, "vocabulary.templates=vild").vocabulary.templates == "vild"
    marked = load(tmp_path, text, "regions.clip.model=local-dir:weights").regions.clip
    assert marked is not None
    assert marked.model == f"local-dir:{tmp_path / 'weights'}"


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file; .*preset: coco, .*, paper, permissive$") as caught:
        load_mining(str(tmp_path / "none.yaml"))
    assert "tune" not in str(caught.value)
    with pytest.raises(InputError, match=r"preset: train-proposals-r101c, train-proposals-swin-b$"):
        load_settings(ProposalTraining, str(tmp_path / "none.yaml"))
    (tmp_path / "picture.yaml").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(InputError, match="cannot be read as a text file"):
        load_mining(str(tmp_path / "picture.yaml"))
    with pytest.raises(InputError, match="is a folder; give a configuration in YAML"):
        load_mining(str(tmp_path))


def test_a_configuration_of_another_command_is_one_fault() -> None:
    with pytest.raises(InputError, match="tune-demo: a configuration of another command") as caught:
        load_mining("tune-demo")
    assert len(caught.value.args) == 1


def test_overrides_reach_into_the_tree_and_are_checked_like_the_file(tmp_path: Path) -> None:
    settings = load(tmp_path, GOOD, "shards.quality=80", "captions.per_image=all", "max_rejected=0.5")
    assert (settings.shards.quality, settings.captions.per_image, settings.max_rejected) == (80, "all", 0.5)
    clip = load(tmp_path, GOOD, "regions.clip.model=ViT-B-16").regions.clip
    assert clip is not None
    assert clip.model == "ViT-B-16"  # in the place of null
    for override, said in [
        ("shards.qualty=80", "--set shards.qualty: unknown setting; did you mean `quality`?"),
        ("captions={kind: coco, images: 5}", "--set captions.images: input should be a valid string, not 5"),
        ("max_rejected=2", "--set max_rejected: input should be less than"),
        (
            "regions.crop.antialias_above=.inf",
            "--set regions.crop.antialias_above: input should be a finite number, not inf",
        ),
        (
            "regions.decoding.timeout_s=.nan",
            "--set regions.decoding.timeout_s: input should be a finite number, not nan",
        ),
        ("shards", "expected key=value"),
        ("out.deep=1", "is a value, and has no settings of its own"),
        ("shards.quality=[", "not valid YAML"),
    ]:
        with pytest.raises(InputError) as caught:
            load(tmp_path, GOOD, override)
        assert said in str(caught.value)


def test_numbers_have_exponents_as_json_writes_them_and_texts_stay_texts(tmp_path: Path) -> None:
    settings = load(tmp_path, GOOD + "nouns: {skip_words: ['1e-1', 1e]}\n", "max_rejected=1e-1")
    assert settings.max_rejected == 0.1
    assert settings.nouns.skip_words == ("1e-1", "1e")
    assert load(tmp_path, dump_yaml(settings)) == settings


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load(tmp_path)
    assert settings.out == str(tmp_path / "run")
    assert settings.captions.images == str(tmp_path / "photos")
    remote = load(tmp_path, GOOD.replace("out: run", "out: s3://bucket/run"))
    assert remote.out == "s3://bucket/run"


def test_what_a_setting_stands_for_is_the_content_of_its_file_wherever_it_lies(tmp_path: Path) -> None:
    values = []
    for name, content in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "captions.json").write_text(content)
        text = GOOD.replace("captions.json", str(tmp_path / name / "captions.json"))
        values.append(portable(load(tmp_path, text).captions))
    assert values[0] == values[1] != values[2]
    assert str(tmp_path) not in str(values)
