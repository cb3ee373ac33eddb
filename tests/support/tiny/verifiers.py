"""Tiny verifiers of every kind with random weights, saved as their libraries save them, for tests."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
import transformers

from maskmine.mining.models.clip import Clip
from maskmine.mining.models.embeddings import embed_nouns
from maskmine.mining.proposers.open_vocabulary_checkpoint import OpenRecord, new_head, save_head
from tests.support.models import SIZE, network, save_tiny_clip

SIDE_PX = 64
KINDS = ("sam3", "owlv2", "mm_grounding_dino", "clip", "open_maskformer")
OF_TRANSFORMERS = KINDS[:3]
# Low, as scores of random weights are.
THRESHOLDS = {"sam3": 0.1, "owlv2": 0.4, "mm_grounding_dino": 0.0001, "open_maskformer": 0.05}

_VISION: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_VISION |= {"image_size": 56, "patch_size": 14, "window_size": 2, "global_attn_indexes": [1], "pretrain_image_size": 28}
_VISION |= {"model_type": "sam3_vit_model"}
_TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_TEXT |= {"max_position_embeddings": 32, "vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513}
_PART = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_layers": 2}


def save_verifier(kind: str, folder: Path) -> dict[str, Any]:
    """A model of this kind; returns the settings that name it."""
    if kind in OF_TRANSFORMERS:
        saved = {"sam3": save_sam3, "owlv2": save_owlv2, "mm_grounding_dino": save_mm_grounding_dino}[kind](folder)
        return {"kind": kind, "checkpoint": str(saved), "threshold": THRESHOLDS[kind], "licence": "Apache-2.0"}
    clip = {"model": str(save_tiny_clip(folder / "clip", seed=3)), "batch_size": 4, "licence": "Apache-2.0"}
    if kind == "clip":
        return {"kind": kind, "clip": clip, "templates": "raw"}
    saved = save_open_maskformer(folder / "maskformer", clip=clip)
    named = {"kind": kind, "checkpoint": str(saved), "clip": clip, "licence": "Apache-2.0"}
    return {**named, "threshold": THRESHOLDS[kind]}


def save_open_maskformer(folder: Path, *, clip: dict[str, Any]) -> Path:
    """An open-vocabulary MaskFormer with random weights, in the text space of a CLIP."""
    body = network("maskformer")
    body.save_pretrained(folder)
    transformers.MaskFormerImageProcessor(size=SIZE).save_pretrained(folder)
    names = ("cat", "sky", "tree")
    classes_KD = embed_nouns(names, templates=["{}"], tower=Clip(**clip).open_text(device="cpu"))
    torch.manual_seed(0)
    record = OpenRecord("toy", None, "raw", 20.0, hidden=16, layers=2, pixels=True, classes=names)
    save_head(folder, new_head(classes_KD, record, network=body), record, half=False, body=None)
    return folder


def sam3_config() -> Any:
    """A SAM 3 for pictures of 56 pixels with six queries."""
    vision = {"backbone_config": _VISION, "fpn_hidden_size": 16}
    vision |= {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}
    return transformers.Sam3Config(
        vision_config=vision,
        text_config={**_TEXT, "projection_dim": 16, "model_type": "clip_text_model"},
        geometry_encoder_config=_PART,
        detr_encoder_config=_PART,
        detr_decoder_config={**_PART, "num_queries": 6},
        mask_decoder_config={"hidden_size": 16, "num_attention_heads": 2},
    )


def save_sam3(folder: Path) -> Path:
    """A checkpoint of SAM 3."""
    torch.manual_seed(0)
    network = _livened(transformers.Sam3Model(sam3_config()))
    with torch.no_grad():  # the usual start says of every noun that it is hardly there
        network.detr_decoder.presence_head.layer3.bias.fill_(1.0)
    network.save_pretrained(folder)
    images = transformers.Sam3ImageProcessor(size={"height": 56, "width": 56})
    transformers.Sam3Processor(images, clip_tokenizer(32)).save_pretrained(folder)
    return folder


def save_owlv2(folder: Path) -> Path:
    """A checkpoint of an OWLv2 for pictures of 64 pixels in patches of 16."""
    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": SIDE_PX, "patch_size": 16}
    config = transformers.Owlv2Config(text_config=_TEXT, vision_config=vision, projection_dim=16)
    _livened(transformers.Owlv2ForObjectDetection(config)).save_pretrained(folder)
    images = transformers.Owlv2ImageProcessor(size={"height": SIDE_PX, "width": SIDE_PX})
    processor: Any = transformers.Owlv2Processor
    processor(images, clip_tokenizer(32)).save_pretrained(folder)
    return folder


def save_mm_grounding_dino(folder: Path) -> Path:
    """A checkpoint of an MM-Grounding-DINO with six queries."""
    torch.manual_seed(0)
    swin = {"model_type": "swin", "image_size": SIDE_PX, "embed_dim": 8, "depths": [1, 1, 1, 1], "window_size": 4}
    swin |= {"num_heads": [1, 1, 2, 2], "out_indices": [2, 3, 4]}
    text = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"intermediate_size": 32, "vocab_size": _BERT_SIZE}
    sizes: dict[str, Any] = {
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "num_queries": 6,
        "max_text_len": 48,
    }
    sizes |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    sizes |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    config = transformers.MMGroundingDinoConfig(backbone_config=swin, text_config=text, **sizes)
    _livened(transformers.MMGroundingDinoForObjectDetection(config)).save_pretrained(folder)
    images = transformers.GroundingDinoImageProcessor(size={"shortest_edge": SIDE_PX, "longest_edge": 2 * SIDE_PX})
    processor: Any = transformers.GroundingDinoProcessor
    processor(images, bert_tokenizer()).save_pretrained(folder)
    return folder


def clip_tokenizer(length: int) -> Any:
    """CLIP's tokenizer without its merges: a token for every character."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())  # type: ignore[no-untyped-call, unused-ignore]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=length)


_BERT_SIZE = 1030


def bert_tokenizer() -> Any:
    """BERT's tokenizer with a vocabulary of letters; the numbers that the detector knows are those of BERT."""
    words = [f"[unused{number}]" for number in range(_BERT_SIZE)]
    places = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    letters = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    for number, word in (*places.items(), *enumerate(letters, start=200)):
        words[number] = word
    return transformers.BertTokenizer(vocab={word: number for number, word in enumerate(words)})


def _livened(network: Any) -> Any:
    """The usual start is so small that all nouns and places are answered alike."""
    numbers = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=min(0.5, 1.5 * parameter[0].numel() ** -0.5), generator=numbers)
    return network
