"""The models that the demo world is mined with, and a world mined by them."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from maskmine.mining.models.clip import Clip, ImageTower, TextTower
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.mine import mine
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.mining import load_mining
from maskmine.pipelines.watch.bars import ProgressBars
from maskmine.pipelines.watch.progress import RunProgress
from maskmine.schemas.errors import InputError
from maskmine.scripts.demo_world.nouns import OPENMOJI_LICENCE
from maskmine.scripts.demo_world.on_disk import truth_of

Masks = Literal["maskformer", "ground_truth"]
PAPER: Mapping[str, Any] = {"proposal_weight": 0.0, "min_evidence": None}
"""What of the configuration makes the clean set, undone: every pair of the paper's rule is written."""
CLEAN: Mapping[str, Any] = {}
"""The configuration's own filters."""

_MODELS = Path(__file__).parents[1] / "models"
_CONFIG = Path(__file__).resolve().parents[2] / "configs" / "demo-models.yaml"


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
        return Clip(model=str(self.clip), licence=OPENMOJI_LICENCE)


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
    world: Path,
    *,
    out: Path,
    models: DemoModels,
    masks: Masks,
    per_image: int | str,
    console: Console,
    pairs: Mapping[str, Any] = PAPER,
    negatives: Mapping[str, Any] | None = None,
) -> RunFolder:
    """Mine a world with the models of `configs/demo-models.yaml`, or what is left of it; bars are drawn on a terminal.

    `pairs` is the rule and its filters: the paper's, which writes every pair, or `CLEAN`, those of the configuration;
    `negatives` the settings of hard negatives, None for none.
    """
    proposals: dict[str, Any] = {"regions.proposals.checkpoint": str(models.maskformer)}
    if masks == "ground_truth":
        truth = {"kind": masks, "annotations": truth_of(world), "licence": OPENMOJI_LICENCE}
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
                **{f"pairs.{name}": value for name, value in pairs.items()},
                **({} if negatives is None else {"negatives": dict(negatives)}),
                "out": str(out),
            }.items()
        ],
    )
    tally = RunProgress()
    if console.is_terminal:
        with ProgressBars(console, tally):
            mine(settings, engine=LocalEngine(), observer=tally)
    else:
        mine(settings, engine=LocalEngine(), observer=tally)
    return RunFolder(settings.out)


def mine_truth(world: Path, *, out: Path) -> RunFolder:
    """Mine a world by its true masks and their labels, as `configs/demo.yaml` says."""
    places = {
        "captions.annotations": str(world / "captions.json"),
        "captions.images": str(world / "images"),
        "regions.proposals.annotations": truth_of(world),
        "out": str(out),
    }
    overrides = [f"{place}={json.dumps(value)}" for place, value in places.items()]
    settings = load_mining(str(_CONFIG.with_name("demo.yaml")), overrides=overrides)
    mine(settings, engine=LocalEngine(), observer=RunProgress())
    return RunFolder(settings.out)
