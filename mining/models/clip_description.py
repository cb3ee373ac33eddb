"""What the description of a CLIP may ask for: an architecture and plain options of a tokenizer, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from maskmine.schemas.errors import InputError

CONFIG_FILE = "open_clip_config.json"
"""In every folder that open_clip saves."""

# What a description may say to a tokenizer; all of it is plain values.
_TOKENIZER_OPTIONS = frozenset(
    {
        *("clean", "strip_sep_token", "language", "reduction_mask", "additional_special_tokens", "do_lower_case"),
        *("add_bos_token", "add_eos_token", "add_prefix_space", "padding_side", "truncation_side", "model_max_length"),
        *("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "legacy", "use_fast"),
    }
)
_ALWAYS_BUILT = 1 << 28  # parameters
_PLAIN_NAME = re.compile(r"[\w.-]+")


def model_config(description: Any) -> dict[str, Any]:
    """The `model_cfg` of what an open_clip_config.json holds; empty where that describes no CLIP."""
    config = description.get("model_cfg") if isinstance(description, dict) else None
    try:
        json.dumps(description, allow_nan=False)
    except (ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) and _is_described(config) else {}


def refuse_foreign(architecture: Mapping[str, Any], model: str) -> None:
    """Refuse a `model_cfg` that asks for more than weights, or describes nothing. Raises InputError."""
    if not _is_described(architecture):
        raise InputError(f"clip.model: `{model}`: `model_cfg` describes no CLIP; give one that open_clip saved")
    text, vision = architecture["text_cfg"], architecture["vision_cfg"]
    for name, value in (text.get("tokenizer_kwargs") or {}).items():
        if name not in _TOKENIZER_OPTIONS:
            raise InputError(
                f"clip.model: `{model}`: `text_cfg.tokenizer_kwargs` has `{name}`, which no model may ask for; take it "
                f"out of its {CONFIG_FILE} if the model does without"
            )
        if not isinstance(value, str | int | float | None) and not _are_texts(value):
            raise InputError(f"clip.model: `{model}`: `{name}` of `text_cfg.tokenizer_kwargs` is no plain value")
    tower = vision.get("timm_model_name")
    if tower is not None and not _PLAIN_NAME.fullmatch(str(tower)):
        raise InputError(f"clip.model: `{model}`: `timm_model_name: {tower}` is no name of a tower of timm")


def refuse_larger(architecture: Mapping[str, Any], model: str, *, weights_bytes: int) -> None:
    """Refuse a description of more than its weights could fill, which would be built, for hours, before that is found.

    Each bound is one that a model's parameters alone exceed, at a byte each. What takes a second is built all the same,
    so that the weights are said to be others. Raises InputError.
    """
    for side in (architecture["vision_cfg"], architecture["text_cfg"]):
        of = {name: value for name, value in side.items() if isinstance(value, int)}
        width, layers, context = (of.get(name, 0) for name in ("width", "layers", "context_length"))
        patches = (of.get("image_size", 0) // max(1, of.get("patch_size", 1 << 30))) ** 2
        needed = max(width**2 * layers, width * max(patches, context, of.get("vocab_size", 0)), context**2)
        if needed > max(weights_bytes, _ALWAYS_BUILT) and not side.get("hf_model_name"):
            raise InputError(
                f"clip.model: `{model}` describes more than its {weights_bytes:,} bytes of weights; give the "
                f"{CONFIG_FILE} that belongs to them"
            )


def _is_described(config: Mapping[str, Any]) -> bool:
    """Whether both sides are mappings, and models are named by texts."""
    text, vision = config.get("text_cfg", {}), config.get("vision_cfg", {})
    if not (isinstance(text, dict) and isinstance(vision, dict)):
        return False
    names = (text.get(name) for name in ("hf_tokenizer_name", "hf_model_name"))
    return all(isinstance(name, str | None) for name in names) and isinstance(text.get("tokenizer_kwargs"), dict | None)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
