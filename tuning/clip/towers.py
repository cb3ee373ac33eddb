"""CLIP's image tower for masked regions, tuned or plain.

Shapes: R regions, S side of the input in pixels, E width of the embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn.functional import normalize

from maskmine.mining.models.clip import Clip, WholeClip
from maskmine.mining.models.mask_prompts import PromptedTower, text_side_sha256, tower_features
from maskmine.mining.models.prompts_file import load_prompts
from maskmine.schemas.errors import InputError
from maskmine.schemas.settings import AnyPath, Settings
from maskmine.tuning.clip.weights_files import has_ovseg_prompts, load_ovseg_clip, load_ovseg_prompts

Tower = Callable[[Tensor, Tensor | None], Tensor]
"""Normalised pixels [R, 3, S, S] and their masks [R, S, S], or None, to unit vectors, float32 [R, E]."""


class Tuned(Settings):
    """A tuned CLIP: a fine-tuned one, mask prompts, or both."""

    clip: Clip | None = None
    """A fine-tuned CLIP, such as the folder that tuning writes; null is the plain one."""
    prompts: AnyPath | None = None
    """A file of mask prompts for it, as tuning writes it."""
    ovseg: AnyPath | None = None
    """A file that OVSeg's authors released, for the architecture of the plain CLIP; prompts in it are used."""

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
        _refuse_other_texts(model, plain, place=place)
        if not has_ovseg_prompts(tuned.ovseg):  # a file that was fine-tuned only
            return bare_tower(model.visual.to(device), place=place)
        return _prompted(load_ovseg_prompts(tuned.ovseg, model).to(device), place=place)
    whole = tuned.clip.open_whole() if tuned.clip else plain
    if (whole.size_px, whole.dim) != (plain.size_px, plain.dim):
        raise InputError(
            f"{place}: has input of {whole.size_px} px and embeddings of {whole.dim}, the plain CLIP "
            f"{plain.size_px} px and {plain.dim}; give the one that was tuned from it"
        )
    _refuse_other_texts(whole.model, plain, place=place)
    if tuned.prompts is None:
        return bare_tower(whole.model.visual.to(device), place=place)
    return _prompted(load_prompts(tuned.prompts, whole.model).to(device), place=place)


def _refuse_other_texts(model: Any, plain: WholeClip, *, place: str) -> None:
    """Tuning locks the text side, so an unlike one is that of another CLIP, whose regions plain texts do not name."""
    if model is plain.model:
        return
    given, expected = text_side_sha256(model), text_side_sha256(plain.model)
    if given != expected:
        raise InputError(
            f"{place}: its text side ({given[:12]}) is not that of the plain CLIP `{plain.name}` ({expected[:12]}), "
            "which tuning leaves as it is; give the CLIP that was tuned from it, in float32 or float16"
        )


def bare_tower(tower: Any, *, place: str = "clip") -> Tower:
    """The tower alone, which sees of a mask only how the pixels are filled; `place` names it in messages.

    It raises InputError for an embedding that is not finite or has no direction, of which no class is the nearest.
    """
    return lambda pixels_R3SS, masks_RSS: _unit_vectors(tower_features(tower, pixels_R3SS), place=place)


def _prompted(tower: PromptedTower, *, place: str) -> Tower:
    return lambda pixels_R3SS, masks_RSS: _unit_vectors(tower(pixels_R3SS, masks_RSS), place=place)


def _unit_vectors(features_RE: Tensor, *, place: str) -> Tensor:
    unit_RE = normalize(features_RE.float(), dim=-1)
    # Of infinite features some are 0 after the division, so both are looked at.
    sound_R = features_RE.isfinite().all(-1) & unit_RE.isfinite().all(-1) & unit_RE.any(-1)
    if not bool(sound_R.all()):
        raise InputError(
            f"{place}: the embeddings of {int((~sound_R).sum())} of {len(sound_R)} regions are not finite, or 0; the "
            "weights are damaged or have diverged in training: give others, or tune again at a lower learning rate"
        )
    return unit_RE
