"""Repositories of the real hub, with their names of files and the descriptions in them, and tiny weights.

Sizes of layers and pictures alone are changed. What the descriptions look like is that of the versions of transformers
which wrote them: those of 2022 repeat every default of that time in every part. Files that nobody needs are there too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import BPE

from tests.support.models import OF_TIMM, network, save_tiny_clip
from tests.support.tiny.proposers import save_eomt, save_rf_detr, save_sam, save_sam3_video
from tests.support.tiny.verifiers import save_mm_grounding_dino, save_owlv2, save_sam3

MASKFORMER, MASK2FORMER = "facebook/maskformer-swin-base-coco", "facebook/mask2former-swin-base-coco-panoptic"
EOMT, RF_DETR = "tue-mps/coco_panoptic_eomt_large_640", "Roboflow/rf-detr-seg-medium"
SAM, SAM3 = "facebook/sam-vit-base", "facebook/sam3"
OWLV2, MM_GROUNDING_DINO = (
    "google/owlv2-base-patch16-ensemble",
    "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det",
)
CLIP, SIGLIP2 = "timm/vit_large_patch14_clip_224.openai", "timm/ViT-B-16-SigLIP2"
EOMT_DINOV3 = "tue-mps/eomt-dinov3-coco-panoptic-large-640"

PROPOSERS = {
    **dict.fromkeys((MASKFORMER, MASK2FORMER), "maskformer"),
    **dict.fromkeys((EOMT, EOMT_DINOV3), "eomt"),
    RF_DETR: "rf_detr",
    **dict.fromkeys((SAM, SAM3), "sam"),
}
VERIFIERS = {OWLV2: "owlv2", MM_GROUNDING_DINO: "mm_grounding_dino", SAM3: "sam3"}
"""Which `kind` takes a repository, as a proposer and as a verifier."""
CLIPS = {CLIP: ("ViT-L-14", "openai"), SIGLIP2: ("ViT-B-16-SigLIP2", "webli")}
"""The architecture and the tag by which open_clip knows a repository."""

UNNEEDED = b"nobody has to fetch this"
"""What stands in files that no loader needs: weights as pickles, or for other libraries."""

_OF_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_OF_CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_STEPS = {"do_normalize": True, "do_rescale": True, "do_resize": True, "rescale_factor": 0.00392156862745098}
_STEPS |= {"resample": 2}
_PIECES = ("special_tokens_map.json", "tokenizer_config.json", "tokenizer.json")

# What transformers wrote into every part of a description, whatever the model, until version 4.30.
_DEFAULTS_OF_2022: dict[str, Any] = {
    **dict.fromkeys(
        (
            *("architectures", "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "cross_attention_hidden_size"),
            *("decoder_start_token_id", "eos_token_id", "exponential_decay_length_penalty", "finetuning_task"),
            *("forced_bos_token_id", "forced_eos_token_id", "pad_token_id", "prefix", "problem_type", "sep_token_id"),
            *("suppress_tokens", "task_specific_params", "tokenizer_class", "torch_dtype"),
        )
    ),
    **dict.fromkeys(
        (
            *("add_cross_attention", "do_sample", "early_stopping", "is_decoder", "is_encoder_decoder"),
            *("output_attentions", "output_hidden_states", "output_scores", "remove_invalid_values"),
            *("return_dict_in_generate", "tf_legacy_loss", "tie_encoder_decoder", "torchscript", "use_bfloat16"),
        ),
        False,
    ),
    **dict.fromkeys(
        ("chunk_size_feed_forward", "encoder_no_repeat_ngram_size", "min_length", "no_repeat_ngram_size"), 0
    ),
    **dict.fromkeys(("num_beam_groups", "num_beams", "num_return_sequences"), 1),
    **dict.fromkeys(("length_penalty", "repetition_penalty", "temperature", "top_p", "typical_p"), 1.0),
    **dict.fromkeys(("return_dict", "tie_word_embeddings"), True),
    "_name_or_path": "",
    "diversity_penalty": 0.0,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "max_length": 20,
    "pruned_heads": {},
    "top_k": 50,
    "transformers_version": "4.26.0.dev0",
}


def save_repositories(folder: Path, names: tuple[str, ...] | None = None) -> dict[str, Path]:
    """A folder for each repository of these names, of all of them by default."""
    saved = {}
    for name in names or tuple(_REPOSITORIES):
        licence, save = _REPOSITORIES[name]
        saved[name] = folder / name
        saved[name].mkdir(parents=True)
        (saved[name] / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
        (saved[name] / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
        save(saved[name])
    return saved


def _maskformer(folder: Path) -> None:
    """Of March 2022: the backbone names none of its outputs, and the processor has its names from before."""
    network("maskformer").save_pretrained(folder)
    config = _described(folder / "config.json")
    for part in ("backbone_config", "decoder_config"):
        config[part] = {**_DEFAULTS_OF_2022, **config[part]}
    for name in ("out_features", "out_indices", "stage_names"):
        del config["backbone_config"][name]
    config["backbone_config"]["model_type"] = "swin"
    config |= {"torch_dtype": "float32", "transformers_version": "4.17.0.dev0", "num_hidden_layers": 1}
    _write(folder / "config.json", config)
    processor = {"do_normalize": True, "do_resize": True, "feature_extractor_type": "MaskFormerFeatureExtractor"}
    processor |= {"ignore_index": 255, "max_size": 128, "reduce_labels": False, "resample": 2, "size": 64}
    _write(folder / "preprocessor_config.json", {**processor, "size_divisibility": 32, **_OF_IMAGENET})
    _unneeded(folder, "pytorch_model.bin")


def _mask2former(folder: Path) -> None:
    network("mask2former").save_pretrained(folder)
    config = _described(folder / "config.json")
    config["backbone_config"] = {**_DEFAULTS_OF_2022, **config["backbone_config"]}
    config |= {"backbone": "swin", "torch_dtype": "float32", "transformers_version": "4.26.0.dev0"}
    _write(folder / "config.json", config)
    processor = {"_max_size": 128, "ignore_index": 255, "image_processor_type": "Mask2FormerImageProcessor"}
    processor |= {"num_labels": 3, "reduce_labels": False, "size_divisor": 32}
    size = {"size": {"longest_edge": 128, "shortest_edge": 64}}
    _write(folder / "preprocessor_config.json", {**processor, **size, **_STEPS, **_OF_IMAGENET})
    _unneeded(folder, "pytorch_model.bin")


def _eomt(folder: Path, *, kind: str = "eomt") -> None:
    """The processor's class is one of version 4 of transformers, with all of its options."""
    save_eomt(folder, kind=kind)
    processor: dict[str, Any] = dict.fromkeys(
        (
            "crop_size",
            "device",
            "disable_grouping",
            "do_center_crop",
            "do_convert_rgb",
            "ignore_index",
            "return_tensors",
        )
    )
    processor |= {"data_format": "channels_first", "default_to_square": False, "do_pad": True, "do_split_image": False}
    processor |= {"image_processor_type": "EomtImageProcessorFast", "input_data_format": None}
    size = {"size": {"longest_edge": 64, "shortest_edge": 64}}
    _write(folder / "preprocessor_config.json", {**processor, **size, **_STEPS, **_OF_IMAGENET})
    if kind == "eomt":
        _unneeded(folder, "pytorch_model.bin")


