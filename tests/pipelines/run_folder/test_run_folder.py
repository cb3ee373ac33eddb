"""A file of the run folder appears whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from maskmine.pipelines.run_folder.folder import RunFolder, read_folder
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.rows import ImageRow, VocabularyRow

ROWS = [ImageRow("1", "a.jpg"), ImageRow("2", None)]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(str(tmp_path / "run"))


def test_rows_come_back_and_carry_their_fingerprint(run: RunFolder) -> None:
    run.write_rows("images", "00000.parquet", rows=ROWS, row_type=ImageRow, fingerprint="f")
    assert run.read_rows("images", "00000.parquet", row_type=ImageRow, fingerprint="f") == ROWS
    assert run.read_fingerprint("images", "00000.parquet") == "f"


def test_done_lists_the_parts_of_which_every_file_is_there(run: RunFolder) -> None:
    for name in ("00000.tar", "00000.json", "00003.tar", "notes.txt", "_fingerprint.json", ".writing-x.tar"):
        with run.write("shards", name) as file:
            file.write(b"x")
    assert run.done("shards", suffixes=("tar", "json")) == {0}
    assert run.done("shards", suffixes=("tar",)) == {0, 3}
    assert run.done("nothing") == set()


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(run: RunFolder) -> None:
    run.write_json("a.json", value=1)

    def write_half() -> None:
        with run.write("a.json") as file:
            file.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert run.read_json("a.json") == 1
    assert os.listdir(run.root) == ["a.json"]


def test_a_full_disk_is_one_line_and_leaves_nothing(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(IncompleteError, match="the disk is full; free some space and run the same command again"):
        run.write_json("a.json", value=1)
    assert os.listdir(run.root) == []


def test_a_failing_rename_is_one_line_and_leaves_nothing(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(IncompleteError, match=r"a\.json: cannot be written"):
        run.write_json("a.json", value=1)
    assert os.listdir(run.root) == []


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(InputError, match="a file stands where a folder is needed"):
        RunFolder(str(tmp_path / "out")).write_json("a.json", value=1)


def test_a_missing_a_broken_and_a_foreign_cell_each_say_what_to_do(run: RunFolder) -> None:
    with pytest.raises(IncompleteError, match="missing; run the same command again"):
        run.read_rows("images", "00000.parquet", row_type=ImageRow)
    for content in (b"PAR1 nonsense", b"PAR1" + b"nonsense" + (8).to_bytes(4, "little") + b"PAR1"):
        with run.write("images", "00000.parquet") as file:
            file.write(content)
        with pytest.raises(IncompleteError, match="not a whole Parquet file; delete it"):
            run.read_rows("images", "00000.parquet", row_type=ImageRow)
        assert run.read_fingerprint("images", "00000.parquet") is None
    run.write_rows("images", "00000.parquet", rows=ROWS, row_type=ImageRow, fingerprint="old")
    with pytest.raises(IncompleteError, match="is another run writing here"):
        run.read_rows("images", "00000.parquet", row_type=ImageRow, fingerprint="new")
    with pytest.raises(ValueError, match="VocabularyRow"):
        run.read_rows("images", "00000.parquet", row_type=VocabularyRow)


def test_a_folder_that_is_no_run_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run folder"):
        read_folder(str(tmp_path))
    RunFolder(str(tmp_path)).write_rows("images", "00000.parquet", rows=ROWS, row_type=ImageRow, fingerprint="f")
    with pytest.raises(InputError, match="interrupted before its plan was whole"):
        read_folder(str(tmp_path))


def test_a_disk_that_cannot_be_read_is_one_line(run: RunFolder) -> None:
    os.makedirs(run.path("nouns", "00000.parquet"))  # a folder where a file is wanted
    for read in (run.read_json, run.read_bytes, run.read_table, run.read_fingerprint, run.delete):
        with pytest.raises(IncompleteError, match=r"00000\.parquet: Is a directory; mend the cause") as caught:
            read("nouns", "00000.parquet")
        assert "\n" not in str(caught.value)


def test_the_json_cells_of_a_step_come_in_the_order_that_was_asked_for(run: RunFolder) -> None:
    for part in (0, 1, 3):
        run.write_json("shards", f"{part:05d}.json", value=part)
    assert list(run.read_jsons("shards", [3, 0, 2, 1] * 200)) == [3, 0, None, 1] * 200
