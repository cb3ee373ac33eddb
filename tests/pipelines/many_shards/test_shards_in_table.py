"""A set of so many shards that they stand in a table beside the manifest: all that reads a set reads it alike."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from maskmine.pipelines.cli.main import run_app
from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.dataset.limits import read_manifest
from maskmine.pipelines.dataset.verify import verify_run
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.mine import mine
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.mining import load_mining
from maskmine.schemas import manifest as manifests
from maskmine.schemas import shard_entries
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.sample import READABLE_VERSIONS
from maskmine.schemas.shard_entries import ShardsInTable
from maskmine.tuning.clip.data import Data, open_sets
from tests.support import mixes
from tests.support.growing import append_file, base_config, write_pieces
from tests.support.runs import Recorder, hashes, run_toy
from tests.support.toy_shards import contents, export

pytestmark = pytest.mark.usefixtures("one_tagger")
TABLE = "shards.parquet"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pieces(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def listed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set whose manifest lists its two shards; nothing changes it."""
    out = tmp_path_factory.mktemp("listed") / "run"
    run_toy(base_config(world, out, shards={"images_per_part": 2}))
    return out


@pytest.fixture(scope="module")
def low_limit() -> Iterator[None]:
    """More than one shard are many, and stand in a table of a row in a group."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_entries, "MOST_LISTED", 1)
        patch.setattr(shard_entries, "_ROWS_AT_ONCE", 1)
        yield


@pytest.fixture(scope="module")
def tabled(listed: Path, world: Path, low_limit: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same set with its shards in a table; nothing changes it."""
    out = tmp_path_factory.mktemp("tabled") / "run"
    run_toy(base_config(world, out, shards={"images_per_part": 2}))
    return out


@pytest.fixture
def run(tabled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tabled, tmp_path / "run"))


def faults(folder: Path) -> list[str]:
    return [str(problem) for problem in verify_run(RunFolder(str(folder)))]


def test_the_shards_are_the_same_in_a_table(listed: Path, tabled: Path) -> None:
    of_list, of_table = (FinishedRun.open(RunFolder(str(folder))).manifest for folder in (listed, tabled))
    assert isinstance(of_list.shards, tuple)
    assert isinstance(of_table.shards, ShardsInTable)
    assert pq.read_metadata(tabled / TABLE).num_row_groups == len(of_list.shards) == 2
    assert tuple(of_table.shards) == of_list.shards == tuple(of_table.shards[number] for number in range(2))
    assert of_table.shards[-1] == of_list.shards[-1]
    assert of_table.shards[:1] == [of_list.shards[0]]
    assert of_table.format_version == of_list.format_version
    with pytest.raises(IndexError):
        of_table.shards[2]
    before, after = hashes(str(listed)), hashes(str(tabled))
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {TABLE, "manifest.json", "croissant.json", "SHA256SUMS"}  # croissant.json names them by a pattern
    assert f"  {TABLE}\n" in (tabled / "SHA256SUMS").read_text()
    assert faults(tabled) == []


def test_the_same_run_gives_the_same_table(tabled: Path, world: Path, tmp_path: Path) -> None:
    again = tmp_path / "again" / "run"
    again.parent.mkdir()
    run_toy(base_config(world, again, shards={"images_per_part": 2}))
    assert hashes(str(again)) == hashes(str(tabled))
    for name in ("_SUCCESS", "manifest.json", TABLE):
        (again / name).unlink()
    run_toy(base_config(world, again, shards={"images_per_part": 2}))
    assert hashes(str(again)) == hashes(str(tabled))


def test_exports_and_tuning_read_it(listed: Path, tabled: Path, tmp_path: Path) -> None:
    for to in ("coco", "webdataset"):
        one, other = (export(folder, tmp_path / f"{to}-{folder.parent.name}", to) for folder in (listed, tabled))
        mine, theirs = ({k: v for k, v in contents(out).items() if not k.endswith(".json")} for out in (one, other))
        assert mine == theirs
        assert one != other
    pairs = [
        open_sets(Data.model_validate({"sources": [{"folder": str(folder)}]}))[0].index for folder in (listed, tabled)
    ]
    assert len(pairs[0])
    assert pairs[0].equals(pairs[1])


