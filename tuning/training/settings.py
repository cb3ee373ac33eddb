"""What the settings of every training share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

Precision = Literal["auto", "float32", "bfloat16", "float16"]


def yaml_number(value: Any) -> Any:
    """`1e-6` as a number: YAML 1.1 reads it as text, because it has no point."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"\d+[eE][-+]?\d+", value) else value


def fill_from_preset(tree: Any, presets: Mapping[str, Mapping[str, dict[str, Any]]], *, default: str) -> Any:
    """A tree of settings whose sections have the values of its `preset` where they give none."""
    if not isinstance(tree, dict):
        return tree
    filled = dict(tree)
    for name, values in presets.get(str(tree.get("preset", default)), {}).items():
        given = tree.get(name) or {}
        filled[name] = {**values, **given} if isinstance(given, dict) else given
    return filled
