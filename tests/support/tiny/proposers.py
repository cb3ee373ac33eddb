"""Tiny proposers of every kind with random weights, saved as their libraries save them, for tests."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch.nn.functional import normalize

from maskmine.mining.proposers.open_vocabulary_checkpoint import OpenRecord, new_head, save_head
from maskmine.mining.storage.content_hash import weights_sha256
from maskmine.schemas.mask import Mask

SIDE_PX = 64
NAMES = {0: "cat", 1: "sky", 2: "LABEL_2"}
DETECTRON2 = importlib.util.find_spec("detectron2") is not None
WITHOUT_DETECTRON2 = "detectron2 is not installed: it is on no package index, and takes minutes to build"

_PROMPTS = {"hidden_size": 16, "image_size": SIDE_PX, "patch_size": 16, "mask_input_channels": 4}
_DECODER = {"hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_DECODER |= {"iou_head_depth": 2, "iou_head_hidden_dim": 16}
_SAM = {"hidden_size": 16, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 16}
_SAM |= {"image_size": SIDE_PX, "patch_size": 16, "window_size": 2, "global_attn_indexes": [1], "num_pos_feats": 8}
_SAM |= {"initializer_range": 0.1}
_HIERA = {"hidden_size": 8, "num_attention_heads": 1, "image_size": [SIDE_PX, SIDE_PX]}
_HIERA |= {"blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64], "global_attention_blocks": [3]}
_HIERA |= {"num_attention_heads_per_stage": [1, 2, 2, 4], "window_size_per_stage": [4, 2, 2, 2]}
_HIERA |= {"window_positional_embedding_background_size": [4, 4], "model_type": "sam2_hiera_det_model"}
_SAM2 = {"backbone_config": _HIERA, "backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 16}
_SAM2 |= {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}
_MEMORY = {"memory_attention_hidden_size": 16, "memory_attention_num_layers": 1, "memory_encoder_hidden_size": 16}
_MEMORY |= {"memory_attention_feed_forward_hidden_size": 16, "memory_encoder_output_channels": 8}
_MEMORY |= {"mask_downsampler_embed_dim": 16, "memory_fuser_embed_dim": 16, "memory_fuser_num_layers": 1}
_MEMORY |= {"memory_fuser_intermediate_dim": 16, "image_size": SIDE_PX}
_VIT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16}
_VIT |= {"image_size": SIDE_PX, "pretrain_image_size": 32, "window_size": 2, "global_attn_indexes": [1]}
_VIT |= {"model_type": "sam3_vit_model", "initializer_range": 0.3}
_SAM3 = {"model_type": "sam3_vision_model", "backbone_config": _VIT, "fpn_hidden_size": 16}
_SAM3 |= {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]], "initializer_range": 0.3}
_SAM3_PART = {"hidden_size": 16, "intermediate_size": 16, "num_layers": 1, "num_attention_heads": 2}
_SAM3_TEXT = {"model_type": "clip_text_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
_SAM3_TEXT |= {"num_attention_heads": 2, "vocab_size": 32, "projection_dim": 16, "bos_token_id": 0, "eos_token_id": 1}
# What SAM 3 has beside: a detector of what texts say.
_DETECTOR_OF_TEXTS = {f"{part}_config": _SAM3_PART for part in ("geometry_encoder", "detr_encoder", "detr_decoder")}
_DETECTOR_OF_TEXTS |= {"text_config": _SAM3_TEXT, "mask_decoder_config": {"hidden_size": 16, "num_attention_heads": 2}}

# A Mask R-CNN and the like with a feature pyramid, as they come with detectron2, at a hundredth of the width.
_DETECTOR = """
_BASE_: {base}
INPUT: {{MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 96}}
MODEL:
  META_ARCHITECTURE: {architecture}
  MASK_ON: {masks}
  RESNETS: {{STEM_OUT_CHANNELS: 4, RES2_OUT_CHANNELS: 8, WIDTH_PER_GROUP: 4}}
  FPN: {{OUT_CHANNELS: 8}}
  ROI_BOX_HEAD: {{FC_DIM: 16, NUM_FC: 1}}
  ROI_MASK_HEAD: {{CONV_DIM: 8, NUM_CONV: 1}}
  ROI_HEADS: {{SCORE_THRESH_TEST: 0.0}}
  SEM_SEG_HEAD: {{CONVS_DIM: 8, NORM: ""}}
