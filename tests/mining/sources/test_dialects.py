"""Text tables in the dialects that are in use: read as they are meant, told how, and no row is lost without a word."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from maskmine.mining.captions import guesses
from maskmine.mining.sources.delimited import Asked, Quoting, delimited_records
from maskmine.mining.sources.image_folder import Folder
from maskmine.mining.sources.tables import TableCaptions
from maskmine.schemas.errors import InputError

Rows = list[tuple[str, str | None]]
COLUMNS = {"id_col": "id", "path_col": "file"}
BROKEN = "broken_record"


def table(folder: Path, kind: str, content: str | bytes, *, name: str | None = None, **settings: Any) -> TableCaptions:
    path = folder / (name or f"t.{kind}")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    columns = {"id_col": "id", "path_col": "file"} if not {"path_col", "url_col"} & settings.keys() else {}
    return TableCaptions.model_validate({"kind": kind, "files": str(path), "per_image": "all", **columns, **settings})


def entries(source: TableCaptions | Folder) -> list[dict[str, Any]]:
    return [row for entry in source.read(images_per_part=10) for row in entry.to_pylist()]


def read(source: TableCaptions | Folder) -> Rows:
    """Ids with captions; of a row that is rejected its name in the file, with the reason in place of the caption."""
    rows = entries(source)
    return [
        (row["image_id"], str(row["path"]).split(":")[1] if str(row["path"]).startswith("fault:") else row["caption"])
        for row in rows
    ]


def tsv(*captions: str) -> str:
    rows = [f"{n}\t{n}.jpg\t{caption}" for n, caption in enumerate(captions, 1)]
    return "\n".join(["id\tfile\tcaption", *rows]) + "\n"


def csv_of(*captions: str) -> str:
    return tsv(*captions).replace("\t", ",")


@pytest.mark.parametrize(
    ("captions", "read_as"),
    [
        (['"Wow a ball', "a kite", '"big" box', "a ball"], None),
        (['"Wow a ball', "a kite", 'a 19"', "a ball"], None),  # which closes as a quoted field of three lines would
        (['a 19" screen', '"'], None),
        (['"a ball"', "a kite"], None),
        (['"He said ""hi"" to a\tball"', "a kite"], ['He said "hi" to a\tball', "a kite"]),
        (['"a ""ball"""', "a kite"], ['a "ball"', "a kite"]),
        (['"a ball\nand a kite"', "a box"], ["a ball\nand a kite", "a box"]),
        (['"a \\"ball\\"\tand more"', "a box"], ['a "ball"\tand more', "a box"]),
    ],
)
def test_quotes_in_a_tsv_are_characters_unless_they_show_otherwise(
    tmp_path: Path, captions: list[str], read_as: list[str] | None
) -> None:
    expected = [(str(n), caption) for n, caption in enumerate(read_as or captions, 1)]
    assert read(table(tmp_path, "tsv", tsv(*captions))) == expected


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (['"a ball, a kite"', '"one ""two"""'], ["a ball, a kite", 'one "two"']),
        (['"a ball\nand a kite"', '"x, y"'], ["a ball\nand a kite", "x, y"]),
        (['"Wow a ball', "a kite", '"big" box'], ['"Wow a ball', "a kite", '"big" box']),
        (['"Wow a ball', "a kite", 'a 19"'], ['"Wow a ball', "a kite", 'a 19"']),
        (['"a, b"', '"c, d"', '"Wow a ball', '"e, f"'], ["a, b", "c, d", None, "e, f"]),
        (
            ['"a, b"', '"c, d"', '"Wow a ball', "a kite", 'a 19"', '"e, f"'],
            ["a, b", "c, d", None, "a kite", 'a 19"', "e, f"],
        ),
    ],
)
def test_a_faulty_quote_in_a_csv_costs_its_own_row_and_no_other(
    tmp_path: Path, captions: list[str], expected: list[str | None]
) -> None:
    found = read(table(tmp_path, "csv", csv_of(*captions)))
    assert [caption if caption != BROKEN else None for _, caption in found] == expected


