"""What a setting stands for: a path is replaced by the name and the content that it leads to.

Fingerprints and the manifest are made of this, so they are the same wherever the files lie, on a disk or on an object
store, and differ when a file of the same name holds something else.
"""

from __future__ import annotations

import functools
import hashlib
import os
import posixpath
from typing import Any

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
    if os.path.isfile(path) or _has_weights(path):
        return {"name": name, "sha256": weights_sha256(path)}
    return {"name": name}


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
