"""The models that the demo world is mined with, and a world mined by them."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from mining.models.clip import Clip, ImageTower, TextTower
from pipelines.local import run_local
from pipelines.mine import mine
from pipelines.plan import make_plan
from pipelines.progress import ProgressBars
from pipelines.run_folder import RunFolder
from pipelines.settings import load_mining
from pipelines.tally import Tally
from schemas.errors import InputError
from scripts.story_world import truth_of

Masks = Literal["maskformer", "ground_truth"]

_MODELS = Path(__file__).parent / "models"
_CONFIG = Path(__file__).parents[1] / "configs" / "demo-models.yaml"
_LICENCE = "CC-BY-SA-4.0"  # that of OpenMoji, with which the scenes of their training were drawn


@dataclass(frozen=True, slots=True)
class DemoModels:
    """Folders of weights; without a MaskFormer, the true masks are the proposals."""

    clip: Path
    maskformer: Path | None

    @property
    def masks(self) -> Masks:
        """What proposes the masks."""
        return "ground_truth" if self.maskformer is None else "maskformer"

    def clip_settings(self) -> Clip:
        """How mining sees the CLIP."""
        return Clip(model=str(self.clip), licence=_LICENCE)


def find_models(*, clip: Path | None, maskformer: Path | None) -> DemoModels:
    """The folders that are given, or else those that are shipped.

    Raises InputError when there is no CLIP, or no folder where one was given.
    """
    for option, folder in (("--clip", clip), ("--maskformer", maskformer)):
        if folder is not None and not folder.is_dir():
            raise InputError(f"{option} {folder}: no such folder; give one with a saved model")
    shipped = _MODELS / "maskformer"
    found = DemoModels(clip or _MODELS / "clip", maskformer or (shipped if shipped.is_dir() else None))
    if not found.clip.is_dir():
        raise InputError(f"{found.clip}: no CLIP is shipped; train one with `bash scripts/train_clip OUT`, give --clip")
    return found


def open_towers(clip: Clip, *, device: str = "auto") -> tuple[ImageTower, TextTower]:
    """The two sides of a CLIP; what its text side was asked last is remembered, as all nouns are asked for repeatedly.

    Raises InputError when it cannot be opened.
    """
    text = clip.open_text(device=device)
    remembered = functools.lru_cache(maxsize=1)(text.embed)
    return clip.open_image(device=device), replace(text, embed=lambda texts: remembered(tuple(texts)))


def mine_world(
    world: Path, *, out: Path, models: DemoModels, masks: Masks, per_image: int | str, console: Console
) -> RunFolder:
    """Mine a world as `configs/demo-models.yaml` says, or what is left of it; bars are drawn on a terminal."""
    proposals: dict[str, Any] = {"regions.proposals.checkpoint": str(models.maskformer)}
    if masks == "ground_truth":
        truth = {"kind": masks, "annotations": truth_of(world), "licence": _LICENCE}
        proposals = {"regions.proposals": truth}
    settings = load_mining(
        str(_CONFIG),
        overrides=[
            f"{place}={json.dumps(value)}"
            for place, value in {
                "captions.annotations": str(world / "captions.json"),
                "captions.images": str(world / "images"),
                "captions.per_image": per_image,
                **proposals,
                "regions.clip": models.clip_settings().model_dump(mode="json"),
                "max_rejected": 1.0,
                "out": str(out),
            }.items()
        ],
    )
    tally = Tally()
    tally.plan_is_made(make_plan(RunFolder(settings.out), settings))
    if console.is_terminal:
        with ProgressBars(console, tally):
            mine(settings, engine=run_local, watch=tally)
    else:
        mine(settings, engine=run_local, watch=tally)
    return RunFolder(settings.out)