def test_a_named_quoting_holds_where_the_lines_show_another(tmp_path: Path) -> None:
    content = tsv('"Wow a ball', "a kite", 'a 19"')
    (swallowed,) = read(table(tmp_path, "tsv", content, quoting="doubled"))
    assert swallowed == ("1", "Wow a ball\n2\t2.jpg\ta kite\n3\t3.jpg\ta 19")
    assert len(read(table(tmp_path, "csv", csv_of('"a ball"'), quoting="none"))) == 1
    assert read(table(tmp_path, "csv", csv_of('"a ball"'), quoting="none")) == [("1", '"a ball"')]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.text(st.sampled_from('a ",;\t|\\\r\udcff'), max_size=9), max_size=9),
    st.sampled_from(["csv", "tsv"]),
    st.sampled_from([None, "none", "doubled", "backslash"]),
)
def test_every_line_is_in_a_record_or_rejected_by_its_number(
    tmp_path: Path, noise: list[str], kind: Any, quoting: Quoting | None
) -> None:
    path, delimiter = tmp_path / "t", "," if kind == "csv" else "\t"
    lines = [f"<{n}>{delimiter}x{text}" for n, text in enumerate(noise, 2)]
    path.write_bytes("\n".join([f"id{delimiter}caption", *lines]).encode("utf-8", "surrogateescape"))
    asked = Asked(kind=kind, columns={"id": "id_col", "caption": "caption_col"}, quoting=quoting)
    records = list(delimited_records(str(path), asked))
    said = " ".join(value for _, record in records if isinstance(record, dict) for value in record.values())
    lost = {number for number, record in records if isinstance(record, str)}
    for first, last in re.findall(r"lines (\d+) to (\d+) are", str(records)):
        lost |= {*range(int(first), int(last) + 1)}
    assert [n for n in range(2, len(lines) + 2) if f"<{n}>" not in said and n not in lost] == []


FLICKR = """image_name| comment_number| comment
7.jpg| 0| A "ball" , and a kite .
7.jpg| 1| A box .
8.jpg| 4   A dog .
"""


@pytest.mark.parametrize(
    ("kind", "content", "expected", "told"),
    [
        (
            "csv",
            FLICKR,
            [("7.jpg", 'A "ball" , and a kite .'), ("7.jpg", "A box ."), ("t.csv#4", BROKEN)],
            "bar-separated, unquoted",
        ),
        ("csv", "image_name;comment\n7.jpg;A ball, a kite\n", [("7.jpg", "A ball, a kite")], "semicolon-separated"),
        ("csv", "sep=;\r\nimage_name;comment\r\n7.jpg;a, b\r\n", [("7.jpg", "a, b")], "semicolon-separated, quoted"),
        ("csv", "image_name\tcomment\n7.jpg\ta, b\n", [("7.jpg", "a, b")], "tab-separated, unquoted"),
        ("tsv", "image_name,comment\n7.jpg,a\n", [("7.jpg", "a")], "comma-separated"),
        ("csv", ' "image_name" , "comment"\n7.jpg, "a, b"\n', [("7.jpg", "a, b")], "comma-separated, quoted"),
        ("csv", "image_name,comment\r7.jpg,a ball\r8.jpg,b\r", [("7.jpg", "a ball"), ("8.jpg", "b")], "comma"),
    ],
)
def test_the_delimiter_is_the_one_by_which_the_header_has_the_columns(
    tmp_path: Path, kind: str, content: str, expected: Rows, told: str
) -> None:
    source = table(tmp_path, kind, content, path_col="image_name", caption_col="comment")
    assert read(source) == expected
    (line,) = guesses([source])
    assert line.startswith(f"t.{kind}: read as {told}")
    assert entries(source)[0]["path"] == str(tmp_path / "7.jpg")