def _sam(folder: Path) -> None:
    save_sam(folder)
    config = _described(folder / "config.json")
    for part in ("mask_decoder_config", "prompt_encoder_config", "vision_config"):
        config[part] = {**_DEFAULTS_OF_2022, **config[part]}
    config |= {"torch_dtype": "float32", "transformers_version": None}
    _write(folder / "config.json", config)
    processor = {"do_convert_rgb": True, "do_pad": True, "image_processor_type": "SamImageProcessor"}
    processor |= {"pad_size": {"height": 64, "width": 64}, "processor_class": "SamProcessor"}
    size = {"size": {"longest_edge": 64}}
    _write(folder / "preprocessor_config.json", {**processor, **size, **_STEPS, **_OF_IMAGENET})
    _unneeded(folder, "pytorch_model.bin", "tf_model.h5")


def _sam3(folder: Path) -> None:
    """The detector of texts and the tracker of points are parts of one model for videos."""
    save_sam3(folder)
    save_sam3_video(folder, detector=_described(folder / "config.json"), weights=load_file(folder / _WEIGHTS))
    processor = _described(folder / "processor_config.json")
    video = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 56, "width": 56}}
    processor |= {"processor_class": "Sam3VideoProcessor", "video_processor_type": "Sam2VideoVideoProcessor"}
    _write(folder / "processor_config.json", {**processor, "video_processor": video})
    _in_pieces(folder, whole=True)
    (folder / "LICENSE").write_text("SAM License\n")
    _unneeded(folder, "sam3.pt")


def _owlv2(folder: Path) -> None:
    """Of 2023: the words are in two files, and none has the whole tokenizer."""
    save_owlv2(folder)
    (folder / "processor_config.json").unlink()
    processor = {"do_pad": True, "image_processor_type": "Owlv2ImageProcessor", "processor_class": "Owlv2Processor"}
    size = {"size": {"height": 64, "width": 64}}
    _write(folder / "preprocessor_config.json", {**processor, **size, **_STEPS, **_OF_CLIP})
    _in_pieces(folder, whole=False)
    _write(folder / "added_tokens.json", {"!": 0, "<|endoftext|>": 513, "<|startoftext|>": 512})
    _unneeded(folder, "pytorch_model.bin")


