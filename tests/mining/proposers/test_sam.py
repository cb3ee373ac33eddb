"""Segment Anything, tiny and with random weights: which points are asked about, and which masks are proposals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.ops import box_iou

from maskmine.mining.images.crops import tight_boxes
from maskmine.mining.proposers import sam as module
from maskmine.mining.proposers.maskformer import MaskFormer
from maskmine.mining.proposers.proposals import LoadedImage, Proposals
from maskmine.mining.proposers.sam import Sam, point_grid, stability
from maskmine.schemas.errors import InputError
from tests.support.models import SIZE, network
from tests.support.tiny.proposers import SIDE_PX, sam_network, save_sam, save_sam2, save_sam3

ALL = {"points_per_side": 3, "min_predicted_iou": 0.0, "min_stability": 0.0, "max_box_iou": 1.0}
FOLDERS = ("sam", "sam2", "sam3")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        "sam": save_sam(tmp_path_factory.mktemp("sam")),
        "sam2": save_sam2(tmp_path_factory.mktemp("sam2")),
        "sam3": save_sam3(tmp_path_factory.mktemp("sam3")),
    }


@pytest.fixture
def copied(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoints["sam"], tmp_path / "copied"))


def image(height_px: int = 48, width_px: int = 72) -> LoadedImage:
    numbers = torch.Generator().manual_seed(1)
    return LoadedImage("0", torch.randint(0, 256, (3, height_px, width_px), dtype=torch.uint8, generator=numbers))


def settings_of(checkpoint: Path | str, **changes: Any) -> Sam:
    return Sam.model_validate({"kind": "sam", "checkpoint": str(checkpoint), **ALL, **changes})


def proposed(checkpoint: Path, shown: LoadedImage | None = None, **changes: Any) -> Proposals:
    (answer,) = settings_of(checkpoint, **changes).open(device="cpu")([shown or image()], min_score=0.0)
    assert isinstance(answer, Proposals)
    return answer


def masks_of(found: Proposals) -> set[bytes]:
    return {mask_HW.numpy().tobytes() for mask_HW in found.masks_NHW}


# --- points -----------------------------------------------------------------------------------------------------------


def test_points_are_the_middles_of_the_cells_row_by_row() -> None:
    assert point_grid(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    assert point_grid(1).tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize(("kind", "input_px"), [("sam", (43, 64)), ("sam2", (64, 64)), ("sam3", (64, 64))])
def test_points_cover_the_whole_picture_and_none_of_the_padding(
    checkpoints: dict[str, Path], kind: str, input_px: tuple[int, int]
) -> None:
    """SAM pads a picture of 48 × 72 pixels, SAM 2 and 3 stretch it."""
    model = module._load(settings_of(checkpoints[kind]), device=torch.device("cpu"))
    asked: list[torch.Tensor] = []
    network_ = model.network
    network_.register_forward_pre_hook(lambda _, __, given: asked.append(given["input_points"]), with_kwargs=True)
    module._generate(image().rgb_3HW, model=model, settings=settings_of(checkpoints[kind]), min_score=0.0)
    x_P, y_P = torch.cat(asked, dim=1)[0, :, 0].unbind(1)
    for asked_P, side_px in ((x_P, input_px[1]), (y_P, input_px[0])):
        assert asked_P.unique().tolist() == pytest.approx([side_px / 6, side_px / 2, side_px * 5 / 6], abs=1e-4)


@pytest.mark.parametrize("kind", FOLDERS)
def test_every_point_gives_three_masks_however_many_are_asked_at_once(checkpoints: dict[str, Path], kind: str) -> None:
    together = proposed(checkpoints[kind])
    assert len(together) == 27
    for at_once in (1, 4):
        found = proposed(checkpoints[kind], points_per_batch=at_once)
        assert torch.allclose(found.scores_N, together.scores_N, atol=1e-5)
        assert (found.masks_NHW != together.masks_NHW).float().mean() < 1e-3


# --- which masks ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # transformers' own
def test_the_masks_of_sam_are_those_of_transformers_own_generator(checkpoints: dict[str, Path]) -> None:
    generate = transformers.MaskGenerationPipeline(
        model=transformers.SamModel.from_pretrained(checkpoints["sam"]),
        image_processor=transformers.SamImageProcessor.from_pretrained(checkpoints["sam"]),
    )
    shown = image()
    picture = Image.fromarray(shown.rgb_3HW.permute(1, 2, 0).numpy())
    thresholds = {"pred_iou_thresh": 0.45, "stability_score_thresh": 0.8, "stability_score_offset": 0.05}
    expected = generate(picture, points_per_crop=4, points_per_batch=64, crops_nms_thresh=1.0, **thresholds)
    ours = {"min_predicted_iou": 0.45, "min_stability": 0.8, "stability_offset": 0.05, "points_per_side": 4}
    found = proposed(checkpoints["sam"], shown, **ours)
    assert 3 < len(found) < 45
    assert masks_of(found) == {mask_HW.bool().numpy().tobytes() for mask_HW in expected["masks"]}
    assert found.scores_N.tolist() == pytest.approx(sorted(expected["scores"].tolist(), reverse=True))


def test_stability_is_the_iou_of_the_masks_with_a_higher_and_a_lower_threshold() -> None:
    logits_MHW = torch.tensor([[[2.0, 0.5, -0.5, -2.0]], [[3.0, 3.0, -3.0, -3.0]], [[0.9, -0.9, 0.0, 0.0]]])
    assert stability(logits_MHW, offset=1.0).tolist() == pytest.approx([1 / 3, 1.0, 0.0])
    assert stability(logits_MHW, offset=0.4).tolist() == pytest.approx([1.0, 1.0, 1 / 3])
    assert stability(torch.full((1, 2, 2), -5.0), offset=1.0).isnan().all()


@pytest.mark.parametrize("kind", FOLDERS)
def test_thresholds_leave_those_above_them_and_no_other(checkpoints: dict[str, Path], kind: str) -> None:
    every = proposed(checkpoints[kind])
    least = float(every.scores_N[9])
    better = proposed(checkpoints[kind], min_predicted_iou=least)
    assert better.scores_N.tolist() == [score for score in every.scores_N.tolist() if score >= least]
    stable = [proposed(checkpoints[kind], min_stability=share, stability_offset=0.05) for share in (0.0, 0.8, 0.95)]
    assert len(every) == len(stable[0]) > len(stable[1]) > len(stable[2])
    assert masks_of(stable[2]) <= masks_of(stable[1]) <= masks_of(every)


@pytest.mark.parametrize("kind", ["sam", "sam2"])  # of the tiny SAM 3 every mask touches every side
def test_of_two_masks_with_nearly_one_box_the_better_stays(checkpoints: dict[str, Path], kind: str) -> None:
    every = proposed(checkpoints[kind])
    boxes_N4 = tight_boxes(every.masks_NHW).float()
    limit = float(box_iou(boxes_N4[:1], boxes_N4).min()) + 1e-4  # one at least does not repeat the best
    distinct = proposed(checkpoints[kind], max_box_iou=limit)
    kept_N4 = tight_boxes(distinct.masks_NHW).float()
    assert 1 < len(distinct) < len(every)
    assert torch.equal(distinct.masks_NHW[0], every.masks_NHW[0])
    assert bool((box_iou(kept_N4, kept_N4).fill_diagonal_(0) <= limit).all())
    for box_4, score, mask_HW in zip(boxes_N4, every.scores_N, every.masks_NHW, strict=True):
        if mask_HW.numpy().tobytes() not in masks_of(distinct):
            better_N = distinct.scores_N >= score
            assert bool((box_iou(box_4[None], kept_N4[better_N]) > limit).any())


def test_only_the_best_are_brought_to_the_pictures_size(checkpoints: dict[str, Path]) -> None:
    every, few = proposed(checkpoints["sam"]), proposed(checkpoints["sam"], max_proposals=4)
    assert torch.equal(few.scores_N, every.scores_N[:4])
    assert torch.equal(few.masks_NHW, every.masks_NHW[:4])


def test_masks_do_not_depend_on_how_many_are_resized_at_once(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = proposed(checkpoints["sam"])
    monkeypatch.setattr(module, "_CHUNK_VALUES", 2 * SIDE_PX**2)
    assert torch.equal(proposed(checkpoints["sam"]).masks_NHW, together.masks_NHW)


def test_a_predicted_iou_above_1_is_1_and_its_mask_still_comes_first(copied: Path) -> None:
    sure = sam_network()
    sure.mask_decoder.iou_prediction_head.proj_out.bias.data += 0.45
    sure.save_pretrained(copied)
    found, plain = proposed(copied), proposed(copied, max_proposals=3)
    assert found.scores_N.tolist()[:3] == [1.0, 1.0, 1.0]
    assert float(found.scores_N[-1]) < 1
    assert torch.equal(plain.masks_NHW, found.masks_NHW[:3])


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_sam_2_as_it_is_published_with_its_parts_for_videos_gives_the_same_masks(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    video = save_sam2(tmp_path, video=True)
    assert json.loads((video / "config.json").read_text())["model_type"] == "sam2_video"
    weights = load_file(video / "model.safetensors") | load_file(checkpoints["sam2"] / "model.safetensors")
    save_file(weights, video / "model.safetensors", metadata={"format": "pt"})
    expected, found = proposed(checkpoints["sam2"]), proposed(video)
    assert torch.equal(found.masks_NHW, expected.masks_NHW)
    assert torch.equal(found.scores_N, expected.scores_N)


def test_sam_3_as_it_is_published_with_its_detector_and_parts_for_videos_gives_the_same_masks(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """There the encoder is the detector's, and the tracker has a neck of its own upon it."""
    video = save_sam3(tmp_path, video=True)
    assert json.loads((video / "config.json").read_text())["model_type"] == "sam3_video"
    weights = load_file(video / "model.safetensors")
    for name, value in transformers.Sam3TrackerModel.from_pretrained(checkpoints["sam3"]).state_dict().items():
        moved = name.replace("vision_encoder.backbone.", "detector_model.vision_encoder.backbone.")
        moved = moved.replace("vision_encoder.neck.", "tracker_neck.")
        published = moved if moved != name else f"tracker_model.{name}"
        assert weights[published].shape == value.shape
        weights[published] = value.contiguous()
    save_file(weights, video / "model.safetensors", metadata={"format": "pt"})
    expected, found = proposed(checkpoints["sam3"]), proposed(video)
    assert torch.equal(found.masks_NHW, expected.masks_NHW)
    assert torch.equal(found.scores_N, expected.scores_N)


