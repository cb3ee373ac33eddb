"""What is installed from a wheel works in any folder: on each engine, with nothing of this checkout in sight.

The wheel is built of the source distribution, which is also what Beam's `--setup_file` sends to its workers. The
folder that it runs in has folders with an `__init__.py` of the names that stand at the top of this checkout.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import httpx2
import pytest

from tests.support import toy
from tests.support.paths import ROOT
from tests.support.runs import hashes

SOURCES = ["maskmine", "schemas", "mining", "tuning", "pipelines", "scripts", "configs", "demo"]
ENGINES = {
    "local": [],
    "ray": ["--engine", "ray", "--engine-opt", "cpu_workers=1"],
    "beam": ["--engine", "beam", "--engine-opt", "workers=2"],
}


def run_python(*words: str | Path, cwd: Path) -> None:
    subprocess.run([sys.executable, *map(str, words)], cwd=cwd, check=True, capture_output=True)


def links(folder: str, names: list[str]) -> list[str]:
    """Those of a folder's names that are symbolic links, for `shutil.copytree`."""
    return [name for name in names if Path(folder, name).is_symlink()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built elsewhere so that `build/` holds nothing of another state."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / "checkout" / name, symlinks=True, ignore=links)  # setup.py makes them
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "checkout")
    run_python("setup.py", "-q", "sdist", "--dist-dir", folder, cwd=folder / "checkout")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    run_python("setup.py", "-q", "bdist_wheel", "--dist-dir", folder, cwd=folder / archive.name.removesuffix(".tar.gz"))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command `maskmine` of an environment that has the libraries of this one, and maskmine from the wheel."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    run_python("-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, cwd=environment)
    (packages,) = (environment / "lib").glob("*/site-packages")
    # A path in a .pth file comes after the folder of that file, and .pth files in it, the editable ones, are not read.
    (packages / "libraries.pth").write_text("\n".join(site.getsitepackages()))
    return environment / "bin" / "maskmine"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder whose packages have names of ours."""
    for name in [*SOURCES[1:], "tests"]:
        (tmp_path / "elsewhere" / name).mkdir(parents=True)
        (tmp_path / "elsewhere" / name / "__init__.py").touch()
    return tmp_path / "elsewhere"


def test_the_wheel_installs_maskmine_and_every_file_that_belongs_to_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    listed = subprocess.run(["git", "ls-files", *SOURCES[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no checkout of git")
    shells = {path for path in listed.stdout.split() if path.startswith("scripts/") and path.count("/") == 1}
    expected = {f"maskmine/{path}" for path in listed.stdout.split() if path not in shells or path.endswith(".py")}
    assert expected <= names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"maskmine"}


def start(maskmine: Path, *words: str | Path, cwd: Path) -> subprocess.Popen[str]:
    """The installed command at work, without the paths that tests hand on."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.Popen(
        [maskmine, *words], cwd=cwd, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def test_what_is_installed_mines_on_every_engine_whatever_the_folder_holds(
    installed: Path, elsewhere: Path, tmp_path: Path
) -> None:
    config = toy.write_config(toy.write_toy_world(tmp_path / "world"))
    runs = {  # at once, for each waits for its workers most of the time
        name: start(installed, "mine", config, "--set", f"out={tmp_path / name}", *options, cwd=elsewhere)
        for name, options in ENGINES.items()
    }
    for name, run in runs.items():
        _, said = run.communicate()
        assert run.returncode == 0, f"{name}: {said}"
    assert hashes(str(tmp_path / "local"))
    for name in ENGINES:
        assert hashes(str(tmp_path / name)) == hashes(str(tmp_path / "local")), name


def test_what_is_installed_serves_and_segments_by_the_models_that_it_brings(
    installed: Path, elsewhere: Path, tmp_path: Path
) -> None:
    (package,) = (installed.parents[1] / "lib").glob("*/site-packages/maskmine")
    text = (package / "configs" / "serve-demo.yaml").read_text()
    config = tmp_path / "serve.yaml"
    config.write_text(re.sub(r"\b(scripts/models|demo/examples)\b", rf"{package}/\1", text))
    example = package / "demo" / "examples" / "street.jpg"
    words = ("segment", example, "--classes", "car, tram", "--config", "segment-demo", "--to", tmp_path / "maps")
    segmenting = start(installed, *words, cwd=elsewhere)
    with start(installed, "serve", config, "--port", "0", cwd=elsewhere) as server:
        assert server.stderr is not None
        lines = iter(server.stderr.readline, "")
        address = next((match[0] for line in lines if (match := re.match(r"http://[\d.:]+", line))), None)
        assert address is not None, "it ended before it served"
        with example.open("rb") as street:
            form = {"data": {"classes": "car, tram"}, "files": {"picture": street}}
            answer = httpx2.post(address, headers={"Origin": address}, timeout=60, **form)
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)
    assert answer.status_code == 200
    assert re.search(r"results/\w+/street.json", answer.text)
    assert server.returncode == 130
    _, said = segmenting.communicate()
    assert segmenting.returncode == 0, said
    assert (tmp_path / "maps" / "street.labels.png").exists()
