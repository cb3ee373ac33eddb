"""Models of a hub by the names that users write: fetched once, pinned, used without a network afterwards, or refused.

The hub is one on loopback with the file names and descriptions of the real repositories; the weights are tiny.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import open_clip.factory
import pytest
from huggingface_hub.utils import _http

from maskmine.mining.models.clip import Clip
from maskmine.mining.proposers.maskformer import MaskFormer
from maskmine.pipelines.cli.main import run_app
from maskmine.schemas.errors import InputError
from tests.support import toy
from tests.support.hub import Hub, hub_on_loopback
from tests.support.models import ARCHITECTURE, network, save_tiny_clip
from tests.support.paths import ROOT
from tests.support.runs import hashes

MASKFORMER, CLIP = "facebook/maskformer-swin-base-coco", "timm/vit_large_patch14_clip_224.openai"
# As the repositories of MaskFormer have it: written by an early version of transformers.
PREPROCESSOR = {
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "MaskFormerFeatureExtractor",
    "ignore_index": 255,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "max_size": 128,
    "reduce_labels": False,
    "resample": 2,
    "size": 64,
    "size_divisibility": 32,
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `maskformer` and `clip`, laid out as the real repositories are."""
    folder = tmp_path_factory.mktemp("weights")
    network("maskformer").save_pretrained(folder / "maskformer")
    (folder / "maskformer" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    save_tiny_clip(folder / "clip")
    (folder / "clip" / "config.json").write_text(json.dumps({"architecture": "vit_large_patch14_clip_224"}))
    for name in ("maskformer", "clip"):
        (folder / name / "README.md").write_text("---\nlicense: other\n---\n")
        (folder / name / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    return folder


@pytest.fixture
def hub(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with both, which is the only one that this process knows, and an empty cache."""
    with hub_on_loopback() as hub:
        for name, value in hub.environment(tmp_path / "cache").items():
            monkeypatch.setenv(name, value)
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        hub.publish(MASKFORMER, weights / "maskformer")
        hub.publish(CLIP, weights / "clip")
        yield hub


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between tries."""
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda _: None, time=time.time))


@pytest.fixture
def coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with COCO's layout, in which `configs/coco.yaml` lies as it is; ViT-L/14 is tiny in it."""
    world = toy.write_toy_world(tmp_path / "toy")
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    shutil.copy(world / "captions.json", tmp_path / "coco" / "annotations" / "captions_train2017.json")
    shutil.copytree(world / "images", tmp_path / "coco" / "train2017")
    shutil.copy(ROOT / "configs" / "coco.yaml", tmp_path / "coco" / "coco.yaml")
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-L-14", {**ARCHITECTURE, "quick_gelu": False})
    monkeypatch.chdir(tmp_path / "coco")
    return tmp_path / "coco"


def test_the_preset_of_coco_runs_as_it_is_and_again_without_a_network(
    hub: Hub, coco: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_app(["mine", "coco.yaml"]) == 0
    fetched = [line for line in hub.log if line.startswith("GET /large/")]
    assert len(fetched) == len(set(fetched)) == 2, "the weights of each model, once"
    manifest = json.loads(Path("runs/coco/manifest.json").read_text())
    models = {model["role"]: model for model in manifest["models"]}
    assert models["proposals"]["name"] == f"{MASKFORMER}@{hub.repositories[MASKFORMER].commit}"
    assert models["proposals"]["licence"] == "CC-BY-NC-4.0"
    assert models["clip"]["name"] == "ViT-L-14 openai"
    before = hashes("runs/coco")

    hub.log.clear()
    shutil.rmtree("runs")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert run_app(["mine", "coco.yaml"]) == 0
    assert hashes("runs/coco") == before
    assert hub.log == []


def test_a_revision_stays_where_it_was_when_the_hub_goes_on(hub: Hub, weights: Path, tmp_path: Path) -> None:
    commit = hub.repositories[MASKFORMER].commit
    pinned = MaskFormer(kind="maskformer", checkpoint=MASKFORMER, revision=commit)
    pinned.fetch()
    other = {path.name: path for path in (weights / "maskformer").iterdir()} | {"config.json": b"{}"}
    assert hub.publish(MASKFORMER, other).commit != commit
    hub.log.clear()
    pinned.open(device="cpu")
    assert not [line for line in hub.log if "/resolve/" in line]
    with pytest.raises(InputError, match="is a None model; give a"):
        MaskFormer(kind="maskformer", checkpoint=MASKFORMER).fetch()


def test_a_download_that_is_cut_goes_on_where_it_was(hub: Hub, quick: None) -> None:
    hub.repositories[MASKFORMER].cut_after = 1
    MaskFormer(kind="maskformer", checkpoint=MASKFORMER).fetch()
    MaskFormer(kind="maskformer", checkpoint=MASKFORMER).open(device="cpu")
    assert sum(line.startswith("GET /large/") for line in hub.log) == 2


def test_what_does_not_exist_is_one_line(hub: Hub, quick: None) -> None:
    with pytest.raises(InputError, match=r"`facebook/nothing` is no folder here and the hub does not give it") as error:
        MaskFormer(kind="maskformer", checkpoint="facebook/nothing").fetch()
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"`hf-hub:someone/nothing` is not on this machine and could not be fetched"):
        Clip(model="hf-hub:someone/nothing").fetch()
    with pytest.raises(InputError, match="check the name"):
        MaskFormer(kind="maskformer", checkpoint=MASKFORMER, revision="v9").fetch()


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_says_how_to_ask_for_access(hub: Hub, quick: None, status: int) -> None:
    for name in (MASKFORMER, CLIP):
        hub.repositories[name].refuse = (status, "GatedRepo")
    asks = r"accept its terms at \S+/{name} .*`hf auth login`"
    with pytest.raises(InputError, match=asks.format(name=MASKFORMER)):
        MaskFormer(kind="maskformer", checkpoint=MASKFORMER).fetch()
    with pytest.raises(InputError, match=asks.format(name=CLIP)):
        Clip(model=f"hf-hub:{CLIP}").fetch()


def test_a_hub_that_is_slow_is_waited_for_and_one_that_is_down_is_one_line(hub: Hub, quick: None) -> None:
    hub.repositories[MASKFORMER].wait_s = 0.1
    MaskFormer(kind="maskformer", checkpoint=MASKFORMER).fetch()
    hub.repositories[CLIP].refuse = (503, "")
    with pytest.raises(InputError, match=r"could not be fetched .*; check the name and the network, or set"):
        Clip(model=f"hf-hub:{CLIP}").fetch()


def test_a_clip_that_describes_more_than_its_weights_is_refused_before_it_is_built(
    hub: Hub, quick: None, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(weights / "clip", tmp_path / "described"))
    described = json.loads((folder / "open_clip_config.json").read_text())
    described["model_cfg"]["vision_cfg"]["width"] = 1 << 20
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    hub.publish("someone/vast", folder)
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: pytest.fail("it is built"))
    with pytest.raises(InputError, match="`hf-hub:someone/vast` describes more than its"):
        Clip(model="hf-hub:someone/vast").open_text(device="cpu")
