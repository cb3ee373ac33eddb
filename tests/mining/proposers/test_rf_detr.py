"""RF-DETR, tiny and with random weights, by the path that real checkpoints take."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from maskmine.mining.proposers.maskformer import MaskFormer
from maskmine.mining.proposers.proposals import LoadedImage, Proposals
from maskmine.mining.proposers.rf_detr import RfDetr, _load, one_class_each
from maskmine.schemas.errors import InputError
from tests.support.models import SIZE, network
from tests.support.tiny.proposers import rf_detr_network, save_rf_detr


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_rf_detr(tmp_path_factory.mktemp("rf_detr"))


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copied"))


def image(height_px: int = 48, width_px: int = 72, *, seed: int = 1) -> LoadedImage:
    numbers = torch.Generator().manual_seed(seed)
    return LoadedImage("0", torch.randint(0, 256, (3, height_px, width_px), dtype=torch.uint8, generator=numbers))


def settings_of(checkpoint: Path | str, **changes: Any) -> RfDetr:
    return RfDetr.model_validate({"kind": "rf_detr", "checkpoint": str(checkpoint), **changes})


def proposed(checkpoint: Path, **changes: Any) -> Proposals:
    (answer,) = settings_of(checkpoint, **changes).open(device="cpu")([image()], min_score=0.0)
    assert isinstance(answer, Proposals)
    return answer


def test_the_likeliest_class_keeps_its_probability_and_the_rest_is_no_object() -> None:
    probability_13 = one_class_each(torch.tensor([[2.0, -1.0], [-30.0, -40.0]])[None])[0].softmax(dim=-1)
    expected = [[torch.tensor(2.0).sigmoid(), 0.0, torch.tensor(-2.0).sigmoid()], [0.0, 0.0, 1.0]]
    assert torch.allclose(probability_13, torch.tensor(expected), atol=1e-6)


def test_classes_scores_and_masks_are_those_of_transformers_own_post_processing(checkpoint: Path) -> None:
    """It gives the likeliest pairs of a query and a class; here a query has its likeliest class, and counts pixels."""
    processor = transformers.RfDetrImageProcessor.from_pretrained(checkpoint)
    model = transformers.RfDetrForInstanceSegmentation.from_pretrained(checkpoint)
    shown = image()
    with torch.inference_mode():
        outputs = model(**processor(images=[shown.rgb_3HW], return_tensors="pt", input_data_format="channels_first"))
    (theirs,) = processor.post_process_instance_segmentation(
        outputs, threshold=0.0, target_sizes=[(48, 72)], return_binary_maps=True, top_k=18
    )
    found = proposed(checkpoint)
    assert len(found) > 3
    segments = list(zip(theirs["segments_info"], theirs["segmentation"].bool(), strict=True))
    for mask_HW, score, label, classes_K in zip(  # type: ignore[call-overload]
        found.masks_NHW, found.scores_N.tolist(), found.labels, found.classes_NK, strict=True
    ):
        best = float(classes_K.max())
        pairs = [(segment, their_HW) for segment, their_HW in segments if abs(segment["score"] - best) < 1e-5]
        ((segment, theirs_HW),) = pairs
        assert label == found.class_names[segment["label_id"]]
        assert 0.5 * best < score <= best
        assert (mask_HW != theirs_HW).float().mean() < 0.1  # logits are resized there, probabilities here


def test_in_a_batch_of_one_size_neighbours_change_rounding_only(checkpoint: Path) -> None:
    predict, labels = _load(settings_of(checkpoint), device=torch.device("cpu"))
    assert labels == ("cat", "sky", None)
    pixels = [image(seed=seed).rgb_3HW for seed in range(3)]
    for together_B, alone in zip(predict(pixels), predict(pixels[:1]), strict=True):
        assert torch.allclose(together_B[0], alone[0], atol=1e-3)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_gives_nearly_the_same_scores(checkpoint: Path, precision: str) -> None:
    exact, rounded = (proposed(checkpoint, precision=p) for p in ("float32", precision))
    assert rounded.scores_N.dtype == torch.float32
    assert abs(float(exact.scores_N.mean() - rounded.scores_N.mean())) < 0.1
    assert not torch.equal(exact.scores_N, rounded.scores_N)


def test_answers_that_are_no_numbers_stop_the_run(copied: Path) -> None:
    broken = rf_detr_network()
    torch.nn.init.constant_(broken.segmentation_bias, float("nan"))
    broken.save_pretrained(copied)
    with pytest.raises(InputError, match=r"proposals\.precision: .* not finite"):
        proposed(copied)


def test_a_checkpoint_of_another_kind_is_refused_with_the_kind_that_takes_it(checkpoint: Path, tmp_path: Path) -> None:
    network("maskformer").save_pretrained(tmp_path)
    transformers.MaskFormerImageProcessor(size=SIZE).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a maskformer model; use `kind: maskformer` for it, or give a rf_detr one"):
        settings_of(tmp_path).open(device="cpu")
    with pytest.raises(InputError, match="is a rf_detr model; use `kind: rf_detr` for it, or give a maskformer or"):
        MaskFormer(kind="maskformer", checkpoint=str(checkpoint)).open(device="cpu")


def test_a_detector_without_masks_is_refused_for_the_weights_that_it_lacks(copied: Path) -> None:
    weights = {key: value for key, value in load_file(copied / "model.safetensors").items() if "query_feat" not in key}
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks \d+ weights such as .*query_feat.*; save the whole model"):
        settings_of(copied).open(device="cpu")
