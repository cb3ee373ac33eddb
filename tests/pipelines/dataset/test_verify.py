"""Whatever is broken in a finished set, `verify` names it with its file."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskmine.mining.storage.ownership import WRITING, owned_prefix
from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.rows import SampleRow
from maskmine.schemas.tables import from_table, to_table, write_parquet
from tests.support import toy
from tests.support.runs import run_toy

REMEDY = "delete it and run `maskmine mine` again"


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


# Files without which nothing else can be looked at, and those that vouch for the others.
FIRST = ("manifest.json", "plan.json", "_SUCCESS", "SHA256SUMS", "SHA256SUMS.run")


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def said(root: Path) -> list[str]:
    """What `verify` says, problems or the one line that ends it."""
    try:
        return problems(root)
    except (InputError, IncompleteError) as error:
        return [str(error)]


def unnamed(lines: list[str], names: Sequence[str]) -> list[str]:
    return [name for name in names if not any(name in line for line in lines)]


def flip(path: Path, place: float, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[round(place * (len(content) - 1))] ^= 1 << bit
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("place", [0, 0.5, 1, *np.random.default_rng(0).random(3)])
def test_a_flipped_bit_of_any_file_is_found(root: Path, place: float) -> None:
    assert len(files(root)) > 35
    rng = np.random.default_rng(round(place * 1000))
    others = [name for name in files(root) if name not in FIRST]
    for name in FIRST:
        content = (root / name).read_bytes()
        flip(root / name, place, int(rng.integers(8)))
        assert unnamed(said(root), [name]) == []
        (root / name).write_bytes(content)
    for name in others:
        flip(root / name, place, int(rng.integers(8)))
    assert unnamed(said(root), others) == []


@pytest.mark.parametrize("remove", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["removed", "emptied"])
def test_any_file_that_is_removed_or_emptied_is_named(root: Path, remove: Callable[[Path], None]) -> None:
    others = [name for name in files(root) if name not in FIRST]
    for name in FIRST:
        content = (root / name).read_bytes()
        remove(root / name)
        assert unnamed(said(root), [name]) == []
        (root / name).write_bytes(content)
    for name in others:
        remove(root / name)
    assert unnamed(said(root), others) == []


@pytest.mark.parametrize("name", ["SHA256SUMS", "SHA256SUMS.run"])
def test_without_a_file_of_sums_no_file_is_called_strange(root: Path, name: str) -> None:
    (root / name).unlink()
    found = problems(root)
    assert any(line.startswith(f"{name}: missing") for line in found)
    assert not [line for line in found if "is no file of this run" in line]


def test_a_file_too_many_is_named_in_every_folder(root: Path) -> None:
    added = [
        str((folder / name).relative_to(root))
        for folder in (root, *(path for path in root.iterdir() if path.is_dir()))
        for name in ("00003.tar", "00003.parquet", "00003.json", "notes.txt")
    ]
    for name in added:
        (root / name).write_bytes(b"x")
    assert [line for line in problems(root) if "is no file of this run; move it away" in line] == [
        f"{name}: is no file of this run; move it away" for name in sorted(added)
    ]


def test_verdicts_of_a_review_and_files_of_processes_at_work_are_no_additions(root: Path) -> None:
    (root / "verdicts").mkdir()
    (root / "verdicts" / "someone.parquet").write_bytes(b"x")
    (root / f"{owned_prefix(WRITING)}0a").write_bytes(b"x")
    assert problems(root) == []


@pytest.mark.parametrize("name", ["SHA256SUMS", "SHA256SUMS.run"])
def test_a_line_left_out_of_the_sums_is_found(root: Path, name: str) -> None:
    lines = (root / name).read_text().splitlines(keepends=True)
    for left_out in (0, len(lines) // 2, len(lines) - 1):
        (root / name).write_text("".join(lines[:left_out] + lines[left_out + 1 :]))
        assert problems(root)[0] == f"{name}: its SHA-256 is not the one in _SUCCESS; {REMEDY}"


def test_sums_that_name_what_lies_outside_are_no_sums(root: Path) -> None:
    sums = root / "SHA256SUMS.run"
    outside = (f"{'0' * 64}  {name}" for name in ("../../dev/zero", "..", "a/../../b", "a\0b", "."))
    sums.write_text(sums.read_text() + "\n".join(outside) + "\n")
    found = [line for line in problems(root) if "a line is no sum of a file of its own" in line]
    assert len(found) == 5


@pytest.mark.parametrize("content", ["[" * 100_000, "1" * 5_000], ids=["deep", "long number"])
def test_json_that_cannot_be_parsed_is_named(root: Path, content: str) -> None:
    for name in ("shards/sizes.json", "manifest.json"):
        (root / name).write_text(content)
        assert unnamed(said(root), [name]) == []


def test_a_pipe_in_place_of_a_cell_is_not_waited_for(root: Path) -> None:
    (root / "nouns" / "00001.parquet").unlink()
    os.mkfifo(root / "nouns" / "00001.parquet")
    (line,) = problems(root)
    assert line.startswith("nouns/00001.parquet: cannot be read, though SHA256SUMS.run names it (is no plain file)")


def test_a_folder_in_place_of_a_file_is_named_and_the_others_are_looked_at(root: Path) -> None:
    folders = ("nouns/00001.parquet", "shards/sizes.json", "shards/00000.tar", "shards/00001.parquet", "SHA256SUMS")
    for name in folders:
        (root / name).unlink()
        (root / name).mkdir()
    flip(root / "pairs" / "00001.parquet", 0.3, 2)
    found = problems(root)
    assert f"nouns/00001.parquet: cannot be read, though SHA256SUMS.run names it (Is a directory); {REMEDY}" in found
    assert unnamed(found, ["pairs/00001.parquet", *folders]) == []


def test_a_manifest_without_the_form_of_the_crops_is_named(root: Path) -> None:
    manifest = json.loads((root / "manifest.json").read_text())
    for settings in ({}, {"shards": {}}):
        (root / "manifest.json").write_text(json.dumps(manifest | {"settings": settings}))
        assert "manifest.json: its settings have no `shards.image_format`; run `maskmine mine` again" in problems(root)


@pytest.mark.parametrize("name", ["manifest.json", "plan.json"])
def test_any_value_of_another_kind_ends_in_lines_and_no_traceback(
    root: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    stored = (root / name).read_text()
    whole: list[Any] = []
    places(json.loads(stored), whole)
    values = [None, "x", [], {}, ["x"], {"a": 1}, -1, 10**400, True]
    for number in [*range(len(values)), *rng.integers(len(whole) * len(values), size=10).tolist()]:
        tree: list[Any] = []
        places(json.loads(stored), tree)
        change = values[number % len(values)]
        root_of, key = tree[number // len(values)] if number >= len(values) else (None, None)
        if root_of is not None:
            root_of[key] = change
        (root / name).write_text(json.dumps(tree[0][0] if root_of is not None else change))
        for command in ("verify", "status"):
            assert run_app([command, str(root)]) in (0, 2, 3, 4, 5), (number, command)
            assert "Traceback" not in capsys.readouterr().err


def places(tree: Any, found: list[tuple[Any, Any]]) -> None:
    """Append each container below a tree with each of its keys, the tree's own first."""
    for key in tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        found.append((tree, key))
        places(tree[key], found)


