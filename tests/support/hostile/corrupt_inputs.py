"""Faults that captioned images come with: pictures, captions, tars and tables, made anew by each test run."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from maskmine.mining.storage.names import PICTURE_SUFFIXES
from tests.support.hostile.corrupt_images import CAPTIONS as SAID
from tests.support.hostile.corrupt_images import PICTURES as SEEN
from tests.support.hostile.corrupt_images import RGB, encoded
from tests.support.source_formats import tar_of


def _animated(kind: str) -> bytes:
    return encoded(RGB, kind, save_all=True, append_images=[RGB.rotate(180)], duration=50)


def _wide() -> bytes:
    return encoded(Image.fromarray(np.zeros((1, 65_500, 3), np.uint8)), "PNG")


PICTURES: dict[str, tuple[Callable[[], bytes] | None, str | None]] = {
    **{name.replace("_", "-"): case for name, case in SEEN.items()},
    "png-as-jpg": (lambda: encoded(RGB, "PNG"), None),
    "animated-gif": (lambda: _animated("GIF"), None),
    "animated-webp": (lambda: _animated("WEBP"), None),
    "wide": (_wide, "image_too_large"),
    "broken-profile": (lambda: encoded(RGB, "JPEG", icc_profile=b"no profile" * 9), None),
    "ycck": (lambda: encoded(RGB.convert("YCbCr"), "JPEG"), None),
    "cut-header": (lambda: encoded(RGB, "PNG")[:20], "decode_error"),
}
"""What is in the file, and the reason of the rejection; None where the picture must give its pair."""

CAPTIONS: dict[str, tuple[tuple[str, ...], str | None]] = {
    **{name.replace(" ", "-"): ((caption,), reason) for name, (caption, reason) in SAID.items()},
    "none": ((), "no_caption"),
    "seven": (("A square.",) * 7, None),
    "hundred-thousand": (("x" * 100_000,), "no_caption"),
    "markup": (('<b>"A square",\t\'quoted\'</b> \\" a square',), None),
}

SQUARE = encoded(RGB, "PNG")
GOOD = [("good.png", SQUARE), ("good.txt", b"A square.")]


@dataclass(frozen=True)
class TarFault:
    """The bytes of a tar; the rejections of its images by id (None: its picture is read), or what is said of it."""

    content: bytes
    images: dict[str, str | None] | None = None
    said: str | None = None


def _info(name: str, kind: bytes, *, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def _cut(content: bytes, *, end: int) -> bytes:
    return content[:end]


def _huge_pax() -> bytes:
    """A header that promises an extended header of 64 GB, and nothing behind it."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 1 << 36
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(2048)


def _not_utf8() -> bytes:
    return tar_of(GOOD, format=tarfile.USTAR_FORMAT).replace(b"good.", b"g\xff\xfed.", 1)


def _mend(block: bytes) -> bytes:
    """A header with its checksum made right."""
    total = sum(block[:148]) + 8 * 32 + sum(block[156:512])
    return block[:148] + f"{total:06o}\0 ".encode() + block[156:]


def _mended(content: bytes) -> bytes:
    return _mend(content[:512]) + content[512:]


def _large_size() -> bytes:
    """A last member that says it has 8 GB."""
    content = bytearray(tar_of([("good.png", SQUARE)]))
    content[124:136] = b"77777777777\0"
    return _mend(bytes(content[:512])) + bytes(content[512:])