def test_a_lower_precision_of_the_encoder_gives_nearly_the_same_scores(checkpoints: dict[str, Path]) -> None:
    exact, rounded = (proposed(checkpoints["sam"], precision=p) for p in ("float32", "bfloat16"))
    assert rounded.scores_N.dtype == torch.float32
    assert torch.allclose(exact.scores_N, rounded.scores_N, atol=0.05)
    assert not torch.equal(exact.scores_N, rounded.scores_N)


def test_answers_that_are_no_numbers_stop_the_run(copied: Path) -> None:
    broken = sam_network()
    torch.nn.init.constant_(broken.mask_decoder.iou_prediction_head.proj_out.bias, float("nan"))
    broken.save_pretrained(copied)
    with pytest.raises(InputError, match=r"proposals\.precision: .* not finite"):
        proposed(copied)


def test_a_checkpoint_of_the_other_kind_is_refused_with_the_kind_that_takes_it(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="is a sam2 model; use `kind: sam` for it, or give a maskformer or mask2form"):
        MaskFormer(kind="maskformer", checkpoint=str(checkpoints["sam2"])).open(device="cpu")
    network("maskformer").save_pretrained(tmp_path)
    transformers.MaskFormerImageProcessor(size=SIZE).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a maskformer model; use `kind: maskformer` for it, or give a sam, sam2, "):
        settings_of(tmp_path).open(device="cpu")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(sam_network().state_dict(), folder / "pytorch_model.bin")


