"""Where the time of a part of 1,000 images goes: seconds of a CPU core in each stage, with the demo's tiny models and
with models of the paper's sizes.

One process mines a few images in one part, with a thread a model. Seconds are those that its threads, and the process
that decodes, were at work: what else the machine does hardly changes them. Planning and loading models do not count, as
a run does both once.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from maskmine.mining.images.child_decoder import Decoding
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.mine import mine
from maskmine.pipelines.settings.mining import Mining, load_mining
from maskmine.scripts.benches.fixtures import SWIN_B, save_random_clip, save_random_maskformer
from maskmine.scripts.benches.parts.stages import ON_DEVICE, STAGES, VOCABULARY, Stopwatch
from maskmine.scripts.demo_world.on_disk import find_world
from maskmine.scripts.measures import Measure, Seconds

DEMO, PAPER = "demo's models", "Swin-B, ViT-L/14"
PART = 1000
"""Images of a part; what few images took is scaled to it."""
NOUNS_OF_PART = 254
"""Nouns that are new in a part: COCO's captions have about 30,000 in 118 parts."""
_CONFIG = Path(__file__).resolve().parents[3] / "configs" / "demo-models.yaml"
_KEPT = 30
_ONE_THREAD = ("regions.cpu_threads=1", "regions.decode_threads=1", "shards.threads=1", "regions.device=cpu")
_ALL_IN = ("shards.images_per_part=100000", "max_rejected=1.0", "max_empty=1.0")


def bench_part(coco_mini: Path, *, scenes: int = 300, images: int = 3) -> Iterator[Measure]:
    """Core seconds of each stage for a part, over drawn scenes with the demo's models and over photographs of COCO with
    random weights of the paper's sizes, where COCO is there."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        world = find_world(folder / "world", scenes=scenes, seed=7)
        places = [f"captions.annotations={world / 'captions.json'}", f"captions.images={world / 'images'}"]
        yield from measure_part(DEMO, [*places, f"out={folder / 'demo'}"], images=scenes)
        if not coco_mini.is_dir():
            print(f"{PAPER}: skipped, as {coco_mini} is not there; give --coco-mini", file=sys.stderr)
            return
        yield from measure_part(PAPER, _paper(folder, coco_mini), images=images)


def measure_part(name: str, overrides: Sequence[str], *, images: int) -> Iterator[Measure]:
    """Core seconds of each stage for a part, of a run over the first images with settings on top of the demo's."""
    settings = load_mining(str(_CONFIG), overrides=[*_ONE_THREAD, *_ALL_IN, *overrides])
    watch, made = Stopwatch(), Seconds()
    _start_decoding(settings)
    with watch.watching(settings):
        mine(settings, engine=LocalEngine(), observer=made, limit=images)
    yield Measure(f"{name}: measured on", images, "images")
    yield Measure(f"{name}: regions", made.made["proposals"] / images, "an image")
    scale = dict.fromkeys(STAGES, PART / images)
    scale[VOCABULARY] = NOUNS_OF_PART / max(1, made.made["vocabulary"])
    seconds = {stage: watch.seconds[stage] * scale[stage] for stage in STAGES}
    for stage, taken_s in seconds.items():
        yield Measure(f"{name}: {stage}", taken_s, "core s a part")
    yield Measure(f"{name}: a part", sum(seconds.values()), "core s a part")
    host_s = sum(taken_s for stage, taken_s in seconds.items() if stage not in ON_DEVICE)
    yield Measure(f"{name}: without what a GPU does", host_s, "core s a part")
    yield Measure(f"{name}: images that a core serves beside a GPU", PART / host_s, "images/s")


def _start_decoding(settings: Mining) -> None:
    """The process that decodes, whose start is not a part's."""
    folder = Path(str(getattr(settings.captions, "images", "")))
    Decoding().read(str(next(folder.glob("*.jpg"))), max_pixels=10**9)


def _paper(folder: Path, coco_mini: Path) -> list[str]:
    """The paper's models in their sizes. Random weights score every proposal alike: 30 of each image are kept."""
    maskformer = save_random_maskformer(folder / "maskformer", **SWIN_B)
    clip = save_random_clip(folder / "clip.safetensors", model="ViT-L-14")
    keep = f"{{min_score: 0.0, min_area_px: 1, max_area_ratio: 1.0, max_iou: 1.0, top: {_KEPT}}}"
    return [
        f"captions.annotations={coco_mini / 'annotations' / 'captions_train2017.json'}",
        f"captions.images={coco_mini / 'train2017'}",
        f"regions.proposals={{kind: maskformer, checkpoint: {maskformer}}}",
        f"regions.clip={{model: ViT-L-14, pretrained: {clip}}}",
        f"regions.keep={keep}",
        "pairs.min_evidence=null",  # random weights have none
        f"out={folder / 'paper'}",
    ]
