"""Names of files: which are pictures, which are leftovers of an operating system, and how else a name may be written.

One table of suffixes serves all that look for pictures: folders, tars, segmentation and training.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator

UNREAD_SUFFIXES = ("heic", "heif", "jxl", "ppm", "pgm", "pbm", "pnm")
"""Suffixes of pictures that are not decoded; they are listed so that they are told, as `decode_error`."""
PICTURE_SUFFIXES = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff"),
    *("avif", "jp2", "j2k", "j2c", "jpc", "jpx", "jpf"),
    *UNREAD_SUFFIXES,
)
"""Suffixes of pictures in lower case, by preference where a sample of a tar has several."""

# What macOS, Windows, network storage and Jupyter leave beside the files of a user.
_LEFT_FOLDERS = frozenset(
    {
        *("__macosx", ".appledouble", ".trashes", ".spotlight-v100", ".fseventsd", ".temporaryitems"),
        *("@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"),
        *(".ipynb_checkpoints", ".thumbnails"),
    }
)
_LEFT_FILES = frozenset({".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
_NO_UTF8 = re.compile("[\ud800-\udfff]")  # how Python holds what is no UTF-8 in a name


def is_picture(name: str) -> bool:
    """Whether a file's name has the suffix of a picture."""
    stem, _, suffix = name.rpartition(".")
    return bool(stem) and suffix.lower() in PICTURE_SUFFIXES


def is_leftover(name: str) -> bool:
    """Whether a name, below the folder that was given, is that of a leftover: `._a.jpg`, `__MACOSX/…`, `Thumbs.db`."""
    *folders, last = name.lower().split("/")
    return last.startswith("._") or last in _LEFT_FILES or not _LEFT_FOLDERS.isdisjoint([*folders, last])


def utf8_name(name: str) -> str:
    """A name as UTF-8 can hold it: a byte that is none becomes `%E9`, so that two such names stay two."""
    return _NO_UTF8.sub(lambda found: _escaped(ord(found[0])), name)


def alike(name: str) -> str:
    """The same for names that differ in case or in how accents are written (composed or decomposed) alone."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def composed(name: str) -> str:
    """The name with its accents composed (NFC), as most lists write them; macOS decomposes them."""
    return unicodedata.normalize("NFC", name)


def other_spellings(name: str) -> Iterator[str]:
    """Other ways to write a name: Windows' separators as ours, accents composed and decomposed; each once."""
    slashed = name.replace("\\", "/")
    tried = {name}
    for form in ("", "NFC", "NFD"):
        other = unicodedata.normalize(form, slashed) if form else slashed  # type: ignore[arg-type]
        if other not in tried:
            tried.add(other)
            yield other


def path_as_stored(path: str) -> str | None:
    """The path of a file on this disk whose name is written otherwise, folder by folder; None when there is none."""
    if path.isascii() and "\\" not in path:
        return None
    found = "/" if path.startswith("/") else ""
    names = [name for name in path.split("/") if name]
    while names:
        name = names.pop(0)
        if os.path.lexists(os.path.join(found, name)):
            found = os.path.join(found, name)
            continue
        if "\\" in name:  # each folder of it may be written otherwise, too
            names = [*name.replace("\\", "/").split("/"), *names]
            continue
        others = (os.path.join(found, other) for other in other_spellings(name))
        stored = next((other for other in others if os.path.lexists(other)), None)
        if stored is None:
            return None
        found = stored
    return found


def is_file(path: str) -> bool:
    """Whether a file of this name, or of one that is written otherwise, is on this disk."""
    stored = path if os.path.isfile(path) else path_as_stored(path)
    return stored is not None and os.path.isfile(stored)


def _escaped(code: int) -> str:
    return f"%{code - 0xDC00:02X}" if 0xDC80 <= code <= 0xDCFF else "\N{REPLACEMENT CHARACTER}"
