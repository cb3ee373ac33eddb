"""Ids, captions and pictures in the types that tables have them in: never another id, and what is no text says so."""

from __future__ import annotations

import json
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskmine.mining.sources.entries import captions_of, id_of
from maskmine.mining.sources.hugging_face import HuggingFace
from maskmine.mining.sources.tables import TableCaptions
from maskmine.mining.sources.values import typeless_id
from maskmine.schemas.errors import InputError

UUID = uuid.UUID("0b5c1c5e-8f1e-4d5a-9c3f-000000000007")
NO_TEXT = b"caf\xe9"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, "1"),
        (1.0, "1"),
        (np.float32(3), "3"),
        (np.float64(3), "3"),
        (Decimal("2.00"), "2"),
        ("1", "1"),
        ("007", "007"),
        ("1.0", "1.0"),
        (b"1", "1"),
        ("é".encode(), "é"),
        ("e\N{COMBINING ACUTE ACCENT}", "é"),
        (UUID, str(UUID)),
        (UUID.bytes, str(UUID)),
        (uuid.UUID(int=5).bytes, str(uuid.UUID(int=5))),
        (bytes(range(20)), bytes(range(20)).hex()),
        (2**63 + 5, str(2**63 + 5)),
        (-3.0, "-3"),
        (1.5, None),
        (float("nan"), None),
        (float("inf"), None),
        (2.0**53, None),
        (np.float32(2**24), None),
        (np.float16(2**11), None),
        (Decimal("NaN"), None),
        (Decimal("1.5"), None),
        (None, None),
        ("", None),
        (b"", None),
        (True, None),
        ([1], None),
        ({"a": 1}, None),
    ],
)
def test_an_id_of_any_type_is_the_same_text_or_none(value: Any, expected: str | None) -> None:
    assert id_of(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1.0", "1"),
        ("12.000", "12"),
        ("1e+16", None),
        ("1.2345678901234568e+18", None),
        ("9007199254740993.0", None),
        ("nan", None),
        ("<NA>", None),
        (" None ", None),
        ("", None),
        ("007", "007"),
        ("1e6", "1e6"),
        ("1.5.0", "1.5.0"),
    ],
)
def test_an_id_of_a_file_without_types_is_what_pandas_wrote(value: str, expected: str | None) -> None:
    assert id_of(typeless_id(value)) == expected


def test_bytes_that_are_no_text_and_no_id_are_an_error() -> None:
    with pytest.raises(UnicodeDecodeError):
        id_of(NO_TEXT)
    with pytest.raises(UnicodeDecodeError):
        captions_of(["a ball", NO_TEXT])
    assert (id_of(NO_TEXT, encoding="cp1252"), captions_of(NO_TEXT, encoding="cp1252")) == ("café", ["café"])


CONVERSATION = [
    {"from": "human", "value": "<image>\nWhat is seen?"},
    {"from": "gpt", "value": "A ball."},
    {"from": "human", "value": "And?"},
    {"from": "gpt", "value": "A kite."},
]
MESSAGES = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A ball."}, {"type": "image"}]},
]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a ball", ["a ball"]),
        (b"a ball", ["a ball"]),
        (["a", "b"], ["a", "b"]),
        ([b"a", None], ["a", ""]),
        ({"raw": "a ball", "sentid": 1}, ["a ball"]),
        ([{"raw": "a", "tokens": ["x"]}, {"raw": "b"}], ["a", "b"]),
        ({"raw": ["a", "b"], "sentid": [1, 2]}, ["a", "b"]),
        ([{"caption": "a"}, {"text": "b"}, "c"], ["a", "b", "c"]),
        ({"caption": None, "text": "b"}, ["b"]),
        (CONVERSATION, ["A ball.", "A kite."]),
        (MESSAGES, ["A ball."]),
        (json.dumps(["a \u201cball\u201d", "b"]), ["a \u201cball\u201d", "b"]),
        (str(["it's", "b"]), ["it's", "b"]),
        (json.dumps(CONVERSATION), ["A ball.", "A kite."]),
        ("[sic] a ball", ["[sic] a ball"]),
        ('["a ball"', ['["a ball"']),
        ('["a", 1]', ['["a", 1]']),
        (None, [""]),
        (2.5, [""]),
        (float("nan"), [""]),
        ([], [""]),
        ({"no": "text"}, [""]),
        ("a \ud83d b", ["a \ufffd b"]),
    ],
)
def test_the_captions_of_a_field_in_any_form(value: Any, expected: list[str]) -> None:
    assert captions_of(value) == expected


PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def rows_of(source: TableCaptions | HuggingFace) -> list[tuple[str, str, str | None]]:
    """Ids, locations without the folder, and captions."""
    rows = [row for table in source.read(images_per_part=99) for row in table.to_pylist()]
    return [(row["image_id"], row["path"].replace(f"{source.root}/", ""), row["caption"]) for row in rows]


def parquet(
    folder: Path, columns: dict[str, Any], *, kind: str = "parquet", options: Any = None, **settings: Any
) -> Any:
    pq.write_table(pa.table(columns), folder / "d.parquet", **(options or {}))
    make = HuggingFace if kind == "hf" else TableCaptions
    return make.model_validate({"kind": kind, "files": str(folder / "d.parquet"), "per_image": "all", **settings})


