"""Models with random weights and images for the benches, made here so that nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskmine.schemas.errors import InputError

if TYPE_CHECKING:
    from transformers import EomtConfig, Owlv2Config, Sam2Config, SamConfig

WIDTH_PX, HEIGHT_PX = 640, 480  # of most photographs in COCO
SWIN_B: dict[str, Any] = {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32), "window_size": 12}
# Random weights think the same of every mask: what leaves about as many through the filters as trained ones.
HALF_OF_SAM: dict[str, Any] = {
    "min_predicted_iou": 0.0,
    "min_stability": 0.0,
    "max_box_iou": 1.0,
}  # as many are above 0 as below
HALF_OF_SAM_2: dict[str, Any] = {**HALF_OF_SAM, "min_predicted_iou": 0.5}  # whose prediction is a sigmoid's


def save_random_maskformer(
    folder: Path,
    *,
    embed_dim: int = 96,
    depths: Sequence[int] = (2, 2, 6, 2),
    num_heads: Sequence[int] = (3, 6, 12, 24),
    window_size: int = 7,
) -> Path:
    """A MaskFormer with random weights, saved as a checkpoint; of the size of facebook/maskformer-swin-tiny-coco."""
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


def eomt_config(*, large: bool, side_px: int = 640) -> EomtConfig:
    """The sizes of tue-mps/coco_panoptic_eomt_large_640, or those of tue-mps/coco_panoptic_eomt_base_640_2x."""
    from transformers import EomtConfig

    sizes: dict[str, Any] = {"num_blocks": 3, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    if large:
        sizes = {"num_blocks": 4, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    return EomtConfig(image_size=side_px, num_labels=133, **sizes)  # type: ignore[call-arg]


def save_random_eomt(folder: Path, *, large: bool, side_px: int = 640) -> Path:
    """An EoMT with random weights, saved as a checkpoint; its attention has no masks, as where training ends."""
    from transformers import EomtForUniversalSegmentation, EomtImageProcessor

    torch.manual_seed(0)
    network = EomtForUniversalSegmentation(eomt_config(large=large, side_px=side_px))
    network.attn_mask_probs.zero_()
    network.save_pretrained(folder)
    EomtImageProcessor(size={"shortest_edge": side_px, "longest_edge": side_px}, do_pad=True).save_pretrained(folder)
    return folder


def sam2_config(*, large: bool) -> Sam2Config:
    """The sizes of facebook/sam2.1-hiera-large, or of facebook/sam2.1-hiera-base-plus, without the parts for videos."""
    from transformers import Sam2Config

    backbone: dict[str, Any] = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 112,
        "num_attention_heads": 2,
        "embed_dim_per_stage": [112, 224, 448, 896],
        "num_attention_heads_per_stage": [2, 4, 8, 16],
        "blocks_per_stage": [2, 3, 16, 3],
        "global_attention_blocks": [12, 16, 20],
        "window_positional_embedding_background_size": [14, 14],
    }
    if large:
        backbone |= {
            "hidden_size": 144,
            "embed_dim_per_stage": [144, 288, 576, 1152],
            "blocks_per_stage": [2, 6, 36, 4],
            "global_attention_blocks": [23, 33, 43],
            "window_size_per_stage": [8, 4, 16, 8],
            "window_positional_embedding_background_size": [7, 7],
        }
    channels = backbone["embed_dim_per_stage"][::-1]
    return Sam2Config(vision_config={"backbone_config": backbone, "backbone_channel_list": channels})


def save_random_sam2(folder: Path, *, large: bool) -> Path:
    """A SAM 2 with random weights."""
    from transformers import Sam2ImageProcessor, Sam2Model

    torch.manual_seed(0)
    Sam2Model(sam2_config(large=large)).save_pretrained(folder)
    Sam2ImageProcessor().save_pretrained(folder)
    return folder


def sam_config(*, large: bool) -> SamConfig:
    """The sizes of facebook/sam-vit-large, or those of facebook/sam-vit-base."""
    from transformers import SamConfig

    vision: dict[str, Any] = {"initializer_range": 0.02}
    if large:
        vision |= {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
        vision |= {"global_attn_indexes": [5, 11, 17, 23]}
    return SamConfig(vision_config=vision)


def save_random_sam(folder: Path, *, large: bool) -> Path:
    """A SAM with random weights."""
    from transformers import SamImageProcessor, SamModel

    torch.manual_seed(0)
    SamModel(sam_config(large=large)).save_pretrained(folder)
    SamImageProcessor().save_pretrained(folder)
    return folder


def save_random_clip(file: Path, *, model: str = "ViT-B-16") -> Path:
    """An open_clip architecture with random weights, saved as safetensors. Raises InputError for another one."""
    import open_clip
    from safetensors.torch import save_file

    if model not in open_clip.list_models():
        raise InputError(f"bench: {model}: open_clip has no such architecture; open_clip.list_models() names them")

    torch.manual_seed(0)
    weights = open_clip.create_model(model, load_weights=False).state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, file)
    return file


def save_random_siglip2(folder: Path) -> Path:
    """A SigLIP 2 ViT-B/16 for 256 pixels with random weights and CLIP's own tokenizer, as a folder of open_clip."""
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    config = open_clip.get_model_config("ViT-B-16-SigLIP2-256")
    assert config is not None
    config["text_cfg"] = {name: value for name, value in config["text_cfg"].items() if "tokenizer" not in name}
    parts = {name: value for name, value in config.items() if name != "custom_text"}
    weights = open_clip.CustomTextCLIP(**parts).state_dict()
    folder.mkdir(parents=True)
    described = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    contiguous = {name: value.contiguous() for name, value in weights.items()}
    save_file(contiguous, folder / "open_clip_model.safetensors")
    return folder


