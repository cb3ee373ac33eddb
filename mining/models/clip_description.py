"""What the description of a CLIP may ask for: an architecture and plain options of a tokenizer, and nothing else."""

from __future__ import annotations

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
_PLAIN_NAME = re.compile(r"[\w.-]+")


def refuse_foreign(architecture: Mapping[str, Any], model: str) -> None:
    """Refuse a description that asks for more than weights. Raises InputError."""
    text, vision = architecture["text_cfg"], architecture["vision_cfg"]
    for name, value in text.get("tokenizer_kwargs", {}).items():
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


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
