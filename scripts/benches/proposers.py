"""What an image costs with each proposer at its real size, together with CLIP and COCO's 80 names: time and memory.

Weights are random and made here from the libraries' own configurations, so nothing is downloaded. Random weights think
the same of every mask: thresholds are set so that about as many go on as with trained ones, which is half of Segment
Anything's masks through its filters, and 30 regions of each image to CLIP.

Every proposer is measured in a process of its own, and its weights are written by another one before.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskmine.schemas.errors import InputError
from maskmine.scripts.benches.fixtures import (
    HALF_OF_SAM,
    HALF_OF_SAM_2,
    SWIN_B,
    save_random_clip,
    save_random_eomt,
    save_random_maskformer,
    save_random_owlv2,
    save_random_sam,
    save_random_sam2,
    save_random_siglip2,
)
from maskmine.scripts.measures import Measure, Seconds, peak_bytes

_INSTANCES = "annotations/instances_train2017.json"
_KEPT = 30
_MASK_R_CNN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"


def bench_proposers(coco_mini: Path, *, images: int = 2, clip: str = "ViT-B-16") -> Iterator[Measure]:
    """Seconds and megabytes for each proposer, on the first images of COCO that have annotations."""
    shown, names = read_coco(coco_mini, images=images)
    context = multiprocessing.get_context("spawn")
    for title, save in _PROPOSERS.items():
        if title.startswith("Mask R-CNN") and importlib.util.find_spec("detectron2") is None:
            print(f"{title}: skipped, as detectron2 is not installed", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as scratch:
            with context.Pool(1) as pool:
                tree = pool.apply(_save_models, (save, str(coco_mini), scratch, clip))
            with context.Pool(1) as pool:
                cost = pool.apply(_segment, (tree, shown, names))
        yield Measure(f"{title}: an image", cost.seconds, "s")
        yield Measure(f"{title}: of this the proposals", cost.proposing_seconds, "s")
        yield Measure(f"{title}: time of processors", cost.cpu_seconds, "s")
        yield Measure(f"{title}: peak memory", cost.peak_mb, "MB")
        yield Measure(f"{title}: proposed, named", cost.proposed, f"masks, {cost.regions:.3g} regions")


def read_coco(coco_mini: Path, *, images: int) -> tuple[list[tuple[str, str]], list[str]]:
    """Ids and paths of the first images with annotations, and the names of the categories."""
    path = coco_mini / _INSTANCES
    if not path.is_file():
        raise InputError(f"bench: {path} is not there; give the folder of COCO with --coco-mini")
    content = json.loads(path.read_text())
    annotated = {one["image_id"] for one in content["annotations"] if not one["iscrowd"]}
    chosen = [one for one in content["images"] if one["id"] in annotated][:images]
    shown = [(str(one["id"]), str(coco_mini / "train2017" / one["file_name"])) for one in chosen]
    return shown, [category["name"] for category in content["categories"]]


def bench_checked_run(coco_mini: Path, *, images: int = 2) -> Iterator[Measure]:
    """What each step of a run costs with EoMT-B 640, SigLIP 2 ViT-B/16-256 and, as verifier, OWLv2 base."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        with context.Pool(1) as pool:
            tree = pool.apply(_save_checked_run, (str(coco_mini), scratch))
        with context.Pool(1) as pool:
            seconds, checked, peak_mb = pool.apply(_mine, (tree, images))
    for step, taken_s in seconds.items():
        yield Measure(f"EoMT, SigLIP 2, OWLv2: {step}, an image", taken_s, "s")
    yield Measure("EoMT, SigLIP 2, OWLv2: pairs checked, an image", checked, "pairs")
    yield Measure("EoMT, SigLIP 2, OWLv2: peak memory", peak_mb, "MB")


def _save_checked_run(coco_mini: str, scratch: str) -> dict[str, Any]:
    """The settings of a run with random weights below `scratch`."""
    folder, coco = Path(scratch), Path(coco_mini)
    captions = coco / "annotations" / "captions_train2017.json"
    return {
        "captions": {"kind": "coco", "annotations": str(captions), "images": str(coco / "train2017")},
        "nouns": {},
        "regions": {
            "proposals": _save_eomt_base(folder, coco),
            "clip": {"model": str(save_random_siglip2(folder / "siglip2"))},
            "keep": {"min_score": 0.0, "min_area_px": 1, "max_area_ratio": 1.0, "max_iou": 1.0, "top": _KEPT},
            "device": "cpu",
        },
        "pairs": {"rule": "best_region_per_noun"},
        "checks": {"verifier": {"kind": "owlv2", "checkpoint": str(save_random_owlv2(folder / "owlv2"))}},
        "max_empty": 1.0,
        "max_rejected": 1.0,
        "out": str(folder / "run"),
    }


def _mine(tree: dict[str, Any], images: int) -> tuple[dict[str, float], float, float]:
    """Seconds of each step an image, loading included, checks of an image, and the most memory of the process in MB."""
    from maskmine.pipelines.engines.local import LocalEngine
    from maskmine.pipelines.mine import mine
    from maskmine.pipelines.settings.mining import parse_mining

    watch = Seconds()
    mine(parse_mining(tree, place="bench"), engine=LocalEngine(), observer=watch, limit=images)
    seconds = {step: taken_s / images for step, taken_s in watch.seconds.items()}
    return seconds, watch.made["checks"] / images, peak_bytes() / 2**20


