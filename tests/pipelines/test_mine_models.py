"""The whole pipeline with real models, tiny and with random weights: MaskFormer proposes, CLIP matches."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskmine.mining import vocabulary
from maskmine.mining.models.embeddings import unpack
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.steps.status import rejected_images
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import NounsRow, PairsRow, RegionsRow, VocabularyRow
from tests.support import toy
from tests.support.models import save_tiny_clip, save_tiny_models
from tests.support.runs import config, hashes, run_toy, samples


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy_world(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def regions(world: Path) -> dict[str, Any]:
    return save_tiny_models(world)


@pytest.fixture(scope="module")
def finished(world: Path, regions: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    run_toy(config(world, regions, out))
    return out


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_every_noun_of_an_image_with_regions_takes_the_region_of_the_highest_cosine(
    world: Path, regions: dict[str, Any], finished: Path
) -> None:
    run, _, _ = run_toy(config(world, regions, finished))
    assert [str(problem) for problem in verify_run(run)] == []
    text = {row.noun: row.embedding for row in run.read_rows("vocabulary.parquet", row_type=VocabularyRow)}
    checked = 0
    for part in range(3):
        name = f"{part:05d}.parquet"
        nouns = run.read_rows("nouns", name, row_type=NounsRow)
        seen = FinishedRun.open(run).rows(part, RegionsRow)
        for said, found, paired in zip(nouns, seen, run.read_rows("pairs", name, row_type=PairsRow), strict=True):
            if said.rejection or found.rejection:
                continue
            assert {pair.noun for pair in paired.pairs} == {noun.text for noun in said.nouns}
            for pair in paired.pairs:
                similarity = unpack([r.embedding for r in found.regions]) @ unpack([text[pair.noun]])[0]  # type: ignore[list-item]
                assert pair.region == int(np.argmax(similarity))
                assert pair.similarity == pytest.approx(float(similarity.max()), abs=2e-3)
                checked += 1
    assert checked >= 7


def test_the_manifest_names_the_models_with_hash_and_licence(finished: Path) -> None:
    models = {m["role"]: m for m in json.loads((finished / "manifest.json").read_text())["models"]}
    assert models.keys() == {"nouns", "proposals", "clip"}
    assert models["proposals"]["licence"] == "Apache-2.0"
    assert all(len(model["sha256"]) == 64 for model in models.values())


@pytest.mark.parametrize("override", ["regions.batch_size=1", "regions.batch_size=3", "regions.decode_threads=1"])
def test_the_bytes_do_not_depend_on_how_the_work_is_batched(
    world: Path, regions: dict[str, Any], finished: Path, tmp_path: Path, override: str
) -> None:
    run_toy(config(world, regions, tmp_path / "run"), override)
    assert hashes(str(tmp_path / "run")) == hashes(str(finished))


@pytest.mark.parametrize(
    ("override", "steps"),
    [
        ("pairs.min_similarity=0.1", ["shards"]),
        ("pairs.min_margin=0.01", ["shards"]),
        ("pairs.rule=mutual_best", ["pairs", "shards"]),
        ("pairs.score=softmax", ["pairs", "shards"]),
        ("vocabulary.templates=raw", ["vocabulary", "levels", "pairs", "shards"]),
        ("regions.crop.fill=zero", ["embeddings", "levels", "pairs", "shards"]),
    ],
)
def test_a_changed_setting_runs_exactly_the_steps_that_depend_on_it(
    world: Path, regions: dict[str, Any], root: Path, override: str, steps: list[str]
) -> None:
    run, _, recorder = run_toy(config(world, regions, root), override)
    assert recorder.steps == steps
    assert [str(problem) for problem in verify_run(run)] == []


def test_a_threshold_keeps_exactly_the_pairs_above_it(world: Path, regions: dict[str, Any], root: Path) -> None:
    before = samples(run_toy(config(world, regions, root))[0])
    middle = sorted(row.similarity or 0 for row in before)[len(before) // 2]
    after = samples(run_toy(config(world, regions, root), f"pairs.min_similarity={middle}")[0])
    assert {row.key for row in after} == {row.key for row in before if (row.similarity or 0) >= middle}
    assert 0 < len(after) < len(before)


def test_known_nouns_keep_their_embedding_when_captions_change(
    world: Path, regions: dict[str, Any], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[str] = []
    before = {
        row.noun: row.embedding
        for row in run_toy(config(world, regions, root))[0].read_rows("vocabulary.parquet", row_type=VocabularyRow)
    }
    original = vocabulary.embed_nouns

    def spy(nouns: Any, **options: Any) -> Any:
        embedded.extend(nouns)
        return original(nouns, **options)

    monkeypatch.setattr(vocabulary, "embed_nouns", spy)
    tree = json.loads((world / "captions.json").read_text())
    tree["annotations"][0]["caption"] = "A kite beside a square."
    (world / "kites.json").write_text(json.dumps(tree))
    run, _, _ = run_toy(config(world, regions, root), f"captions.annotations={world / 'kites.json'}")
    after = {r.noun: r.embedding for r in run.read_rows("vocabulary.parquet", row_type=VocabularyRow)}
    assert set(embedded) == after.keys() - before.keys()
    assert {noun: after[noun] for noun in before.keys() & after.keys()} == {
        noun: before[noun] for noun in before.keys() & after.keys()
    }


def test_a_clip_without_weights_is_refused_before_any_cell_is_thrown_away(
    world: Path, regions: dict[str, Any], root: Path
) -> None:
    before = hashes(str(root))
    folder = save_tiny_clip(world / "damaged")
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(InputError, match="holds no weights"):
        run_toy(config(world, regions, root), f"regions.clip.model={folder}")
    assert hashes(str(root)) == before


def test_images_without_regions_are_rejected_as_such(world: Path, regions: dict[str, Any], tmp_path: Path) -> None:
    run, outcome, _ = run_toy(config(world, regions, tmp_path / "run"), "regions.keep.min_score=1.0")
    assert outcome.manifest is not None
    assert outcome.manifest.totals.samples == 0
    assert {image.reason for image in rejected_images(run)} == {"no_masks", "no_nouns", "no_caption"}


@pytest.mark.parametrize("place", ["regions.proposals", "checks.verifier"])
def test_a_checkpoint_of_another_model_is_found_before_anything_is_written(
    world: Path, regions: dict[str, Any], tmp_path: Path, place: str
) -> None:
    kind = "sam" if place == "regions.proposals" else "owlv2"
    section = f"{{kind: {kind}, checkpoint: {regions['proposals']['checkpoint']}}}"
    change = f"{place}={section}" if kind == "sam" else f"checks={{verifier: {section}}}"
    with pytest.raises(InputError, match="is a maskformer model; "):
        run_toy(config(world, regions, tmp_path / "run"), change)
    assert not (tmp_path / "run").exists()