TEST: {{DETECTIONS_PER_IMAGE: 6}}
"""


def eomt_network(kind: str = "eomt") -> Any:
    """An EoMT for squares of 64 pixels, on DINOv2 or, as `eomt_dinov3`, on DINOv3, whose queries answer differently."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_blocks": 2, "num_attention_heads": 2, "num_queries": 6}
    sizes |= {"image_size": SIDE_PX, "patch_size": 16, "num_register_tokens": 1, "num_labels": 3, "id2label": NAMES}
    if kind == "eomt":
        network: Any = transformers.EomtForUniversalSegmentation(transformers.EomtConfig(mlp_ratio=1, **sizes))
    else:
        config = transformers.EomtDinov3Config(intermediate_size=16, **sizes)
        network = transformers.EomtDinov3ForUniversalSegmentation(config)
    with torch.no_grad():
        network.attn_mask_probs.zero_()  # where training ends
        for name, parameter in network.named_parameters():
            if name.startswith(("query", "class_predictor", "mask_head", "embeddings", "upscale_block")):
                parameter.normal_(std=0.5)
    return network


def save_eomt(folder: Path, *, kind: str = "eomt") -> Path:
    """A checkpoint of `eomt_network`, with its images prepared as for panoptic segmentation."""
    eomt_network(kind).save_pretrained(folder)
    side = {"shortest_edge": SIDE_PX, "longest_edge": SIDE_PX}
    transformers.EomtImageProcessor(size=side, do_pad=True).save_pretrained(folder)
    return folder


