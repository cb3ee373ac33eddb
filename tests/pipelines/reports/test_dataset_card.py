"""What is written beside a set so that other teams can trust it: card, licences, Croissant, errors, examples."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from maskmine.mining.models.known_licences import licence_of
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.dataset.cards import hub_licence, size_category
from maskmine.pipelines.dataset.croissant import describe_run
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.limits import read_manifest
from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.licences import Licences, refuse_other_licences
from maskmine.schemas.errors import InputError
from tests.support import toy
from tests.support.paths import ROOT
from tests.support.runs import hashes, run_toy


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_toy_world(tmp_path_factory.mktemp("card"))


@pytest.fixture(scope="module")
def run(world: Path) -> Path:
    """A finished run of the toy world; tests leave it as it is."""
    run_toy(toy.write_config(world))
    return world / "run"


@pytest.fixture
def inside(run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the run, in which a reader of its card is."""
    monkeypatch.chdir(run)
    return run


def examples(card: Path) -> dict[str, str]:
    """The Python blocks of a card, by the library that each imports first."""
    blocks = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    found = {re.split(r"[ ,\n]", block)[1]: block for block in blocks}
    assert len(found) == len(blocks)
    return found


def executed(run: Path, name: str) -> dict[str, Any]:
    scope: dict[str, Any] = {}
    exec(examples(run / "README.md")[name], scope)
    return scope


READERS_WARN = pytest.mark.filterwarnings("ignore")  # of much that is not ours
NOUNS = sorted(noun for _, noun, _ in toy.PAIRS)


def test_each_loader_has_one_example() -> None:
    template = (ROOT / "pipelines/dataset/data/dataset_card.md").read_text()
    assert re.findall(r"```python\nimport (\w+)", template) == ["webdataset", "open_clip", "datasets", "ray", "duckdb"]


@READERS_WARN
def test_the_example_for_webdataset_runs_as_it_is_printed(inside: Path) -> None:
    pairs = list(executed(inside, "webdataset")["pairs"])
    assert sorted(pair["txt"] for pair in pairs) == NOUNS
    assert all(pair["jpg"].size == pair["mask.png"].size for pair in pairs)
    assert {pair["mask.png"].mode for pair in pairs} == {"L"}


