"""Small files that stand for much: captions without end, lists in lists, tars and tables that claim anything.

Each is some megabytes on a disk at most; what is long in a plain file is a hole in it.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.hostile.corrupt_inputs import SQUARE
from tests.support.source_formats import tar_of

HOLE_BYTES = 1 << 28
"""Of what has no end here: far beyond every limit, and read in a second."""
COLUMNS = {"id_col": "id", "path_col": "path"}
ROW = {"id": "good", "path": "good.png", "caption": "A square."}

Source = dict[str, Any]
Bomb = Callable[[Path], Source]


def coco(folder: Path, images: str, annotations: str, *, pack: Callable[[bytes], bytes] = bytes) -> Source:
    """A COCO file of JSON texts: what its lists hold behind a good image and its caption."""
    good = ('{"id": 1, "file_name": "good.png"}', '{"id": 1, "image_id": 1, "caption": "A square."}')
    text = f'{{"images": [{good[0]}{images}], "annotations": [{good[1]}{annotations}]}}'
    (folder / "captions.json").write_bytes(pack(text.encode()))
    return {"kind": "coco", "annotations": str(folder / "captions.json"), "images": str(folder)}


def with_hole(path: Path, before: str, after: str) -> None:
    """A file with `HOLE_BYTES` NULs between two texts, which take no room on a disk."""
    with path.open("wb") as file:
        file.write(before.encode())
        file.seek(HOLE_BYTES, os.SEEK_CUR)
        file.write(after.encode())


def coco_caption_without_end(folder: Path) -> Source:
    source = coco(folder, ', {"id": 2, "file_name": "b.png"}', "")
    text = (folder / "captions.json").read_text().removesuffix("]}")
    with_hole(folder / "captions.json", f'{text}, {{"id": 2, "image_id": 2, "caption": "', '"}]}')
    return source


def coco_text_at_the_top(folder: Path) -> Source:
    source = coco(folder, "", "")
    with_hole(folder / "captions.json", '{"info": "', f'", {(folder / "captions.json").read_text()[1:]}')
    return source


def coco_deep(folder: Path) -> Source:
    nested = "[" * 50_000 + "]" * 50_000
    return coco(folder, "", f', {{"id": 2, "image_id": 1, "x": {nested}}}, {{"id": 3, "image_id": 1, "caption": "A."}}')


def coco_deep_at_the_top(folder: Path) -> Source:
    (folder / "captions.json").write_text("[" * 2_000_000)
    return {"kind": "coco", "annotations": str(folder / "captions.json"), "images": str(folder)}


def coco_digits(folder: Path) -> Source:
    digits = "9" * 1_000_000
    return coco(folder, f', {{"id": {digits}, "file_name": "b.png"}}', f', {{"id": NaN, "image_id": 1{digits[:30]}}}')


def coco_digits_at_the_top(folder: Path) -> Source:
    source = coco(folder, "", "")
    text = (folder / "captions.json").read_text()
    (folder / "captions.json").write_text(f'{{"a": {"9" * 20_000_000}, {text[1:]}')
    return source


def coco_many_values(folder: Path) -> Source:
    return coco(folder, "", ', {"id": 2, "image_id": 1, "caption": [' + "[]," * 300_000 + "1]}")


def coco_escapes(folder: Path) -> Source:
    return coco(folder, "", ', {"id": 2, "image_id": 1, "x": NaN, "caption": "' + "\\n" * 2_000_000 + '"}')


def coco_gzip(folder: Path) -> Source:
    return coco(folder, "", "", pack=lambda text: gzip.compress(text[:-2]) + packed_blanks("gz", b" "))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lambda content: lzma.compress(content, preset=0),
    "zst": lambda content: bytes(pa.compress(content, codec="zstd", asbytes=True)),
}


def packed_blanks(kind: str, blank: bytes) -> bytes:
    """Two gigabytes of a character; compressed files may be put behind each other."""
    piece = 1 << 24
    return PACKERS[kind](blank * piece) * ((1 << 31) // piece)


def packed_lines(kind: str, table: str) -> Bomb:
    """A table with a good row and then 2³¹ empty lines."""

    def write(folder: Path) -> Source:
        rows = {"jsonl": json.dumps(ROW), "csv": "id,path,caption\ngood,good.png,A square."}
        rows["tsv"] = rows["csv"].replace(",", "\t")
        path = folder / f"table.{table}.{kind}"
        path.write_bytes(PACKERS[kind](f"{rows[table]}\n".encode()) + packed_blanks(kind, b"\n"))
        return {"kind": table, "files": str(path), **COLUMNS}

    return write


def xz_dictionary(folder: Path) -> Source:
    """An xz file that says that it takes more than a gigabyte to unpack."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    packed = bytearray(lzma.compress(json.dumps(ROW).encode() * 10, filters=filters))
    (folder / "table.jsonl.xz").write_bytes(packed)
    return {"kind": "jsonl", "files": str(folder / "table.jsonl.xz"), **COLUMNS}