@pytest.mark.parametrize("kind", ["parquet", "hf"])
@pytest.mark.parametrize(
    ("ids", "expected", "said"),
    [
        (pa.array([1.0, None]), "1", "null"),
        (pa.array([1.0, float("nan")], pa.float32()), "1", "nan"),
        (pa.array([5.0, 2.0**24], pa.float32()), "5", "16777216.0"),
        (pa.array([b"1", NO_TEXT]), "1", "b'caf\\xe9'"),
        (pa.array([UUID.bytes, None], pa.binary(16)), str(UUID), "null"),
        (pa.array([1, None], pa.decimal128(9, 2)), "1", "null"),
        (pa.array([b"1", NO_TEXT]).view(pa.string()), "1", "b'caf\\xe9'"),
    ],
)
def test_an_id_that_cannot_be_used_rejects_its_row_with_its_value(
    tmp_path: Path, kind: str, ids: pa.Array, expected: str, said: str
) -> None:
    image = pa.array([{"bytes": b"x", "path": "a.jpg"}] * 2, PICTURE)
    columns = {"id": ids, "image": image, "path": ["a.jpg"] * 2, "caption": ["a ball"] * 2}
    source = parquet(tmp_path, columns, kind=kind, id_col="id", **({"path_col": "path"} if kind == "parquet" else {}))
    (good, bad) = rows_of(source)
    assert (good[0], good[2]) == (expected, "a ball")
    assert bad[1].startswith("fault:broken_record:")
    assert bad[1].endswith(said)
    assert bad[0] == ("d-1" if kind == "hf" else "d.parquet#1")


def test_texts_without_their_mark_are_read_and_what_is_no_text_rejects_its_row(tmp_path: Path) -> None:
    texts = {"id": [b"1", b"2"], "path": [b"1.jpg", b"2.jpg"], "caption": [b"a ball", NO_TEXT]}
    columns = {name: pa.array(values, pa.binary()) for name, values in texts.items()}
    source = parquet(tmp_path, columns, id_col="id", path_col="path")
    good, bad = rows_of(source)
    assert good == ("1", "1.jpg", "a ball")
    assert (bad[0], bad[2]) == ("d.parquet#1", None)
    assert bad[1] == "fault:broken_record:`caption` is no text in utf-8: b'caf\\xe9'"
    assert rows_of(source.model_copy(update={"encoding": "cp1252"}))[1] == ("2", "2.jpg", "café")


def test_captions_in_records_are_read_from_parquet(tmp_path: Path) -> None:
    sentences = [[{"raw": "a ball", "sentid": 1}, {"raw": "a kite", "sentid": 2}]]
    image = pa.array([{"bytes": b"x", "path": "1.jpg"}], PICTURE)
    columns = {"id": ["1"], "image": image, "sentences": sentences}
    for kind, more in (("parquet", {"path_col": "image"}), ("hf", {})):
        source = parquet(tmp_path, columns, kind=kind, id_col="id", caption_col="sentences", **more)
        assert [caption for _, _, caption in rows_of(source)] == ["a ball", "a kite"]


ABSENT = "fault:missing_file:the record has no bytes and names no file"


@pytest.mark.parametrize("options", [{}, {"write_statistics": False}, {"row_group_size": 1}])
@pytest.mark.parametrize(
    ("pictures", "expected"),
    [
        (
            [{"bytes": b"x", "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, {"bytes": None, "path": None}, None],
            ["cell", "b.jpg", ABSENT, ABSENT],
        ),
        ([{"bytes": None, "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}], ["a.jpg", "b.jpg"]),
        ([{"bytes": b"x", "path": None}, {"bytes": b"y", "path": None}], ["cell", "cell"]),
    ],
)
def test_a_row_without_bytes_is_read_from_its_path(
    tmp_path: Path, pictures: list[Any], expected: list[str], options: dict[str, Any]
) -> None:
    columns = {"image": pa.array(pictures, PICTURE), "caption": ["a ball"] * len(pictures)}
    source = parquet(tmp_path, columns, kind="hf", options=options)
    found = [path if not path.startswith("cell:") else "cell" for _, path, _ in rows_of(source)]
    assert found == expected


def test_a_path_that_is_no_text_costs_its_row_alone(tmp_path: Path) -> None:
    paths = pa.array([NO_TEXT, b"b.jpg"]).view(pa.string())
    image = pa.StructArray.from_arrays([pa.nulls(2, pa.binary()), paths], fields=list(PICTURE))
    source = parquet(tmp_path, {"image": image, "caption": ["a ball"] * 2}, kind="hf")
    (_, bad, _), (_, good, _) = rows_of(source)
    assert bad == "fault:broken_record:its path is no text in utf-8: b'caf\\xe9'"
    assert good == "b.jpg"


def test_plain_bytes_may_be_null_and_texts_are_no_pictures(tmp_path: Path) -> None:
    source = parquet(tmp_path, {"image": [b"x", None], "caption": ["a"] * 2}, kind="hf")
    assert [path.partition(":")[0] for _, path, _ in rows_of(source)] == ["cell", "fault"]
    with pytest.raises(InputError, match=r"holds no bytes; .* `kind: parquet` reads paths"):
        rows_of(parquet(tmp_path, {"image": ["a.jpg"], "caption": ["a"]}, kind="hf"))


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table([["1"], ["2"], ["a"]], names=["path", "path", "caption"]), tmp_path / "d.parquet")
    source = TableCaptions(kind="parquet", files=str(tmp_path / "d.parquet"), path_col="path")
    with pytest.raises(InputError, match="two columns are called `path`"):
        rows_of(source)