@READERS_WARN
def test_the_example_of_the_readme_runs_as_it_is_printed(inside: Path) -> None:
    (example,) = re.findall(r"```python\n(import webdataset\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    shards = f"{{00000..{len(list((inside / 'shards').glob('*.tar'))) - 1:05d}}}"
    example = example.replace("runs/coco/shards/{00000..00118}", f"{inside}/shards/{shards}")
    scope: dict[str, Any] = {}
    exec(example, scope)
    assert (scope["image"].mode, scope["mask"].mode) == ("RGB", "L")
    assert set(np.unique(scope["mask"])) == {0, 255}


@READERS_WARN
def test_the_example_for_open_clip_runs_as_it_is_printed(inside: Path) -> None:
    made = list(executed(inside, "open_clip")["tensors"])
    assert [(pixels.shape, tokens.shape) for pixels, tokens in made] == [((3, 224, 224), (1, 77))] * len(NOUNS)


@READERS_WARN
def test_the_example_for_hugging_face_runs_as_it_is_printed(inside: Path) -> None:
    pairs = list(executed(inside, "datasets")["pairs"])
    assert sorted(pair["txt"] for pair in pairs) == NOUNS
    assert all(pair["jpg"].size == pair["mask.png"].size for pair in pairs)


def test_the_example_for_duckdb_runs_as_it_is_printed(inside: Path) -> None:
    counted = executed(inside, "duckdb")["nouns"].fetchall()
    assert counted == sorted({(noun, NOUNS.count(noun)) for noun in NOUNS}, key=lambda row: (-row[1], row[0]))


def test_the_example_for_ray_runs_as_it_is_printed(run: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install '.[ray]'")
    before = "import ray; ray.init('local', num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20)\n"
    after = "print(sorted(pair['txt'] for pair in pairs.take_all()))"
    program = before + examples(run / "README.md")["ray"] + after
    done = subprocess.run([sys.executable, "-c", program], cwd=run, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == str(NOUNS)


def test_the_front_matter_is_what_the_hub_reads(run: Path) -> None:
    _, front, body = (run / "README.md").read_text().split("---\n", 2)
    told = yaml.safe_load(front)
    assert told["license"] == "other"
    assert told["size_categories"] == ["n<1K"]
    assert told["configs"][0]["data_files"] == [{"split": "train", "path": "shards/*.tar"}]
    assert [run / "shards" / f"{number:05d}.tar" for number in range(3)] == sorted(run.glob("shards/*.tar"))
    assert f"{len(NOUNS)} pairs" in body


def test_the_card_says_how_many_pairs_the_rule_made_and_which_filters_left_some_out(run: Path, tmp_path: Path) -> None:
    whole, few = (run / "README.md").read_text(), tmp_path / "few"
    assert "| every pair that the rule `labels` made | 7 | 100 % |\n| this set | 7 | 100.0 % |" in whole
    assert "No filter was set.\n" in whole
    shutil.copytree(run, few)
    run_toy(run.parent / "mining.yaml", "pairs.min_count=3", f"out={few}")
    card, manifest = (few / "README.md").read_text(), FinishedRun.open(RunFolder(str(few))).manifest
    assert (manifest.totals.pairs, manifest.totals.samples) == (7, 2)
    assert "| every pair that the rule `labels` made | 7 | 100 % |\n| this set | 2 | 28.6 % |" in card
    assert "Filters: `pairs.min_count: 3`. With others" in card
    protocols = json.loads((few / "croissant.json").read_text())["rai:dataPreprocessingProtocol"]
    assert protocols == ["rule: labels; 2 of its 7 pairs are in the set", "pairs.min_count: 3"]


def test_a_manifest_of_an_earlier_version_has_no_number_of_pairs(run: Path) -> None:
    stored = json.loads((run / "manifest.json").read_text()) | {"format_version": 2}
    del stored["totals"]["pairs"]
    manifest = read_manifest(stored, RunFolder(str(run)))
    assert manifest.totals.pairs is None
    assert describe_run(manifest)["rai:dataPreprocessingProtocol"] == ["rule: labels"]


def test_croissant_says_what_lift_evidence_and_confidence_are(run: Path) -> None:
    (records,) = json.loads((run / "croissant.json").read_text())["recordSet"]
    fields = {field["name"]: (field["dataType"], field["description"]) for field in records["field"]}
    assert fields["lift"][0] == fields["evidence"][0] == fields["confidence"][0] == "sc:Float"
    assert "probability that the pair is right" in fields["confidence"][1]


def test_the_front_matter_names_a_licence_only_where_all_parts_share_one() -> None:
    assert hub_licence(["MIT", "MIT"]) == "mit"
    assert hub_licence(["MIT", "CC-BY-4.0"]) == hub_licence(["unknown"]) == hub_licence([]) == "other"
    assert [size_category(n) for n in (1, 1000, 10**6, 10**8)] == ["n<1K", "1K<n<10K", "1M<n<10M", "n>10M"]


def test_the_table_of_errors_has_every_rejected_image(run: Path) -> None:
    rows = pq.read_table(run / "errors.parquet").to_pylist()
    assert {(row["image_id"], row["step"], row["reason"]) for row in rows} == toy.REJECTIONS
    assert all(0 <= row["part"] < 3 for row in rows)


@READERS_WARN
def test_croissant_is_valid_and_its_records_are_the_pairs(run: Path) -> None:
    import mlcroissant

    dataset = mlcroissant.Dataset(jsonld=str(run / "croissant.json"))
    assert dataset.metadata.ctx.issues.errors == set()
    assert dataset.metadata.ctx.is_v1_1()
    records = list(dataset.records("pairs"))
    assert sorted(record["pairs/noun"].decode() for record in records) == NOUNS


def test_croissant_has_the_checksum_of_every_shard(run: Path) -> None:
    files = {
        file["contentUrl"]: file["sha256"]
        for file in json.loads((run / "croissant.json").read_text())["distribution"]
        if file["@type"] == "cr:FileObject"
    }
    found = hashes(str(run))
    assert files == {name: digest for name, digest in found.items() if re.fullmatch(r"shards/\d+\.(tar|parquet)", name)}


def test_verify_finds_a_changed_croissant_or_error_table(world: Path, run: Path, tmp_path: Path) -> None:
    lines = (run / "SHA256SUMS").read_text()
    assert all(f"  {name}\n" in lines for name in ("README.md", "croissant.json", "errors.parquet", "manifest.json"))
    assert list(verify_run(RunFolder(str(run)))) == []


# Licences.


@pytest.fixture
def stated(world: Path, run: Path, tmp_path: Path) -> tuple[Path, Any]:
    """A copy of the finished run, and what mines it again with licences stated."""
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    config = toy.write_config(world, out=folder)

    def mine(**licences: Any) -> Any:
        overrides = [f"licences.{name}={json.dumps(value)}" for name, value in licences.items()]
        return run_toy(config, "regions.proposals.licence=CC-BY-4.0", *overrides)

    return folder, mine


def test_a_licence_that_is_stated_later_makes_no_cell_again(
    world: Path, run: Path, stated: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, _ = stated
    config = toy.write_config(world, out=folder)
    _, outcome, made = run_toy(config, "licences.captions=CC-BY-4.0", "licences.pictures=CC0-1.0")
    assert made.made == []
    assert outcome.manifest is not None
    assert {(source.role, source.licence) for source in FinishedRun.open(RunFolder(str(folder))).manifest.sources} == {
        ("captions", "CC-BY-4.0"),
        ("images", "CC0-1.0"),
    }
    assert "CC0-1.0" in (folder / "README.md").read_text()
    assert "https://spdx.org/licenses/CC0-1.0" in json.loads((folder / "croissant.json").read_text())["license"]
    assert list(verify_run(RunFolder(str(folder)))) == []
    _, again, _ = run_toy(config, "licences.captions=CC-BY-4.0", "licences.pictures=CC0-1.0")
    assert again.manifest is None


def test_the_commercial_policy_names_every_part_that_it_refuses(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--to", "parquet", "--out", str(tmp_path / "out"), "--licence-policy", "commercial"]
    assert run_app(["export", str(run), *options]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "model (proposals) instances.json: licence unknown" in said
    assert "images all: licence unknown" in said
    assert "captions" in said
    assert "en_core_web_sm" not in said
    assert not (tmp_path / "out").exists()


def test_the_commercial_policy_lets_a_set_pass_whose_parts_all_allow_it(
    stated: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, mine = stated
    mine(captions="CC-BY-4.0", pictures="CC0-1.0")
    options = ["--to", "parquet", "--licence-policy", "commercial", "--out", str(tmp_path / "out")]
    assert run_app(["export", str(folder), *options]) == 0
    mine(captions="SAM License", pictures="CC-BY-NC-4.0")
    card = (folder / "README.md").read_text()
    assert "- SAM License: pass the weights and what is made of them on with a copy of it, " in card
    assert "- CC-BY-NC-4.0: name the authors and the licence, say what was changed; no commercial use." in card
    assert json.loads((folder / "croissant.json").read_text())["license"][-2:] == [
        "https://spdx.org/licenses/MIT",
        "https://github.com/facebookresearch/sam3/blob/main/LICENSE",
    ]
    sources = FinishedRun.open(RunFolder(str(folder))).manifest.sources
    with pytest.raises(InputError, match=r"images all: CC-BY-NC-4\.0 is not for commercial use"):
        refuse_other_licences([(s.role, s.name, s.licence) for s in sources], policy="commercial")


def test_an_export_of_listed_licences_alone_refuses_pictures_under_others(
    stated: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, mine = stated
    mine(captions="CC-BY-4.0", pictures="CC0-1.0")
    arguments = ["export", str(folder), "--to", "parquet", "--out", str(tmp_path / "out"), "--licences"]
    assert run_app([*arguments, "CC-BY-4.0"]) == 2
    assert "leaves nothing of this run (images all: CC0-1.0)" in capsys.readouterr().err
    assert run_app([*arguments, "CC-BY-4.0,CC0-1.0"]) == 0


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        *[(name, True) for name in ("SAM License", "DINOv3 License", "dinov3-license")],
        *[(name, False) for name in ("AGPL-3.0", "PML-1.0", "Something like the SAM License")],
        *[(name, True) for name in ("MIT", "Apache-2.0", "CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0", "BSD-3-Clause")],
        *[(name, False) for name in ("CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-ND-4.0", "unknown", "", "S-Lab", "GPL")],
    ],
)
def test_only_what_is_known_to_allow_it_allows_commercial_use(licence: str, allowed: bool) -> None:
    with nullcontext() if allowed else pytest.raises(InputError, match="commercial refuses model m"):
        refuse_other_licences([("model", "m", licence)], policy="commercial")


def test_a_licence_that_is_known_says_why_it_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"AGPL-3\.0 asks to give the source of what is built on it, even if it is only"
    ):
        refuse_other_licences([("model", "m", "AGPL-3.0")], policy="commercial")


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("facebook/maskformer-swin-base-coco", "CC-BY-NC-4.0"),
        ("facebook/sam-vit-large", "Apache-2.0"),
        ("facebook/sam2.1-hiera-large", "Apache-2.0"),
        ("facebook/sam3", "SAM License"),
        ("tue-mps/coco_panoptic_eomt_large_640", "MIT"),
        ("tue-mps/coco_panoptic_eomt_large_640_dinov3", "DINOv3 License"),
        ("Roboflow/rf-detr-seg-medium", "Apache-2.0"),
        ("Roboflow/rf-detr-2xlarge", "unknown"),
        ("openai", "MIT"),
        ("timm/vit_large_patch14_clip_224.openai", "MIT"),
        ("someone/eomt", "unknown"),
    ],
)
def test_the_licences_of_published_weights_are_known_by_their_names(name: str, licence: str) -> None:
    assert licence_of(name) == licence


def test_each_caption_source_may_have_its_own_licence() -> None:
    licences = Licences(captions={"coco": "CC-BY-4.0"})
    assert [licences.of_captions(name) for name in ("coco", "web")] == ["CC-BY-4.0", "unknown"]
    assert Licences(captions="MIT").of_captions("web") == "MIT"


def test_a_licence_is_not_taken_for_a_path(world: Path, tmp_path: Path) -> None:
    from maskmine.pipelines.settings.mining import load_mining

    overrides = ["licences.pictures=Flickr/terms", f"out={tmp_path}/run"]
    assert load_mining(str(toy.write_config(world)), overrides=overrides).licences.pictures == "Flickr/terms"
