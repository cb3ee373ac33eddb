"""Whole runs on real photographs: what comes out, and what each step costs at full model size."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mining.labels import load_synonyms, names_label
from mining.pairs import first_mentions
from pipelines.cells import PartReport
from pipelines.grid import Stage
from pipelines.local import run_local
from pipelines.mine import mine
from pipelines.run_folder import RunFolder
from pipelines.settings import load_mining
from pipelines.status import require_plan
from schemas.manifest import Manifest
from schemas.rows import NounsRow, PairsRow
from scripts.measures import Measure

MASKFORMER_QUERIES = 100


@dataclass
class Seconds:
    """A watch that adds up the seconds of each step, and counts what it made."""

    seconds: dict[str, float] = field(default_factory=dict)
    made: dict[str, int] = field(default_factory=dict)

    def stage_begins(self, stage: Stage, todo: Sequence[int]) -> None:
        pass

    def tick(self, step: str, records: int) -> None:
        pass

    def part_ends(self, report: PartReport) -> None:
        self.seconds[report.step] = self.seconds.get(report.step, 0.0) + report.seconds
        self.made[report.step] = self.made.get(report.step, 0) + report.made

    def stage_ends(self, stage: Stage) -> None:
        pass


def bench_coco(coco: Path) -> list[Measure]:
    """COCO photographs with their own masks, matched by label, with one caption and with all five."""
    measures = []
    for per_image, name in ((1, "1 caption"), ("all", "5 captions")):
        with tempfile.TemporaryDirectory() as scratch:
            tree = _coco_settings(coco, scratch) | {"pairs": {"rule": "labels", "synonyms": "coco"}}
            tree["captions"]["per_image"] = per_image
            tree["regions"] = {
                "proposals": {"kind": "ground_truth", "annotations": str(coco / _INSTANCES)},
                "clip": None,
            }
            run, manifest, _ = _run(tree, scratch)
            named, masked = _category_nouns(run, coco / _INSTANCES)
        totals = manifest.totals
        measures += [
            Measure(f"{name}: images", totals.images, "images", "", None),
            Measure(f"{name}: images with pairs", totals.with_pairs, "images", "", None),
            *[Measure(f"{name}: rejected, {why}", n, "images", "", None) for why, n in totals.rejected.items()],
            Measure(f"{name}: pairs", totals.samples, "pairs", "", None),
            Measure(f"{name}: nouns that name a COCO category", named, "nouns", "", None),
            Measure(f"{name}: of these with a mask", masked, "nouns", "", None),
            Measure(f"{name}: share with a mask", masked / max(1, named), "", "", None),
        ]
    return measures


def bench_full_size(coco: Path, *, images: int = 8) -> list[Measure]:
    """MaskFormer Swin-T and CLIP ViT-B/16 at full size, random weights, saved and loaded as local checkpoints."""
    with tempfile.TemporaryDirectory() as scratch:
        maskformer = save_random_maskformer(Path(scratch) / "maskformer")
        clip = save_random_clip(Path(scratch) / "vit-b-16.safetensors")
        tree = _coco_settings(coco, scratch)
        tree["regions"] = {
            "proposals": {"kind": "maskformer", "checkpoint": str(maskformer)},
            # random weights score every proposal alike: keep as many as a trained model would
            "keep": {"max_iou": 1.0, "top": 30, "min_score": 0.0},
            "clip": {"model": "ViT-B-16", "pretrained": str(clip)},
            "batch_size": 2,
        }
        _, manifest, watch = _run(tree, scratch, limit=images)
    regions = watch.made["regions"] / images
    return [
        Measure("images", images, "images", "", None),
        Measure("regions an image", regions, "regions", "", None),
        *[Measure(f"{step}, seconds", seconds, "s", "", None) for step, seconds in watch.seconds.items()],
        Measure("regions, seconds an image", watch.seconds["regions"] / images, "s", "", None),
        Measure("vocabulary, nouns", watch.made["vocabulary"], "nouns", "", None),
        Measure("pairs", manifest.totals.samples, "pairs", "", None),
    ]


def save_random_maskformer(
    folder: Path,
    *,
    embed_dim: int = 96,
    depths: Sequence[int] = (2, 2, 6, 2),
    num_heads: Sequence[int] = (3, 6, 12, 24),
    window_size: int = 7,
) -> Path:
    """A MaskFormer with random weights, saved as a checkpoint; of the size of facebook/maskformer-swin-tiny-coco."""
    import torch
    from transformers import MaskFormerConfig, MaskFormerForInstanceSegmentation, MaskFormerImageProcessor, SwinConfig

    torch.manual_seed(0)
    backbone = SwinConfig(
        depths=list(depths),
        num_heads=list(num_heads),
        embed_dim=embed_dim,
        window_size=window_size,
        image_size=384,
        out_features=["stage1", "stage2", "stage3", "stage4"],  # type: ignore[call-arg]
    )
    config = MaskFormerConfig(backbone_config=backbone, num_labels=133)  # type: ignore[call-arg]
    MaskFormerForInstanceSegmentation(config).save_pretrained(folder)
    MaskFormerImageProcessor(size={"shortest_edge": 800, "longest_edge": 1333}, size_divisor=32).save_pretrained(folder)
    return folder


def save_random_clip(file: Path, *, model: str = "ViT-B-16") -> Path:
    """An open_clip architecture with random weights, saved as safetensors."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    weights = open_clip.create_model(model, load_weights=False).state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, file)
    return file


_INSTANCES = Path("annotations/instances_train2017.json")


def _coco_settings(coco: Path, scratch: str) -> dict[str, Any]:
    return {
        "captions": {
            "annotations": str(coco / "annotations/captions_train2017.json"),
            "images": str(coco / "train2017"),
        },
        "max_rejected": 1.0,
        "out": f"{scratch}/run",
    }


def _run(tree: dict[str, Any], scratch: str, *, limit: int | None = None) -> tuple[RunFolder, Manifest, Seconds]:
    config = Path(scratch, "mining.yaml")
    config.write_text(json.dumps(tree))
    settings = load_mining(str(config))
    watch = Seconds()
    outcome = mine(settings, engine=run_local, watch=watch, limit=limit)
    assert outcome.manifest is not None
    return RunFolder(settings.out), outcome.manifest, watch


def _category_nouns(run: RunFolder, instances: Path) -> tuple[int, int]:
    """How many different nouns of the images name a COCO category, and how many of these got a mask."""
    synonyms = load_synonyms("coco")
    categories = [category["name"] for category in json.loads(instances.read_text())["categories"]]
    named = masked = 0
    for part in range(require_plan(run).parts):
        cell = f"{part:05d}.parquet"
        nouns = run.read_rows("nouns", cell, row_type=NounsRow)
        pairs = run.read_rows("pairs", cell, row_type=PairsRow)
        for said, paired in zip(nouns, pairs, strict=True):
            with_mask = {pair.noun for pair in paired.pairs}
            for noun in first_mentions(said.nouns):
                if any(names_label(noun.text, noun.lemma, category, synonyms) for category in categories):
                    named += 1
                    masked += noun.text in with_mask
    return named, masked
