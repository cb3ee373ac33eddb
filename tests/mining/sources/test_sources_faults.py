"""Faulty tars, tables and earlier runs as caption sources: each costs its faulty samples or is named in one line."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskmine.mining.images.read import read_bytes
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import ImageRow, Rejection
from tests.support.hostile import corrupt_inputs as faults
from tests.support.source_formats import WRAPPINGS, Captioned, config_of, planned, tar_of


def outcome(config: Path) -> dict[str, str | None]:
    """The images of a plan by their ids, with the reason why their pictures cannot be read; None where they can."""
    _, images, captions = planned(config)
    assert [row.image_id for row in images] == [row.image_id for row in captions]
    return outcome_of(images)


def outcome_of(images: Sequence[ImageRow]) -> dict[str, str | None]:
    """The reasons why pictures cannot be read, by the images' ids; None where they can."""
    read = {row.image_id: read_bytes(row.path) for row in images}
    assert len(read) == len(images)
    return {image_id: data.reason if isinstance(data, Rejection) else None for image_id, data in read.items()}


@pytest.mark.parametrize("name", faults.TARS)
def test_a_faulty_tar_costs_its_faulty_samples_or_is_named_in_one_line(tmp_path: Path, name: str) -> None:
    fault = faults.TARS[name]
    (tmp_path / "00000.tar").write_bytes(fault.content)
    config = config_of(tmp_path, {"kind": "img2dataset", "files": str(tmp_path)})
    if fault.said is None:
        assert outcome(config) == fault.images
        return
    with pytest.raises(InputError, match=r"00000\.tar|/: no sample|no sample") as caught:
        planned(config)
    assert fault.said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_whole_samples_of_a_cut_tar_are_used_when_the_user_says_so(tmp_path: Path) -> None:
    for n, name in enumerate(("cut inside a member", "cut between members", "cut inside a header", "empty file")):
        (tmp_path / f"{n:05d}.tar").write_bytes(faults.TARS[name].content)
    source = {"kind": "img2dataset", "files": str(tmp_path), "truncated": "keep", "ids": "tar_and_key"}
    assert outcome(config_of(tmp_path, source)) == {
        "00000/good": None,
        "00000/last": "broken_record",
        "00001/good": None,
        "00002/good": None,
    }


def test_what_img2dataset_wrote_and_the_tar_has_lost_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(tar_of(faults.GOOD))
    keys, status = ["good", "gone", "never"], ["success", "success", "failed_to_download"]
    pq.write_table(pa.table({"key": keys, "status": status}), tmp_path / "00000.parquet")
    config = config_of(tmp_path, {"kind": "img2dataset", "files": str(tmp_path)})
    assert outcome(config) == {"good": None, "gone": "broken_record"}


def test_tars_with_the_same_keys_are_refused_with_the_way_out(tmp_path: Path) -> None:
    for n in range(2):
        (tmp_path / f"{n:05d}.tar").write_bytes(tar_of(faults.GOOD))
    source = {"kind": "img2dataset", "files": str(tmp_path / "*.tar")}
    with pytest.raises(InputError, match=r"image id good more than once .* or set `ids: tar_and_key`"):
        planned(config_of(tmp_path, source))
    assert set(outcome(config_of(tmp_path, {**source, "ids": "tar_and_key"}))) == {"00000/good", "00001/good"}


