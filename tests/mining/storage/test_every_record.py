"""The law of the accounts: whatever a source holds ends as an image with pairs or as one rejection with its own reason.

Each source below holds one of every kind of bad record beside good ones. What it holds is counted where it is written,
and not by what the program saw of it.
"""

from __future__ import annotations

import json
import os
import tarfile
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskmine.mining.sources.webdataset import Img2dataset
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.steps.status import rejected_images
from maskmine.schemas.mask import Mask
from tests.support import toy
from tests.support.conformance import assert_the_account_holds
from tests.support.hostile.corrupt_images import RGB, encoded
from tests.support.hostile.corrupt_inputs import SQUARE
from tests.support.runs import run_toy, samples
from tests.support.source_formats import config_of, planned, tar_of

pytestmark = pytest.mark.usefixtures("one_tagger")

Held = dict[str, str | None]
"""The records of a source by the ids of their images: why each is rejected (reason and some words), None for pairs."""
Source = Callable[[Path], tuple[dict[str, Any], Held]]

SAID = "A square."
BAD_PICTURES: dict[str, bytes] = {"text.jpg": b"no picture", "cut.png": SQUARE[:60], "empty.png": b""}


def save(folder: Path, **contents: bytes) -> None:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def a_coco_file(folder: Path) -> tuple[dict[str, Any], Held]:
    decomposed = unicodedata.normalize("NFD", "é.png")
    save(folder / "images", **{"train/1.png": SQUARE, decomposed: SQUARE, **BAD_PICTURES})
    (folder / "images" / "folder.png").mkdir()
    files = {"good": "train/1.png", "windows": "train\\1.png", "composed": "é.png"}
    files |= {"text": "text.jpg", "cut": "cut.png", "empty": "empty.png", "gone": "gone.png", "folder": "folder.png"}
    files |= dict.fromkeys(("silent", "vain", "other"), "train/1.png")
    said = {**dict.fromkeys((*files, "unlisted"), SAID), "silent": " ", "vain": "It is.", "other": "A zebra."}
    held: Held = {
        **dict.fromkeys(("good", "windows", "composed"), None),
        "text": "decode_error: not a picture",
        "cut": "decode_error: broken PNG",
        "empty": "decode_error: empty file",
        "gone": "missing_file: gone.png: no such file",
        "folder": "missing_file: folder.png: a folder",
        "silent": "no_caption: 1 caption without text",
        "vain": "no_nouns: no noun",
        "other": "no_match: ",
        "unlisted": "missing_file: the captions name this image, the image list does not",
    }
    tree = {
        "images": [{"id": f"coco {key}", "file_name": name} for key, name in files.items()],
        "annotations": [
            {"id": n, "image_id": f"coco {key}", "caption": caption} for n, (key, caption) in enumerate(said.items())
        ],
    }
    (folder / "captions.json").write_text(json.dumps(tree))
    source = {"kind": "coco", "annotations": str(folder / "captions.json"), "images": str(folder / "images")}
    return source, {f"coco {key}": reason for key, reason in held.items()}