def test_a_mix_of_it_is_a_mix_of_what_it_holds_and_has_a_table(listed: Path, tabled: Path, tmp_path: Path) -> None:
    for name, folder in (("of_list", listed), ("of_table", tabled)):
        mixes.mix(tmp_path / name, f"{folder}:1", samples_per_shard=1)
    of_list, of_table = hashes(str(tmp_path / "of_list")), hashes(str(tmp_path / "of_table"))
    assert TABLE in of_table
    assert of_list == of_table
    assert faults(tmp_path / "of_table") == []
    (tmp_path / "of_table" / TABLE).unlink()
    assert not mixes.mix(tmp_path / "of_table", f"{tabled}:1", samples_per_shard=1).was_complete
    assert hashes(str(tmp_path / "of_table")) == of_list


def test_a_set_grows_into_a_table(listed: Path, tabled: Path, run: Path, world: Path, tmp_path: Path) -> None:
    small = Path(shutil.copytree(listed, tmp_path / "listed"))
    for folder in (run, small):
        append_file(folder, world / "second.json")
    assert faults(run) == faults(small) == []
    shards = FinishedRun.open(RunFolder(str(run))).manifest.shards
    assert shards == FinishedRun.open(RunFolder(str(small))).manifest.shards
    assert len(shards) > 2
    assert [s.name for s in shards][:2] == ["00000.tar", "00001.tar"]


def test_regions_of_it_are_reused_and_reports_are_made(tabled: Path, world: Path, tmp_path: Path) -> None:
    settings, recorder = (
        load_mining(str(base_config(world, tmp_path / "new", shards={"images_per_part": 2}))),
        Recorder(),
    )
    mine(settings, engine=LocalEngine(), observer=recorder, regions_from=str(tabled))
    assert recorder.steps == ["nouns", "vocabulary", "pairs", "shards"]
    assert faults(tmp_path / "new") == []
    for command in (["report", str(tabled), "--to", str(tmp_path / "report.html")], ["status", str(tabled)]):
        assert run_app(command) == 0


def test_a_table_that_is_missing_or_damaged_is_named_in_a_line(
    run: Path, tabled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (run / TABLE).read_bytes()

    def one_line() -> str:
        (problem,) = faults(run)
        assert run_app(["verify", str(run)]) == 4
        assert capsys.readouterr().err.strip().splitlines() == [problem]
        code = run_app(["export", str(run), "--to", "coco", "--out", str(tmp_path / "out")])
        assert code == 4
        assert TABLE in capsys.readouterr().err
        return problem

    (run / TABLE).unlink()
    assert one_line().startswith(f"{TABLE}: missing; run")
    for damaged in (whole[:-5], b"", bytes([whole[20] ^ 1]).join((whole[:20], whole[21:]))):
        (run / TABLE).write_bytes(damaged)
        assert one_line().startswith(f"{TABLE}: not the table that manifest.json names; delete it and run")


def test_a_missing_table_is_written_again(run: Path, world: Path, tabled: Path) -> None:
    (run / TABLE).unlink()
    run_toy(base_config(world, run, shards={"images_per_part": 2}))
    assert hashes(str(run)) == hashes(str(tabled))


def test_sizes_for_loaders_are_checked_against_the_table(run: Path) -> None:
    sizes = run / "shards" / "sizes.json"
    for other in (b" " + sizes.read_bytes(), sizes.read_bytes()[:-1], sizes.read_bytes() + b"\n"):
        sizes.write_bytes(other)
        assert any(fault.startswith("shards/sizes.json: not the samples of the manifest") for fault in faults(run))


def test_a_table_of_other_rows_than_the_manifest_says_is_refused(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["shards"]["rows"] == 2
    manifest["shards"]["rows"] = 3
    shards = read_manifest(manifest, RunFolder(str(run))).shards
    with pytest.raises(IncompleteError, match=f"{TABLE}: not the table that manifest.json names"):
        list(shards)
    manifest["shards"] |= {"rows": 2, "sha256": hashlib.sha256(b"").hexdigest()}
    with pytest.raises(IncompleteError, match=TABLE):
        read_manifest(manifest, RunFolder(str(run))).shards[0]
    manifest["shards"]["table"] = "../elsewhere.parquet"
    with pytest.raises(InputError, match="not a manifest"):
        read_manifest(manifest, RunFolder(str(run)))


def test_earlier_readers_refuse_a_table_by_its_version(tabled: Path) -> None:
    """They look at `format_version` before anything else, and name the version that they do not know."""
    stored = json.loads((tabled / "manifest.json").read_text())
    assert stored["format_version"] == manifests.TABLE_VERSION
    assert stored["format_version"] not in READABLE_VERSIONS
    assert stored["sample_version"] in READABLE_VERSIONS
