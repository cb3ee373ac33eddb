"""EoMT, tiny and with random weights, by the path that real checkpoints take: its square, and what of it is padding."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.models.eomt.modeling_eomt import EomtForUniversalSegmentationOutput

from maskmine.mining.proposers.eomt import Eomt, _load, without_padding
from maskmine.mining.proposers.maskformer import MaskFormer
from maskmine.mining.proposers.proposals import LoadedImage, Proposals
from maskmine.mining.proposers.queries import read_queries
from maskmine.mining.proposers.sam import Sam
from maskmine.schemas.errors import InputError
from tests.support.models import SIZE, network
from tests.support.tiny.proposers import SIDE_PX, eomt_network, save_eomt

KINDS = ("eomt", "eomt_dinov3")
CLASSES = {"eomt": "EomtForUniversalSegmentation", "eomt_dinov3": "EomtDinov3ForUniversalSegmentation"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: save_eomt(tmp_path_factory.mktemp(kind), kind=kind) for kind in KINDS}


@pytest.fixture
def copied(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoints["eomt"], tmp_path / "copied"))


def image(height_px: int, width_px: int, *, seed: int = 1) -> LoadedImage:
    numbers = torch.Generator().manual_seed(seed)
    return LoadedImage("0", torch.randint(0, 256, (3, height_px, width_px), dtype=torch.uint8, generator=numbers))


def settings_of(checkpoint: Path | str, **changes: Any) -> Eomt:
    return Eomt.model_validate({"kind": "eomt", "checkpoint": str(checkpoint), **changes})


def proposed(checkpoint: Path, shown: LoadedImage, **changes: Any) -> Proposals:
    (answer,) = settings_of(checkpoint, **changes).open(device="cpu")([shown], min_score=0.0)
    assert isinstance(answer, Proposals)
    return answer


# --- the padding ------------------------------------------------------------------------------------------------------


@given(st.integers(1, 64), st.integers(1, 64))
def test_a_half_of_the_picture_is_its_half_wherever_the_padding_begins(height_px: int, width_px: int) -> None:
    """The grid has a cell for 4 × 4 pixels, and a picture may end inside a cell."""
    x_w = (torch.arange(16) + 0.5) * 4  # pixels of the square in which the middles of the cells lie
    logits_hw = (width_px / 2 - x_w).expand(16, 16)
    cut_hw = without_padding(logits_hw[None, None], shown=(height_px / 64, width_px / 64))[0, 0]
    rows, columns = -(-height_px // 4), -(-width_px // 4)
    assert cut_hw.shape == (rows, columns)
    expected_w = width_px / 2 - (torch.arange(columns) + 0.5) * width_px / columns
    inside_w = (torch.arange(columns) + 0.5) * width_px / columns >= 2  # further out nothing lies to interpolate with
    assert torch.allclose(cut_hw[:, inside_w], expected_w[inside_w].expand(rows, -1), atol=1e-3)


def test_a_square_without_padding_stays_as_it_is_and_infinite_logits_are_sure() -> None:
    logits_1Qhw = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(without_padding(logits_1Qhw, shown=(1.0, 1.0)), logits_1Qhw, atol=1e-5)
    logits_1Qhw[0, 0, 2, 2], logits_1Qhw[0, 1, 2, 2] = float("inf"), float("nan")
    cut_1Qhw = without_padding(logits_1Qhw, shown=(0.9, 0.9))
    assert bool(cut_1Qhw[0, 0].isfinite().all())
    assert bool(cut_1Qhw[0, 1].isnan().any())


@pytest.mark.parametrize(("height_px", "width_px"), [(427, 640), (640, 427), (500, 333), (1200, 101), (64, 64)])
def test_masks_and_scores_are_those_of_transformers_own_post_processing(height_px: int, width_px: int) -> None:
    """It resizes logits to the square, cuts, and resizes again, so that outlines may lie a pixel elsewhere."""
    side = {"shortest_edge": 640, "longest_edge": 640}
    processor = transformers.EomtImageProcessor(size=side, do_pad=True)
    shown_px = get_size_with_aspect_ratio((height_px, width_px), 640, 640)
    y_h1, x_1w = ((torch.arange(160) + 0.5)[:, None] * 4, (torch.arange(160) + 0.5)[None] * 4)
    middle_y, middle_x = shown_px[0] * 0.6, shown_px[1] * 0.45
    masks_1Qhw = (0.35 * min(shown_px) - ((y_h1 - middle_y) ** 2 + (x_1w - middle_x) ** 2).sqrt())[None, None] / 8
    classes_1QK = torch.tensor([[[9.0, 0.0, 5.0]]])
    outputs = EomtForUniversalSegmentationOutput(class_queries_logits=classes_1QK, masks_queries_logits=masks_1Qhw)
    (theirs,) = processor.post_process_instance_segmentation(outputs, [(height_px, width_px)], threshold=0.0)
    shown = (shown_px[0] / 640, shown_px[1] / 640)
    ours = read_queries(
        classes_1QK[0],
        without_padding(masks_1Qhw, shown=shown)[0],
        labels=("cat", "sky"),
        size_px=(height_px, width_px),
        mask_threshold=0.5,
        max_proposals=9,
        min_score=0.0,
    )
    theirs_HW = theirs["segmentation"] == 0
    apart = float((ours.masks_NHW[0] != theirs_HW).sum() / theirs_HW.sum())
    assert apart < 0.02
    (segment,) = theirs["segments_info"]
    assert float(ours.scores_N[0]) == pytest.approx(segment["score"], abs=0.01)


@pytest.mark.parametrize("size_px", [(48, 72), (72, 48), (64, 64), (100, 31)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_network_is_shown_what_transformers_own_processor_makes_and_answers_alike(
    checkpoints: dict[str, Path], kind: str, size_px: tuple[int, int]
) -> None:
    shown = image(*size_px)
    processor = transformers.EomtImageProcessor.from_pretrained(checkpoints[kind])
    model = getattr(transformers, CLASSES[kind]).from_pretrained(checkpoints[kind])
    with torch.inference_mode():
        prepared = processor(images=[shown.rgb_3HW], return_tensors="pt", input_data_format="channels_first")
        outputs = model(pixel_values=prepared["pixel_values"])
    predict, labels = _load(settings_of(checkpoints[kind]), device=torch.device("cpu"))
    classes_1QK, masks_1Qhw = predict([shown.rgb_3HW])
    height_px, width_px = get_size_with_aspect_ratio(size_px, SIDE_PX, SIDE_PX)
    assert torch.equal(classes_1QK, outputs.class_queries_logits)
    expected = without_padding(outputs.masks_queries_logits, shown=(height_px / SIDE_PX, width_px / SIDE_PX))
    assert torch.equal(masks_1Qhw, expected)
    assert labels == ("cat", "sky", None)


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_batch_of_one_size_neighbours_change_rounding_only(checkpoints: dict[str, Path], kind: str) -> None:
    predict, _ = _load(settings_of(checkpoints[kind]), device=torch.device("cpu"))
    pixels = [image(48, 72, seed=seed).rgb_3HW for seed in range(3)]
    for together_B, alone in zip(predict(pixels), predict(pixels[:1]), strict=True):
        assert torch.allclose(together_B[0], alone[0], atol=1e-4)


def test_a_checkpoint_for_semantic_segmentation_sees_the_whole_picture_too(
    checkpoints: dict[str, Path], copied: Path
) -> None:
    side = {"shortest_edge": SIDE_PX, "longest_edge": None}
    transformers.EomtImageProcessor(size=side, do_split_image=True, do_pad=False).save_pretrained(copied)
    expected, found = proposed(checkpoints["eomt"], image(48, 140)), proposed(copied, image(48, 140))
    assert torch.equal(found.masks_NHW, expected.masks_NHW)
    assert torch.equal(found.scores_N, expected.scores_N)


# --- a checkpoint -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_lower_precision_gives_nearly_the_same_scores(checkpoints: dict[str, Path], kind: str, precision: str) -> None:
    exact, rounded = (proposed(checkpoints[kind], image(48, 72), precision=p) for p in ("float32", precision))
    assert rounded.scores_N.dtype == torch.float32
    assert float((exact.scores_N - rounded.scores_N).abs().mean()) < 0.1
    assert not torch.equal(exact.scores_N, rounded.scores_N)


def test_a_training_that_was_not_finished_throws_no_dice(copied: Path) -> None:
    unfinished = eomt_network()
    unfinished.attn_mask_probs.fill_(0.4)
    unfinished.save_pretrained(copied)
    first, second = proposed(copied, image(48, 72)), proposed(copied, image(48, 72))
    assert torch.equal(first.scores_N, second.scores_N)


def test_answers_that_are_no_numbers_stop_the_run(copied: Path) -> None:
    broken = eomt_network()
    torch.nn.init.constant_(broken.mask_head.fc3.bias, float("nan"))
    broken.save_pretrained(copied)
    with pytest.raises(InputError, match=r"proposals\.precision: .* not finite"):
        proposed(copied, image(48, 72))


def test_a_checkpoint_of_another_kind_is_refused_with_the_kind_that_takes_it(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    network("mask2former").save_pretrained(tmp_path)
    transformers.Mask2FormerImageProcessor(size=SIZE).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a mask2former model; use `kind: maskformer` for it, or give a eomt or"):
        settings_of(tmp_path).open(device="cpu")
    for kind, other in (("eomt", MaskFormer), ("eomt_dinov3", Sam)):
        settings_ = other.model_validate({"kind": other.__name__.lower(), "checkpoint": str(checkpoints[kind])})
        with pytest.raises(InputError, match=f"is a {kind} model; use `kind: eomt` for it, or give a "):
            settings_.open(device="cpu")


def test_weights_without_which_attention_would_be_masked_are_missed(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    del weights["attn_mask_probs"], weights["criterion.empty_weight"]  # the loss's are not
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="lacks 1 weights such as attn_mask_probs; save the whole model"):
        settings_of(copied).open(device="cpu")


def test_a_transformers_that_is_too_old_for_a_model_is_told_to_be_newer(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = {"eomt": ("EomtOfTheFuture", "EomtImageProcessor")}
    monkeypatch.setattr(Eomt, "family", replace(Eomt.family, classes=classes))
    with pytest.raises(InputError, match=r"transformers \S+ has no EomtOfTheFuture; install a newer one: pip inst"):
        settings_of(checkpoints["eomt"]).open(device="cpu")
