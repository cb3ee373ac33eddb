"""The file of mask prompts that tuning writes, and a tower with its prompts.

```python
model = open_clip.create_model("ViT-L-14-quickgelu", pretrained="openai").eval()
tower = load_prompts("prompts.safetensors", model)
embeddings = tower(pixels, masks)
```
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from maskmine.mining.models.mask_prompts import PromptedTower, image_tower, tower_sha256
from maskmine.mining.storage.files import regular, write_whole
from maskmine.schemas.errors import InputError
from maskmine.schemas.settings import Settings, canonical_json

PROMPTS_FILE = "prompts.safetensors"
TENSOR = "mask_embedding"
"""The name of the tensor, as in OVSeg's files."""
_METADATA = "maskmine"


class PromptsRecord(Settings):
    """The origin of mask prompts."""

    clip: str
    """The CLIP that they were trained around."""
    tower_sha256: str
    """SHA-256 of the image tower that they belong to."""
    settings: dict[str, Any]
    """Settings of the tuning run."""
    shards: tuple[str, ...]
    """Fingerprints of the sets of pairs."""


def save_prompts(path: Path, prompts_PND: Tensor, *, record: PromptsRecord) -> None:
    """Write prompts as float32 safetensors, whole or not at all. Raises IncompleteError when the disk is full."""
    # One entry of metadata: several would be written in random order.
    metadata = {_METADATA: canonical_json(record.model_dump(mode="json"))}
    write_whole(path, save({TENSOR: prompts_PND.detach().cpu().float().contiguous()}, metadata))


def read_prompts(path: str | Path) -> tuple[Tensor, PromptsRecord]:
    """Prompts [depth, patches, width] and their record. Raises InputError when the file is none of ours."""
    try:
        with safe_open(regular(path), framework="pt") as file:
            record = PromptsRecord.model_validate_json((file.metadata() or {})[_METADATA])
            prompts_PND: Tensor = file.get_tensor(TENSOR)
        if prompts_PND.ndim != 3 or not prompts_PND.is_floating_point() or not bool(prompts_PND.isfinite().all()):
            raise InputError(f"{path}: `{TENSOR}` has no finite numbers for depths, patches and widths; tune it again")
        return prompts_PND, record
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file; `maskmine tune` writes a prompts.safetensors") from error
    except (OSError, SafetensorError, LookupError, ValidationError) as error:
        raise InputError(
            f"{path}: holds no mask prompts of maskmine ({type(error).__name__}); give a prompts.safetensors, or use "
            "`load_ovseg_prompts` for OVSeg's files"
        ) from error


def load_prompts(path: str | Path, model: Any) -> PromptedTower:
    """The image tower of an open_clip model with tuned prompts around it; the model itself stays as it is.

    Raises InputError when the prompts were tuned for another CLIP, and says for which.
    """
    tower = image_tower(model)
    prompts_PND, record = read_prompts(path)
    if (sha256 := tower_sha256(tower)) != record.tower_sha256:
        raise InputError(
            f"{path}: prompts for the image tower of `{record.clip}` ({record.tower_sha256[:12]}), and this CLIP has "
            f"another ({sha256[:12]}); load that one, in float32 or float16"
        )
    return around_tower(tower, prompts_PND)


def around_tower(tower: Any, prompts_PND: Tensor) -> PromptedTower:
    """A tower with prompts that stay as they are, on the device of the tower."""
    prompted = PromptedTower(tower, prompts_PND.to(next(tower.parameters()).device))
    prompted.prompts_PND.requires_grad_(False)
    return prompted
