"""The tiny CLIP of the demo world: its shape, its tokenizer, its forward passes, and how it is saved.

It is a plain open_clip model: a ViT with patch embeddings and a class token, so mask prompts fit. The tokenizer knows
the words of the demo world and spells all others, which keeps the text side small; open_clip reads it from the folder
of the weights.

Shapes: B images or texts of a batch, T tokens of a text, N tokens of an image, Y and X rows and columns of patches,
D width of a tower or of the embedding, S side in pixels.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

_PAD, _UNKNOWN, _START, _END = "[PAD]", "[UNK]", "[SOT]", "[EOT]"
_CHARACTERS = string.ascii_lowercase + string.digits


def tiny_clip(vocabulary: int) -> dict[str, Any]:
    """The configuration of the model, as open_clip reads it, for a vocabulary of this number of tokens."""
    config: dict[str, Any] = json.loads(
        resources.files("maskmine.scripts").joinpath("data/tiny_clip.json").read_text("utf-8")
    )
    config["model_cfg"]["text_cfg"]["vocab_size"] = vocabulary
    return config


def words_of(texts: Iterable[str]) -> set[str]:
    """The different words of some texts, lower case."""
    return {word for text in texts for word in re.findall(r"[a-z0-9]+", text.lower())}


def make_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer that knows `words` and spells others; punctuation is dropped.

    The end token has the highest number: open_clip reads a text's embedding where it finds that.
    """
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    pieces = [*_CHARACTERS, *(f"##{character}" for character in _CHARACTERS)]
    further = sorted(set(words) - set(pieces))
    numbers = {token: number for number, token in enumerate([_PAD, _UNKNOWN, _START, *pieces, *further, _END])}
    tokenizer = Tokenizer(WordPiece(numbers, unk_token=_UNKNOWN, max_input_chars_per_word=40))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Split(Regex("[^a-z0-9]+"), "removed")
    tokenizer.post_processor = TemplateProcessing(
        single=f"{_START} $A {_END}", special_tokens=[(token, numbers[token]) for token in (_START, _END)]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token=_PAD, unk_token=_UNKNOWN, bos_token=_START, eos_token=_END
    )


def tokens_of(texts: Sequence[str], *, tokenizer: PreTrainedTokenizerFast, length: int) -> Tensor:
    """The tokens of open_clip's tokenizer, int64 [B, T]; long texts are cut before their end token."""
    encoded = tokenizer(list(texts), max_length=length, padding="max_length", truncation=True, return_tensors="pt")
    tokens_BT: Tensor = encoded.input_ids
    return tokens_BT


def embed_pixels(model: Any, pixels_B3SS: Tensor) -> Tensor:
    """The embeddings of `encode_image` of open_clip, unit vectors [B, D], for any side of whole patches.

    Position embeddings belong to positions in the image: for a smaller grid of patches they are interpolated.
    """
    import torch
    from torch.nn.functional import interpolate, normalize

    visual = model.visual
    patches_BDYX = visual.conv1(pixels_B3SS)
    position_1D, rest_ND = visual.positional_embedding.split([1, math.prod(visual.grid_size)])
    rest_1DYX = rest_ND.T.reshape(1, -1, *visual.grid_size)
    if rest_1DYX.shape[2:] != patches_BDYX.shape[2:]:
        rest_1DYX = interpolate(rest_1DYX, size=patches_BDYX.shape[2:], mode="bilinear", align_corners=False)
    class_B1D = (visual.class_embedding + position_1D).expand(len(patches_BDYX), 1, -1)
    values_BND = torch.cat([class_B1D, (patches_BDYX + rest_1DYX).flatten(2).transpose(1, 2)], dim=1)
    values_BND = visual.transformer(visual.ln_pre(values_BND))
    return normalize(visual.ln_post(values_BND[:, 0]) @ visual.proj, dim=-1)


def embed_tokens(model: Any, tokens_BT: Tensor) -> Tensor:
    """The embeddings of `encode_text` of open_clip, unit vectors [B, D], without the cost of padding.

    A text is read from its first token to its end token and no token sees later ones, so padding changes nothing.
    """
    import torch
    from torch.nn.functional import normalize

    longest = int((tokens_BT != 0).sum(1).max())
    tokens_BT = tokens_BT[:, :longest]
    values_BTD = model.token_embedding(tokens_BT) + model.positional_embedding[:longest]
    values_BTD = model.ln_final(model.transformer(values_BTD, attn_mask=model.attn_mask[:longest, :longest]))
    ends_BD = values_BTD[torch.arange(len(tokens_BT)), tokens_BT.argmax(1)]
    return normalize(ends_BD @ model.text_projection, dim=-1)


def normalised(pixels_BSS3: Tensor, config: dict[str, Any]) -> Tensor:
    """Pixels as the model wants them, float32 [B, 3, S, S], of uint8 [B, S, S, 3]."""
    import torch

    mean_3, std_3 = (torch.tensor(config["preprocess_cfg"][key], device=pixels_BSS3.device) for key in ("mean", "std"))
    return ((pixels_BSS3.float() / 255 - mean_3) / std_3).permute(0, 3, 1, 2).contiguous()


def save_clip(folder: Path, model: Any, *, tokenizer: PreTrainedTokenizerFast, config: dict[str, Any]) -> None:
    """A folder that `maskmine.mining.models.clip` opens: configuration, tokenizer, and weights in half precision."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().to(torch.float16).contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
