"""Tiny models with random weights, saved as real ones are, and the shipped models on a few drawn scenes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from maskmine.scripts.demo_world.scene import Scene, draw_scene
from maskmine.tuning.segmentation.confusion import IGNORE, Confusion
from maskmine.tuning.segmentation.segmenter import Segmentation
from tests.support.paths import ROOT

ARCHITECTURE = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8, "patch_dropout": 0.5},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


OF_TIMM: dict[str, Any] = {
    "custom_text": True,
    "quick_gelu": False,
    "embed_dim": 96,
    "init_logit_bias": -10,
    "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"},
    "text_cfg": {**ARCHITECTURE["text_cfg"], "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
}
"""Changes of `ARCHITECTURE` that make it one like SigLIP 2, around a tower that timm has for tests."""


def save_tiny_clip(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """A folder as open_clip reads it, with random weights."""
    architecture = {**ARCHITECTURE, **changes}
    torch.manual_seed(seed)
    kind = open_clip.CustomTextCLIP if architecture.get("custom_text") else open_clip.CLIP
    model = kind(**{name: value for name, value in architecture.items() if name != "custom_text"})
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": architecture, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS)
    return folder


WEIGHTS = "open_clip_model.safetensors"


KINDS = ("maskformer", "mask2former")


SWIN = {
    "model_type": "swin",
    "image_size": 64,
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 4,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}


NAMES = {0: "cat", 1: "sky", 2: "LABEL_2"}


SIZE = {"shortest_edge": 64, "longest_edge": 128}


def network(kind: str) -> Any:
    torch.manual_seed(0)
    common = {"backbone_config": SWIN, "num_labels": 3, "id2label": NAMES, "mask_feature_size": 32}
    if kind == "maskformer":
        decoder = {"model_type": "detr", "num_queries": 6, "d_model": 16, "decoder_layers": 2, "decoder_ffn_dim": 16}
        decoder |= {"decoder_attention_heads": 2, "encoder_layers": 0}
        config = transformers.MaskFormerConfig(decoder_config=decoder, fpn_feature_size=32, **common)
        model = transformers.MaskFormerForInstanceSegmentation(config)
    else:
        sizes = {"feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 16, "dim_feedforward": 16}
        layers = {"num_queries": 6, "encoder_layers": 1, "decoder_layers": 3, "num_attention_heads": 2}
        config = transformers.Mask2FormerConfig(**sizes, **layers, **common)
        model = transformers.Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():  # the usual start is so small that all queries answer alike
        for name, parameter in model.named_parameters():
            if "class_predictor" in name or "queries" in name or "query" in name or "mask_embed" in name:
                parameter.normal_(std=0.7)
    return model


def save_tiny_models(world: Path) -> dict[str, Any]:
    """Save a tiny MaskFormer and a tiny CLIP with random weights; returns the section `regions` that names them."""
    network("maskformer").save_pretrained(world / "maskformer")
    transformers.MaskFormerImageProcessor(size=SIZE).save_pretrained(world / "maskformer")
    return {
        "proposals": {"kind": "maskformer", "checkpoint": str(world / "maskformer"), "licence": "Apache-2.0"},
        "keep": {"min_area_px": 1, "min_score": 0.0, "max_area_ratio": 1.0},
        "clip": {"model": str(save_tiny_clip(world / "clip")), "batch_size": 4},
        "device": "cpu",
    }


CONFIG = ROOT / "configs" / "segment-demo.yaml"


CLIP, MASKFORMER = ROOT / "scripts" / "models" / "clip", ROOT / "scripts" / "models" / "maskformer"


SCENES = [draw_scene(33, index=index) for index in range(4)]


def mean_iou(found: Segmentation, scene: Scene) -> float:
    """Against the truth, where what is no object is a class of its own."""
    nothing = len(found.classes)
    gt_HW = np.full(found.labels_HW.shape, nothing)
    for mask_HW, noun in zip(scene.masks_NHW, scene.nouns, strict=True):
        gt_HW[mask_HW] = found.classes.index(noun.noun)
    confusion = Confusion.of_classes(nothing + 1)
    confusion.add(np.where(found.labels_HW == IGNORE, nothing, found.labels_HW), gt_HW=gt_HW)
    return confusion.scores().mean_iou or 0.0


def units(*shape: int, seed: int = 0) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)