def a_folder(folder: Path) -> tuple[dict[str, Any], Held]:
    root = folder / "folder"
    good = ["a.png", "b.v2.PNG", "in [brackets]/c.png", "d.jfif", "caf%E9.png"]
    for name in good:
        raw = os.fsencode(root / name).replace(b"%E9", b"\xe9")
        os.makedirs(os.path.dirname(raw), exist_ok=True)
        for path, content in ((raw, SQUARE), (os.path.splitext(raw)[0] + b".txt", SAID.encode())):
            with open(path, "wb") as file:
                file.write(content)
    save(root, **{f"{unicodedata.normalize('NFD', 'é')}.png": SQUARE, "é.txt": b"A square.", "whole.png": SQUARE})
    save(root, **{"whole.png.txt": b"A square.", "Case.png": SQUARE, "case.txt": SAID.encode("utf-16")})
    save(root, **BAD_PICTURES, **{f"{Path(name).stem}.txt": b"A square." for name in BAD_PICTURES})
    save(root, **{"silent.png": SQUARE, "blank.png": SQUARE, "blank.txt": b"\n \n", "alone.txt": b"A square."})
    save(
        root,
        **{"two.png": SQUARE, "two.gif": SQUARE, "two.txt": b"A square.", "latin.png": SQUARE, "latin.txt": b"\xe9"},
    )
    save(
        root,
        **{
            "long.png": SQUARE,
            "long.txt": b"x" * (1 << 20) + b"x",
            "phone.heic": b"\0\0\0\x18ftypheic",
            "phone.txt": b"A square.",
        },
    )
    save(root, **{"._a.png": b"\0\5\x16\7", "__MACOSX/._a.png": b"\0\5\x16\7", "Thumbs.db": b"", ".DS_Store": b""})
    save(root, **{"both.jpg": SQUARE, "both.HEIC": b"", "both.txt": b"A square.", "map.ppm": b"P6", "map.txt": b"x"})
    (root / "lost.png").symlink_to("nowhere.png")
    (root / "dangling.png").write_bytes(SQUARE)
    (root / "dangling.txt").symlink_to("nowhere.txt")
    (folder / "elsewhere").mkdir()
    save(folder / "elsewhere", **{"linked.png": SQUARE, "linked.txt": b"A square."})
    (root / "link").symlink_to(folder / "elsewhere")
    (root / "link up").symlink_to(root)
    held: Held = {
        **dict.fromkeys(
            ("a", "b.v2", "in [brackets]/c", "d", "caf%E9", "é", "whole", "Case", "link/linked", "both"), None
        ),
        "text": "decode_error: not a picture",
        "cut": "decode_error: broken PNG",
        "empty": "decode_error: empty file",
        "silent": "no_caption: 1 caption without text",
        "blank": "no_caption: 1 caption without text",
        "alone": "missing_file: no picture beside the .txt",
        "two": "broken_record: 2 pictures of this name",
        "latin": "broken_record: the .txt is no UTF-8 at byte 0",
        "long": "broken_record: its .txt has more than",
        **dict.fromkeys(("phone", "map"), "decode_error: not a picture"),
        "lost": "missing_file: lost.png: no such file",
        "dangling": "broken_record: its .txt cannot be read",
    }
    return {"kind": "folder", "files": str(root)}, held


