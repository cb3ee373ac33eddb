"""Models of a hub by the names that users write: fetched once, pinned, used without a network afterwards, or refused.

The hub is one on loopback with the file names and descriptions of the real repositories; the weights are tiny.
"""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import numpy as np
import open_clip.factory
import pytest
import torch
from huggingface_hub.utils import _http
from pydantic import TypeAdapter

from maskmine.mining.models.clip import Clip
from maskmine.mining.models.hub import require_hub
from maskmine.mining.proposers.maskformer import MaskFormer
from maskmine.mining.proposers.proposals import LoadedImage
from maskmine.mining.proposers.sam import Sam
from maskmine.mining.regions import AnyProposals
from maskmine.mining.verifiers.kinds import AnyVerifier
from maskmine.mining.verifiers.sam3 import Sam3
from maskmine.pipelines.cli.main import run_app
from maskmine.schemas.errors import InputError
from maskmine.schemas.mask import Mask
from tests.support import toy
from tests.support.hub.repositories import (
    CLIP,
    CLIPS,
    MASKFORMER,
    PROPOSERS,
    SAM3,
    UNNEEDED,
    VERIFIERS,
    save_repositories,
)
from tests.support.hub.server import Hub, hub_on_loopback
from tests.support.models import ARCHITECTURE
from tests.support.paths import ROOT
from tests.support.runs import hashes

EVERYTHING = {"points_per_side": 2, "min_predicted_iou": 0.0, "min_stability": 0.0}
TOKEN = "hf_known"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each repository, laid out as the real one is."""
    return save_repositories(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def hub(weights: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with all of them, which is the only one that this process knows, and an empty cache.

    SAM 3 is for those alone who have accepted its terms."""
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
        for name, folder in weights.items():
            hub.publish(name, folder)
        hub.repositories[SAM3].refuse, hub.repositories[SAM3].token = (401, "GatedRepo"), TOKEN
        monkeypatch.delenv("HF_TOKEN", raising=False)
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


