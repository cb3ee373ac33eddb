"""Whatever is broken in a finished set, `verify` names it with its file."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.run_folder import RunFolder
from pipelines.verify import verify_run
from schemas.errors import IncompleteError, InputError
from schemas.rows import SampleRow
from tests import toy
from tests.test_mine import run_toy


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = toy.write_toy_world(tmp_path_factory.mktemp("verify"))
    run_toy(toy.write_config(folder))
    return folder / "run"


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def problems(root: Path) -> list[str]:
    return [str(problem) for problem in verify_run(RunFolder(str(root)))]


def resum(root: Path, name: str) -> None:
    """Write the right checksum of a changed file, as a careless repair would, so that only the content tells."""
    sums = root / "SHA256SUMS"
    digest = hashlib.sha256((root / name).read_bytes()).hexdigest()
    lines = [line if not line.endswith(f"  {name}") else f"{digest}  {name}" for line in sums.read_text().splitlines()]
    sums.write_text("\n".join(lines) + "\n")


def rewrite(root: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Rewrite the largest shard, member by member; sizes that change move what follows."""
    path = max((root / "shards").glob("*.tar"), key=lambda p: p.stat().st_size)
    with tarfile.open(path) as tar:
        read = [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for info, content in read:
            changed = change(info.name, content)
            info.size = len(changed)
            tar.addfile(info, io.BytesIO(changed))
    resum(root, f"shards/{path.name}")


def test_a_sound_set_has_no_problem(root: Path) -> None:
    assert problems(root) == []


@pytest.mark.parametrize("name", ["shards/00000.tar", "shards/00001.parquet", "manifest.json", "README.md"])
def test_a_changed_byte_is_found_by_its_checksum(root: Path, name: str) -> None:
    content = bytearray((root / name).read_bytes())
    content[len(content) // 2] ^= 1
    (root / name).write_bytes(bytes(content))
    try:
        found = problems(root)
    except (InputError, IncompleteError) as error:
        found = [str(error)]
    assert any(name in line for line in found)


@pytest.mark.parametrize("name", ["shards/00000.tar", "shards/00001.parquet", "shards/sizes.json", "_SUCCESS"])
def test_a_missing_file_is_named(root: Path, name: str) -> None:
    (root / name).unlink()
    assert any(line.startswith(name) or name in line for line in problems(root))


def test_a_tar_cut_between_two_samples_is_found_though_it_reads_without_error(root: Path) -> None:
    path = max((root / "shards").glob("*.tar"), key=lambda p: p.stat().st_size)
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-4].offset
    path.write_bytes(path.read_bytes()[:last] + b"\0" * 1024)
    resum(root, f"shards/{path.name}")
    assert any("its members are missing" in line for line in problems(root))


def test_a_mask_of_other_values_is_found(root: Path) -> None:
    def grey(name: str, content: bytes) -> bytes:
        if not name.endswith(".mask.png"):
            return content
        with Image.open(io.BytesIO(content)) as image:
            buffer = io.BytesIO()
            Image.fromarray((np.asarray(image) // 2).astype(np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()

    rewrite(root, grey)
    assert any("other values than 0 and 255" in line for line in problems(root))


def test_a_noun_that_differs_between_members_is_found(root: Path) -> None:
    rewrite(root, lambda name, content: b"wrong!"[: len(content)] if name.endswith(".txt") else content)
    assert any("the noun differs" in line for line in problems(root))


def test_a_record_without_a_key_is_found(root: Path) -> None:
    def without(name: str, content: bytes) -> bytes:
        if not name.endswith(".json"):
            return content
        record = json.loads(content)
        del record["rank"]
        return json.dumps(record).encode()

    rewrite(root, without)
    assert any("does not have the keys of the format" in line for line in problems(root))


def test_a_wrong_total_is_found(root: Path) -> None:
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["totals"]["with_pairs"] += 1
    (root / "manifest.json").write_text(json.dumps(manifest))
    resum(root, "manifest.json")
    assert any("images are not those with pairs plus those rejected" in line for line in problems(root))


def test_a_set_of_another_format_version_is_refused(root: Path) -> None:
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["format_version"] = 99
    (root / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="format version 99"):
        problems(root)


def test_an_unfinished_run_is_incomplete(root: Path) -> None:
    (root / "manifest.json").unlink()
    with pytest.raises(IncompleteError, match="not finished"):
        problems(root)


def test_an_index_that_points_elsewhere_is_found(root: Path) -> None:
    run = RunFolder(str(root))
    name = max((root / "shards").glob("*.parquet"), key=lambda p: p.stat().st_size).name
    rows = run.read_rows("shards", name, row_type=SampleRow)
    moved = [replace(row, offset=row.offset + 512) for row in rows]
    fingerprint = run.read_fingerprint("shards", name)
    assert fingerprint is not None
    run.write_rows("shards", name, rows=moved, row_type=SampleRow, fingerprint=fingerprint)
    resum(root, f"shards/{name}")
    assert any("does not lie where the index says" in line for line in problems(root))
