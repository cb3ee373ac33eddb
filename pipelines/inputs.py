"""What a setting stands for: a path is replaced by the name and the content that it leads to.

Fingerprints and the manifest are made of this, so they are the same wherever the files lie, and differ when a file of
the same name holds something else.
"""

from __future__ import annotations

import os
from typing import Any

from mining.weights import weights_sha256
from schemas.settings import Settings

# These say how the work is done, not what comes out, so a change of them makes nothing stale.
_HOW = {"device", "batch_size", "decode_threads", "decoding", "threads", "max_rejected", "out"}


def portable(settings: Settings) -> Any:
    """The settings as plain values without the fields that only say how; local files by name and SHA-256."""
    return _portable(settings.model_dump(mode="json"))


def _portable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _portable(inner) for key, inner in sorted(value.items()) if key not in _HOW}
    if isinstance(value, list):
        return [_portable(inner) for inner in value]
    if isinstance(value, str) and os.path.isabs(value):
        name = os.path.basename(value.rstrip("/"))
        if os.path.isfile(value) or _has_weights(value):
            return {"name": name, "sha256": weights_sha256(value)}
        return {"name": name}
    return value


def _has_weights(path: str) -> bool:
    return os.path.isdir(path) and (
        os.path.isfile(os.path.join(path, "config.json")) or os.path.isfile(os.path.join(path, "open_clip_config.json"))
    )