@dataclass(frozen=True, slots=True)
class _Cost:
    """Of an image, but for the memory, which is that of the process."""

    seconds: float
    proposing_seconds: float
    cpu_seconds: float
    peak_mb: float
    proposed: float
    regions: float


Save = Callable[[Path, Path], dict[str, Any]]


def _save_models(save: Save, coco_mini: str, scratch: str, clip: str) -> dict[str, Any]:
    """The settings of a `Segmenter` with random weights below `scratch`."""
    folder = Path(scratch)
    weights = save_random_clip(folder / "clip.safetensors", model=clip)
    return {
        "proposals": save(folder, Path(coco_mini)),
        "clip": {"model": clip, "pretrained": str(weights)},
        "keep": {"min_score": 0.0, "min_area_px": 1, "max_area_ratio": 1.0, "max_iou": 1.0, "top": _KEPT},
        "templates": "raw",  # names are embedded once for all images
        "device": "cpu",
    }


def _segment(tree: dict[str, Any], shown: list[tuple[str, str]], names: list[str]) -> _Cost:
    from dataclasses import replace

    from maskmine.tuning.segmentation.segmenter import Segmentation, Segmenter

    settings = Segmenter.model_validate(tree)
    models = settings.load()
    proposing: list[float] = []

    def propose(images: Any, *, min_score: float) -> Any:
        start_s = time.perf_counter()
        answers = list(models.propose(images, min_score=min_score))
        proposing.append(time.perf_counter() - start_s)
        return iter(answers)

    segment = settings.open(models=replace(models, propose=propose))
    images = [np.asarray(Image.open(path).convert("RGB")) for _, path in shown]
    assert models.region_classifier is not None
    models.region_classifier.embed_classes(tuple(names))  # remembered, so not a part of what an image costs
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    found = [
        segment([rgb_HW3], classes=names, image_ids=[image_id])[0]
        for (image_id, _), rgb_HW3 in zip(shown, images, strict=True)
    ]
    taken_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    maps = [one for one in found if isinstance(one, Segmentation)]
    return _Cost(
        taken_s / len(shown),
        sum(proposing) / len(shown),
        cpu_s / len(shown),
        peak_bytes() / 2**20,
        sum(one.proposed for one in maps) / len(shown),
        sum(len(one.regions) for one in maps) / len(shown),
    )


def _save_maskformer(folder: Path, coco_mini: Path) -> dict[str, Any]:
    return {"kind": "maskformer", "checkpoint": str(save_random_maskformer(folder / "maskformer", **SWIN_B))}


def _save_eomt_base(folder: Path, coco_mini: Path) -> dict[str, Any]:
    return {"kind": "eomt", "checkpoint": str(save_random_eomt(folder / "eomt", large=False))}


def _save_eomt_large(folder: Path, coco_mini: Path) -> dict[str, Any]:
    return {"kind": "eomt", "checkpoint": str(save_random_eomt(folder / "eomt", large=True))}


def _save_sam_base(folder: Path, coco_mini: Path) -> dict[str, Any]:
    return _save_sam(folder, large=False)


def _save_sam_large(folder: Path, coco_mini: Path) -> dict[str, Any]:
    return _save_sam(folder, large=True)


def _save_sam(folder: Path, *, large: bool) -> dict[str, Any]:
    return {"kind": "sam", "checkpoint": str(save_random_sam(folder / "sam", large=large)), **HALF_OF_SAM}


def _save_sam2(folder: Path, coco_mini: Path) -> dict[str, Any]:
    return {"kind": "sam", "checkpoint": str(save_random_sam2(folder / "sam2", large=True)), **HALF_OF_SAM_2}


def _save_mask_r_cnn(folder: Path, coco_mini: Path) -> dict[str, Any]:
    import torch
    from detectron2.config import get_cfg  # type: ignore[import-not-found, unused-ignore]
    from detectron2.modeling import build_model  # type: ignore[import-not-found, unused-ignore]
    from safetensors.torch import save_file

    library = importlib.util.find_spec("detectron2")
    assert library is not None
    assert library.submodule_search_locations is not None
    base = Path(library.submodule_search_locations[0], "model_zoo", "configs", _MASK_R_CNN)
    config = folder / "mask-r-cnn.yaml"
    config.write_text(f"_BASE_: {base}\nMODEL: {{ROI_HEADS: {{SCORE_THRESH_TEST: 0.0}}}}\n")
    built = get_cfg()
    built.merge_from_file(str(config))
    built.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    weights = {name: value.contiguous() for name, value in build_model(built).state_dict().items()}
    save_file(weights, folder / "mask-r-cnn.safetensors")
    return {"kind": "detectron2", "config": str(config), "weights": str(folder / "mask-r-cnn.safetensors")}


def _name_annotations(folder: Path, coco_mini: Path) -> dict[str, Any]:
    return {"kind": "ground_truth", "annotations": str(coco_mini / _INSTANCES)}


_PROPOSERS: dict[str, Save] = {
    "annotations": _name_annotations,
    "Mask R-CNN R50": _save_mask_r_cnn,
    "MaskFormer Swin-B": _save_maskformer,
    "EoMT-B 640": _save_eomt_base,
    "EoMT-L 640": _save_eomt_large,
    "SAM ViT-B": _save_sam_base,
    "SAM 2 Hiera-L": _save_sam2,
    "SAM ViT-L": _save_sam_large,
}