def owlv2_config() -> Owlv2Config:
    """The sizes of google/owlv2-base-patch16-ensemble."""
    from transformers import Owlv2Config

    return Owlv2Config(vision_config={"image_size": 960})


def save_random_owlv2(folder: Path) -> Path:
    """An OWLv2 with random weights and CLIP's words."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

    torch.manual_seed(0)
    Owlv2ForObjectDetection(owlv2_config()).save_pretrained(folder)
    words = SimpleTokenizer()
    numbers = {word: number for word, number in words.encoder.items() if number < words.sot_token_id}
    numbers |= {"<|startoftext|>": words.sot_token_id, "<|endoftext|>": words.eot_token_id}
    tokenizer = CLIPTokenizer(vocab=numbers, merges=[*words.bpe_ranks], model_max_length=16)
    images = Owlv2ImageProcessor(size={"height": 960, "width": 960})
    processor: Any = Owlv2Processor
    processor(images, tokenizer).save_pretrained(folder)
    return folder


def read_photo(path: Path) -> Tensor:
    """A photograph as uint8 [3, H, W], 640 × 480."""
    with Image.open(path) as photo:
        pixels = np.asarray(photo.convert("RGB").resize((WIDTH_PX, HEIGHT_PX)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()


def noise(count: int) -> list[Tensor]:
    """Images of noise in the same size, where there are no photographs."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, HEIGHT_PX, WIDTH_PX)
    return [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in range(count)]


def ellipses(count: int, *, seed: int) -> Tensor:
    """Masks of all sizes up to most of the image, small ones more often, boolean [N, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    draws_N4 = torch.rand(count, 4, generator=generator)
    x_W, y_H1 = torch.arange(WIDTH_PX), torch.arange(HEIGHT_PX)[:, None]
    masks = []
    for across, down, x, y in draws_N4.tolist():
        half_width_px, half_height_px = 8 + 0.45 * across**2 * WIDTH_PX, 8 + 0.45 * down**2 * HEIGHT_PX
        distance_HW = ((x_W - x * WIDTH_PX) / half_width_px) ** 2 + ((y_H1 - y * HEIGHT_PX) / half_height_px) ** 2
        masks.append(distance_HW < 1)
    return torch.stack(masks)


def drawn_photos(folder: Path, *, photos: int = 24) -> list[Path]:
    """Smooth noise as JPEGs of COCO's size, where no photographs are at hand."""
    paths = []
    for number in range(photos):
        colours = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        path = folder / f"{number}.jpg"
        Image.fromarray(colours).resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BICUBIC).save(path, quality=92)
        paths.append(path)
    return paths
