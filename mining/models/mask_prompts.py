"""Mask prompts: learned inputs of a CLIP image tower for the patches that a mask leaves blank (OVSeg, section 3.3).

The tower is any vision transformer of open_clip, its own or one of timm, used as it is (`patch_towers.py`): between
its parts blank patches are replaced by prompts.

Shapes: B regions, H and W height and width in pixels, N patches, D width of the tower, P prompt depth, E width of the
embedding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from maskmine.mining.models.patch_towers import PatchTower, patch_tower, patches_of
from maskmine.schemas.errors import InputError


class PromptedTower(nn.Module):
    """An image tower with one parameter more: `prompts_PND`, one prompt for each depth and patch.

    Patches without a pixel of the mask are replaced: prompt 0 replaces patch embeddings, before further tokens and
    positions are added; prompt d replaces outputs of block d (counted from 1). A class token or register never is.
    """

    def __init__(self, tower: Any, prompts_PND: Tensor) -> None:
        """Raises InputError when the tower has no patches, or prompts of another shape."""
        super().__init__()
        depth, *shape = prompts_PND.shape
        if shape != list(prompt_shape(tower, depth=depth)[1:]):
            steps = patch_tower(tower)
            raise InputError(
                f"prompts: these are for {shape[0]} patches of width {shape[-1]}, the image tower has "
                f"{patches_of(steps)} of width {steps.width}; load the CLIP that they were tuned for"
            )
        self.tower = tower
        self.prompts_PND = nn.Parameter(prompts_PND)

    def forward(self, pixels_B3HW: Tensor, masks_BHW: Tensor | None = None) -> Tensor:
        """The embeddings of normalised pixels, [B, E], not yet of unit length.

        `masks_BHW` is true (or not 0) in the foreground. Without it, or where it is true everywhere, the result is the
        bare tower's to the bit. Raises InputError when sizes are not those of the tower.
        """
        steps = patch_tower(self.tower)
        _check_sizes(steps, pixels_B3HW, masks_BHW)
        if not len(pixels_B3HW):  # open_clip cannot take an empty batch
            return pixels_B3HW.new_empty(0, steps.embedding_width)
        if masks_BHW is None:
            return tower_features(self.tower, pixels_B3HW)
        seen_BN1 = seen_patches(masks_BHW, patch_px=steps.patch_px)[:, :, None]
        tokens_BMD = steps.tokens(self._with_prompt(steps.patches(pixels_B3HW), seen_BN1, depth=0))
        for number in range(steps.layers):
            if 0 < number < len(self.prompts_PND):
                patches_BND = self._with_prompt(tokens_BMD[:, steps.prefix :], seen_BN1, depth=number)
                tokens_BMD = torch.cat([tokens_BMD[:, : steps.prefix], patches_BND], dim=1)
            tokens_BMD = steps.block(number, tokens_BMD)
        return steps.embed(tokens_BMD)

    def _with_prompt(self, patches_BND: Tensor, seen_BN1: Tensor, *, depth: int) -> Tensor:
        return torch.where(seen_BN1, patches_BND, self.prompts_PND[depth].to(patches_BND.dtype))


def seen_patches(masks_BHW: Tensor, *, patch_px: tuple[int, int]) -> Tensor:
    """Which patches have any pixel of the mask, boolean [B, N], row by row; pixels beyond whole patches count not."""
    (rows, high_px), (columns, wide_px) = (
        (length // patch, patch) for length, patch in zip(masks_BHW.shape[1:], patch_px, strict=True)
    )
    whole_BHW = masks_BHW[:, : rows * high_px, : columns * wide_px].to(torch.bool)
    parted = whole_BHW.reshape(len(masks_BHW), rows, high_px, columns, wide_px)
    return parted.any(dim=4).any(dim=2).flatten(1)


def new_prompts(tower: Any, *, depth: int, std: float, seed: int) -> Tensor:
    """Prompts to begin with, float32 [P, N, D]: normal around 0. Raises InputError as `prompt_shape` does."""
    generator = torch.Generator().manual_seed(seed)
    return std * torch.randn(prompt_shape(tower, depth=depth), generator=generator)


def prompt_shape(tower: Any, *, depth: int) -> tuple[int, int, int]:
    """P, N and D of prompts for a tower. Raises InputError when it has no patches, or fewer blocks than `depth`."""
    steps = patch_tower(tower)
    if not 1 <= depth <= steps.layers:
        raise InputError(
            f"prompts.depth: {depth} for an image tower of {steps.layers} layers; choose 1 to {steps.layers}"
        )
    return depth, patches_of(steps), steps.width


def image_tower(model: Any) -> Any:
    """The image tower of a CLIP of open_clip; a tower is returned as it is."""
    return getattr(model, "visual", model)


def tower_features(tower: Any, pixels_B3HW: Tensor) -> Tensor:
    """The embeddings [B, E] of a bare tower, not yet of unit length; some models return tokens beside them."""
    output = tower(pixels_B3HW)
    features_BE: Tensor = output[0] if isinstance(output, tuple) else output
    return features_BE


def tower_sha256(tower: Any) -> str:
    """The hash of a tower's weights and activation, the same in full and in half precision (float16).

    It does not depend on the file that the weights came from. The activation counts, because OpenAI's weights load
    into towers with either, and only `-quickgelu` ones give what they should.
    """
    return _sha256_of(tower.state_dict(), tower.named_modules())


def text_side_sha256(model: Any) -> str:
    """`tower_sha256` of all of an open_clip model but its image tower and the scale of its logits."""
    tensors = {name: value for name, value in model.state_dict().items() if _is_text(name)}
    return _sha256_of(tensors, ((name, part) for name, part in model.named_modules() if _is_text(name)))


def _is_text(name: str) -> bool:
    return name.partition(".")[0] not in ("visual", "logit_scale", "logit_bias")


def _sha256_of(tensors: Mapping[str, Tensor], modules: Iterable[tuple[str, Any]]) -> str:
    activations = sorted({type(part).__name__ for _, part in modules if "GELU" in type(part).__name__})
    weights = weights_sha256_of(tensors, dtype=torch.float16)
    return hashlib.sha256(" ".join([weights, *activations]).encode()).hexdigest()


def weights_sha256_of(tensors: Mapping[str, Tensor], *, dtype: torch.dtype | None = None) -> str:
    """The hash of names, shapes and values, which are rounded to `dtype` first where one is given."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        value = value.detach().cpu()
        value = value.to(dtype) if dtype is not None and value.is_floating_point() else value
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_sizes(steps: PatchTower, pixels_B3HW: Tensor, masks_BHW: Tensor | None) -> None:
    given, expected = tuple(pixels_B3HW.shape[2:]), steps.image_px
    if given != expected:
        raise InputError(
            f"prompts: images of {_size(given)} pixels for a tower that takes {_size(expected)}; resize them"
        )
    if masks_BHW is not None and masks_BHW.shape != (len(pixels_B3HW), *given):
        raise InputError(
            f"prompts: masks of shape {tuple(masks_BHW.shape)} beside {len(pixels_B3HW)} images of "
            f"{_size(given)} pixels; give one mask an image, of its size"
        )


def _size(size_px: tuple[int, ...]) -> str:
    return "×".join(map(str, size_px))
