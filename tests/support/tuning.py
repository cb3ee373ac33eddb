"""Tunings of a tiny CLIP on the toy world's shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from maskmine.tuning.clip.settings import Tuning
from maskmine.tuning.clip.train import Tuned, tune


def settings_of(clip_folder: Path, shards: Path, out: Path, **changes: Any) -> Tuning:
    stage = {"batch_size": 8, "steps": 4, "warmup_steps": 2}
    tree: dict[str, Any] = {
        "clip": {"model": str(clip_folder)},
        "data": {"sources": [{"folder": str(shards)}], "workers": 0},
        "prompts": {**stage, "depth": 2, "learning_rate": 0.05},
        "finetune": {**stage, "learning_rate": 1e-3},
        "device": "cpu",
        "log_every": 1,
        "out": str(out),
    }
    for name, value in changes.items():
        tree[name] = {**tree[name], **value} if isinstance(value, dict) and name in tree else value
    return Tuning.model_validate_json(json.dumps(tree))


def run(settings: Tuning) -> Tuned:
    return tune(settings, console=Console(quiet=True))


def losses(out: Path) -> list[tuple[str, int, float]]:
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [(row["stage"], row["step"], row["loss"]) for row in rows]
