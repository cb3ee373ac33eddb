"""Where the files may lie that records name: below the folder, or prefix of an object store, that the settings name.

Lists come from strangers, and crops of the images go into shards that are handed on. So a record reaches no other file
by `..`, an absolute path or another bucket, unless the settings say so; nor by the words that the plan has for
locations (`bytes:…`, `fault:…`), which are a file's name in data. Links in the folder are followed: who may write there
makes them, not a list.
"""

from __future__ import annotations

import functools
import os
import posixpath
import re

from maskmine.mining.sources.files import joined
from maskmine.mining.storage.locations import as_plain
from maskmine.mining.storage.names import utf8_name
from maskmine.mining.storage.stores import plain_path, scheme_of
from maskmine.mining.storage.urls import URL_SCHEMES
from maskmine.schemas.rows import Rejection

_SUSPECT = re.compile(r"[/\\~]|[a-zA-Z][a-zA-Z0-9+.-]*://|.*\.\.|.*\\", re.DOTALL)
_MAX_NAME_CHARS = 80


def named_file(root: str, name: str, *, outside: bool = False, setting: str = "images") -> str | Rejection:
    """The location of the file that a record names, from the folder that such names start from; `outside_folder`.

    With `outside` it may lie anywhere. At a URL it may too, for those are read only where `fetch` allows it. `setting`
    names the one that has the folder.
    """
    path = as_plain(joined(root, name))
    if outside or not _SUSPECT.match(name) or scheme_of(path) in URL_SCHEMES or is_below(path, root):
        return path
    shown = utf8_name(name if name.isprintable() else ascii(name)[1:-1])[:_MAX_NAME_CHARS]
    return Rejection("outside_folder", f"{shown} does not lie in the folder that `{setting}` names")


def is_below(path: str, root: str) -> bool:
    """Whether a path lies below a folder, by their names; Windows' separators count as ours, since files are looked
    for under both."""
    scheme = scheme_of(path)
    if scheme != scheme_of(root):
        return False
    roots = _names_of(root)
    spelt = {_normal(path), _normal(path.replace("\\", "/"))}
    return all(any(name == one or name.startswith(f"{one.rstrip('/')}/") for one in roots) for name in spelt)


@functools.lru_cache(maxsize=64)
def _names_of(root: str) -> tuple[str, ...]:
    """A folder's name, and the one behind the links that lead to it."""
    if scheme_of(root) != "file":
        return (_normal(root),)
    return tuple({_normal(root), os.path.realpath(plain_path(root))})


def _normal(path: str) -> str:
    if scheme_of(path) == "file":
        return os.path.normpath(os.path.join(os.getcwd(), plain_path(path)))
    _, _, inner = path.partition("://")
    return posixpath.normpath(f"/{inner}")
