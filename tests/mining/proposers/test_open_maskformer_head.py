"""The open-vocabulary MaskFormer before training: its head in CLIP's text space, its losses, its presets."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from maskmine.mining.proposers.text_head import TextHead, class_logits, class_probabilities, layer_answers, under_masks
from maskmine.pipelines.settings.mining import load_settings
from maskmine.tuning.open_vocabulary.initial_model import from_backbone, new_losses
from maskmine.tuning.open_vocabulary.settings import ProposalTraining
from maskmine.tuning.open_vocabulary.step import targets_of
from maskmine.tuning.segmentation.confusion import IGNORE
from maskmine.tuning.training.optim import warmup_poly
from tests.support.models import SWIN, units
from tests.support.paths import ROOT


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 999))
def test_classes_are_a_softmax_with_no_object_whose_share_is_left_out(queries: int, classes: int, seed: int) -> None:
    queries_QD, classes_KD, nothing_D = units(queries, 8, seed=seed), units(classes, 8, seed=seed + 1), units(8, seed=7)
    found = class_probabilities(queries_QD, classes_KD, nothing_D, logit_scale=10.0)
    weights = (10 * queries_QD @ torch.cat([classes_KD, nothing_D[None]]).T).exp()
    torch.testing.assert_close(found, (weights / weights.sum(1, keepdim=True))[:, :-1])
    assert (found.sum(1) < 1).all()


@given(st.permutations(range(5)))
def test_the_order_of_the_classes_does_not_matter(order: list[int]) -> None:
    queries_QD, classes_KD, nothing_D = units(4, 8), units(5, 8, seed=1), units(8, seed=2)
    found = class_probabilities(queries_QD, classes_KD, nothing_D, logit_scale=100.0)
    permuted = class_probabilities(queries_QD, classes_KD[order], nothing_D, logit_scale=100.0)
    torch.testing.assert_close(permuted, found[:, order])


def test_no_object_begins_as_noise_of_length_one_and_counts_by_its_direction() -> None:
    torch.manual_seed(0)
    head = TextHead(units(3, 512), width=4, pixels=0, hidden=8, layers=2)
    assert head.no_object_D.std().item() == pytest.approx(512**-0.5, rel=0.1)
    queries_QD = head(torch.randn(2, 5, 4))
    assert queries_QD.shape == (2, 5, 512)
    torch.testing.assert_close(queries_QD.norm(dim=-1), torch.ones(2, 5))
    logits = [
        class_logits(queries_QD, head.classes_KD, scale * head.no_object_D, logit_scale=100.0) for scale in (1, 9)
    ]
    assert logits[0].shape == (2, 5, 4)
    torch.testing.assert_close(*logits)


def test_the_head_has_the_layers_that_are_asked_for() -> None:
    widths = [
        [
            tuple(value.shape)
            for name, value in TextHead(units(3, 6), width=4, pixels=0, hidden=8, layers=layers).named_parameters()
        ]
        for layers in (1, 2, 3)
    ]
    assert [shapes[1::2] for shapes in widths] == [[(6, 4)], [(8, 4), (6, 8)], [(8, 4), (8, 8), (6, 8)]]


def test_losses_of_a_case_by_hand() -> None:
    """Two queries, one class that is shown, masks of two pixels; the second query fits and is matched."""
    zero, sure = 0.0, 3.0
    logits_BQL = torch.tensor([[[zero, zero], [sure, zero]]])
    masks_BQhw = torch.tensor([[[[-2.0, 2.0]], [[2.0, -2.0]]]])
    losses = new_losses(classes=1, device=torch.device("cpu"))(
        [(logits_BQL, masks_BQhw)], [torch.tensor([[[1.0, 0.0]]])], [torch.tensor([0])]
    )
    hit, soft = 1 / (1 + math.exp(-2)), math.log1p(math.exp(-2))
    right, silent = math.log1p(math.exp(-sure)), math.log(2)
    assert losses["class"].item() == pytest.approx((right + 0.1 * silent) / 1.1, rel=1e-4)
    assert losses["mask"].item() == pytest.approx(20 * (0.25 + 0.75) / 2 * (1 - hit) ** 2 * soft, rel=1e-4)
    assert losses["dice"].item() == pytest.approx(1 - (2 * hit + 1) / (hit + (1 - hit) + 1 + 1), rel=1e-4)


def test_under_a_mask_lies_the_mean_of_each_map_there() -> None:
    masks = torch.full((1, 3, 4, 4), -20.0)
    masks[0, 0, :, :2] = 20.0
    masks[0, 1, 0, 0] = 20.0
    fine, coarse = torch.arange(16.0).view(1, 1, 4, 4), torch.tensor([[[[1.0, 2], [3, 4]], [[0, 0], [8, 8]]]])
    found = under_masks(masks, [fine, coarse])[0]
    torch.testing.assert_close(found, torch.tensor([[6.5, 2, 4], [0, 1, 0], [0, 0, 0]]), rtol=0, atol=1e-4)


def test_a_target_is_a_class_and_not_an_object() -> None:
    labels = torch.tensor([[[2, IGNORE, 2], [0, IGNORE, 2]]], dtype=torch.int32)
    ((masks_CSS,), (classes_C,)) = targets_of(labels)
    assert classes_C.tolist() == [0, 2]
    assert masks_CSS.tolist() == [[[0, 0, 0], [1, 0, 0]], [[1, 0, 1], [0, 0, 1]]]


@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_a_new_maskformer_begins_with_all_of_a_backbone(kind: str, tmp_path: Path) -> None:
    if kind == "swin":
        donor: Any = transformers.SwinModel(
            transformers.SwinConfig(**{k: v for k, v in SWIN.items() if k != "model_type"})
        )
    else:
        shape = {
            "embedding_size": 8,
            "hidden_sizes": [8, 8, 12, 16],
            "depths": [1, 1, 1, 1],
            "layer_type": "bottleneck",
        }
        donor = transformers.ResNetModel(transformers.ResNetConfig(**shape))
    donor.save_pretrained(tmp_path / "donor")
    decoder = {"d_model": 32, "num_queries": 5, "decoder_layers": 1, "decoder_attention_heads": 2, "encoder_layers": 0}
    body = from_backbone(str(tmp_path / "donor"), decoder=decoder, short_side_px=64, long_side_px=128)
    encoder = body.network.model.pixel_level_module.encoder
    own = {bytes(value.detach().numpy()) for value in encoder.parameters()}
    assert {bytes(value.detach().numpy()) for name, value in donor.named_parameters() if "layernorm" not in name} <= own
    head = TextHead(units(3, 8), width=32, pixels=sum(encoder.channels), hidden=8, layers=2)
    ((queries_BQD, masks_BQhw),) = layer_answers(body.network, head, torch.randn(1, 3, 64, 96))
    assert (queries_BQD.shape, masks_BQhw.shape) == ((1, 5, 8), (1, 5, 16, 24))


def test_the_rate_rises_in_a_line_and_falls_as_a_power() -> None:
    schedule = partial(warmup_poly, steps=1000, power=0.9, warmup_steps=100, warmup_factor=0.01)
    found = {step: schedule(step) for step in (0, 50, 100, 500, 999)}
    assert found[0] == pytest.approx(0.01)
    assert found[50] == pytest.approx((0.01 * 0.5 + 0.5) * 0.95**0.9)
    assert found[100] == pytest.approx(0.9**0.9)
    assert found[500] == pytest.approx(0.5**0.9)
    assert found[999] == pytest.approx(0.001**0.9)


@pytest.mark.parametrize(("name", "rate", "crop_px", "clip"), [("r101c", 2e-4, 512, "16"), ("swin-b", 6e-5, 640, "14")])
def test_the_presets_are_those_of_the_paper(name: str, rate: float, crop_px: int, clip: str) -> None:
    settings = load_settings(ProposalTraining, str(ROOT / "configs" / f"train-proposals-{name}.yaml"))
    optimizer = settings.optimizer
    assert (optimizer.learning_rate, settings.view.crop_px, settings.clip.model[-2:]) == (rate, crop_px, clip)
    assert (optimizer.steps, optimizer.batch_size, optimizer.warmup_steps, optimizer.warmup_factor) == (
        *(120_000, 32, 1500),
        1e-6,
    )
    assert (optimizer.max_gradient_norm, settings.maps.classes, settings.head.hidden) == (0.01, 171, 1024)