def tars(folder: Path) -> tuple[dict[str, Any], Held]:
    """Two tars, the first of two that were joined, the second cut off."""
    link = tarfile.TarInfo("link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    texts = {key: (f"{key}.txt", SAID.encode()) for key in ("a", "x.rf.1", "x.rf.2", "gif", "link", "lone", "cut", "b")}
    first = tar_of(
        [("a.png", SQUARE), texts["a"], ("x.rf.1.png", SQUARE), texts["x.rf.1"], ("gif.gif", encoded(RGB, "GIF"))]
    )
    behind: list[Any] = [texts["gif"], ("x.rf.2.png", SQUARE), texts["x.rf.2"], link, texts["link"], texts["lone"]]
    behind += [
        ("cut.png", SQUARE[:60]),
        texts["cut"],
        ("mute.png", SQUARE),
        ("latin.png", SQUARE),
        ("latin.txt", b"\xe9"),
    ]
    behind += [("twice.png", SQUARE), ("twice.png", SQUARE), ("._a.png", b"\0\5\x16\7"), (".DS_Store", b"")]
    save(folder / "tars", **{"0.tar": first + tar_of(behind)})
    last = tar_of([("b.png", SQUARE), texts["b"], ("torn.png", SQUARE)])
    save(
        folder / "tars",
        **{"1.tar": last[: 512 * 3 + len(SQUARE) // 512 * 512 + 512 + 512 + 60], "._1.tar": b"\0\5\x16\7"},
    )
    keys = ["a", "x.rf.1", "gone", "never"]
    table = pa.table({"key": keys, "status": ["success", "success", "success", "failed_to_download"]})
    pq.write_table(table, folder / "tars" / "0.parquet")
    held: Held = {
        **dict.fromkeys(("a", "x.rf.1", "x.rf.2", "gif", "b"), None),
        "link": "broken_record: a link",
        "lone": "missing_file: the tar has no picture",
        "cut": "decode_error: ",
        "mute": "no_caption: 1 caption without text",
        "latin": "broken_record: the .txt of this key is no UTF-8",
        "twice": "broken_record: two members .png",
        "torn": "broken_record: the tar ends inside this member",
        "gone": "broken_record: img2dataset counts this key, the tar lacks it",
    }
    source = {"kind": "img2dataset", "files": str(folder / "tars"), "truncated": "keep", "ids": "tar_and_key"}
    return source, {f"{'1' if key in ('b', 'torn') else '0'}/{key}": reason for key, reason in held.items()}


def tars_with_records(folder: Path) -> tuple[dict[str, Any], Held]:
    """Captions in a field of each .json."""
    records = {"good": b'{"text": "A square."}', "dots.v1": b'{"text": ["A square."]}', "broken": b"{", "list": b"[1]"}
    records |= {"other": b'{"alt": "A square."}', "deep": b"[" * 100_000}
    members = [
        (f"web {key}{suffix}", one)
        for key, text in records.items()
        for suffix, one in ((".png", SQUARE), (".json", text))
    ]
    save(folder / "records", **{"0.tar": tar_of(members)})
    bad = "broken_record: the .json of this key is no JSON object"
    held: Held = {"good": None, "dots.v1": None, "broken": bad, "list": bad, "deep": bad}
    held["other"] = "no_caption: 1 caption without text"
    source = {"kind": "img2dataset", "files": str(folder / "records"), "caption_col": "text"}
    return source, {f"web {key}": reason for key, reason in held.items()}


TABLE: dict[str, tuple[str | None, str | None, str | None]] = {
    "good": ("{}-good", "1.png", SAID),
    "windows": ("{}-windows", "in\\1.png", SAID),
    "composed": ("{}-composed", "é.png", SAID),
    "cut": ("{}-cut", "cut.png", SAID),
    "gone": ("{}-gone", "gone.png", SAID),
    "pathless": ("{}-pathless", None, SAID),
    "silent": ("{}-silent", "1.png", None),
    "nameless": (None, "1.png", SAID),
}
"""Id, path and caption of a table's rows; `{}` is the kind."""
TABLE_HELD: Held = {
    **dict.fromkeys(("good", "windows", "composed"), None),
    "cut": "decode_error: broken PNG",
    "gone": "missing_file: gone.png: no such file",
    "pathless": "missing_file: the record's `path` names no file",
    "silent": "no_caption: 1 caption without text",
    "nameless": "broken_record: no usable `id`",
}


def a_table(kind: str) -> Source:
    def write(folder: Path) -> tuple[dict[str, Any], Held]:
        root = folder / kind
        save(
            root, **{"1.png": SQUARE, "in/1.png": SQUARE, unicodedata.normalize("NFD", "é.png"): SQUARE, **BAD_PICTURES}
        )
        rows = [[cell and cell.replace("{}", kind) for cell in row] for row in TABLE.values()]
        held = {f"{kind}-{name}": reason for name, reason in TABLE_HELD.items()}
        nameless = held.pop(f"{kind}-nameless")
        line = len(rows) - 1 if kind == "parquet" else len(rows) + (kind in ("csv", "tsv"))
        held[f"rows.{kind}#{line}"] = nameless
        if kind == "parquet":
            columns = [pa.array(list(column), pa.string()) for column in zip(*rows, strict=True)]
            pq.write_table(pa.table(columns, names=["id", "path", "caption"]), root / "rows.parquet")
        elif kind == "jsonl":
            lines = [json.dumps(dict(zip(("id", "path", "caption"), row, strict=True))) for row in rows]
            lines += ['{"id": "jsonl-cut off', "[1, 2]", "7"]
            (root / "rows.jsonl").write_text("\n".join(lines))
            numbers = range(len(rows) + 1, len(rows) + 4)
            held |= {f"rows.jsonl#{n}": f"broken_record: line {n} is no JSON" for n in numbers}
        else:
            sign = "," if kind == "csv" else "\t"
            lines = [sign.join(cell or "" for cell in row) for row in [["id", "path", "caption"], *rows]]
            lines += [f"{kind}-short{sign}1.png", sign.join([f"{kind}-long", "1.png", "A", "square"])]
            (root / f"rows.{kind}").write_text("\n".join(lines))
            numbers = range(len(rows) + 2, len(rows) + 4)
            held |= {f"rows.{kind}#{n}": f"broken_record: line {n} has" for n in numbers}
        return {"kind": kind, "files": str(root / f"rows.{kind}"), "id_col": "id", "path_col": "path"}, held

    return write


def hugging_face(folder: Path) -> tuple[dict[str, Any], Held]:
    rows: dict[str, tuple[bytes | None, Any]] = {
        "good": (SQUARE, SAID),
        "gif": (encoded(RGB, "GIF"), SAID),
        "null": (None, SAID),
        "cut": (SQUARE[:60], SAID),
        "empty": (b"", SAID),
        "silent": (SQUARE, None),
    }
    (folder / "hf").mkdir(parents=True)
    pictures = [{"bytes": picture, "path": None} for picture, _ in rows.values()]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"image": pa.array(pictures, kind), "id": [f"hf {key}" for key in rows]}
    table = pa.table({**columns, "caption": pa.array([caption for _, caption in rows.values()], pa.string())})
    pq.write_table(table, folder / "hf" / "0.parquet", row_group_size=3)
    held: Held = {"good": None, "gif": None, "cut": "decode_error: broken PNG", "empty": "decode_error: empty file"}
    held |= {"null": "missing_file: ", "silent": "no_caption: 1 caption without text"}
    source = {"kind": "hf", "files": str(folder / "hf"), "id_col": "id"}
    return source, {f"hf {key}": reason for key, reason in held.items()}


def an_earlier_run(folder: Path) -> tuple[dict[str, Any], Held]:
    """The plan of a run of one of the folders above, and of one image that no source lists."""
    source, held = a_folder(folder / "old")
    inner = Path(source["files"])
    inner.rename(inner.with_name("run of folder"))
    (inner.with_name("run of folder") / "link up").unlink()
    (inner.with_name("again")).mkdir()
    inner.with_name("run of folder").rename(inner.with_name("again") / "run")
    (folder / "old" / "more.jsonl").write_text('{"id": "run/unlisted", "caption": "A square."}\n{"caption": "x"}\n')
    more = {"kind": "jsonl", "files": str(folder / "old" / "more.jsonl"), "id_col": "id"}
    planned(
        config_of(folder / "old", [{**source, "files": str(inner.with_name("again"))}, more], out=folder / "earlier")
    )
    told = {f"run/{key}": reason for key, reason in held.items()}
    told["run/unlisted"] = "missing_file: the earlier run did not know where it is"
    told["more.jsonl#2"] = "broken_record: no usable `id`"
    return {"kind": "run", "files": str(folder / "earlier")}, told


SOURCES: dict[str, Source] = {
    "coco": a_coco_file,
    "folder": a_folder,
    "img2dataset": tars,
    "webdataset": tars_with_records,
    **{kind: a_table(kind) for kind in ("parquet", "jsonl", "csv", "tsv")},
    "hugging_face": hugging_face,
    "earlier_run": an_earlier_run,
}


def mined(folder: Path, sources: list[dict[str, Any]], ids: list[str]) -> RunFolder:
    """The run of some sources, each of whose images has one true mask."""
    counts = Mask.from_array(toy.shape_mask("square")).counts.decode("ascii")
    rle = {"size": [toy.HEIGHT_PX, toy.WIDTH_PX], "counts": counts}
    truth = {
        "images": [{"id": image_id, "height": toy.HEIGHT_PX, "width": toy.WIDTH_PX} for image_id in ids],
        "annotations": [{"image_id": image_id, "category_id": 1, "segmentation": rle} for image_id in ids],
        "categories": [{"id": 1, "name": "square"}],
    }
    (folder / "truth.json").write_text(json.dumps(truth))
    proposals = {"kind": "ground_truth", "annotations": str(folder / "truth.json")}
    regions = {"proposals": proposals, "keep": {"min_area_px": 1}, "clip": None, "device": "cpu"}
    run, _, _ = run_toy(config_of(folder, sources, regions, shards={"images_per_part": 60}))
    return run


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Held], Held]:
    """What each source holds, and how each of these records ended in a run of all of them."""
    folder = tmp_path_factory.mktemp("records")
    written = {name: write(folder) for name, write in SOURCES.items()}
    held = {name: records for name, (_, records) in written.items()}
    sources = [{**source, "name": name} for name, (source, _) in written.items()]
    run = mined(folder, sources, [image_id for records in held.values() for image_id in records])
    found: Held = {image.image_id: f"{image.reason}: {image.detail}" for image in rejected_images(run)}
    found |= {row.image_id: None for row in samples(run)}
    assert_the_account_holds(run, images=len(found))
    return held, found


