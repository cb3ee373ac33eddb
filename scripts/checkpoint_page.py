"""The page on checkpoints: what each can do here, under which licence, how large and how fast it is.

What a checkpoint can do follows from the settings that take it, its licence from the table that runs record it by, its
size from its network, built without weights from the published description. Only sources and speeds are stated here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from maskmine.mining.checks import Checks
from maskmine.mining.models.clip import Clip
from maskmine.mining.models.known_licences import licence_of
from maskmine.mining.models.patch_towers import patch_tower
from maskmine.mining.models.pretrained import FromTransformers
from maskmine.mining.proposers.maskformer import PLAIN
from maskmine.mining.regions import Regions
from maskmine.schemas.errors import InputError
from maskmine.schemas.settings import Settings, settings_in
from maskmine.scripts.benches.fixtures import SWIN_B, eomt_config, sam2_config, sam_config
from maskmine.scripts.command import run_command
from maskmine.tuning.segmentation.segmenter import Segmenter

PAGE = Path(__file__).resolve().parents[1] / "docs" / "checkpoints.md"
_TEXT = Path(__file__).with_name("data") / "checkpoints.md"
COLUMNS = (
    "checkpoint",
    "kind",
    "mines",
    "mask prompts",
    "tunes",
    "segments",
    "checks",
    "licence",
    "parameters",
    "speed",
)
_HUB, _YES, _NO = "https://huggingface.co", "yes", "–"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Published weights: their name as settings take it, their network, who states the licence, and what is known of
    the speed."""

    name: str
    network: Callable[[], Any]
    licence_at: str
    speed: str


def main() -> None:
    """Write docs/checkpoints.md."""
    PAGE.write_text(page(), "utf-8")


def page() -> str:
    """The whole page, the same text each time."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(row(checkpoint) for checkpoint in CHECKPOINTS)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return _TEXT.read_text("utf-8").replace("{table}", table)


def row(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What the page says of a checkpoint, by columns."""
    import torch

    with torch.device("meta"):
        network = checkpoint.network()
    model_type = network.config.model_type if hasattr(network, "config") else None
    mines, segments, checks = (_takers(root, model_type) for root in (Regions, Segmenter, Checks))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return (
        f"`{checkpoint.name}`",
        ", ".join(f"`{kind}`" for kind in dict.fromkeys(map(_kind, [*mines, *checks]))),
        _YES if mines else _NO,
        _mask_prompts(network) if model_type is None else _NO,
        _tuned_by(network, model_type),
        _YES if segments else _NO,
        _YES if checks else _NO,
        f"[{licence_of(checkpoint.name.split()[-1])}]({checkpoint.licence_at})",
        f"{parameters / 1e6:,.0f} M",
        checkpoint.speed,
    )


def _takers(root: type[Settings], model_type: str | None) -> list[type[Settings]]:
    """The settings below `root` that take a model of transformers of this type; for None those that take a CLIP."""
    found = dict.fromkeys(_below(root))
    if model_type is None:
        return [one for one in found if issubclass(one, Clip)]
    return [one for one in found if issubclass(one, FromTransformers) and model_type in one.family.classes]


def _below(root: type[Settings]) -> Iterator[type[Settings]]:
    for field in root.model_fields.values():
        for inner in settings_in(field.annotation):
            yield inner
            yield from _below(inner)


def _kind(taker: type[Settings]) -> str:
    if issubclass(taker, Clip):
        return "clip"
    (kind,) = get_args(taker.model_fields["kind"].annotation)
    return str(kind)


def _mask_prompts(clip: Any) -> str:
    try:
        patch_tower(clip.visual)
    except InputError:
        return _NO
    return _YES


def _tuned_by(network: Any, model_type: str | None) -> str:
    if model_type is None:  # every mode of tuning needs patches
        return "`tune`" if _mask_prompts(network) == _YES else _NO
    return "`train-proposals`" if model_type in PLAIN.classes else _NO


def _built(network: str, config: str | Callable[[], Any], **sizes: Any) -> Any:
    """A network of transformers, of a class of its configurations or of what a function gives."""
    import transformers

    described = getattr(transformers, config)(**sizes) if isinstance(config, str) else config()
    return getattr(transformers, network)(described)


def _open_clip(architecture: str) -> Any:
    import open_clip

    described = open_clip.get_model_config(architecture)
    kind = open_clip.CustomTextCLIP if described.pop("custom_text", False) else open_clip.CLIP
    return kind(**described)


def _sam2_large() -> Any:
    import transformers

    return transformers.Sam2VideoConfig(vision_config=sam2_config(large=True).vision_config)


_SWIN_B = {**SWIN_B, "model_type": "swin", "image_size": 384, "out_features": [f"stage{k}" for k in (1, 2, 3, 4)]}
_SEG_MEDIUM = {
    "backbone_config": {
        "model_type": "rf_detr_dinov2",
        "image_size": 432,
        "patch_size": 12,
        "hidden_size": 384,
        "num_windows": 2,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "out_features": [f"stage{k}" for k in (3, 6, 9, 12)],
    },
    "d_model": 256,
    "num_queries": 200,
    "decoder_layers": 5,
    "decoder_n_points": 2,
    "decoder_self_attention_heads": 8,
    "decoder_cross_attention_heads": 16,
    "num_labels": 91,
}

_CORE = "s of a CPU core"
_VERIFIERS = "verifiers.md"
_RF_DETR, _EOMT = "https://github.com/roboflow/rf-detr", "https://github.com/tue-mps/eomt/blob/master/model_zoo"
_OPENAI = "https://github.com/openai/CLIP/blob/main/LICENSE"

