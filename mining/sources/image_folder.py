"""A folder of images, each with its captions in a text file beside it."""

from __future__ import annotations

import logging
import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pyarrow as pa
from pydantic import Field

from maskmine.mining.sources.entries import NOTHING_MORE, Entry
from maskmine.mining.sources.files import FileSource, SourceFile, open_source, told_passed_over, walk_files
from maskmine.mining.sources.text_files import Encoding, lines_of, plain_text
from maskmine.mining.storage.bounded.limits import USUAL, Limits
from maskmine.mining.storage.locations import file_location, rejected_location
from maskmine.mining.storage.names import UNREAD_SUFFIXES, alike, composed, is_picture, utf8_name
from maskmine.mining.storage.stores import describe, scheme_of
from maskmine.schemas.errors import InputError
from maskmine.schemas.rows import Rejection
from maskmine.schemas.settings import AnyPath

log = logging.getLogger(__name__)

_MAX_TEXT_BYTES, _MOST_CAPTIONS = 1 << 20, 1_024  # of an image; no honest one has more


class Folder(FileSource):
    """A folder of images with a .txt of the same name beside each, subfolders included.

    Every non-empty line of a .txt is a caption. An image's id is its path in the folder without the suffix.
    """

    kind: Literal["folder"]
    """A folder of images with a text file beside each."""
    name: str | None = None
    """Name of the source in samples and in `licences.captions`; its `kind` when null."""
    files: AnyPath
    """The folder, read with its subfolders."""
    per_image: Annotated[int, Field(ge=1)] | Literal["all"] = 1
    """Captions read of each image, the first lines of its .txt: a number, or `all`."""
    encoding: Encoding | None = None
    """Encoding of the .txt without a byte order mark, such as `cp1252`; null is UTF-8, or UTF-16 where that shows."""

    @property
    def root(self) -> str:
        """The folder."""
        return self.files

    def list_files(self) -> Iterator[SourceFile]:
        """The images and texts; those of one folder are in memory together."""
        for _, files in walk_files(self.files):
            yield from files

    def check(self) -> None:
        """Raises InputError when there is no such folder."""
        about = describe(self.files)
        if about is None or about["type"] != "directory":
            raise InputError(f"captions.files: {self.files} is no folder; give one with .jpg and .txt files")

    def read(self, *, images_per_part: int, limits: Limits = USUAL) -> Iterator[pa.Table]:
        """The entries (`mining/sources/entries.py`). Raises InputError when there is no such folder."""
        self.check()
        return super().read(images_per_part=images_per_part, limits=limits)

    def _entries(self, images_per_part: int, limits: Limits) -> Iterator[Entry]:
        position, passed_over = 0, Counter[str]()
        for folder, files in walk_files(self.files, passed_over=passed_over):
            named = _paired([posixpath.basename(file.path) for file in files])
            ids = [utf8_name(posixpath.join(folder, stem).removeprefix(self.files).lstrip("/")) for stem in named]
            times = Counter(map(composed, ids))
            for image_id, one in zip(ids, named.values(), strict=True):
                # Accents are composed, as in other lists, unless two names differ in that alone.
                image_id = composed(image_id) if times[composed(image_id)] == 1 else image_id
                location, captions = _read(folder, one, self.encoding)
                for caption in captions:
                    yield image_id, location, None, position, caption, NOTHING_MORE
                    position += 1
        if passed_over:
            log.warning("%s: %s", self.files, told_passed_over(passed_over))
        if not position:
            raise InputError(f"{self.files}: no .jpg, .png, .webp or .txt in it; there is nothing to mine")


@dataclass(slots=True)
class _Named:
    """The pictures and texts of one name."""

    pictures: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def _paired(names: list[str]) -> dict[str, _Named]:
    """The pictures and texts of a folder by their common stems, in the order of `names`.

    A text without a picture belongs to the picture without a text that it names whole (`a.jpg.txt`), or whose name
    differs in how accents or cases are written alone.
    """
    by_stem: dict[str, _Named] = {}
    for name in names:
        stem, suffix = posixpath.splitext(name)
        if is_picture(name):
            by_stem.setdefault(stem, _Named()).pictures.append(name)
        elif suffix.lower() == ".txt":
            by_stem.setdefault(stem, _Named()).texts.append(name)
    for stem, one in list(by_stem.items()):
        whole = by_stem.get(posixpath.splitext(stem)[0])
        if whole is not None and not whole.texts and not one.pictures and whole.pictures == [stem]:
            whole.texts = by_stem.pop(stem).texts
    for same in (composed, alike):
        lonely: dict[str, tuple[list[str], list[str]]] = {}
        for stem, one in by_stem.items():
            if bool(one.pictures) != bool(one.texts):
                lonely.setdefault(same(stem), ([], []))[bool(one.texts)].append(stem)
        for pictures, texts in lonely.values():
            if len(pictures) == 1 == len(texts):
                by_stem[pictures[0]].texts = by_stem.pop(texts[0]).texts
    return by_stem


def _read(folder: str, one: _Named, encoding: str | None) -> tuple[str, list[str]]:
    """The location of a picture, or why there is none, and its captions, one empty one where it has none."""
    read = [name for name in one.pictures if not name.lower().endswith(UNREAD_SUFFIXES)]
    pictures = read if len(read) == 1 else one.pictures  # a phone's .heic beside its .jpg is not read
    if len(pictures) > 1 or len(one.texts) > 1:
        many = f"{len(pictures)} pictures" if len(pictures) > 1 else f"{len(one.texts)} texts"
        return rejected_location(Rejection("broken_record", f"{many} of this name")), [""]
    if not pictures:
        return rejected_location(Rejection("missing_file", "no picture beside the .txt")), [""]
    try:
        captions = _lines(posixpath.join(folder, one.texts[0]), encoding) if one.texts else []
    except ValueError as error:
        return rejected_location(Rejection("broken_record", str(error))), [""]
    except InputError:
        if scheme_of(folder) != "file":  # an object store that fails is no fault of a text
            raise
        return rejected_location(Rejection("broken_record", "its .txt cannot be read")), [""]
    return file_location(posixpath.join(folder, pictures[0])), captions or [""]


def _lines(path: str, encoding: str | None) -> list[str]:
    """The non-empty lines of a text. Raises ValueError, with what is wrong, when it is no text."""
    with open_source(path) as file:
        content = file.read(_MAX_TEXT_BYTES + 1)
    if len(content) > _MAX_TEXT_BYTES:
        raise ValueError(f"its .txt has more than {_MAX_TEXT_BYTES:,} bytes")
    lines = lines_of(plain_text(content, name=".txt", encoding=encoding))
    return [line.strip() for line in lines if line.strip()][:_MOST_CAPTIONS]