@pytest.mark.parametrize("name", SOURCES)
def test_every_record_of_a_source_ends_with_pairs_or_with_its_own_reason(
    outcome: tuple[dict[str, Held], Held], name: str
) -> None:
    held, found = outcome
    ended = {image_id: found.get(image_id, "vanished") for image_id in held[name]}
    wrong = {
        image_id: (ended[image_id], reason)
        for image_id, reason in held[name].items()
        if not (ended[image_id] == reason or (reason and (ended[image_id] or "").startswith(reason)))
    }
    assert not wrong


def test_a_run_of_all_sources_has_the_records_that_they_hold_and_no_other(
    outcome: tuple[dict[str, Held], Held],
) -> None:
    held, found = outcome
    assert set(found) == {image_id for records in held.values() for image_id in records}


def test_what_was_passed_over_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings, _ = tars(tmp_path)
    list(Img2dataset(**settings).read(images_per_part=9))
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "0.tar: 2 files that macOS or Windows left were passed over" in said
    assert "1.tar: cut off at byte" in said


ROWS: dict[str, tuple[str, bytes, int]] = {
    "a caption that begins with a quote": ("tsv", b'id\tpath\tcaption\n1\t1.png\t"A\n2\t1.png\tb\n3\t1.png\tc\n', 3),
    "a list in a JSON file": ("jsonl", b'[{"id": 1, "path": "1.png"},\n {"id": 2, "path": "1.png"}]', 2),
    "a text in one line": ("csv", "id,path,caption\n1,1.png,a\u2028b\n2,1.png,c\x0bd\n".encode(), 2),
    "numbers, truth and nothing as ids": (
        "jsonl",
        b"".join(b'{"id": %s, "path": "1.png"}\n' % one for one in (b"1", b"1.5", b"true", b"null", b"NaN", b'""')),
        6,
    ),
}
"""Kind and content of a table, and how many records it holds."""


