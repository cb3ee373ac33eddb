"""`verify --index-only` reads no tar and no cell of a step, and finds what can be found without."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.dataset.sums import FileSums
from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.rows import SampleRow
from maskmine.schemas.tables import write_parquet_rows


@pytest.fixture
def run(mined: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(mined, tmp_path / "run"))


def found(folder: Path, *, index_only: bool = True) -> list[str]:
    return [str(problem) for problem in verify_run(RunFolder(str(folder)), index_only=index_only)]


def test_a_whole_set_is_whole_and_no_tar_is_opened(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    original = RunFolder.open

    def noting(self: RunFolder, *names: str) -> Any:
        opened.append("/".join(names))
        return original(self, *names)

    monkeypatch.setattr(RunFolder, "open", noting)
    assert found(run) == []
    assert {"manifest.json", "shards/00000.parquet", "shards/00000.json", "plan.json"} <= set(opened)
    assert not [name for name in opened if name.endswith(".tar") or name.startswith(("images/", "proposals/"))]
    assert run_app(["verify", str(run), "--index-only"]) == 0
    assert "no tar was read" in capsys.readouterr().out


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda run: (run / "shards/00000.tar").unlink(), "shards/00000.tar: missing, though SHA256SUMS names it"),
        (lambda run: (run / "pairs/00001.parquet").unlink(), "pairs/00001.parquet: missing, though SHA256SUMS.run"),
        (lambda run: cut(run / "shards/00001.parquet"), "shards/00001.parquet: its SHA-256 is not the one"),
        (lambda run: cut(run / "shards/00001.json"), "shards/00001.json: its SHA-256 is not the one"),
        (lambda run: cut(run / "README.md"), "README.md: its SHA-256 is not the one"),
        (lambda run: (run / "shards/00009.tar").touch(), "shards/00009.tar: is no file of this run"),
        (lambda run: (run / "_SUCCESS").unlink(), "_SUCCESS: missing"),
    ],
)
def test_what_can_be_seen_without_the_tars_is_named(run: Path, change: Callable[[Path], Any], problem: str) -> None:
    change(run)
    assert any(line.startswith(problem) for line in found(run))


def test_a_damaged_tar_is_for_the_whole_check_alone(run: Path) -> None:
    cut(run / "shards/00000.tar")
    assert found(run) == []
    assert any(line.startswith("shards/00000.tar: its SHA-256") for line in found(run, index_only=False))


@pytest.mark.parametrize("index_only", [True, False])
def test_a_key_of_two_shards_is_found(run: Path, index_only: bool) -> None:
    folder = RunFolder(str(run))
    first, second = (folder.read_rows("shards", f"{n:05d}.parquet", row_type=SampleRow) for n in (0, 1))
    with (run / "shards/00001.parquet").open("wb") as file:
        write_parquet_rows([first[0], *second[1:]], file, SampleRow)
    assert f"shards/00001.tar: key {first[0].key} is in the set twice" in found(run, index_only=index_only)


def test_sums_take_any_name_and_keep_few_files_open() -> None:
    sha256 = hashlib.sha256(b"").hexdigest()
    names = [f"folder{n}/00000.parquet" for n in range(200)] + ["shards/99999999999.tar", "a/b/00001.tar", "00001.tar"]
    with FileSums() as sums:
        for name in names:
            sums.put(name, sha256)
        assert len(sums._cells.names()) <= 64
        assert [name for name, _ in sums.sorted()] == sorted(names)
        assert all(sums.get(name) == sha256 for name in names)
        assert sums.get("nowhere/00000.parquet") is None
        assert sums.get("a/b/00002.tar") is None
