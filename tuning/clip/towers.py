"""CLIP's image tower as it was tuned, or as it was: what it makes of masked regions; and texts beside them.

Shapes: R regions, C classes, S side of the input in pixels, E width of the embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn.functional import normalize

from mining.embeddings import unpack
from mining.models.clip import Clip, WholeClip
from mining.vocabulary import EmbedNouns
from schemas.errors import InputError
from schemas.settings import Settings
from tuning.artefacts import load_ovseg_clip, load_ovseg_prompts, load_prompts
from tuning.prompts import PromptedTower

Tower = Callable[[Tensor, Tensor | None], Tensor]
"""Normalised pixels [R, 3, S, S] and their masks [R, S, S], or None, to unit vectors, float32 [R, E]."""


class Tuned(Settings):
    """A tuned CLIP: a fine-tuned one, prompts, or both.

    `clip` is a folder as tuning writes it (without it: the plain one), `prompts` a file of prompts for it, `ovseg` a
    file as OVSeg's authors released them, for the architecture of the plain CLIP; prompts in it are used.
    """

    clip: Clip | None = None
    prompts: str | None = None
    ovseg: str | None = None

    @model_validator(mode="after")
    def _something(self) -> Tuned:
        if self.ovseg is not None and (self.clip or self.prompts):
            raise ValueError("`ovseg` is a file with everything; give it alone")
        if not (self.clip or self.prompts or self.ovseg):
            raise ValueError("names nothing that was tuned; give `clip`, `prompts`, both, or `ovseg`")
        return self


def tuned_tower(tuned: Tuned, plain: WholeClip, *, device: torch.device, place: str) -> Tower:
    """The image tower that was tuned from `plain`; `place` names it in messages.

    Raises InputError when a file is absent, or belongs to another CLIP.
    """
    if tuned.ovseg is not None:
        model = copy.deepcopy(plain.model)
        load_ovseg_clip(tuned.ovseg, model)
        try:
            return _prompted(load_ovseg_prompts(tuned.ovseg, model).to(device))
        except InputError:  # a file that was fine-tuned only
            return bare_tower(model.visual.to(device))
    whole = tuned.clip.open_whole() if tuned.clip else plain
    if (whole.size_px, whole.dim) != (plain.size_px, plain.dim):
        raise InputError(
            f"{place}: has input of {whole.size_px} px and embeddings of {whole.dim}, the plain CLIP "
            f"{plain.size_px} px and {plain.dim}; give the one that was tuned from it"
        )
    if tuned.prompts is None:
        return bare_tower(whole.model.visual.to(device))
    return _prompted(load_prompts(tuned.prompts, whole.model).to(device))


def bare_tower(tower: Any) -> Tower:
    """The tower alone, which sees of a mask only how the pixels are filled."""

    def embed(pixels_R3SS: Tensor, masks_RSS: Tensor | None) -> Tensor:
        found = tower(pixels_R3SS)
        return normalize((found[0] if isinstance(found, tuple) else found).float(), dim=-1)

    return embed


def embed_classes(classes: Sequence[str], *, embed: EmbedNouns) -> Tensor:
    """Unit vectors of classes, float32 [C, E]."""
    packed = [row.embedding or b"" for row in embed((name, 1, 1) for name in classes)]
    return normalize(torch.from_numpy(unpack(packed)), dim=-1)


def _prompted(tower: PromptedTower) -> Tower:
    return lambda pixels_R3SS, masks_RSS: normalize(tower(pixels_R3SS, masks_RSS).float(), dim=-1)