def line_without_end(kind: str) -> Bomb:
    def write(folder: Path) -> Source:
        good = {"jsonl": json.dumps(ROW), "csv": "id,path,caption\ngood,good.png,A square."}
        path = folder / f"table.{kind}"
        before = f'{good[kind]}\n{{"id": "b", "caption": "' if kind == "jsonl" else f"{good[kind]}\nb,b.png,"
        with_hole(path, before, f"\n{good['jsonl'].replace('good', 'c', 1)}\n" if kind == "jsonl" else "\nc,c.png,A.\n")
        return {"kind": kind, "files": str(path), **COLUMNS}

    return write


def jsonl_of(folder: Path, *lines: str) -> Source:
    (folder / "table.jsonl").write_text("".join(f"{line}\n" for line in (json.dumps(ROW), *lines)))
    return {"kind": "jsonl", "files": str(folder / "table.jsonl"), **COLUMNS}


def jsonl_deep(folder: Path) -> Source:
    """As deep as Python reads, which is deeper than it writes, and deeper."""
    caption = json.dumps("[" + '{"caption": ' * 400 + '"x"' + "}" * 400 + "]")
    deep = ["[" * depth + "]" * depth for depth in (90, 500, 50_000)]
    source = jsonl_of(
        folder, *(f'{{"id": "{len(d)}", "path": "a", "caption": {d}, "x": {d}}}' for d in (*deep, caption))
    )
    return {**source, "save_additional_columns": ["x"]}


def json_list(folder: Path) -> Source:
    """Entries of a list that are too deep and have numbers of too many digits; those around them are good."""
    deep, digits = "[" * 50_000 + "]" * 50_000, "9" * 300_000
    entries = [json.dumps(ROW), f'{{"id": "b", "x": {deep}}}', f'{{"id": {digits}}}', json.dumps({**ROW, "id": "c"})]
    (folder / "table.jsonl").write_text(f"[{', '.join(entries)}]")
    return {"kind": "jsonl", "files": str(folder / "table.jsonl"), **COLUMNS}


def csv_open_quotes(folder: Path) -> Source:
    (folder / "table.csv").write_text("id,path,caption\ngood,good.png,A.\n" + 'a,"""\n' * 60_000)
    return {"kind": "csv", "files": str(folder / "table.csv"), **COLUMNS}