def _mm_grounding_dino(folder: Path) -> None:
    save_mm_grounding_dino(folder)
    (folder / "processor_config.json").unlink()
    processor = {"do_convert_annotations": True, "do_pad": True, "format": "coco_detection", "pad_size": None}
    processor |= {"image_processor_type": "GroundingDinoImageProcessor", "processor_class": "GroundingDinoProcessor"}
    size = {"size": {"longest_edge": 128, "shortest_edge": 64}}
    _write(folder / "preprocessor_config.json", {**processor, **size, **_STEPS, **_OF_IMAGENET})
    words = _described(folder / "tokenizer.json")["model"]["vocab"]
    (folder / "vocab.txt").write_text("\n".join(sorted(words, key=words.get)))
    special = {"cls_token": "[CLS]", "mask_token": "[MASK]", "pad_token": "[PAD]", "sep_token": "[SEP]"}
    _write(folder / "special_tokens_map.json", {**special, "unk_token": "[UNK]"})


def _clip(folder: Path) -> None:
    """open_clip's files beside those of timm, which knows the image side alone, and of transformers."""
    save_tiny_clip(folder)
    of_timm = {"tag": "openai", "input_size": [3, 224, 224], "mean": _OF_CLIP["image_mean"], "crop_mode": "center"}
    config = {"architecture": "vit_large_patch14_clip_224", "num_classes": 768, "num_features": 1024}
    _write(folder / "config.json", {**config, "global_pool": "token", "pretrained_cfg": of_timm})
    for name in (*_PIECES, "vocab.json"):
        (folder / name).write_text("{}")
    (folder / "merges.txt").write_text("#version: 0.2\n")
    _unneeded(folder, "model.safetensors", "open_clip_pytorch_model.bin", "pytorch_model.bin")


def _siglip2(folder: Path) -> None:
    """Its tokenizer is named by where it lies, which is this repository."""
    words = "abcdefghijklmnopqrstuvwxyz▁"
    vocabulary = {word: number for number, word in enumerate(("<pad>", "<eos>", "<bos>", "<unk>", *words))}
    text = {**OF_TIMM["text_cfg"], "vocab_size": len(vocabulary), "hf_tokenizer_name": SIGLIP2}
    save_tiny_clip(folder, **{**OF_TIMM, "text_cfg": {**text, "tokenizer_kwargs": {"clean": "canonicalize"}}})
    tokenizer = Tokenizer(BPE(vocabulary, [], unk_token="<unk>"))
    special = {f"{word}_token": f"<{word}>" for word in ("pad", "eos", "bos", "unk")}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    described = {
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": False,
        "add_eos_token": True,
        "padding_side": "right",
    }
    _write(folder / "tokenizer_config.json", {**described, **special, "model_max_length": 64, "legacy": True})
    _write(folder / "special_tokens_map.json", special)
    _unneeded(folder, "open_clip_pytorch_model.bin")


_REPOSITORIES: Mapping[str, tuple[str, Callable[[Path], object]]] = {
    MASKFORMER: ("other", _maskformer),
    MASK2FORMER: ("other", _mask2former),
    EOMT: ("mit", _eomt),
    EOMT_DINOV3: ("other", partial(_eomt, kind="eomt_dinov3")),
    RF_DETR: ("apache-2.0", save_rf_detr),
    SAM: ("apache-2.0", _sam),
    SAM3: ("other", _sam3),
    OWLV2: ("apache-2.0", _owlv2),
    MM_GROUNDING_DINO: ("apache-2.0", _mm_grounding_dino),
    CLIP: ("apache-2.0", _clip),
    SIGLIP2: ("apache-2.0", _siglip2),
}
"""What each card says of its licence, and how a folder gets the rest of its files."""

_WEIGHTS = "model.safetensors"


def _in_pieces(folder: Path, *, whole: bool) -> None:
    """CLIP's tokenizer as version 4 wrote it: words and merges in files of their own; `whole` keeps the one of both."""
    described, path = _described(folder / "tokenizer_config.json"), folder / "tokenizer.json"
    _write(folder / "vocab.json", _described(path)["model"]["vocab"])
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {name: described[name] for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    _write(folder / "special_tokens_map.json", special)
    described = {name: value for name, value in described.items() if name != "backend"}
    _write(folder / "tokenizer_config.json", {**described, "do_lower_case": True, "errors": "replace"})
    if not whole:
        path.unlink()


def _unneeded(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(UNNEEDED)


def _described(path: Path) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(path.read_text())
    return described


def _write(path: Path, described: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")
