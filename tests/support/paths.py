"""Where the checkout and real COCO data beside it are (some tests skip without); the libraries that load slowly."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
COCO_MINI = SHARED / "coco-mini"


HEAVY = [
    "torch",
    "transformers",
    "open_clip",
    "spacy",
    "ray",
    "apache_beam",
    "detectron2",
    "scipy",
    "sklearn",
    "matplotlib.pyplot",
]