def csv_fields(folder: Path) -> Source:
    (folder / "table.csv").write_text("id,path,caption\ngood,good.png,A.\n" + "," * 15_000_000 + "\n")
    return {"kind": "csv", "files": str(folder / "table.csv"), **COLUMNS}


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    """A header of a tar with its size as twelve bytes."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157] = size, kind
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def octal(size: int) -> bytes:
    return f"{size:011o}\0".encode()


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def pax(records: bytes, kind: bytes = b"x") -> bytes:
    return header("pax", octal(len(records)), kind) + padded(records)


GOOD_TAR = tar_of([("good.png", SQUARE), ("good.txt", b"A square.")]).rstrip(b"\0")
GOOD_TAR = padded(GOOD_TAR)
PNG = header("b.png", octal(len(SQUARE))) + padded(SQUARE)


def tar(content: bytes | Callable[[], Iterator[bytes]]) -> Bomb:
    """A tar with a good sample, and something behind it."""

    def write(folder: Path) -> Source:
        more = content if isinstance(content, bytes) else b"".join(content())
        (folder / "00000.tar").write_bytes(GOOD_TAR + more + bytes(1024))
        return {"kind": "img2dataset", "files": str(folder / "00000.tar")}

    return write


def many_members() -> Iterator[bytes]:
    """Headers that differ in a digit of their names and another of their sums."""
    one = header("00000.png", octal(0))
    for number in range(60_000):
        name = f"{number:05d}".encode()
        total = int(one[148:154], 8) + sum(name) - 5 * ord("0")
        yield name + one[5:148] + f"{total:06o}".encode() + one[154:]


def parquet(folder: Path, table: pa.Table, **options: Any) -> Source:
    pq.write_table(table, folder / "table.parquet", **options)
    return {"kind": "parquet", "files": str(folder / "table.parquet"), **COLUMNS}


def parquet_footer(seed: int) -> Bomb:
    """A footer with some bytes changed at random; these seeds end a process that reads with two gigabytes of memory."""

    def write(folder: Path) -> Source:
        columns = {"id": ["a", "b"], "path": ["good.png"] * 2, "caption": ["x", "y"]}
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer, store_schema=False)
        content, numbers = bytearray(buffer.getvalue()), random.Random(seed)
        footer = int.from_bytes(content[-8:-4], "little")
        for _ in range(numbers.choice([1, 1, 2, 4])):
            content[numbers.randrange(len(content) - 8 - footer, len(content) - 8)] = numbers.randrange(256)
        (folder / "table.parquet").write_bytes(content)
        return {"kind": "parquet", "files": str(folder / "table.parquet"), **COLUMNS}

    return write


def parquet_cell(length: int) -> Bomb:
    """A caption of that many bytes between two good ones."""

    def write(folder: Path) -> Source:
        captions = pa.array(["A square.", "x" * length, "A square."], pa.large_string())
        table = pa.table({"id": ["good", "b", "c"], "path": ["good.png"] * 3, "caption": captions})
        return parquet(folder, table, compression="zstd", use_dictionary=False, write_statistics=False)

    return write


def parquet_dictionary(folder: Path) -> Source:
    """A hundred thousand rows that all are one text of ten megabytes, which the file has once."""
    rows = 100_000
    captions = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 10_000_000]))
    ids = pa.array([str(number) for number in range(rows)])
    return parquet(folder, pa.table({"id": ids, "path": ids, "caption": captions}), compression="zstd")


def parquet_deep(folder: Path) -> Source:
    column = pa.array([["x"]])
    for _ in range(150):
        column = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), column)
    return parquet(folder, pa.table({"id": ["a"], "path": ["b"], "caption": column}))


def hf(folder: Path) -> Source:
    """A picture that unfolds to more than memory may hold."""
    pictures = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array([bytes(10_000_000)]))
    pq.write_table(pa.table({"image": pictures, "caption": ["A."] * 1000}), folder / "t.parquet", compression="zstd")
    return {"kind": "hf", "files": str(folder / "t.parquet")}


def folder_text(folder: Path) -> Source:
    (folder / "b.png").write_bytes(SQUARE)
    with_hole(folder / "b.txt", "A square.\n", "\n")
    (folder / "good.png").write_bytes(SQUARE)
    (folder / "good.txt").write_text("A square.\n" + "x\n" * 500_000)
    return {"kind": "folder", "files": str(folder)}


def earlier_run(folder: Path) -> Source:
    (folder / "images").mkdir()
    parquet_footer(185)(folder)
    (folder / "table.parquet").rename(folder / "images" / "00000.parquet")
    (folder / "plan.json").write_text(json.dumps({"parts": 1}))
    return {"kind": "run", "files": str(folder), "captions": False}


def earlier_plan(folder: Path) -> Source:
    (folder / "images").mkdir()
    (folder / "images" / "00000.parquet").touch()
    (folder / "plan.json").write_text("[" * 100_000)
    return {"kind": "run", "files": str(folder)}


GOOD, ONE_LINE = "good", "one line"
BOMBS: dict[str, tuple[Bomb, set[str] | str]] = {
    "coco: a caption without end": (coco_caption_without_end, {"longer than 16,000,000 bytes"}),
    "coco: a text without end at the top": (coco_text_at_the_top, "a text or a number longer than"),
    "coco: 50,000 levels": (coco_deep, {"nested deeper than 100 levels"}),
    "coco: 2,000,000 levels at the top": (coco_deep_at_the_top, "not valid JSON"),
    "coco: an id of a million digits, and NaN": (coco_digits, set()),
    "coco: a number of 20,000,000 digits at the top": (coco_digits_at_the_top, "a text or a number longer than"),
    "coco: 300,000 captions of one image": (coco_many_values, set()),
    "coco: two million escapes": (coco_escapes, set()),
    "coco: gzip of two gigabytes": (coco_gzip, "unfolds to more than 200 times its size"),
    **{
        f"{table}: {kind} of two gigabytes of empty lines": (
            packed_lines(kind, table),
            "unfolds to more than 200 times",
        )
        for table, kind in (("jsonl", "gz"), ("csv", "bz2"), ("jsonl", "xz"), ("jsonl", "zst"))
    },
    "jsonl: xz with a dictionary of a gigabyte": (xz_dictionary, "not a whole xz file"),
    "jsonl: a line without end": (line_without_end("jsonl"), {"line 2 is longer than 16,000,000 characters"}),
    "csv: a line without end": (line_without_end("csv"), {"line 3 is longer than 16,000,000 characters"}),
    "jsonl: deep": (jsonl_deep, {"line 3 is nested deeper than 100 levels", "line 4 is no JSON"}),
    "jsonl: a list of deep entries": (json_list, {"entry 1 is no JSON object", "`path` names no file"}),
    "csv: quotes that are not closed": (csv_open_quotes, {"quote", "fields"}),
    "csv: fifteen million fields": (csv_fields, {"line 3 has 15000001 fields, the header 3"}),
    "tar: a size of 2^90": (tar(header("b.png", b"\x80" + (1 << 87).to_bytes(11, "big"))), "cut off at byte"),
    "tar: a size below nothing": (tar(header("b.png", b"\xff" * 12)), "damaged at byte"),
    "tar: a sparse file": (tar(header("b.png", octal(0), b"S")), {"sparse"}),
    "tar: a sparse file in PAX": (tar(pax(b"22 GNU.sparse.major=1\n") + PNG), {"sparse"}),
    "tar: 10,000 PAX headers in each other": (tar(pax(b"14 path=c.png\n") * 10_000 + PNG), set()),
    "tar: a PAX length of a megabyte of digits": (tar(pax(b"9" * (1 << 20))), "damaged at byte"),
    "tar: a PAX size of a megabyte of digits": (tar(pax(b"1000011 size=" + b"9" * 999_997 + b"\n") + PNG), "cut off"),
    "tar: a PAX header of 1 GB": (tar(header("pax", octal(1 << 30), b"x")), "damaged at byte"),
    "tar: a long name without end": (tar(header("long", octal(1 << 33 - 1), b"L")), "damaged at byte"),
    "tar: 60,000 members": (tar(many_members), set()),
    **{f"parquet: footer {seed}": (parquet_footer(seed), "not a whole Parquet file") for seed in (185, 446, 514)},
    "parquet: a cell of 100 MB": (parquet_cell(100_000_000), {"`caption` has 100,000,0"}),
    "parquet: a dictionary that unfolds": (parquet_dictionary, "needs more than 2 GB of memory"),
    "parquet: 150 levels": (parquet_deep, "not a whole Parquet file"),
    "hf: pictures that unfold": (hf, {"needs more than 2 GB of memory"}),
    "folder: a text without end": (folder_text, {"its .txt has more than 1,048,576 bytes"}),
    "run: a damaged cell": (earlier_run, "00000.parquet: "),
    "run: a plan of 100,000 levels": (earlier_plan, "not a whole plan"),
}
"""A file, and what is said of it: of the whole source in one line, or of records, each of which costs itself alone."""