def rf_detr_network() -> Any:
    """An RF-DETR for pictures of 64 pixels, whose queries answer differently."""
    torch.manual_seed(0)
    backbone = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_ratio": 1, "patch_size": 8}
    backbone |= {"model_type": "rf_detr_dinov2", "image_size": SIDE_PX, "num_windows": 2}
    backbone |= {"out_features": ["stage2", "stage4"]}
    sizes = {"d_model": 16, "decoder_layers": 2, "decoder_ffn_dim": 16, "decoder_n_points": 2, "c2f_num_blocks": 1}
    sizes |= {"decoder_self_attention_heads": 2, "decoder_cross_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"num_queries": 6, "group_detr": 2, "num_labels": 3, "id2label": NAMES}
    network = transformers.RfDetrForInstanceSegmentation(transformers.RfDetrConfig(backbone_config=backbone, **sizes))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "class_embed" in name or "query_feat" in name or name.startswith(("query", "spatial", "blocks")):
                parameter.normal_(std=0.5)
    return network


def save_rf_detr(folder: Path) -> Path:
    """A checkpoint of `rf_detr_network`, whose pictures are stretched to a square as those of the published ones."""
    rf_detr_network().save_pretrained(folder)
    transformers.RfDetrImageProcessor(size={"height": SIDE_PX, "width": SIDE_PX}).save_pretrained(folder)
    return folder


def sam_network() -> Any:
    """A SAM for pictures of 64 pixels, whose answers differ between points."""
    torch.manual_seed(0)
    config = transformers.SamConfig(vision_config=_SAM, prompt_encoder_config=_PROMPTS, mask_decoder_config=_DECODER)
    return _livened(transformers.SamModel(config))


def save_sam(folder: Path) -> Path:
    """A checkpoint of `sam_network`."""
    sam_network().save_pretrained(folder)
    sides = {"size": {"longest_edge": SIDE_PX}, "pad_size": {"height": SIDE_PX, "width": SIDE_PX}}
    transformers.SamImageProcessor(**sides).save_pretrained(folder)
    return folder


def save_sam2(folder: Path, *, video: bool = False) -> Path:
    """A checkpoint of a SAM 2 likewise; with `video` as SAM 2 is published, with the parts for videos."""
    torch.manual_seed(0)
    parts = {"vision_config": _SAM2, "prompt_encoder_config": _PROMPTS, "mask_decoder_config": _DECODER}
    if video:
        network: Any = transformers.Sam2VideoModel(transformers.Sam2VideoConfig(**parts, **_MEMORY))
    else:
        network = transformers.Sam2Model(transformers.Sam2Config(**parts))
    _livened(network).save_pretrained(folder)
    transformers.Sam2ImageProcessor(size={"height": SIDE_PX, "width": SIDE_PX}).save_pretrained(folder)
    return folder


def save_sam3(folder: Path, *, video: bool = False) -> Path:
    """A checkpoint of a SAM 3 likewise; with `video` as SAM 3 is published, of which points use a part."""
    torch.manual_seed(0)
    parts = {"vision_config": _SAM3, "prompt_encoder_config": _PROMPTS, "mask_decoder_config": _DECODER}
    if video:
        detector = {"vision_config": _SAM3, **_DETECTOR_OF_TEXTS}
        config = transformers.Sam3VideoConfig(detector_config=detector, tracker_config={**parts, **_MEMORY})
        weights = transformers.Sam3VideoModel(config).state_dict()
        config.save_pretrained(folder)
        # by hand: transformers 5.24 writes `tracker_model.` twice before some names
        save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    else:
        _livened(transformers.Sam3TrackerModel(transformers.Sam3TrackerConfig(**parts))).save_pretrained(folder)
    transformers.Sam3ImageProcessor(size={"height": SIDE_PX, "width": SIDE_PX}).save_pretrained(folder)
    return folder


def save_sam3_video(folder: Path, *, detector: dict[str, Any], weights: dict[str, torch.Tensor]) -> Path:
    """A SAM 3 as it is published, around a detector of texts of this description and these weights; no processor."""
    vision = detector["vision_config"]
    side_px, patch_px = (vision["backbone_config"][name] for name in ("image_size", "patch_size"))
    prompts = {**_PROMPTS, "image_size": side_px, "patch_size": patch_px}
    tracker = {"vision_config": vision, "prompt_encoder_config": prompts, "mask_decoder_config": _DECODER}
    torch.manual_seed(0)
    config = transformers.Sam3VideoConfig(
        detector_config=detector, tracker_config={**tracker, **_MEMORY, "image_size": side_px}
    )
    network = transformers.Sam3VideoModel(config)
    _livened(network.tracker_model)
    whole = network.state_dict() | {f"detector_model.{name}": value for name, value in weights.items()}
    config.save_pretrained(folder)
    save_file({name: value.contiguous() for name, value in whole.items()}, folder / "model.safetensors")
    return folder


def save_open_maskformer(folder: Path, *, body: Any) -> Path:
    """A checkpoint of a head with random weights on a MaskFormer of transformers, whose files are there already."""
    torch.manual_seed(0)
    names = ("cat", "sky", "tree")
    record = OpenRecord("toy", None, "raw", 100.0, hidden=16, layers=2, pixels=True, classes=names)
    save_head(folder, new_head(normalize(torch.randn(3, 8)), record, network=body), record, half=False, body=None)
    return folder


def save_detectron2(
    folder: Path, *, base: str = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x", masks: bool = True, **changes: str
) -> dict[str, Any]:
    """A configuration and a checkpoint of a tiny model; returns the settings that name them.

    `changes` are of the configuration's lines: `architecture` has the name of another meta-architecture.
    """
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    spec = importlib.util.find_spec("detectron2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    zoo = Path(spec.submodule_search_locations[0], "model_zoo", "configs")
    text = {"architecture": "GeneralizedRCNN", **changes, "base": zoo / f"{base}.yaml", "masks": masks}
    config, weights = folder / "model.yaml", folder / "model.pth"
    config.write_text(_DETECTOR.format(**text))
    built = get_cfg()
    built.merge_from_file(str(config))
    built.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    torch.save({"model": build_model(built).state_dict()}, weights)
    pinned = {"weights": str(weights), "weights_sha256": weights_sha256(weights)}
    return {"kind": "detectron2", "config": str(config), **pinned}


def save_annotations(path: Path, *, sizes: dict[str, tuple[int, int]]) -> Path:
    """Annotations in COCO's form: two masks for every picture, of the given heights and widths in pixels."""
    content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    for image_id, (height_px, width_px) in sizes.items():
        content["images"].append({"id": image_id, "height": height_px, "width": width_px})
        whole_HW = torch.ones(height_px, width_px, dtype=torch.bool)
        half_HW = whole_HW.clone()
        half_HW[height_px // 2 + 1 :] = False
        for mask_HW in (whole_HW, half_HW):
            drawn = {"size": [height_px, width_px], "counts": Mask.from_array(mask_HW.numpy()).counts.decode()}
            content["annotations"].append({"image_id": image_id, "category_id": 1, "segmentation": drawn})
    path.write_text(json.dumps(content))
    return path


def _livened(network: Any) -> Any:
    """The usual start is so small that all points are answered alike."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith(("mask_decoder", "prompt_encoder")) and parameter.ndim > 1:
                parameter.normal_(std=0.1 if "iou_prediction_head" in name else 0.5)
            if name == "mask_decoder.iou_prediction_head.proj_out.bias":
                parameter.fill_(0.5)
    return network