_WHOLE = tar_of([*GOOD, ("last.png", SQUARE), ("last.txt", b"A square.")])
_LAST_HEADER = 512 * 2 + -(-len(SQUARE) // 512) * 512 + 512


def _pair(key: str) -> list[tuple[str, bytes]]:
    """A picture and its text."""
    return [(f"{key}.png", SQUARE), (f"{key}.txt", b"A square.")]


_TWO_RF: dict[str, str | None] = {"b.rf.1": None, "b.rf.2": None}

TARS: dict[str, TarFault] = {
    "whole": TarFault(_WHOLE, {"good": None, "last": None}),
    "empty file": TarFault(b"", said="cut off at byte 0"),
    "html": TarFault(b"<html>404</html>" * 64, said="not a tar"),
    "gzip": TarFault(gzip.compress(_WHOLE), said="a compressed tar"),
    "zstd": TarFault(b"\x28\xb5\x2f\xfd" + bytes(1024), said="a compressed tar"),
    "cut inside a member": TarFault(_cut(_WHOLE, end=_LAST_HEADER + 512 + 100), said="cut off"),
    "cut inside a header": TarFault(_cut(_WHOLE, end=_LAST_HEADER + 100), said="damaged at byte"),
    "cut between members": TarFault(_cut(_WHOLE, end=_LAST_HEADER), said="cut off"),
    "no end mark": TarFault(_WHOLE.rstrip(b"\0") + bytes(-len(_WHOLE.rstrip(b"\0")) % 512), said="cut off"),
    "a damaged header": TarFault(
        _WHOLE[:_LAST_HEADER] + b"\xff" * 512 + _WHOLE[_LAST_HEADER + 512 :], said="damaged at byte"
    ),
    "interleaved": TarFault(
        tar_of([("a.png", SQUARE), ("b.png", SQUARE), ("a.txt", b"A square."), ("b.txt", b"A square.")]),
        {"a": None, "b": None},
    ),
    "a key twice": TarFault(
        tar_of([*GOOD, ("b.png", SQUARE), ("b.txt", b""), *GOOD]), {"good": "broken_record", "b": None}
    ),
    "absolute and upward names": TarFault(
        tar_of([("/etc/a.png", SQUARE), ("../../b.png", SQUARE), ("./c.png", SQUARE)]),
        {"/etc/a": None, "../../b": None, "c": None},
    ),
    "a link to the passwords": TarFault(
        tar_of([*GOOD, _info("a.png", tarfile.SYMTYPE, link="/etc/passwd")]), {"good": None, "a": "broken_record"}
    ),
    "a hard link": TarFault(
        tar_of([*GOOD, _info("a.png", tarfile.LNKTYPE, link="good.png")]), {"good": None, "a": "broken_record"}
    ),
    "a device": TarFault(tar_of([*GOOD, _info("a.png", tarfile.CHRTYPE)]), {"good": None, "a": "broken_record"}),
    "a huge extended header": TarFault(_huge_pax(), said="a header of 68719476736 bytes"),
    "names that are no UTF-8": TarFault(_mended(_not_utf8()), {"g%FF%FEd": None, "good": "missing_file"}),
    "a further member, as our own masks": TarFault(tar_of([("a.b.png", SQUARE), ("a.png", SQUARE)]), {"a": None}),
    "dots in keys": TarFault(
        tar_of([*_pair("a"), *_pair("a.rf.1"), *_pair("a.rf.2"), *_pair("v1.0/12.30.05"), *_pair("win\\v2.1\\a")]),
        dict.fromkeys(["a", "a.rf.1", "a.rf.2", "v1.0/12.30.05", "win/v2.1/a"]),
    ),
    "a dotted picture without its text": TarFault(tar_of([("b.rf.1.png", SQUARE), ("b.rf.2.png", SQUARE)]), _TWO_RF),
    "a dotted text without its picture": TarFault(
        tar_of([*_pair("b.rf.1"), ("b.rf.2.txt", b"x")]), {"b.rf.1": None, "b.rf.2": "missing_file"}
    ),
    "one picture and one text of a key": TarFault(
        tar_of([("a.image.png", SQUARE), ("a.caption.txt", b"A square."), ("b.left.png", SQUARE), ("b.txt", b"x")]),
        {"a": None, "b": None},
    ),
    "two pictures for one text": TarFault(
        tar_of([("a.left.png", SQUARE), ("a.right.png", SQUARE), ("a.txt", b"x")]), {"a": "broken_record"}
    ),
    "a hidden name": TarFault(tar_of(_pair(".a")), {".a": None}),
    "accents in two forms": TarFault(
        tar_of([("e\u0301.png", SQUARE), ("\u00e9.txt", b"A square.")], format=tarfile.GNU_FORMAT), {"\u00e9": None}
    ),
    "leftovers of macOS and Windows": TarFault(
        tar_of(
            [*GOOD, ("._good.png", b"\0\5\x16\7"), ("__MACOSX/a/b.png", b""), ("d/Thumbs.db", b""), (".DS_Store", b"")]
        ),
        {"good": None},
    ),
    "every suffix": TarFault(
        tar_of([(f"{suffix}.{suffix.upper()}", SQUARE) for suffix in PICTURE_SUFFIXES]), dict.fromkeys(PICTURE_SUFFIXES)
    ),
    "two tars, one behind the other": TarFault(
        tar_of(GOOD) + tar_of(_pair("b")) + bytes(512 * 99), {"good": None, "b": None}
    ),
    "a cut tar behind a whole one": TarFault(tar_of(GOOD) + _cut(_WHOLE, end=_LAST_HEADER), said="cut off"),
    "something else behind the end": TarFault(
        tar_of(GOOD) + b"<html>" * 99, said="followed by something that is no tar"
    ),
    "a key in both of two tars": TarFault(
        tar_of([*GOOD, *_pair("b")]) + tar_of(GOOD), {"good": "broken_record", "b": None}
    ),
    "a key of 300 characters": TarFault(tar_of([(f"{'k' * 300}.png", SQUARE)]), {"k" * 300: None}),
    "upper case suffixes": TarFault(tar_of([("a.PNG", SQUARE), ("a.TXT", b"A square.")]), {"a": None}),
    "a folder in the tar": TarFault(tar_of([_info("d", tarfile.DIRTYPE), ("d/a.png", SQUARE)]), {"d/a": None}),
    "a picture without its text": TarFault(tar_of([("a.png", SQUARE)]), {"a": None}),
    "a text without its picture": TarFault(tar_of([*GOOD, ("a.txt", b"x")]), {"good": None, "a": "missing_file"}),
    "a text that is binary": TarFault(
        tar_of([("a.png", SQUARE), ("a.txt", bytes(range(256)))]), {"a": "broken_record"}
    ),
    "a text in UTF-16": TarFault(tar_of([("a.png", SQUARE), ("a.txt", "A square.".encode("utf-16"))]), {"a": None}),
    "a link in the place of the text": TarFault(
        tar_of([("a.png", SQUARE), _info("a.txt", tarfile.SYMTYPE, link="b.txt")]), {"a": "broken_record"}
    ),
    "a text without end": TarFault(
        tar_of([("a.png", SQUARE), ("a.txt", b"x" * (1 << 20) + b"x")]), {"a": "broken_record"}
    ),
    "members that nobody asked for": TarFault(
        tar_of([*GOOD, ("good.pyd", b"\x80\x04N."), ("good.pth", b""), ("README", b"")]), {"good": None}
    ),
    "a size beyond the file": TarFault(_large_size(), said="cut off"),
    "no sample": TarFault(tar_of([("README", b"")]), said="no sample in any tar"),
}


@dataclass(frozen=True)
class TableFault:
    """A table's kind and bytes, and the rejection of each image by id, or what is said of it."""

    kind: str
    content: bytes
    images: dict[str, str | None] | None = None
    said: str | None = None


def parquet_of(columns: dict[str, Sequence[object]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def _lines(*rows: object) -> bytes:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows).encode("utf-8", "replace")


_ROW = {"id": "good", "path": "good.png", "caption": "A square."}
_PARQUET = parquet_of({key: [value] for key, value in _ROW.items()})

TABLES: dict[str, TableFault] = {
    "jsonl: a line that is none": TableFault(
        "jsonl",
        _lines(_ROW, "{broken", "[1, 2]", "", "7"),
        {"good": None, "#2": "broken_record", "#3": "broken_record", "#5": "broken_record"},
    ),
    "jsonl: deep nesting": TableFault("jsonl", _lines(_ROW, "[" * 100_000), {"good": None, "#2": "broken_record"}),
    "jsonl: no path": TableFault(
        "jsonl", _lines(_ROW, {"id": "b", "caption": "x"}), {"good": None, "b": "missing_file"}
    ),
    "jsonl: no id": TableFault("jsonl", _lines(_ROW, {"path": "good.png"}), {"good": None, "#2": "broken_record"}),
    "jsonl: mixed types": TableFault(
        "jsonl",
        _lines(_ROW, {**_ROW, "id": 7, "path": 7}, {**_ROW, "id": True}, {**_ROW, "id": "c", "caption": {"a": 1}}),
        {"good": None, "7": "missing_file", "#3": "broken_record", "c": None},
    ),
    "jsonl: a byte order mark": TableFault("jsonl", b"\xef\xbb\xbf" + _lines(_ROW), {"good": None}),
    "jsonl: bytes that are no UTF-8": TableFault(
        "jsonl", _lines(_ROW) + b'{"id": "\xff"}\n', {"good": None, "#2": "broken_record"}
    ),
    "jsonl: a lone surrogate": TableFault(
        "jsonl",
        _lines(_ROW) + b'{"id": "a\\ud83d", "path": "good.png", "caption": "a cat"}\n',
        {"good": None, "#2": "broken_record"},
    ),
    "jsonl: a lone surrogate in a caption": TableFault(
        "jsonl",
        _lines(_ROW) + b'{"id": "half", "path": "good.png", "caption": "\\ud83d"}\n',
        {"good": None, "half": None},
    ),
    "jsonl: upward path": TableFault(
        "jsonl", _lines({**_ROW, "path": "../" * 40 + "etc/none.png"}), said="all images that it names lie elsewhere"
    ),
    "jsonl: NUL in a path": TableFault("jsonl", _lines({**_ROW, "path": "good\0.png"}), {"good": "missing_file"}),
    "jsonl: a place that is ours to give": TableFault(
        "jsonl", _lines({**_ROW, "path": "bytes:0+64:/etc/passwd"}), {"good": "missing_file"}
    ),
    "jsonl: a device": TableFault(
        "jsonl", _lines({**_ROW, "path": "/dev/zero"}), said="all images that it names lie elsewhere"
    ),
    "jsonl: empty": TableFault("jsonl", b"\n\n", said="no row in it"),
    "jsonl: other columns": TableFault("jsonl", _lines({"a": 1}, {"b": 2}), said="no row can be used with"),
    "jsonl: binary": TableFault("jsonl", bytes(range(256)) * 300, said="no row can be used with"),
    "csv: a missing column": TableFault(
        "csv", b"id,file,caption\n1,a,b\n", said="no column `path` (`path_col`); it has id"
    ),
    "csv: a column twice": TableFault("csv", b"id,path,path,caption\n", said="two columns are called `path`"),
    "csv: too few and too many fields": TableFault(
        "csv",
        b"id,path,caption\ngood,good.png,a square\nb,good.png\nc,d,e,f\n",
        {"good": None, "#3": "broken_record", "#4": "broken_record"},
    ),
    "csv: a quote that is not closed": TableFault(
        "csv", b'id,path,caption\na,good.png,"x\n' + b"b,good.png,y\n" * 20_000, {"a": None, "b": None}
    ),
    "csv: empty": TableFault("csv", b"", said="it has none"),
    "csv: a header alone": TableFault("csv", b"id,path,caption\n", said="no row in it"),
    "csv: NUL and no UTF-8": TableFault(
        "csv", b"id,path,caption\na\0\xff,good.png,x\nb\0,good.png,x\n", {"#2": "broken_record", "b\0": None}
    ),
    "csv: the same image in two places": TableFault(
        "csv", b"id,path,caption\na,good.png,x\na,b.png,y\n", said="lists image id a more than once"
    ),
    "csv: the same image with two captions": TableFault(
        "csv", b"id,path,caption\na,good.png,x\na,good.png,y\n", {"a": None}
    ),
    "parquet: cut": TableFault("parquet", _PARQUET[:-20], said="not a whole Parquet file"),
    "parquet: a damaged page": TableFault(
        "parquet", b"PAR1" + b"\xff" * 40 + _PARQUET[44:], said="not a whole Parquet file"
    ),
    "parquet: html": TableFault("parquet", b"<html>", said="not a whole Parquet file"),
    "parquet: empty file": TableFault("parquet", b"", said="not a whole Parquet file"),
    "parquet: nulls": TableFault(
        "parquet",
        parquet_of({"id": ["good", None, "c"], "path": ["good.png", "good.png", None], "caption": ["a", None, None]}),
        {"good": None, "#1": "broken_record", "c": "missing_file"},
    ),
    "parquet: no row": TableFault(
        "parquet", parquet_of({name: pa.array([], pa.string()) for name in _ROW}), said="no row in it"
    ),
    "parquet: text that is no UTF-8": TableFault(
        "parquet",
        parquet_of(
            {"id": ["a", "b"], "path": ["good.png"] * 2, "caption": pa.array([b"\xff x", b"y"]).view(pa.string())}
        ),
        {"#0": "broken_record", "b": None},
    ),
    "parquet: numbers as captions": TableFault(
        "parquet", parquet_of({"id": [1], "path": ["good.png"], "caption": [2.5]}), {"1": None}
    ),
}


@dataclass(frozen=True)
class RunFault:
    """What happens to the folder of an earlier run, and what is said of it; None where all images are read."""

    harm: Callable[[Path], object]
    said: str | None = None


def _put(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda run: (run / name).write_bytes(content)


def _remove(name: str) -> Callable[[Path], object]:
    return lambda run: (run / name).unlink()


def _break_off(name: str) -> Callable[[Path], object]:
    return lambda run: (run / name).write_bytes((run / name).read_bytes()[:-20])


RUNS: dict[str, RunFault] = {
    "whole": RunFault(lambda run: None),
    "a strange file among its cells": RunFault(_put("images/notes.parquet", b"<html>")),
    "no plan": RunFault(_remove("plan.json"), "is no run folder"),
    "a plan that breaks off": RunFault(_break_off("plan.json"), "plan.json: not a whole plan"),
    "a plan that is a list": RunFault(_put("plan.json", b"[]"), "plan.json: not a whole plan"),
    "a plan with a word for a number": RunFault(_put("plan.json", b'{"parts": "3"}'), "plan.json: not a whole plan"),
    "a plan with numbers for folders": RunFault(_put("plan.json", b'{"parts": 3, "roots": [[5, "a"]]}')),
    "a part without its images": RunFault(_remove("images/00001.parquet"), "images/00001.parquet: missing"),
    "a part without its captions": RunFault(_remove("captions/00002.parquet"), "captions/00002.parquet: no such file"),
    "images that break off": RunFault(_break_off("images/00001.parquet"), "not a whole Parquet file"),
    "captions that are html": RunFault(_put("captions/00000.parquet", b"<html>"), "not a whole Parquet file"),
    "other columns": RunFault(_put("images/00000.parquet", parquet_of({"a": [1]})), "has no column `image_id`"),
    "ids that are numbers": RunFault(
        _put("images/00000.parquet", parquet_of({"image_id": [1], "path": ["/a"]})), "has no column `image_id`"
    ),
    "an image without id": RunFault(
        _put("images/00000.parquet", parquet_of({"image_id": pa.array([None], pa.string()), "path": ["/a"]})),
        "has no column `image_id`",
    ),
    "captions that are no lists": RunFault(
        _put("captions/00000.parquet", parquet_of({"image_id": ["a"], "captions": ["x"]})), "has no column `captions`"
    ),
}
