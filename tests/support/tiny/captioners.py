"""A Florence-2 with a few thousand random weights, saved as transformers saves its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

SIDE_PX = 64
_IMAGE_TOKENS = 5  # of a picture of 64 pixels: 2 × 2 patches, and one for all of it
_WORDS = ("dog", "cat", "tree", "square", "disc", "bar", "a", "and", "the", "red")


def save_florence2(folder: Path, *, seed: int = 2) -> Path:
    """A checkpoint of Florence-2 for pictures of 64 pixels; the same seed says the same of a picture."""
    torch.manual_seed(seed)
    tokenizer = word_tokenizer()
    text = {"model_type": "bart", "d_model": 16, "vocab_size": len(tokenizer), "max_position_embeddings": 128}
    text |= {f"{side}_{what}": 1 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    text |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "dropout": 0.0}
    vision = {"depths": [1] * 4, "embed_dim": [8] * 4, "num_heads": [1] * 4, "num_groups": [1] * 4}
    vision |= {"window_size": 2, "projection_dim": 16, "drop_path_rate": 0.0}
    config = transformers.Florence2Config(
        text_config=text, vision_config=vision, image_token_id=tokenizer.convert_tokens_to_ids("<image>")
    )
    network = transformers.Florence2ForConditionalGeneration(config)
    with torch.no_grad():  # the usual start is so small that all pictures are told alike
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1.0)
    # else it says nothing but special tokens
    named = ["<s>", "<pad>", "<unk>", "<image>"]
    network.generation_config.suppress_tokens = tokenizer.convert_tokens_to_ids(named)
    network.generation_config.min_new_tokens = 4
    network.save_pretrained(folder)
    size = {"height": SIDE_PX, "width": SIDE_PX}
    images: Any = transformers.CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False)
    images.image_seq_length = _IMAGE_TOKENS
    processor: Any = transformers.Florence2Processor
    processor(images, tokenizer).save_pretrained(folder)
    return folder


def word_tokenizer() -> Any:
    """A tokenizer that knows a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<s>", "<pad>", "</s>", "<unk>", *_WORDS, "<image>"]
    tokens = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokens, extra_special_tokens={"image_token": "<image>"}, **special
    )
