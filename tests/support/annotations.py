"""COCO annotations of one small image, and their masks as proposals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskmine.mining.proposers.ground_truth import GroundTruth
from maskmine.mining.proposers.proposals import LoadedImage, Proposals
from maskmine.schemas.rows import Rejection

SQUARE = [[1, 1, 3, 1, 3, 3, 1, 3]]  # the 2 × 2 pixels behind the first row and column
SQUARE_HW = np.zeros((4, 6), dtype=bool)
SQUARE_HW[1:3, 1:3] = True
IMAGES = [{"id": 7, "height": 4, "width": 6}]
CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "sky"}]


def shown(image_id: str = "7", height_px: int = 4, width_px: int = 6, orientation: int = 1) -> LoadedImage:
    return LoadedImage(image_id, torch.zeros(3, height_px, width_px, dtype=torch.uint8), orientation)


def annotated(segmentation: Any, **more: Any) -> dict[str, Any]:
    return {"image_id": 7, "category_id": 1, "iscrowd": 0, "segmentation": segmentation} | more


def write(folder: Path, *annotations: Any, **lists: Any) -> str:
    content = {"annotations": list(annotations), "images": IMAGES, "categories": CATEGORIES} | lists
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return str(path)


def proposed(path: str, image: LoadedImage | None = None, **settings: Any) -> Proposals | Rejection:
    truth = GroundTruth(kind="ground_truth", annotations=path, **settings)
    (answer,) = truth.open(device="cpu")([image or shown()], min_score=0.5)
    return answer


def masks(answer: Proposals | Rejection) -> list[np.ndarray]:
    assert isinstance(answer, Proposals), answer
    assert answer.masks_NHW.dtype == torch.bool
    return list(answer.masks_NHW.numpy())
