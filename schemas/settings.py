"""The base of every settings object: frozen, strict, and without room for a misspelt key."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Settings are values: compared by content, never changed, passed by hand.

    Strict: `"8"` is no number and `true` is no count; lists from YAML become tuples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


def canonical_json(value: Any) -> str:
    """`value` as JSON that is the same text for the same content: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def fingerprint(value: Any) -> str:
    """SHA-256 (64 hex digits) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
