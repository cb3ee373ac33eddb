"""A tuned CLIP as open_clip saves it, and the files that OVSeg's authors released."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from maskmine.mining.models.clip import WholeClip
from maskmine.mining.models.mask_prompts import PromptedTower, image_tower
from maskmine.mining.models.prompts_file import TENSOR, around_tower
from maskmine.mining.storage.files import regular, write_whole
from maskmine.schemas.errors import InputError

CONFIG_FILE, WEIGHTS_FILE = "open_clip_config.json", "open_clip_model.safetensors"
_UNUSED = {"input_resolution", "context_length", "vocab_size"}  # numbers among the tensors of OpenAI's programs


def load_ovseg_prompts(path: str | Path, model: Any) -> PromptedTower:
    """The image tower with the prompts in a file of OVSeg, whose CLIP must be that of the same file.

    Raises InputError when there are none, or they do not fit the tower.
    """
    prompts = _ovseg_prompts(path)
    if not prompts:
        raise InputError(f"{path}: holds no `{TENSOR}`; give a file of OVSeg that was tuned with mask prompts")
    if len(prompts) > 1:
        raise InputError(
            f"{path}: holds {len(prompts)} of `{TENSOR}` ({', '.join(sorted(prompts)[:3])}), and which of them is "
            "meant is not known; give a file of one CLIP"
        )
    ((name, prompts_PND),) = prompts.items()
    if prompts_PND.ndim != 3:
        raise InputError(
            f"{path}: {name} has shape {tuple(prompts_PND.shape)}; prompts are [depth, patches, width], so the file "
            "is damaged or not OVSeg's"
        )
    return around_tower(image_tower(model), prompts_PND.float())


def has_ovseg_prompts(path: str | Path) -> bool:
    """Whether a file of OVSeg was tuned with mask prompts. Raises InputError when it cannot be read."""
    return bool(_ovseg_prompts(path))


def _ovseg_prompts(path: str | Path) -> dict[str, Tensor]:
    """All that a file of OVSeg has under the name of prompts; the same tensor under two names counts once."""
    found: dict[str, Tensor] = {}
    for name, value in _read_tensors(path).items():
        same = (one.shape == value.shape and torch.equal(one, value) for one in found.values())
        if name.rpartition(".")[2] == TENSOR and not any(same):
            found[name] = value
    return found


def load_ovseg_clip(path: str | Path, model: Any) -> None:
    """Put the weights of a fine-tuned CLIP as OVSeg released them into an open_clip model of the same architecture.

    The file may be CLIP alone or a whole segmenter that contains it, and prompts in it are passed over. Raises
    InputError when a weight is missing or does not fit; then the model is unchanged.
    """
    tensors, expected = _clip_alone(_read_tensors(path), path), model.state_dict()
    if missing := sorted(set(expected) - set(tensors)):
        raise InputError(f"{path}: lacks {len(missing)} weights of this CLIP, such as {missing[0]}; {_REMEDY}")
    if unknown := sorted(set(tensors) - set(expected)):
        raise InputError(f"{path}: has weights that this CLIP lacks, such as {unknown[0]}; {_REMEDY}")
    shaped = {name: value.reshape(expected[name].shape) for name, value in tensors.items() if value.numel() == 1}
    tensors |= shaped  # a scale is a number in some files and a vector of one in others
    for name, value in tensors.items():
        if value.shape != expected[name].shape:
            raise InputError(
                f"{path}: {name} is {tuple(value.shape)}, and this CLIP has {tuple(expected[name].shape)}; {_REMEDY}"
            )
    model.load_state_dict(tensors)


_REMEDY = "create the model with the architecture of the file (ViT-B-16 or ViT-L-14, for OpenAI's with -quickgelu)"


def save_clip(folder: Path, clip: WholeClip) -> None:
    """Write a folder as open_clip reads it (`local-dir:`) and mining takes it as `clip.model`; weights are float32.

    The file of weights alone serves as `pretrained` of the architecture. Raises IncompleteError when the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for companion in clip.companions:
        if companion.resolve().parent != folder.resolve():
            write_whole(folder / companion.name, companion.read_bytes())
    weights = {name: value.detach().cpu().contiguous() for name, value in clip.model.state_dict().items()}
    write_whole(folder / CONFIG_FILE, (json.dumps(clip.config, indent=2) + "\n").encode())
    write_whole(folder / WEIGHTS_FILE, save(weights, {"format": "pt"}))  # last: what is loaded is whole


# What torch raises of a pickle that takes from an empty stack, or makes values of other kinds than it needs.
_UNREADABLE = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)


def load_clip_weights(folder: Path, model: Any) -> None:
    """Put the weights that `save_clip` wrote into a model of the same architecture. Raises InputError without them."""
    try:
        model.load_state_dict(load_file(regular(folder / WEIGHTS_FILE)))
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{folder}: the CLIP that this run tuned is gone ({type(error).__name__}); bring it back, or start again "
            "with another `out`"
        ) from error


def _read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint with plain names: nested dictionaries opened, `module.` of parallel training gone."""
    try:
        content = load_file(regular(path)) if str(path).endswith(".safetensors") else _unpickled(regular(path))
    except (*_UNREADABLE, OSError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise InputError(
            f"{path}: cannot be read as weights ({type(error).__name__}); give a checkpoint that holds tensors only"
        ) from error
    while isinstance(content, Mapping) and (inner := _nested(content)) is not None:
        content = inner
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{path}: holds no weights; give a checkpoint with a state_dict")
    return {name.removeprefix("module."): value for name, value in content.items() if isinstance(value, Tensor)}


def _unpickled(path: str | Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _nested(content: Mapping[str, Any]) -> Any:
    return next((content[name] for name in ("state_dict", "model") if isinstance(content.get(name), Mapping)), None)


def _clip_alone(tensors: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """The weights of CLIP, named as open_clip names them, out of those of anything that contains one."""
    marker = "visual.class_embedding"
    prefixes = sorted({name.removesuffix(marker) for name in tensors if name.endswith(marker)}, key=len)
    if not prefixes:
        raise InputError(f"{path}: holds no CLIP with a vision transformer; {_REMEDY}")
    inside = {name.removeprefix(prefixes[0]): value for name, value in tensors.items() if name.startswith(prefixes[0])}
    return {name: value for name, value in inside.items() if not _is_unused(name)}


def _is_unused(name: str) -> bool:
    return name in _UNUSED or name.rpartition(".")[2] in (TENSOR, "attn_mask")