def test_a_file_without_a_header_has_its_columns_by_position(tmp_path: Path) -> None:
    content = 'a ball in grass\thttp://x/1.jpg\na "kite\thttp://x/2.jpg\n'
    expected = [("http://x/1.jpg", "a ball in grass"), ("http://x/2.jpg", 'a "kite')]
    settings: dict[str, Any] = {"url_col": "url", "column_names": ["caption", "url"]}
    assert read(table(tmp_path, "tsv", content, **settings)) == expected
    assert read(table(tmp_path, "tsv", f"caption\turl\n{content}", **settings)) == expected
    assert read(table(tmp_path, "csv", content, **settings)) == expected
    with pytest.raises(InputError, match=r"no column `caption` .* for a file without header line `column_names`"):
        read(table(tmp_path, "tsv", content, url_col="url"))
    with pytest.raises(InputError, match="its lines have 2 fields, `column_names` has 3"):
        read(table(tmp_path, "tsv", content, url_col="url", column_names=["caption", "url", "size"]))


@pytest.mark.parametrize(
    ("content", "settings", "caption"),
    [
        (codecs.BOM_UTF8 + csv_of("a bäll").encode(), {}, "a bäll"),
        (csv_of("a bäll").encode("utf-16"), {}, "a bäll"),
        (codecs.BOM_UTF16_BE + csv_of("a bäll").encode("utf-16-be"), {}, "a bäll"),
        (csv_of("a bäll").encode("utf-16-le"), {}, "a bäll"),
        (csv_of("a bäll").encode("utf-32"), {}, "a bäll"),
        (csv_of("a bäll…").encode("cp1252"), {"encoding": "cp1252"}, "a bäll…"),
        (csv_of("球").encode("gb18030"), {"encoding": "gb18030"}, "球"),
        (csv_of("a bäll").encode("utf-8-sig"), {"encoding": "latin-1"}, "a bäll"),  # the mark is certain
        (csv_of("a\u2028b\x85c\x0bd\x0ce").encode(), {}, "a\u2028b\x85c\x0bd\x0ce"),
    ],
)
def test_texts_are_read_in_their_encoding_and_cut_at_line_ends_alone(
    tmp_path: Path, content: bytes, settings: dict[str, str], caption: str
) -> None:
    assert read(table(tmp_path, "csv", content, **settings)) == [("1", caption)]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize(("bad", "settings"), [("bäll", {}), ("b\x81ll", {"encoding": "cp1252"})])
def test_bytes_that_are_no_text_cost_their_row_with_the_reason(
    tmp_path: Path, kind: str, bad: str, settings: dict[str, str]
) -> None:
    rows = {"csv": csv_of(bad, "a box"), "tsv": tsv(bad, "a box")}
    records = [{"id": n, "file": "a.jpg", "caption": caption} for n, caption in ((1, bad), (2, "a box"))]
    rows["jsonl"] = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    source = table(tmp_path, kind, rows[kind].encode("latin-1"), **settings)
    line = 1 if kind == "jsonl" else 2
    assert read(source) == [(f"t.{kind}#{line}", BROKEN), ("2", "a box")]
    assert "is no text in" in entries(source)[0]["path"]


@pytest.mark.parametrize(("name", "said"), [("klingon", "no encoding that Python knows"), ("zip", "encodes no text")])
def test_an_encoding_that_is_none_is_refused(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        table(tmp_path, "csv", "", encoding=name)


def test_dialects_are_for_text_alone(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="`delimiter` is for `csv` and `tsv`"):
        table(tmp_path, "jsonl", "", delimiter=";")


ROW = {"id": 1, "file": "1.jpg", "caption": "a ball"}
OTHER = {"id": 2, "file": "2.jpg", "caption": "a kite"}
BOTH = [("1", "a ball"), ("2", "a kite")]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (json.dumps([ROW, OTHER], indent=1), BOTH),
        (json.dumps([ROW, OTHER]), BOTH),
        (f"\n {json.dumps([ROW, 7, OTHER])}\n", [BOTH[0], ("t.jsonl#1", BROKEN), BOTH[1]]),
        (f"[{json.dumps(ROW)}]\n[{json.dumps(OTHER)}]\n", BOTH),
        (json.dumps({"dataset": "coco", "images": [ROW, OTHER], "more": 1}), BOTH),
        (json.dumps({"info": {"a": [1]}, "data": [ROW, OTHER]}, indent=2), BOTH),
        (f"{json.dumps(ROW, indent=1)}\n{json.dumps(OTHER, indent=1)}", BOTH),
        (json.dumps([{**ROW, "id": float("nan")}, OTHER]), [("t.jsonl#0", BROKEN), BOTH[1]]),
        ("\ufeff" + json.dumps(ROW) + "\r\n\r\n" + json.dumps(OTHER), BOTH),
        (json.dumps(ROW) + '\n{"id": 3, "caption": "cut he\n[1]\n' + json.dumps(OTHER),
         [BOTH[0], ("t.jsonl#2", BROKEN), ("t.jsonl#3", BROKEN), BOTH[1]]),
        ('{"id": 3, "caption": "cut he\n' + json.dumps(ROW), [("t.jsonl#1", BROKEN), BOTH[0]]),
        (json.dumps({**ROW, "caption": "a\u2028b"}, ensure_ascii=False), [("1", "a\u2028b")]),
    ],
)  # fmt: skip
def test_json_is_read_as_lines_a_list_a_named_list_or_one_object_after_another(
    tmp_path: Path, content: str, expected: Rows
) -> None:
    assert read(table(tmp_path, "jsonl", content)) == expected


