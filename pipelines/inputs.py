"""What a setting stands for: a path is replaced by the name and the content that it leads to.

Fingerprints and the manifest are made of this, so they are the same wherever the files lie, on a disk or on an object
store, and differ when a file of the same name holds something else.
"""

from __future__ import annotations

import functools
import hashlib
import os
import posixpath
from collections.abc import Sequence
from typing import Any

from mining.captions import AnySource, CocoCaptions
from mining.stores import OBJECT_STORES, describe, fault_line, open_store, os_errors, plain_path, scheme_of
from mining.weights import weights_sha256
from schemas.errors import InputError
from schemas.settings import Settings

# These say how the work is done, not what comes out, so a change of them makes nothing stale.
_HOW = {"device", "batch_size", "decode_threads", "decoding", "threads", "max_rejected", "out"}


def portable(settings: Settings) -> Any:
    """The settings as plain values without the fields that only say how; files by name and SHA-256.

    Raises InputError for a path on an object store that cannot be used.
    """
    return _portable(settings.model_dump(mode="json"))


def caption_inputs(sources: Sequence[AnySource]) -> Any:
    """What the caption sources are made of, to notice that something was written anew since the plan was cut.

    One file counts by its content, several by name, size and what the file system says of their last change: a set of
    tars is too large to be read for this. Raises InputError when the files are not there.
    """
    told = [_caption_input(source) for source in sources]
    return told[0] if len(told) == 1 else told


def _caption_input(source: AnySource) -> Any:
    told = portable(source)
    if isinstance(source, CocoCaptions) or "sha256" in told["files"]:
        return told
    digest, files = hashlib.sha256(), 0
    for file in source.list_files():
        digest.update(f"{file.name}\0{file.size_bytes}\0{file.version}\n".encode("utf-8", "surrogatepass"))
        files += 1
    return {**told, "listed": files, "listing_sha256": digest.hexdigest()}


def _portable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _portable(inner) for key, inner in sorted(value.items()) if key not in _HOW}
    if isinstance(value, list):
        return [_portable(inner) for inner in value]
    if isinstance(value, str) and scheme_of(value) in OBJECT_STORES:
        return _remote(value)
    if isinstance(value, str) and os.path.isabs(plain_path(value)):
        return _local(plain_path(value))
    return value


def _local(path: str) -> dict[str, str]:
    name = os.path.basename(path.rstrip("/"))
    if os.path.isfile(path):
        about = os.stat(path)
        return {"name": name, "sha256": _file_sha256(path, about.st_size, about.st_mtime_ns)}
    if _has_weights(path):
        return {"name": name, "sha256": weights_sha256(path)}
    return {"name": name}


@functools.cache
def _file_sha256(path: str, size_bytes: int, written_ns: int) -> str:
    """The SHA-256 of a file, which is read once as long as nobody writes to it."""
    return weights_sha256(path)


def _remote(url: str) -> dict[str, str]:
    name = posixpath.basename(url.rstrip("/"))
    found = describe(url)
    if found is None or found["type"] != "file":
        return {"name": name}
    return {"name": name, "sha256": _remote_sha256(url, str(found))}


@functools.cache
def _remote_sha256(url: str, version: str) -> str:
    """The SHA-256 of an object, which is fetched once as long as what the store says of it is `version`."""
    fs, path = open_store(url)
    try:
        with os_errors(url), fs.open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(fault_line(error, url)) from error


def _has_weights(path: str) -> bool:
    return os.path.isdir(path) and (
        os.path.isfile(os.path.join(path, "config.json")) or os.path.isfile(os.path.join(path, "open_clip_config.json"))
    )
