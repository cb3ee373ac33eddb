"""Every fault of a configuration is one line with its place and what was expected there."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipelines.inputs import portable
from pipelines.serving import Serving
from pipelines.settings import Mining, dump_yaml, load_mining, load_settings
from schemas.errors import InputError
from schemas.settings import Settings
from tuning.evaluation import Examination
from tuning.proposal_settings import ProposalTraining
from tuning.segmenter import Segmenter
from tuning.settings import Tuning

ROOT = Path(__file__).resolve().parents[1]
KINDS: dict[str, type[Settings]] = {
    "tune": Tuning,
    "train": ProposalTraining,
    "evaluate": Examination,
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
            "kind `magic` is unknown; choose one of maskformer, open_maskformer, sam, detectron2, ground_truth",
        ),
        (GOOD.replace("clip: null", "clip: {model: ViT-B-16, pretained: openai}"), "did you mean `pretrained`?"),
        (GOOD.replace("rule: labels", "rule: best_region_per_noun"), "regions.clip"),
        ("- a\n", "a configuration is a mapping"),
        ("a: [\n", "not valid YAML"),
        ("", "a configuration is a mapping"),
    ],
)
def test_a_fault_is_named_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=r"mining\.yaml") as caught:
        load(tmp_path, text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_mining(str(tmp_path / "none.yaml"))
    (tmp_path / "picture.yaml").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(InputError, match="cannot be read as a text file"):
        load_mining(str(tmp_path / "picture.yaml"))


def test_overrides_reach_into_the_tree_and_are_checked_like_the_file(tmp_path: Path) -> None:
    settings = load(tmp_path, GOOD, "shards.quality=80", "captions.per_image=all", "max_rejected=0.5")
    assert (settings.shards.quality, settings.captions.per_image, settings.max_rejected) == (80, "all", 0.5)
    clip = load(tmp_path, GOOD, "regions.clip.model=ViT-B-16").regions.clip
    assert clip is not None
    assert clip.model == "ViT-B-16"  # in the place of null
    for override, said in [
        ("shards.qualty=80", "did you mean `quality`?"),
        ("shards", "expected key=value"),
        ("out.deep=1", "is a value, and has no settings of its own"),
        ("shards.quality=[", "not valid YAML"),
    ]:
        with pytest.raises(InputError) as caught:
            load(tmp_path, GOOD, override)
        assert said in str(caught.value)


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
