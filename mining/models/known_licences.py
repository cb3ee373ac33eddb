"""Which weights a model was loaded from: a hash of the files, and the licence they carry."""

from __future__ import annotations

import hashlib
from pathlib import Path

_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth"}

# Licences as their publishers state them; the longest prefix of the model's name decides.
_LICENCES = {
    "facebook/maskformer-": "CC-BY-NC-4.0",
    "facebook/mask2former-": "MIT",
    "facebook/sam-": "Apache-2.0",
    "facebook/sam2": "Apache-2.0",
    "openai": "MIT",
    "laion": "MIT",
    "en_core_web_": "MIT",
}


def weights_sha256(path: str | Path) -> str:
    """SHA-256 of a file, or of a folder's weight and JSON files in the order of their names (names are hashed too)."""
    path = Path(path)
    digest = hashlib.sha256()
    if path.is_file():
        _hash_file(path, digest)
        return digest.hexdigest()
    for file in sorted(f for f in path.iterdir() if f.suffix in _WEIGHT_SUFFIXES | {".json"}):
        digest.update(file.name.encode() + b"\0")
        _hash_file(file, digest)
    return digest.hexdigest()


def licence_of(name: str) -> str:
    """The licence of a published model, or `unknown`: then the user states it in the settings."""
    matches = [prefix for prefix in _LICENCES if name.startswith(prefix)]
    return _LICENCES[max(matches, key=len)] if matches else "unknown"


def _hash_file(path: Path, digest: hashlib._Hash) -> None:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
