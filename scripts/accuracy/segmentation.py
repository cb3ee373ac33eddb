"""The demo world for segmentation: its scenes as a set with label maps, and how its models segment them.

Only objects are counted: what a scene has around them is none of the demo world's nouns, as the background of PASCAL
VOC is none of its twenty classes. So every pixel of the map has a class (`paint: sum`).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from maskmine.mining.evaluation.annotations import read_annotations
from maskmine.pipelines.settings.mining import load_settings
from maskmine.scripts.accuracy.instance_maps import find_instance_set
from maskmine.scripts.accuracy.models import DemoModels
from maskmine.scripts.demo_world.nouns import OPENMOJI_LICENCE
from maskmine.scripts.demo_world.on_disk import truth_of
from maskmine.scripts.demo_world.scene import Scene
from maskmine.scripts.demo_world.splits import seen_nouns
from maskmine.tuning.benchmarks.sets import SemanticSet
from maskmine.tuning.segmentation.confusion import IGNORE, Labels
from maskmine.tuning.segmentation.segmenter import Rgb, Segmenter

_CONFIG = Path(__file__).resolve().parents[2] / "configs" / "segment-demo.yaml"


def demo_segmenter(models: DemoModels, *, true_masks: Path | None = None, **changes: Any) -> Segmenter:
    """`configs/segment-demo.yaml` with these models, and with further settings by their dotted places.

    The proposals are the MaskFormer's, an open-vocabulary one if its folder holds one. With `true_masks`, a world, or
    where there is no MaskFormer, they are the objects of that world.
    """
    places: dict[str, Any] = {"clip": models.clip_settings().model_dump(mode="json"), "paint": "sum"}
    if true_masks is not None:
        places["proposals"] = {"kind": "ground_truth", "annotations": truth_of(true_masks), "licence": OPENMOJI_LICENCE}
        places["keep"] = {"min_score": 0.0, "min_area_px": 1, "max_area_ratio": 1.0, "max_iou": 1.0}
    elif models.maskformer is not None:
        kind = "open_maskformer" if is_open(models.maskformer) else "maskformer"
        places["proposals"] = {
            "kind": kind,
            "checkpoint": str(models.maskformer.absolute()),
            "licence": OPENMOJI_LICENCE,
        }
    overrides = [f"{place}={json.dumps(value)}" for place, value in (places | changes).items()]
    return load_settings(Segmenter, str(_CONFIG), overrides=overrides)


def is_open(maskformer: Path) -> bool:
    """Whether a folder's MaskFormer tells classes by text, so that it has an opinion on any noun."""
    return (maskformer / "open_vocabulary.json").is_file()


def demo_set(world: Path, *, to: Path) -> SemanticSet:
    """The scenes of a world with their label maps, which are written into `to` if they are not there."""
    seen = frozenset(noun.noun for noun in seen_nouns())
    return find_instance_set(to, instances=truth_of(world), images=world / "images", name="demo", seen=seen)


@functools.cache
def demo_classes(world: Path) -> tuple[str, ...]:
    """The nouns that scenes are counted among: all of the demo world, in the order of their labels."""
    return read_annotations(truth_of(world)).categories


def mapped_scenes(
    scenes: Iterable[tuple[str, Scene]], *, classes: tuple[str, ...]
) -> Iterator[tuple[str, Rgb, Labels]]:
    """Scenes with their ids as pictures and their true maps."""
    for image_id, scene in scenes:
        labels_HW = np.full(scene.picture_HW3.shape[:2], IGNORE, np.int32)
        for noun, mask_HW in zip(scene.nouns, scene.masks_NHW, strict=True):
            labels_HW[mask_HW] = classes.index(noun.noun)
        yield image_id, scene.picture_HW3, labels_HW
