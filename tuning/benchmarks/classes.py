"""The classes of the benchmarks: their numbers in the downloads, and which of them were seen in training.

The number of a class, 0, 1 …, is its index in the list. The lists are in `class_lists/`, a class per line; that of
the 459 classes of PASCAL Context comes with the download. `_SHA256` pins every list, because results on another list
do not compare.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from maskmine.mining.storage.bounded.small_files import read_list
from maskmine.mining.text.labels import label_names
from maskmine.schemas.errors import InputError

_LISTS = Path(__file__).with_name("class_lists")
_SHA256 = {
    "ade150": "aaab84ac88c425d4587c5792b4a8b5cda081e81723df78c2e3a2e02c2b6c905d",
    "ade847": "ee311c5f3b780a16a58f40726927f6c41149860a5fca6c1116ea1dca129efd8b",
    "pc59": "cd808465f06a16169edc25580073f0eda347e64f06cc1c2e24acd0b237f6497d",
    "pc459": "f22a02ac1b8419bc30f91a47c3668be6880fd52106cfc7881500f5d9219f0269",
    "voc20": "7d877f185c807bc51b4cfb4f4202fc0b4e1c6724b782ba245fe36f8d254f0ad7",
    "coco-stuff-171": "8ea44449837dceb30923012b201fe0152adc612160d0d040c9cfcd77e95f6801",
}
_PC_CLASSES = 459
_PC_LINE = re.compile(r"(\d+)\s*:\s*(.+)")


@dataclass(frozen=True, slots=True)
class ClassList:
    """The classes of a set in order, and the number of each in the download."""

    names: tuple[str, ...]
    stored: tuple[int, ...]

    @property
    def sha256(self) -> str:
        """A hash of the names in their order."""
        return hashlib.sha256("\n".join(self.names).encode()).hexdigest()

    def is_official(self, name: str) -> bool:
        """Whether these are the classes of published results."""
        return self.sha256 == _SHA256[name]


@functools.lru_cache
def shipped_classes(name: str) -> ClassList:
    """The classes of a set from this package, which has those of all sets but `pc459`."""
    lines = (_LISTS / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    return ClassList(tuple(label for _, label in rows), tuple(int(number) for number, _ in rows))


def context_classes(labels_txt: Path) -> ClassList:
    """The 459 classes of PASCAL Context from the `labels.txt` of its download, lines like `2: aeroplane`.

    Spaces in names are dropped, as in published lists ("pottedplant"). Raises InputError for another file.
    """
    try:
        lines = read_list(labels_txt, encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{labels_txt}: cannot be read ({type(error).__name__}); download it again") from error
    matches = [match for line in lines if (match := _PC_LINE.fullmatch(line.strip()))]
    names = ["".join(match[2].split()) for match in matches]
    if [int(match[1]) for match in matches] != list(range(1, _PC_CLASSES + 1)) or len(set(names)) != _PC_CLASSES:
        raise InputError(
            f"{labels_txt}: has not the lines `1: accordion` to `459: …` of PASCAL Context but {len(matches)} like "
            "them; download it again"
        )
    classes = ClassList(tuple(names), tuple(range(1, _PC_CLASSES + 1)))
    pc59 = shipped_classes("pc59")
    for number, label in zip(pc59.stored, pc59.names, strict=True):
        if names[number - 1] != label:
            raise InputError(f"{labels_txt}: {number} is `{names[number - 1]}`, not `{label}`; download it again")
    return classes


def seen_classes(names: Sequence[str]) -> frozenset[str]:
    """The classes that are among COCO-Stuff-171's by the rule in `class_lists/seen_classes.yaml`."""
    seen, other_sense = _seen_names()
    return frozenset(name for name in names if name not in other_sense and not seen.isdisjoint(_plain_names(name)))


def synonyms_of(names: Iterable[str]) -> set[str]:
    """The synonyms of names in `class_lists/seen_classes.yaml`, including the names; without spaces."""
    wanted = set(names)
    return {name for group in _groups() if not wanted.isdisjoint(group) for name in group}


@functools.lru_cache
def _seen_names() -> tuple[frozenset[str], frozenset[str]]:
    plain_names = map(_plain_names, shipped_classes("coco-stuff-171").names)
    return frozenset().union(*plain_names, *_groups()), frozenset(_seen_table()["other_sense"])


@functools.lru_cache
def _groups() -> tuple[frozenset[str], ...]:
    """Synonyms, a group for each class of COCO-Stuff that has some."""
    groups = _seen_table()["synonyms"].items()
    return tuple(frozenset(set().union(*map(_plain_names, (name, *synonyms)))) for name, synonyms in groups)


@functools.lru_cache
def _seen_table() -> Any:
    return yaml.safe_load((_LISTS / "seen_classes.yaml").read_text(encoding="utf-8"))


def _plain_names(name: str) -> set[str]:
    return {plain.replace(" ", "") for plain in label_names(name)}
