"""What a setting names is changed, and the same command runs again: it makes again what depends on that, and the folder
is then that of a fresh run, byte for byte. `test_identity.py` has the law for every setting, by fingerprints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
from PIL import Image
from safetensors.torch import load_file, save_file

from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.mine import mine
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.mining import load_mining
from maskmine.schemas.errors import IncompleteError, OtherPlanError
from tests.support import toy
from tests.support.models import CLIP, WEIGHTS, save_tiny_clip
from tests.support.runs import FunctionEngine, Recorder, StopsAfter, hashes, run_toy, samples

WORDS = ("square", "disc", "bar", "zebra")


def save_tagger(folder: Path, *, words: tuple[str, ...] = WORDS) -> Path:
    """A pipeline of rules, which takes some words for nouns."""
    nlp = spacy.blank("xx")
    ruler = nlp.add_pipe("attribute_ruler")
    ruler.add([[{"LOWER": {"IN": list(words)}}]], {"POS": "NOUN"})  # type: ignore[attr-defined]
    shutil.rmtree(folder, ignore_errors=True)
    nlp.to_disk(folder)
    return folder


def save_panoptic(world: Path, *, without: str = "") -> None:
    """The toy world's shapes as COCO panoptic annotations; `without` is a shape that is not drawn."""
    numbers = {shape: 10 * (n + 1) for n, shape in enumerate(toy.COLOURS)}
    images, annotations = [], []
    (world / "segments").mkdir(exist_ok=True)
    for image in toy.IMAGES:
        ids_HW3 = np.zeros((toy.HEIGHT_PX, toy.WIDTH_PX, 3), np.uint8)
        for shape in image.shapes:
            ids_HW3[toy.shape_mask(shape), 0] = 0 if shape == without else numbers[shape]
        Image.fromarray(ids_HW3).save(world / "segments" / f"{image.id}.png")
        images.append({"id": image.id, "height": toy.HEIGHT_PX, "width": toy.WIDTH_PX})
        listed = [{"id": numbers[shape], "category_id": toy.CATEGORIES[shape]} for shape in image.shapes]
        annotations.append({"image_id": image.id, "file_name": f"{image.id}.png", "segments_info": listed})
    categories = [{"id": number, "name": name} for name, number in toy.CATEGORIES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (world / "panoptic.json").write_text(json.dumps(content))


def edited(path: Path, change: Callable[[Any], Any]) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def other_weights(folder: Path) -> None:
    weights = {name: value + 0.05 for name, value in load_file(folder / WEIGHTS).items()}
    save_file(weights, folder / WEIGHTS)


def other_tokens(folder: Path) -> None:
    def rotate(tree: Any) -> None:
        vocabulary = tree["model"]["vocab"]
        words = [word for word in vocabulary if not word.startswith("[")]
        numbers = [vocabulary[word] for word in words]
        vocabulary.update(zip(words, [*numbers[1:], numbers[0]], strict=True))

    edited(folder / "tokenizer.json", rotate)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    folder = toy.write_toy_world(tmp_path / "world")
    save_tagger(folder / "tagger")
    save_panoptic(folder)
    (folder / "synonyms.yaml").write_text("bar: [zebra]\n")
    (folder / "templates.txt").write_text("a {}.\n")
    return folder


def config_of(world: Path, out: Path, *, clip: bool = False, panoptic: bool = False, **changes: Any) -> Path:
    proposals: dict[str, Any] = {"kind": "ground_truth", "annotations": str(world / "instances.json")}
    if panoptic:
        proposals |= {"annotations": str(world / "panoptic.json"), "segments": str(world / "segments")}
    regions = {"proposals": proposals, "keep": {"min_area_px": 1}, "clip": None, "device": "cpu"}
    pairs: dict[str, Any] = {"rule": "labels", "synonyms": str(world / "synonyms.yaml")}
    if clip:
        regions["clip"] = {"model": str(world / "clip"), "batch_size": 8}
        pairs = {"rule": "best_region_per_noun"}
        changes["vocabulary"] = {"templates": str(world / "templates.txt")}
    nouns = {"model": str(world / "tagger")}
    return toy.write_config(world, out=out, regions=regions, pairs=pairs, nouns=nouns, **changes)


ALL_NOUNS = ["nouns", "vocabulary", "pairs", "shards"]
LABELS: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "tagger": (lambda world: save_tagger(world / "tagger", words=WORDS[1:]), ALL_NOUNS),
    "synonyms": (lambda world: (world / "synonyms.yaml").write_text("disc: [zebra]\n"), ["pairs", "shards"]),
    "truth": (
        lambda world: edited(world / "instances.json", lambda tree: tree["annotations"].pop(0)),
        ["proposals", "pairs", "shards"],
    ),
    "panoptic": (lambda world: save_panoptic(world, without="disc"), ["proposals", "pairs", "shards"]),
}
CLIPS: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "templates": (lambda world: (world / "templates.txt").write_text("the {}.\n"), ["vocabulary"]),
    "tokenizer": (lambda world: other_tokens(world / "clip"), ["vocabulary"]),
    "weights": (lambda world: other_weights(world / "clip"), ["vocabulary", "embeddings"]),
}


