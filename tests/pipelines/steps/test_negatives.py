"""A run with negatives: in every sample and in exports, made again alone, and without them the set is what it was."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.reports.report import make_report, render_report
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.steps.status import run_status
from maskmine.schemas.sample import WHOLE_VERSION, record_keys
from tests.support import toy
from tests.support.models import save_tiny_clip
from tests.support.runs import config, hashes, run_toy, samples
from tests.support.toy_shards import export

pytestmark = pytest.mark.usefixtures("one_tagger")

EVERY = {"min_images": 1, "min_separability": 0.0, "max_agreement": 1.0, "margin": 0.0}
MADE_AGAIN = {(step, part) for step in ("negatives", "shards") for part in range(3)}
OFF = "negatives=null"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = toy.write_toy_world(tmp_path_factory.mktemp("negatives"))
    save_tiny_clip(world / "clip", seed=1)
    return world


def config_of(world: Path, out: Path, **changes: Any) -> Path:
    regions = {
        "proposals": {"kind": "ground_truth", "annotations": str(world / "instances.json")},
        "keep": {"min_area_px": 1},
        "clip": {"model": str(world / "clip")},
        "device": "cpu",
        "decode_threads": 1,
    }
    return config(world, regions, out, negatives={**EVERY, **changes})


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with negatives, which tests leave as it is."""
    out = tmp_path_factory.mktemp("run") / "run"
    run_toy(config_of(world, out))
    return out


def test_samples_and_index_name_nouns_that_the_image_does_not_say(run: Path) -> None:
    folder = RunFolder(str(run))
    finished = FinishedRun.open(folder)
    assert finished.manifest.format_version == WHOLE_VERSION
    of_image = {row.image_id: row.negatives for row in samples(folder)}
    assert sum(map(len, of_image.values())) > 5
    for row in samples(folder):
        record = json.loads(finished.sample(row).record_json)
        assert record.keys() == record_keys(WHOLE_VERSION)
        assert record["negatives"] == list(row.negatives) == list(of_image[row.image_id])
        first = next(image.captions[0].lower() for image in toy.IMAGES if str(image.id) == row.image_id)
        assert row.negatives == tuple(dict.fromkeys(row.negatives))
        assert not any(noun.removesuffix("s") in first for noun in row.negatives)
        shown = next(image.shapes for image in toy.IMAGES if str(image.id) == row.image_id)
        assert not set(row.negatives) & set(shown)  # though "disc" may be what nobody says of an image
    assert [str(problem) for problem in verify_run(folder)] == []
    assert [step.step for step in run_status(folder).steps][-2:] == ["negatives", "shards"]


def test_other_settings_make_negatives_and_shards_again_and_nothing_else(
    world: Path, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    config_path = config_of(world, out)
    run_toy(config_path)
    assert hashes(str(out)) == hashes(str(run))
    _, _, seen = run_toy(config_path, "negatives.per_image=1")
    assert set(seen.made) == MADE_AGAIN
    assert max(len(row.negatives) for row in samples(RunFolder(str(out)))) == 1
    (out / "negatives/00001.parquet").unlink()
    assert set(run_toy(config_path, "negatives.per_image=1")[2].made) == {("negatives", 1)}


def test_switched_off_again_they_leave_nothing_behind(world: Path, run: Path, tmp_path: Path) -> None:
    with_them, without = tmp_path / "with", tmp_path / "without"
    run_toy(config_of(world, without), OFF)
    run_toy(config_of(world, with_them))
    _, _, seen = run_toy(config_of(world, with_them), OFF)
    assert set(seen.made) == {("shards", part) for part in range(3)}
    assert hashes(str(with_them)) == hashes(str(without))
    assert not (with_them / "negatives").exists() or not any((with_them / "negatives").iterdir())
    assert FinishedRun.open(RunFolder(str(without))).manifest.format_version == 3
    pairs = ("pairs/00000.parquet", "levels.parquet", "vocabulary.parquet")
    assert all((without / name).read_bytes() == (run / name).read_bytes() for name in pairs)


def test_lvis_and_sa_co_have_them(run: Path, tmp_path: Path) -> None:
    of_image = {int(row.image_id): row.negatives for row in samples(RunFolder(str(run)))}
    nouns = {row.noun for row in samples(RunFolder(str(run)))}
    lvis = json.loads((export(run, tmp_path / "lvis", "lvis") / "train.json").read_text())
    names = {category["id"]: category["name"] for category in lvis["categories"]}
    found = {image["id"]: [names[number] for number in image["neg_category_ids"]] for image in lvis["images"]}
    assert found == {image: sorted(set(negatives) & nouns) for image, negatives in of_image.items()}
    assert any(found.values())
    sa_co = json.loads((export(run, tmp_path / "sa-co", "sa-co") / "train.json").read_text())
    with_masks = {annotation["image_id"] for annotation in sa_co["annotations"]}
    absent = [(e["photograph_id"], e["text_input"]) for e in sa_co["images"] if e["id"] not in with_masks]
    assert absent == [(image, noun) for image, negatives in of_image.items() for noun in negatives]
    assert len({entry["id"] for entry in sa_co["images"]}) == len(sa_co["images"])


@pytest.mark.parametrize("to", ["hf", "parquet"])
def test_tables_have_a_column_of_them(run: Path, tmp_path: Path, to: str) -> None:
    (path,) = export(run, tmp_path / to, to).rglob("*.parquet")
    rows = {row.key: list(row.negatives) for row in samples(RunFolder(str(run)))}
    table = pq.read_table(path)
    assert dict(zip(table["key"].to_pylist(), table["negatives"].to_pylist(), strict=True)) == rows


def test_report_and_card_count_them(run: Path) -> None:
    folder = RunFolder(str(run))
    of_image = {row.image_id: row.negatives for row in samples(folder)}
    count = sum(map(len, of_image.values()))
    assert f"{count:,} negatives" in " ".join(render_report(make_report(folder)).split())
    card = " ".join((run / "README.md").read_text().split())
    assert "`negatives`, in the `.json` and in the index, are up to 5 nouns that the image does not show" in card


def test_verify_finds_a_noun_that_its_own_sample_calls_absent(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(run, out)
    index = out / "shards/00000.parquet"
    table = pq.read_table(index)
    place = table.column_names.index("negatives")
    own = [[noun] for noun in table["noun"].to_pylist()]
    field = table.schema.field(place)
    table = table.set_column(place, field, pa.array(own, field.type))
    pq.write_table(table.replace_schema_metadata(None), index)
    lines = [str(problem) for problem in verify_run(RunFolder(str(out)))]
    assert any(line.endswith("its noun is among the nouns that its image does not show") for line in lines)
    assert any(line.endswith(".json and index differ") for line in lines)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            ["pairs={rule: labels}"],
            "`negatives` needs the levels of nouns, which `pairs.rule: labels` does not measure",
        ),
        (["negatives.per_image=0"], "negatives.per_image"),
        (["negatives.margin=-1"], "negatives.margin"),
        (["negatives.synonyms=nowhere.txt"], "negatives.synonyms: `.*nowhere.txt` cannot be read"),
        (["negatives.wordnet=nowhere"], "negatives.wordnet: `.*data.noun` cannot be read"),
    ],
)
def test_bad_settings_are_named_in_one_line(
    world: Path, tmp_path: Path, changes: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [word for change in changes for word in ("--set", change)]
    assert run_app(["mine", str(config_of(world, tmp_path / "run")), *options]) == 2
    assert re.search(line, " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "run" / "shards").exists()
