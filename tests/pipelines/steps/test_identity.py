"""The law of identity: for every setting of a run and every file that one names, a change makes exactly the steps again
that depend on it. A setting that is not in the table (`identity_law.txt`) fails.

By fingerprints, without a model; `test_identity_runs.py` has runs.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from maskmine.mining.models.devices import kind_of
from maskmine.pipelines.planning.plan import Plan
from maskmine.pipelines.settings.fingerprints import caption_inputs
from maskmine.pipelines.settings.mining import Mining, load_mining
from maskmine.pipelines.steps.identity import READS, identify, step_fingerprints
from maskmine.schemas.settings import Settings, settings_in
from tests.support.models import WEIGHTS

NOTHING: frozenset[str] = frozenset()
# What depends on a step, the step included, as the README's drawing has it.
SHARDS = frozenset({"shards"})
FILTERS = SHARDS | {"selection"}
PAIRS = FILTERS | {"pairs"}
CHECKS = FILTERS | {"checks"}
NEGATIVES = SHARDS | {"negatives"}
LEVELS = PAIRS | {"levels"}
VOCABULARY = LEVELS | {"vocabulary"}
NOUNS = VOCABULARY | {"nouns"}
EMBEDDINGS = LEVELS | {"embeddings"}
REGIONS = EMBEDDINGS | {"proposals"}
CLIP = EMBEDDINGS | VOCABULARY
MODELS = CLIP | REGIONS
# Settings that change nothing of a set: they say how the work is done, or what stands in the manifest.
HOW, RECORD = "how", "record"
# Settings of the captions, whose change makes the plan look again for images and captions.
PLAN = "plan"

LAW = Path(__file__).with_name("identity_law.txt")
STEPS = {"filters": FILTERS, "pairs": PAIRS, "levels": LEVELS, "vocabulary": VOCABULARY, "nouns": NOUNS}
STEPS |= {"proposals": REGIONS, "embeddings": EMBEDDINGS, "clip": CLIP, "models": MODELS}
STEPS |= {"shards": SHARDS, "checks": CHECKS, "negatives": NEGATIVES, HOW: NOTHING, RECORD: NOTHING}

PROPOSALS: dict[str, dict[str, Any]] = {
    "maskformer": {"kind": "maskformer", "checkpoint": "proposer"},
    "eomt": {"kind": "eomt", "checkpoint": "proposer"},
    "rf_detr": {"kind": "rf_detr", "checkpoint": "proposer"},
    "open_maskformer": {"kind": "open_maskformer", "checkpoint": "open"},
    "sam": {"kind": "sam", "checkpoint": "proposer"},
    "detectron2": {"kind": "detectron2", "config": "config.yaml", "weights": "weights.safetensors"},
    "ground_truth": {"kind": "ground_truth", "annotations": "truth.json", "segments": "segments"},
}
_CHECKPOINT = {"checkpoint": "proposer"}
VERIFIERS: dict[str, dict[str, Any]] = {
    "sam3": {"kind": "sam3", **_CHECKPOINT},
    "owlv2": {"kind": "owlv2", **_CHECKPOINT},
    "mm_grounding_dino": {"kind": "mm_grounding_dino", **_CHECKPOINT},
    "second_clip": {"kind": "clip", "clip": {"model": "clip"}},
    "checked_labels": {"kind": "clip", "clip": {"model": "clip"}},
    "second_architecture": {"kind": "clip", "clip": {"model": "architecture.json"}},
    "open_maskformer_verifier": {"kind": "open_maskformer", "checkpoint": "open", "clip": {"model": "clip"}},
}
WORDNET = "00000001 06 n 02 couch 0 sofa 0 000 | a seat  \n"
CAPTIONS = {"kind": "coco", "annotations": "captions.json", "images": "images"}
MODEL = {"text_cfg": {"hf_tokenizer_name": "anything"}, "vision_cfg": {}, "embed_dim": 8}


def write_world(folder: Path) -> Path:
    """Files of every kind that settings name; nothing is loaded, so models may hold anything."""
    for name in ("proposer", "other_proposer"):
        write(folder / name / "config.json", "{}"), write(folder / name / "preprocessor_config.json", "{}")
        write(folder / name / "model.safetensors", name), write(folder / name / "README.md", "read me")
    for name in ("clip", "other_clip"):
        write(folder / name / "open_clip_config.json", json.dumps({"model_cfg": MODEL}))
        write(folder / name / WEIGHTS, name)
        write(folder / name / "merges.txt", "a b"), write(folder / name / "README.md", "read me")
    for name in ("open", "other_open"):
        texts = {"clip": "clip", "clip_sha256": None, "templates": "raw", "logit_scale": 1.0, "classes": [name]}
        record = {**texts, "hidden": 1, "layers": 1, "pixels": True, "format": 1}
        (
            write(folder / name / "open_vocabulary.json", json.dumps(record)),
            write(folder / name / "head.safetensors", "h"),
        )
        write(folder / name / "config.json", "{}"), write(folder / name / "model.safetensors", "body")
    for name in ("tagger", "other_tagger"):
        meta = {"lang": "xx", "name": "tiny", "version": "1", "pipeline": ["attribute_ruler", "ner"]}
        write(folder / name / "meta.json", json.dumps(meta)), write(folder / name / "config.cfg", "[nlp]")
        write(folder / name / "attribute_ruler" / "patterns", name), write(folder / name / "ner" / "model", "names")
        write(folder / name / "tokenizer", "rules")
    write(folder / "base.yaml", "MODEL: {}"), write(folder / "config.yaml", "_BASE_: base.yaml")
    for name in ("weights.safetensors", "other.safetensors", "other.yaml", "truth.json", "other.json"):
        write(folder / name, json.dumps({name: 1}))
    write(folder / "calibration.json", "{}"), write(folder / "captions.json", '{"images": [], "annotations": []}')
    write(folder / "architecture.json", json.dumps({**MODEL, "text_cfg": {}}))
    write(folder / "images" / "1.jpg", ""), write(folder / "segments" / "1.png", "1")
    write(folder / "other_segments" / "1.png", "2")
    write(folder / "templates.txt", "a {}.\n"), write(folder / "skip.txt", "dog\ncat # a comment\n")
    write(folder / "synonyms.yaml", "person: [man]\n")
    write(folder / "groups.txt", "couch, sofa\n"), write(folder / "wordnet" / "data.noun", WORDNET)
    write(folder / "verdicts.csv", "image_id,noun,mask,verdict\n1,dog,abc,wrong_noun\n")
    return folder


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture(scope="module")
def whole_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def here(whole_world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with files of every kind that tests leave as they are."""
    monkeypatch.chdir(whole_world)
    return whole_world


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same to be changed."""
    monkeypatch.chdir(write_world(tmp_path / "world"))
    return tmp_path / "world"


def settings_of(under: str = "-", **changes: Any) -> Mining:
    """Settings under a proposer or a rule; `changes` by their places, with `__` for a dot."""
    tree: dict[str, Any] = {
        "captions": CAPTIONS,
        "nouns": {"model": "./tagger"},
        "regions": {"proposals": PROPOSALS.get(under, PROPOSALS["maskformer"]), "clip": {"model": "clip"}},
        "out": "run",
    }
    tree["regions"]["device"] = "cpu"
    if under == "architecture":
        tree["regions"]["clip"] = {"model": "architecture.json", "pretrained": "weights.safetensors"}
    if under in VERIFIERS:
        tree["checks"] = {"verifier": VERIFIERS[under]}
    if under in ("labels", "checked_labels"):
        tree["pairs"] = {"rule": "labels"}
    if under == "negatives":
        tree["negatives"] = {}
    if under == "calibrated":
        tree["pairs"] = {"calibration": "calibration.json"}
    Path("mining.yaml").write_text(json.dumps(tree))
    return load_mining("mining.yaml", overrides=[f"{k.replace('__', '.')}={json.dumps(v)}" for k, v in changes.items()])


def prints(settings: Mining, *, urls: bool = True) -> dict[str, str]:
    plan = Plan(100, 2, images_sha256="1", captions_sha256="2", source={}, inputs=None, sources_sha256="3", urls=urls)
    return step_fingerprints(plan, identify(settings))


def changed(one: dict[str, str], other: dict[str, str]) -> set[str]:
    assert one.keys() == other.keys() <= READS.keys()
    return {step for step in one if one[step] != other[step]}


def cases() -> Iterator[Any]:
    for line in LAW.read_text().splitlines():
        if line.startswith("#"):
            continue
        setting, what, under, rest = line.split(maxsplit=3)
        place, _, values = rest.partition(": ")
        one, other = yaml.safe_load(f"[{values}]".replace("SHA", "a" * 64))
        yield pytest.param(what, under, place, one, other, id=setting)


@pytest.mark.parametrize(("what", "under", "place", "one", "other"), [*cases()])
def test_a_change_makes_exactly_what_depends_on_it_again(
    here: Path, what: str, under: str, place: str, one: Any, other: Any
) -> None:
    if place == "nouns.model":
        one, other = f"./{one}", f"./{other}"
    before, after = (settings_of(under, **{place: value}) for value in (one, other))
    assert before != after
    assert changed(prints(before), prints(after)) == STEPS[what]
    if what == RECORD:
        assert identify(before).settings != identify(after).settings, "the manifest has it"


def settings_classes(model: type[Settings], seen: set[type[Settings]]) -> set[type[Settings]]:
    if model not in seen:
        seen.add(model)
        for field in model.model_fields.values():
            for inner in settings_in(field.annotation):
                settings_classes(inner, seen)
    return seen


def test_every_setting_of_a_run_is_in_the_law() -> None:
    declared = {str(case.id) for case in cases()}
    missing = [
        f"{model.__name__}.{name}"
        for model in settings_classes(Mining, set())
        for name, field in model.model_fields.items()
        if not list(settings_in(field.annotation)) and name != "kind"
        if f"{model.__name__}.{name}" not in declared
        and model not in set(settings_in(Mining.model_fields["captions"].annotation))
    ]
    assert missing == [], f"say in {LAW.name} what depends on it"


SOURCES: dict[str, dict[str, Any]] = {
    "CocoCaptions": CAPTIONS,
    "Img2dataset": {"kind": "img2dataset", "files": "tars"},
    "TableCaptions": {"kind": "csv", "files": "captions.csv", "path_col": "path"},
    "HuggingFace": {"kind": "hf", "files": "tables"},
    "Folder": {"kind": "folder", "files": "images"},
    "EarlierRun": {"kind": "run", "files": "earlier"},
}
OTHER: dict[str, Any] = {
    "name": "mine", "annotations": "other.json", "files": "elsewhere", "images": "elsewhere", "per_image": 2,
    "ids": "tar_and_key", "caption_col": "alt", "save_additional_columns": ["url"], "truncated": "keep",
    "id_col": "id", "path_col": "file", "url_col": "url", "image_col": "picture", "captions": False,
    "delimiter": ";", "quoting": "none", "column_names": ["path", "caption"], "encoding": "cp1252",
    "outside": True,
}  # fmt: skip


@pytest.mark.parametrize("source", SOURCES)
def test_the_plan_looks_again_when_any_setting_of_a_source_changes(world: Path, source: str) -> None:
    for folder in ("tars", "tables", "elsewhere", "earlier/images"):
        for suffix in ("tar", "parquet", "csv"):
            write(world / folder / f"00000.{suffix}", folder)
    write(world / "earlier" / "plan.json", "{}"), write(world / "elsewhere" / "plan.json", "{}")
    write(world / "elsewhere/images/00000.parquet", "other"), write(world / "captions.csv", "path,caption\n")
    base = SOURCES[source]
    before = settings_of(captions=base)
    for name in type(before.sources[0]).model_fields:
        if name == "kind":
            continue
        extra = {"path_col": None} if name == "url_col" else {}
        after = settings_of(captions={**base, **extra, name: OTHER[name]})
        looked = [(caption_inputs(one.sources), [list(s.roots) for s in one.sources]) for one in (before, after)]
        assert looked[0] != looked[1], f"{source}.{name}"


# A file, under which settings it is named, and what depends on its content.
FILES = [
    ("tagger/attribute_ruler/patterns", {}, NOUNS),
    ("tagger/config.cfg", {}, NOUNS),
    ("tagger/tokenizer", {}, NOUNS),
    ("tagger/ner/model", {}, NOTHING),  # never used
    ("proposer/model.safetensors", {}, REGIONS),
    ("proposer/config.json", {}, REGIONS),
    ("proposer/preprocessor_config.json", {}, REGIONS),
    ("proposer/README.md", {}, NOTHING),
    (f"clip/{WEIGHTS}", {}, CLIP),
    ("clip/open_clip_config.json", {}, CLIP),
    ("clip/merges.txt", {}, VOCABULARY),  # images have no words
    ("clip/README.md", {}, NOTHING),
    (f"clip/{WEIGHTS}", {"regions.clip.model": "local-dir:clip"}, CLIP),
    ("clip/merges.txt", {"regions.clip.model": "./clip"}, VOCABULARY),
    ("weights.safetensors", {"": "architecture"}, CLIP),
    ("architecture.json", {"": "architecture"}, NOTHING),  # the same JSON
    ("open/head.safetensors", {"": "open_maskformer"}, REGIONS),
    ("open/model.safetensors", {"": "open_maskformer"}, REGIONS),
    ("open/config.json", {"": "open_maskformer"}, REGIONS),
    ("base.yaml", {"": "detectron2"}, REGIONS),
    ("config.yaml", {"": "detectron2"}, REGIONS),
    ("weights.safetensors", {"": "detectron2"}, REGIONS),
    ("truth.json", {"": "ground_truth"}, REGIONS),
    ("segments/1.png", {"": "ground_truth"}, REGIONS),
    ("templates.txt", {"vocabulary.templates": "templates.txt"}, NOTHING),  # a space at the end of a line
    ("skip.txt", {"nouns.skip_words": "skip.txt"}, NOTHING),
    ("synonyms.yaml", {"": "labels", "pairs.synonyms": "synonyms.yaml"}, NOTHING),
    ("calibration.json", {"": "calibrated"}, PAIRS),
]


@pytest.mark.parametrize(("file", "named", "depends"), FILES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_file_that_is_written_again_makes_exactly_what_depends_on_it(
    world: Path, file: str, named: dict[str, str], depends: frozenset[str]
) -> None:
    settings = settings_of(named.pop("", "-"), **named)
    before = prints(settings)
    assert changed(before, prints(settings)) == NOTHING
    text = (world / file).read_text()
    # JSON and YAML stay whole; what is no text of a model changes by a letter of the same length
    text = text + " " if file.endswith((".json", ".yaml", ".txt", ".cfg", ".md")) else text[:-1] + "~"
    about = os.stat(file)
    (world / file).write_text(text)
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))  # as if it had never been written
    if file.endswith("open_clip_config.json"):
        (world / file).write_text(json.dumps({"model_cfg": {**MODEL, "embed_dim": 9}}))
    assert changed(before, prints(settings)) == depends


@pytest.mark.parametrize(
    ("file", "text", "named", "depends"),
    [
        ("templates.txt", "the {}.\n", {"vocabulary.templates": "templates.txt"}, VOCABULARY),
        ("skip.txt", "dog\nhorse\n", {"nouns.skip_words": "skip.txt"}, NOUNS),
        ("skip.txt", "cat\n# another\ndog\n", {"nouns.skip_words": "skip.txt"}, NOTHING),
        ("synonyms.yaml", "person: [woman]\n", {"": "labels", "pairs.synonyms": "synonyms.yaml"}, PAIRS),
        (
            "verdicts.csv",
            "image_id,noun,mask,verdict\n1,dog,abc,bad_mask\n",
            {"shards.verdicts": "verdicts.csv"},
            NOTHING,
        ),
        (
            "verdicts.csv",
            "image_id,noun,mask,verdict\n2,dog,abc,bad_mask\n",
            {"shards.verdicts": "verdicts.csv"},
            FILTERS,
        ),
        ("segments/2.png", "new", {"": "ground_truth"}, REGIONS),
        ("architecture.json", json.dumps({**MODEL, "embed_dim": 16, "text_cfg": {}}), {"": "architecture"}, CLIP),
    ],
)
def test_a_list_counts_by_what_it_says(
    world: Path, file: str, text: str, named: dict[str, str], depends: frozenset[str]
) -> None:
    settings = settings_of(named.pop("", "-"), **named)
    before = prints(settings)
    write(world / file, text)
    assert changed(before, prints(settings)) == depends


def test_names_and_places_do_not_count(world: Path) -> None:
    names = {"proposer": "renamed/p", "clip": "renamed/c", "tagger": "renamed/t", "calibration.json": "renamed.json"}
    under = "calibrated"
    before = settings_of(under)
    first = prints(before), identify(before).settings
    (world / "renamed").mkdir()
    for old, new in names.items():
        shutil.move(world / old, world / new)
    places = ("regions.proposals.checkpoint", "regions.clip.model", "nouns.model", "pairs.calibration")
    after = settings_of(under, **dict(zip(places, names.values(), strict=True)))
    assert changed(first[0], prints(after)) == NOTHING
    assert first[1] != identify(after).settings
    assert str(world) not in json.dumps(identify(after).settings)


def in_hub_cache(cache: Path, repository: str, commit: str, files: dict[str, str]) -> None:
    kept = cache / f"models--{repository.replace('/', '--')}"
    write(kept / "refs" / "main", commit)
    for name, text in files.items():
        write(kept / "snapshots" / commit / name, text)


def test_a_name_on_the_hub_counts_by_what_its_main_is_here(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as hub
    import huggingface_hub.file_download as downloads

    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(world / "hub"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    assert downloads.constants is hub
    proposer = {"config.json": "{}", "preprocessor_config.json": "{}", "model.safetensors": "one"}
    clip = {"open_clip_config.json": json.dumps({"model_cfg": MODEL}), WEIGHTS: "one"}
    changes = {"regions.proposals.checkpoint": "someone/masks", "regions.clip.model": "hf-hub:someone/clip"}
    settings, (first, second, third) = settings_of(**changes), ("1" * 40, "2" * 40, "3" * 40)
    absent = prints(settings)
    in_hub_cache(world / "hub", "someone/masks", first, proposer)
    in_hub_cache(world / "hub", "someone/clip", first, clip)
    before = prints(settings)
    assert changed(absent, before) == MODELS
    in_hub_cache(world / "hub", "someone/masks", second, {**proposer, "README.md": "only this is new"})
    assert changed(before, prints(settings)) == NOTHING
    in_hub_cache(world / "hub", "someone/masks", third, {**proposer, "model.safetensors": "two"})
    assert changed(before, prints(settings)) == REGIONS
    assert prints(settings_of(**changes, **{"regions.proposals.revision": first})) == before
    in_hub_cache(world / "hub", "someone/clip", third, {**clip, WEIGHTS: "two"})
    assert changed(before, prints(settings)) == MODELS
    known = identify(settings).settings
    shutil.rmtree(world / "hub")
    assert step_prints_with(known, settings) == step_prints_with(known, settings_of(**changes))
    assert changed(step_prints_with(known, settings), absent) == MODELS, "what is gone counts as it was known"


def step_prints_with(known: Any, settings: Mining) -> dict[str, str]:
    plan = Plan(100, 2, images_sha256="1", captions_sha256="2", source={}, inputs=None, sources_sha256="3", urls=True)
    return step_fingerprints(plan, identify(settings, known))


def test_a_device_counts_by_its_kind_and_auto_goes_on_as_it_was(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    on = {device: prints(settings_of(**{"regions.device": device})) for device in ("cpu", "cuda", "cuda:1", "auto")}
    assert on["cuda"] == on["cuda:1"] != on["cpu"]
    assert on["auto"] == on[kind_of("auto")]
    known = identify(settings_of(**{"regions.device": "auto"})).settings
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert prints(settings_of(**{"regions.device": "auto"})) == on["cuda"]
    assert step_prints_with(known, settings_of(**{"regions.device": "auto"})) == on["auto"]
    assert step_prints_with(known, settings_of(**{"regions.device": "cuda"})) == on["cuda"]


def test_where_no_model_runs_the_device_does_not_count(here: Path) -> None:
    drawn = {"regions.proposals": PROPOSALS["ground_truth"], "regions.clip": None, "pairs": {"rule": "labels"}}
    one = prints(settings_of(**drawn))
    for change in ({"regions.device": "cuda"}, {"regions.cpu_threads": 9}, {"regions.batch_size": 9}):
        assert prints(settings_of(**drawn, **change)) == one


def test_where_masks_are_annotated_the_device_counts_for_what_clip_sees_in_them(here: Path) -> None:
    drawn = {"regions.proposals": PROPOSALS["ground_truth"]}
    one = prints(settings_of(**drawn))
    assert changed(one, prints(settings_of(**drawn, **{"regions.cpu_threads": 9}))) == CLIP
    assert changed(one, prints(settings_of(**drawn, **{"regions.device": "cuda"}))) == CLIP


def test_without_clip_there_are_no_embeddings(here: Path) -> None:
    labels = settings_of("labels")
    without = prints(settings_of("labels", **{"regions.clip": None}))
    assert READS.keys() - without.keys() == {"embeddings", "checks", "negatives"}
    assert without["proposals"] == prints(labels)["proposals"], "CLIP decides nothing of the masks"


def test_a_verifier_depends_on_proposals_and_on_how_models_run_and_makes_nothing_but_shards_again(here: Path) -> None:
    checked = prints(settings_of("second_clip"))
    before = {step: one for step, one in prints(settings_of()).items() if step not in FILTERS}
    assert before == {step: one for step, one in checked.items() if step not in CHECKS}
    assert changed(checked, prints(settings_of("second_clip", **{"regions.keep.top": 1}))) == REGIONS | CHECKS
    assert changed(checked, prints(settings_of("second_clip", **{"regions.crop.fill": "zero"}))) == EMBEDDINGS
    assert changed(checked, prints(settings_of("second_clip", **{"nouns.unit": "adjectives"}))) == NOUNS
    drawn = {"regions.proposals": PROPOSALS["ground_truth"], "regions.clip": None, "pairs": {"rule": "labels"}}
    one, other = (prints(settings_of("second_clip", **drawn, **{"regions.device": on})) for on in ("cpu", "cuda"))
    assert changed(one, other) == CHECKS
    assert one == step_prints_with(
        identify(settings_of("second_clip", **drawn, **{"regions.device": "cpu"})).settings,
        settings_of("second_clip", **drawn, **{"regions.device": "auto"}),
    )


def test_limits_of_fetching_count_only_where_images_are_fetched(here: Path) -> None:
    one, other = (settings_of(**{"regions.decoding.fetch.redirects": n}) for n in (1, 2))
    assert changed(prints(one, urls=False), prints(other, urls=False)) == NOTHING