@pytest.mark.parametrize("named", LABELS)
def test_what_is_named_is_changed_and_the_folder_is_that_of_a_fresh_run(
    world: Path, tmp_path: Path, named: str
) -> None:
    change, steps = LABELS[named]
    config = config_of(world, tmp_path / "run", panoptic=named == "panoptic")
    run, _, _ = run_toy(config)
    before = hashes(run.root)
    change(world)
    _, _, again = run_toy(config)
    assert again.steps == steps
    fresh, _, _ = run_toy(config, f"out={tmp_path / 'fresh'}")
    assert hashes(run.root) == hashes(fresh.root) != before
    assert FinishedRun.open(run).manifest.fingerprint == FinishedRun.open(fresh).manifest.fingerprint
    tars = [name for name in before if name.endswith(".tar")]
    assert [before[name] for name in tars] != [hashes(run.root)[name] for name in tars], "the data differ"


def test_what_clip_is_made_of_is_changed_and_the_folder_is_that_of_a_fresh_run(world: Path, tmp_path: Path) -> None:
    text = {"context_length": 24, "vocab_size": 1608, "width": 32, "heads": 2, "layers": 2, "hf_tokenizer_name": "own"}
    save_tiny_clip(world / "clip", text_cfg=text)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(CLIP / name, world / "clip" / name)
    config = config_of(world, tmp_path / "run", clip=True)
    run, _, _ = run_toy(config, limit=4)
    for name, (change, first) in CLIPS.items():
        before = hashes(run.root)
        change(world)
        _, _, again = run_toy(config, limit=4)
        assert again.steps == [*first, "levels", "pairs", "shards"], name
        assert hashes(run.root)["vocabulary.parquet"] != before["vocabulary.parquet"]
    fresh, _, _ = run_toy(config, f"out={tmp_path / 'fresh'}", limit=4)
    assert hashes(fresh.root).items() <= hashes(run.root).items()  # beside it, what the CLIPs before it saw
    written = [run.read_bytes(file).decode() for file in ("manifest.json", "README.md", "croissant.json")]
    assert not [text for text in written if str(tmp_path) in text], "no paths"