def test_a_long_json_list_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskmine.mining.sources.json_records._READ_CHARS", 7)
    rows = [{**ROW, "id": n, "caption": "x" * n} for n in range(30)]
    assert read(table(tmp_path, "jsonl", json.dumps(rows))) == [(str(n), "x" * n) for n in range(30)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f"[{json.dumps(ROW)}, {{", "entry 1 is no JSON"),
        (f"[{json.dumps(ROW)}", "breaks off after 1 entries"),
        (f"[{json.dumps(ROW)}] x", "something stands behind the end of its list"),
        ("PK\x03\x04", "a zip archive; unpack it"),
    ],
)
def test_json_that_breaks_off_is_one_line(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(InputError, match=r"t\.jsonl: ") as caught:
        read(table(tmp_path, "jsonl", content))
    assert said in str(caught.value)


def zstd(content: bytes) -> bytes:
    packed: bytes = pa.Codec("zstd").compress(content, asbytes=True)
    return packed


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_compressed_table_is_known_by_its_content_and_refused_when_cut(
    tmp_path: Path, kind: str, pack: Callable[[bytes], bytes]
) -> None:
    rows = json.dumps(ROW) + "\n" + json.dumps(OTHER)
    packed = pack((csv_of("a ball", "a kite") if kind == "csv" else rows).encode())
    assert read(table(tmp_path, kind, packed)) == BOTH
    with pytest.raises(InputError, match=r"not a whole (gzip|bzip2|xz|zstd) file"):
        read(table(tmp_path, kind, packed[:-7]))


def test_a_folder_of_tables_finds_the_compressed_ones_too(tmp_path: Path) -> None:
    for suffix, pack in (("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".zst", zstd)):
        (tmp_path / f"a.csv{suffix}").write_bytes(pack(csv_of(f"of {suffix}").encode()))
    source = TableCaptions(kind="csv", files=str(tmp_path), per_image="all", id_col="id", path_col="file")
    assert [caption for _, caption in read(source)] == ["of ", "of .bz2", "of .gz", "of .zst"]
    assert list(guesses([source])) == [
        "a.csv and 3 more: read as comma-separated, quoted, utf-8 (seen from its first lines)"
    ]


def test_a_text_beside_a_picture_is_cut_at_line_ends_and_rejected_where_it_is_no_text(tmp_path: Path) -> None:
    texts = {
        "a": "a\u2028b\x0bc\ra kite\r\n\n".encode(),
        "b": "a bäll".encode("latin-1"),
        "c": "a bäll\nx".encode("utf-16"),
        "d": "a bäll".encode("utf-8-sig"),
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.jpg").touch()
        (tmp_path / f"{name}.txt").write_bytes(text)
    others = [("a", "a\u2028b\x0bc"), ("a", "a kite"), ("c", "a bäll"), ("c", "x"), ("d", "a bäll")]
    found = read(Folder(kind="folder", files=str(tmp_path), per_image="all"))
    assert sorted(found) == sorted([*others, ("b", BROKEN)])
    named = Folder(kind="folder", files=str(tmp_path), per_image="all", encoding="latin-1")
    assert {("b", "a bäll"), *others[2:]} <= set(read(named))
