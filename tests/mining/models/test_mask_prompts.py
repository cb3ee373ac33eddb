"""Mask prompts around open_clip's towers: where they act, where they do not, and what they refuse."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest.mock import patch

import open_clip
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskmine.mining.models.mask_prompts import PromptedTower, new_prompts, seen_patches, tower_sha256
from maskmine.mining.models.patch_towers import patch_tower
from maskmine.schemas.errors import InputError

VISION = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
TOWERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "other patches": {"patch_size": 4},
    "higher resolution": {"image_size": 64},
    "not whole patches": {"image_size": 37},
    "average pool": {"pool_type": "avg", "final_ln_after_pool": True},
    "attention pool": {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4},
    "layer scale": {"ls_init_value": 0.1},
    "no norm before": {"no_ln_pre": True, "pos_embed_type": "sin_cos_2d"},
    "custom blocks": {"block_type": "custom", "qk_norm": True},
    "tokens too": {"output_tokens": True},
    "patch dropout": {"patch_dropout": 0.5},
}
# As open_clip describes them; the names are those of timm's real towers, made small.
OF_TIMM: dict[str, dict[str, Any]] = {
    "SigLIP 2": {"timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map", "timm_proj": "none"},
    "PE-Core": {"timm_model_name": "vit_pe_core_base_patch16_224", "timm_pool": "map", "timm_proj": None},
    "EVA-02": {"timm_model_name": "eva02_base_patch16_clip_224", "timm_pool": "token", "timm_proj": None},
    "EVA-02 that projects": {"timm_model_name": "eva02_base_patch16_clip_224", "timm_pool": "avg"},
    "registers": {"timm_model_name": "vit_small_patch14_reg4_dinov2", "timm_pool": "token", "timm_proj": "mlp"},
    "rotations by block": {"timm_model_name": "vit_base_patch16_rope_mixed_224", "timm_pool": "avg"},
    "any size": {"timm_model_name": "test_vit", "timm_pool": "token"},
}
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
ALL = TOWERS | OF_TIMM


def make_clip(*, quick_gelu: bool = False, **vision: Any) -> Any:
    torch.manual_seed(0)
    with patch.object(timm, "create_model", partial(timm.create_model, **SMALL)):
        model = open_clip.CLIP(embed_dim=16, vision_cfg={**VISION, **vision}, text_cfg=TEXT, quick_gelu=quick_gelu)
    for value in model.parameters():  # some begin at 0, where a mistake would not show
        value.data += 0.02 * torch.randn(value.shape)
    return model.eval().requires_grad_(False)


def prompted(model: Any, *, depth: int = 3) -> PromptedTower:
    return PromptedTower(model.visual, new_prompts(model.visual, depth=depth, std=0.5, seed=1))


def pixels(count: int, *, size_px: int = 32) -> Tensor:
    return torch.randn(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(2))


def half_masks(count: int, *, size_px: int = 32) -> Tensor:
    masks_BHW = torch.zeros(count, size_px, size_px, dtype=torch.bool)
    masks_BHW[:, :, : size_px // 2] = True
    return masks_BHW


def bare(model: Any, pixels_B3HW: Tensor) -> Tensor:
    features = model.visual(pixels_B3HW)
    return features[0] if isinstance(features, tuple) else features


@pytest.mark.parametrize("kind", ALL)
def test_without_a_mask_and_with_a_full_one_the_embedding_is_that_of_the_bare_tower_to_the_bit(kind: str) -> None:
    model = make_clip(**ALL[kind])
    (size_px, _), tower = model.visual.image_size, prompted(model)
    shown = pixels(3, size_px=size_px)
    with torch.no_grad():
        expected = bare(model, shown)
        if kind != "attention pool":  # which gives one embedding a query
            assert expected.shape == (3, patch_tower(model.visual).embedding_width)
        assert torch.equal(tower(shown), expected)
        assert torch.equal(tower(shown, torch.ones(3, size_px, size_px)), expected)
        assert not torch.equal(tower(shown, half_masks(3, size_px=size_px)), expected)


def test_it_holds_for_quick_gelu_and_for_towers_that_put_tokens_first() -> None:
    model = make_clip(quick_gelu=True)
    for block in model.visual.transformer.resblocks:
        block.attn.batch_first = False
    model.visual.transformer.batch_first = False
    with torch.no_grad():
        found = prompted(model)(pixels(3), torch.ones(3, 32, 32))
        assert torch.equal(found, model.visual(pixels(3)))


def test_half_precision_holds_it_too() -> None:
    model = make_clip()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prompted(model)(pixels(2), torch.ones(2, 32, 32)), model.visual(pixels(2)))


def test_prompts_stand_where_patches_are_blank_and_nowhere_else() -> None:
    """A naive forward: block by block, patch by patch."""
    model, masks_BHW = make_clip(), half_masks(1)
    masks_BHW[0, 5, 20] = True  # one pixel makes the third patch of the first row count
    visual, tower = model.visual, prompted(model)
    blank = [n for n in range(16) if not masks_BHW[0, n // 4 * 8 : n // 4 * 8 + 8, n % 4 * 8 : n % 4 * 8 + 8].any()]
    assert blank == [3, 6, 7, 10, 11, 14, 15]
    with torch.no_grad():
        patches_DYX = visual.conv1(pixels(1))[0]
        tokens = [visual.class_embedding, *(patches_DYX[:, n // 4, n % 4] for n in range(16))]
        for number, block in enumerate(visual.transformer.resblocks):
            for n in blank:
                tokens[1 + n] = tower.prompts_PND[number, n]
            hidden_1MD = torch.stack(tokens)[None]
            if number == 0:
                hidden_1MD = visual.ln_pre(hidden_1MD + visual.positional_embedding)
            tokens = list(block(hidden_1MD)[0])
        expected = visual.ln_post(tokens[0]) @ visual.proj
        found = tower(pixels(1), masks_BHW)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_class_token_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything blank, a block still reads the class token that the block before wrote."""
    model, read, written = make_clip(), [], []
    for block in model.visual.transformer.resblocks:
        block.register_forward_pre_hook(lambda _, values: read.append(values[0]))
        block.register_forward_hook(lambda _m, _i, value: written.append(value))
    tower = prompted(model)
    with torch.no_grad():
        tower(pixels(2), torch.zeros(2, 32, 32))
    for before, after in zip(written[:-1], read[1:], strict=True):
        assert torch.equal(after[:, 0], before[:, 0])
        assert not torch.equal(after[:, 1:], before[:, 1:])
    for number in (1, 2):
        assert torch.equal(read[number][:, 1:], tower.prompts_PND[number].detach().expand(2, -1, -1))