def test_a_set_is_never_made_of_two_models(world: Path, tmp_path: Path) -> None:
    config = config_of(world, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        mine(load_mining(str(config)), engine=LocalEngine(), observer=StopsAfter(2))
    save_tagger(world / "tagger", words=WORDS[1:])
    run, _, _ = run_toy(config)
    fresh, _, _ = run_toy(config, f"out={tmp_path / 'fresh'}")
    assert hashes(run.root) == hashes(fresh.root)


def test_a_model_that_is_replaced_while_the_run_goes_on_is_told(world: Path, tmp_path: Path) -> None:
    def replace_then_run(*args: Any) -> None:
        LocalEngine().run(*args)
        save_tagger(world / "tagger", words=WORDS[1:])

    settings = load_mining(str(config_of(world, tmp_path / "run")))
    with pytest.raises(IncompleteError, match=r"what `nouns\.model` names has changed while the run went on"):
        mine(settings, engine=FunctionEngine(replace_then_run), observer=Recorder())
    assert not RunFolder(settings.out).exists("_SUCCESS")


def test_a_licence_that_is_stated_later_makes_nothing_again(world: Path, tmp_path: Path) -> None:
    config = config_of(world, tmp_path / "run")
    run, _, _ = run_toy(config)
    before = hashes(run.root)
    stated = ("regions.proposals.licence=CC-BY-4.0", "licences.pictures=CC0-1.0")
    _, outcome, again = run_toy(config, *stated)
    assert again.made == []
    assert outcome.manifest is not None
    assert {"CC-BY-4.0", "CC0-1.0"} <= set(outcome.manifest.licences)
    changed = {name for name, digest in hashes(run.root).items() if digest != before[name]}
    assert changed == {"manifest.json", "README.md", "croissant.json", "SHA256SUMS", "identity.json"}
    settings = load_mining(str(config), overrides=[f"out={tmp_path / 'new'}"])
    recorder = Recorder()
    mine(settings, engine=LocalEngine(), observer=recorder, regions_from=run.root)
    assert "proposals" not in recorder.steps
    assert run_toy(config, *stated)[1].manifest is None, "nothing to do"


def test_a_data_set_that_was_moved_with_its_configuration_goes_on(world: Path, tmp_path: Path) -> None:
    run_toy(config_of(world, tmp_path / "world" / "run"))
    moved = tmp_path / "elsewhere" / "world"
    moved.parent.mkdir()
    shutil.move(world, moved)
    config = config_of(moved, moved / "run", shards={"images_per_part": 3, "quality": 80})
    run, outcome, again = run_toy(config)
    assert again.steps == ["shards"]
    assert outcome.manifest is not None
    assert outcome.manifest.totals.faults == {}
    fresh, _, _ = run_toy(config, f"out={tmp_path / 'fresh'}")
    assert hashes(run.root) == hashes(fresh.root)


@pytest.mark.parametrize("kind", ["coco", "csv"])
def test_another_folder_of_other_pictures_is_seen(world: Path, tmp_path: Path, kind: str) -> None:
    captions: dict[str, Any] = {"kind": "coco", "annotations": str(world / "captions.json")}
    if kind == "csv":
        lines = [f"{image.id},{image.id:012d}.png,A square." for image in toy.IMAGES]
        (world / "captions.csv").write_text("\n".join(["id,file,caption", *lines]))
        captions = {"kind": "csv", "files": str(world / "captions.csv"), "path_col": "file", "id_col": "id"}
    config = config_of(world, tmp_path / "run", captions={**captions, "images": str(world / "images")})
    run, _, _ = run_toy(config)
    before = hashes(run.root)
    same, other = tmp_path / "same" / "images", tmp_path / "other" / "images"
    for folder in (same, other):
        shutil.copytree(world / "images", folder)
    toy.save_picture(other / f"{11:012d}.png", ("bar",))
    with pytest.raises(OtherPlanError, match="belongs to other pictures"):
        run_toy(config, f"captions.images={other}", "shards.quality=80")
    assert hashes(run.root) == before
    _, _, again = run_toy(config, f"captions.images={same}", "shards.quality=80")
    assert again.steps == ["shards"]


@pytest.mark.parametrize("file", ["00001.json", "00001.parquet"])
def test_a_file_of_a_shard_that_was_cut_off_is_made_again(world: Path, tmp_path: Path, file: str) -> None:
    config = config_of(world, tmp_path / "run")
    run, _, _ = run_toy(config)
    before, path = hashes(run.root), Path(run.path("shards", file))
    path.write_bytes(path.read_bytes()[:100])
    run.delete("_SUCCESS")
    run_toy(config)
    assert hashes(run.root) == before
    assert run.read_json("shards", "00001.json")["part"] == 1
    assert samples(run)
