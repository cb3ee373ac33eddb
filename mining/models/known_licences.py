"""Which licence published weights carry."""

from __future__ import annotations

from fnmatch import fnmatchcase

# Licences as their publishers state them, SPDX where there is one; the longest pattern of the model's name decides.
_LICENCES = {
    "facebook/maskformer-*": "CC-BY-NC-4.0",
    "facebook/mask2former-*": "MIT",
    "facebook/sam-*": "Apache-2.0",
    "facebook/sam2*": "Apache-2.0",
    "facebook/sam3*": "SAM License",
    "tue-mps/*eomt*": "MIT",
    "tue-mps/*eomt*dinov3*": "DINOv3 License",  # Meta's weights, or differences to them
    "Roboflow/rf-detr-seg-*": "Apache-2.0",  # detectors of its larger sizes have another, and no masks
    "google/owlv2-*": "Apache-2.0",
    "florence-community/Florence-2-*": "MIT",
    "microsoft/Florence-2-*": "MIT",
    "openmmlab-community/mm_grounding_dino_*": "Apache-2.0",
    "webli": "Apache-2.0",  # SigLIP and SigLIP 2, as open_clip calls their weights
    "timm/ViT-*-SigLIP*": "Apache-2.0",
    "timm/PE-Core-*": "Apache-2.0",
    "meta": "Apache-2.0",  # PE-Core, as open_clip calls its weights
    "timm/eva02_*_clip_*": "MIT",
    "timm/eva02_*_clip_*.merged2b_ft_inat21": "CC-BY-NC-4.0",
    "merged2b_s*": "MIT",  # EVA-02
    "metaclip*": "CC-BY-NC-4.0",
    "openai*": "MIT",
    "timm/vit_*_clip_*.openai": "MIT",  # the same weights
    "laion*": "MIT",
    "en_core_web_*": "MIT",
}


def licence_of(name: str) -> str:
    """The licence of a published model, or `unknown`: then the user states it in the settings."""
    matches = [pattern for pattern in _LICENCES if fnmatchcase(name, pattern)]
    return _LICENCES[max(matches, key=len)] if matches else "unknown"
