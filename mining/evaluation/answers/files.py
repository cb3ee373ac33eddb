"""A file of answers: which tool it is from, whatever its name, and what lies in it where it is a zip.

Nothing of a zip is extracted under a name of its own: a member is read into a temporary file, up to a bound.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import IO, Literal

from maskmine.mining.evaluation.answers.answer import Answer, Fault, UnfoldMask, refuse_other_size
from maskmine.mining.evaluation.answers.coco import coco_answers
from maskmine.mining.evaluation.answers.cvat import cvat_answers
from maskmine.mining.evaluation.answers.label_studio import label_studio_answers
from maskmine.mining.evaluation.verdict_tables import csv_lines
from maskmine.mining.evaluation.verdicts import read_verdict_file
from maskmine.mining.storage.bounded.limits import USUAL
from maskmine.mining.storage.ownership import SCRATCH, owned_prefix
from maskmine.mining.storage.stores import open_input
from maskmine.schemas.annotation_tools import PairId
from maskmine.schemas.errors import InputError
from maskmine.schemas.mask import Mask
from maskmine.schemas.rows import VerdictRow

Kind = Literal["label-studio", "cvat", "coco", "csv", "verdicts", "value"]

_REMEDY = "give what Label Studio, CVAT or FiftyOne exported, or a CSV"
_HEAD_BYTES, _COPIED_BYTES = 1 << 16, 1 << 20
_FREE_BYTES = 8 << 20  # that any zip may unfold to
_MOST_MEMBERS = 100_000
_STORED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others may take any memory; no tool writes them
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError)


@dataclass(frozen=True, slots=True)
class AnswerFile:
    """Answers in a file here, which messages name `called`; `encoding` is that of a CSV, found out where None."""

    path: str
    called: str
    kind: Kind
    encoding: str | None = None

    def answers(self, pair_of_key: Mapping[str, PairId]) -> Iterator[Answer | Fault]:
        """The answers in order; `pair_of_key` explains the keys of a CSV. Raises InputError when it cannot be read."""
        try:
            yield from self._answers(pair_of_key)
        except InputError as error:
            raise InputError(str(error).replace(self.path, self.called)) from error

    def _answers(self, pair_of_key: Mapping[str, PairId]) -> Iterator[Answer | Fault]:
        if self.kind == "label-studio":
            yield from label_studio_answers(self.path)
        elif self.kind == "coco":
            yield from coco_answers(self.path)
        elif self.kind == "cvat":
            with open(self.path, "rb") as file:
                yield from cvat_answers(file, path=self.path)
        elif self.kind == "value":
            raise InputError(f"{self.path}: one JSON value, and no answers in it; {_REMEDY}")
        elif self.kind == "verdicts":
            yield from (_answer(f"row {n}", row) for n, row in enumerate(read_verdict_file(self.path)))
        else:
            yield from self._lines(pair_of_key)

    def _lines(self, pair_of_key: Mapping[str, PairId]) -> Iterator[Answer | Fault]:
        for number, line in enumerate(csv_lines(self.path, pair_of_key, encoding=self.encoding), start=1):
            place = f"answer {number}"
            if line.row is not None:
                yield _answer(place, line.row, refused=line.refused)
            elif line.unknown_key:
                yield Answer(place=place, pair=None, key=line.unknown_key)
            else:
                yield Fault(place, line.fault)


@contextmanager
def answer_files(path: str, *, encoding: str | None = None) -> Iterator[Sequence[AnswerFile]]:
    """The files with answers at a path, here or on an object store: itself, or what a zip holds, as long as the block.

    Raises InputError when there is none, or one that unfolds to far too much.
    """
    with tempfile.TemporaryDirectory(prefix=owned_prefix(SCRATCH)) as scratch:
        here = os.path.join(scratch, "answers")
        try:
            with open_input(path) as source, open(here, "wb") as target:
                while block := source.read(_COPIED_BYTES):
                    target.write(block)
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file; {_REMEDY}") from error
        except IsADirectoryError as error:
            raise InputError(f"{path}: a folder; {_REMEDY}, one file at a time") from error
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error}); mend the cause") from error
        if zipfile.is_zipfile(here):
            yield _members(here, path, scratch)
        else:
            yield [AnswerFile(here, path, _kind_of(here), encoding)]


def _kind_of(path: str) -> Kind:
    """Which tool a file is from, by how it begins."""
    with open(path, "rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(b"PAR1"):
        return "verdicts"
    text = head.removeprefix(b"\xef\xbb\xbf").removeprefix(b"\xff\xfe").replace(b"\0", b"").lstrip()
    if text.startswith(b"<"):
        return "cvat"
    if text.startswith(b"["):
        return "label-studio"
    if text.startswith(b"{"):
        is_coco = any(name in text for name in (b'"images"', b'"categories"', b'"info"', b'"licenses"'))
        return "coco" if is_coco or b'"data"' not in text else "label-studio"
    return "value" if len(head) < _HEAD_BYTES and _is_json_value(text) else "csv"


def _is_json_value(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _members(here: str, path: str, scratch: str) -> list[AnswerFile]:
    """The XML and JSON files of a zip, each read into a temporary file."""
    try:
        with open(here, "rb") as file, zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            if len(infos) > _MOST_MEMBERS:
                raise InputError(f"{path}: a zip of more than {_MOST_MEMBERS:,} files; {_REMEDY} without pictures")
            wanted = [info for info in infos if _may_have_answers(info)]
            budget = _FREE_BYTES + int(USUAL.max_unpacked_ratio * os.path.getsize(here))
            found = []
            for number, info in enumerate(sorted(wanted, key=lambda one: one.filename)):
                target = os.path.join(scratch, f"member-{number}")
                with archive.open(info) as member, open(target, "wb") as copy:
                    budget = _copy(member, copy, budget, path)
                kind = _kind_of(target)
                if kind not in ("csv", "value"):
                    found.append(AnswerFile(target, f"{path}, {info.filename[:80]!r}", kind))
    except _BROKEN_ZIP as error:
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise InputError(f"{path}: not a whole zip ({reason}); get the file again") from error
    except OSError as error:  # a place before the file's beginning, or a full disk
        raise InputError(f"{path}: cannot be unpacked ({error.strerror or error}); get the file again") from error
    if not found:
        raise InputError(f"{path}: a zip without annotations; {_REMEDY}")
    return found


def _may_have_answers(info: zipfile.ZipInfo) -> bool:
    named = info.filename.lower().endswith((".xml", ".json")) and not info.is_dir()
    return named and info.compress_type in _STORED and not info.flag_bits & 1  # none with a password


def _copy(member: IO[bytes], copy: IO[bytes], budget: int, path: str) -> int:
    """Copy as much as the budget allows; what is left of it. Raises InputError when that is not all."""
    while block := member.read(_COPIED_BYTES):
        budget -= len(block)
        if budget < 0:
            ratio = USUAL.max_unpacked_ratio
            raise InputError(f"{path}: unfolds to more than {ratio:g} times its size; if that is meant, unpack it")
        copy.write(block)
    return budget


def _answer(place: str, row: VerdictRow, *, refused: Mapping[str, str] = MappingProxyType({})) -> Answer:
    """The answer of a row; corrections that are `refused` are told where it is held against its pair."""
    mask = None if row.corrected_mask is None else _as_it_is(row.corrected_mask)
    return Answer(
        place=place,
        pair=(row.image_id, row.noun, row.mask),
        verdict=row.verdict,
        noun=row.corrected_noun,
        mask=_refuses(refused["mask"]) if "mask" in refused else mask,
        refused_noun=refused.get("noun", ""),
        reviewer=row.reviewer,
        at=row.at,
        seconds=row.seconds,
    )


def _refuses(why: str) -> UnfoldMask:
    def unfold(height_px: int, width_px: int) -> Mask:
        raise ValueError(why)

    return unfold


def _as_it_is(mask: Mask) -> UnfoldMask:
    def unfold(height_px: int, width_px: int) -> Mask:
        refuse_other_size((mask.height_px, mask.width_px), height_px, width_px)
        return mask

    return unfold
