"""Photographs mined with their own masks, by label and by the demo's tiny CLIP, which knows drawn objects only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maskmine.pipelines.dataset.finished_run import FinishedRun
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.mine import mine
from maskmine.pipelines.run_folder.folder import RunFolder
from maskmine.pipelines.settings.mining import parse_mining
from maskmine.pipelines.watch.progress import RunProgress
from maskmine.schemas.errors import InputError
from maskmine.scripts.accuracy.models import find_models

REMARK = (
    "True masks of COCO photographs. The demo's CLIP knows drawn objects only, so what its scores are worth here says "
    "nothing of a CLIP that knows photographs; and COCO annotates 80 categories, so the shares are lower bounds."
)


def mine_photographs(coco: Path, *, out: Path, by_label: bool, limit: int | None = None) -> tuple[FinishedRun, str]:
    """COCO photographs mined with their own masks, by label or by the demo's CLIP; the run, and the truth's path.

    With a `limit`, only the first ones. Raises InputError when the folder is not laid out as COCO is.
    """
    captions, truth = (_only(coco / "annotations", f"{kind}_*.json") for kind in ("captions", "instances"))
    images = coco / captions.stem.removeprefix("captions_")
    clip = None if by_label else find_models(clip=None, maskformer=None).clip_settings().model_dump(mode="json")
    tree: dict[str, Any] = {
        "captions": {"kind": "coco", "annotations": str(captions.absolute()), "images": str(images.absolute())},
        "regions": {"proposals": {"kind": "ground_truth", "annotations": str(truth.absolute())}, "clip": clip},
        "pairs": {"rule": "labels", "synonyms": "coco"} if by_label else {"rule": "best_region_per_noun"},
        "out": str(out.absolute()),
    }
    settings = parse_mining(tree, place=str(coco))
    mine(settings, engine=LocalEngine(), observer=RunProgress(), limit=limit)
    return FinishedRun.open(RunFolder(settings.out)), str(truth)


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise InputError(f"--coco-mini: {folder} has {len(found)} files {pattern}; give a folder with one")
    return found[0]