CHECKPOINTS = (
    Checkpoint(
        "facebook/maskformer-swin-base-coco",
        partial(
            _built, "MaskFormerForInstanceSegmentation", "MaskFormerConfig", num_labels=133, backbone_config=_SWIN_B
        ),
        "https://github.com/facebookresearch/MaskFormer",
        f"11 {_CORE}",
    ),
    Checkpoint(
        "facebook/mask2former-swin-base-coco-panoptic",
        partial(
            _built, "Mask2FormerForUniversalSegmentation", "Mask2FormerConfig", num_labels=133, backbone_config=_SWIN_B
        ),
        "https://github.com/facebookresearch/Mask2Former/blob/main/LICENSE",
        f"16 {_CORE}",
    ),
    Checkpoint(
        "tue-mps/coco_panoptic_eomt_base_640_2x",
        partial(_built, "EomtForUniversalSegmentation", partial(eomt_config, large=False)),
        f"{_HUB}/tue-mps/coco_panoptic_eomt_base_640_2x",
        f"261 images/s, H100 ([authors]({_EOMT}/dinov2.md)); 3.5 {_CORE}",
    ),
    Checkpoint(
        "tue-mps/coco_panoptic_eomt_large_640",
        partial(_built, "EomtForUniversalSegmentation", partial(eomt_config, large=True)),
        f"{_HUB}/tue-mps/coco_panoptic_eomt_large_640",
        f"128 images/s, H100 ([authors]({_EOMT}/dinov2.md)); 10.5 {_CORE}",
    ),
    Checkpoint(
        "tue-mps/eomt-dinov3-coco-panoptic-large-640",
        partial(_built, "EomtDinov3ForUniversalSegmentation", "EomtDinov3Config", num_labels=133),
        "https://ai.meta.com/resources/models-and-libraries/dinov3-license",
        f"137 images/s, H100 ([authors]({_EOMT}/dinov3.md)); 10 {_CORE}",
    ),
    Checkpoint(
        "Roboflow/rf-detr-seg-medium",
        partial(_built, "RfDetrForInstanceSegmentation", "RfDetrConfig", **_SEG_MEDIUM),
        f"{_RF_DETR}#benchmarks",
        f"5.9 ms, T4 with TensorRT ([authors]({_RF_DETR}#benchmarks)); 1.1 {_CORE}",
    ),
    Checkpoint(
        "facebook/sam-vit-base",
        partial(_built, "SamModel", partial(sam_config, large=False)),
        f"{_HUB}/facebook/sam-vit-base",
        f"150 {_CORE}, 1,024 points",
    ),
    Checkpoint(
        "facebook/sam-vit-large",
        partial(_built, "SamModel", partial(sam_config, large=True)),
        f"{_HUB}/facebook/sam-vit-large",
        f"160 {_CORE}, 1,024 points",
    ),
    Checkpoint(
        "facebook/sam2.1-hiera-large",
        partial(_built, "Sam2VideoModel", _sam2_large),
        "https://github.com/facebookresearch/sam2/blob/main/LICENSE",
        f"160 {_CORE}, 1,024 points",
    ),
    Checkpoint(
        "facebook/sam3",
        partial(_built, "Sam3VideoModel", "Sam3VideoConfig"),
        "https://github.com/facebookresearch/sam3/blob/main/LICENSE",
        f"100 {_CORE} to check a noun ([verifiers]({_VERIFIERS}))",
    ),
    Checkpoint(
        "google/owlv2-base-patch16-ensemble",
        partial(_built, "Owlv2ForObjectDetection", "Owlv2Config", vision_config={"image_size": 960, "patch_size": 16}),
        f"{_HUB}/google/owlv2-base-patch16-ensemble",
        f"13 {_CORE} for any number of nouns ([verifiers]({_VERIFIERS}))",
    ),
    Checkpoint(
        "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det",
        partial(_built, "MMGroundingDinoForObjectDetection", "MMGroundingDinoConfig"),
        "https://github.com/open-mmlab/mmdetection/blob/main/LICENSE",
        f"7 {_CORE}, and 17 for each noun ([verifiers]({_VERIFIERS}))",
    ),
    Checkpoint("ViT-B-16 openai", partial(_open_clip, "ViT-B-16"), _OPENAI, f"0.3 {_CORE}"),
    Checkpoint("ViT-L-14 openai", partial(_open_clip, "ViT-L-14"), _OPENAI, f"1.2 {_CORE}"),
    Checkpoint(
        "ViT-B-16-SigLIP2 webli",
        partial(_open_clip, "ViT-B-16-SigLIP2"),
        f"{_HUB}/timm/ViT-B-16-SigLIP2",
        f"0.3 {_CORE}",
    ),
    Checkpoint(
        "PE-Core-L-14-336 meta",
        partial(_open_clip, "PE-Core-L-14-336"),
        f"{_HUB}/timm/PE-Core-L-14-336",
        f"3.1 {_CORE}, at 336 pixels",
    ),
    Checkpoint(
        "EVA02-L-14 merged2b_s4b_b131k",
        partial(_open_clip, "EVA02-L-14"),
        f"{_HUB}/timm/eva02_large_patch14_clip_224.merged2b_s4b_b131k",
        f"1.2 {_CORE}",
    ),
    Checkpoint(
        "convnext_base laion400m_s13b_b51k",
        partial(_open_clip, "convnext_base"),
        f"{_HUB}/laion/CLIP-convnext_base-laion400M-s13B-b51K",
        f"0.3 {_CORE}",
    ),
)

if __name__ == "__main__":
    run_command(main, name="checkpoints")