@pytest.mark.parametrize("name", PROPOSERS)
def test_what_a_proposer_is_called_on_the_hub_is_fetched_once_and_proposes(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Nothing is fetched that is not needed, and nothing is asked for once it is here."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    settings = {"kind": PROPOSERS[name], "checkpoint": name, **(EVERYTHING if PROPOSERS[name] == "sam" else {})}
    proposer = TypeAdapter(AnyProposals).validate_python(settings)
    proposer.fetch()
    assert_only_what_is_needed_was_fetched(hub, name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (found,) = proposer.open(device="cpu")([LoadedImage("one", picture())], min_score=0.0)
    assert found.masks_NHW.shape[1:] == picture().shape[1:]
    assert len(found) > 0
    record = proposer.settled("cpu").record()
    assert (record.name, len(record.sha256)) == (f"{name}@{hub.repositories[name].commit}", 64)
    assert record.licence != "unknown"
    assert hub.log == []


@pytest.mark.parametrize("name", VERIFIERS)
def test_what_a_verifier_is_called_on_the_hub_is_fetched_once_and_checks(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    verifier = TypeAdapter(AnyVerifier).validate_python({"kind": VERIFIERS[name], "checkpoint": name, "threshold": 0.0})
    verifier.fetch()
    assert_only_what_is_needed_was_fetched(hub, name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    region = Mask.from_array(np.ones(picture().shape[1:], dtype=bool))
    verify = verifier.open(device="cpu")
    (cat, dog) = verify(picture(), nouns=["a", "b"], regions=[region], chosen=[0, 0])
    assert 0 < cat.presence < 1
    assert cat.presence != dog.presence
    assert verifier.settled("cpu").record().licence != "unknown"
    assert hub.log == []


@pytest.mark.parametrize("by_tag", [False, True])
@pytest.mark.parametrize("name", CLIPS)
def test_what_a_clip_is_called_on_the_hub_is_fetched_once_and_embeds(
    hub: Hub, weights: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str, by_tag: bool
) -> None:
    """By the name of the repository, and by open_clip's own names of architecture and weights."""
    architecture, tag = CLIPS[name]
    described = json.loads((weights[name] / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, architecture, {**described, "quick_gelu": False})
    named = {"model": architecture, "pretrained": tag} if by_tag else {"model": f"hf-hub:{name}"}
    clip = Clip(**named, batch_size=2)  # type: ignore[arg-type]
    clip.fetch()
    assert_only_what_is_needed_was_fetched(hub, name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    images, texts = clip.open_image(device="cpu"), clip.open_text(device="cpu")
    seen_ND = images.embed(torch.rand(2, 3, images.size_px, images.size_px))
    said_ND = texts.embed(["a dog", "a cat"])
    assert seen_ND.shape == said_ND.shape
    assert not torch.equal(said_ND[0], said_ND[1])
    assert clip.record().licence != "unknown"
    assert hub.log == []


def assert_only_what_is_needed_was_fetched(hub: Hub, name: str) -> None:
    """And forget what was asked."""
    files = hub.repositories[name].files
    fetched = [line.rpartition("/")[2] for line in hub.log if line.startswith("GET /large/")]
    assert len(fetched) == 1, "the weights, once"
    assert not [line for line in hub.log if files.get(line.rpartition("/")[2]) == UNNEEDED]
    hub.log.clear()


def picture() -> torch.Tensor:
    numbers = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, 48, 72), dtype=torch.uint8, generator=numbers)


def test_a_revision_stays_where_it_was_when_the_hub_goes_on(hub: Hub, weights: dict[str, Path]) -> None:
    commit = hub.repositories[MASKFORMER].commit
    pinned = MaskFormer(kind="maskformer", checkpoint=MASKFORMER, revision=commit)
    pinned.fetch()
    other = {path.name: path for path in weights[MASKFORMER].iterdir()} | {"config.json": b"{}"}
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


@pytest.mark.parametrize("kind", [Sam, Sam3])
def test_sam_3_says_how_to_ask_for_access(hub: Hub, quick: None, kind: Any) -> None:
    settings = kind(kind=kind.__name__.lower(), checkpoint=SAM3)
    with pytest.raises(InputError, match=rf"accept its terms at \S+/{SAM3} .*`hf auth login`"):
        settings.fetch()
    assert not [line for line in hub.log if "/large/" in line]


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_says_how_to_ask_for_access(hub: Hub, quick: None, status: int) -> None:
    for name in (MASKFORMER, CLIP):
        hub.repositories[name].refuse = (status, "GatedRepo")
    asks = r"accept its terms at \S+/{name} .*`hf auth login`"
    with pytest.raises(InputError, match=asks.format(name=MASKFORMER)):
        MaskFormer(kind="maskformer", checkpoint=MASKFORMER).fetch()
    with pytest.raises(InputError, match=asks.format(name=CLIP)):
        Clip(model=f"hf-hub:{CLIP}").fetch()


def test_a_description_of_more_than_the_weights_fetched_with_it_is_refused_before_it_is_built(
    hub: Hub, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: pytest.fail("built"))
    files = hub.repositories[CLIP].files
    described = json.loads(files["open_clip_config.json"])
    described["model_cfg"]["text_cfg"]["vocab_size"] = 10**9
    hub.publish("someone/large", {**files, "open_clip_config.json": json.dumps(described).encode()})
    with pytest.raises(InputError, match=r"describes more than its [\d,]+ bytes of weights"):
        Clip(model="hf-hub:someone/large").open_text(device="cpu")


def test_a_hub_that_is_slow_is_waited_for_and_one_that_is_down_is_one_line(hub: Hub, quick: None) -> None:
    hub.repositories[MASKFORMER].wait_s = 0.1
    MaskFormer(kind="maskformer", checkpoint=MASKFORMER).fetch()
    hub.repositories[CLIP].refuse = (503, "")
    with pytest.raises(InputError, match=r"could not be fetched .*; check the name and the network, or set"):
        Clip(model=f"hf-hub:{CLIP}").fetch()


def test_without_a_network_a_model_that_is_not_here_is_one_line_at_once(
    hub: Hub, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = f"http://127.0.0.1:{server.getsockname()[1]}"
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", nobody)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nobody + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(open_clip, "download_pretrained", lambda *_: pytest.fail("tried for a minute"))
    models = [MaskFormer(kind="maskformer", checkpoint=MASKFORMER), Clip(model="ViT-L-14", pretrained="openai")]
    names = [f"proposals.checkpoint: `{MASKFORMER}`", "clip: `ViT-L-14 openai`"]
    remedy = "try again with a network, or name a folder or file with the weights"
    for offline, why in ((False, f"{nobody} cannot be reached (Connection refused)"), (True, "HF_HUB_OFFLINE is set")):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        for model, name in zip(models, names, strict=True):
            with pytest.raises(InputError) as error:
                model.fetch()
            assert str(error.value) == f"{name} is not on this machine, and {why}; {remedy}"


def test_behind_a_proxy_the_library_is_left_to_find_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    require_hub("clip", "someone/nothing")
