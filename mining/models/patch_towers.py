"""Vision transformers as mask prompts go through them: patches, tokens, one block after another, an embedding.

Each is open_clip's own module, used as it is; what stands here only calls its parts in the order of its own forward
pass, so that the result is the same to the bit. Patch dropout is left out: a mask already says which patches count.

Shapes: B images, H and W their height and width in pixels, N patches, M tokens, D width of the tower, E width of the
embedding. The first tokens are no patches: a class token, or registers, or none.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from maskmine.schemas.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

# Without one of these a module is not open_clip's own vision transformer.
_OWN = ("conv1", "class_embedding", "positional_embedding", "ln_pre", "transformer", "patch_size", "grid_size")
# The towers of timm whose forward passes are known; subclasses change them.
_OF_TIMM = ("VisionTransformer", "Eva")


class PatchTower(Protocol):
    """A vision transformer in the steps of its forward pass.

    `image_px`, `patch_px` and `grid` are heights and widths: in pixels, and in patches; `prefix` tokens stand before
    the patches, and `embedding_width` is E.
    """

    image_px: tuple[int, int]
    patch_px: tuple[int, int]
    grid: tuple[int, int]
    width: int
    embedding_width: int
    layers: int
    prefix: int

    def patches(self, pixels_B3HW: Tensor) -> Tensor:
        """The embeddings of the patches without positions, [B, N, D]."""

    def tokens(self, patches_BND: Tensor) -> Tensor:
        """What the first block reads, [B, M, D]: with positions and further tokens, normed where the tower does so."""

    def block(self, number: int, tokens_BMD: Tensor) -> Tensor:
        """What one block makes of its tokens; counted from 0."""

    def embed(self, tokens_BMD: Tensor) -> Tensor:
        """The embeddings after the last block, [B, E], not of unit length."""


class OwnTower:
    """`open_clip.transformer.VisionTransformer`."""

    prefix = 1

    def __init__(self, tower: Any) -> None:
        self._tower = tower
        self.image_px, self.patch_px, self.grid = tuple(tower.image_size), tuple(tower.patch_size), tower.grid_size
        self.width, self.layers = len(tower.class_embedding), len(tower.transformer.resblocks)
        self.embedding_width = int(tower.ln_post.normalized_shape[0] if tower.proj is None else tower.proj.shape[1])

    def patches(self, pixels_B3HW: Tensor) -> Tensor:
        """See `PatchTower`."""
        patches_BND: Tensor = self._tower.conv1(pixels_B3HW).flatten(2).permute(0, 2, 1)
        return patches_BND

    def tokens(self, patches_BND: Tensor) -> Tensor:
        """See `PatchTower`."""
        import torch

        class_11D = self._tower.class_embedding.to(patches_BND.dtype).view(1, 1, -1)
        tokens_BMD = torch.cat([class_11D.expand(len(patches_BND), -1, -1), patches_BND], dim=1)
        positions_MD = self._tower.positional_embedding.to(tokens_BMD.dtype)
        positioned_BMD: Tensor = self._tower.ln_pre(tokens_BMD + positions_MD)
        return positioned_BMD

    def block(self, number: int, tokens_BMD: Tensor) -> Tensor:
        """See `PatchTower`."""
        transformer = self._tower.transformer
        values = tokens_BMD if transformer.batch_first else tokens_BMD.transpose(0, 1)
        values = _called(transformer.resblocks[number], values, saving=transformer.grad_checkpointing)
        return values if transformer.batch_first else values.transpose(0, 1)

    def embed(self, tokens_BMD: Tensor) -> Tensor:
        """See `PatchTower`."""
        pooled_BE, _ = self._tower._pool(tokens_BMD)
        embedded_BE: Tensor = pooled_BE if self._tower.proj is None else pooled_BE @ self._tower.proj
        return embedded_BE


class TimmTower:
    """`open_clip.timm_model.TimmModel` around a vision transformer of timm: SigLIP, SigLIP 2, PE-Core, EVA-02.

    With or without a class token, with positions that are added or that rotate, pooled by a token, by their mean or by
    attention.
    """

    def __init__(self, tower: Any) -> None:
        """Raises InputError for a tower that drops patches in a place where that cannot be left out."""
        self._tower, self._trunk = tower, tower.trunk
        embedding = self._trunk.patch_embed
        self.image_px = tuple(embedding.img_size or tower.image_size)
        self.patch_px, self.grid = tuple(embedding.patch_size), tuple(embedding.grid_size)
        self.width, self.layers = self._trunk.embed_dim, len(self._trunk.blocks)
        self.prefix, self.embedding_width = self._trunk.num_prefix_tokens, _out_features(tower)
        self._rotates = type(self._trunk).__name__ == "Eva"
        self._rope: Any = None
        if self._rotates and self._trunk.patch_drop is not None:
            raise InputError("clip.model: its tower drops patches, and mask prompts need all of them; set no dropout")

    def patches(self, pixels_B3HW: Tensor) -> Tensor:
        """See `PatchTower`."""
        patches: Tensor = self._trunk.patch_embed(pixels_B3HW)
        return patches.flatten(1, -2)  # of a tower for any size they stand in rows

    def tokens(self, patches_BND: Tensor) -> Tensor:
        """See `PatchTower`."""
        patches = patches_BND.reshape(len(patches_BND), *self.grid, -1) if self._trunk.dynamic_img_size else patches_BND
        positioned = self._trunk._pos_embed(patches)
        if self._rotates:
            positioned, self._rope = positioned
        tokens_BMD: Tensor = self._trunk.norm_pre(positioned)
        return tokens_BMD

    def block(self, number: int, tokens_BMD: Tensor) -> Tensor:
        """See `PatchTower`."""
        block = self._trunk.blocks[number]
        if self._rotates:
            mixed = self._trunk.rope_mixed and self._rope is not None
            block = partial(block, rope=self._rope[number] if mixed else self._rope)
        return _called(block, tokens_BMD, saving=self._trunk.grad_checkpointing)

    def embed(self, tokens_BMD: Tensor) -> Tensor:
        """See `PatchTower`."""
        embedded_BE: Tensor = self._tower.head(self._trunk.forward_head(self._trunk.norm(tokens_BMD)))
        return embedded_BE


def patch_tower(tower: Any) -> PatchTower:
    """The steps of an image tower of open_clip. Raises InputError when it is none that is made of patches."""
    trunk = getattr(tower, "trunk", None)
    if trunk is not None and type(trunk).__module__.startswith("timm.") and type(trunk).__name__ in _OF_TIMM:
        return TimmTower(tower)
    missing = [name for name in _OWN if not hasattr(tower, name)]
    if not missing:
        return OwnTower(tower)
    inner = type(tower if trunk is None else trunk).__name__
    lack = f" has no {missing[0]}" if trunk is None else " of timm is none"
    raise InputError(
        f"clip.model: mask prompts need a vision transformer, and {inner}{lack}; use a ViT such as ViT-B-16 or "
        "ViT-B-16-SigLIP2"
    )


def patches_of(tower: PatchTower) -> int:
    """Number of patches."""
    return math.prod(tower.grid)


def _out_features(tower: Any) -> int:
    """E of a tower of timm: its own head, or the one that open_clip puts after it, or neither."""
    ends = [getattr(tower.head, "proj", None), getattr(getattr(tower.head, "mlp", None), "fc2", None), tower.trunk.head]
    widths = [int(end.out_features) for end in ends if hasattr(end, "out_features")]
    return widths[0] if widths else int(tower.trunk.num_features)


def _called(block: Any, tokens: Tensor, *, saving: bool) -> Tensor:
    """A block's answer; where the tower saves memory, its inner values are made again for the gradient."""
    import torch
    from torch.utils.checkpoint import checkpoint

    saves = saving and torch.is_grad_enabled()
    answer: Tensor = checkpoint(block, tokens, use_reentrant=False) if saves else block(tokens)
    return answer
