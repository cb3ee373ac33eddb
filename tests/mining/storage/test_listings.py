"""Listings of S3 come page by page, and name what a listing in one piece names."""

from __future__ import annotations

from itertools import islice

import pytest

from maskmine.mining.storage import listings
from maskmine.mining.storage.listings import below_folder, in_folder
from maskmine.mining.storage.stores import open_store
from maskmine.pipelines.run_folder.folder import RunFolder
from tests.support.runs import Server

pytest.importorskip("flask_cors", reason="needs moto's S3 server: pip install 'moto[server]'")
pytest.importorskip("s3fs", reason="needs s3fs: pip install '.[s3]'")
pytestmark = pytest.mark.filterwarnings("ignore:.*:ResourceWarning")
KEYS = [
    "run/a/0.parquet",
    "run/a/1.parquet",
    "run/a/2.parquet",
    "run/a/in/3.json",
    "run/plan.json",
    "runs/other",
    "x y",
]


@pytest.fixture
def filled(server: Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket with some objects, listed two at a time."""
    for key in KEYS:
        server.client.put_object(Bucket=bucket, Key=key, Body=b"x")
    server.client.put_object(Bucket=bucket, Key="run/a/", Body=b"")  # so some programs make a folder
    monkeypatch.setattr(listings, "_PAGE", 2)
    return bucket


@pytest.mark.parametrize(("folder", "inside"), [("run/a", ["0.parquet", "1.parquet", "2.parquet", "in"]), ("gone", [])])
def test_a_folder_has_the_names_in_it_alone(filled: str, folder: str, inside: list[str]) -> None:
    fs, path = open_store(f"s3://{filled}/{folder}")
    assert sorted(in_folder(fs, path)) == [f"{filled}/{folder}/{name}" for name in inside]
    assert RunFolder(f"s3://{filled}").names(folder) == inside


def test_all_files_below_a_folder_are_those_that_lie_there(filled: str) -> None:
    fs, path = open_store(f"s3://{filled}/run")
    assert sorted(below_folder(fs, path)) == [f"{filled}/{key}" for key in KEYS if key.startswith("run/")]
    fs, path = open_store(f"s3://{filled}")
    assert sorted(below_folder(fs, path)) == [f"{filled}/{key}" for key in KEYS]
    assert sorted(RunFolder(f"s3://{filled}/run").walk()) == [key[4:] for key in KEYS if key.startswith("run/")]


def test_no_page_is_asked_for_before_it_is_needed(server: Server, filled: str) -> None:
    fs, path = open_store(f"s3://{filled}/run")
    before = len(server.requests())
    found = below_folder(fs, path)
    list(islice(found, 1))
    assert len(server.requests()) - before == 1
    list(found)
    assert len(server.requests()) - before == 3


def test_a_bucket_that_is_not_there_has_no_names(server: Server) -> None:
    fs, path = open_store("s3://no-such-bucket-here/run")
    assert (list(in_folder(fs, path)), list(below_folder(fs, path))) == ([], [])


def test_another_store_is_listed_by_its_library() -> None:
    RunFolder("memory://listed").write_json("a", "b.json", value=1)
    fs, path = open_store("memory://listed")
    assert list(in_folder(fs, path)) == ["/listed/a"]
    assert list(below_folder(fs, path)) == ["/listed/a/b.json"]