@pytest.mark.parametrize("kind", ["SigLIP 2", "PE-Core", "EVA-02", "registers"])
def test_in_towers_of_timm_prompts_stand_where_patches_are_blank_and_nowhere_else(kind: str) -> None:
    """A naive forward: patch by patch, with positions, pools and heads written down from the models' descriptions."""
    model, masks_BHW = make_clip(**OF_TIMM[kind]), half_masks(1)
    masks_BHW[0, 5, 20] = True
    trunk, tower = model.visual.trunk, prompted(model)
    rotated = {"rope": trunk.rope.get_embed()} if kind in ("PE-Core", "EVA-02") else {}
    with torch.no_grad():
        patches_YXD = trunk.patch_embed.proj(pixels(1))[0].permute(1, 2, 0)
        tokens = list(patches_YXD.reshape(16, 32))
        first: list[Tensor] = []
        for number, block in enumerate(trunk.blocks):
            for n in (3, 6, 7, 10, 11, 14, 15):
                tokens[len(first) + n] = tower.prompts_PND[number, n]
            if number == 0:
                first += [] if trunk.cls_token is None else [trunk.cls_token[0, 0]]
                first += [] if trunk.reg_token is None else list(trunk.reg_token[0])
                embedded, positions_MD = [*first, *tokens], trunk.pos_embed[0]
                bare = len(embedded) - len(positions_MD)  # registers without a position
                positioned = [*embedded[:bare], *(torch.stack(embedded[bare:]) + positions_MD)]
                tokens = list(trunk.norm_pre(torch.stack(positioned)))
            tokens = list(block(torch.stack(tokens)[None], **rotated)[0])
        normed_1MD = trunk.norm(torch.stack(tokens)[None])
        pooled_1D = trunk.attn_pool(normed_1MD) if trunk.attn_pool is not None else normed_1MD[:, 0]
        expected = model.visual.head(trunk.head(pooled_1D))[0]
        found = tower(pixels(1), masks_BHW)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert len(first) == {"SigLIP 2": 0, "PE-Core": 1, "EVA-02": 1, "registers": 5}[kind]


@pytest.mark.parametrize("depth", [1, 2])
def test_blocks_beyond_the_depth_are_left_alone(depth: int) -> None:
    model, read, written = make_clip(), [], []
    for block in model.visual.transformer.resblocks:
        block.register_forward_pre_hook(lambda _, values: read.append(values[0]))
        block.register_forward_hook(lambda _m, _i, value: written.append(value))
    with torch.no_grad():
        prompted(model, depth=depth)(pixels(2), torch.zeros(2, 32, 32))
    same = [torch.equal(after, before) for before, after in zip(written[:-1], read[1:], strict=True)]
    assert same == [number >= depth for number in (1, 2)]