def test_the_sums_are_those_of_the_standard_tool(root: Path) -> None:
    command = ["sha256sum", "--check", "--strict", "--quiet", "_SUCCESS", "SHA256SUMS", "SHA256SUMS.run"]
    assert subprocess.run(command, cwd=root, check=False).returncode == 0


def test_the_command_names_the_file_and_ends_with_another_code(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(root / "pairs" / "00001.parquet", 0.3, 2)
    assert run_app(["verify", str(root)]) != 0
    assert "pairs/00001.parquet: its SHA-256 is not the one in SHA256SUMS.run" in capsys.readouterr().err


def test_a_picture_damaged_in_a_shard_is_found_before_it_is_shown(root: Path) -> None:
    run = FinishedRun.open(RunFolder(str(root)))
    row = next(run.all_rows(SampleRow))
    path = root / "shards" / row.shard
    content = bytearray(path.read_bytes())
    content[row.offset + 512 + 100] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(IncompleteError, match=f"sample {row.key} is not what was written there"):
        run.sample(row)


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


@pytest.mark.parametrize("score", ["similarity", "margin", "lift", "evidence", "confidence"])
def test_a_score_that_differs_between_record_and_index_is_found(root: Path, score: str) -> None:
    folder, name = RunFolder(str(root)), "00000.parquet"
    table = folder.read_table("shards", name)
    rows = [replace(row, **{score: 0.5}) for row in from_table(table, SampleRow)]
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    with folder.write("shards", name) as file:
        write_parquet(to_table(rows, SampleRow), file, metadata=metadata)
    resum(root, f"shards/{name}")
    found = [problem for problem in problems(root) if " sample " in problem]
    assert len(found) == len(rows)
    assert all(problem.endswith(".json and index differ") for problem in found)


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