@pytest.mark.parametrize("name", faults.TABLES)
def test_a_faulty_table_costs_its_faulty_rows_or_is_named_in_one_line(tmp_path: Path, name: str) -> None:
    fault = faults.TABLES[name]
    file = f"table.{fault.kind}"
    (tmp_path / file).write_bytes(fault.content)
    (tmp_path / "good.png").write_bytes(faults.SQUARE)
    columns = {"id_col": "id", "path_col": "path"}
    config = config_of(tmp_path, {"kind": fault.kind, "files": str(tmp_path / file), **columns})
    if fault.images is not None:
        found = outcome(config)
        assert {image_id.removeprefix(file): reason for image_id, reason in found.items()} == fault.images
        return
    with pytest.raises(InputError, match=file.replace(".", r"\.")) as caught:
        planned(config)
    assert str(fault.said) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three images in three parts, of which no more than the plan was made."""
    folder = tmp_path_factory.mktemp("earlier")
    images = [Captioned(name, faults.SQUARE, (f"A square {name}.",), "png") for name in "abc"]
    planned(config_of(folder, WRAPPINGS["coco"](folder / "in", images), shards={"images_per_part": 1}))
    return folder / "run"


@pytest.mark.parametrize("name", faults.RUNS)
def test_a_damaged_earlier_run_is_named_in_one_line(tmp_path: Path, earlier: Path, name: str) -> None:
    fault = faults.RUNS[name]
    shutil.copytree(earlier, tmp_path / "old")
    fault.harm(tmp_path / "old")
    config = config_of(tmp_path, {"kind": "run", "files": str(tmp_path / "old")})
    if fault.said is None:
        assert outcome(config) == dict.fromkeys("abc")
        return
    with pytest.raises(InputError, match="old") as caught:
        planned(config)
    assert fault.said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_faulty_captions_for_an_earlier_run_cost_themselves_and_none_of_its_images(
    tmp_path: Path, earlier: Path
) -> None:
    lines = [
        {"id": "a", "caption": "new"},
        {"id": "b", "caption": {"no": "text"}},
        {"id": "z", "caption": "x"},
        {"x": 1},
    ]
    (tmp_path / "new.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + "{broken\n")
    run = {"kind": "run", "files": str(earlier), "captions": False}
    config = config_of(tmp_path, [run, {"kind": "jsonl", "files": str(tmp_path / "new.jsonl"), "id_col": "id"}])
    _, images, captions = planned(config)
    assert {row.image_id: row.captions for row in captions if row.captions} == {"a": ("new",), "b": ("",), "z": ("x",)}
    lost = {"new.jsonl#4": "broken_record", "new.jsonl#5": "broken_record"}
    assert outcome_of([row for row in images if row.path]) == {**dict.fromkeys("abc"), **lost}
    assert [row.image_id for row in images if row.path is None] == ["z"]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_zipped_table_that_breaks_off_is_one_line(tmp_path: Path, kind: str) -> None:
    rows = b"id,path,caption\n" + b"".join(b"%d,a.png,x\n" % n for n in range(5000))
    (tmp_path / f"t.{kind}.gz").write_bytes(gzip.compress(rows)[:-2000])
    source = {"kind": kind, "files": str(tmp_path / f"t.{kind}.gz"), "id_col": "id", "path_col": "path"}
    with pytest.raises(InputError, match="not a whole gzip file"):
        planned(config_of(tmp_path, source))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"kind": "img2dataset", "files": "{}/none"}, "none: no such file"),
        ({"kind": "img2dataset", "files": "{}/none-*.tar"}, "no such file"),
        ({"kind": "img2dataset", "files": "{}"}, "no .tar or .tar.gz"),
        ({"kind": "jsonl", "files": "{}", "path_col": "a"}, "no .jsonl or .jsonl.gz"),
        ({"kind": "folder", "files": "{}/none"}, "is no folder"),
        ({"kind": "folder", "files": "{}"}, "no .jpg, .png, .webp or .txt in it"),
        ({"kind": "run", "files": "{}"}, "is no run folder"),
        ({"kind": "csv", "files": "https://host/a.csv", "path_col": "a"}, "files are not read or written there"),
    ],
)
def test_a_source_that_is_not_there_is_one_line(tmp_path: Path, source: dict[str, str], said: str) -> None:
    (tmp_path / "in").mkdir()
    filled = {key: value.replace("{}", str(tmp_path / "in")) for key, value in source.items()}
    with pytest.raises(InputError) as caught:
        planned(config_of(tmp_path, filled))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
