"""What a record names stays below the folder of the settings, whatever it calls itself; the other records go on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskmine.mining.images.read import read_bytes
from maskmine.mining.proposers.ground_truth import GroundTruth
from maskmine.mining.sources.coco import CocoCaptions
from maskmine.mining.sources.earlier_run import EarlierRun
from maskmine.mining.sources.hugging_face import HuggingFace
from maskmine.mining.sources.named_files import named_file
from maskmine.mining.sources.tables import TableCaptions
from maskmine.mining.storage.locations import file_name_of, parse_location
from maskmine.schemas.rows import Rejection
from tests.support import toy

SECRET = b"what nobody is to see"
INSIDE = ["a/1.jpg", "./1.jpg", "a/../1.jpg", "..1.jpg", "a..b/1.jpg", "~/1.jpg", "bytes:0+9.jpg:1.jpg", "escaped:%2F1"]
OUTSIDE = [
    *("../1.jpg", "a/../../1.jpg", "/etc/passwd", "file:///etc/passwd", "file://../1.jpg", "..\\1.jpg", "a\\..\\..\\1"),
    *(
        "/photos2/1.jpg",
        "//etc/passwd",
        "s3://other/1.jpg",
        "memory://other/1.jpg",
        "/photos/../x",
    ),
]


@pytest.mark.parametrize("name", INSIDE)
def test_a_name_below_the_folder_is_a_file_there(name: str) -> None:
    for root in ("/photos", "/photos/", "s3://bucket/photos", "memory://photos"):
        location = named_file(root, name)
        assert isinstance(location, str)
        assert location.startswith(root)
        assert parse_location(location) == location, "it is a file, and none of our own words"


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_elsewhere_is_rejected_unless_the_settings_allow_it(name: str) -> None:
    refused = named_file("/photos", name)
    assert isinstance(refused, Rejection)
    assert refused.reason == "outside_folder"
    assert "`images`" in refused.detail
    assert isinstance(named_file("/photos", name, outside=True), str)


@pytest.mark.parametrize(
    "name",
    [
        *("bytes:0+99:/etc/passwd", "bytes:0+99:file:///etc/passwd", "bytes:0+99.jpg:s3://other/1.jpg"),
        *("cell:0/0/image:/etc/x.parquet", "cell:0/0/image:s3://other/x.parquet"),
        *("fault:fetch_failed:no", "fault:fetch_failed:http://h", "escaped:%2Fetc%2Fpasswd", "escaped:file:///etc/x"),
    ],
)
def test_our_own_words_for_locations_are_names_of_files_in_data(name: str) -> None:
    for root in ("/photos", "photos", "", "."):
        for outside in (False, True):
            location = named_file(root, name, outside=outside)
            assert isinstance(location, Rejection) or parse_location(location) == location


@pytest.mark.parametrize(
    "location",
    [
        f"bytes:{'9' * 30}+5:FILE",
        f"bytes:0+{'9' * 5000}:FILE",
        f"cell:{'9' * 5000}/0/a:FILE",
        f"cell:{'9' * 9}/0/a:FILE",
        f"cell:0/{'9' * 18}/a:FILE",
        f"cell:0/0/{'b.' * 500}:FILE",
        "s3://[::1/a.jpg",
    ],
    ids=lambda location: location[:20],
)
def test_a_location_that_nobody_wrote_costs_its_image(tmp_path: Path, location: str) -> None:
    pq.write_table(pa.table({"a": [b"x"]}), tmp_path / "a.jpg")
    location = location.replace("FILE", str(tmp_path / "a.jpg"))
    assert file_name_of(location) in ("a.jpg", None)
    if "s3" not in location:
        assert isinstance(read_bytes(location), Rejection)


def test_a_fault_in_words_of_others_is_one_of_ours_in_letters_that_a_terminal_shows() -> None:
    assert parse_location("fault:missing_file:a\n\x1b[2Jé") == Rejection("missing_file", r"a\n\x1b[2Jé")
    assert parse_location("fault:evil:x") == Rejection("broken_record", "x")


def test_whole_paths_and_those_of_a_store_may_name_the_folder_itself(tmp_path: Path) -> None:
    assert named_file("/photos", "/photos/a/1.jpg") == "/photos/a/1.jpg"
    assert named_file("/photos", "file:///photos/1.jpg") == "/photos/1.jpg"
    assert named_file("s3://b/photos", "s3://b/photos/1.jpg") == "s3://b/photos/1.jpg"
    for other in ("s3://b/photos2/1.jpg", "s3://c/photos/1.jpg", "s3://b/photos/../1.jpg", "gs://b/photos/1.jpg"):
        assert isinstance(named_file("s3://b/photos", other), Rejection)
    assert named_file("/", "/photos/1.jpg") == "/photos/1.jpg"
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    assert isinstance(named_file(str(tmp_path / "link"), str(tmp_path / "there" / "1.jpg")), str)


def rows(source: Any) -> dict[str, str]:
    tables = list(source.read(images_per_part=10))
    return {row["image_id"]: row["path"] for table in tables for row in table.to_pylist() if row["path"] is not None}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    (tmp_path / "secret.jpg").write_bytes(SECRET)
    for path in (tmp_path / "photos" / "1.jpg", tmp_path / "photos" / "link.jpg"):
        path.symlink_to(tmp_path / "secret.jpg") if "link" in path.name else path.write_bytes(b"a picture")
    fsspec.filesystem("memory").pipe("/elsewhere/1.jpg", SECRET)
    return tmp_path


def names(folder: Path) -> dict[str, str]:
    """Names by the ids of their records: of a file in the folder, and of a secret beside it."""
    secret = folder / "secret.jpg"
    given = ["1.jpg", "../secret.jpg", str(secret), f"file://{secret}", f"bytes:0+9.jpg:{secret}"]
    given += [
        f"bytes:0+9.jpg:file://{secret}",
        "memory://elsewhere/1.jpg",
        "fault:no_masks:x",
        "fault:no_masks:http://x",
    ]
    return {str(number): name for number, name in enumerate(given)}


def source_of(kind: str, folder: Path, named: dict[str, str], **settings: Any) -> Any:
    records = [{"id": key, "path": name, "caption": "A square."} for key, name in named.items()]
    if kind == "coco":
        images = [{"id": one["id"], "file_name": one["path"]} for one in records]
        annotations = [{"id": n, "image_id": one["id"], "caption": "A."} for n, one in enumerate(records)]
        (folder / "c.json").write_text(json.dumps({"images": images, "annotations": annotations}))
        return CocoCaptions(annotations=str(folder / "c.json"), images=str(folder / "photos"), **settings)
    if kind == "hf":
        pictures = [{"bytes": None, "path": one["path"]} for one in records]
        column = pa.array(pictures, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
        table = pa.table({"image": column, "caption": ["A."] * len(records), "id": [one["id"] for one in records]})
        pq.write_table(table, folder / "t.parquet")
        files, images = str(folder / "t.parquet"), str(folder / "photos")
        return HuggingFace(kind="hf", files=files, images=images, id_col="id", **settings)
    column_name = "url_col" if kind == "url" else "path_col"
    (folder / "t.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in records))
    more = {column_name: "path", "images": str(folder / "photos"), "id_col": "id", **settings}
    return TableCaptions(kind="jsonl", files=str(folder / "t.jsonl"), **more)


@pytest.mark.parametrize("kind", ["coco", "jsonl", "hf", "url"])
def test_no_record_of_a_source_reaches_a_file_elsewhere_and_the_others_go_on(folder: Path, kind: str) -> None:
    named = names(folder) | ({"0": "https://host/1.jpg"} if kind == "url" else {})
    found = rows(source_of(kind, folder, named))
    assert set(found) == set(named)
    contents = {key: read_bytes(path) for key, path in found.items()}
    assert SECRET not in contents.values()
    assert {content.reason for content in contents.values() if isinstance(content, Rejection)} <= {
        "outside_folder",
        "missing_file",
    }
    assert contents["0"] == b"a picture" if kind != "url" else found["0"] == "https://host/1.jpg"
    refused = {key for key, path in found.items() if path.startswith("fault:outside_folder:")}
    assert refused == ({"3", "6"} if kind == "url" else {"1", "2", "3", "6"})  # what is no URL is missing


@pytest.mark.parametrize("kind", ["coco", "jsonl", "hf"])
def test_a_list_that_the_user_trusts_may_name_files_elsewhere(folder: Path, kind: str) -> None:
    found = rows(source_of(kind, folder, names(folder), outside=True))
    contents = {key: read_bytes(path) for key, path in found.items()}
    assert {key for key, content in contents.items() if content == SECRET} == {"1", "2", "3", "6"}


def test_a_url_is_left_to_the_setting_that_allows_them() -> None:
    assert named_file("/photos", "https://host/1.jpg") == "https://host/1.jpg"


def test_links_in_the_folder_are_followed(folder: Path) -> None:
    found = rows(source_of("coco", folder, {"1": "link.jpg"}))
    assert read_bytes(found["1"]) == SECRET


def test_an_earlier_run_may_be_held_to_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = EarlierRun(kind="run", files="run", images=str(folder / "photos"))._location
    inside = f"bytes:0+9.jpg:{folder}/photos/00000.tar"
    assert location(inside) == inside
    for outside in (f"{folder}/secret.jpg", f"bytes:0+9:{folder}/secret.jpg", "s3://bucket/1.jpg"):
        assert location(outside).startswith("fault:outside_folder:")
        assert EarlierRun(kind="run", files="run")._location(outside) == outside
    assert location("fault:missing_file:gone") == "fault:missing_file:gone"


def test_the_pngs_of_panoptic_segments_lie_in_their_folder(tmp_path: Path) -> None:
    (tmp_path / "segments").mkdir()
    toy.save_picture(tmp_path / "secret.png", ("square",))
    entry = {"image_id": 1, "file_name": "../secret.png", "segments_info": [{"id": 1, "category_id": 1}]}
    image = {"id": 1, "height": toy.HEIGHT_PX, "width": toy.WIDTH_PX}
    content = {"images": [image], "categories": [{"id": 1, "name": "square"}], "annotations": [entry]}
    (tmp_path / "p.json").write_text(json.dumps(content))
    propose = GroundTruth(
        kind="ground_truth", annotations=str(tmp_path / "p.json"), segments=str(tmp_path / "segments")
    ).open(device="cpu")
    from maskmine.mining.proposers.proposals import LoadedImage

    torch = pytest.importorskip("torch")
    rgb_3HW = torch.from_numpy(toy.draw(("square",)).transpose(2, 0, 1).copy())
    (answer,) = propose([LoadedImage("1", rgb_3HW)], min_score=0.0)
    assert isinstance(answer, Rejection)
    assert answer.reason == "no_masks"
    assert "does not lie in the folder that `proposals.segments` names" in answer.detail


def test_pictures_of_an_evaluation_lie_in_their_folder(tmp_path: Path) -> None:
    from maskmine.tuning.evaluation.labelled_regions import Instances

    (tmp_path / "photos").mkdir()
    toy.save_picture(tmp_path / "secret.png", ("square",))
    size = {"height": toy.HEIGHT_PX, "width": toy.WIDTH_PX}
    names = {1: "../secret.png", 2: os.fspath(tmp_path / "secret.png")}
    images = [{"id": key, "file_name": name, **size} for key, name in names.items()]
    box = [[1, 1, 9, 1, 9, 9, 1, 9]]
    objects = [{"id": key, "image_id": key, "category_id": 1, "segmentation": box, "iscrowd": 0} for key in names]
    content = {"images": images, "categories": [{"id": 1, "name": "square"}], "annotations": objects}
    (tmp_path / "i.json").write_text(json.dumps(content))
    regions = Instances(kind="instances", annotations=str(tmp_path / "i.json"), images=str(tmp_path / "photos")).open()
    assert list(regions.images) == []
    assert regions.left_out["outside_folder"] == 2