def without(*names: str) -> Any:
    def damage(folder: Path) -> None:
        weights = {key: value for key, value in load_file(folder / "model.safetensors").items() if key not in names}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def test_a_sam_2_that_lacks_what_no_training_changes_is_refused_too(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoints["sam2"], tmp_path / "copied"))
    without("shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding")(
        folder
    )
    with pytest.raises(InputError, match=r"lacks \d weights such as .*positional_embedding; save the whole model"):
        settings_of(folder).open(device="cpu")


def with_processor(**changes: Any) -> Any:
    return lambda folder: transformers.SamImageProcessor(**changes).save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (pickled, "holds no weights; add them as model.safetensors"),
        (without("mask_decoder.iou_token.weight"), "lacks 1 weights such as mask_decoder.iou_token.weight"),
        (without("shared_image_embedding.positional_embedding"), "lacks . weights such as .*positional_embedding"),
        (with_processor(), "makes another size than the 64 pixels that the model takes; save the processor again"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x08" + b"\0" * 40), "cannot be loaded"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "holds no preprocessor_config.json"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(copied: Path, damage: Any, message: str) -> None:
    damage(copied)
    with pytest.raises(InputError, match=message) as caught:
        settings_of(copied).open(device="cpu")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("proposals.checkpoint: ")