@pytest.mark.parametrize("name", ROWS)
def test_every_row_of_a_table_is_an_image_of_the_plan(tmp_path: Path, name: str) -> None:
    kind, content, records = ROWS[name]
    save(tmp_path, **{f"rows.{kind}": content, "1.png": SQUARE})
    source = {"kind": kind, "files": str(tmp_path / f"rows.{kind}"), "id_col": "id", "path_col": "path"}
    assert len(planned(config_of(tmp_path, source))[1]) == records


GOOD_ENTRY = {"id": 1, "file_name": "1.png"}
ENTRIES: dict[str, Any] = {
    "an entry without id": {"file_name": "2.png"},
    "an id of null": {"id": None, "file_name": "2.png"},
    "an entry without file name": {"id": 2},
    "an entry that is no object": [1, 2],
    "an entry of null": None,
}


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_of_a_coco_file_is_an_image_of_the_plan(tmp_path: Path, name: str) -> None:
    said = [{"id": 1, "image_id": 1, "caption": SAID}]
    (tmp_path / "c.json").write_text(json.dumps({"images": [GOOD_ENTRY, ENTRIES[name]], "annotations": said}))
    save(tmp_path, **{"1.png": SQUARE})
    source = {"kind": "coco", "annotations": str(tmp_path / "c.json"), "images": str(tmp_path)}
    assert len(planned(config_of(tmp_path, source))[1]) == 2