def test_gradients_reach_prompts_at_blank_patches_and_nothing_else() -> None:
    model, tower = make_clip(), prompted(make_clip())
    tower(pixels(2), half_masks(2)).square().sum().backward()
    assert {name for name, value in tower.named_parameters() if value.grad is not None} == {"prompts_PND"}
    grads_PND = tower.prompts_PND.grad
    assert grads_PND is not None
    blank_N = ~seen_patches(half_masks(1), patch_px=(8, 8))[0]
    assert bool((grads_PND[:, blank_N].abs().sum(2) > 0).all())
    assert bool((grads_PND[:, ~blank_N] == 0).all())
    assert tower_sha256(tower.tower) == tower_sha256(model.visual)


@pytest.mark.parametrize("kind", ["plain", "SigLIP 2", "EVA-02"])
def test_checkpointed_blocks_give_the_same_gradient(kind: str) -> None:
    grads = []
    for checkpointing in (False, True):
        model = make_clip(**ALL[kind])
        model.visual.set_grad_checkpointing(checkpointing)
        tower = prompted(model)
        tower(pixels(2), half_masks(2)).square().sum().backward()
        grads.append(tower.prompts_PND.grad)
    assert grads[0] is not None
    torch.testing.assert_close(*grads, rtol=0, atol=0)


@given(data=st.data(), patch=st.sampled_from([(1, 1), (2, 2), (3, 2), (4, 4)]))
@settings(max_examples=50)
def test_a_patch_is_seen_when_any_of_its_pixels_is(data: st.DataObject, patch: tuple[int, int]) -> None:
    high, wide = patch
    height, width = (data.draw(st.integers(side, 9)) for side in patch)
    rows = st.lists(st.booleans(), min_size=height * width, max_size=height * width)
    mask_HW = torch.tensor(data.draw(rows)).view(height, width)
    naive = []
    for y in range(0, height - high + 1, high):
        for x in range(0, width - wide + 1, wide):
            naive.append(any(bool(mask_HW[y + j, x + i]) for j in range(high) for i in range(wide)))
    assert seen_patches(mask_HW[None], patch_px=patch)[0].tolist() == naive


def test_a_region_is_embedded_alike_alone_and_among_others() -> None:
    tower, shown, masks_BHW = prompted(make_clip()), pixels(5), half_masks(5)
    masks_BHW[3] = False
    with torch.no_grad():
        together = tower(shown, masks_BHW)
        alone = torch.cat([tower(shown[i : i + 1], masks_BHW[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kind", "width"), [("plain", 16), ("SigLIP 2", 32), ("registers", 16)])
def test_no_region_is_no_embedding(kind: str, width: int) -> None:
    tower = prompted(make_clip(**ALL[kind]))
    assert tower(pixels(0), half_masks(0)).shape == tower(pixels(0)).shape == (0, width)


def test_prompts_follow_from_their_seed() -> None:
    visual = make_clip().visual
    first, again, other = (new_prompts(visual, depth=2, std=0.02, seed=seed) for seed in (5, 5, 6))
    assert first.shape == (2, 16, 32)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert float(first.std()) == pytest.approx(0.02, rel=0.1)


def test_a_tower_without_patches_is_refused() -> None:
    resnet = {"layers": (1, 1, 1, 1), "width": 16, "image_size": 32, "patch_size": 16}
    model = open_clip.CLIP(embed_dim=16, vision_cfg=resnet, text_cfg=TEXT)
    with pytest.raises(InputError, match=r"ModifiedResNet has no .*; use a ViT"):
        new_prompts(model.visual, depth=1, std=0.02, seed=0)
    other = open_clip.CLIP(
        embed_dim=16, vision_cfg={"timm_model_name": "test_convnext", "image_size": 32}, text_cfg=TEXT
    )
    with pytest.raises(InputError, match=r"ConvNeXt of timm is none; use a ViT"):
        new_prompts(other.visual, depth=1, std=0.02, seed=0)


def test_more_depth_than_layers_is_refused() -> None:
    with pytest.raises(InputError, match=r"4 for an image tower of 3 layers; choose 1 to 3"):
        new_prompts(make_clip().visual, depth=4, std=0.02, seed=0)


def test_prompts_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"for 64 patches of width 32, the image tower has 16 of width 32"):
        PromptedTower(make_clip().visual, torch.zeros(2, 64, 32))


def test_images_and_masks_of_another_size_are_refused() -> None:
    tower = prompted(make_clip())
    with pytest.raises(InputError, match="images of 64×64 pixels for a tower that takes 32×32"):
        tower(pixels(1, size_px=64))
    with pytest.raises(InputError, match=r"masks of shape \(2, 32, 32\) beside 1 images"):
        tower(pixels(1), half_masks(2))


def test_the_hash_of_a_tower_is_that_of_its_weights_in_half_precision_and_its_activation() -> None:
    model = make_clip()
    before = tower_sha256(model.visual)
    assert tower_sha256(make_clip().visual.half()) == before
    assert tower_sha256(make_clip(quick_gelu=True).visual) != before  # the same weights
    model.visual.ln_post.bias.data[3] += 1
    assert tower_sha256(model.visual) != before
