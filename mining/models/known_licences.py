"""Which weights a model was loaded from: a hash of the files, and the licence they carry."""

from __future__ import annotations

# Licences as their publishers state them; the longest prefix of the model's name decides.
_LICENCES = {
    "facebook/maskformer-": "CC-BY-NC-4.0",
    "facebook/mask2former-": "MIT",
    "facebook/sam-": "Apache-2.0",
    "facebook/sam2": "Apache-2.0",
    "facebook/sam3": "LicenseRef-SAM-License",  # Meta's own, on no list of SPDX
    "google/owlv2-": "Apache-2.0",
    "openmmlab-community/mm_grounding_dino_": "Apache-2.0",
    "openai": "MIT",
    "laion": "MIT",
    "en_core_web_": "MIT",
}


def licence_of(name: str) -> str:
    """The licence of a published model, or `unknown`: then the user states it in the settings."""
    matches = [prefix for prefix in _LICENCES if name.startswith(prefix)]
    return _LICENCES[max(matches, key=len)] if matches else "unknown"
