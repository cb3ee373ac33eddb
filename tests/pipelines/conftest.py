"""Finished runs and the served page, which several files of tests read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.mining import load_settings
from tests.support import mixes, toy, toy_shards
from tests.support.paths import ROOT
from tests.support.runs import run_toy
from tests.support.web.browser import CONFIG, EXAMPLES, MOST_PIXELS, STREET, calling

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from maskmine.pipelines.serve.service import Service, Serving

CLIP, MASKFORMER = ROOT / "scripts" / "models" / "clip", ROOT / "scripts" / "models" / "maskformer"


@pytest.fixture
def empty_run(tmp_path: Path) -> RunFolder:
    """A run folder with nothing in it."""
    (tmp_path / "run").mkdir()
    return RunFolder(str(tmp_path / "run"))


@pytest.fixture(scope="module")
def workers_find_the_tests() -> Iterator[None]:
    """Processes that are started meanwhile can import what the tests' jobs are made of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        yield


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the toy world, whose masks are known by hand; tests leave it as it is."""
    folder = toy.write_toy_world(tmp_path_factory.mktemp("mined"))
    run_toy(toy.write_config(folder))
    return folder / "run"


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished shards of 24 images with a pair each: that of image n has similarity n / 100 and noun n % 4."""
    folder = toy_shards.write_toy_shards(tmp_path_factory.mktemp("scored") / "run", scores=True)
    (folder / "plan.json").write_text("{}")
    (folder / "_SUCCESS").touch()
    return folder


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Serving:
    """The demo's page with the shipped models, prompts of nobody's tuning, and a MaskFormer that knows classes."""
    import transformers

    from maskmine.mining.models.clip import Clip
    from maskmine.mining.models.mask_prompts import new_prompts, tower_sha256
    from maskmine.mining.models.prompts_file import PromptsRecord, save_prompts
    from maskmine.pipelines.serve.service import Serving
    from tests.support.models import SIZE, network

    folder = tmp_path_factory.mktemp("models")
    network("maskformer").save_pretrained(folder / "with-classes")
    transformers.MaskFormerImageProcessor(size=SIZE).save_pretrained(folder / "with-classes")
    tower = Clip(model=str(CLIP)).open_whole().model.visual
    record = PromptsRecord(clip="shipped", tower_sha256=tower_sha256(tower), settings={}, shards=())
    save_prompts(folder / "prompts.safetensors", new_prompts(tower, depth=2, std=0.5, seed=0), record=record)
    shipped = {
        "clip": {"model": str(CLIP)},
        "proposals": {"kind": "maskformer", "checkpoint": str(MASKFORMER)},
        "tuned": {"prompts": str(folder / "prompts.safetensors")},
        "templates": "raw",
        "cpu_threads": 1,
        "device": "cpu",
    }
    changes = {f"segmenters.MaskFormer.{name}": value for name, value in shipped.items()}
    knows = {"kind": "maskformer", "checkpoint": str(folder / "with-classes")}
    changes["segmenters.Knows cats"] = {**shipped, "proposals": knows, "tuned": None, "keep": {"min_score": 0.0}}
    changes["examples"] = [{"picture": str(EXAMPLES / "street.jpg"), "classes": STREET.split(", ")}]
    changes |= {"max_upload_mb": 0.5, "max_image_pixels": MOST_PIXELS, "max_classes": 50}
    return load_settings(
        Serving, str(CONFIG), overrides=[f"{place}={json.dumps(value)}" for place, value in changes.items()]
    )


@pytest.fixture(scope="module")
def service(serving: Serving) -> Service:
    return serving.open()


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    with calling(service) as client:
        yield client


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs to mix, which tests leave as they are: see `tests/support/mixes.py`."""
    return mixes.mine_sets(tmp_path_factory.mktemp("sets"))
